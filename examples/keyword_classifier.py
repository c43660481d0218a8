"""Fine-tunes a classifier of spoken words and prints its classes for recordings of held-out speakers.

    python examples/keyword_classifier.py MODEL RECORDINGS.tsv RUN

MODEL is a run, an exported folder or a checkpoint of any dialect. RECORDINGS.tsv has the columns path (absolute, or relative to the file),
speaker and word. RUN is a new name below runs/. A tenth of the speakers, at least one, is the validation part and another tenth the test
part. The head reads a trained weighted sum of all layers. Every step can be killed and goes on.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
import transformers

SAMPLE_RATE_HZ = 16_000
SHOWN = 10


def commands(model: str, recordings: str, run: str, *, settings: list[str]) -> list[list[str]]:
    """The command lines, in order: shards, training, export."""
    shards = Path("runs") / f"{run}-shards"
    return [
        ["make-shards", f"input={recordings}", f"output={shards}", "layout=manifest", "min_seconds=0.1", "join_short=false"],
        [
            *("finetune", f"name={run}", "task=sid", "task.field=word", "preset=nano", f"init={model}"),
            *(f"data.sources.speech.shards={shards}", "data.validation_share=0.1", "data.test_share=0.1", *settings),
        ],
        ["export", f"run=runs/{run}", "checkpoint=best"],
    ]


def held_out(recordings: Path, run: Path) -> dict[str, Path]:
    """A recording of the test's speakers for each word, at most `SHOWN`."""
    with (run / "test.tsv").open(encoding="utf-8", newline="") as file:
        speakers = {row["speaker"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    with recordings.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["speaker"] in speakers]
    found = {row["word"]: recordings.parent / row["path"] for row in rows}
    return dict(list(found.items())[:SHOWN])


def read_audio(path: Path) -> np.ndarray:
    """Samples of a recording as the model reads them: mono, 16 kHz."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(audio.mean(axis=1), rate, SAMPLE_RATE_HZ)


def main(model: str, recordings: str, run: str, *settings: str) -> None:
    """Runs the commands, then prints classes; further arguments are keys of `openwavlm finetune`, as in optim.updates=1000."""
    folder = Path("runs") / run
    for words in commands(model, recordings, run, settings=list(settings)):
        print("openwavlm", *words, flush=True)
        subprocess.run([sys.executable, "-m", "openwavlm", *words], check=True)
        if words[0] == "finetune" and not (folder / "test.tsv").is_file():
            sys.exit("the training was stopped before its end: run the same command again")
    prepare = transformers.AutoFeatureExtractor.from_pretrained(folder / "export")
    classifier = transformers.AutoModelForAudioClassification.from_pretrained(folder / "export")
    for word, path in held_out(Path(recordings), folder).items():
        inputs = prepare(read_audio(path), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        with torch.no_grad():
            probabilities = classifier(**inputs).logits[0].softmax(-1)  # (classes,)
        best = int(probabilities.argmax())
        print(f"reference {word!r}, class {classifier.config.id2label[best]!r} with probability {probabilities[best]:.2f}")
    test = json.loads((folder / "summary.json").read_text())["test"]
    print(f"wrong classes in the test part: {test['class_error']:.3f} ({test['rows']} recordings, {test['speakers']} speakers)")


if __name__ == "__main__":
    main(*sys.argv[1:])
