"""Carries labels over to other shards by the MD5 of the audio, without reading it."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from openwavlm.audio.frames import num_frames
from openwavlm.labels.label_packs import file_checksum
from openwavlm.labels.labelling import LabelPacks
from openwavlm.labels.pack import Pack
from openwavlm.shards.index import Index


def _carried_tables(path: Path) -> tuple[list[Pack], np.ndarray, np.ndarray, np.ndarray]:
    return _tables_of(path, file_checksum(path / "meta.json"))


@lru_cache(maxsize=1)
def _tables_of(path: Path, _version: str) -> tuple[list[Pack], np.ndarray, np.ndarray, np.ndarray]:
    """Packs of a labelling, its audio hashes in ascending order, and the pack and place of each; kept between tasks."""
    old = LabelPacks.open(path)
    packs = [old.pack(number) for number in range(len(old.meta["packs"]))]
    for source in packs:
        source.check_rows()
    tables = [source.table for source in packs]
    pcm = np.concatenate([table["pcm"] for table in tables])
    pack = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    place = np.concatenate([np.arange(len(table)) for table in tables])
    order = np.argsort(pcm, kind="stable")
    return packs, pcm[order], pack[order], place[order]


def carrier(index: Index, path: Path) -> Callable[[int], np.ndarray | None]:
    """Function from a row of an index to the labels (frames,) of its audio in the labelling at `path`.

    It returns None if the labelling lacks the audio or it was unreadable; raises `ValueError` where equal audio has another number of
    frames.
    """
    packs, pcm, pack, place = _carried_tables(path)

    def labels_of(row: int) -> np.ndarray | None:
        found = int(np.searchsorted(pcm, index.pcm[row]))
        if found == len(pcm) or pcm[found] != index.pcm[row]:
            return None
        source = packs[pack[found]]
        source.check_once()
        record = source.table[place[found]]
        frames, offset = int(record["frames"]), int(record["offset"])
        expected = num_frames(int(index.num_samples[row]))
        if frames not in (0, expected):
            raise ValueError(
                f"equal audio must have equally many frames, but row {row} of {index.path} has {expected} and {path} has {frames} "
                "for it: label the shards with mode=assign and no carry_from"
            )
        return source.labels[offset : offset + frames] if frames == expected else None

    return labels_of


def check_carried(index: Index, new: list[int], path: Path) -> None:
    """Raises `ValueError` if audio of some shards of an index is absent from another labelling."""
    known = _carried_tables(path)[1]
    rows = np.concatenate([np.arange(index.first_row[shard], index.first_row[shard + 1]) for shard in new])
    missing = rows[~np.isin(index.pcm[rows], known)]
    if len(missing):
        raise ValueError(
            f"mode=rebind needs labels of the same audio, but {len(missing)} of {len(rows)} rows of {index.path} (for example "
            f"row {missing[0]} in {index.shards[int(index.shard[missing[0]])].name}) have none in {path}: label these shards with "
            "mode=assign and that labelling's codebook"
        )
