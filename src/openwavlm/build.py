"""From a composed config to a run: the only place where configuration becomes objects."""

import difflib
import inspect
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from openwavlm.augment.mixing import Mixing
from openwavlm.budget import Recipe
from openwavlm.cli import check_complete
from openwavlm.costs import HeadShape
from openwavlm.data.collate import Draws, MicroBatchBuilder
from openwavlm.data.loader import Loading
from openwavlm.data.plan import Batching
from openwavlm.data.sources import Data, OpenData
from openwavlm.masking import SpanMasking
from openwavlm.models.config import WavLMConfig
from openwavlm.models.pretraining import WavLMForPretraining
from openwavlm.models.wavlm import WavLM
from openwavlm.probes.live import LiveProbes
from openwavlm.training.callbacks import Schedules
from openwavlm.training.health.settings import Health
from openwavlm.training.log import Logging
from openwavlm.training.module import Loss
from openwavlm.training.optim import Optim


@dataclass(frozen=True)
class Head:
    """The prediction head.

    Attributes:
        final_dim: Width of projection and label embeddings.
        logit_temperature: Divides the cosine.
        special_rows: Never-positive embeddings; 4 as in fairseq's checkpoints.
        label_init: `uniform` U(0, 1) as the references, or `normal` N(0, 1).
    """

    final_dim: int = 256
    logit_temperature: float = 0.1
    special_rows: int = 0
    label_init: Literal["uniform", "normal"] = "uniform"


@dataclass(frozen=True)
class TrainerSettings:
    """Where the run executes; nothing here changes the trajectory.

    Attributes:
        accelerator: `auto`, `cpu` or `gpu`.
        devices: Processes on this node when the launcher has not set them (torchrun and Slurm do).
        threads: CPU threads of each process; null = leave torch's choice.
        strategy: How several processes share the work: `ddp` (each holds the whole model) or `fsdp` (parameters, gradients and moments
            in shards, FSDP2). One process needs neither.
        watchdog_s: Seconds without progress after which a process prints its stacks and ends with status 75; null = never.
        requeue: Under Slurm, whether SIGUSR1 (`#SBATCH --signal=USR1@180`) has the job queued again after saving.

    Raises:
        ValueError: If a number is not positive.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    threads: int | None = None
    strategy: Literal["ddp", "fsdp"] = "ddp"
    watchdog_s: float | None = 1800.0
    requeue: bool = True

    def __post_init__(self) -> None:
        if self.devices < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(
                f"trainer.devices and trainer.threads must be at least 1 (threads: null for torch's choice), but are {self.devices}, "
                f"{self.threads}"
            )
        if self.watchdog_s is not None and not self.watchdog_s > 0:
            raise ValueError(f"trainer.watchdog_s must be positive, or null for no watchdog, but is {self.watchdog_s}: raise it")


TARGETS: dict[str, type] = {
    f"{target.__module__}.{target.__qualname__}": target
    for target in (
        WavLMConfig, Head, SpanMasking, Mixing, Data, Batching, Optim, Loss, TrainerSettings, Schedules, Logging, Loading,
        Health,
        LiveProbes,
    )
}  # fmt: skip
_NODES = {
    "model": WavLMConfig,
    "head": Head,
    "masking": SpanMasking,
    "mixing": Mixing,
    "data": Data,
    "batch": Batching,
    "optim": Optim,
    "loss": Loss,
    "trainer": TrainerSettings,
    "callbacks": Schedules,
    "logger": Logging,
    "loader": Loading,
    "health": Health,
    "probes": LiveProbes,
}
# What the config of a run begun before it existed may lack; such a run is still read, exported and resumed.
_LATER = {"health": {"_target_": "openwavlm.training.health.settings.Health"}, "init_from": None}
_KEYS = {
    "name": str | int | float,  # a run may be called 1 or 2e-4
    "seed": int,
    "precision": Literal["32-true", "bf16-mixed", "16-mixed"],
    "stop_after": int | None,
    "branch_from": str | None,
    "init_from": str | None,
    "allow_change": list[str],
    "debug": bool,
}


def build(node: dict[str, Any], where: str) -> Any:
    """Makes the object that a config node names.

    Args:
        node: Plain mapping with `_target_` and the target's arguments.
        where: The node's key, for messages.

    Raises:
        ValueError: If the target is not allowed, a key is unknown or missing, or a value is refused; the message names the key.
    """
    target, values = _checked(node, where)
    return target(**values)


def _checked(node: dict[str, Any], where: str) -> tuple[type, dict[str, Any]]:
    """The target of a node and its arguments, every name and type checked."""
    if not isinstance(node, dict):
        raise ValueError(
            f"{where} must be a group of keys with a _target_, but is {node!r}; choose an option, as in {where}=default"
        )
    values = {key: value for key, value in node.items() if key != "_target_"}
    target = TARGETS.get(node.get("_target_", ""))
    if target is None:
        raise ValueError(f"{where}._target_ must be one of {', '.join(TARGETS)}, but is {node.get('_target_')!r}")
    parameters = inspect.signature(target).parameters
    _refuse_unknown(values, parameters, where)
    missing = [name for name, p in parameters.items() if p.default is p.empty and (name not in values or values[name] is None)]
    if missing:
        raise ValueError(f"{where} needs {', '.join(missing)}")
    hints = typing.get_type_hints(target)
    for key, value in values.items():
        _check_type(value, hints[key], f"{where}.{key}")
    return target, values


def _check_type(value: Any, hint: Any, where: str) -> None:
    if not _is_of(value, hint):
        raise ValueError(f"{where} must be {_described(hint)}, but is {value!r}")


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a plain value has an annotated type; a whole number is a float too, a truth value is no number."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (types.UnionType, typing.Union):
        return any(_is_of(value, choice) for choice in inner)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return False
        kinds = inner[:1] * len(value) if origin is list or inner[-1] is ... else inner
        return len(value) == len(kinds) and all(_is_of(v, kind) for v, kind in zip(value, kinds, strict=True))
    if origin is dict:
        return isinstance(value, dict) and all(_is_of(v, inner[1]) for v in value.values())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


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


def _refuse_unknown(values: typing.Iterable[str], known: typing.Iterable[str], where: str) -> None:
    known = list(known)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise ValueError(f"{where + '.' if where else ''}{key} is not a known key; {hint}")


def objects(config: dict[str, Any]) -> dict[str, Any]:
    """All nodes of a training config as objects, after every key has been checked."""
    config = {**_LATER, **config}
    _refuse_unknown(config, [*_NODES, *_KEYS], "")
    absent = [key for key in (*_NODES, *_KEYS) if key not in config]
    if absent:
        raise ValueError(f"the config lacks {', '.join(absent)}: take the override away that removes it")
    for key, hint in _KEYS.items():
        _check_type(config[key], hint, key)
    # All names and types before any value: a misspelt key is not to hide behind a folder that is still missing.
    checked = {key: _checked(config[key], key) for key in _NODES}
    for key, (target, _) in checked.items():
        if target is not _NODES[key]:
            expected = f"{_NODES[key].__module__}.{_NODES[key].__qualname__}"
            raise ValueError(f"{key}._target_ must be {expected}, but is {config[key]['_target_']}")
    return {key: target(**values) for key, (target, values) in checked.items()}


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed config as plain values, interpolations resolved.

    Raises:
        ValueError: If a mandatory value is missing.
    """
    check_complete(config)
    return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def make_model(parts: dict[str, Any], num_classes: int | Sequence[int]) -> WavLMForPretraining:
    """Encoder and head, or a head for each label set's number of classes."""
    head: Head = parts["head"]
    return WavLMForPretraining(
        WavLM(parts["model"]),
        num_classes=num_classes,
        final_dim=head.final_dim,
        logit_temperature=head.logit_temperature,
        special_rows=head.special_rows,
        label_init=head.label_init,
    )


