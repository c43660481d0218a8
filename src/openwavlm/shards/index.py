"""Index of a shard set (docs/data.md): memory-mapped columns, so that a row is found without opening a tar.

Two identities: the fingerprint hashes the audio (PCM, key, length), `metadata` the names that decide a split, a probe's speakers or a
source's share (speaker, recording, source, language). The checksums in `shards.json` cover every other byte of the folder.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.runtime.atomic import sha256_of
from openwavlm.runtime.files import Fields, read_array, read_lines
from openwavlm.runtime.sealed import read_sealed

FORMAT_VERSION = 2
COLUMNS: dict[str, type[np.unsignedinteger[Any]]] = {
    "shard": np.uint32,
    "offset": np.uint64,
    "nbytes": np.uint32,
    "num_samples": np.uint32,
    "key": np.uint64,
    "pcm": np.uint64,
    "speaker": np.uint32,
    "recording": np.uint32,
    "source": np.uint16,
    "language": np.uint16,
}
# Columns of names, each with its text table.
NAMES = {"speaker": "speakers", "recording": "recordings", "source": "sources", "language": "languages"}
TABLES = tuple(NAMES.values())
MEMBER = np.dtype([("row", "<u4"), ("offset", "<u4"), ("num_samples", "<u4"), ("key", "<u8"), ("pcm", "<u8")])
_IDENTITY = np.dtype([("pcm", "<u8"), ("key", "<u8"), ("num_samples", "<u4")])
FILES = (*(f"{name}.npy" for name in (*COLUMNS, "members")), *(f"{name}.txt" for name in (*TABLES, "keys")))


@dataclass(frozen=True)
class ShardInfo:
    """One tar of a shard set.

    Attributes:
        name: Path relative to the shard set.
        rows, nbytes, checksum: Number of utterances; size and SHA-256 of the tar.
        identity: Hash over its rows in order, to which labels are bound.
        metadata: Hash over the names of its rows in order; `write_index` computes it.
    """

    name: str
    rows: int
    nbytes: int
    checksum: str
    identity: str
    metadata: str = ""

    @classmethod
    def of(cls, fields: Fields) -> "ShardInfo":
        """Reads an entry of `shards.json` or a done-file; a field of wrong type or range is a ValueError."""
        texts = {name: fields.text(name) for name in ("name", "checksum", "identity", "metadata")}
        return cls(rows=fields.integer("rows"), nbytes=fields.integer("nbytes"), **texts)


def shard_identity(pcm: np.ndarray, key: np.ndarray, num_samples: np.ndarray) -> str:
    """Hash over the rows of a shard in order: PCM, key and length."""
    rows = np.empty(len(pcm), _IDENTITY)
    rows["pcm"], rows["key"], rows["num_samples"] = pcm, key, num_samples
    return hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest()


def shard_metadata(names: Mapping[str, Sequence[str]]) -> str:
    """Hash over the names of a shard's rows in order: texts without line feed of all of `NAMES`, (rows,) each."""
    rows = zip(*(names[name] for name in NAMES), strict=True)
    return hashlib.blake2b("".join(["\n".join((*row, "")) for row in rows]).encode(), digest_size=16).hexdigest()


def index_fingerprint(identities: Iterable[str]) -> str:
    """Hash over the sorted identities of the shards."""
    return hashlib.blake2b("\n".join(sorted(identities)).encode(), digest_size=16).hexdigest()


def index_metadata(shards: Iterable[ShardInfo]) -> str:
    """Hash over the sorted lines `IDENTITY METADATA` of the shards."""
    return index_fingerprint(f"{shard.identity} {shard.metadata}" for shard in shards)


def read_record(file: Path, path: Path, *, what: str = "", remedy: str) -> Fields:
    """Reads the settings, a done-file or `shards.json` of the shard set `path`; `what` names the file in errors about its format.

    Raises:
        ValueError: If the file is missing, damaged or of another format.
        OSError: If the machine fails to read the file.
    """
    content = read_sealed(file, remedy=remedy, newest=FORMAT_VERSION, sealed_since=FORMAT_VERSION)
    found = Fields(content, str(file), remedy)
    if check_not_newer(found, what) < FORMAT_VERSION:
        raise ValueError(
            f"{what or file} has format {content['format_version']}, in which speakers and other names have no checksum: upgrade it to "
            f"format {FORMAT_VERSION}, which does not change the audio, by `openwavlm upgrade {path}`"
        )
    return found


def check_not_newer(found: Fields, what: str = "") -> int:
    """Returns the format of a record; raises a ValueError if it is newer than `FORMAT_VERSION`."""
    version = found.integer("format_version", 1)
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{what or found.where} has format {version}, but this version of OpenWavLM reads up to {FORMAT_VERSION}: update OpenWavLM"
        )
    return version


def _table(name: str) -> cached_property[list[str]]:
    return cached_property(lambda index: index._lines(name))


