"""From a corpus to a finished shard set: list, cut into tasks, run the tasks that are not done, index, statistics."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from openwavlm.data.atomic import write_json, writer_lock
from openwavlm.data.audio import probe_seconds
from openwavlm.data.corpora.listing import LAYOUTS, list_corpus
from openwavlm.data.corpora.utterance import Utterance
from openwavlm.data.done import is_done, refuse_many_skipped, skipped, task_done, write_skipped
from openwavlm.data.index import FORMAT_VERSION
from openwavlm.data.indexing import build_index
from openwavlm.data.pool import run_jobs
from openwavlm.data.shards import ShardJob, file_stamp, run_task
from openwavlm.data.stats import shard_set_stats
from openwavlm.data.tasks import TaskLine, append_tasks, cut_tasks, join_short_clips, names_of, read_task, task_lines

logger = logging.getLogger(__name__)


def make_shards(
    *,
    input: Path | str,
    output: Path | str,
    layout: str = "folder",
    source: str | None = None,
    seed: int = 0,
    min_seconds: float = 2.0,
    join_short: bool = True,
    max_hours: float = 12.0,
    task_hours: float = 4.0,
    utterances_per_shard: int = 1000,
    speaker_folder: int = 0,
    subfolders: Sequence[str] = (),
    language: str = "",
    columns: Mapping[str, str | None] | None = None,
    max_skip_rate: float = 0.01,
    workers: int = 1,
    num_tasks: int = 1,
    task_index: int | None = None,
) -> dict[str, Any]:
    """Prepares a corpus as a shard set; killed and run again it goes on, run with more input it grows.

    Args:
        input: Folder (or manifest file) of the corpus.
        output: Shard set to write or to extend.
        layout: `folder`, `manifest` or `librispeech`.
        source: Name of the corpus, part of every key; by default that of the input.
        seed: Seed of the permutation and shuffles.
        min_seconds: Clips below are joined with neighbours of the same speaker.
        join_short: Whether they are joined at all.
        max_hours: Longest recording that is decoded, hours.
        task_hours: Audio in one task, hours: the unit of resuming, and what is shuffled together.
        utterances_per_shard: Most utterances in one tar.
        speaker_folder: Layout `folder`: which folder below the input names the speaker, 0 for none.
        subfolders: Layouts `folder` and `librispeech`: parts of the input to take, empty for all.
        language: Language of utterances whose corpus does not tell.
        columns: Layout `manifest`: names of the columns.
        max_skip_rate: Share of the utterances that may be unreadable.
        workers: Local processes.
        num_tasks: Number of jobs of an array that share the work.
        task_index: Which of them this is: it runs its part of the tasks and builds no index. None for a run by itself.

    Returns:
        The content of `stats.json` (for a job of an array: how many tasks it ran).

    Raises:
        ValueError: If a setting is out of range or differs from the output's, somebody else writes there, the input is missing,
            empty or malformed, two utterances have one name, or too many are unreadable.
    """
    input, output = Path(input), Path(output)
    settings = {
        "layout": layout,
        "source": _source_name(source, input),
        "seed": seed,
        "min_seconds": min_seconds,
        "join_short": join_short,
        "max_hours": max_hours,
        "task_hours": task_hours,
        "utterances_per_shard": utterances_per_shard,
        "speaker_folder": speaker_folder,
        "language": language,
        "columns": {field: column for field, column in (columns or {}).items() if column},
    }
    _check_settings(settings, max_skip_rate, num_tasks, task_index)
    if not input.exists():
        raise ValueError(f"the input {input} does not exist: give input=FOLDER, or input=FILE.tsv with layout=manifest")
    listing = output / "tasks.jsonl"
    if task_index is not None and not listing.exists():
        raise ValueError(f"a job of an array needs the task list {listing}: run once with num_tasks=0 to make it")
    present: set[str] = set()
    total = None
    with writer_lock(output, shared=task_index is not None):
        _bind_settings(output, settings)
        if task_index is None:
            _remove_leftovers(output)
            present, total = _plan(input, output, settings, subfolders, max_skip_rate, workers)
        lines = task_lines(listing)
        if num_tasks == 0:
            logger.info("%d tasks are listed in %s", len(lines), listing)
            return {"tasks": len(lines)}
        mine = [line for line in lines if task_index is None or line.number % num_tasks == task_index]
        root = input.parent if layout == "manifest" else input
        jobs = [_job(output, root, line, settings) for line in mine if not is_done(output, line.number)]
        _run(output, jobs, total, max_skip_rate, workers)
        if task_index is not None:
            return {"tasks": len(jobs)}
        return _finish(output, lines, settings, present, max_skip_rate)


def _source_name(source: str | None, input: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", input.resolve().with_suffix("").name) if source is None else source
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"a source name consists of letters, digits, - and _, but is {name!r}: give source=NAME")
    return name


def _check_settings(settings: dict[str, Any], max_skip_rate: float, num_tasks: int, task_index: int | None) -> None:
    if settings["layout"] not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, but is {settings['layout']!r}")
    for name in ("max_hours", "task_hours", "utterances_per_shard"):
        if not settings[name] > 0:
            raise ValueError(f"{name} must be above 0, but is {settings[name]}")
    for name in ("min_seconds", "speaker_folder"):
        if settings[name] < 0:
            raise ValueError(f"{name} must not be negative, but is {settings[name]}")
    if not 0 <= max_skip_rate <= 1:
        raise ValueError(f"max_skip_rate must lie in [0, 1], but is {max_skip_rate}")
    if task_index is not None and not 0 <= task_index < num_tasks:
        raise ValueError(f"task_index must lie in [0, num_tasks), but is {task_index} with num_tasks={num_tasks}")


def _bind_settings(output: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a new shard set, or compares them with those of an existing one."""
    path = output / "settings.json"
    if not (output / "tasks.jsonl").exists():
        if any((output / name).exists() for name in ("shards", "done", "index")):
            raise ValueError(f"{output} holds shards without the task list that they came from: give another output")
        write_json(path, {"format_version": FORMAT_VERSION, **settings})
        return
    try:
        bound = json.loads(path.read_text())
        version = bound.pop("format_version")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is missing or damaged: give another output") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{output} has format {version}, but this version of OpenWavLM reads up to {FORMAT_VERSION}: update OpenWavLM"
        )
    changed = sorted(name for name in settings.keys() | bound.keys() if settings.get(name) != bound.get(name))
    if changed:
        was = ", ".join(f"{name}={bound.get(name)}" for name in changed)
        now = ", ".join(f"{name}={settings.get(name)}" for name in changed)
        raise ValueError(f"{output} was made with {was}, but this run has {now}: repeat the settings, or give another output")


