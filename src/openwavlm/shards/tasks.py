"""Tasks of a shard set: joins short clips, groups recordings into tasks, reads and writes the task list.

A task is one line of `tasks.jsonl`; an item of it becomes one row of a shard and has several utterances only if short clips are joined.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openwavlm.runtime.atomic import atomic_file
from openwavlm.runtime.randomness import stable_hash
from openwavlm.runtime.resources import naming
from openwavlm.shards.corpora.utterance import Utterance

JOIN_SILENCE_S = 0.1

Item = list[Utterance]


@dataclass(frozen=True)
class TaskLine:
    """Place of a task in `tasks.jsonl`, which is not held in memory."""

    number: int
    start: int
    nbytes: int


@dataclass(frozen=True)
class Task:
    """A unit of preparation: `items` become a row each, `again` names utterances that an earlier task skipped."""

    items: list[Item]
    again: list[str]


def join_short_clips(utterances: Sequence[Utterance], seconds: Sequence[float | None], min_seconds: float) -> list[Item]:
    """Groups clips shorter than `min_seconds` with their neighbours until they are long enough together; keeps the corpus order.

    Neighbours are the next short clips of the same speaker (of the same recording if the speaker is unknown); segments of one
    audio file are joined only with each other, and channels only with those of the same number. If the last item of a group stays
    too short, it is added to the item before it; a clip without a short neighbour or of unknown duration (None) stays alone.
    """
    uses: dict[tuple[str, int | None], int] = defaultdict(int)
    for utterance in utterances:
        uses[utterance.path, utterance.channel] += 1
    items: list[Item] = []
    groups: dict[tuple[str | int | None, ...], list[Item]] = defaultdict(list)
    filled_s: dict[tuple[str | int | None, ...], float] = {}
    for utterance, length in zip(utterances, seconds, strict=True):
        if length is None or length >= min_seconds:
            items.append([utterance])
            continue
        who = ("speaker", utterance.speaker) if utterance.speaker else ("recording", utterance.recording)
        several = uses[utterance.path, utterance.channel] > 1
        group: tuple[str | int | None, ...] = (*who, utterance.channel, utterance.path if several else "")
        if filled_s.get(group, min_seconds) >= min_seconds:
            items.append([])
            groups[group].append(items[-1])
            filled_s[group] = -JOIN_SILENCE_S
        groups[group][-1].append(utterance)
        filled_s[group] += JOIN_SILENCE_S + length
    for group, joined in groups.items():
        if filled_s[group] < min_seconds and len(joined) > 1:
            joined[-2] += joined[-1]
            joined[-1].clear()
    return [item for item in items if item]


def cut_tasks(items: Sequence[Item], seconds: Sequence[float], *, seed: int, source: str, task_hours: float) -> list[list[Item]]:
    """Permutes audio files by a hash of seed, source and name, and cuts the sequence into tasks of about `task_hours`.

    All segments of one file go into one task, so that the file is decoded once. `seconds` are the durations of the items.
    """
    units: dict[str, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        units[item[0].path].append(position)
    order = sorted(units.values(), key=lambda unit: (stable_hash(f"{seed}/task/{source}/{items[unit[0]][0].name}"), unit))
    total_s = sum(seconds)
    wanted_s = total_s / max(1, round(total_s / (task_hours * 3600))) or float("inf")
    tasks: list[list[Item]] = [[]]
    done_s = 0.0
    for unit in order:
        # The small allowance keeps rounding from opening a last task for one item.
        if tasks[-1] and done_s >= wanted_s * len(tasks) * (1 - 1e-9):
            tasks.append([])
        tasks[-1] += [items[position] for position in unit]
        done_s += sum(seconds[position] for position in unit)
    return [task for task in tasks if task]


def append_tasks(path: Path, tasks: Sequence[Sequence[Item]], first: int, again: AbstractSet[str] = frozenset()) -> None:
    """Appends tasks, numbered from `first`, to the task list; `again` are names that earlier tasks hold already."""
    with atomic_file(path) as file:
        if path.exists():
            file.write(path.read_bytes())
        for number, items in enumerate(tasks, first):
            rows = [[_compact(utterance) for utterance in item] for item in items]
            line = {"task": number, "items": rows, "again": sorted(again & set(names_of(items)))}
            file.write((json.dumps(line, sort_keys=True) + "\n").encode())


def task_lines(path: Path) -> list[TaskLine]:
    """Places of all tasks of a task list; empty if there is no list."""
    lines, start = [], 0
    if path.exists():
        with naming(path), path.open("rb") as file:
            for number, text in enumerate(file):
                lines.append(TaskLine(number, start, len(text)))
                start += len(text)
    return lines


def read_task(path: Path, line: TaskLine) -> Task:
    """Reads one task; a damaged list is a ValueError."""
    with naming(path), path.open("rb") as file:
        file.seek(line.start)
        text = file.read(line.nbytes)
    try:
        task = json.loads(text)
        if task["task"] != line.number or not all(isinstance(name, str) for name in task["again"]):
            raise KeyError("task")
        items = [[_utterance(fields) for fields in item] for item in task["items"]]
        if not all(items):
            raise ValueError("an item without an utterance")
        return Task(items, task["again"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}, line {line.number + 1} is damaged: prepare the corpus again into an empty output") from error


def _utterance(fields: dict[str, Any]) -> Utterance:
    """Reads an utterance that `_compact` wrote; a field of another type is a TypeError."""
    utterance = Utterance(**fields)
    texts = (utterance.name, utterance.path, utterance.speaker, utterance.recording, utterance.text, utterance.language)
    times = (utterance.start_s, 0.0 if utterance.end_s is None else utterance.end_s)
    if not (
        all(isinstance(text, str) for text in texts)
        and utterance.name
        and utterance.path
        and all(isinstance(time, float | int) and 0 <= time < float("inf") for time in times)
        and isinstance(utterance.extra, dict)
        and isinstance(utterance.channel, int | None)
    ):
        raise TypeError("a field of another type or range")
    return utterance


def names_of(items: Iterable[Item]) -> list[str]:
    """Names of all utterances of `items`."""
    return [utterance.name for item in items for utterance in item]


def _compact(utterance: Utterance) -> dict[str, Any]:
    """Fields of an utterance that differ from their defaults."""
    empty = Utterance("", "")
    return {name: value for name, value in asdict(utterance).items() if value != getattr(empty, name)}
