"""Extracts features of a model's layers, or units, from a folder of recordings: `openwavlm extract --help`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from openwavlm.audio.errors import AudioError
from openwavlm.audio.frames import num_frames
from openwavlm.audio.read import decode_or_stop
from openwavlm.labels.features import assign_in_chunks, check_reproducible
from openwavlm.labels.kmeans import Codebook, one_torch_thread
from openwavlm.labels.teacher import layer_chunks, open_teacher
from openwavlm.runtime.atomic import atomic_file, write_json, writer_lock
from openwavlm.runtime.pool import run_jobs
from openwavlm.runtime.sealed import read_sealed
from openwavlm.shards.corpora.files import counted, find_files

log = logging.getLogger(__name__)

DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Extracted:
    """Result of extracting one folder.

    Attributes:
        files: Number of recordings that have features or units.
        kept: Number of recordings with features of an earlier call.
        frames: Number of frames that this call computed.
        skipped: Unreadable recordings, relative to the folder, and the reason.
        units: Units of each recording, uint16 (frames,); empty when features are extracted.
    """

    files: int
    kept: int
    frames: int
    skipped: dict[str, str]
    units: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Job:
    root: Path
    name: str
    model: Path | None
    output: Path | None = None
    layers: tuple[int, ...] = ()
    dtype: str = "float32"
    codebook: Codebook | None = None


def extract_features_of_folder(
    model: Path,
    folder: Path,
    output: Path,
    *,
    layers: Literal["all"] | Sequence[int] = "all",
    dtype: str = "float32",
    workers: int = 1,
    max_skip_rate: float = 0.0,
) -> Extracted:
    """Writes `output/NAME.npy`, (layers, frames, dim), for each `folder/NAME`, and their settings to `output/extract.json`.

    Recordings of any format and rate are converted to 16 kHz mono; above 30 s they are cut into independent parts of equal length.
    Called again, computes only features that are missing or older than their recording.

    Args:
        model: A checkpoint of any dialect, ours or published.
        folder: Recordings, in sub-folders too.
        output: Folder of the features, all with the same settings.
        layers: Numbers of layers, after their residual; 0 is the encoder's input.
        dtype: `float32` or `float16`.
        workers: Processes; each loads the model.
        max_skip_rate: Largest share of recordings that may be unreadable.

    Raises:
        ValueError: If the data type is unknown, the model cannot be loaded or lacks a layer, the folder has no recordings, the
            output holds other features, or too many files are unreadable.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but is {dtype!r}")
    teacher = open_teacher(model)
    top = teacher.model.config.layers
    chosen = tuple(range(top + 1)) if layers == "all" else tuple(int(layer) for layer in layers)
    if not chosen or not all(0 <= layer <= top for layer in chosen):
        raise ValueError(f"layers must be all or a list of 0…{top} for {model} (0 is the encoder's input), but is {list(chosen)}")
    names = _names(folder)
    request = {
        "format_version": 1,
        "model": teacher.hash,
        "layers": list(chosen),
        "dim": teacher.model.config.dim,
        "residual": "after",
        "dtype": dtype,
        "input": str(folder.resolve()),
    }
    with writer_lock(output):
        _check_same(output / "extract.json", request, "features")
        gone = sorted(set(output.rglob("*.npy")) - {_features_file(output, name) for name in names})
        if gone:
            log.warning(f"features of {len(gone)} deleted recordings remain, first {gone[0]}; delete them if nothing needs them")
        todo = [name for name in names if _is_older(_features_file(output, name), folder / name)]
        jobs = [_Job(folder, name, model, output, chosen, dtype) for name in todo]
        return _run(jobs, len(names), workers, max_skip_rate)


def extract_units_of_folder(
    model: Path | None,
    folder: Path,
    output: Path,
    codebook: Path,
    *,
    merge: bool = False,
    workers: int = 1,
    max_skip_rate: float = 0.0,
) -> Extracted:
    """Writes `output/units.tsv`: for each recording its path in the folder, a tab, and one unit a frame (50 a second).

    `output/units.json` names the codebook. Called again, computes all units again. Other arguments and errors are those of
    `extract_features_of_folder`.

    Args:
        model: The model that the codebook was fitted on; None for a codebook of MFCC.
        output: Folder of the units, all of one codebook.
        codebook: Codebook folder; it names the layer.
        merge: Whether equal neighbours become one unit; a third column then has the frames of each.
    """
    book = Codebook.load(codebook)
    if model is None and book.features.get("name") == "layer":
        raise ValueError(f"{codebook} has units of a model's layer, but no model was given: add encoder=DIR")
    check_reproducible(book.features, codebook, model)
    names = _names(folder)
    request = {"format_version": 1, "codebook": book.hash, "merge": merge, "input": str(folder.resolve())}
    with writer_lock(output):
        _check_same(output / "units.json", request, "units")
        jobs = [_Job(folder, name, model, codebook=book) for name in names]
        result = _run(jobs, len(names), workers, max_skip_rate)
        with atomic_file(output / "units.tsv") as file:
            for name in names:
                if name in result.units:
                    # File names may be any bytes, which are written unchanged.
                    file.write(f"{name}\t{units_line(result.units[name], merge=merge)}\n".encode("utf-8", "surrogateescape"))
    return result


