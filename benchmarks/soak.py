"""A run that is killed again and again ends bit-equal to an undisturbed one.

    python benchmarks/soak.py --kills 20 --json soak.json

Every planted point of `openwavlm.training.faults` is hit with SIGKILL and with SIGTERM, and `--kills` further deaths come at random
times. Final weights, `metrics.csv` and `validation.csv` are compared with those of an undisturbed run.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from openwavlm.training.faults import POINTS
from runs import SETTINGS, make_data, make_probes

UPDATES = 60
OVERRIDES = [*SETTINGS, f"optim.updates={UPDATES}", "callbacks.checkpoint_every=4", "callbacks.validate_every=6"]


def start(overrides: list[str], directory: Path, fault: str | None = None) -> subprocess.Popen:
    """One launch of the run, as a user would give it."""
    environment = os.environ | ({"OPENWAVLM_FAULT": fault} if fault else {})
    program = [sys.executable, "-m", "openwavlm", "train", *overrides, f"hydra.run.dir={directory}"]
    with (directory.parent / "output.txt").open("a") as output:
        return subprocess.Popen(program, env=environment, stdout=output, stderr=output)


def steps(directory: Path) -> int:
    """Updates on record."""
    path = directory / "metrics.csv"
    return max(0, len(path.read_bytes().splitlines()) - 1) if path.is_file() else 0


def outcome(process: subprocess.Popen, wanted: int) -> str:
    """What became of a launch that was to be hit by signal `wanted`."""
    code = process.wait(600)
    if code == -wanted:
        return "killed"
    return "stopped" if code == 0 else f"exit {code}"


def compare(directory: Path, reference: Path) -> dict[str, bool]:
    """What is equal, bit for bit."""
    name = f"checkpoints/step-{UPDATES:08d}.ckpt"
    first, second = (torch.load(run / name, weights_only=True) for run in (directory, reference))
    weights = first["state_dict"].keys() == second["state_dict"].keys() and all(
        torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in first["state_dict"]
    )
    return {
        "weights": weights,
        "metrics": (directory / "metrics.csv").read_bytes() == (reference / "metrics.csv").read_bytes(),
        "validation": (directory / "validation.csv").read_bytes() == (reference / "validation.csv").read_bytes(),
        "probes": (directory / "probes.csv").read_bytes() == (reference / "probes.csv").read_bytes(),
    }


def planted_launches() -> list[tuple[str, int]]:
    """(fault, signal) of each planted death: the second time that a launch reaches the point, so that each launch gets on."""
    chosen = []
    for name in ("KILL", "TERM"):
        for point in POINTS:
            count = 25 if point == "save.writing" else 2
            chosen.append((f"{point}:{count}:{name}", int(signal.Signals[f"SIG{name}"])))
    return chosen


def soak(folder: Path, kills: int, seed: int) -> dict:
    """Runs both runs and tallies where the deaths hit."""
    data = [*make_data(folder / "data"), *make_probes(folder / "probes", every=10)]
    began = time.monotonic()
    if start([*OVERRIDES, *data], folder / "undisturbed").wait(600):
        raise SystemExit(f"the undisturbed run failed: see {folder / 'output.txt'}")
    usual_s = time.monotonic() - began
    directory, reference, tally, runs = folder / "killed", folder / "undisturbed", Counter(), []
    overrides = [*OVERRIDES, *data]
    generator = random.Random(seed)
    deaths: list[tuple[str | None, int]] = [
        *planted_launches(),
        *((None, generator.choice([signal.SIGKILL, signal.SIGTERM])) for _ in range(kills)),
    ]
    for fault, number in deaths:
        if steps(directory) >= UPDATES - 12:  # no death may find nothing left to do
            runs.append(_finished(overrides, directory, reference))
        process = start(overrides, directory, fault)
        if fault is None:
            time.sleep(generator.uniform(0.2, 1.0) * usual_s)
            process.send_signal(number)
        where = fault.split(":")[0] if fault else "random time"
        tally[f"{where}, {signal.Signals(number).name}: {outcome(process, number)}"] += 1
    runs.append(_finished(overrides, directory, reference))
    equal = all(run[name] for run in runs for name in ("weights", "metrics", "validation", "probes"))
    return {"bit_equal": equal, "deaths": len(deaths), "hits": dict(sorted(tally.items())), "runs": runs}


def _finished(overrides: list[str], directory: Path, reference: Path) -> dict:
    """Lets a killed run come to its end, compares it, and clears its place for the next."""
    if start(overrides, directory).wait(600):
        raise SystemExit(f"the last launch failed: see {directory.parent / 'output.txt'}")
    equal = compare(directory, reference)
    launches = len(json.loads((directory / "run.json").read_text())["segments"])
    shutil.rmtree(directory)
    return {"launches": launches, **equal}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="deaths at random times, beside the planted ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), arguments.kills, arguments.seed)
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(0 if result["bit_equal"] else 1)


if __name__ == "__main__":
    main()
