"""Fills a model with a checkpoint's tensors, and accounts for every entry of the file and every tensor of the model."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from openwavlm.checkpoints.names import new_spelling
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM

log = logging.getLogger(__name__)
# A configuration may exceed its file by these sizes.
_FREE_NUMBERS, _FREE_LAYERS = 50_000_000, 100

# Reasons to leave out an entry of a file; docs/checkpoints.md lists the same.
PREDICTION_HEAD = "prediction head of pre-training: a new run draws its own"
FINE_TUNED_HEAD = "head of fine-tuning, for which the encoder has no place"
QUANTISER = "quantiser and projections of wav2vec 2.0's loss, which masked prediction does not have"
TRAINING_STATE = "state of the training that wrote the file, or its dictionaries"
NO_GATED_BIAS = "neutral: the source has no gated relative bias"
NO_MASK_EMBEDDING = "drawn from U(0, 1) by a fixed seed: the source has none; features do not depend on it"
QUANTISER_HEADS = dict.fromkeys(("quantizer", "project_q", "project_hid"), QUANTISER)


@dataclass(frozen=True)
class Account:
    """Use of a file's entries; each is in exactly one of `loaded` and `ignored`, or the file is refused.

    Attributes:
        dialect: Program that wrote the file.
        origin: The file.
        loaded: Their tensor → our tensors that it was copied to (three of a fused projection).
        ignored: Their entry → reason to leave it out.
        created: Our tensor that the source lacks → origin of its value.
    """

    dialect: str
    origin: str
    loaded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    created: dict[str, str] = field(default_factory=dict)

    def source_of(self, ours: str) -> str:
        """Their tensor that was copied to one of ours."""
        return next(theirs for theirs, loaded in self.loaded.items() if ours in loaded)

    def log(self) -> None:
        """Logs a warning for each reason; none if the file is the encoder alone."""
        for entries, verb in ((self.ignored, "left out"), (self.created, "created")):
            for reason in sorted(set(entries.values())):
                listed = sorted(name for name in entries if entries[name] == reason)
                shown = ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
                log.warning("%s (%s): %s %s: %s", self.origin, self.dialect, verb, shown, reason)


class Loaded(NamedTuple):
    """A model in float32, on the CPU, in evaluation mode, and the account of its file's entries."""

    model: WavLM
    account: Account


