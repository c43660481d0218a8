"""Applies each small wrong change of `tests/mutants/*.toml` by itself to a copy of the repository and runs the tests that must fail.

    python tests/mutants/run.py                      every change (`make test-mutants`)
    python tests/mutants/run.py --only step draws    the changes of these files or kinds

A change is noticed when its tests fail; without a change every named test must pass. The exit status is 0 when at least 95 % are
noticed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

REPOSITORY = Path(__file__).parents[2]
COPIED = ("src", "tests", "conf", "data_prep", "docs", "benchmarks", "train.py", "pyproject.toml", "README.md", "Makefile")
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


def _passes(folder: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the tests pass in a copy, and the last line that they print (or that they were ended)."""
    # Python takes a compiled file whose source has the same size and second for current; so none is written.
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--durations=0", "-m", "not long", *tests]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"ended after {TIME_LIMIT_S} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))] or done.stdout.splitlines()[-1:]
    # 0: passed. 1: failed. Others, as for a wrong node id, are no verdict on a change; the run without changes finds them first.
    return done.returncode == 0, lines[0] if lines else done.stderr[-300:]


def _verdicts(changes: list[Mutant], folders: list[Path]) -> Iterator[tuple[Mutant, bool, str]]:
    free: Queue[Path] = Queue()
    for folder in folders:
        free.put(folder)

    def judge(mutant: Mutant) -> tuple[Mutant, bool, str]:
        folder = free.get()
        path = folder / mutant.file
        original = path.read_text()
        try:
            path.write_text(mutant.apply(original))
            passed, line = _passes(folder, mutant.tests)
        finally:
            path.write_text(original)
            free.put(folder)
        return mutant, not passed, line

    with ThreadPoolExecutor(len(folders)) as pool:
        yield from pool.map(judge, changes)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of lists, or kinds")
    parser.add_argument("--jobs", type=int, default=2, help="changes tried at a time")
    parser.add_argument("--json", type=Path, help="file for the verdicts")
    arguments = parser.parse_args()
    changes = [m for m in mutants() if not arguments.only or {m.group, m.kind} & set(arguments.only)]
    if not changes:
        parser.error(f"no change is listed under {arguments.only}")
    with tempfile.TemporaryDirectory() as temporary:
        folders = [_copy(Path(temporary) / str(number)) for number in range(max(1, min(arguments.jobs, len(changes))))]
        named = tuple(dict.fromkeys(test for mutant in changes for test in mutant.tests))
        passed, line = _passes(folders[0], named) if len(named) else (True, "")
        if not passed:
            print(f"the tests must pass without a change, but: {line}")
            return 2
        noticed: list[tuple[Mutant, bool, str]] = []
        for mutant, found, line in _verdicts(changes, folders):
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
