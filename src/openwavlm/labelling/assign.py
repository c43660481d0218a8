"""Labelling a shard set: one stateless task a pack, each with a done-file; then `meta.json`, the finished mark."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.data.atomic import write_json, writer_lock
from openwavlm.data.index import Index
from openwavlm.data.pool import run_jobs
from openwavlm.data.reader import ShardReader, UnreadableAudio, check_shards
from openwavlm.frames import FRAME_RATE_HZ, num_frames
from openwavlm.labelling.extract import check_reproducible, extract_features
from openwavlm.labelling.fit import check_skip_rate
from openwavlm.targets.kmeans import Codebook, one_torch_thread
from openwavlm.targets.label_packs import (
    MAX_PACKS,
    file_checksum,
    labels_file,
    rows_file,
    write_labels_meta,
    write_pack,
)
from openwavlm.targets.labels import LabelPacks
from openwavlm.targets.quality import perplexity, unigram, used_clusters

log = logging.getLogger(__name__)

MODES = ("assign", "rebind")


@dataclass(frozen=True)
class _Task:
    """One pack to write.

    Attributes:
        shards_path: The shard set.
        output: The labelling.
        pack: The pack's name.
        shards: Its shards, by number in the index.
        codebook: The centroids.
        carry_from: An older labelling whose labels are carried over, or None to compute them.
        teacher: The model of layer features.
        key: Hash of all that the pack depends on.
    """

    shards_path: Path
    output: Path
    pack: str
    shards: tuple[int, ...]
    codebook: Codebook
    carry_from: Path | None
    teacher: Path | None
    key: str

    @property
    def done_file(self) -> Path:
        return self.output / "tasks" / f"{self.pack}.json"


def assign_labels(
    shards: Path,
    codebook: Path | None,
    output: Path,
    *,
    teacher: Path | None = None,
    mode: str = "assign",
    carry_from: Path | None = None,
    workers: int = 1,
    packs: int | None = None,
    max_skip_rate: float = 0.001,
    num_tasks: int = 1,
    task_index: int | None = None,
) -> dict[str, Any] | None:
    """Labels every shard that has no labels yet; can be killed and called again, and gives the same bytes.

    Labels are computed on whole, clean, stored utterances. A row whose audio cannot be read gets no labels (0 frames).

    Args:
        shards: Shard-set directory.
        codebook: Codebook folder; None with `mode="rebind"`, which keeps the codebook of `carry_from`.
        output: The labelling; one that exists is grown by the shards that it lacks.
        teacher: With a codebook of layer features: the model that it was fitted on, a Hugging Face directory; each process loads it.
        mode: `assign` computes labels; `rebind` carries those of `carry_from` over by the MD5 of the audio, without reading it.
        carry_from: With `rebind`: the labelling of the same audio in other shards.
        workers: Processes.
        packs: Packs for the new shards; None: half of those that are left of 256, at most one a shard.
        max_skip_rate: Largest share of rows that may be unreadable.
        num_tasks: Jobs of an array that share the packs; the one that finds all packs done writes `meta.json`.
        task_index: Which of them this is: it writes packs `task_index`, `task_index + num_tasks`, …; None for a run by itself,
            which writes all packs that are not done.

    Returns:
        What `meta.json` says; None if packs of other jobs are still missing.

    Raises:
        ValueError: If the mode or its arguments are wrong, the codebook's features cannot be made here (no teacher or another
            one), the labelling has another codebook, the shards are damaged, audio has no labels to carry over, or too many rows
            are unreadable.
    """
    _check_arguments(mode, codebook, carry_from, num_tasks, task_index)
    if mode == "rebind" and teacher is not None:
        raise ValueError(f"mode=rebind reads no audio, so it needs no teacher, but has {teacher}: leave teacher out")
    index = Index.open(shards)
    check_shards(index)
    book = LabelPacks.open(carry_from).codebook if carry_from else Codebook.load(codebook or Path())
    if carry_from is None:
        check_reproducible(book.features, codebook, teacher)
    with writer_lock(output, shared=task_index is not None):
        existing = _existing(output, book)
        new = existing.missing(index) if existing else list(range(len(index.shards)))
        if existing and not new:
            log.info(f"all {len(index.shards)} shards of {shards} have labels in {output}")
            return _tidy(output, existing.meta)
        if carry_from:
            _check_carried(index, new, carry_from)
        first_pack = len(existing.meta["packs"]) if existing else 0
        tasks = _cut(index, new, first_pack, packs, output=output, book=book, carry_from=carry_from, teacher=teacher)
        book.save_array(output)
        mine = [task for number, task in enumerate(tasks) if task_index is None or number % num_tasks == task_index]
        todo = [task for task in mine if _done(task) is None]
        log.info(f"{len(new)} shards of {shards} need labels: {len(tasks)} packs, {len(todo)} to do here")
        for _ in run_jobs(_label_pack, todo, workers=workers, description="labels"):
            pass
        return _finish(output, book, existing, tasks, max_skip_rate)


def _check_arguments(mode: str, codebook: Path | None, carry_from: Path | None, num_tasks: int, task_index: int | None) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, but is {mode!r}: correct it")
    if mode == "rebind" and (carry_from is None or codebook is not None):
        raise ValueError(
            "mode=rebind needs carry_from (the labelling of the same audio) and no codebook: it keeps that labelling's"
        )
    if mode == "assign" and (codebook is None or carry_from is not None):
        raise ValueError(
            "mode=assign needs a codebook and no carry_from: fit one with data_prep/fit_kmeans.py, or use mode=rebind"
        )
    if num_tasks < 1 or (task_index is not None and not 0 <= task_index < num_tasks):
        raise ValueError(f"task_index must lie in [0, num_tasks), but is {task_index} with num_tasks={num_tasks}")


def _existing(output: Path, book: Codebook) -> LabelPacks | None:
    if not (output / "meta.json").is_file():
        return None
    existing = LabelPacks.open(output)
    if existing.codebook.hash != book.hash:
        raise ValueError(
            f"one labelling has one codebook, but {output} was made with {existing.codebook.hash[:12]} and this is "
            f"{book.hash[:12]}: name another output, or grow it with its own codebook"
        )
    return existing


def _cut(
    index: Index,
    new: list[int],
    first_pack: int,
    packs: int | None,
    *,
    output: Path,
    book: Codebook,
    carry_from: Path | None,
    teacher: Path | None,
) -> list[_Task]:
    """Deals the new shards, in index order, to packs of about equally many shards."""
    left = MAX_PACKS - first_pack
    count = min(len(new), packs if packs is not None else max(1, left // 2))
    if not 1 <= count <= left:
        raise ValueError(
            f"a labelling has at most {MAX_PACKS} packs and needs at least one for new shards, but {output} has {first_pack} and "
            f"{count} more were asked for: {'lower packs' if left else 'label the whole set into another output'}"
        )
    parts = np.array_split(np.array(new), count)
    tasks = []
    for number, part in enumerate(parts, start=first_pack):
        numbers = tuple(int(shard) for shard in part)
        entries = [book.hash, json.dumps(book.features, sort_keys=True), *(index.shards[shard].identity for shard in numbers)]
        key = hashlib.blake2b("\n".join(entries).encode(), digest_size=16).hexdigest()
        tasks.append(_Task(index.path, output, f"pack-{number:05d}", numbers, book, carry_from, teacher, key))
    return tasks


def _done(task: _Task) -> dict[str, Any] | None:
    """The done-file of a task, if it is of this very task and the pack's files are there."""
    try:
        done = json.loads(task.done_file.read_text())
        sizes = (labels_file(task.output, task.pack).stat().st_size, rows_file(task.output, task.pack).stat().st_size)
    except (OSError, ValueError):
        return None
    fits = done["task"] == task.key and sizes == (done["record"]["labels_bytes"], done["record"]["rows_bytes"])
    return done if fits else None


