"""The account of a checkpoint: what became of every entry of the file and where every tensor of the model came from."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwavlm.checkpoints.names import new_spelling
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM

log = logging.getLogger(__name__)
# So much is built in a moment, whatever the file holds.
_FREE_NUMBERS, _FREE_LAYERS = 50_000_000, 100

# Why an entry of a file may be left out; docs/checkpoints.md lists the same.
PREDICTION_HEAD = "prediction head of pre-training: a new run draws its own"
FINE_TUNED_HEAD = "head of fine-tuning, for which the encoder has no place"
QUANTISER = "quantiser and projections of wav2vec 2.0's loss, which masked prediction does not have"
TRAINING_STATE = "state of the training that wrote the file, or its dictionaries"
NO_GATED_BIAS = "neutral: the source has no gated relative bias"
NO_MASK_EMBEDDING = "drawn from U(0, 1) by a fixed seed: the source has none; features do not depend on it"


@dataclass(frozen=True)
class Account:
    """What became of a file's entries; each is in exactly one of `loaded` and `ignored`, or the file is refused.

    Attributes:
        dialect: Whose file it is, for people.
        origin: The file.
        loaded: Their tensor → our tensors that it was copied to (three of a fused projection).
        ignored: Their entry → why it was left out.
        created: Our tensor that the source does not have → what it was set to.
    """

    dialect: str
    origin: str
    loaded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    created: dict[str, str] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """What a user should know, one sentence a reason; none if the file is the encoder and nothing else."""
        found = []
        for entries, verb in ((self.ignored, "left out"), (self.created, "made")):
            for reason in sorted(set(entries.values())):
                listed = sorted(name for name in entries if entries[name] == reason)
                shown = ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
                found.append(f"{self.origin} ({self.dialect}): {verb} {shown}: {reason}")
        return found


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
) -> tuple[WavLM, Account]:
    """Builds a model from a file's tensors; every tensor is used, is left out for a known reason, or is refused.

    A source without gated relative bias (HuBERT, wav2vec 2.0) gives a model with a neutral one: the bias table is zero, so nothing
    is added to any logit and all hidden states equal the source's, to float rounding. It can still be trained: the table's
    gradient is the gate times the logits' and a neutral gate is 1.75, so the first update moves the table; the gates' gradients
    are proportional to the table and follow from the second update on.

    Args:
        config: The architecture that the file describes.
        state: Tensors by their names.
        dialect: For the account.
        origin: The file, for messages.
        name_of: Their name of one of our tensors, without the prefix; several of ours with one name are cut from one tensor, along
            its first dimension, in the order of the model.
        reason_of: Why a tensor of theirs is left out; None for one that is not known.
        prefix: What stands before the encoder's tensors.
        unprefixed: Those of them that lack it.
        gated: Whether the source has the gated relative bias.
        may_lack_mask: Whether the source may lack the mask embedding.
        others: Entries of the file that are no tensors of the model, and why they are left out.

    Returns:
        The model in float32, on the CPU, in evaluation mode; the account.

    Raises:
        ValueError: If a tensor is unknown, has another shape than the configuration says, is there twice, is missing, holds other
            than finite floating-point numbers, or belongs to a gated bias that the source is not `gated` to have.
    """
    _check_size(config, state, origin, gated=gated)
    with torch.device("meta"):
        model = WavLM(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    ours_of: dict[str, list[str]] = {}
    for name in shapes:
        ours_of.setdefault(name_of(name), []).append(name)
    account = Account(dialect, origin, ignored=dict(others or {}))
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        # Whatever has the prefix is the encoder's, even if its name is that of a head.
        bare = new_spelling(name.removeprefix(prefix)) if name.startswith(prefix) or name in unprefixed else ""
        reason = reason_of(name) if bare not in ours_of else None
        if reason is not None:
            account.ignored[name] = reason
            continue
        if bare not in ours_of:
            raise ValueError(
                f"every tensor of a checkpoint must belong to the encoder or to a known head, but {origin} has {name}; if it is a "
                "head, remove it from the file, otherwise its configuration describes another architecture"
            )
        ours = ours_of[bare]
        expected = (len(ours) * shapes[ours[0]][0], *shapes[ours[0]][1:])
        if tensor.shape != expected:
            raise ValueError(
                f"tensors must have the shapes that their configuration implies, but {name} of {origin} has {tuple(tensor.shape)} "
                f"instead of {tuple(expected)}; use the configuration that was saved with the weights"
            )
        if ours[0] in found:
            other = next(theirs for theirs, loaded in account.loaded.items() if ours[0] in loaded)
            raise ValueError(
                f"a checkpoint must hold each tensor once, but {origin} has {other} and {name}, which are the same one; remove the "
                "wrong one"
            )
        values = tensor.float() if tensor.is_floating_point() else None
        if values is None or not bool(values.isfinite().all()):
            what = f"is {tensor.dtype}" if values is None else "has values that are not"
            raise ValueError(
                f"tensors must be finite floating-point numbers, but {name} of {origin} {what}; use the file before it was quantised, or "
                "an earlier one of that training"
            )
        found |= dict(zip(ours, values.chunk(len(ours)), strict=True))
        account.loaded[name] = tuple(ours)
    if not gated:
        _make_neutral(found, shapes, account)
    if may_lack_mask and "mask_embedding" not in found:
        generator = torch.Generator().manual_seed(0)
        found["mask_embedding"] = torch.rand(shapes["mask_embedding"], generator=generator)
        account.created["mask_embedding"] = NO_MASK_EMBEDDING
    missing = sorted(name_of(name) for name in shapes.keys() - found.keys())
    if missing:
        raise ValueError(
            f"a checkpoint must hold every tensor of the encoder, but {origin} lacks {len(missing)}, first {missing[0]}; "
            "save it again from the complete model"
        )
    model = model.to_empty(device="cpu")
    model.load_state_dict(found)
    for sentence in account.sentences():
        log.warning("%s", sentence)
    return model.eval(), account


def _check_size(config: WavLMConfig, state: Mapping[str, Tensor], origin: str, *, gated: bool) -> None:
    """Refuses a configuration that is far larger than the tensors, before a model of that size is built."""
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
            f"configuration and tensors must be of one model, but that of {origin} describes {described:.3g} numbers ({config.layers:,} "
            f"layers of width {config.dim:,}), and the file holds {held:,}; use the configuration that was saved with the weights"
        )


def _make_neutral(found: dict[str, Tensor], shapes: Mapping[str, torch.Size], account: Account) -> None:
    for name, shape in shapes.items():
        if name.startswith("encoder.relative_bias.") or ".attention.gate" in name:
            if name in found:
                theirs = next(theirs for theirs, loaded in account.loaded.items() if name in loaded)
                raise ValueError(
                    f"configuration and tensors must be of one model, but that of {account.origin} says nothing of a gated relative bias, "
                    f"which {theirs} belongs to; use the configuration that was saved with the weights"
                )
            found[name] = torch.ones(shape) if name.endswith("gate_scale") else torch.zeros(shape)
            account.created[name] = NO_GATED_BIAS