def units_line(units: np.ndarray, *, merge: bool) -> str:
    """Units (frames,) as text: numbers with spaces between; with `merge` each run once, a tab, and the runs' lengths."""
    if not merge:
        return " ".join(map(str, units.tolist()))
    first = np.flatnonzero(np.diff(units.astype(np.int64), prepend=-1))
    lengths = np.diff(first, append=len(units))
    return " ".join(map(str, units[first].tolist())) + "\t" + " ".join(map(str, lengths.tolist()))


def _names(folder: Path) -> list[str]:
    files = find_files(folder)
    names = [path.relative_to(folder).as_posix() for path in files.audio]
    if files.ignored:
        log.info(f"{sum(files.ignored.values())} other files are ignored: {counted(files.ignored)}")
    if not names:
        raise ValueError(f"input must be a folder with recordings, but {folder} has none: correct the path")
    return names


def _features_file(output: Path, name: str) -> Path:
    # The extension stays: a.wav and a.mp3 are two recordings.
    return output / f"{name}.npy"


def _is_older(made: Path, source: Path) -> bool:
    return not made.is_file() or made.stat().st_mtime_ns < source.stat().st_mtime_ns


def _check_same(path: Path, request: dict[str, Any], kind: str) -> None:
    found = read_sealed(path, remedy="delete the folder, or name another output") if path.exists() else None
    if found is None:
        write_json(path, request)
    elif found != request:
        other = ", ".join(sorted(key for key in found.keys() | request.keys() if found.get(key) != request.get(key)))
        raise ValueError(f"{path.parent} already holds other {kind} (by {other}): name another output, or delete it")


def _run(jobs: Sequence[_Job], files: int, workers: int, max_skip_rate: float) -> Extracted:
    skipped: dict[str, str] = {}
    units: dict[str, np.ndarray] = {}
    frames = 0
    for name, found in run_jobs(_extract, jobs, workers=workers, description="recordings"):
        if isinstance(found, str):
            skipped[name] = found
            log.warning(f"skipped {name}: {found}")
        elif isinstance(found, int):
            frames += found
        else:
            frames += len(found)
            units[name] = found
    if len(skipped) > max_skip_rate * files:
        raise ValueError(
            f"at most a share of {max_skip_rate:g} of the recordings may be unreadable, but {len(skipped)} of {files} are (named "
            "above; the others are done): convert or remove them, or raise max_skip_rate"
        )
    return Extracted(files - len(skipped), files - len(jobs), frames, dict(sorted(skipped.items())), units)


def _extract(job: _Job) -> tuple[str, np.ndarray | int | str]:
    """A recording's name, and its units, its number of frames in the written features, or the reason why it is unreadable."""
    try:
        samples = decode_or_stop(job.root / job.name).samples
    except AudioError as error:
        return job.name, str(error)
    with one_torch_thread():
        if job.codebook is None:
            return job.name, _write_features(job, samples)
        return job.name, assign_in_chunks([job.codebook], samples, job.model)[0]


def _write_features(job: _Job, samples: np.ndarray) -> int:
    """Writes the features of one recording and returns their number of frames."""
    assert job.model is not None and job.output is not None
    model = open_teacher(job.model).model
    frames, kind = num_frames(len(samples)), np.dtype(job.dtype).newbyteorder("<")
    with atomic_file(_features_file(job.output, job.name)) as file:
        header = {"descr": kind.str, "fortran_order": False, "shape": (len(job.layers), frames, model.config.dim)}
        np.lib.format.write_array_header_1_0(file, header)
        start_of_data, row = file.tell(), model.config.dim * kind.itemsize
        # Written part by part: an hour of all layers of Base is 7 GB.
        for first, states in layer_chunks(model, job.layers, samples):
            for place, state in enumerate(states):
                file.seek(start_of_data + (place * frames + first) * row)
                file.write(state.numpy().astype(kind).tobytes())
    return frames
