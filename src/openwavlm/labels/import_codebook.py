"""A published codebook as ours: scikit-learn's pickle (`km500.bin`) or an array of centroids, bound to the features it belongs to."""

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
        output: Codebook folder; one that holds the same codebook already is left as it is.
        trust: Whether code in a pickle may run; joblib cannot read one without running it.
        features: `layer` of a teacher, as they are (published codebooks have no feature norm), or `mfcc`.
        teacher: With `layer`: the model.
        layer: With `layer`: which one, after its residual; 0 is the encoder's input.

    Returns:
        The codebook.

    Raises:
        ValueError: If the file is no array and not trusted, or holds no centroids; as `feature_settings` does; if the centroids have
            another number of dimensions than the features; if the output holds another codebook.
    """
    centroids = _centroids(file, trust=trust)
    if centroids.dtype.kind != "f":
        raise ValueError(
            f"centroids must be floating-point numbers, but those of {file} are {centroids.dtype}: save the array of centroids"
        )
    with np.errstate(over="ignore"):
        centroids = np.ascontiguousarray(centroids, dtype=np.float32)
    if features == "mfcc":
        settings = feature_settings(features, teacher=teacher, layer=layer)
    else:
        settings = feature_settings(features, teacher=teacher, layer=layer, feature_norm="none")
    if not np.isfinite(centroids).all():
        raise ValueError(f"centroids must be finite in float32, but some of {file} are not: fit the codebook again")
    if centroids.ndim != 2 or centroids.shape[1] != settings["dim"]:
        raise ValueError(
            f"centroids must be of the shape (clusters, {settings['dim']}) for these features, but those of {file} are "
            f"{centroids.shape}: give the teacher and layer that they were fitted on"
        )
    imported = {"file": file.name, "sha256": sha256_of(file)}
    book = Codebook(torch.from_numpy(centroids), settings, {"imported": imported})
    with writer_lock(output):
        if (output / "meta.json").is_file():
            there = Codebook.load(output)
            if there.hash != book.hash or there.features != book.features:
                raise ValueError(
                    f"one folder holds one codebook, but {output} already has another: name another output or delete it"
                )
            return there
        book.save(output)
    log.info("%d clusters of %d dimensions -> %s", len(book), centroids.shape[1], output)
    return book


def _centroids(file: Path, *, trust: bool) -> np.ndarray:
    if not file.is_file():
        raise ValueError(f"the codebook {file} does not exist: correct input")
    if file.suffix == ".npy":
        try:
            return np.load(file, allow_pickle=False)
        except Exception as error:  # numpy reads the header as Python, which fails in many ways
            check_of_the_file(error, file)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{file} must be an array of centroids, but cannot be read ({reason}): save it again") from error
    if zipfile.is_zipfile(file):  # numpy's .npz and torch's .pt
        raise ValueError(
            f"{file} is an archive, and no array or joblib file: save the centroids alone by numpy.save, and give the .npy"
        )
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
            # An estimator of another version of scikit-learn: its centroids are an array all the same.
            warnings.simplefilter("ignore")
            model: Any = joblib.load(file)
    except Exception as error:  # whatever the code in a pickle raises
        check_of_the_file(error, file)
        raise ValueError(
            f"{file} must be a joblib file, but cannot be read ({type(error).__name__}: {error}): fetch it again"
        ) from error
    centroids = getattr(model, "cluster_centers_", model)
    if not isinstance(centroids, np.ndarray):
        raise ValueError(f"{file} must hold a fitted k-means, but holds {type(model).__name__}: give the file of the codebook")
    return centroids
