"""The typed config of a training run: what every training has, and what pre-training adds."""

import inspect
import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, Self

from openwavlm.batches.settings import Batching, Data, Loading, Mixing, SpanMasking
from openwavlm.evaluation.settings import LiveProbes
from openwavlm.model.config import Head, WavLMConfig
from openwavlm.training.health.settings import Health
from openwavlm.training.key_names import nearest_key
from openwavlm.training.optim import Optim
from openwavlm.training.run_files import has_type, nested
from openwavlm.training.settings import Logging, Loss, Schedules, TrainerSettings

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class LaunchConfig:
    """What the config of every training has: batches, optimiser, device, records, and the keys that stand alone.

    Subclasses are frozen dataclasses with these fields and their own. `INNER` names groups that stand inside another one; `LATER` has
    the groups and keys that the config of a run begun before them lacks, so that such a run is still read, exported and resumed.
    """

    INNER: ClassVar[dict[str, str]] = {}
    LATER: ClassVar[dict[str, Any]] = {}

    batch: Batching
    optim: Optim
    trainer: TrainerSettings
    callbacks: Schedules
    logger: Logging
    loader: Loading
    health: Health
    name: str | int | float  # a run may be called 1 or 2e-4
    seed: int
    precision: Precision
    stop_after: int | None
    branch_from: str | None
    allow_change: list[str]
    debug: bool

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Checks plain values, composed from a config or read from a run's `config.yaml`, and makes the objects of the groups.

        Raises:
            ValueError: If a key is unknown or missing, or a value is refused; the message names the key.
        """
        values, hints = {**cls.LATER, **values}, _hints(cls)
        if "task" in values and "task" not in hints:
            raise ValueError("a run of pre-training is needed, but this is one of openwavlm finetune: name another run")
        names = [name for name in hints if name not in cls.INNER]
        _refuse_unknown(cls, values, names, "")
        absent = [key for key in names if key not in values]
        if absent:
            raise ValueError(f"the config lacks {', '.join(absent)}: leave out the override that deletes it")
        for name, hint in hints.items():
            if not is_dataclass(hint):
                _check_type(values[name], hint, name)
        # Names and types before any value, so that a misspelt key is reported before a missing folder.
        checked = {name: _checked(cls, values, name) for name, hint in hints.items() if is_dataclass(hint)}
        groups = {name: hints[name](**of_group) for name, of_group in checked.items()}
        return cls(**groups, **{name: values[name] for name in names if name not in groups})


@dataclass(frozen=True)
class RunConfig(LaunchConfig):
    """A pre-training's config.

    Attributes:
        model: Encoder; its prediction head is the group `model.head`.
        head: Prediction head.
        masking: Span masks.
        mixing: Utterance mixing.
        data: Sources and held-out sets.
        batch: Audio of an update and of a micro-batch.
        optim: Optimiser and schedule.
        loss: Weights of the loss.
        trainer: Where the run executes.
        callbacks: How often it validates and saves.
        logger: Records and trackers.
        loader: Loader processes.
        health: Health rules.
        probes: Probes while training.
        name: The run lives in `runs/NAME`.
        seed: Of initialisation, plan, crops, masks and mixtures.
        precision: Of the forward pass.
        stop_after: Update after which this launch ends, resumable; None = none.
        branch_from: Checkpoint of another run at which this one begins; None = none.
        init_from: Checkpoint as which a new run begins; None = random weights. Its prediction head too, if it belongs to the labels.
        init_head: `new`: the prediction head begins with random weights all the same.
        allow_change: Keys that may differ from the launch before.
        debug: Tracebacks instead of sentences.
    """

    INNER: ClassVar[dict[str, str]] = {"head": "model"}
    LATER: ClassVar[dict[str, Any]] = {"health": {}, "init_from": None, "init_head": None}

    model: WavLMConfig
    head: Head
    masking: SpanMasking
    mixing: Mixing
    data: Data
    batch: Batching
    optim: Optim
    loss: Loss
    trainer: TrainerSettings
    callbacks: Schedules
    logger: Logging
    loader: Loading
    health: Health
    probes: LiveProbes
    name: str | int | float
    seed: int
    precision: Precision
    stop_after: int | None
    branch_from: str | None
    init_from: str | None
    init_head: Literal["new"] | None
    allow_change: list[str]
    debug: bool


def _hints(kind: type[LaunchConfig]) -> dict[str, Any]:
    """Name → type of the groups and keys, without the class variables."""
    found = typing.get_type_hints(kind)
    return {each.name: found[each.name] for each in fields(kind)}  # type: ignore[arg-type]


def _checked(kind: type[LaunchConfig], values: dict[str, Any], name: str) -> dict[str, Any]:
    """The values of a group, every name and type checked."""
    outer, of_group = kind.INNER.get(name), _hints(kind)[name]
    node = values[outer].get(name) if outer and isinstance(values[outer], dict) else values.get(name)
    where = f"{outer}.{name}" if outer else name
    if not isinstance(node, dict):
        raise ValueError(f"{where} must be a group of keys, but is {node!r}: take the override away")
    inner = [group for group, of in kind.INNER.items() if of == name]
    found = {key: value for key, value in node.items() if key not in inner}
    parameters = inspect.signature(of_group).parameters
    _refuse_unknown(kind, found, [*parameters, *inner], where)
    missing = [key for key, p in parameters.items() if p.default is p.empty and (key not in found or found[key] is None)]
    if missing:
        raise ValueError(f"{where} needs {', '.join(missing)}")
    hints = typing.get_type_hints(of_group)
    for key, value in found.items():
        _check_type(value, hints[key], f"{where}.{key}")
    return found


def _check_type(value: Any, hint: Any, where: str) -> None:
    if not has_type(value, hint):
        raise ValueError(f"{where} must be {_described(hint)}, but is {value!r}")


def _described(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_described(choice) for choice in inner)
    if origin in (list, tuple):
        count = "" if origin is list or inner[-1] is ... else f"{len(inner)} "
        return f"a list of {count}values, each {_described(inner[0])}"
    if origin is dict:
        return f"a group of names, each with {_described(inner[1])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return names.get(hint, "a value")


def _refuse_unknown(kind: type[LaunchConfig], values: typing.Iterable[str], known: typing.Iterable[str], where: str) -> None:
    known = list(known)
    for key in values:
        if key not in known:
            named = f"{where}.{key}" if where else key
            near = nearest_key(named, all_keys(kind))
            hint = f"did you mean {near}?" if near else f"known keys: {', '.join(known)}"
            raise ValueError(f"{named} is not a known key; {hint}")


def all_keys(kind: type[LaunchConfig] = RunConfig) -> list[str]:
    """Every key of a training config, with its groups, and the groups themselves."""
    alone = [name for name, hint in _hints(kind).items() if not is_dataclass(hint)]
    groups = settings_of(kind)
    return [*alone, *groups, *(f"{place}.{each.name}" for place, group in groups.items() for each in fields(group))]


def settings_of(kind: type[LaunchConfig] = RunConfig) -> dict[str, Any]:
    """Place of each group in the config → class of its settings."""
    inside = {name: f"{outer}.{name}" for name, outer in kind.INNER.items()}
    return {inside.get(name, name): hint for name, hint in _hints(kind).items() if isinstance(hint, type) and is_dataclass(hint)}


def default_values(kind: type[LaunchConfig] = RunConfig) -> dict[str, Any]:
    """Every group with the defaults of its class, as plain values; `???` for a value that has to be given."""
    return nested({place: _defaults(settings) for place, settings in settings_of(kind).items()})


def _defaults(settings: type) -> dict[str, Any]:
    found = {}
    for each in fields(settings):
        value = each.default_factory() if each.default_factory is not MISSING else each.default
        found[each.name] = "???" if value is MISSING else list(value) if isinstance(value, tuple) else value
    return found


def with_placeholders(values: dict[str, Any]) -> dict[str, Any]:
    """The config with `(none)` in place of each folder that is not given."""
    data = values["data"]
    sources = {
        name: {**source, **{key: source.get(key) or "(none)" for key in ("shards", "labels")}}
        for name, source in data["sources"].items()
    }
    return {**values, "data": {**data, "sources": sources}}
