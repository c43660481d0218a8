"""Reads fairseq's labels: `.tsv` (root, then path and samples), `.km` (a line of clusters an utterance), `dict.km.txt`."""

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from openwavlm.audio.frames import num_frames
from openwavlm.runtime.randomness import stable_hash
from openwavlm.shards.corpora.utterance import portable, utterance_key
from openwavlm.shards.index import Index

RATES_HZ = (50, 100)


@dataclass(frozen=True)
class Lines:
    """Lines of one `.km`: int64 (lines,) row of the index, −1 where the shard set lacks the utterance, and place in bytes."""

    file: Path
    rows: np.ndarray
    offsets: "array[int]"


def read_dictionary(path: Path) -> int:
    """Number of clusters of a `dict.km.txt`; fairseq silently maps labels that its dictionary lacks to one symbol (#4521).

    Raises:
        ValueError: If it is missing, empty, or does not list 0 … K − 1.
    """
    if not path.is_file():
        raise ValueError(f"the dictionary {path} does not exist: give dict.km.txt, one line `CLUSTER 1` for each of 0 … K − 1")
    listed = [line.split()[0] for line in _lines(path) if line.split()]
    # fairseq pads its dictionaries to a multiple of eight.
    listed = [name for name in listed if not re.fullmatch(r"madeupword\d+", name)]
    wrong = next((name for name in listed if not name.isdecimal()), None)
    if wrong is not None:
        raise ValueError(f"the dictionary must list clusters by number, but {path} has {wrong!r}: give that of the labels")
    absent = set(range(len(listed))) - {int(name) for name in listed}
    if not listed or absent:
        what = f"has {len(listed)} lines and lacks {min(absent)}" if absent else "is empty"
        raise ValueError(
            f"the dictionary must list every cluster 0 … K − 1 once, but {path} {what}: fairseq would map all absent labels to one "
            "symbol; write it again, one line `CLUSTER 1` for each"
        )
    return len(listed)


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file, without line ends and without empty lines at its end."""
    empty = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                if line.strip():
                    yield from ("" for _ in range(empty))
                    yield line.rstrip("\n")
                empty = 0 if line.strip() else empty + 1
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8, but is not ({error}): save it in UTF-8") from error


def _utterances(tsv: Path) -> Iterator[tuple[str, int]]:
    """Path below the root in the first line, and number of samples, of each line."""
    if not tsv.is_file():
        raise ValueError(f"the manifest {tsv} does not exist (key tsv)")
    lines = _lines(tsv)
    root = next(lines, "").strip()
    if "\t" in root:
        raise ValueError(f"the first line of {tsv} must be the folder of its paths, but is {root!r}: add that line")
    for number, line in enumerate(lines, start=2):
        path, _, samples = line.partition("\t")
        if not path or not samples.strip().isdecimal():
            raise ValueError(f"each line of {tsv} must be a path, a tab and a number of samples, but line {number} is {line!r}")
        yield f"{root}/{path}", int(samples)


def _rows_of(path: str, index: Index, keys: np.ndarray, order: np.ndarray) -> list[int]:
    """Rows with the name of a path, or of the longest end of it that names a row: the root of the shard set may differ."""
    parts = PurePosixPath(path).with_suffix("").parts
    for first in range(len(parts)):
        name = portable("/".join(parts[first:]))
        wanted = np.array([stable_hash(utterance_key(source, name)) for source in index.sources if source], dtype=np.uint64)
        places = np.searchsorted(keys, wanted)
        rows = [int(order[place]) for place, key in zip(places, wanted, strict=True) if place < len(keys) and keys[place] == key]
        if rows:
            return rows
    return []


def read_lines(tsv: Path, km: Path, index: Index, classes: int, label_rate: int) -> Lines:
    """Finds the row of each line of the manifest `tsv`, and checks its length and labels in `km`.

    Raises:
        ValueError: If a line is missing or damaged, a path names several rows, or samples, labels or lengths do not match.
    """
    order = np.argsort(index.key, kind="stable")
    keys = np.asarray(index.key)[order]
    rows, offsets, place = array("q"), array("q"), 0
    with km.open("rb") as file:
        for number, (path, samples) in enumerate(_utterances(tsv), start=1):
            line = file.readline()
            if not line:
                raise ValueError(
                    f"{km} must have a line for each utterance of {tsv}, but ends after {number - 1}: give matching files"
                )
            found = _rows_of(path, index, keys, order)
            if len(found) > 1:
                raise ValueError(
                    f"{path} of {tsv} names {len(found)} utterances of {index.path} by its last parts: give paths from their common root"
                )
            if found:
                _check_length(path, samples, int(index.num_samples[found[0]]), _parsed(line, km, number, classes), label_rate, km)
            rows.append(found[0] if found else -1)
            offsets.append(place)
            place += len(line)
        if any(line.strip() for line in file):
            raise ValueError(f"{km} must have a line for each utterance of {tsv}, but has more: give matching files")
    return Lines(km, np.array(rows, dtype=np.int64), offsets)


def _parsed(line: bytes, km: Path, number: int, classes: int) -> np.ndarray:
    try:
        labels = np.array(line.split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"line {number} of {km} must be numbers separated by blanks, but is not ({error}): write the file again"
        ) from error
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise ValueError(
            f"labels must be in the dictionary of {classes} clusters, but line {number} of {km} has {wrong}: give the dictionary of the "
            "labels"
        )
    return labels


def _length(samples: int, label_rate: int) -> int:
    return num_frames(samples) if label_rate == 50 else max(0, 1 + (samples - 400) // 160)


def _check_length(path: str, samples: int, here: int, labels: np.ndarray, label_rate: int, km: Path) -> None:
    if samples != here:
        raise ValueError(
            f"{path} must be the same audio in manifest and shards, but has {samples} samples there and {here} here: label it again"
        )
    expected = _length(samples, label_rate)
    if len(labels) == expected:
        return
    other = next((rate for rate in RATES_HZ if len(labels) == _length(samples, rate)), None)
    hint = (
        f"these are {other} a second, set label_rate={other} decimate={str(other == 100).lower()}"
        if other
        else ("fairseq loses a frame at each 100 s; cut longer utterances before, or assign the labels here with their codebook")
    )
    raise ValueError(f"{path} must have {expected} labels at {label_rate} a second, but {km} has {len(labels)}: {hint}")
