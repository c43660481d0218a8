"""Makes a shard set from a corpus: lists utterances, cuts tasks, runs unfinished tasks, writes index and statistics."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from openwavlm.audio.read import decoders
from openwavlm.runtime.atomic import remove_temporaries, write_json, writer_lock
from openwavlm.runtime.pool import run_jobs
from openwavlm.shards.corpora.listing import corpus_root, list_corpus
from openwavlm.shards.done import is_done, refuse_many_skipped, skipped, task_done, write_skipped
from openwavlm.shards.index_writer import build_index
from openwavlm.shards.planning import Plan, plan_tasks
from openwavlm.shards.settings import bind_settings, check_settings, source_name
from openwavlm.shards.splits import split_hash
from openwavlm.shards.stats import corpus_stats, shard_set_stats
from openwavlm.shards.tasks import TaskLine, task_lines
from openwavlm.shards.writer import run_task

logger = logging.getLogger(__name__)

# Files of a shard set, of which a killed run may leave temporaries.
_FILES = re.compile(r"(settings|stats)\.json|tasks\.jsonl|skipped\.tsv|shards/\d+/\d+-\d+\.(tar|json)|done/\d+/\d+\.json")


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
    columns: Mapping[str, Any] | None = None,
    channels: str = "mean",
    max_skip_rate: float = 0.01,
    workers: int = 1,
    speakers: tuple[int, int] | None = None,
    num_tasks: int = 1,
    task_index: int | None = None,
) -> dict[str, Any]:
    """Prepares a corpus as a shard set; resumes an unfinished set and extends a set by new input.

    Args:
        input: Folder (or manifest file) of the corpus.
        output: Shard set to write or to extend.
        layout: `folder`, `manifest` or `librispeech`.
        source: Name of the corpus, part of every key; by default the name of the input.
        seed: Seed of the permutation and shuffles.
        min_seconds: Shorter clips are joined with neighbours of the same speaker.
        join_short: False leaves short clips alone.
        max_hours: Longest recording that is decoded, hours.
        task_hours: Audio in one task, hours; a task is the unit of resuming and of shuffling.
        utterances_per_shard: Most utterances in one tar.
        speaker_folder: Layout `folder`: depth of the folder that names the speaker, 0 for none.
        subfolders: Layouts `folder` and `librispeech`: parts of the input to take, empty for all.
        language: Language of utterances for which the corpus names none.
        columns: Layout `manifest`: column of each field, and as `ignore` the columns that are no part of a segment's definition.
        channels: Several channels: their `mean` (one where they cancel each other), the `first`, or `split`: a row for each channel, with
            the speaker `SPEAKER#CHANNEL` (`RECORDING#CHANNEL` where unknown).
        max_skip_rate: Largest share of unreadable utterances.
        workers: Local processes.
        speakers: Only those with a `split_hash` from the first to below the second; None for all.
        num_tasks: Number of jobs of an array that share the work; 0 only lists the tasks.
        task_index: Number of this job in the array; it runs its part of the tasks and builds no index. None for a single run.

    Returns:
        Content of `stats.json`; for a job of an array, the number of tasks that it ran.

    Raises:
        ValueError: If a setting is out of range or differs from the output's, another process writes there, the input is missing,
            empty or malformed, two utterances have one name, or too many are unreadable.
    """
    input, output = Path(input), Path(output)
    settings: dict[str, Any] = {
        "layout": layout,
        "source": source_name(source, input),
        "seed": seed,
        "min_seconds": min_seconds,
        "join_short": join_short,
        "max_hours": max_hours,
        "task_hours": task_hours,
        "utterances_per_shard": utterances_per_shard,
        "speaker_folder": speaker_folder,
        "language": language,
        "columns": {field: column for field, column in (columns or {}).items() if column},
        "channels": channels,
    }
    check_settings(settings, max_skip_rate, num_tasks, task_index)
    if not input.exists():
        raise ValueError(f"the input {input} does not exist: give input=FOLDER, or input=FILE.tsv with layout=manifest")
    listing = output / "tasks.jsonl"
    if task_index is not None and not listing.exists():
        raise ValueError(f"a job of an array needs the task list {listing}: run once with num_tasks=0 to make it")
    plan = None
    with writer_lock(output, shared=task_index is not None):
        settings = bind_settings(output, settings, decoders())
        if task_index is None:
            remove_temporaries(output, _FILES.fullmatch)
            corpus = list_corpus(input, settings, subfolders)
            if speakers is not None:
                source, within = settings["source"], range(*speakers)
                chosen = [one for one in corpus.utterances if split_hash(f"{source}/{one.speaker}") in within]
                corpus = replace(corpus, utterances=chosen)
            plan = plan_tasks(corpus, output, settings, max_skip_rate, workers)
        lines = task_lines(listing)
        if num_tasks == 0:
            logger.info("%d tasks are listed in %s", len(lines), listing)
            return {"tasks": len(lines)}
        mine = [line for line in lines if task_index is None or line.number % num_tasks == task_index]
        todo = [line for line in mine if not is_done(output, line.number)]
        run = partial(run_task, output, corpus_root(input, layout), settings)
        # Closing ends the pool at once after an error; otherwise it would finish all tasks first.
        with closing(run_jobs(run, todo, workers=workers, description="writing shards")) as results:
            _stop_at_many_skipped(results, output, plan, max_skip_rate)
        if plan is None:
            return {"tasks": len(todo)}
        return _finish(output, lines, settings, plan, max_skip_rate)


def _stop_at_many_skipped(results: Iterator[dict[str, Any]], output: Path, plan: Plan | None, max_skip_rate: float) -> None:
    """Runs the tasks; stops when too many utterances are skipped, except in a job of an array, which has no plan."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        found |= {entry["name"]: entry for entry in result["skipped"]}
        if plan is not None and len(found) > max_skip_rate * plan.total:
            write_skipped(output, found)
            refuse_many_skipped(output, found, plan.total, max_skip_rate)


def _finish(
    output: Path, lines: Sequence[TaskLine], settings: dict[str, Any], plan: Plan, max_skip_rate: float
) -> dict[str, Any]:
    """Builds the index and the statistics; unusable files that are no longer in the input do not count."""
    done = [entry for line in lines if (entry := task_done(output, line.number)) is not None]
    unusable = skipped(output, lines)
    usable = sum(entry["planned"] - len(entry["skipped"]) for entry in done)
    write_skipped(output, unusable)
    present = {utterance.name for utterance in plan.corpus.utterances}
    counted = {name: entry for name, entry in unusable.items() if name in present}
    refuse_many_skipped(output, counted, usable + len(counted), max_skip_rate)
    if not usable:
        raise ValueError(f"no utterance of the input can be used: see {output / 'skipped.tsv'}")
    index = build_index(output)
    stats = shard_set_stats(index, done, unusable, source=settings["source"], seed=settings["seed"])
    stats |= corpus_stats(plan.corpus, done, unusable.keys()) | {"changed_in_input": plan.changed, "gone_from_input": plan.gone}
    write_json(output / "stats.json", stats)
    return stats
