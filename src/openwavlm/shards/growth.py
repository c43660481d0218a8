"""Compares a shard set with what it was made from: the task list that it is extended by, and the recordings of its input."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.audio.containers.flac import flac_md5
from openwavlm.audio.encode import pcm_id
from openwavlm.runtime.files import Fields
from openwavlm.runtime.pool import run_jobs
from openwavlm.runtime.randomness import stable_hash
from openwavlm.runtime.sealed import read_newest
from openwavlm.shards.corpora.listing import corpus_root
from openwavlm.shards.decoding_tasks import TaskDecoder
from openwavlm.shards.done import check_task_done
from openwavlm.shards.index import FORMAT_VERSION, Index
from openwavlm.shards.rows import make_row, utterance_key
from openwavlm.shards.tasks import Item, TaskLine, names_of, read_task, task_lines
from openwavlm.shards.writer import task_file

_REMEDY = "restore it from a copy, or the set cannot be extended"
_AGAIN = "restore it from a copy, or run data_prep/make_shards.py with the same input, which makes its task again"


def problems_of_growth(index: Index) -> list[str]:
    """Damage of the files that `make_shards` reads to extend a set, one sentence each.

    Args:
        index: The shard set; one that has none of these files (it was put together otherwise) has no problem.
    """
    path = index.path
    settings, listing = path / "settings.json", path / "tasks.jsonl"
    lines = task_lines(listing) if listing.is_file() else []
    remedies = {settings: _REMEDY, listing: _REMEDY}
    remedies |= {task_file(path, line.number): _AGAIN for line in lines}
    remedies |= {(path / info.name).with_suffix(".json"): _AGAIN for info in index.shards}
    if not any(file.exists() for file in remedies):
        return []
    problems = [f"{file} is missing: {remedy}" for file, remedy in remedies.items() if not file.is_file()]
    if listing.is_file() and not lines:
        problems.append(f"{listing} is empty: {_REMEDY}")
    source = None
    try:
        source = _read(settings, path, _REMEDY).text("source") if settings.is_file() else None
    except ValueError as error:
        problems.append(str(error))
    keys, sizes = np.sort(index.key[:]), {info.name: info.nbytes for info in index.shards}
    for line in lines:
        try:
            problems += _problems_of_task(path, line, source, keys, sizes)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _read(file: Path, path: Path, remedy: str) -> Fields:
    return read_newest(file, newest=FORMAT_VERSION, what=str(file), upgrade=f"openwavlm upgrade {path}", remedy=remedy)


def _problems_of_task(path: Path, line: TaskLine, source: str | None, keys: np.ndarray, sizes: dict[str, int]) -> Iterator[str]:
    """Differences between a task, its done-file and the index: its keys, ascending, and the sizes of its shards by name."""
    listing, file = path / "tasks.jsonl", task_file(path, line.number)
    items = read_task(listing, line).items
    if not file.is_file():
        return
    done = _read(file, path, _AGAIN)
    check_task_done(done)
    if any(sizes.get(name) != nbytes for name, nbytes in done.mapping("shards").items()):
        yield f"{file} names other shards than the index: {_AGAIN}"
    skipped = {entry.text("name") for entry in done.objects("skipped")}
    alone = [item[0].name for item in items if len(item) == 1 and item[0].name not in skipped]
    wanted = np.array([stable_hash(utterance_key(source, name)) for name in alone] if source is not None else [], np.uint64)
    place = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
    lacking = int(np.count_nonzero(keys[place] != wanted)) if len(keys) else len(wanted)
    if done.values.get("planned", len(names_of(items))) != len(names_of(items)) or lacking:
        yield f"{listing}, line {line.number + 1} is not the task of {file} ({lacking} utterances have no row): {_REMEDY}"


@dataclass(frozen=True)
class InputVerification:
    """Comparison of a shard set with its input.

    Attributes:
        rows: Rows that were made again from the input.
        all_rows: Rows of the shard set.
        problems: One sentence for each recording that is missing or has other audio.
    """

    rows: int
    all_rows: int
    problems: list[str]

    def sentence(self) -> str:
        """The verdict, for people."""
        verdict = f"{self.rows} of {self.all_rows} rows made again from the input: "
        return verdict + (f"{len(self.problems)} recordings are not as they were" if self.problems else "all as they were")


@dataclass(frozen=True)
class _InputJob:
    path: Path
    root: Path
    settings: dict[str, Any]
    line: TaskLine
    share: float
    seed: int


def verify_input(
    path: Path | str, input: Path | str, *, share: float = 0.01, seed: int = 0, workers: int = 1
) -> InputVerification:
    """Decodes recordings of the input again and compares their audio with the shard set's, sample for sample.

    Another version of a decoder than `settings.json` names may give other samples of compressed audio.

    Args:
        path: The shard set.
        input: Folder or manifest that it was made from.
        share: Share of the recordings that is decoded; at least one of each task.
        seed: Seed of that choice.
        workers: Local processes.

    Raises:
        ValueError: If the input does not exist, or `settings.json` or `tasks.jsonl` of the set is missing or damaged.
    """
    path, input = Path(path), Path(input)
    if not input.exists():
        raise ValueError(f"the input {input} does not exist: give the folder or manifest that {path} was made from")
    settings = _read(path / "settings.json", path, _REMEDY)
    for name in ("layout", "source", "channels"):
        settings.text(name)
    settings.number("max_hours")
    root = corpus_root(input, settings.text("layout"))
    jobs = [_InputJob(path, root, settings.values, line, share, seed) for line in task_lines(path / "tasks.jsonl")]
    found = list(run_jobs(_verify_task, jobs, workers=workers, description="decoding the input"))
    all_rows = len(Index.open(path, check=False))
    return InputVerification(sum(rows for rows, _ in found), all_rows, sorted(problem for _, part in found for problem in part))


def _verify_task(job: _InputJob) -> tuple[int, list[str]]:
    """Returns how many rows were made again, and the recordings that differ."""
    index = Index.open(job.path, check=False)
    order = np.argsort(index.key[:], kind="stable")
    keys = index.key[:][order]
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in read_task(job.path / "tasks.jsonl", job.line).items:
        groups[item[0].path].append(item)
    draws = {path: stable_hash(f"{job.seed}/input/{path}") / 2**64 for path in groups}
    bound = max(job.share, min(draws.values(), default=1.0) + 1e-12)
    file = task_file(job.path, job.line.number)
    skipped = {entry.text("name") for entry in _read(file, job.path, _AGAIN).objects("skipped")}
    rows = 0
    other: set[str] = set()
    lost: dict[str, str] = {}
    for path in sorted(path for path, draw in draws.items() if draw < bound):
        decoder = TaskDecoder(job.root, job.settings["channels"], job.settings["max_hours"])
        for clips in decoder.decode_items(groups[path]):
            row = make_row(clips, job.settings["source"])
            key = np.uint64(stable_hash(row.key))
            place = int(np.searchsorted(keys, key))
            rows += 1
            if place == len(keys) or keys[place] != key or index.pcm[order[place]] != pcm_id(flac_md5(row.flac)):
                other |= {utterance.path for utterance, _ in clips}
        lost |= {entry["path"]: entry["detail"] for entry in decoder.skipped if entry["name"] not in skipped}
    problems = [f"{job.root / path} cannot be decoded as it was ({detail})" for path, detail in lost.items()]
    return rows, problems + [f"{job.root / path} has other audio than {job.path}" for path in sorted(other - lost.keys())]
