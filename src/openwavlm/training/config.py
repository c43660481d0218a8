"""From a composed config to a run: the only place where configuration becomes objects."""

import difflib
import inspect
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openwavlm.batches.collate import Draws, MicroBatchBuilder
from openwavlm.batches.loader import Loading
from openwavlm.batches.masking import SpanMasking
from openwavlm.batches.mixing import Mixing
from openwavlm.batches.plan import Batching
from openwavlm.batches.sources import Data, OpenData
from openwavlm.evaluation.live import LiveProbes
from openwavlm.model.config import WavLMConfig
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM
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


# Where each group of settings stands in the config, and its class.
_GROUPS: dict[str, type] = {
    "model": WavLMConfig,
    "model.head": Head,
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
_LATER: dict[str, Any] = {"health": {}, "init_from": None}
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


def build(config: dict[str, Any], group: str) -> Any:
    """Settings of one group as an object.

    Args:
        config: The training config as plain values.
        group: Its place in the config, as in `optim` or `model.head`.

    Raises:
        ValueError: If a key is unknown or missing, or a value is refused; the message names the key.
    """
    return _GROUPS[group](**_checked(config, group))


def _checked(config: dict[str, Any], group: str) -> dict[str, Any]:
    """The values of a group, every name and type checked."""
    inner = [place.rpartition(".")[2] for place in _GROUPS if place.rpartition(".")[0] == group]
    *above, last = group.split(".")
    node: Any = config[above[0]] if above else config
    node = node.get(last) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        choice = f"{above[0] if above else group}={'base' if group in ('model', 'model.head') else 'default'}"
        raise ValueError(f"{group} must be a group of keys, but is {node!r}; choose an option, as in {choice}")
    values = {key: value for key, value in node.items() if key not in inner}
    parameters = inspect.signature(_GROUPS[group]).parameters
    _refuse_unknown(values, [*parameters, *inner], group)
    missing = [name for name, p in parameters.items() if p.default is p.empty and (name not in values or values[name] is None)]
    if missing:
        raise ValueError(f"{group} needs {', '.join(missing)}")
    hints = typing.get_type_hints(_GROUPS[group])
    for key, value in values.items():
        _check_type(value, hints[key], f"{group}.{key}")
    return values


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
    """All groups of a training config as objects by the last part of their place, after every key has been checked."""
    config = {**_LATER, **config}
    groups = [group for group in _GROUPS if "." not in group]
    _refuse_unknown(config, [*groups, *_KEYS], "")
    absent = [key for key in (*groups, *_KEYS) if key not in config]
    if absent:
        raise ValueError(f"the config lacks {', '.join(absent)}: take the override away that removes it")
    for key, hint in _KEYS.items():
        _check_type(config[key], hint, key)
    # Names and types of all groups before any value, so that a misspelt key is reported before a missing folder.
    checked = {group: _checked(config, group) for group in _GROUPS}
    return {group.rpartition(".")[2]: _GROUPS[group](**values) for group, values in checked.items()}


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
