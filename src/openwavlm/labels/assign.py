"""Labels a shard set: one stateless task a pack, each with a done-file; then `meta.json`, the finished mark."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.labels.features import check_reproducible
from openwavlm.labels.fit import check_skip_rate
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.label_packs import MAX_PACKS, write_labels_meta
from openwavlm.labels.labelling import LabelPacks, check_names, write_stats
from openwavlm.labels.pack_tasks import PackTarget, PackTask, label_pack
from openwavlm.labels.quality import unigram
from openwavlm.labels.rebind import check_carried
from openwavlm.labels.unfinished import tidy
from openwavlm.runtime.atomic import taking_turns, writer_lock
from openwavlm.runtime.devices import named_device
from openwavlm.runtime.pool import run_jobs
from openwavlm.shards.index import Index
from openwavlm.shards.reader import check_shards

log = logging.getLogger(__name__)

MODES = ("assign", "rebind")


@dataclass(frozen=True)
class _Labelling:
    """Folder to label, the finished labelling in it, if there is one, and the shards of the index that it lacks, in index order."""

    output: Path
    codebook: Codebook
    existing: LabelPacks | None
    new: tuple[int, ...]

    @property
    def first_pack(self) -> int:
        return len(self.existing.meta["packs"]) if self.existing else 0


def assign_labels(
    shards: Path,
    codebook: Path | Sequence[Path] | None,
    output: Path | Sequence[Path],
    *,
    teacher: Path | None = None,
    device: str = "cpu",
    mode: str = "assign",
    carry_from: Path | None = None,
    workers: int = 1,
    packs: int | None = None,
    max_skip_rate: float = 0.001,
    num_tasks: int = 1,
    task_index: int | None = None,
) -> dict[str, Any] | None:
    """Labels every shard without labels, from whole, stored utterances; called again after a kill, gives the same bytes.

    Args:
        shards: Shard set.
        codebook: Codebook, or several of one teacher that share a pass over the audio, with the bytes of separate passes; None with
            `mode="rebind"`, which keeps the codebook of `carry_from`.
        output: Labelling, or one for each codebook; an existing one is grown by the shards that it lacks.
        teacher: With a codebook of layer features: the model that it was fitted on; each process loads it.
        device: Device of the teacher: `cpu`, `cuda` or `auto`. Labels of a GPU can differ from those of a CPU in single frames, so
            `meta.json` names the GPU of each pack.
        mode: `assign` computes labels; `rebind` carries those of `carry_from` over by the MD5 of the audio, without reading it.
        carry_from: Labelling of the same audio; with `assign` by the same codebook, and only audio that it lacks is read.
        workers: Processes.
        packs: Packs for the new shards; None: half of those that are left of 256, at most one a shard.
        max_skip_rate: Largest share of rows with unreadable audio, which get no labels.
        num_tasks: Jobs of an array that share the packs; the last one to finish writes `meta.json`.
        task_index: This job, which writes packs `task_index`, `task_index + num_tasks`, …; None: a single run, which writes all.

    Returns:
        Content of the (first) `meta.json`; None if packs of other jobs are still missing.

    Raises:
        ValueError: If arguments contradict each other, the features cannot be computed, a labelling has another codebook, the shards
            are damaged, audio has no labels to carry over, or too many rows are unreadable.
    """
    codebooks = [codebook] if isinstance(codebook, Path) else list(codebook or [])
    outputs = [output] if isinstance(output, Path) else list(output)
    _check_arguments(mode, codebooks, outputs, carry_from, teacher)
    if num_tasks < 1 or (task_index is not None and not 0 <= task_index < num_tasks):
        raise ValueError(f"task_index must lie in [0, num_tasks), but is {task_index} with num_tasks={num_tasks}")
    work = PackTask(shards, (), (), carry_from, teacher, named_device(device), mode)
    index = Index.open(shards)
    check_shards(index)
    books = _books(codebooks, carry_from, teacher)
    share = slice(None) if task_index is None else slice(task_index, None, num_tasks)
    with ExitStack() as stack:
        for folder in outputs:
            stack.enter_context(writer_lock(folder, shared=task_index is not None))
        labellings = [_labelling(folder, book, index) for folder, book in zip(outputs, books, strict=True)]
        targets = [target for group in _alike(labellings) for target in _label(group, index, work, packs, share, workers)]
        finished = [_finish_in_turn(each, index, targets, max_skip_rate, alone=task_index is None) for each in labellings]
        return finished[0] if all(finished) else None


def _label(
    labellings: list[_Labelling], index: Index, work: PackTask, packs: int | None, share: slice, workers: int
) -> list[PackTarget]:
    """Writes this job's share of the packs of labellings that lack the same shards; returns the targets of all packs."""
    if work.mode == "rebind" and work.carry_from and labellings[0].new:
        check_carried(index, list(labellings[0].new), work.carry_from)
    tasks = _cut(index, labellings, packs, work)
    targets = [target for task in tasks for target in task.targets]
    own = frozenset(shard for target in targets for shard in target.shards)
    for target in targets:
        target.check_unfinished(own)
    for labelling in labellings:
        if labelling.new:
            labelling.codebook.save_array(labelling.output)
    todo = [task for task in map(PackTask.undone, tasks[share]) if task.targets]
    names = ", ".join(str(labelling.output) for labelling in labellings)
    log.info(f"{len(labellings[0].new)} shards of {index.path} need labels in {names}: {len(todo)} of {len(tasks)} packs to do")
    for _ in run_jobs(label_pack, todo, workers=workers, description="labels"):
        pass
    return targets


