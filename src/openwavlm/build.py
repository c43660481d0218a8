"""From a composed config to a run: the only place where configuration becomes objects."""

import difflib
import inspect
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from openwavlm.augment.mixing import Mixing
from openwavlm.data.collate import Draws, MicroBatchBuilder
from openwavlm.data.loader import Loading
from openwavlm.data.plan import Batching
from openwavlm.data.sources import Data, OpenData
from openwavlm.masking import SpanMasking
from openwavlm.models.config import WavLMConfig
from openwavlm.models.pretraining import WavLMForPretraining
from openwavlm.models.wavlm import WavLM
from openwavlm.training.callbacks import Schedules
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
        strategy: `auto` (one process: none; more: DDP) or `ddp`.
        threads: CPU threads of each process; null = leave torch's choice.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    threads: int | None = None


TARGETS: dict[str, type] = {
    f"{target.__module__}.{target.__qualname__}": target
    for target in (
        WavLMConfig, Head, SpanMasking, Mixing, Data, Batching, Optim, Loss, TrainerSettings, Schedules, Logging, Loading,
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
}
_KEYS = ("name", "seed", "precision", "stop_after", "allow_change", "debug")
_NUMBERS: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}


def build(node: dict[str, Any], where: str) -> Any:
    """Makes the object that a config node names.

    Args:
        node: Plain mapping with `_target_` and the target's arguments.
        where: The node's key, for messages.

    Raises:
        ValueError: If the target is not allowed, a key is unknown or missing, or a value is refused; the message names the key.
    """
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
        kinds = _NUMBERS.get(hints.get(key))
        if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise ValueError(f"{where}.{key} must be of type {hints[key].__name__}, but is {value!r}")
    return target(**values)


def _refuse_unknown(values: typing.Iterable[str], known: typing.Iterable[str], where: str) -> None:
    known = list(known)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise ValueError(f"{where + '.' if where else ''}{key} is not a known key; {hint}")


def objects(config: dict[str, Any]) -> dict[str, Any]:
    """All nodes of a training config as objects, after every key has been checked."""
    _refuse_unknown(config, [*_NODES, *_KEYS], "")
    absent = [key for key in _NODES if not config.get(key)]
    if absent:
        raise ValueError(f"the config lacks {', '.join(absent)}")
    made = {key: build(config[key], key) for key in _NODES}
    wrong = [key for key, kind in _NODES.items() if not isinstance(made[key], kind)]
    if wrong:
        raise ValueError(f"{wrong[0]}._target_ must be {_NODES[wrong[0]].__qualname__}, but is {config[wrong[0]]['_target_']}")
    return made


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed config as plain values, interpolations resolved.

    Raises:
        ValueError: If a mandatory value is missing.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"the config needs a value for {', '.join(missing)}, as in {missing[0]}=...")
    return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def make_model(parts: dict[str, Any], num_classes: int) -> WavLMForPretraining:
    """Encoder and head."""
    head: Head = parts["head"]
    return WavLMForPretraining(
        WavLM(parts["model"]),
        num_classes=num_classes,
        final_dim=head.final_dim,
        logit_temperature=head.logit_temperature,
        special_rows=head.special_rows,
        label_init=head.label_init,
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
        {name: Path(source["shards"]) for name, source in data.sources.items()},
        {name: Path(source["labels"]) for name, source in data.sources.items()},
        draws,
        Path(data.noise) if data.noise and training else None,
    )
