"""Shards, labels, twenty updates, export and Transformers in a second environment; its shards and labels equal this one's byte for byte.

python tests/second_environment.py .venv-newest/bin/python      (`make test-newest`)
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from synthetic import make_corpus

REPOSITORY = Path(__file__).parents[1]
UPDATES = 20
COMMANDS = (
    "data_prep/make_shards.py input=../recordings output=shards speaker_folder=1 workers=1",
    "data_prep/fit_kmeans.py shards=shards output=codebook clusters=50 min_frames_per_cluster=20 validation_share=0.2",
    "data_prep/assign_labels.py shards=shards codebook=codebook output=labels workers=1",
    f"train.py experiment=wavlm_nano name=run data.sources.speech.shards=shards data.sources.speech.labels=labels"
    f" data.validation_share=0.2 batch.seconds=16 optim.updates={UPDATES} optim.warmup_updates=2 loader.workers=0",
    "-m openwavlm export run=runs/run",
)
# Runs in the second environment: what it computes there is compared with Transformers there.
_CHECK = f"""
import csv, sys
import torch
import openwavlm.shards.prepare, openwavlm.runs.export, openwavlm.pipeline.iterate
import openwavlm.labels.assign, openwavlm.labels.feature_files, openwavlm.labels.fit
assert "torchaudio" not in sys.modules, "torchaudio was imported"
import transformers
losses = [float(row["loss"]) for row in csv.DictReader(open("runs/run/metrics.csv"))]
assert len(losses) == {UPDATES} and losses[-1] < losses[0], losses
theirs, info = transformers.WavLMModel.from_pretrained("runs/run/export", output_loading_info=True)
assert not any(info[f"{{kind}}_keys"] for kind in ("missing", "unexpected", "mismatched")), info
waveforms = 0.1 * torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    reference = theirs.eval()(waveforms).last_hidden_state
    ours = openwavlm.load("runs/run/export").extract(waveforms, final_norm=True)[-1]
error = float((ours - reference).abs().max() / reference.square().mean().sqrt())
assert error < 1e-5, error
print(f"torch {{torch.__version__}}, transformers {{transformers.__version__}}: loss {{losses[0]:.3f}} to {{losses[-1]:.3f}}, "
      f"largest difference to Transformers {{error:.1e}} of rms")
"""


def _run(python: str, folder: Path) -> None:
    """Runs the whole path with one interpreter in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "HYDRA_FULL_ERROR": "0", "OMP_NUM_THREADS": "1"}
    folder.mkdir()
    scripts = [
        command.replace("data_prep/", f"{REPOSITORY}/data_prep/").replace("train.py", f"{REPOSITORY}/train.py")
        for command in COMMANDS
    ]
    for words in [*(script.split() for script in scripts), ["-c", _CHECK]]:
        done = subprocess.run([python, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(
                f"{python} {' '.join(words[:3])} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
            )
    print(done.stdout.strip(), flush=True)


def _files(folder: Path) -> dict[str, bytes]:
    """Content of the files by path, without the versions of torch and of PyAV, which decoded nothing, and the seals over these."""
    return {
        str(path.relative_to(folder)): re.sub(rb'"(torch|av|seal)": "[^"]*"', b"", path.read_bytes())
        for name in ("shards", "codebook", "labels")
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("python", help="interpreter of the second environment")
    python = str(Path(parser.parse_args().python).absolute())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_corpus(folder / "recordings", speakers=10, utterances=4, seconds=(3.0, 9.0))
        for name, interpreter in (("first", sys.executable), ("second", python)):
            _run(interpreter, folder / name)
        first, second = _files(folder / "first"), _files(folder / "second")
        differing = sorted({*first, *second} - {name for name in first if first[name] == second.get(name)})
        if differing or not first:
            print(f"{len(differing)} of {len(first)} files of shards, codebook and labels differ: {', '.join(differing[:5])}")
            return 1
        print(f"{len(first)} files of shards, codebook and labels are equal, {sum(map(len, first.values())):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
