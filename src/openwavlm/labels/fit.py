"""Fits a codebook: sample of training utterances, features, k-means; in one process or several."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sklearn
import torch

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.labels.chunks import ChunkedFrames, chunk_frames, own_places, standardise
from openwavlm.labels.features import feature_settings
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.lloyd import check_passes, fit_lloyd_kmeans
from openwavlm.labels.minibatch import fit_minibatch_kmeans
from openwavlm.labels.sample import draw_sample, sampled_frames
from openwavlm.runtime.atomic import write_json
from openwavlm.runtime.collectives import Ranks
from openwavlm.runtime.devices import choose_device
from openwavlm.shards.index import Index
from openwavlm.shards.reader import check_shards
from openwavlm.shards.splits import settled_share

log = logging.getLogger(__name__)

ENGINES = ("lloyd", "minibatch")
# The 20 starts of fairseq's mini-batches are most of the cost of wide features; full passes need one.
_STARTS = {"lloyd": 1, "minibatch": 5}


def fit_codebook(
    shards: Sequence[Path],
    output: Path,
    *,
    features: str = "mfcc",
    teacher: Path | None = None,
    layer: int | None = None,
    feature_norm: str = "auto",
    clusters: int = 100,
    min_frames_per_cluster: int = 1000,
    sample_hours: float = 100.0,
    source_weights: Mapping[str, float] | None = None,
    max_frames: int = 5_000_000,
    max_memory_gib: float = 32.0,
    seed: int = 0,
    validation_share: float = 0.1,
    split_seed: int = 0,
    engine: str = "lloyd",
    n_init: int | None = None,
    iterations: int = 50,
    tolerance: float = 2e-3,
    device: str = "auto",
    workers: int = 1,
    max_skip_rate: float = 0.001,
) -> Codebook:
    """Fits a codebook on training speakers and writes it; returns an existing codebook of the same request.

    The sample depends on the audio and the seed only, not on keys, the order of shards or the number of workers. In a process group
    (`torchrun`) all processes draw the same sample, each computes and keeps its share of the frames, and rank 0 writes.

    Args:
        shards: Shard sets.
        output: Folder of the codebook.
        features: One of `features.FEATURES`; `layer` needs the next two.
        teacher: Checkpoint of any dialect; each process loads it.
        layer: Number of the layer.
        feature_norm: See `features.feature_settings`.
        clusters: Number of clusters K.
        min_frames_per_cluster: Sampled frames that each cluster must have on average; else K is lowered, with a warning.
        sample_hours: Hours of audio to sample, as whole utterances; all audio if there is less.
        source_weights: Source → factor on its share of these hours; the share is that of its audio by default.
        max_frames: Largest number of frames of all processes (4 bytes a dimension each); more are thinned evenly.
        max_memory_gib: Largest memory of the frames of one process; more is refused before anything is computed.
        seed: Seed of the sample and of k-means.
        validation_share: Share of speakers that is held out, as in training: at least one, and not all; recorded as
            `splits.settled_share`.
        split_seed: Seed of that split, as in training.
        engine: `lloyd` (full passes, `labels.lloyd`) or `minibatch` (scikit-learn, one process).
        n_init: Starts of k-means; by default 1 with `lloyd`, 5 with `minibatch`.
        iterations: With `lloyd`: largest number of passes.
        tolerance: With `lloyd`: share of the squared distance; the fit stops when a pass gains less.
        device: Device of a teacher and of `lloyd`: `cpu`, `cuda` or `auto`.
        workers: Processes that compute features on a CPU, for each process of torchrun.
        max_skip_rate: Largest share of utterances that may be unreadable.

    Raises:
        ValueError: If an argument is out of range; if the engine, the device, the features or their teacher do not exist; if the folder
            has another codebook; if a shard set is damaged; if no training speaker is left, or there are fewer than two speakers for a
            share above 0; if the frames are too few or take too much memory; if too many utterances are unreadable.
    """
    ranks = Ranks.current()
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, but is {engine!r}")
    if engine == "minibatch" and ranks.size > 1:
        raise ValueError(f"engine=minibatch runs in one process, but {ranks.size} were started: start one, or use engine=lloyd")
    where = choose_device(device)
    settings = ranks.together(lambda: feature_settings(features, teacher=teacher, layer=layer, feature_norm=feature_norm))
    if not sample_hours > 0 or max_frames < 1 or not max_memory_gib > 0:
        raise ValueError(
            f"sample_hours, max_frames and max_memory_gib must be positive, but are {sample_hours}, {max_frames}, {max_memory_gib}"
        )
    starts = _STARTS[engine] if n_init is None else n_init
    check_passes(starts, iterations, tolerance)
    indexes = ranks.together(lambda: [Index.open(path) for path in shards])
    share = ranks.together(lambda: settled_share(indexes, share=validation_share, split_seed=split_seed, key="validation_share"))
    split: dict[str, Any] = {"validation_share": share, "split_seed": split_seed}
    request = split | {
        "indexes": sorted(index.fingerprint for index in indexes),
        "sample_hours": sample_hours,
        "max_frames": max_frames,
        "source_weights": dict(sorted((source_weights or {}).items())),
        "clusters_wanted": clusters,
        "min_frames_per_cluster": min_frames_per_cluster,
    }
    options: dict[str, Any] = {"seed": seed, "n_init": starts}
    options |= {"iterations": iterations, "tolerance": tolerance} if engine == "lloyd" else {}
    content = json.dumps({"request": request, "features": settings, "method": {"engine": engine, **options}}, sort_keys=True)
    key = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    metadata = {index.fingerprint: index.metadata for index in indexes}
    if any(ranks.gather((output / "meta.json").is_file())):
        return ranks.together(lambda: _finished(output, key, metadata))
    ranks.together(lambda: list(map(check_shards, indexes)))
    sample = draw_sample(indexes, sample_hours=sample_hours, seed=seed, source_weights=source_weights, **split)
    places = min(sample.frames, max_frames)
    fitted_clusters = affordable_clusters(places, clusters, min_frames_per_cluster)
    clustered_on = where if engine == "lloyd" else torch.device("cpu")
    chunk = chunk_frames(fitted_clusters, clustered_on)
    _check_memory(places, settings["dim"], chunk, max_memory_gib, ranks)
    frames, unreadable = sampled_frames(
        indexes, sample, settings, teacher, places, chunk, workers=workers, device=where, clustered_on=clustered_on, ranks=ranks
    )
    check_skip_rate(unreadable, len(sample), max_skip_rate)
    codebook = _fit(frames, fitted_clusters, engine, options, standardised=settings.get("feature_norm") == "standardise")
    seconds = round(float(sample.num_samples.sum()) / SAMPLE_RATE_HZ, 3)
    fitted = codebook.fitted | request | {"utterances": len(sample), "unreadable_utterances": unreadable, "seconds": seconds}
    fitted |= {"hours_by_source": sample.hours, "request": key, "metadata": metadata}
    codebook = replace(codebook, features=settings, fitted=fitted)
    ranks.together(lambda: _write(codebook, output) if ranks.rank == 0 else None)
    log.info(
        f"{len(codebook)} clusters from {frames.count} frames of {len(sample)} utterances ({seconds / 3600:.2f} h): "
        f"{fitted['used_clusters']} in use, perplexity {fitted['perplexity']:.1f}, mean squared distance "
        f"{fitted['mean_squared_distance']:.5g} -> {output}"
    )
    return codebook


def affordable_clusters(frames: int, clusters: int, min_frames_per_cluster: int) -> int:
    """Lowers the number of clusters, with a warning, until each has `min_frames_per_cluster` frames on average.

    Raises:
        ValueError: If a number is not positive; if the frames are too few for one cluster.
    """
    if clusters < 1 or min_frames_per_cluster < 1:
        raise ValueError(f"clusters and min_frames_per_cluster must be positive, but are {clusters} and {min_frames_per_cluster}")
    enough = frames // min_frames_per_cluster
    if not enough:
        raise ValueError(
            f"k-means needs {min_frames_per_cluster} frames a cluster (min_frames_per_cluster), but the sample has {frames} in all: "
            "give more audio, or lower min_frames_per_cluster"
        )
    if enough < clusters:
        log.warning(
            f"{frames} frames are {frames / clusters:.1f} a cluster, but min_frames_per_cluster={min_frames_per_cluster}: K is lowered "
            f"from {clusters} to {enough}; to keep {clusters}, give more audio (sample_hours, max_frames) or lower "
            "min_frames_per_cluster"
        )
    return min(clusters, enough)


def _check_memory(places: int, dim: int, chunk: int, max_memory_gib: float, ranks: Ranks) -> None:
    shares = [own_places(places, chunk, Ranks(rank, ranks.size)) for rank in range(ranks.size)]
    gib = max(stop - first for first, stop in shares) * dim * 4 / 2**30
    if gib > max_memory_gib:
        enough = int(max_memory_gib * 2**30 / (4 * dim)) * ranks.size
        raise ValueError(
            f"the frames may take max_memory_gib={max_memory_gib:g} of each process, but {places} frames of {dim} numbers over "
            f"{ranks.size} processes take {gib:.2f}: set max_frames to at most {enough}, start more processes, or raise max_memory_gib"
        )
    log.info(f"{places} frames of {dim} numbers are kept: {gib:.2f} GiB" + (" a process" if ranks.size > 1 else ""))


def _fit(frames: ChunkedFrames, clusters: int, engine: str, options: dict[str, Any], *, standardised: bool) -> Codebook:
    norm = standardise(frames) if standardised else None
    if engine == "lloyd":
        codebook = fit_lloyd_kmeans(frames, clusters, **options)
        program = {"device": frames.device.type, "torch": torch.__version__}
    else:
        held = (frames.features if frames.filled is None else frames.features[frames.filled]).numpy()
        codebook = fit_minibatch_kmeans(held, clusters, **options)
        program = {"engine": "minibatch", "scikit_learn": sklearn.__version__}
    return replace(codebook, norm=norm, fitted=codebook.fitted | program)


def _write(codebook: Codebook, output: Path) -> None:
    stats = {"command": "fit_kmeans", "hash": codebook.hash, "num_classes": len(codebook)}
    write_json(output / "stats.json", stats | codebook.fitted)
    codebook.save(output)


def _finished(output: Path, key: str, metadata: dict[str, str]) -> Codebook:
    codebook = Codebook.load(output)
    if codebook.fitted.get("request") != key:
        raise ValueError(
            f"a codebook is written once, but {output} already has one of another request (other audio, features, teacher, "
            "clusters, seeds or engine, or an older OpenWavLM's): name another output or delete that folder"
        )
    if codebook.fitted.get("metadata", metadata) != metadata:
        raise ValueError(
            f"the codebook in {output} was fitted before the speakers, recordings, sources or languages of the shards changed: name "
            "another output or delete that folder"
        )
    log.info(f"{output} already has this codebook")
    return codebook


def check_skip_rate(unreadable: int, rows: int, max_skip_rate: float) -> None:
    """Raises `ValueError` if more than the share `max_skip_rate` of the rows is unreadable."""
    if unreadable > max_skip_rate * rows:
        raise ValueError(
            f"at most a share of {max_skip_rate:g} of the utterances may be unreadable, but {unreadable} of {rows} are: repair the "
            "shards, or raise max_skip_rate"
        )