class Index:
    """Read-only view of a shard set's index.

    Columns are memory-mapped 1-d arrays with one entry per row (types in `COLUMNS`); ids of `speaker`, `recording`, `source` and
    `language` point into the text tables, 0 is unknown. A pickled index is its path.

    Attributes:
        path: Folder of the shard set.
        fingerprint: Hash over the sorted shard identities (audio).
        metadata: Hash over the sorted shard identities and metadata (names).
        shards: Tars in index order.
        first_row: int64 (shards + 1,): the rows of shard s are `first_row[s]:first_row[s + 1]`.
        speakers, recordings: Names `SOURCE/name` by id; these and the other texts are read on first use.
        sources, languages: Names of the sources, and language codes, by id.
        keys: Key of every row, as in the tars; empty for an index written without keys.
    """

    shard: np.ndarray
    offset: np.ndarray
    nbytes: np.ndarray
    num_samples: np.ndarray
    key: np.ndarray
    pcm: np.ndarray
    speaker: np.ndarray
    recording: np.ndarray
    source: np.ndarray
    language: np.ndarray
    speakers = _table("speakers")
    recordings = _table("recordings")
    sources = _table("sources")
    languages = _table("languages")
    keys = _table("keys")

    def __init__(self, path: Path, shards: list[ShardInfo], columns: Mapping[str, np.ndarray], files: dict[str, Fields]) -> None:
        self.path = path
        self.shards = shards
        self.fingerprint = index_fingerprint(shard.identity for shard in shards)
        self.metadata = index_metadata(shards)
        self.first_row = np.concatenate([[0], np.cumsum([shard.rows for shard in shards], dtype=np.int64)])
        self._files = files
        for name in COLUMNS:
            setattr(self, name, columns[name])

    @classmethod
    def open(cls, path: Path | str, *, check: bool = True) -> "Index":
        """Opens the index of a shard set.

        With `check`, every file is read once and compared with its checksum (a second for some millions of rows); workers of a process
        that has checked the index leave it out.

        Raises:
            ValueError: If there is no finished index, it has another format, or a file is missing or has another type, shape, size or
                checksum.
        """
        path = Path(path)
        mark = path / "index" / "shards.json"
        if not mark.is_file():
            raise ValueError(f"{path} has no finished index (index/shards.json): run openwavlm make-shards output={path} again")
        again = _again(path)
        head = read_record(mark, path, what=f"the index of {path}", remedy=again)
        shards = [ShardInfo.of(entry) for entry in head.objects("shards")]
        rows = head.integer("rows")
        columns = {
            name: read_array(mark.with_name(f"{name}.npy"), dtype, shape=(rows,), remedy=again, memory_map=True)
            for name, dtype in COLUMNS.items()
        }
        files = {name: Fields(entry, f"{mark}, files.{name}", again) for name, entry in head.mapping("files").items()}
        index = cls(path, shards, columns, files)
        if (len(index), index.fingerprint, index.metadata) != (rows, head.text("fingerprint"), head.text("metadata")):
            raise ValueError(f"{mark} is damaged (it contradicts itself): {again}")
        if check:
            for problem in index.problems():
                raise ValueError(f"{problem}: {again}")
        return index

    def problems(self) -> list[str]:
        """Files of the index that differ from their description in `shards.json`, one clause each, in order."""
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(self._file_problem, FILES))
        return [problem for problem in found if problem is not None]

    def _file_problem(self, name: str) -> str | None:
        path = self.path / "index" / name
        if not path.is_file():
            return f"{path} is missing"
        size, expected = path.stat().st_size, self._files[name].integer("nbytes")
        if size != expected:
            return f"{path} must have {expected} bytes, but has {size}"
        return None if sha256_of(path) == self._files[name].text("sha256") else f"{path} does not have its checksum"

    def __len__(self) -> int:
        return int(self.first_row[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Index.open, check=False), (self.path,)

    def _lines(self, name: str) -> list[str]:
        path, again = self.path / "index" / f"{name}.txt", _again(self.path)
        lines, wanted = read_lines(path, remedy=again), self._files[path.name].integer("lines")
        if len(lines) != wanted:
            raise ValueError(f"{path} must have {wanted} lines, but has {len(lines)}: {again}")
        return lines

    def names(self, first: int, last: int) -> dict[str, list[str]]:
        """Names of rows [first, last): texts (rows,) by column, for all of `NAMES`; a damaged table is a ValueError."""
        found = {}
        for name, table in NAMES.items():
            ids, texts = getattr(self, name)[first:last], getattr(self, table)
            if len(ids) and ids.max() >= len(texts):
                raise ValueError(
                    f"{self.path / 'index' / name}.npy must name lines of {table}.txt, which has {len(texts)}, but names line "
                    f"{int(ids.max())}: {_again(self.path)}"
                )
            found[name] = [texts[number] for number in ids.tolist()]
        return found

    @cached_property
    def members(self) -> np.ndarray:
        """Clips inside joined rows, ascending by row; dtype `MEMBER`, offsets and lengths in samples."""
        return read_array(self.path / "index" / "members.npy", MEMBER, remedy=_again(self.path))


def _again(path: Path) -> str:
    return f"delete {path / 'index'} and run openwavlm make-shards again"