def with_placeholders(values: dict[str, Any]) -> dict[str, Any]:
    """The config with a word in place of each folder that nobody has named."""
    data = values["data"]
    sources = {
        name: {**source, **{key: source.get(key) or "(none)" for key in ("shards", "labels")}}
        for name, source in data["sources"].items()
    }
    return {**values, "data": {**data, "sources": sources}}


def recipe_of(parts: dict[str, Any], precision: str, num_classes: int | Sequence[int]) -> Recipe:
    """What the cost of a run depends on."""
    head, loss, model = parts["head"], parts["loss"], parts["model"]
    classes = [num_classes] if isinstance(num_classes, int) else list(num_classes)
    return Recipe(
        model,
        HeadShape(
            final_dim=head.final_dim,
            embeddings=sum(head.special_rows + size for size in classes),
            projections=len(classes),
        ),
        parts["batch"],
        parts["masking"],
        precision,
        parts["optim"].updates,
        recompute=model.recompute,
        learns_unmasked=loss.unmasked > 0,
        strategy=parts["trainer"].strategy,
        ema=parts["optim"].ema > 0,
    )


def make_builder(parts: dict[str, Any], opened: OpenData, seed: int, *, training: bool) -> MicroBatchBuilder:
    """The worker's part: for training with everything that is random, for validation with masks alone."""
    data, model = opened.data, parts["model"]
    draws = Draws(
        seed=seed if training else data.split_seed,
        masking=parts["masking"],
        mixing=parts["mixing"] if training else None,
        layers=model.layers,
        layer_drop=model.layer_drop if training else 0.0,
    )
    return MicroBatchBuilder(
        {name: Path(source["shards"]) for name, source in data.all_sets.items()},
        opened.label_sets,
        draws,
        Path(data.noise) if data.noise and training else None,
    )