def _label_pack(task: _Task) -> None:
    """Writes one pack and then its done-file; the whole of a task, alike in every process and on every machine."""
    index = Index.open(task.shards_path)
    label_row = _carrier(index, task.carry_from) if task.carry_from else _computer(index, task.codebook, task.teacher)
    with one_torch_thread():
        result = write_pack(task.output, task.pack, index, task.shards, label_row, len(task.codebook))
    done = {"task": task.key, "record": result.record, "label_counts": result.label_counts.tolist()}
    write_json(task.done_file, done)


def _computer(index: Index, book: Codebook, teacher: Path | None = None) -> Callable[[int], np.ndarray | None]:
    reader = ShardReader(index)

    def labels_of(row: int) -> np.ndarray | None:
        try:
            waveform = reader.read(row)
        except UnreadableAudio as error:
            log.warning(f"no labels: {error}")
            return None
        return book.assign(extract_features(book.features, waveform, teacher))

    return labels_of


def _carried_tables(path: Path) -> tuple[LabelPacks, np.ndarray, np.ndarray, np.ndarray]:
    return _tables_of(path, file_checksum(path / "meta.json"))


@lru_cache(maxsize=1)
def _tables_of(path: Path, _version: str) -> tuple[LabelPacks, np.ndarray, np.ndarray, np.ndarray]:
    """An older labelling with its audio hashes in ascending order, and each one's pack and place; kept from task to task."""
    old = LabelPacks.open(path)
    tables = [old.pack(number).table for number in range(len(old.meta["packs"]))]
    pcm = np.concatenate([table["pcm"] for table in tables])
    pack = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    place = np.concatenate([np.arange(len(table)) for table in tables])
    order = np.argsort(pcm, kind="stable")
    return old, pcm[order], pack[order], place[order]


