"""What one pass of the loop is asked for: where its labels come from, how long it trains, and what its encoder starts from."""

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openwavlm.labels.fit import ENGINES, fit_codebook

FEATURES = ("mfcc", "layer")
STARTS = ("scratch", "warm")
_OWN = ("features", "layer", "teacher", "clusters", "updates", "start", "overrides")
# Decided by the chain itself.
_NOT_GIVEN = ("shards", "output", "seed", "validation_share", "split_seed", "workers", "device")


@dataclass(frozen=True)
class IterationSettings:
    """One entry of `iterations`.

    Attributes:
        features: What is clustered: `mfcc`, or `layer`, hidden states of the model before.
        clusters: K.
        layer: Which layer; None = chosen from the model before.
        teacher: Another model whose layer is clustered, a checkpoint of any dialect; None = the model before.
        updates: Length of the training; None = the preset's.
        start: What the encoder begins from: `scratch`, random weights; `warm`, the encoder of the iteration before. The head is new
            either way, since its labels are.
        overrides: Of `train.py`, for this iteration, after those for all.
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
        ValueError: If a key is unknown, `clusters` is absent, features, layer or start are none of what they may be, or the first
            iteration asks for a model before it.
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
    features = values.get("features") or ("layer" if number > 1 or "layer" in values or "teacher" in values else "mfcc")
    if features not in FEATURES:
        raise ValueError(f"{where}.features must be one of {', '.join(FEATURES)}, but is {features!r}: correct it")
    if values.get("clusters") is None:
        raise ValueError(f"{where} must name clusters, but does not: 100 in HuBERT's first iteration, 500 later")
    if features == "mfcc" and values.get("layer") is not None:
        raise ValueError(f"{where} clusters mfcc but names the layer {values['layer']}: leave one of them out")
    if layer is not None and (not isinstance(layer, int) or layer < 0):
        raise ValueError(f"{where}.layer must be a layer's number or auto, but is {layer!r}: correct it")
    if values.get("engine", "lloyd") not in ENGINES:
        raise ValueError(f"{where}.engine must be one of {', '.join(ENGINES)}, but is {values['engine']!r}: correct it")
    for name in ("clusters", "updates", "sample_hours"):
        if values.get(name) is not None and not values[name] > 0:
            raise ValueError(f"{where}.{name} must be positive, but is {values[name]}: correct it")
    start = values.get("start") or "scratch"
    if start not in STARTS:
        raise ValueError(f"{where}.start must be one of {', '.join(STARTS)}, but is {start!r}: correct it")
    teacher = values.get("teacher")
    if teacher is not None and (features == "mfcc" or layer is None):
        raise ValueError(f"{where} names the teacher {teacher}, so it must name one of its layers by number: add layer")
    if number == 1 and features == "layer" and teacher is None:
        raise ValueError(
            f"{where} is the first iteration and has no model before it whose layer could be clustered: use features: mfcc, or name a "
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
