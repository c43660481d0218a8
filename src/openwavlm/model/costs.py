"""What a model costs: parameters, operations and kept activations of a micro-batch, counted by torch on tensors without data.

A multiply-add is two operations. Counted are matrix products and convolutions. Not counted: normalisations, GELU, softmax, dropout,
mixing, the optimiser, and the scores that fused attention kernels compute again in their backward.
"""

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from openwavlm.audio import spectra
from openwavlm.audio.frames import num_frames
from openwavlm.model import attention
from openwavlm.model.config import Head, WavLMConfig
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM

_LOW = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_PART = re.compile(r"wavlm\.?(extractor|feature_norm|encoder\.layers|)")
_PART_NAMES = {"feature_norm": "features", "encoder.layers": "layers", "": "encoder input"}


@dataclass(frozen=True, kw_only=True)
class MicroBatchShape:
    """The sizes of a micro-batch.

    Attributes:
        rows: Waveforms.
        samples: Of each row, padding included.
        predicted_frames: Frames whose labels are predicted with a gradient: the masked ones of all rows.
    """

    rows: int
    samples: int
    predicted_frames: int

    @property
    def frames(self) -> int:
        """Model frames of a row."""
        return num_frames(self.samples)


@dataclass(frozen=True)
class Costs:
    """Operations and kept bytes of a micro-batch by part of the model.

    Attributes:
        forward: Operations.
        backward: Operations of both gradients.
        recomputed: Operations of the forward that the backward repeats to save memory.
        kept: Bytes that autograd keeps from the forward if nothing is recomputed, without parameters, their 16-bit copies and the
            waveforms.
        largest: Bytes of the largest of these tensors.
    """

    forward: dict[str, int]
    backward: dict[str, int]
    recomputed: int
    kept: dict[str, int]
    largest: dict[str, int]

    @property
    def operations(self) -> int:
        """All operations."""
        return sum(self.forward.values()) + sum(self.backward.values()) + self.recomputed


def build_without_data(config: WavLMConfig, head: Head, classes: tuple[int, ...]) -> WavLMForPretraining:
    """The model on the meta device, where parameters have shapes only.

    Args:
        config: The encoder.
        head: The head.
        classes: Classes of each label set.
    """
    with torch.device("meta"):
        return WavLMForPretraining(WavLM(config), num_classes=classes, final_dim=head.final_dim, special_rows=head.special_rows)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters by part of the model."""
    counts = Counter[str]()
    for name, parameter in model.named_parameters():
        counts[_part_of(name)] += parameter.numel()
    return dict(counts)


def _part_of(name: str) -> str:
    """Part that a module or parameter of `WavLMForPretraining` belongs to."""
    match = _PART.search(name)
    return _PART_NAMES.get(match[1], match[1]) if match else "head"


@functools.lru_cache(maxsize=64)
def count_costs(
    config: WavLMConfig,
    head: Head,
    classes: tuple[int, ...],
    batch: MicroBatchShape,
    *,
    precision: str,
    device: Literal["cuda", "cpu"] = "cuda",
) -> Costs:
    """Operations and kept bytes of one micro-batch, by one forward pass of tensors without data (.5 s for Base).

    Forward operations and kept bytes equal those of a real step. The backward is not run: it takes twice the forward's operations,
    except in the extractor (`tests/unit/test_costs.py` counts it). With `layer_drop_mode: skip` the layers count with their
    probability to run.

    Args:
        config: The encoder; `recompute` matters for `recomputed` only.
        head: The head.
        classes: Classes of each label set.
        batch: The micro-batch.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        device: What it runs on; dropout and attention keep other tensors on a GPU than on a CPU. No GPU is needed to count.
    """
    model = build_without_data(replace(config, recompute="none"), head, classes)
    counter = FlopCounterMode(display=False)
    counts: dict[str, dict[Any, int]] = counter.get_flop_counts()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device), _autocast(device, precision):
            model = model.to_empty(device=device).train()
            index = torch.empty(batch.predicted_frames, dtype=torch.int64)
            waveforms = torch.empty(batch.rows, batch.samples)
            kept = _Kept(counter, [*model.parameters(), waveforms])
            with counter, torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor), _fused_kernels(device):
                model(
                    waveforms,
                    torch.empty(batch.rows, dtype=torch.int64),
                    torch.empty(batch.rows, batch.frames, dtype=torch.bool),
                    index,
                    [index] * len(classes),
                )
            counts = counter.get_flop_counts()
    finally:
        spectra._window_and_bands.cache_clear()  # it may hold tensors without data by now
    forward, backward, recomputed = _operations(config, counts)
    return Costs(forward, backward, recomputed, *kept.by_part())


class _Kept:
    """Storages that autograd keeps, each once."""

    def __init__(self, counter: FlopCounterMode, excluded: list[Tensor]) -> None:
        self._counter = counter
        self._excluded = {tensor.untyped_storage()._cdata for tensor in excluded}
        self._storages: dict[int, tuple[str, torch.UntypedStorage]] = {}  # held, so that no address is used twice

    def pack(self, tensor: Tensor) -> Tensor:
        """Hook of `saved_tensors_hooks`."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._excluded and key not in self._storages and not _is_copy_of_parameter(tensor):
            module = max(self._counter.mod_tracker.parents, key=len)
            self._storages[key] = (_part_of(module), storage)
        return tensor

    def by_part(self) -> tuple[dict[str, int], dict[str, int]]:
        """Sum and maximum of the storages' bytes."""
        sums, largest = Counter[str](), Counter[str]()
        for part, storage in self._storages.values():
            sums[part] += storage.nbytes()
            largest[part] = max(largest[part], storage.nbytes())
        return dict(sums), dict(largest)