def _check_arguments(
    mode: str, codebooks: list[Path], outputs: list[Path], carry_from: Path | None, teacher: Path | None
) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, but is {mode!r}")
    if mode == "rebind" and (carry_from is None or codebooks or len(outputs) != 1):
        raise ValueError("mode=rebind needs carry_from, a labelling of the same audio, one output and no codebook")
    if mode == "assign" and not codebooks:
        raise ValueError("mode=assign needs a codebook: fit one with openwavlm fit-kmeans, or use mode=rebind")
    if carry_from is not None and len(outputs) != 1:
        raise ValueError(f"carry_from needs one output, but there are {len(outputs)}: carry labels over into one after another")
    if carry_from is not None and carry_from.resolve() == outputs[0].resolve():
        raise ValueError(f"labels are carried from one folder into another, but carry_from and output are both {carry_from}")
    if mode == "assign" and not len(codebooks) == len(outputs) == len(set(outputs)):
        raise ValueError(
            f"every codebook needs an output of its own, but there are {len(codebooks)} codebooks and {len(set(outputs))} outputs: "
            "name as many, as in codebook=[A,B] output=[X,Y]"
        )
    if mode == "rebind" and teacher is not None:
        raise ValueError(f"mode=rebind reads no audio, so it needs no teacher, but has {teacher}: leave teacher out")


def _books(codebooks: list[Path], carry_from: Path | None, teacher: Path | None) -> list[Codebook]:
    """Opens the codebooks, or that of `carry_from` if there are none; refuses features that cannot be computed."""
    carried = [LabelPacks.open(carry_from).codebook] if carry_from else []
    if not codebooks:
        return carried
    books = [Codebook.load(path) for path in codebooks]
    of_layers = [book.features.get("name") == "layer" for book in books]
    for book, path, of_layer in zip(books, codebooks, of_layers, strict=True):
        # A teacher is superfluous only if no codebook needs it.
        check_reproducible(book.features, path, teacher if of_layer or not any(of_layers) else None)
    if carried and (carried[0].hash, carried[0].features) != (books[0].hash, books[0].features):
        raise ValueError(
            f"labels can be carried over only from the same codebook, but {carry_from} was made with {carried[0].hash[:12]} and "
            f"{codebooks[0]} is {books[0].hash[:12]}: give the codebook of those labels, or leave carry_from out"
        )
    return books


def _labelling(output: Path, book: Codebook, index: Index) -> _Labelling:
    existing = None
    if (output / "index").is_dir():
        raise ValueError(f"labels have a folder of their own, but {output} holds shards: name another output")
    if (output / "meta.json").is_file():
        existing = LabelPacks.open(output)
        if existing.codebook.hash != book.hash:
            raise ValueError(
                f"one labelling has one codebook, but {output} was made with {existing.codebook.hash[:12]} and this is "
                f"{book.hash[:12]}: name another output, or grow it with its own codebook"
            )
        check_names(existing, index)
    new = existing.missing(index) if existing else range(len(index.shards))
    if existing and not new:
        log.info(f"all {len(index.shards)} shards of {index.path} have labels in {output}")
    return _Labelling(output, book, existing, tuple(new))


