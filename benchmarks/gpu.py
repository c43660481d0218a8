"""A quarter of an hour on one GPU: what has not been measured on one yet, most valuable first.

    python benchmarks/gpu.py --minutes 13 --json gpu.json

Runs from a checkout, nothing installed but the packages that it imports (docs/benchmarks.md says which). Each part has a time box and
is skipped with a reason when the time runs out. The JSON is written after each part; a part that it has as done, of the same machine,
commit and size, is not run again, so a second call goes on. Without a GPU the same parts run at toy size.
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[1]
_PATHS = [str(REPOSITORY / name) for name in ("src", "benchmarks", "tests")]
sys.path[:0] = [path for path in _PATHS if path not in sys.path]

if TYPE_CHECKING:
    from gpu_parts.timebox import Part, Result

NEEDED = (
    *("torch", "lightning", "numpy", "hydra", "omegaconf", "antlr4", "webdataset", "braceexpand", "soundfile"),
    *("_cffi_backend", "soxr", "sklearn", "scipy", "threadpoolctl", "safetensors", "yaml", "rich", "tensorboard", "matplotlib"),
)


def all_parts() -> "list[Part]":
    """The parts in the order in which they run, with their shares of the time; docs/benchmarks.md gives the reasons."""
    from gpu_parts.timebox import Part

    large = {"experiment": "wavlm_large", "overrides": ("batch.seconds=900",)}
    return [
        Part("parity", "parity", 0.10, (6, 30)),
        Part("data", "data", 0.07, (8, 90)),
        Part("base", "step", 0.23, (10, 45), ("data",), {"experiment": "wavlm_base"}),
        Part("profile", "kernels", 0.06, (6, 25), ("data",)),
        Part("precision", "precision", 0.11, (6, 40), ("data",)),
        Part("resume", "resume", 0.09, (15, 40), ("data",)),
        Part("devices", "devices", 0.11, (12, 40)),
        Part("large", "step", 0.16, (8, 45), ("data",), large),
        Part("tests", "marked_tests", 0.07, (10, 25)),
    ]


def missing_packages() -> list[str]:
    """Modules that cannot be found here."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def _look(place: Path) -> None:
    """Writes what the GPU is, from a process that may touch it."""
    import torch

    from openwavlm.runtime.atomic import write_json

    found: dict[str, Any] = {"cuda": torch.cuda.is_available()}
    if found["cuda"]:
        properties = torch.cuda.get_device_properties(0)
        found |= {"name": properties.name, "memory_bytes": properties.total_memory, "cuda_version": torch.version.cuda}
        found |= {"cudnn_tf32": torch.backends.cudnn.allow_tf32, "matmul_tf32": torch.backends.cuda.matmul.allow_tf32}
    write_json(place, found)


def look(folder: Path) -> dict[str, Any]:
    """The GPU of this machine; this process does not touch it."""
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=_look, args=(folder / "gpu.json",))
    process.start()
    process.join()
    return json.loads((folder / "gpu.json").read_text())


def _commit() -> str | None:
    with contextlib.suppress(OSError):
        words = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or None
    return None


def head_of(gpu: dict[str, Any], device: str, size: str) -> dict[str, Any]:
    """What the figures are of."""
    import lightning
    import numpy
    import torch

    versions = {module.__name__: module.__version__ for module in (torch, lightning, numpy)}
    machine = {"gpu": gpu, "cores": cores(), "processor": platform.processor() or platform.machine()}
    return {
        "format_version": 1,
        "device": device,
        "size": size,
        "machine": machine,
        "versions": versions | {"python": platform.python_version()},
        "commit": _commit(),
    }


def cores() -> int:
    """CPU cores of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kept_results(path: Path, head: dict[str, Any]) -> "dict[str, Result]":
    """Results of an earlier call on the same machine, commit and size; none if the file is of another."""
    with contextlib.suppress(OSError, ValueError):
        earlier = json.loads(path.read_text())
        if all(earlier.get(key) == value for key, value in head.items()):
            return earlier["parts"]
    return {}


def chosen_parts(only: list[str] | None, kept: "dict[str, Result]") -> "list[Part]":
    """Parts that run: those of `--only`, or those that are not done yet; and the data, if one of them needs it.

    Raises:
        ValueError: If there is no such part.
    """
    parts = all_parts()
    names = [part.name for part in parts]
    unknown = sorted(set(only or []) - set(names))
    if unknown:
        raise ValueError(f"--only names {', '.join(unknown)}, but the parts are {', '.join(names)}")
    wanted = set(only) if only else {name for name in names if name != "data" and kept.get(name, {}).get("status") != "done"}
    wanted |= {need for part in parts if part.name in wanted for need in part.needs}
    return [part for part in parts if part.name in wanted]


def run(arguments: argparse.Namespace, folder: Path) -> int:
    """Runs the parts; returns the exit status, 1 if one of them failed."""
    began = time.monotonic()
    from gpu_parts.child import run_in_child
    from gpu_parts.setting import Setting
    from gpu_parts.timebox import run_parts

    import openwavlm.evaluation.quality
    import openwavlm.runs.launch  # noqa: F401  (imported once, for all parts)
    from openwavlm.runtime.atomic import write_json

    gc.collect()
    gc.freeze()  # or each collection in a part goes through all that was imported
    gpu = look(folder)
    device = arguments.device if arguments.device != "auto" else "cuda" if gpu["cuda"] else "cpu"
    size = arguments.size or ("full" if device == "cuda" else "toy")
    if device == "cpu":
        print("no GPU is used: the parts run on the CPU" + (" at toy size" if size == "toy" else ""), flush=True)
    head = head_of(gpu, device, size)
    kept = kept_results(arguments.json, head)
    parts = chosen_parts(arguments.only, kept)

    def keep(name: str, result: "Result") -> None:
        kept[name] = result
        order = [part.name for part in all_parts() if part.name in kept]
        write_json(arguments.json, head | {"date": datetime.now(UTC).isoformat("T", "seconds"), "order": order, "parts": kept})

    def save(name: str, result: "Result") -> None:
        keep(name, result)
        print(line_of(name, result), flush=True)

    def run_part(part: "Part", box: float) -> "Result":
        return run_in_child(part, Setting(folder, device, size, cores(), box), lambda result: keep(part.name, result))

    total = 60 * arguments.minutes - (time.monotonic() - began)
    results = run_parts(parts, total, run_part, save, size=size)
    return int(any(result["status"] == "failed" for result in results.values()))


def line_of(name: str, result: "Result") -> str:
    """A result in one line."""
    seconds = f" in {result['seconds']:.1f} of {result['box_s']:.1f} s" if "seconds" in result else ""
    return f"{name:<10} {result['status']}{seconds}" + (f": {result['reason']}" if "reason" in result else "")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=13.0, help="for all parts, imports included")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--size", choices=("toy", "full"), help="full on a GPU, toy without one")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts, even if FILE has them")
    arguments = parser.parse_args()
    missing = missing_packages()
    if missing:
        print(f"error: {', '.join(missing)} cannot be imported: docs/benchmarks.md names the wheels to bring", file=sys.stderr)
        raise SystemExit(2)
    os.environ["PYTHONPATH"] = os.pathsep.join([*_PATHS, *filter(None, [os.environ.get("PYTHONPATH")])])
    if arguments.size == "toy":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    arguments.json = arguments.json.resolve()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            status = run(arguments, Path(folder))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
    raise SystemExit(status)


if __name__ == "__main__":
    main()
