"""Labelling a shard set: one stateless task a pack, each with a done-file; then `meta.json`, the finished mark.

Several codebooks of one teacher label in one pass: audio is read and the teacher runs once. A task then writes the pack of the same
shards in each labelling; each labelling has done-files of its own and is, byte for byte, what it would have become alone.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ
from openwavlm.labels.features import check_reproducible
from openwavlm.labels.fit import check_skip_rate
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.label_packs import MAX_PACKS, write_labels_meta
from openwavlm.labels.pack_tasks import PackTarget, PackTask, label_pack
from openwavlm.labels.quality import perplexity, unigram, used_clusters
from openwavlm.labels.rebind import check_carried
from openwavlm.labels.store import LabelPacks, check_names
from openwavlm.labels.tidying import tidy
from openwavlm.runtime.atomic import taking_turns, write_json, writer_lock
from openwavlm.runtime.devices import named_device
from openwavlm.runtime.pool import run_jobs
from openwavlm.shards.index import Index
from openwavlm.shards.reader import check_shards

log = logging.getLogger(__name__)

MODES = ("assign", "rebind")


@dataclass(frozen=True)
class _Labelling:
    """A labelling that is being made or grown.

    Attributes:
        output: Its folder.
        codebook: Its centroids.
        existing: What is there already, or None.
        new: Shards of the index without labels, in index order.
    """

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
    """Labels every shard that has no labels yet; can be killed and called again, and gives the same bytes.

    Labels are computed on whole, clean, stored utterances. A row whose audio cannot be read gets no labels (0 frames).

    Args:
        shards: Shard-set directory.
        codebook: Codebook folder, or several whose labels are made in one pass over the audio; None with `mode="rebind"`, which
            keeps the codebook of `carry_from`.
        output: The labelling, or one for each codebook; one that exists is grown by the shards that it lacks.
        teacher: With a codebook of layer features: the model that it was fitted on, a Hugging Face directory; each process loads it.
        device: Where the teacher runs: `cpu`, `cuda`, or `auto` for `cuda` where there is one. A GPU's labels can differ from a
            CPU's in single frames, so packs that one made say so in `meta.json`.
        mode: `assign` computes labels; `rebind` carries those of `carry_from` over by the MD5 of the audio, without reading it.
        carry_from: With `rebind`: the labelling of the same audio in other shards. With `assign`: a labelling by the same codebook,
            whose labels are taken for audio that it has, so that the rest alone is read.
        workers: Processes.
        packs: Packs for the new shards; None: half of those that are left of 256, at most one a shard.
        max_skip_rate: Largest share of rows that may be unreadable.
        num_tasks: Jobs of an array that share the packs; the one that finds all packs done writes `meta.json`.
        task_index: Which of them this is: it writes packs `task_index`, `task_index + num_tasks`, …; None for a run by itself,
            which writes all packs that are not done.

    Returns:
        What the (first) `meta.json` says; None if packs of other jobs are still missing.

    Raises:
        ValueError: If the mode or its arguments are wrong, the codebooks' features cannot be made here (no teacher or another
            one), a labelling has another codebook, the shards are damaged, audio has no labels to carry over, or too many rows
            are unreadable.
    """
    codebooks = [codebook] if isinstance(codebook, Path) else list(codebook or [])
    outputs = [output] if isinstance(output, Path) else list(output)
    _check_arguments(mode, codebooks, outputs, carry_from, num_tasks, task_index)
    if mode == "rebind" and teacher is not None:
        raise ValueError(f"mode=rebind reads no audio, so it needs no teacher, but has {teacher}: leave teacher out")
    device = named_device(device)
    index = Index.open(shards)
    check_shards(index)
    carried = [LabelPacks.open(carry_from).codebook] if carry_from else []
    books = carried if mode == "rebind" else [Codebook.load(path) for path in codebooks]
    if mode == "assign":
        _check_features(books, codebooks, teacher)
        if carried and (carried[0].hash, carried[0].features) != (books[0].hash, books[0].features):
            raise ValueError(
                f"labels can be carried over from the same codebook alone, but {carry_from} was made with {carried[0].hash[:12]} and "
                f"{codebooks[0]} is {books[0].hash[:12]}: give the codebook of those labels, or leave carry_from out"
            )
    with ExitStack() as stack:
        for folder in outputs:
            stack.enter_context(writer_lock(folder, shared=task_index is not None))
        labellings = [_labelling(folder, book, index) for folder, book in zip(outputs, books, strict=True)]
        tasks: dict[Path, list[PackTask]] = {}
        for together in _alike(labellings):
            if mode == "rebind" and carry_from and together[0].new:
                check_carried(index, list(together[0].new), carry_from)
            cut = _cut(index, together, packs, carry_from=carry_from, teacher=teacher, device=device, mode=mode)
            own = frozenset(shard for task in cut for target in task.targets for shard in target.shards)
            for target in (target for task in cut for target in task.targets):
                target.check_unfinished(own)
            for labelling in together:
                if labelling.new:
                    labelling.codebook.save_array(labelling.output)
                tasks[labelling.output] = cut
            mine = [task for number, task in enumerate(cut) if task_index is None or number % num_tasks == task_index]
            todo = [task for task in map(PackTask.undone, mine) if task.targets]
            names = ", ".join(str(labelling.output) for labelling in together)
            log.info(
                f"{len(together[0].new)} shards of {shards} need labels in {names}: {len(cut)} packs, {len(todo)} to do here"
            )
            for _ in run_jobs(label_pack, todo, workers=workers, description="labels"):
                pass
        alone = task_index is None
        finished = [
            _finish_in_turn(labelling, index, tasks[labelling.output], max_skip_rate, alone=alone) for labelling in labellings
        ]
        return finished[0] if all(finished) else None


def _check_arguments(
    mode: str,
    codebooks: list[Path],
    outputs: list[Path],
    carry_from: Path | None,
    num_tasks: int,
    task_index: int | None,
) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, but is {mode!r}: correct it")
    if mode == "rebind" and (carry_from is None or codebooks or len(outputs) != 1):
        raise ValueError(
            "mode=rebind needs carry_from (the labelling of the same audio), one output and no codebook: it keeps that labelling's"
        )
    if mode == "assign" and not codebooks:
        raise ValueError("mode=assign needs a codebook: fit one with data_prep/fit_kmeans.py, or use mode=rebind")
    if carry_from is not None and len(outputs) != 1:
        raise ValueError(
            f"carry_from is one labelling for one output, but there are {len(outputs)} outputs: carry over into one after another"
        )
    if carry_from is not None and carry_from.resolve() == outputs[0].resolve():
        raise ValueError(f"labels are carried from one folder into another, but carry_from and output are both {carry_from}")
    if mode == "assign" and not len(codebooks) == len(outputs) == len(set(outputs)):
        raise ValueError(
            f"every codebook needs an output of its own, but there are {len(codebooks)} codebooks and {len(set(outputs))} outputs: "
            "name as many, as in codebook=[A,B] output=[X,Y]"
        )
    if num_tasks < 1 or (task_index is not None and not 0 <= task_index < num_tasks):
        raise ValueError(f"task_index must lie in [0, num_tasks), but is {task_index} with num_tasks={num_tasks}")


def _check_features(books: list[Codebook], codebooks: list[Path], teacher: Path | None) -> None:
    """Refuses codebooks whose features this program cannot make, or cannot make in one pass."""
    of_layers = [book.features.get("name") == "layer" for book in books]
    for book, path, of_layer in zip(books, codebooks, of_layers, strict=True):
        # A teacher is superfluous only where no codebook has use for it.
        check_reproducible(book.features, path, teacher if of_layer or not any(of_layers) else None)


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
    if existing:
        check_names(existing, index)
    new = existing.missing(index) if existing else range(len(index.shards))
    if existing and not new:
        log.info(f"all {len(index.shards)} shards of {index.path} have labels in {output}")
    return _Labelling(output, book, existing, tuple(new))


def _alike(labellings: list[_Labelling]) -> list[list[_Labelling]]:
    """Labellings in groups whose packs cover the same shards: what one pass can label without any of them coming out differently."""
    groups: dict[tuple[int, tuple[int, ...]], list[_Labelling]] = {}
    for labelling in labellings:
        groups.setdefault((labelling.first_pack, labelling.new), []).append(labelling)
    return list(groups.values())


def _cut(
    index: Index,
    labellings: list[_Labelling],
    packs: int | None,
    *,
    carry_from: Path | None,
    teacher: Path | None,
    device: str,
    mode: str,
) -> list[PackTask]:
    """Deals the new shards, in index order, to packs of about equally many shards."""
    first_pack, new = labellings[0].first_pack, labellings[0].new
    if not new and labellings[0].existing:
        return []
    left = MAX_PACKS - first_pack
    count = min(len(new), packs if packs is not None else max(1, left // 2))
    if not 1 <= count <= left:
        raise ValueError(
            f"a labelling has at most {MAX_PACKS} packs and needs at least one for new shards, but {labellings[0].output} has "
            f"{first_pack} and {count} more were asked for: "
            + ("lower packs" if left else f"label the whole set into another output, with carry_from={labellings[0].output}")
        )
    tasks = []
    for number, part in enumerate(np.array_split(np.array(new), count), start=first_pack):
        numbers = tuple(int(shard) for shard in part)
        targets = tuple(
            PackTarget.of(labelling.output, labelling.codebook, f"pack-{number:05d}", index, numbers) for labelling in labellings
        )
        tasks.append(PackTask(index.path, numbers, targets, carry_from, teacher, device, mode))
    return tasks


def _finish_in_turn(
    labelling: _Labelling, index: Index, tasks: list[PackTask], max_skip_rate: float, *, alone: bool
) -> dict[str, Any] | None:
    """Finishes a labelling unless another job of the array, which saw the last packs done at the same time, has."""
    with taking_turns(labelling.output):
        if labelling.new and (labelling.output / "meta.json").is_file():
            found = LabelPacks.open(labelling.output)
            if not found.missing(index):
                return found.meta
        return _finish(labelling, tasks, max_skip_rate, alone=alone)


def _finish(labelling: _Labelling, tasks: list[PackTask], max_skip_rate: float, *, alone: bool) -> dict[str, Any] | None:
    """Writes a labelling's `meta.json` once every pack is done."""
    output, existing = labelling.output, labelling.existing
    if existing and not labelling.new:
        return _close(output, existing.meta, alone=alone)
    targets = [target for task in tasks for target in task.targets if target.output == output]
    results = [result for target in targets if (result := target.done()) is not None]
    if len(results) < len(targets):
        log.info(f"{len(results)} of {len(targets)} packs are done; the last call to finish writes {output / 'meta.json'}")
        return None
    unreadable = sum(result["record"]["unreadable_rows"] for result in results)
    try:
        check_skip_rate(unreadable, sum(result["record"]["rows"] for result in results), max_skip_rate)
    except ValueError:
        # These packs are done again on the next call: by then the shards may have been repaired.
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
    """Writes `stats.json` and removes what is no longer needed; `meta.json` is there already."""
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
    tidy(output, meta, alone=alone)
    log.info(
        f"{meta['rows']} rows, {stats['hours']:.2f} h, {stats['used_clusters']} of {meta['num_classes']} clusters in use, perplexity "
        f"{stats['perplexity']:.1f}, {meta['unreadable_rows']} unreadable -> {output}"
    )
    return meta
