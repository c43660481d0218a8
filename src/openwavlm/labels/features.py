"""Features for k-means: MFCC, or a layer of a model (the teacher)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openwavlm.audio.mfcc import MFCC_SETTINGS, mfcc_features
from openwavlm.labels.kmeans import CHUNK_FRAMES, IMPORTED, Codebook
from openwavlm.labels.teacher import CHUNK_SECONDS, Teacher, layer_chunks, open_teacher
from openwavlm.model.wavlm import WavLM

FEATURES = ("mfcc", "layer")
FEATURE_NORMS = ("auto", "standardise", "none")


def feature_settings(
    features: str, *, teacher: Path | None = None, layer: int | None = None, feature_norm: str = "auto"
) -> dict[str, Any]:
    """Settings that determine the values of features; part of the `meta.json` of codebooks and labellings.

    Args:
        features: `mfcc`, or `layer`, which needs the other arguments.
        teacher: Checkpoint of any dialect.
        layer: Number of the layer; 0 is the encoder's input, the stream before the first layer.
        feature_norm: `standardise` (each dimension to mean 0 and deviation 1 over the fitting sample), `none`, or `auto`: `standardise`
            for pre-norm models, in which few dimensions dominate, `none` for the others.

    Raises:
        ValueError: If an argument is missing, superfluous or wrong, or the teacher cannot be loaded.
    """
    if features not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, but is {features!r}")
    if features == "mfcc":
        if teacher is not None or layer is not None or feature_norm != "auto":
            raise ValueError("teacher, layer and feature_norm belong to features=layer, but features is mfcc: leave them out")
        return dict(MFCC_SETTINGS)
    if teacher is None or layer is None:
        raise ValueError("features=layer needs teacher (a folder that export wrote) and layer: add teacher=DIR layer=NUMBER")
    if feature_norm not in FEATURE_NORMS:
        raise ValueError(f"feature_norm must be one of {', '.join(FEATURE_NORMS)}, but is {feature_norm!r}")
    opened = open_teacher(teacher)
    layers = opened.model.config.layers
    if not 0 <= layer <= layers:
        raise ValueError(f"layer must lie in 0…{layers} for {teacher} (0 is the encoder's input), but is {layer}")
    if feature_norm == "auto":
        feature_norm = "standardise" if opened.model.config.pre_norm else "none"
    return _layer_settings(opened, layer, feature_norm)


def _layer_settings(teacher: Teacher, layer: int, feature_norm: str) -> dict[str, Any]:
    return {
        "name": "layer",
        "dim": teacher.model.config.dim,
        "teacher": teacher.hash,
        "layer": layer,
        "residual": "after",
        "feature_norm": feature_norm,
        "waveform_scale": "[-1, 1)",
        "max_chunk_seconds": CHUNK_SECONDS,
    }


def extract_feature_chunks(
    settings: Sequence[dict[str, Any]], waveform: np.ndarray, teacher: Path | None = None, *, device: str = "cpu"
) -> Iterator[tuple[int, list[Tensor]]]:
    """Features of one utterance in pieces of `CHUNK_FRAMES` frames: twelve hours of one layer of Base are 6.6 GB.

    Features are not yet standardised: a `feature_norm` belongs to the codebook. All layers come from one pass through the teacher.

    Args:
        settings: One result of `feature_settings` for each kind of features; all layers are of one teacher.
        waveform: int16 (samples,) at 16 kHz.
        teacher: Model of layer features.
        device: Device of the teacher.

    Yields:
        First frame of the piece, and float32 (frames, dim) on the CPU for each kind; one empty piece if there is no frame.

    Raises:
        ValueError: If the teacher is missing, cannot be loaded or is another model.
    """
    assert all(each["name"] in FEATURES for each in settings)
    of_layers = [each for each in settings if each["name"] == "layer"]
    layers = sorted({int(each["layer"]) for each in of_layers})
    mfcc = mfcc_features(waveform) if len(of_layers) < len(settings) else None
    if not of_layers:
        assert mfcc is not None
        for first in range(0, max(1, len(mfcc)), CHUNK_FRAMES):
            yield first, [mfcc[first : first + CHUNK_FRAMES]] * len(settings)
        return
    assert len({other["teacher"] for other in of_layers}) == 1
    model = _bound_teacher(of_layers[0], "the labels", teacher).model.to(device)
    first = 0
    for pieces in _rechunked(model, layers, waveform):
        states = dict(zip(layers, pieces, strict=True))
        last = first + len(pieces[0])
        yield first, [states[int(each["layer"])] if each["name"] == "layer" else mfcc[first:last] for each in settings]  # type: ignore[index]
        first = last


def _rechunked(model: WavLM, layers: Sequence[int], waveform: np.ndarray) -> Iterator[list[Tensor]]:
    """Features of each layer, float32 (`CHUNK_FRAMES`, dim) on the CPU; fewer frames at the end."""
    held: list[list[Tensor]] = [[torch.zeros(0, model.config.dim)] for _ in layers]
    frames = taken = 0
    for _, states in layer_chunks(model, layers, waveform):
        frames += len(states[0])
        for parts, state in zip(held, states, strict=True):
            parts.append(state.cpu())
        while frames - taken >= CHUNK_FRAMES:
            whole = [torch.cat(parts) for parts in held]
            yield [of_layer[:CHUNK_FRAMES] for of_layer in whole]
            held = [[of_layer[CHUNK_FRAMES:].clone()] for of_layer in whole]
            taken += CHUNK_FRAMES
    if frames > taken or frames == 0:
        yield [torch.cat(parts) for parts in held]


def assign_in_chunks(
    books: Sequence[Codebook], waveform: np.ndarray, teacher: Path | None = None, *, device: str = "cpu"
) -> list[np.ndarray]:
    """Nearest centroids of one utterance in each codebook, uint16 (frames,); equal to `Codebook.assign` of all its features.

    Arguments and errors are those of `extract_feature_chunks` and `Codebook.assign`.
    """
    chunks = extract_feature_chunks([book.features for book in books], waveform, teacher, device=device)
    labels = [[book.assign(part) for book, part in zip(books, parts, strict=True)] for _, parts in chunks]
    return [np.concatenate(of_book) for of_book in zip(*labels, strict=True)]


def _bound_teacher(settings: dict[str, Any], origin: object, path: Path | None) -> Teacher:
    """Opens the teacher that `settings` name; refuses another one."""
    wanted = str(settings.get("teacher"))
    if path is None:
        raise ValueError(
            f"the features of {origin} are layer {settings.get('layer')} of the model {wanted[:12]}, but no teacher was given: add "
            "teacher=DIR, the folder of that model"
        )
    teacher = open_teacher(path)
    if teacher.hash != wanted:
        raise ValueError(
            f"the features of {origin} must come from the model {wanted[:12]}, but {path} holds the model {teacher.hash[:12]}: give "
            "the model that the codebook was fitted on"
        )
    return teacher


def check_reproducible(settings: dict[str, Any], origin: object, teacher: Path | None = None) -> None:
    """Refuses settings in the `meta.json` of a codebook or labelling, the `origin`, for which this version computes other features.

    Raises:
        ValueError: If a teacher is missing, superfluous or another model; if `settings` differ from those of this version.
    """
    name = str(settings.get("name"))
    if name == "layer":
        layer = settings.get("layer")
        layer, feature_norm = layer if type(layer) is int else -1, str(settings.get("feature_norm"))
        here = _layer_settings(_bound_teacher(settings, origin, teacher), layer, feature_norm)
    elif name == IMPORTED:
        raise ValueError(
            f"the labels of {origin} were imported without their codebook, so they cannot be computed again: import it with "
            "openwavlm import-codebook and the labels with codebook=DIR"
        )
    elif teacher is not None:
        raise ValueError(f"the features of {origin} are {name} and need no teacher, but {teacher} was given: leave teacher out")
    else:
        here = feature_settings(name)
    if here != settings:
        other = sorted(key for key in here.keys() | settings.keys() if here.get(key) != settings.get(key))
        raise ValueError(
            f"the features of {origin} must be those that this OpenWavLM computes as {name}, but differ in {', '.join(other)}: fit the "
            "codebook again, or use the version that fitted it"
        )
