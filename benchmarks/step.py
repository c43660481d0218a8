"""Seconds of audio a second that a preset trains at on this machine, loader on, in several settings.

    python benchmarks/step.py --experiment wavlm_base --updates 200 --json step.json
    python benchmarks/step.py --experiment wavlm_nano --updates 60 --variants precision=32-true model.attention_backend=sdpa

Each setting is a launch of the real program on synthetic shards. The figure is the median of its progress lines after the first third of
the updates; the loss of the last update stands beside it, so that settings that should agree can be seen to.
"""

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from synthetic import make_shard_set

GPU_VARIANTS = [
    "precision=32-true",
    "precision=bf16-mixed",
    "precision=bf16-mixed model.compile_layers=true",
    "precision=bf16-mixed model.recompute=all",
]


def make_data(folder: Path, clusters: int, hours: float) -> list[str]:
    """Overrides that name synthetic shards of about `hours`, their labels and a noise bank."""
    speakers = max(4, round(hours * 3600 / (8 * 12)))
    shards = make_shard_set(folder, speakers=speakers, utterances=8, seconds=(8.0, 16.0))
    noise = make_shard_set(folder / "noise", speakers=2, utterances=3, seconds=(2.0, 8.0), seed=9)
    fit_codebook(
        [shards], folder / "codebook", clusters=clusters, engine="minibatch", min_frames_per_cluster=20, validation_share=0.0
    )
    assign_labels(shards, folder / "codebook", folder / "labels")
    places = [f"data.sources.speech.shards={shards}", f"data.sources.speech.labels={folder / 'labels'}", f"data.noise={noise}"]
    return [*places, "data.validation_share=0"]


def measure(overrides: list[str], directory: Path, updates: int) -> dict[str, float | str]:
    """One launch: audio seconds a second, and the loss it ended with."""
    settings = ["logger.every_s=1", f"stop_after={updates}", "callbacks.checkpoint_every=1000000", "callbacks.validate_every=0"]
    program = [sys.executable, "-m", "openwavlm", "train", "name=step", f"hydra.run.dir={directory}", *overrides, *settings]
    ended = subprocess.run(program, capture_output=True, text=True, check=False)
    if ended.returncode:
        return {"failed": ended.stderr.strip().splitlines()[-1]}
    lines = re.findall(r"step (\d+)/.*\| (\d+) audio-s/s", ended.stderr)
    speeds = [float(speed) for step, speed in lines if int(step) > updates / 3]
    last = list(csv.DictReader((directory / "metrics.csv").read_text().splitlines()))[-1]
    return {"audio_s_per_s": statistics.median(speeds), "lines": len(speeds), "loss": float(last["loss"])}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="wavlm_nano")
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--hours", type=float, default=0.2, help="of synthetic audio")
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--overrides", nargs="*", default=[], help="for all variants")
    parser.add_argument("--variants", nargs="*", help="overrides of each variant, in quotes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    variants = arguments.variants or (GPU_VARIANTS if torch.cuda.is_available() else ["precision=32-true"])
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    result: dict = {"machine": machine, "torch": torch.__version__, "experiment": arguments.experiment, "variants": {}}
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", arguments.clusters, arguments.hours)
        for number, variant in enumerate(variants):
            overrides = [f"experiment={arguments.experiment}", *data, *arguments.overrides, *variant.split()]
            result["variants"][variant] = measure(overrides, Path(folder) / f"run-{number}", arguments.updates)
            print(variant, result["variants"][variant], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