def _is_copy_of_parameter(tensor: Tensor) -> bool:
    """Whether a tensor, or what it is a view of, was cast from a parameter by autocast."""
    made_by = (tensor if tensor._base is None else tensor._base).grad_fn
    return made_by is not None and made_by.name() == "ToCopyBackward0" and hasattr(made_by.next_functions[0][0], "variable")


@contextlib.contextmanager
def _autocast(device: str, precision: str) -> Iterator[None]:
    """Does what `torch.autocast` does, which disables itself for `cuda` on a machine without a GPU."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, precision in _LOW)
    torch.set_autocast_dtype(device, _LOW.get(precision, before[1]))
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


class _FusedAttention(torch.autograd.Function):
    """Stands in for a GPU's attention kernel: eager's two products, and the tensors that a fused kernel keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *bias: Tensor) -> Tensor:
        attended = (query @ key.transpose(-1, -2) @ value).transpose(1, 2).contiguous().transpose(1, 2)  # a kernel's layout
        normaliser = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, *bias, attended, normaliser)
        return attended


class _FusedSdpa(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args, kwargs["attn_mask"])
        return func(*args, **(kwargs or {}))


def _fused_flex(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, table: Tensor, key_padding: Tensor | None) -> Tensor:
    return _FusedAttention.apply(query, key, value, gate, table)


@contextlib.contextmanager
def _fused_kernels(device: str) -> Iterator[None]:
    """Replaces the attention kernels that need a real GPU; a CPU's `sdpa` is made of ordinary operations."""
    with (
        patch.object(attention, "flex_gated_attention", _fused_flex),
        _FusedSdpa() if device == "cuda" else contextlib.nullcontext(),
    ):
        yield


def _operations(config: WavLMConfig, counts: dict[str, dict[Any, int]]) -> tuple[dict[str, int], dict[str, int], int]:
    """Operations of the forward and of the backward by part, and those of the forward that the backward repeats.

    Args:
        config: The encoder.
        counts: Module → operator → operations of one forward.
    """
    of_module = {name.partition(".")[2]: sum(of.values()) for name, of in counts.items()}
    run = 1 - config.layer_drop if config.layer_drop_mode == "skip" else 1
    layers = [f"wavlm.encoder.layers.{number}" for number in range(config.layers)]
    scores = sum(
        count
        for layer in layers
        for operator, count in counts[f"WavLMForPretraining.{layer}.attention"].items()
        if "bmm" in str(operator)  # query · key and weights · value; all others are linear maps
    )
    whole = sum(counts["WavLMForPretraining"].values())
    forward = {
        "extractor": of_module["wavlm.extractor"],
        "projection": of_module["wavlm.projection"],
        "positional": of_module["wavlm.encoder.positional"],
        "attention": round(run * (sum(of_module[f"{layer}.attention"] for layer in layers) - scores)),
        "scores": round(run * scores),
        "feed_forward": round(run * sum(of_module[f"{layer}.feed_forward"] for layer in layers)),
        "head": whole - of_module["wavlm"],
    }
    backward = {part: 2 * count for part, count in forward.items()}
    if config.feature_grad_mult == 0:
        backward["extractor"] = 0
    elif config.front_end == "logmel":
        backward["extractor"] = of_module["wavlm.extractor.map"]  # the weights' gradient of its linear map
    else:
        backward["extractor"] -= of_module["wavlm.extractor.layers.0"]  # the waveform needs no gradient
    again = {"none": [], "extractor": ["extractor"], "all": ["extractor", "attention", "scores", "feed_forward"]}[
        config.recompute
    ]
    recomputed = sum(forward[part] for part in again if part != "extractor" or config.feature_grad_mult)
    if config.recompute == "all" and config.pre_norm and not config.dropout:
        recomputed -= forward["feed_forward"] // 2  # torch stops at the last tensor that is needed, before the last product
    return forward, backward, recomputed
