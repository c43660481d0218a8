"""One task: writes the pack of some shards in one or several labellings in one pass over the audio, each with a done-file."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openwavlm.labels.features import assign_in_chunks
from openwavlm.labels.kmeans import Codebook, one_torch_thread
from openwavlm.labels.label_packs import write_packs
from openwavlm.labels.labelling import LabelPacks
from openwavlm.labels.rebind import carrier
from openwavlm.labels.unfinished import ShardParts, read_done, write_parts
from openwavlm.runtime.atomic import write_json
from openwavlm.runtime.resources import check_of_the_file
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader, UnreadableAudio

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackTarget:
    """Pack of one labelling: its name, a hash of all that it depends on, and identity and hash of the names of each of its shards."""

    output: Path
    codebook: Codebook
    pack: str
    key: str
    shards: tuple[str, ...] = ()

    @classmethod
    def of(cls, output: Path, codebook: Codebook, pack: str, index: Index, shards: Sequence[int]) -> "PackTarget":
        """Target of the pack with some shards of an index."""
        of_shards = tuple(f"{index.shards[shard].identity} {index.shards[shard].metadata}" for shard in shards)
        return cls(output, codebook, pack, _key(codebook, of_shards), of_shards)

    @property
    def done_file(self) -> Path:
        """Path of the record of the finished pack."""
        return self.output / "tasks" / f"{self.pack}.json"

    def done(self) -> dict[str, Any] | None:
        """Content of the done-file; None if it is absent, damaged or of another task, or the pack's files are missing."""
        try:
            return read_done(self.done_file, self.output, self.pack, classes=len(self.codebook), task=self.key).values
        except ValueError:
            return None

    def check_unfinished(self, own: AbstractSet[str]) -> None:
        """Refuses to overwrite the pack of an unfinished call that labels shards not in `own`, or has another codebook.

        A pack with another selection of `own` may be overwritten: its labels are the same.

        Raises:
            ValueError: If the done-file belongs to such a call.
        """
        try:
            done = json.loads(self.done_file.read_text())
            theirs = [f"{shard['identity']} {shard['metadata']}" for shard in done["record"]["shards"]]
            task = done["task"]
        except (OSError, ValueError, KeyError, TypeError) as error:  # absent or damaged
            check_of_the_file(error, self.done_file)
            return
        same_codebook = task == _key(self.codebook, theirs)
        if not same_codebook or not set(theirs) <= own:
            what = "other shards" if same_codebook else "another codebook"
            raise ValueError(
                f"{self.done_file} is a finished pack of a call that labels {what} and has not ended: finish that call first (the same "
                f"command resumes it), name another output, or delete {self.done_file.parent} to discard its work"
            )


@dataclass(frozen=True)
class PackTask:
    """Pack to write: numbers of its shards in the index, and the labellings that lack it; the rest is as in `assign_labels`."""

    shards_path: Path
    shards: tuple[int, ...]
    targets: tuple[PackTarget, ...]
    carry_from: Path | None
    teacher: Path | None
    device: str
    mode: str

    def undone(self) -> "PackTask":
        """The task without the targets that are done."""
        return replace(self, targets=tuple(target for target in self.targets if target.done() is None))


def _key(book: Codebook, shards: Iterable[str] = ()) -> str:
    entries = [book.hash, json.dumps(book.features, sort_keys=True), *shards]
    return hashlib.blake2b("\n".join(entries).encode(), digest_size=16).hexdigest()


def label_pack(task: PackTask) -> None:
    """Writes the pack of a task, then its done-files."""
    index = Index.open(task.shards_path, check=False)
    folders, books = [target.output for target in task.targets], [target.codebook for target in task.targets]
    pack, sizes = task.targets[0].pack, [len(book) for book in books]
    with one_torch_thread():
        if task.mode == "rebind":
            assert task.carry_from is not None
            carried = carrier(index, task.carry_from)
            parts: list[ShardParts] = []
            results = write_packs(folders, pack, index, task.shards, lambda row: [carried(row)], sizes)
        else:
            parts = [ShardParts(folder, index, _key(book), len(book)) for folder, book in zip(folders, books, strict=True)]
            write_parts(parts, task.shards, lambda some: _computer(index, task, some), _gpus(task))
            results = write_packs(folders, pack, index, task.shards, lambda row: [part.labels(row) for part in parts], sizes)
    gpus = _gpus_of_carried(task.carry_from)
    for number, (target, result) in enumerate(zip(task.targets, results, strict=True)):
        own = {gpu for shard in task.shards if parts and (gpu := parts[number].computed_on(shard))}
        names = sorted(gpus | own)
        record = result.record | ({"computed_on": ", ".join(names)} if names else {})
        write_json(target.done_file, {"task": target.key, "record": record, "label_counts": result.label_counts.tolist()})
    for part in parts:
        part.remove(task.shards)


def _gpus_of_carried(labels: Path | None) -> set[str]:
    """Names of the GPUs that may have computed carried labels."""
    packs = LabelPacks.open(labels).meta["packs"] if labels else []
    return {name for pack in packs if "computed_on" in pack for name in pack["computed_on"].split(", ")}


def _gpus(task: PackTask) -> list[str | None]:
    """Name of the GPU that computes the labels of each target; None for a CPU."""
    of_layers = [task.device == "cuda" and target.codebook.features["name"] == "layer" for target in task.targets]
    return [torch.cuda.get_device_name() if of_layer else None for of_layer in of_layers]


def _computer(index: Index, task: PackTask, some: Sequence[int]) -> Callable[[int], Sequence[np.ndarray | None]]:
    """Function that labels a row for some targets of a task: it carries over labels of the same audio, or computes them."""
    reader = ShardReader(index)
    books = [task.targets[number].codebook for number in some]
    carried = carrier(index, task.carry_from) if task.carry_from else lambda row: None

    def labels_of_row(row: int) -> Sequence[np.ndarray | None]:
        known = carried(row)
        if known is not None:
            return [known]
        try:
            waveform = reader.read(row)
        except UnreadableAudio as error:
            log.warning(f"no labels: {error}")
            return [None] * len(books)
        try:
            return assign_in_chunks(books, waveform, task.teacher, device=task.device)
        except ValueError as error:
            raise ValueError(f"row {row} ({index.shards[int(index.shard[row])].name}) of {index.path}: {error}") from error

    return labels_of_row
