"""Costs of a model: parameters, operations and kept activations of a micro-batch, counted by torch on tensors without data.

Counts matrix products and convolutions, a multiply-add as two operations; not normalisations, GELU, softmax, dropout, mixing, the
optimiser, or the scores that fused attention kernels compute again in their backward.
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
from openwavlm.model import attention, transformer
from openwavlm.model.config import Head, WavLMConfig
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM

LOW_PRECISION = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_PART = re.compile(r"wavlm\.?(extractor|feature_norm|encoder\.layers|)")
_PART_NAMES = {"feature_norm": "features", "encoder.layers": "layers", "": "encoder input"}


@dataclass(frozen=True, kw_only=True)
class MicroBatchShape:
    """Sizes of a micro-batch."""

    rows: int  # waveforms
    samples: int  # of each row, padding included
    predicted_frames: int  # frames whose labels are predicted with a gradient: the masked ones of all rows

    @property
    def frames(self) -> int:
        """Model frames of a row."""
        return num_frames(self.samples)


@dataclass(frozen=True)
class Costs:
    """Operations and kept bytes of a micro-batch by part of the model."""

    forward: dict[str, int]
    backward: dict[str, int]  # operations of both gradients
    recomputed: int  # operations of the forward that the backward repeats to save memory
    kept: dict[str, int]  # bytes that autograd keeps without recomputing, except parameters, their 16-bit copies, waveforms
    largest: dict[str, int]  # bytes of the largest of these tensors

    @property
    def operations(self) -> int:
        """All operations."""
        return sum(self.forward.values()) + sum(self.backward.values()) + self.recomputed


def build_without_data(config: WavLMConfig, head: Head, classes: tuple[int, ...]) -> WavLMForPretraining:
    """Makes the model on the meta device, where parameters have shapes only."""
    with torch.device("meta"):
        return WavLMForPretraining(WavLM(config), head, classes)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Counts parameters by part of the model."""
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
    """Counts operations and kept bytes of one real step's micro-batch, by one forward pass of tensors without data.

    Runs two layers: all further ones equal the second. Does not run the backward: it takes twice the forward's operations, except in
    the extractor. With `layer_drop_mode: skip` the layers count with their probability to run.

    Args:
        config: The encoder; its `recompute` changes `recomputed` only.
        classes: Classes of each label set.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        device: Device of the step; dropout and attention keep other tensors on a GPU than on a CPU. Counting needs no GPU.
    """
    counter = FlopCounterMode(display=False)
    storages: dict[int, tuple[str, torch.UntypedStorage]] = {}  # held, so that no address is used twice
    model = build_without_data(replace(config, recompute="none", layers=min(2, config.layers)), head, classes)
    try:
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            torch.device("cpu"),  # torch without CUDA ends the process at a tensor of a GPU, even one without data
            torch.autocast("cpu", dtype=LOW_PRECISION.get(precision, torch.bfloat16), enabled=precision in LOW_PRECISION),
        ):
            model = model.to_empty(device="cpu").train()
            waveforms, index = torch.empty(batch.rows, batch.samples), torch.empty(batch.predicted_frames, dtype=torch.int64)
            excluded = {tensor.untyped_storage()._cdata for tensor in (waveforms, *model.parameters())}

            def pack(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage._cdata not in excluded and not _is_copy_of_parameter(tensor):
                    storages.setdefault(storage._cdata, (max(counter.mod_tracker.parents, key=len), storage))
                return tensor

            with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _fused_kernels(device):
                model(
                    waveforms,
                    torch.empty(batch.rows, dtype=torch.int64),
                    torch.empty(batch.rows, batch.frames, dtype=torch.bool),
                    index,
                    [index] * len(classes),
                )
    finally:
        spectra._window_and_bands.cache_clear()  # it may hold tensors without data by now
    kept, largest = Counter[str](), Counter[str]()
    for module, storage in storages.values():
        part, times = _part_of(module), config.layers - 1 if ".encoder.layers.1" in module else 1
        kept[part] += times * storage.nbytes()
        largest[part] = max(largest[part], storage.nbytes())
    return Costs(*_operations(config, counter.get_flop_counts()), kept, largest)


def _is_copy_of_parameter(tensor: Tensor) -> bool:
    """True if autocast cast a parameter to this tensor, or to the one that it is a view of."""
    made_by = (tensor if tensor._base is None else tensor._base).grad_fn
    return made_by is not None and made_by.name() == "ToCopyBackward0" and hasattr(made_by.next_functions[0][0], "variable")


class _FusedAttention(torch.autograd.Function):
    """Stands in for a GPU's attention kernel: eager's two products, and the tensors that a fused kernel keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *bias: Tensor) -> Tensor:
        attended = (query @ key.transpose(-1, -2) @ value).transpose(1, 2).contiguous().transpose(1, 2)  # a kernel's layout
        normaliser = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, *bias, attended, normaliser)
        return attended


class _AsOnGpu(TorchFunctionMode):
    """Keeps the tensors of a GPU's kernels: no scores of attention, a mask of one byte per element of dropout."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args, kwargs["attn_mask"])
        if func is F.dropout and kwargs["p"] > 0:
            return torch.native_dropout(args[0], kwargs["p"], kwargs["training"])[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _fused_kernels(device: str) -> Iterator[None]:
    """Replaces the attention kernels that need a real GPU; a CPU's `sdpa` is made of ordinary operations."""

    def flex(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, table: Tensor, key_padding: Tensor | None) -> Tensor:
        return _FusedAttention.apply(query, key, value, gate, table)

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(attention, "flex_gated_attention", flex))
        if device == "cuda":
            stack.enter_context(_AsOnGpu())
            stack.enter_context(patch.object(transformer, "convolves_in_float32", lambda device: False))
        yield


def _operations(config: WavLMConfig, counts: dict[str, dict[Any, int]]) -> tuple[dict[str, int], dict[str, int], int]:
    """`forward`, `backward` and `recomputed` of `Costs`, from the operations of one forward: module → operator → count."""

    def of(module: str, operator: str = "") -> int:
        modules = [found for name, found in counts.items() if re.fullmatch(rf"WavLMForPretraining{module}", name)]
        return sum(count for found in modules for name, count in found.items() if operator in str(name))

    layer = r"\.wavlm\.encoder\.layers\.0"  # counts for all
    run = config.layers * (1 - config.layer_drop if config.layer_drop_mode == "skip" else 1)
    scores = of(rf"{layer}\.attention", "bmm")  # query · key and weights · value; the others are linear maps
    forward = {
        "extractor": of(r"\.wavlm\.extractor"),
        "projection": of(r"\.wavlm\.projection"),
        "positional": of(r"\.wavlm\.encoder\.positional"),
        "attention": round(run * (of(rf"{layer}\.attention") - scores)),
        "scores": round(run * scores),
        "feed_forward": round(run * of(rf"{layer}\.feed_forward")),
        "head": of("") - of(r"\.wavlm"),
    }
    backward = {part: 2 * count for part, count in forward.items()}
    if config.feature_grad_mult == 0:
        backward["extractor"] = 0
    elif config.front_end == "logmel":
        backward["extractor"] = of(r"\.wavlm\.extractor\.map")  # the weights' gradient of its linear map
    else:
        backward["extractor"] -= of(r"\.wavlm\.extractor\.layers\.0")  # the waveform needs no gradient
    recomputed = forward["extractor"] if config.recompute != "none" and config.feature_grad_mult else 0
    if config.recompute == "all":
        recomputed += forward["attention"] + forward["scores"] + forward["feed_forward"]
        if config.pre_norm and not config.dropout:
            recomputed -= forward["feed_forward"] // 2  # torch stops at the last tensor that is needed, before the last product
    return forward, backward, recomputed
