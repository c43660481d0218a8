"""Which features can be clustered, by name: MFCC, or a layer of a model (the teacher)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openwavlm.audio.mfcc import MFCC_SETTINGS, mfcc_features
from openwavlm.labels.kmeans import CHUNK_FRAMES, Codebook
from openwavlm.labels.teacher import CHUNK_SECONDS, Teacher, layer_chunks, open_teacher
from openwavlm.labels.unknown_codebook import IMPORTED
from openwavlm.model.wavlm import WavLM

FEATURES = ("mfcc", "layer")
FEATURE_NORMS = ("auto", "standardise", "none")


def feature_settings(
    features: str, *, teacher: Path | None = None, layer: int | None = None, feature_norm: str = "auto"
) -> dict[str, Any]:
    """Everything that the values of these features depend on; part of a codebook's and a labelling's `meta.json`.

    Args:
        features: One of `FEATURES`.
        teacher: With `layer`: the model, a checkpoint of any dialect.
        layer: With `layer`: which one; 0 is the encoder's input, the stream before the first layer.
        feature_norm: With `layer`: `standardise` (each dimension to mean 0 and deviation 1 over the fitting sample), `none`, or
            `auto`: the first for pre-norm models, whose raw streams a few dimensions rule, the second for the others.

    Raises:
        ValueError: If there are no features of that name; if `teacher`, `layer` or `feature_norm` are missing, superfluous or
            wrong; if the teacher cannot be loaded.
    """
    if features not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, but is {features!r}: correct the name")
    if features == "mfcc":
        if teacher is not None or layer is not None or feature_norm != "auto":
            raise ValueError(
                "teacher, layer and feature_norm belong to features=layer, but features is mfcc: leave them out, or set "
                "features=layer"
            )
        return dict(MFCC_SETTINGS)
    if teacher is None or layer is None:
        raise ValueError("features=layer needs teacher (a folder that export wrote) and layer: add teacher=DIR layer=NUMBER")
    if feature_norm not in FEATURE_NORMS:
        raise ValueError(f"feature_norm must be one of {', '.join(FEATURE_NORMS)}, but is {feature_norm!r}: correct the name")
    opened = open_teacher(teacher)
    layers = opened.model.config.layers
    if not 0 <= layer <= layers:
        raise ValueError(f"layer must lie in 0…{layers} for {teacher} (0 is the encoder's input), but is {layer}: choose one")
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


def extract_features(
    settings: dict[str, Any], waveform: np.ndarray, teacher: Path | None = None, *, device: str = "cpu"
) -> Tensor:
    """Features of one utterance before any `feature_norm`, which belongs to the codebook.

    Args:
        settings: As of `feature_settings`.
        waveform: int16 (samples,) at 16 kHz.
        teacher: The model of layer features, which must be the one that `settings` name.
        device: Where the teacher runs.

    Returns:
        float32 (frames, dim) on the CPU, one row a model frame.

    Raises:
        ValueError: If the teacher is missing, cannot be loaded or is another model.
    """
    return extract_feature_sets([settings], waveform, teacher, device=device)[0]


def extract_feature_sets(
    settings: Sequence[dict[str, Any]], waveform: np.ndarray, teacher: Path | None = None, *, device: str = "cpu"
) -> list[Tensor]:
    """Several kinds of features of one utterance; the layers of the teacher come out of one pass through it.

    Args:
        settings: As of `feature_settings`, one a kind; all layers are of one teacher.
        waveform: int16 (samples,) at 16 kHz.
        teacher: The model of layer features.
        device: Where the teacher runs.

    Returns:
        float32 (frames, dim) each, on the CPU; each equal to what it would be alone.

    Raises:
        ValueError: As `extract_features` does.
    """
    chunks = [chunk for _, chunk in extract_feature_chunks(settings, waveform, teacher, device=device)]
    return [torch.cat(of_kind) if len(of_kind) > 1 else of_kind[0] for of_kind in zip(*chunks, strict=True)]


def extract_feature_chunks(
    settings: Sequence[dict[str, Any]], waveform: np.ndarray, teacher: Path | None = None, *, device: str = "cpu"
) -> Iterator[tuple[int, list[Tensor]]]:
    """The features of `extract_feature_sets` in pieces of `CHUNK_FRAMES` frames: twelve hours of one layer of Base are 6.6 GB.

    Yields:
        The first frame of the piece, and the features of each kind. One empty piece for an utterance without a frame.

    Raises:
        ValueError: As `extract_features` does.
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
    """Features of each layer, float32 (`CHUNK_FRAMES` or at the end fewer, dim), on the CPU."""
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

    Args:
        books: Codebooks, of features that `feature_settings` makes.
        waveform: int16 (samples,) at 16 kHz.
        teacher: The model of layer features.
        device: Where the teacher runs.

    Raises:
        ValueError: As `extract_features` and `Codebook.assign` do.
    """
    chunks = extract_feature_chunks([book.features for book in books], waveform, teacher, device=device)
    labels = [[book.assign(part) for book, part in zip(books, parts, strict=True)] for _, parts in chunks]
    return [np.concatenate(of_book) for of_book in zip(*labels, strict=True)]


def _bound_teacher(settings: dict[str, Any], origin: object, path: Path | None) -> Teacher:
    """Opens the teacher that features were made with."""
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
            "the folder of the model that the codebook was fitted on"
        )
    return teacher


def check_reproducible(settings: dict[str, Any], origin: object, teacher: Path | None = None) -> None:
    """Refuses features that this program would compute otherwise.

    Args:
        settings: What `meta.json` says about them.
        origin: Whose they are, for messages.
        teacher: The model of layer features.

    Raises:
        ValueError: If a teacher is missing, superfluous or another model; if `settings` are not those that a feature of the same
            name has here.
    """
    name = str(settings.get("name"))
    if name == "layer":
        layer = settings.get("layer")
        layer, feature_norm = layer if type(layer) is int else -1, str(settings.get("feature_norm"))
        here = _layer_settings(_bound_teacher(settings, origin, teacher), layer, feature_norm)
    elif name == IMPORTED:
        raise ValueError(
            f"the labels of {origin} were imported without their codebook, so they cannot be computed again: import it with "
            "data_prep/import_codebook.py and the labels with codebook=DIR"
        )
    elif teacher is not None:
        raise ValueError(f"the features of {origin} are {name}, which no teacher makes, but {teacher} was given: leave it out")
    else:
        here = feature_settings(name)
    if here != settings:
        other = sorted(key for key in here.keys() | settings.keys() if here.get(key) != settings.get(key))
        raise ValueError(
            f"the features of {origin} must be made as this OpenWavLM makes {name}, but differ in {', '.join(other)}: fit the "
            "codebook again, or use the version that made it"
        )
