"""The program `openwavlm`: a name for each job, each with its own `--help`."""

import importlib
import sys

import openwavlm
from openwavlm.runtime.interrupt import end_at_interrupt, ending_with_reader

COMMANDS = {
    "make-shards": "turn a corpus into shards: 16 kHz FLAC in plain tars, with an index",
    "fit-kmeans": "fit a k-means codebook on training speakers",
    "assign-labels": "label shard sets with a codebook, or with several in one pass",
    "verify": "compare shards and labels with their checksums, and a sample with its recomputation",
    "train": "launch or resume a pre-training run (the same as train.py)",
    "finetune": "train a head for CTC, phones or classes on an encoder",
    "experiments": "the presets of a training run, each with its purpose",
    "plan": "hours, memory, days and disk of a run, before there are data",
    "tune": "find the settings that train fastest on this machine, by short trials",
    "iterate": "labels, training, probes, labels again: a resumable chain",
    "runs": "a table of the runs in runs/: state, update, loss, speed, age",
    "quality": "phone and speaker information in labels and in a model's layers, on held-out speakers",
    "report": "write a run's report.html: figures, pictures, audio, verdicts",
    "replay": "build the batches of one update again, bit for bit, to look at and listen to",
    "export": "write a run in the format of Hugging Face, Microsoft, torchaudio, s3prl or ONNX",
    "release": "write a run with head, codebooks and model card, for others to continue from",
    "extract": "features of a model's layers, or units, of a folder of recordings",
    "synthesize": "synthesise the demo's corpus of English speech with phone times",
    "import-labels": "make a labelling of fairseq's .tsv, .km and dictionary",
    "import-codebook": "make a codebook folder of a published codebook",
    "upgrade": "bring shard sets, labels and runs of an older version to the present formats, in place",
}


_HELP = {"--help", "-h", "help"}
USAGE = {  # of the commands that take no key=value
    "experiments": "usage: openwavlm experiments   (the presets of a training run, each with its purpose)",
    "runs": "usage: openwavlm runs [FOLDER]   (a table of the runs below runs/ or FOLDER, the one that changed last first)",
    "upgrade": """usage: openwavlm upgrade PATH ...

Brings shard sets, labels, codebooks and runs of format 1 to the present formats, in place; audio, labels and weights stay as they are.
In any other folder (of openwavlm iterate, data/, runs/) all of these below it are upgraded. The shard sets and labels of a run
are upgraded with it. Labels and codebooks need their shard sets: name them on the same line, as in
`openwavlm upgrade data/shards/train data/labels/km500`. After a kill, run the same command again.""",
}


def main() -> None:
    """Dispatches `openwavlm COMMAND key=value …`."""
    end_at_interrupt()  # before the seconds that the imports take
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        del sys.argv[1]
        run(name)
        return
    if name in ("--complete", "--completion"):
        from openwavlm.cli.completion import BASH, candidates

        with ending_with_reader():
            print(BASH if name == "--completion" else "\n".join(candidates(sys.argv[2], list(COMMANDS))))
        return
    if name not in {*_HELP, "--version"}:
        sys.stderr.write(f"error: there is no command {name}\n{_usage()}\n")
        raise SystemExit(2)
    with ending_with_reader():
        print(f"openwavlm {openwavlm.__version__}" if name == "--version" else _usage())


def run(name: str) -> None:
    """Runs a command of `COMMANDS` with the arguments of this program."""
    end_at_interrupt()
    if _HELP & set(sys.argv[1:]):
        from openwavlm.cli.help import help_text

        with ending_with_reader():
            print(USAGE[name] if name in USAGE else help_text(name, COMMANDS[name]))
        return
    with ending_with_reader():
        importlib.import_module(f"openwavlm.cli.{name.replace('-', '_')}").main()


def _usage() -> str:
    lines = "".join(f"\n  {command:<16} {what}" for command, what in COMMANDS.items())
    return f"usage: openwavlm COMMAND key=value ...   (openwavlm COMMAND --help lists the keys)\n{lines}"
