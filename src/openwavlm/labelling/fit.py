"""Fitting a codebook: a sample of training utterances, chosen by hash, to features, to k-means."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn

from openwavlm.data.atomic import write_json
from openwavlm.data.index import Index
from openwavlm.data.pool import run_jobs
from openwavlm.data.reader import ShardReader, UnreadableAudio, check_shards
from openwavlm.data.splits import validation_rows
from openwavlm.frames import SAMPLE_RATE_HZ, num_frames
from openwavlm.labelling.extract import extract_features, feature_settings
from openwavlm.targets.kmeans import Codebook, fit_minibatch_kmeans, one_torch_thread, standardise

log = logging.getLogger(__name__)

# A layer costs a hundred times what MFCC cost, and its frames are wider.
_UTTERANCES_A_TASK = {"mfcc": 256, "layer": 32}
_SAMPLES_AN_HOUR = 3600 * SAMPLE_RATE_HZ


def fit_codebook(
    shards: Sequence[Path],
    output: Path,
    *,
    features: str = "mfcc",
    teacher: Path | None = None,
    layer: int | None = None,
    feature_norm: str = "auto",
    clusters: int = 100,
    sample_hours: float = 100.0,
    max_frames: int = 5_000_000,
    seed: int = 0,
    validation_share: float = 0.1,
    split_seed: int = 0,
    n_init: int = 5,
    workers: int = 1,
    max_skip_rate: float = 0.001,
) -> Codebook:
    """Fits a codebook on training speakers and writes it; a codebook that is there already, of the same request, is returned.

    The sample is a function of the audio and the seed: neither the order of shards nor the keys nor the number of workers enter.

    Args:
        shards: Shard-set directories.
        output: Folder of the codebook.
        features: Which features (`extract.FEATURES`).
        teacher: With `features="layer"`: the model, a Hugging Face directory; each process loads it.
        layer: With `features="layer"`: which one.
        feature_norm: With `features="layer"`: `auto`, `standardise` or `none`, as in `extract.feature_settings`.
        clusters: Number of clusters K.
        sample_hours: Hours of audio that are sampled (whole utterances); less if there is less.
        max_frames: Bound of the frames in memory (4 bytes a dimension each); beyond it they are thinned out evenly.
        seed: Seed of the sample and of k-means.
        validation_share: Share of speakers that is held out, as in training.
        split_seed: Seed of that split, as in training.
        n_init: Starts of k-means.
        workers: Processes.
        max_skip_rate: Largest share of utterances that may be unreadable.

    Raises:
        ValueError: If the features or their teacher do not exist, the folder has another codebook, a shard set is damaged, no
            training speaker is left, too many utterances are unreadable, or there are too few frames.
    """
    settings = feature_settings(features, teacher=teacher, layer=layer, feature_norm=feature_norm)
    if not sample_hours > 0 or max_frames < 1:
        raise ValueError(f"sample_hours and max_frames must be positive, but are {sample_hours} and {max_frames}")
    indexes = [Index.open(path) for path in shards]
    request = {
        "indexes": sorted(index.fingerprint for index in indexes),
        "sample_hours": sample_hours,
        "max_frames": max_frames,
        "validation_share": validation_share,
        "split_seed": split_seed,
    }
    key = _hash({"request": request, "features": settings, "clusters": clusters, "seed": seed, "n_init": n_init})
    if (output / "meta.json").is_file():
        return _finished(output, key)
    for index in indexes:
        check_shards(index)
    sample = draw_sample(indexes, sample_hours=sample_hours, seed=seed, validation_share=validation_share, split_seed=split_seed)
    frames, unreadable = _features_of(indexes, sample, settings, teacher, max_frames=max_frames, workers=workers)
    check_skip_rate(unreadable, len(sample), max_skip_rate)
    norm = standardise(frames) if settings.get("feature_norm") == "standardise" else None
    codebook = fit_minibatch_kmeans(frames, clusters, seed, n_init=n_init)
    seconds = round(float(sample.num_samples.sum()) / SAMPLE_RATE_HZ, 3)
    fitted = codebook.fitted | request | {"utterances": len(sample), "unreadable_utterances": unreadable, "seconds": seconds}
    fitted |= {"request": key, "scikit_learn": sklearn.__version__}
    codebook = Codebook(codebook.centroids, settings, fitted, norm)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "stats.json", {"command": "fit_kmeans", "hash": codebook.hash, "num_classes": len(codebook)} | fitted)
    codebook.save(output)
    log.info(
        f"{len(codebook)} clusters from {len(frames)} frames of {len(sample)} utterances ({seconds / 3600:.2f} h): "
        f"{fitted['used_clusters']} in use, perplexity {fitted['perplexity']:.1f} -> {output}"
    )
    return codebook


def _finished(output: Path, key: str) -> Codebook:
    codebook = Codebook.load(output)
    if codebook.fitted.get("request") != key:
        raise ValueError(
            f"a codebook is written once, but {output} already has one of another request (other audio, features, teacher, "
            "clusters or seeds): name another output or delete that folder"
        )
    log.info(f"{output} already has this codebook")
    return codebook


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def check_skip_rate(unreadable: int, rows: int, max_skip_rate: float) -> None:
    """Refuses a set of which too much could not be read.

    Raises:
        ValueError: If `unreadable` of `rows` are more than the share `max_skip_rate`.
    """
    if unreadable > max_skip_rate * rows:
        raise ValueError(
            f"at most a share of {max_skip_rate:g} of the utterances may be unreadable, but {unreadable} of {rows} are: repair the "
            "shards, or raise max_skip_rate if that loss is acceptable"
        )


@dataclass(frozen=True)
class Sample:
    """Sampled utterances in the order of their hashes.

    Attributes:
        source: int64 (utterances,), which index.
        row: int64 (utterances,), row of that index.
        num_samples: int64 (utterances,), audio samples.
    """

    source: np.ndarray
    row: np.ndarray
    num_samples: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


def keyed_hash(pcm: np.ndarray, seed: int) -> np.ndarray:
    """Hashes audio identities with a seed, element by element: the finaliser of SplitMix64 (Steele et al. 2014); uint64."""
    mixed = pcm.astype(np.uint64) ^ np.random.Philox(key=seed).random_raw(1)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def draw_sample(indexes: Sequence[Index], *, sample_hours: float, seed: int, validation_share: float, split_seed: int) -> Sample:
    """Chooses training utterances by the hash of their audio until `sample_hours` are reached.

    Raises:
        ValueError: If no row belongs to a training speaker.
    """
    parts = []
    for number, index in enumerate(indexes):
        training = ~validation_rows(index, share=validation_share, split_seed=split_seed)
        rows = np.flatnonzero(training & (num_frames(np.asarray(index.num_samples[:], dtype=np.int64)) > 0))
        parts.append((np.full(len(rows), number), rows, np.asarray(index.num_samples[rows], np.int64), index.pcm[rows]))
    source, row, num_samples, pcm = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if not len(row):
        raise ValueError(
            f"a codebook is fitted on training speakers, but validation_share={validation_share:g} leaves no utterance of "
            f"{', '.join(str(index.path) for index in indexes)}: lower it or give more audio"
        )
    order = np.lexsort((pcm, keyed_hash(pcm, seed)))
    before = np.cumsum(num_samples[order]) - num_samples[order]
    chosen = order[before < sample_hours * _SAMPLES_AN_HOUR]
    return Sample(source[chosen], row[chosen], num_samples[chosen])


@dataclass(frozen=True)
class _Block:
    """Neighbouring utterances of the sample, and where their frames stand in the stream of all sampled frames."""

    indexes: tuple[Path, ...]
    sample: Sample
    settings: dict[str, Any]
    teacher: Path | None
    first_frame: int
    total_frames: int
    max_frames: int


def _features_of(
    indexes: Sequence[Index],
    sample: Sample,
    settings: dict[str, Any],
    teacher: Path | None,
    *,
    max_frames: int,
    workers: int,
) -> tuple[np.ndarray, int]:
    frames = num_frames(sample.num_samples)
    before = np.cumsum(frames) - frames
    blocks = []
    step = _UTTERANCES_A_TASK[settings["name"]]
    for start in range(0, len(sample), step):
        rows = slice(start, start + step)
        part = Sample(sample.source[rows], sample.row[rows], sample.num_samples[rows])
        paths = tuple(index.path for index in indexes)
        blocks.append(_Block(paths, part, settings, teacher, int(before[start]), int(frames.sum()), max_frames))
    total = int(frames.sum())
    features = np.empty((min(total, max_frames), settings["dim"]), dtype=np.float32)
    filled, unreadable = np.zeros(len(features), dtype=bool), 0
    for place, part_features, part_unreadable in run_jobs(_block_features, blocks, workers=workers, description="features"):
        features[place : place + len(part_features)] = part_features
        filled[place : place + len(part_features)] = True
        unreadable += part_unreadable
    return features if filled.all() else features[filled], unreadable


def thinned_places(first: int, count: int, *, total: int, keep: int) -> np.ndarray:
    """Where frames [first, first + count] of a stream of `total` stand once it is thinned out evenly to `keep` frames.

    Returns:
        int64 (count + 1,); frame i stays if the next entry is larger.
    """
    return np.arange(first, first + count + 1, dtype=np.int64) * min(keep, total) // total


def _block_features(block: _Block) -> tuple[int, np.ndarray, int]:
    """Place of a block among the kept frames, its features (frames, dim), and how many of its utterances could not be read."""
    readers = [ShardReader(path) for path in block.indexes]
    kept: list[np.ndarray] = [np.zeros((0, block.settings["dim"]), dtype=np.float32)]
    frame, unreadable = block.first_frame, 0
    for source, row, num_samples in zip(block.sample.source, block.sample.row, block.sample.num_samples, strict=True):
        count = num_frames(int(num_samples))
        stays = np.diff(thinned_places(frame, count, total=block.total_frames, keep=block.max_frames)) > 0
        frame += count
        if not stays.any():
            continue
        try:
            waveform = readers[source].read(int(row))
        except UnreadableAudio as error:
            log.warning(f"skipped: {error}")
            unreadable += 1
            continue
        with one_torch_thread():
            kept.append(extract_features(block.settings, waveform, block.teacher).numpy()[stays])
    place = int(thinned_places(block.first_frame, 0, total=block.total_frames, keep=block.max_frames)[0])
    return place, np.concatenate(kept), unreadable
