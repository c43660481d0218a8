"""Settings of one iteration: source of its labels, length of its training, start of its encoder."""

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openwavlm.labels.fit import ENGINES, fit_codebook

FEATURES = ("mfcc", "layer")
STARTS = ("scratch", "warm")
_OWN = ("features", "layer", "teacher", "clusters", "updates", "start", "overrides")
# Arguments of `fit_codebook` that the chain sets.
_NOT_GIVEN = ("shards", "output", "seed", "validation_share", "split_seed", "workers", "device")


@dataclass(frozen=True)
class IterationSettings:
    """One entry of `iterations`.

    Attributes:
        features: `mfcc`, or `layer`, hidden states of the previous iteration's model.
        clusters: K.
        layer: Number of the layer; None = chosen by the previous iteration's figures.
        teacher: Checkpoint of any dialect that provides the layer; None = the previous iteration's model.
        updates: Length of the training; None = the preset's.
        start: Encoder: `scratch`, random weights; `warm`, the previous iteration's. The head is always new, since its labels are.
        overrides: Of `train.py` for this iteration, after those for all.
        codebook: Further arguments of `labels.fit.fit_codebook`.
    """

    features: str
    clusters: int
    layer: int | None = None
    teacher: str | None = None
    updates: int | None = None
    start: str = "scratch"
    overrides: tuple[str, ...] = ()
    codebook: dict[str, Any] = field(default_factory=dict)


def iteration_settings(number: int, values: Mapping[str, Any]) -> IterationSettings:
    """Reads the `number`-th entry of `iterations`, counted from 1.

    Raises:
        ValueError: If a key is unknown, a value is not one of its choices or not positive, `clusters` is absent, or the first iteration
            needs a model before it.
    """
    where = f"iterations[{number - 1}]"
    fitting = [name for name in inspect.signature(fit_codebook).parameters if name not in (*_OWN, *_NOT_GIVEN)]
    known = (*_OWN, *fitting)
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise ValueError(f"{where} has the unknown key {name}: {hint}")
    layer = None if values.get("layer") in (None, "auto") else values["layer"]
    teacher, start = values.get("teacher"), values.get("start") or "scratch"
    features = values.get("features") or ("layer" if number > 1 or "layer" in values or "teacher" in values else "mfcc")
    for name, value, choices in (
        ("features", features, FEATURES),
        ("engine", values.get("engine", ENGINES[0]), ENGINES),
        ("start", start, STARTS),
    ):
        if value not in choices:
            raise ValueError(f"{where}.{name} must be one of {', '.join(choices)}, but is {value!r}")
    if values.get("clusters") is None:
        raise ValueError(f"{where} must name clusters, but does not: HuBERT's first iteration has 100, later ones have 500")
    for name in ("clusters", "updates", "sample_hours"):
        if values.get(name) is not None and not values[name] > 0:
            raise ValueError(f"{where}.{name} must be positive, but is {values[name]}")
    if features == "mfcc" and values.get("layer") is not None:
        raise ValueError(f"{where} clusters mfcc but names the layer {values['layer']}: omit one of them")
    if layer is not None and (not isinstance(layer, int) or layer < 0):
        raise ValueError(f"{where}.layer must be a layer's number or auto, but is {layer!r}")
    if teacher is not None and (features == "mfcc" or layer is None):
        raise ValueError(f"{where} names the teacher {teacher}, so it must name one of its layers by number: add layer")
    if number == 1 and features == "layer" and teacher is None:
        raise ValueError(
            f"{where} is the first iteration and has no model before it with a layer to cluster: use features: mfcc, or name a "
            "teacher"
        )
    if number == 1 and start == "warm":
        raise ValueError(f"{where} is the first iteration and has no model before it to start from: use start: scratch")
    return IterationSettings(
        features=features,
        clusters=int(values["clusters"]),
        layer=layer,
        teacher=None if teacher is None else str(teacher),
        updates=None if values.get("updates") is None else int(values["updates"]),
        start=start,
        overrides=tuple(values.get("overrides") or ()),
        codebook={name: values[name] for name in fitting if name in values},
    )