def _remove_leftovers(output: Path) -> None:
    """Removes the temporary files of a killed run."""
    for pattern in ("*.tmp", "*/*.tmp", "*/*/*.tmp"):
        for leftover in output.glob(pattern):
            if leftover.is_file():
                leftover.unlink()


def _plan(
    input: Path, output: Path, settings: dict[str, Any], subfolders: Sequence[str], max_skip_rate: float, workers: int
) -> tuple[set[str], int]:
    """Appends tasks for what the input holds and no task does; a repaired file that was skipped counts as new.

    Returns:
        Names of the utterances that are in the input now, and the number of utterances in all tasks.
    """
    listing = output / "tasks.jsonl"
    found = list_corpus(input, settings, subfolders)
    root = input.parent if settings["layout"] == "manifest" else input
    lines = task_lines(listing)
    known: set[str] = set()
    pending: list[str] = []
    for line in lines:
        names = names_of(read_task(listing, line).items)
        known.update(names)
        if not is_done(output, line.number):
            pending += names
    present = {utterance.name for utterance in found}
    gone = [name for name in pending if name not in present]
    if len(gone) > max_skip_rate * len(known):
        raise ValueError(
            f"unfinished tasks of {output} need {len(gone)} utterances that are not in {input} (first: {gone[0]}): "
            "run with the input that they came from first"
        )
    unusable = skipped(output, lines).items()
    again = {name for name, skip in unusable if name in present and file_stamp(root / skip["path"]) != skip["stamp"]}
    fresh = [utterance for utterance in found if utterance.name not in known or utterance.name in again]
    if not fresh:
        return present, len(known)
    seconds = _durations(fresh, root, workers)
    items = join_short_clips(fresh, seconds, settings["min_seconds"]) if settings["join_short"] else [[u] for u in fresh]
    by_name = {utterance.name: length or 0.0 for utterance, length in zip(fresh, seconds, strict=True)}
    lengths = [sum(by_name[utterance.name] for utterance in item) for item in items]
    tasks = cut_tasks(items, lengths, seed=settings["seed"], source=settings["source"], task_hours=settings["task_hours"])
    append_tasks(listing, tasks, len(lines), again)
    logger.info("%d new utterances, %.1f hours, in %d tasks", len(fresh), sum(lengths) / 3600, len(tasks))
    if (
        settings["layout"] == "folder"
        and not settings["speaker_folder"]
        and any(0 < length < settings["min_seconds"] for length in lengths)
    ):
        logger.info("speakers are unknown, so short clips of different files are not joined: speaker_folder=1 tells speakers")
    return present, len(known | present)


