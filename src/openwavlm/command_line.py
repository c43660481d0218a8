"""The program `openwavlm`: a name for each job, each with its own `--help`."""

import importlib
import sys

from openwavlm.interrupt import end_at_interrupt

COMMANDS = {
    "train": ("openwavlm.launch", "launch or resume a pre-training run (the same as train.py)"),
    "plan": ("openwavlm.plan_command", "hours, memory, days and disk of a run, before there are data"),
    "tune": ("openwavlm.tune", "which settings train fastest on this machine, by short trials"),
    "extract": ("openwavlm.extract", "features of a model's layers, or units, of a folder of recordings"),
    "quality": ("openwavlm.quality", "how much labels and a model's layers tell of phones and speakers, on held-out voices"),
    "iterate": ("openwavlm.iterate", "labels, training, probes, labels again: a resumable chain"),
    "learn": ("openwavlm.learn", "paired comparisons over seeds: iterations, mixing, front ends, warm-up losses"),
    "export": ("openwavlm.export", "write a run in the format of Hugging Face, Microsoft or torchaudio"),
    "report": ("openwavlm.report_command", "write a run's report.html: figures, pictures, audio, verdicts"),
    "replay": ("openwavlm.replay", "build the batches of one update again, bit for bit, to be seen and heard"),
    "upgrade": ("openwavlm.upgrade", "bring shard sets, labels and runs of an older version to the present formats, in place"),
}


def main() -> None:
    """Dispatches `openwavlm COMMAND key=value …`."""
    end_at_interrupt()  # before the seconds that the imports take
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        lines = "".join(f"\n  {command:<8} {what}" for command, (_, what) in COMMANDS.items())
        asked = name in ("--help", "-h", "help")
        refusal = "" if asked else f"error: there is no command {name}\n"
        usage = f"usage: openwavlm COMMAND key=value ...   (openwavlm COMMAND --help shows the keys)\n{lines}"
        print(refusal + usage, file=sys.stdout if asked else sys.stderr)
        raise SystemExit(0 if asked else 2)
    del sys.argv[1]
    importlib.import_module(COMMANDS[name][0]).main()
