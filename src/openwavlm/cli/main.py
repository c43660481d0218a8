"""The program `openwavlm`: a name for each job, each with its own `--help`."""

import importlib
import sys

from openwavlm.runtime.interrupt import end_at_interrupt

COMMANDS = {
    "make-shards": "turn a corpus into shards: 16 kHz FLAC in plain tars, with an index",
    "fit-kmeans": "fit a k-means codebook on training speakers",
    "assign-labels": "label shard sets with a codebook, or with several in one pass",
    "verify": "compare shards and labels with their checksums, and a sample with its recomputation",
    "train": "launch or resume a pre-training run (the same as train.py)",
    "plan": "hours, memory, days and disk of a run, before there are data",
    "tune": "find the settings that train fastest on this machine, by short trials",
    "iterate": "labels, training, probes, labels again: a resumable chain",
    "quality": "phone and speaker information in labels and in a model's layers, on held-out speakers",
    "report": "write a run's report.html: figures, pictures, audio, verdicts",
    "replay": "build the batches of one update again, bit for bit, to look at and listen to",
    "export": "write a run in the format of Hugging Face, Microsoft or torchaudio",
    "extract": "features of a model's layers, or units, of a folder of recordings",
    "learn": "paired comparisons over seeds: iterations, mixing, front ends, warm-up losses",
    "synthesize": "synthesise the demo's corpus of English speech with phone times",
    "import-labels": "make a labelling of fairseq's .tsv, .km and dictionary",
    "import-codebook": "make a codebook folder of a published codebook",
    "upgrade": "bring shard sets, labels and runs of an older version to the present formats, in place",
}


def main() -> None:
    """Dispatches `openwavlm COMMAND key=value …`."""
    end_at_interrupt()  # before the seconds that the imports take
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        lines = "".join(f"\n  {command:<16} {what}" for command, what in COMMANDS.items())
        asked = name in ("--help", "-h", "help")
        refusal = "" if asked else f"error: there is no command {name}\n"
        usage = f"usage: openwavlm COMMAND key=value ...   (openwavlm COMMAND --help shows the keys)\n{lines}"
        print(refusal + usage, file=sys.stdout if asked else sys.stderr)
        raise SystemExit(0 if asked else 2)
    del sys.argv[1]
    importlib.import_module(f"openwavlm.cli.{name.replace('-', '_')}").main()
