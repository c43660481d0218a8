"""Imports fairseq's labels (`.tsv`, `.km`, `dict.km.txt`) as a labelling of a shard set, by path and length of the utterances."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ
from openwavlm.labels.fairseq_labels import RATES_HZ, Lines, read_dictionary, read_lines
from openwavlm.labels.kmeans import IMPORTED, Codebook, UnknownCodebook
from openwavlm.labels.label_packs import MAX_PACKS, write_labels_meta, write_packs
from openwavlm.labels.labelling import LabelPacks, check_names, write_stats
from openwavlm.labels.unfinished import FILES
from openwavlm.runtime.atomic import remove_temporaries, sha256_of, writer_lock
from openwavlm.runtime.resources import naming
from openwavlm.shards.index import Index
from openwavlm.shards.reader import check_shards

log = logging.getLogger(__name__)


def import_labels(
    shards: Path,
    output: Path,
    *,
    tsv: Sequence[Path],
    km: Sequence[Path],
    dictionary: Path,
    label_rate: int = 50,
    decimate: bool = False,
    codebook: Path | None = None,
    max_missing_rate: float = 0.0,
) -> dict[str, Any]:
    """Writes a labelling with the labels of fairseq's files and returns its `meta.json`; a call after a kill starts again.

    An utterance is found by its path in the `.tsv`, without leading folders where needed, and must have the same number of samples.
    Memory: about 50 bytes an utterance.

    Args:
        shards: Shard set, made with `join_short=false`.
        output: Labelling.
        tsv: All manifests of one codebook (`train.tsv`, `valid.tsv`); the shard set may hold a part of their utterances.
        km: Their label files, in the same order.
        dictionary: `dict.km.txt`, which must list the clusters 0 … K − 1.
        label_rate: Labels a second: 50, or 100 of MFCC.
        decimate: Whether to keep every second of 100 labels a second: the even ones have the support of a model frame.
        codebook: Folder of their codebook; None: it is unknown, and the hash of the files identifies it.
        max_missing_rate: Largest share of the shard set's rows that may have no labels; training treats them as unreadable.

    Raises:
        ValueError: If the arguments contradict each other, a file is missing or damaged, the dictionary is empty or lacks a cluster,
            a label is not in it, lengths or rates do not fit the audio, or too many rows have no labels.
    """
    _check_arguments(tsv, km, label_rate, decimate=decimate)
    index = Index.open(shards)
    check_shards(index)
    classes = read_dictionary(dictionary)
    book = _codebook(codebook, classes, km, dictionary, label_rate)
    with writer_lock(output):
        if (output / "meta.json").is_file():
            return _there(output, book, index)
        lines = [read_lines(table, file, index, classes, label_rate) for table, file in zip(tsv, km, strict=True)]
        label_row = _reader(lines, index, label_rate, max_missing_rate)
        remove_temporaries(output, FILES.fullmatch)
        book.save_array(output)
        count = min(len(index.shards), MAX_PACKS // 2)
        parts = np.array_split(np.arange(len(index.shards)), count)
        done = []
        for number, part in enumerate(parts):
            name = f"pack-{number:05d}"
            done += write_packs([output], name, index, part.tolist(), lambda row: [label_row(row)], [classes])
        counts = np.sum([result.label_counts for result in done], axis=0)
        meta = write_labels_meta(output, book, [result.record for result in done], counts)
        write_stats(output, meta, "import_labels")
    return meta


def _check_arguments(tsv: Sequence[Path], km: Sequence[Path], label_rate: int, *, decimate: bool) -> None:
    if not tsv or len(tsv) != len(km):
        raise ValueError(f"tsv and km must name the same splits in the same order, but are {len(tsv)} and {len(km)} files")
    if label_rate not in RATES_HZ:
        raise ValueError(f"label_rate must be one of {', '.join(map(str, RATES_HZ))}, but is {label_rate}")
    if (label_rate == 100) != decimate:
        raise ValueError(
            f"labels must have one entry a model frame, {FRAME_RATE_HZ:g} a second; with label_rate=100 every second one must be dropped "
            f"by decimate=true, but label_rate={label_rate} and decimate={str(decimate).lower()}: set both or neither"
        )


def _codebook(folder: Path | None, classes: int, km: Sequence[Path], dictionary: Path, label_rate: int) -> Codebook:
    for path in km:
        if not path.is_file():
            raise ValueError(f"the labels {path} do not exist (key km)")
    if folder is not None:
        book = Codebook.load(folder)
        if len(book) != classes:
            raise ValueError(
                f"{dictionary} lists {classes} clusters, but the codebook {folder} has {len(book)}: give the one they come from"
            )
        return book
    files = [{"file": path.name, "sha256": sha256_of(path)} for path in (*km, dictionary)]
    digest = hashlib.sha256("\n".join([str(label_rate), *sorted(entry["sha256"] for entry in files)]).encode())
    features = {"name": IMPORTED, "label_rate_hz": label_rate}
    return UnknownCodebook.of(classes, digest.hexdigest(), features, {"imported": files})


def _there(output: Path, book: Codebook, index: Index) -> dict[str, Any]:
    found = LabelPacks.open(output)
    if found.codebook.hash != book.hash or found.missing(index):
        raise ValueError(f"{output} holds another labelling already: name another output, or delete it")
    check_names(found, index)
    log.info("all %d shards of %s have labels in %s", len(index.shards), index.path, output)
    write_stats(output, found.meta, "import_labels")
    return found.meta


def _reader(lines: Sequence[Lines], index: Index, label_rate: int, max_missing_rate: float) -> Callable[[int], np.ndarray | None]:
    file_of, line_of = np.full(len(index), -1, dtype=np.int64), np.zeros(len(index), dtype=np.int64)
    for number, part in enumerate(lines):
        known = np.flatnonzero(part.rows >= 0)
        rows = part.rows[known]
        if len(np.unique(rows)) != len(rows) or (file_of[rows] >= 0).any():
            raise ValueError(f"an utterance must be labelled once, but {part.file} repeats one: give each split once")
        file_of[rows], line_of[rows] = number, known
    missing = np.flatnonzero(file_of < 0)
    if len(missing) > max_missing_rate * len(index):
        name = index.keys[int(missing[0])] if index.keys else f"row {missing[0]}"
        raise ValueError(
            f"at most a share of {max_missing_rate:g} of the rows may have no labels, but {len(missing)} of {len(index)} are in no "
            f"manifest (for example {name}): make the shards with join_short=false from the same files, or raise max_missing_rate"
        )
    if len(missing):
        log.warning("%d of %d rows are in no manifest: training treats them as unreadable", len(missing), len(index))

    def label_row(row: int) -> np.ndarray | None:
        if file_of[row] < 0:
            return None
        part = lines[file_of[row]]
        with naming(part.file), part.file.open("rb") as file:
            file.seek(part.offsets[int(line_of[row])])
            labels = np.array(file.readline().split(), dtype=np.int64)
        return labels[:: label_rate // 50]

    return label_row