def _durations(utterances: Sequence[Utterance], root: Path, workers: int) -> list[float | None]:
    """Durations from segments or file headers."""
    unknown = sorted({str(root / utterance.path) for utterance in utterances if utterance.end_s is None})
    chunks = [unknown[start : start + 512] for start in range(0, len(unknown), 512)]
    header: dict[str, float | None] = {}
    for part in run_jobs(_probe_all, chunks, workers=workers, description="reading headers"):
        header |= part
    seconds: list[float | None] = []
    for utterance in utterances:
        end_s = header[str(root / utterance.path)] if utterance.end_s is None else utterance.end_s
        seconds.append(None if end_s is None else max(0.0, end_s - utterance.start_s))
    return seconds


def _probe_all(paths: list[str]) -> dict[str, float | None]:
    return {path: probe_seconds(Path(path)) for path in paths}


def _job(output: Path, root: Path, line: TaskLine, settings: dict[str, Any]) -> ShardJob:
    names = ("source", "seed", "min_seconds", "max_hours", "utterances_per_shard")
    return ShardJob(output, root, line, **{name: settings[name] for name in names})


def _run(output: Path, jobs: list[ShardJob], total: int | None, max_skip_rate: float, workers: int) -> None:
    """Runs tasks; stops as soon as too much of the `total` had to be skipped (a job of an array does not know the total)."""
    found: dict[str, dict[str, Any]] = {}
    # Closing ends the pool at once when the rate refuses; otherwise it would finish all tasks first.
    with closing(run_jobs(run_task, jobs, workers=workers, description="writing shards")) as results:
        for result in results:
            found |= {entry["name"]: entry for entry in result["skipped"]}
            if total is not None and len(found) > max_skip_rate * total:
                write_skipped(output, found)
                refuse_many_skipped(output, found, total, max_skip_rate)


def _finish(
    output: Path, lines: Sequence[TaskLine], settings: dict[str, Any], present: set[str], max_skip_rate: float
) -> dict[str, Any]:
    """Builds the index and the statistics; bad files that have been removed from the input since no longer count."""
    done = [entry for line in lines if (entry := task_done(output, line.number)) is not None]
    unusable = skipped(output, lines)
    usable = sum(entry["planned"] - len(entry["skipped"]) for entry in done)
    write_skipped(output, unusable)
    counted = {name: entry for name, entry in unusable.items() if name in present}
    refuse_many_skipped(output, counted, usable + len(counted), max_skip_rate)
    if not usable:
        raise ValueError(f"no utterance of the input can be used: see {output / 'skipped.tsv'}")
    index = build_index(output)
    stats = shard_set_stats(index, done, unusable, source=settings["source"], seed=settings["seed"])
    write_json(output / "stats.json", stats)
    return stats