def fill(
    config: WavLMConfig,
    state: Mapping[str, Tensor],
    *,
    dialect: str,
    origin: str,
    name_of: Callable[[str], str],
    reason_of: Callable[[str], str | None],
    prefix: str = "",
    unprefixed: tuple[str, ...] = (),
    gated: bool = True,
    may_lack_mask: bool = False,
    others: Mapping[str, str] | None = None,
) -> Loaded:
    """Builds a model from a file's tensors; every tensor is used, left out for a known reason, or refused.

    Args:
        config: The architecture that the file describes.
        state: Tensors by their names.
        dialect: Program that wrote the file.
        origin: The file.
        name_of: Their name of one of our tensors, without the prefix; several of ours with one name are cut from one tensor, along
            its first dimension, in the order of the model.
        reason_of: Reason to leave out one of their tensors; None for an unknown one.
        prefix: Prefix of the encoder's tensors, except those of `unprefixed`.
        gated: True if the source has the gated relative bias; otherwise the model gets a neutral one.
        may_lack_mask: True if the source may lack the mask embedding.
        others: Entries of the file that are no tensors of the model → reason to leave them out.

    Raises:
        ValueError: If a tensor is unknown, missing, doubled, of another shape, not finite, or of a gated bias without `gated`.
    """
    _check_size(config, state, origin, gated=gated)
    with torch.device("meta"):
        model = WavLM(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    account = Account(dialect, origin, ignored=dict(others or {}))
    found: dict[str, Tensor] = {}
    ours_of: dict[str, list[str]] = {}
    for name in shapes:
        ours_of.setdefault(name_of(name), []).append(name)
    for name, tensor in state.items():
        # A tensor with the prefix belongs to the encoder, even under the name of a head.
        bare = new_spelling(name.removeprefix(prefix)) if name.startswith(prefix) or name in unprefixed else ""
        if bare in ours_of:
            _take(found, name, tensor, {ours: shapes[ours] for ours in ours_of[bare]}, account)
        else:
            account.ignored[name] = _known(reason_of(name), name, origin)
    if not gated:
        _make_neutral(found, shapes, account)
    if may_lack_mask and "mask_embedding" not in found:
        generator = torch.Generator().manual_seed(0)
        found["mask_embedding"] = torch.rand(shapes["mask_embedding"], generator=generator)
        account.created["mask_embedding"] = NO_MASK_EMBEDDING
    if missing := {name_of(name) for name in shapes.keys() - found.keys()}:
        raise ValueError(f"a checkpoint must hold the whole encoder, but {origin} lacks {len(missing)}, first {min(missing)}")
    model = model.to_empty(device="cpu")
    model.load_state_dict(found)
    account.log()
    return Loaded(model.eval(), account)


def _known(reason: str | None, name: str, origin: str) -> str:
    if reason is None:
        raise ValueError(
            f"every tensor must belong to the encoder or to a known head, but {origin} has {name}; if it is a head, remove it from the "
            "file, otherwise its configuration describes another architecture"
        )
    return reason


def _take(found: dict[str, Tensor], name: str, tensor: Tensor, shapes: Mapping[str, torch.Size], account: Account) -> None:
    """Adds a tensor of the file to `found` under our names, cut into as many parts, in float32."""
    first, *rest = next(iter(shapes.values()))
    shape, origin = (len(shapes) * first, *rest), account.origin
    if tensor.shape != shape:
        raise ValueError(
            f"{name} of {origin} has {tuple(tensor.shape)} instead of {shape}; use the configuration that was saved with the weights"
        )
    twice = shapes.keys() & found.keys()
    if twice:
        other = account.source_of(min(twice))
        raise ValueError(f"a checkpoint must hold each tensor once, but {origin} has {other} and {name}, which are the same one")
    if not tensor.is_floating_point() or not bool(tensor.float().isfinite().all()):
        what = "has values that are not" if tensor.is_floating_point() else f"is {tensor.dtype}"
        raise ValueError(
            f"tensors must be finite floating-point numbers, but {name} of {origin} {what}; use an earlier or unquantised checkpoint"
        )
    found |= dict(zip(shapes, tensor.float().chunk(len(shapes)), strict=True))
    account.loaded[name] = tuple(shapes)


def _check_size(config: WavLMConfig, state: Mapping[str, Tensor], origin: str, *, gated: bool) -> None:
    """Refuses a configuration far larger than the tensors before building a model of that size."""
    # The matrices alone: biases and norms are few, and a model of a damaged configuration cannot be built to be counted.
    convolutions = zip(config.conv_kernels, (1, *config.conv_dims), config.conv_dims, strict=False)
    described = (
        sum(kernel * channels_in * channels for kernel, channels_in, channels in convolutions)
        + config.dim * (config.conv_dims[-1] + config.positional_kernel * config.dim // config.positional_groups)
        + config.num_buckets * config.heads * gated
        + config.layers * config.dim * (4 * config.dim + 2 * config.ffn_dim)
    )
    held = sum(tensor.numel() for tensor in state.values())
    # A file that lacks some tensors is refused by their names.
    if described > 4 * held + _FREE_NUMBERS or config.layers > len(state) + _FREE_LAYERS:
        raise ValueError(
            f"the configuration of {origin} describes {described:.3g} numbers ({config.layers:,} layers of width {config.dim:,}), and "
            f"the file holds {held:,}; use the configuration that was saved with the weights"
        )


def _make_neutral(found: dict[str, Tensor], shapes: Mapping[str, torch.Size], account: Account) -> None:
    """Adds a neutral gated relative bias, for a source without one (HuBERT, wav2vec 2.0).

    The bias table is zero, so all hidden states equal the source's, to float rounding. Training can change it: a neutral gate is 1.75,
    so the first update moves the table; the gates' gradients are proportional to the table, so the second update moves the gates.
    """
    for name, shape in shapes.items():
        if name.startswith("encoder.relative_bias.") or ".attention.gate" in name:
            if name in found:
                raise ValueError(
                    f"the configuration of {account.origin} has no gated relative bias, which {account.source_of(name)} belongs to; use "
                    "the configuration that was saved with the weights"
                )
            found[name] = torch.ones(shape) if name.endswith("gate_scale") else torch.zeros(shape)
            account.created[name] = NO_GATED_BIAS
