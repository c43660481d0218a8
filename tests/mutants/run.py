"""Applies each small wrong change of `tests/mutants/*.toml` by itself to a copy of the repository and runs the tests that must fail.

    python tests/mutants/run.py                      every change (`make test-mutants`)
    python tests/mutants/run.py --only step draws    the changes of these files or kinds

A change is noticed when its tests fail; without a change every named test must pass. The exit status is 0 when at least 95 % are
noticed.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
COPIED = (
    "src",
    "tests",
    "conf",
    "data_prep",
    "docs",
    "benchmarks",
    "studies",
    "train.py",
    "pyproject.toml",
    "README.md",
    "Makefile",
)
# Imported once a worker: each change is tried in a fork of it, which starts in a tenth of a second instead of six.
PRELOADED = (
    *("numpy", "torch", "torch._dynamo", "torch.nn.attention.flex_attention", "torch.utils.tensorboard"),
    *("torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "lightning", "hydra", "webdataset"),
    *(
        "pytest",
        "hypothesis",
        "scipy.stats",
        "sklearn.cluster",
        "sklearn.linear_model",
        "transformers.models.wavlm",
        "torchaudio",
    ),
)
REQUIRED_SHARE = 0.95
TIME_LIMIT_S = 300  # of one change's tests; a change that makes them hang is noticed


@dataclass(frozen=True)
class Mutant:
    """One small wrong change.

    Attributes:
        group: Stem of the file that lists it.
        kind: Part of the program that it belongs to.
        file: Path of the changed file in the repository.
        old: Text that occurs exactly once in that file.
        new: Text that takes its place.
        tests: Test files or node ids of which at least one must fail.
    """

    group: str
    kind: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, text: str) -> str:
        """Returns the changed text of the file.

        Raises:
            ValueError: If `old` does not occur exactly once, or the change is none.
        """
        if (count := text.count(self.old)) != 1 or self.old == self.new:
            raise ValueError(f"old must occur once in {self.file} and differ from new, but occurs {count} times: {self.old!r}")
        return text.replace(self.old, self.new)

    def __str__(self) -> str:
        return f"{self.group}/{self.kind} {self.file}: {' '.join(self.old.split())[:70]!r} → {' '.join(self.new.split())[:70]!r}"


def mutants() -> list[Mutant]:
    """All listed changes, in the order of their files."""
    return [
        Mutant(path.stem, entry["kind"], entry["file"], entry["old"], entry["new"], tuple(entry["tests"]))
        for path in sorted(Path(__file__).parent.glob("*.toml"))
        for entry in tomllib.loads(path.read_text())["mutant"]
    ]


def _copy(target: Path) -> Path:
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy2(source, target / name)
    return target


_folder: Path | None = None  # the copy of this process


def _begin(parent: Path) -> None:
    """Makes a worker ready: a copy of its own, and everything imported that the tests import from other packages."""
    global _folder
    _folder = _copy(parent / str(os.getpid()))
    os.chdir(_folder)
    # Python takes a compiled file whose source has the same size and second for current; so none is written.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(_folder / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path[:] = [
        str(_folder / "src"),
        *(path for path in sys.path if not Path(path or ".").resolve().is_relative_to(REPOSITORY / "src")),
    ]
    for name in PRELOADED:
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module(name)
    assert "openwavlm" not in sys.modules


def _passes(tests: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the tests pass in this worker's copy, and the first line that says why not (or the last line printed)."""
    output = Path(f"{_folder}.txt")
    child = os.fork()
    if child == 0:
        status = 3
        try:
            os.setsid()
            for number in (1, 2):
                os.dup2(
                    os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number == 1 else os.O_WRONLY | os.O_APPEND), number
                )
            import pytest

            options = ["-x", "-q", "-p", "no:cacheprovider", "--durations=0", "-m", "not long"]
            status = int(pytest.main([*options, "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests]))
            sys.stdout.flush()
        finally:
            os._exit(status)
    deadline, ended = time.monotonic() + TIME_LIMIT_S, (0, 0)
    while ended[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
        ended = os.waitpid(child, os.WNOHANG)
    if ended[0] == 0:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return False, f"ended after {TIME_LIMIT_S} s"
    status, lines = os.waitstatus_to_exitcode(ended[1]), output.read_text(errors="replace").splitlines()
    # Statuses other than 0 and 1, as for a wrong node id, are found by the run without changes first.
    return status == 0, next(
        (line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1] if lines else f"status {status}"
    )


def _judge(mutant: Mutant) -> tuple[Mutant, bool, str]:
    assert _folder is not None
    path = _folder / mutant.file
    original = path.read_text()
    try:
        path.write_text(mutant.apply(original))
        passed, line = _passes(mutant.tests)
    finally:
        path.write_text(original)
    return mutant, not passed, line


def _unchanged(changes: list[Mutant]) -> list[tuple[str, ...]]:
    """The tests that must pass without a change: whole files of unit tests, of others what is named."""
    named = {test for mutant in changes for test in mutant.tests}
    return sorted({(test.split("::")[0] if test.startswith("tests/unit/") else test,) for test in named})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of lists, or kinds")
    parser.add_argument("--jobs", type=int, default=2, help="changes tried at a time")
    parser.add_argument("--json", type=Path, help="file for the verdicts")
    arguments = parser.parse_args()
    changes = [m for m in mutants() if not arguments.only or {m.group, m.kind} & set(arguments.only)]
    if not changes:
        parser.error(f"no change is listed under {arguments.only}")
    with (
        tempfile.TemporaryDirectory() as temporary,
        # Its workers may have children of their own, unlike those of multiprocessing.Pool.
        ProcessPoolExecutor(
            min(arguments.jobs, len(changes)), multiprocessing.get_context("spawn"), _begin, (Path(temporary),)
        ) as pool,
    ):
        for passed, line in pool.map(_passes, _unchanged(changes)):
            if not passed:
                print(f"the tests must pass without a change, but: {line}")
                pool.shutdown(cancel_futures=True)
                return 2
        noticed: list[tuple[Mutant, bool, str]] = []
        for mutant, found, line in pool.map(_judge, changes):
            noticed.append((mutant, found, line))
            print(f"{'noticed    ' if found else 'NOT NOTICED'} {mutant}\n            {line[:160]}", flush=True)
    counts, kinds = Counter(found for _, found, _ in noticed), Counter((mutant.kind, found) for mutant, found, _ in noticed)
    for kind in sorted({kind for kind, _ in kinds}):
        print(f"{kind:12} {kinds[kind, True]:3} of {kinds[kind, True] + kinds[kind, False]:3}")
    share = counts[True] / len(noticed)
    print(f"{counts[True]} of {len(noticed)} small wrong changes are noticed ({share:.1%}; required {REQUIRED_SHARE:.0%})")
    if arguments.json:
        rows = [{"mutant": str(mutant), "kind": mutant.kind, "noticed": found, "line": line} for mutant, found, line in noticed]
        arguments.json.write_text(json.dumps({"noticed": counts[True], "tried": len(noticed), "mutants": rows}, indent=1))
    return 0 if share >= REQUIRED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
