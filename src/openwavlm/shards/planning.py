"""Compares a corpus with the tasks of a shard set, and appends tasks for new utterances."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from openwavlm.audio.read import probe_channels, probe_seconds
from openwavlm.runtime.pool import run_jobs
from openwavlm.runtime.resources import retried
from openwavlm.shards.corpora.listing import Corpus
from openwavlm.shards.corpora.utterance import Utterance
from openwavlm.shards.decoding_tasks import file_stamp
from openwavlm.shards.done import is_done, skipped
from openwavlm.shards.tasks import append_tasks, cut_tasks, join_short_clips, names_of, read_task, task_lines

# 64 kbit/s, for the size of the task of a file without a length in its header.
_GUESSED_BYTES_PER_SECOND = 8000

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Comparison of a corpus, after the split of its channels, with the tasks of a shard set.

    Attributes:
        total: Number of utterances in all tasks.
        changed: Number of utterances with other times, names or text in the corpus than in their task; the task keeps its own.
        gone: Number of utterances of the tasks that are not in the corpus; the shard set keeps them.
    """

    corpus: Corpus
    total: int
    changed: int
    gone: int


def plan_tasks(corpus: Corpus, output: Path, settings: Mapping[str, Any], max_skip_rate: float, workers: int) -> Plan:
    """Appends tasks for utterances of the corpus that are in no task; a skipped file that was repaired counts as new.

    Raises:
        ValueError: If more than `max_skip_rate` of the utterances are in unfinished tasks but not in the input, or two channels have one
            name.
    """
    listing = output / "tasks.jsonl"
    if settings["channels"] == "split":
        corpus = replace(corpus, utterances=_split_channels(corpus, workers))
        corpus.check_names()
    present = {utterance.name: utterance for utterance in corpus.utterances}
    lines = task_lines(listing)
    known: set[str] = set()
    pending: list[str] = []
    changed: set[str] = set()
    for line in lines:
        items = read_task(listing, line).items
        names = names_of(items)
        known.update(names)
        changed.update(u.name for item in items for u in item if u.name in present and _differ(u, present[u.name]))
        if not is_done(output, line.number):
            pending += names
    gone = [name for name in pending if name not in present]
    if len(gone) > max_skip_rate * len(known):
        raise ValueError(
            f"unfinished tasks of {output} need {len(gone)} utterances that are not in the input (first: {gone[0]}): "
            "first run with the input that has them"
        )
    if changed:
        logger.warning(
            f"{len(changed)} utterances have other times, names or text in the input than in {output}, which is not changed (first: "
            f"{min(changed)}): prepare into another output to change them"
        )
    unusable = skipped(output, lines).items()
    again = {name for name, skip in unusable if name in present and file_stamp(corpus.root / skip["path"]) != skip["stamp"]}
    fresh = [utterance for utterance in corpus.utterances if utterance.name not in known or utterance.name in again]
    if fresh:
        _append(fresh, corpus.root, listing, len(lines), again, settings, workers)
    return Plan(corpus, len(known | present.keys()), len(changed), len(known - present.keys()))


def _split_channels(corpus: Corpus, workers: int) -> list[Utterance]:
    """Splits every utterance of a readable file that names no channel into one per channel, each with a speaker of its own."""
    whole = sorted({utterance.path for utterance in corpus.utterances if utterance.channel is None})
    number_of = _of_headers(probe_channels, whole, corpus.root, workers)
    apart: list[Utterance] = []
    for utterance in corpus.utterances:
        number = 1 if utterance.channel is not None else number_of[utterance.path] or 1
        apart += [utterance] if number == 1 else [utterance.of_channel(channel) for channel in range(number)]
    return apart


def _differ(planned: Utterance, listed: Utterance) -> bool:
    names = ("start_s", "end_s", "channel", "speaker", "recording", "text", "language")
    return any(getattr(planned, name) != getattr(listed, name) for name in names)


def _append(
    fresh: Sequence[Utterance], root: Path, listing: Path, first: int, again: set[str], settings: Mapping[str, Any], workers: int
) -> None:
    """Joins short utterances, cuts tasks and appends them."""
    seconds = _durations(fresh, root, workers)
    items = join_short_clips(fresh, seconds, settings["min_seconds"]) if settings["join_short"] else [[u] for u in fresh]
    by_name = {}
    for utterance, length in zip(fresh, seconds, strict=True):
        stamp = file_stamp(root / utterance.path) if length is None else None
        by_name[utterance.name] = length or (stamp[0] / _GUESSED_BYTES_PER_SECOND if stamp else 0.0)
    lengths = [sum(by_name[utterance.name] for utterance in item) for item in items]
    tasks = cut_tasks(items, lengths, seed=settings["seed"], source=settings["source"], task_hours=settings["task_hours"])
    append_tasks(listing, tasks, first, again)
    logger.info("%d new utterances, %.1f hours, in %d tasks", len(fresh), sum(lengths) / 3600, len(tasks))
    short = any(0 < length < settings["min_seconds"] for length in lengths)
    if settings["layout"] == "folder" and not settings["speaker_folder"] and short:
        logger.info("short clips of different files are not joined, since speakers are unknown: speaker_folder=1 names speakers")


def _durations(utterances: Sequence[Utterance], root: Path, workers: int) -> list[float | None]:
    """Durations from segments or file headers."""
    unknown = sorted({utterance.path for utterance in utterances if utterance.end_s is None})
    header = _of_headers(probe_seconds, unknown, root, workers)
    ends = [header[utterance.path] if utterance.end_s is None else utterance.end_s for utterance in utterances]
    return [None if end_s is None else max(0.0, end_s - one.start_s) for one, end_s in zip(utterances, ends, strict=True)]


def _of_headers(probe: Callable[[Path], Value], paths: Sequence[str], root: Path, workers: int) -> dict[str, Value]:
    """Reads a value from the header of each file, by its path below `root`."""
    chunks = [paths[start : start + 512] for start in range(0, len(paths), 512)]
    found: dict[str, Value] = {}
    for part in run_jobs(partial(_probe_all, probe, root), chunks, workers=workers, description="reading headers"):
        found |= part
    return found


def _probe_all(probe: Callable[[Path], Value], root: Path, paths: Sequence[str]) -> dict[str, Value]:
    return {path: retried(partial(probe, root / path), root / path) for path in paths}