def _alike(labellings: list[_Labelling]) -> list[list[_Labelling]]:
    """Groups labellings with packs of the same shards; one pass labels a group with the bytes of separate passes."""
    groups: dict[tuple[int, tuple[int, ...]], list[_Labelling]] = {}
    for labelling in labellings:
        groups.setdefault((labelling.first_pack, labelling.new), []).append(labelling)
    return list(groups.values())


def _cut(index: Index, labellings: list[_Labelling], packs: int | None, work: PackTask) -> list[PackTask]:
    """Splits the new shards, in index order, into packs of about equally many shards."""
    first_pack, new = labellings[0].first_pack, labellings[0].new
    if not new and labellings[0].existing:
        return []
    left = MAX_PACKS - first_pack
    count = min(len(new), packs if packs is not None else max(1, left // 2))
    if not 1 <= count <= left:
        raise ValueError(
            f"a labelling has at most {MAX_PACKS} packs and needs at least one for new shards, but {labellings[0].output} has "
            f"{first_pack} and {count} more were requested: "
            + ("lower packs" if left else f"label the whole set into another output, with carry_from={labellings[0].output}")
        )
    tasks = []
    for number, part in enumerate(np.array_split(new, count), start=first_pack):
        name, numbers = f"pack-{number:05d}", tuple(part.tolist())
        targets = tuple(PackTarget.of(each.output, each.codebook, name, index, numbers) for each in labellings)
        tasks.append(replace(work, shards=numbers, targets=targets))
    return tasks


def _finish_in_turn(
    labelling: _Labelling, index: Index, targets: list[PackTarget], max_skip_rate: float, *, alone: bool
) -> dict[str, Any] | None:
    """Finishes a labelling, unless another job of the array, which saw all packs done at the same time, has finished it."""
    with taking_turns(labelling.output):
        if labelling.new and (labelling.output / "meta.json").is_file():
            found = LabelPacks.open(labelling.output)
            if not found.missing(index):
                return found.meta
        own = [target for target in targets if target.output == labelling.output]
        return _finish(labelling, own, max_skip_rate, alone=alone)


def _finish(labelling: _Labelling, targets: list[PackTarget], max_skip_rate: float, *, alone: bool) -> dict[str, Any] | None:
    """Writes a labelling's `meta.json` once every pack is done."""
    output, existing = labelling.output, labelling.existing
    if existing and not labelling.new:
        return _close(output, existing.meta, alone=alone)
    results = [result for target in targets if (result := target.done()) is not None]
    if len(results) < len(targets):
        log.info(f"{len(results)} of {len(targets)} packs are done; the last call to finish writes {output / 'meta.json'}")
        return None
    unreadable = sum(result["record"]["unreadable_rows"] for result in results)
    try:
        check_skip_rate(unreadable, sum(result["record"]["rows"] for result in results), max_skip_rate)
    except ValueError:
        # The next call labels these packs again, since the shards may be repaired before.
        for target, result in zip(targets, results, strict=True):
            if result["record"]["unreadable_rows"]:
                target.done_file.unlink(missing_ok=True)
        raise
    counts = np.sum([result["label_counts"] for result in results], axis=0)
    packs = [result["record"] for result in results]
    if existing:
        counts, packs = counts + np.array(existing.meta["label_counts"]), existing.meta["packs"] + packs
    return _close(output, write_labels_meta(output, labelling.codebook, packs, counts), alone=alone)


def _close(output: Path, meta: dict[str, Any], *, alone: bool) -> dict[str, Any]:
    """Writes `stats.json` and removes work that is no longer needed, after `meta.json` was written."""
    counts = np.array(meta["label_counts"])
    entropy, accuracy = unigram(counts) if counts.sum() else (0.0, 0.0)
    more = {"packs": len(meta["packs"]), "unigram_entropy_nats": entropy, "unigram_accuracy": accuracy}
    write_stats(output, meta, "assign_labels", **more)
    tidy(output, meta, alone=alone)
    return meta
