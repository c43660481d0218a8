"""Imports a published codebook: scikit-learn's pickle (`km500.bin`) or an array of centroids, and the settings of its features."""

import logging
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openwavlm.labels.features import feature_settings
from openwavlm.labels.kmeans import Codebook
from openwavlm.runtime.atomic import sha256_of, writer_lock
from openwavlm.runtime.resources import check_of_the_file

log = logging.getLogger(__name__)


def import_codebook(
    file: Path,
    output: Path,
    *,
    trust: bool = False,
    features: str = "layer",
    teacher: Path | None = None,
    layer: int | None = None,
) -> Codebook:
    """Writes a codebook folder with the centroids of a file.

    Args:
        file: `.npy` with float (clusters, dim), or a joblib pickle of a fitted `KMeans` or `MiniBatchKMeans`.
        output: Codebook folder; one with the same codebook is not changed.
        trust: Whether code in a pickle may run; joblib cannot read a pickle without running it.
        features: `layer` of a teacher, without a feature norm (published codebooks have none), or `mfcc`.
        teacher: With `layer`: the model.
        layer: With `layer`: its number, after its residual; 0 is the encoder's input.

    Raises:
        ValueError: If the file is neither an array nor trusted, or holds no centroids of these features; if the features are wrong
            (`feature_settings`); if the output holds another codebook.
    """
    centroids = _centroids(file, trust=trust)
    if centroids.dtype.kind != "f":
        raise ValueError(
            f"centroids must be floating-point numbers, but those of {file} are {centroids.dtype}: save the array of centroids"
        )
    with np.errstate(over="ignore"):
        centroids = np.ascontiguousarray(centroids, dtype=np.float32)
    settings = feature_settings(features, teacher=teacher, layer=layer, feature_norm="auto" if features == "mfcc" else "none")
    if not np.isfinite(centroids).all():
        raise ValueError(f"centroids must be finite in float32, but some of {file} are not: fit the codebook again")
    if centroids.ndim != 2 or centroids.shape[1] != settings["dim"]:
        raise ValueError(
            f"centroids must be of the shape (clusters, {settings['dim']}) for these features, but those of {file} are "
            f"{centroids.shape}: give the teacher and layer that they were fitted on"
        )
    book = Codebook(torch.from_numpy(centroids), settings, {"imported": {"file": file.name, "sha256": sha256_of(file)}})
    with writer_lock(output):
        if (output / "meta.json").is_file():
            there = Codebook.load(output)
            if there.hash != book.hash or there.features != book.features:
                raise ValueError(f"{output} holds another codebook already: name another output, or delete it")
            return there
        book.save(output)
    log.info("%d clusters of %d dimensions -> %s", len(book), centroids.shape[1], output)
    return book


def _centroids(file: Path, *, trust: bool) -> np.ndarray:
    if not file.is_file():
        raise ValueError(f"the codebook {file} does not exist (key input)")
    if file.suffix == ".npy":
        try:
            return np.load(file, allow_pickle=False)
        except Exception as error:  # numpy evaluates the header as Python, which raises many types of errors
            check_of_the_file(error, file)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{file} must be an array of centroids, but cannot be read ({reason}): save it again") from error
    if zipfile.is_zipfile(file):  # numpy's .npz and torch's .pt
        raise ValueError(f"{file} is an archive, not an array or a joblib file: save the centroids alone by numpy.save")
    if not trust:
        raise ValueError(
            f"{file} is a pickle, which can run any code when it is read, so it is read only with trust=true. Or convert it where it may "
            "run, and give the .npy: python -c \"import joblib, numpy; numpy.save('centroids.npy', joblib.load('FILE').cluster_centers_)\""
        )
    return _fitted_centroids(file)


def _fitted_centroids(file: Path) -> np.ndarray:
    import joblib  # type: ignore[import-untyped]

    try:
        with warnings.catch_warnings():
            # scikit-learn warns about estimators of other versions; their centroids are arrays all the same.
            warnings.simplefilter("ignore")
            model: Any = joblib.load(file)
    except Exception as error:  # code in a pickle can raise anything
        check_of_the_file(error, file)
        raise ValueError(
            f"{file} must be a joblib file, but cannot be read ({type(error).__name__}: {error}): fetch it again"
        ) from error
    centroids = getattr(model, "cluster_centers_", model)
    if not isinstance(centroids, np.ndarray):
        raise ValueError(f"{file} must hold a fitted k-means, but holds {type(model).__name__}: give the file of the codebook")
    return centroids
