"""Continues the pre-training of a Hugging Face model on shards of your own.

    python examples/continue_from_hugging_face.py MODEL SHARDS RUN

MODEL is a folder with config.json and model.safetensors (WavLM, HuBERT or wav2vec 2.0, Base size), SHARDS a shard set of `openwavlm
make-shards`, RUN a new name below runs/. Labels are k-means units of the model's own sixth layer. Every step can be killed and goes on.
"""

import subprocess
import sys
from pathlib import Path

CLUSTERS = 100


def commands(model: str, shards: str, run: str, *, layer: int, clusters: int, settings: list[str]) -> list[list[str]]:
    """The command lines, in order: codebook, labels, training, export."""
    work = Path("runs") / f"{run}-labels"
    labels = work / "labels"
    data = [f"data.sources.speech.shards={shards}", f"data.sources.speech.labels={labels}"]
    return [
        [
            *("fit-kmeans", f"shards={shards}", f"output={work / 'codebook'}"),
            *("features=layer", f"teacher={model}", f"layer={layer}", f"clusters={clusters}"),
        ],
        ["assign-labels", f"shards={shards}", f"codebook={work / 'codebook'}", f"output={labels}", f"teacher={model}"],
        ["train", f"name={run}", f"init_from={model}", *data, *settings],
        ["export", f"run=runs/{run}"],
    ]


def main(model: str, shards: str, run: str, *settings: str) -> None:
    """Runs the commands; further arguments are keys of `openwavlm train`, as in optim.updates=10000."""
    given = list(settings) or ["experiment=wavlm_base_l9", "optim.lr=1e-4", "optim.updates=10000", "optim.warmup_updates=800"]
    for words in commands(model, shards, run, layer=6, clusters=CLUSTERS, settings=given):
        print("openwavlm", *words, flush=True)
        subprocess.run([sys.executable, "-m", "openwavlm", *words], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