def _carrier(index: Index, path: Path) -> Callable[[int], np.ndarray | None]:
    old, pcm, pack, place = _carried_tables(path)
    packs = [old.pack(number) for number in range(len(old.meta["packs"]))]

    def labels_of(row: int) -> np.ndarray | None:
        found = int(np.searchsorted(pcm, index.pcm[row]))
        source = packs[pack[found]]
        record = source.table[place[found]]
        frames, offset = int(record["frames"]), int(record["offset"])
        expected = num_frames(int(index.num_samples[row]))
        if frames not in (0, expected):
            raise ValueError(
                f"equal audio must have equally many frames, but row {row} of {index.path} has {expected} and {path} has {frames} "
                "for it: label the shards with mode=assign"
            )
        return source.labels[offset : offset + frames] if frames == expected else None

    return labels_of


def _check_carried(index: Index, new: list[int], path: Path) -> None:
    known = _carried_tables(path)[1]
    rows = np.concatenate([np.arange(index.first_row[shard], index.first_row[shard + 1]) for shard in new])
    missing = rows[~np.isin(index.pcm[rows], known)]
    if len(missing):
        raise ValueError(
            f"mode=rebind needs labels of the very same audio, but {len(missing)} of {len(rows)} rows of {index.path} (for example "
            f"row {missing[0]} in {index.shards[int(index.shard[missing[0]])].name}) have none in {path}: label these shards with "
            "mode=assign and that labelling's codebook"
        )


def _finish(
    output: Path, book: Codebook, existing: LabelPacks | None, tasks: list[_Task], max_skip_rate: float
) -> dict[str, Any] | None:
    """Writes `meta.json` once every pack is done."""
    done = [_done(task) for task in tasks]
    results = [result for result in done if result is not None]
    if len(results) < len(tasks):
        log.info(f"{len(results)} of {len(tasks)} packs are done; the last call to finish writes {output / 'meta.json'}")
        return None
    unreadable = sum(result["record"]["unreadable_rows"] for result in results)
    try:
        check_skip_rate(unreadable, sum(result["record"]["rows"] for result in results), max_skip_rate)
    except ValueError:
        # These packs are done again on the next call: by then the shards may have been repaired.
        for task, result in zip(tasks, results, strict=True):
            if result["record"]["unreadable_rows"]:
                task.done_file.unlink(missing_ok=True)
        raise
    counts = np.sum([result["label_counts"] for result in results], axis=0)
    packs = [result["record"] for result in results]
    if existing:
        counts, packs = counts + np.array(existing.meta["label_counts"]), existing.meta["packs"] + packs
    return _tidy(output, write_labels_meta(output, book, packs, counts))


def _tidy(output: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Writes `stats.json` and removes what unfinished calls left behind; `meta.json` is there already."""
    counts = np.array(meta["label_counts"])
    entropy, accuracy = unigram(counts) if counts.sum() else (0.0, 0.0)
    stats = {
        "command": "assign_labels",
        **{name: meta[name] for name in ("num_classes", "codebook_hash", "shards", "rows", "unreadable_rows", "frames")},
        "packs": len(meta["packs"]),
        "hours": round(meta["frames"] / FRAME_RATE_HZ / 3600, 4),
        "used_clusters": used_clusters(counts),
        "perplexity": perplexity(counts),
        "unigram_entropy_nats": entropy,
        "unigram_accuracy": accuracy,
    }
    write_json(output / "stats.json", stats)
    shutil.rmtree(output / "tasks", ignore_errors=True)
    named = {path.name for pack in meta["packs"] for path in (labels_file(output, pack["name"]), rows_file(output, pack["name"]))}
    for path in [*output.glob("pack-*"), *output.glob("*.tmp")]:
        if path.name not in named:
            path.unlink(missing_ok=True)
    log.info(
        f"{meta['rows']} rows, {stats['hours']:.2f} h, {stats['used_clusters']} of {meta['num_classes']} clusters in use, perplexity "
        f"{stats['perplexity']:.1f}, {meta['unreadable_rows']} unreadable -> {output}"
    )
    return meta
