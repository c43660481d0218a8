"""ONNX graphs of encoders, for runtimes without torch: float32, any batch and length, dense attention.

Inputs and outputs of an encoder's graph:

waveforms           float32 (batch, samples) in [−1, 1], 16 kHz, zero-padded at the end, not normalised
num_samples         int64 (batch,), valid samples of each row
hidden_state_0 … L  float32 (batch, frames, dim): the encoder's input and each layer's output, as `WavLM.forward`
last_hidden_state   float32 (batch, frames, dim): the last one, through the closing norm of a `pre_norm` model
num_frames          int64 (batch,), valid frames of each row

Every layer is an output of its own, since downstream models read one layer or a few: a runtime copies only what is asked for, where one
tensor of all layers would be joined and copied in every run.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from openwavlm.audio.frames import num_frames
from openwavlm.checkpoints.values import check_conv_front_end
from openwavlm.model.attention import toeplitz_by_gather
from openwavlm.model.transformer import TransformerEncoder
from openwavlm.model.wavlm import WavLM, evaluating, normalise

GRAPH_FILE = "model.onnx"
_PACKAGES = ("onnx", "onnxscript")
_FILE_LIMIT_BYTES = 2**31 - 2**20  # of protobuf, less some room for the graph
_TOLERANCE = 1e-4  # of the outputs' level; a frozen length fails or differs by far more

Axes = Mapping[str, Sequence[str]]


class EncoderGraph(nn.Module):
    """An encoder with the inputs and outputs of its graph."""

    def __init__(self, model: WavLM):
        super().__init__()
        self.model = model

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Tensor, ...]:
        """Maps waveforms (batch, samples) that are not normalised to hidden states, final state and numbers of frames."""
        if self.model.config.normalise_waveform:
            waveforms = normalise(waveforms, num_samples)
        output = self.model(waveforms, num_samples)
        return (*output.hidden_states, output.final, num_frames(num_samples))


def encoder_onnx_bytes(model: WavLM) -> bytes:
    """Bytes of an encoder's ONNX file.

    Raises:
        ValueError: If the model has no waveform extractor; as `onnx_bytes` does.
    """
    check_conv_front_end(model.config, "an ONNX")
    states = [*(f"hidden_state_{layer}" for layer in range(model.config.layers + 1)), "last_hidden_state"]
    return onnx_bytes(
        EncoderGraph(model),
        inputs={"waveforms": ("batch", "samples"), "num_samples": ("batch",)},
        outputs={**dict.fromkeys(states, ("batch", "frames")), "num_frames": ("batch",)},
        traced=example_batch(8_000, 6_000),
        compared=example_batch(4_001, 2_000, 200),
    )


def example_batch(*num_samples: int) -> tuple[Tensor, Tensor]:
    """Noise (batch, samples) with a row for each length, zero-padded to the longest, and the lengths, int64 (batch,)."""
    lengths = torch.tensor(num_samples)
    noise = 0.1 * torch.randn(len(num_samples), max(num_samples), generator=torch.Generator().manual_seed(0))
    return torch.where(torch.arange(max(num_samples)) < lengths.unsqueeze(-1), noise, 0), lengths


def check_packages() -> None:
    """Raises a ValueError if a package that the export needs is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"format=onnx needs {' and '.join(missing)}, which {'are' if missing[1:] else 'is'} not installed: "
            "pip install 'openwavlm[onnx]'"
        )


def onnx_bytes(module: nn.Module, *, inputs: Axes, outputs: Axes, traced: Sequence[Tensor], compared: Sequence[Tensor]) -> bytes:
    """Bytes of the ONNX graph of a module in evaluation mode, such as an encoder with a head.

    Args:
        module: Float32 module; attention layers inside are traced with the eager backend.
        inputs: Names of the module's arguments, in their order, with the names of the leading axes that vary.
        outputs: Names of the returned tensors, in their order, with the names of the leading axes that vary.
        traced: Arguments to trace the module with.
        compared: Arguments of other sizes, on which the traced program must equal the module.

    Raises:
        ValueError: If a package is missing; if the parameters exceed 2 GiB, the limit of one ONNX file; if the traced program does not
            have the module's outputs for `compared`.
    """
    check_packages()
    size = sum(parameter.numel() * 4 for parameter in module.parameters())
    if size > _FILE_LIMIT_BYTES:
        raise ValueError(
            f"an ONNX file holds at most 2 GiB, but this model's parameters take {size / 2**30:.1f} GiB; use another format"
        )
    varying = {name: dict.fromkeys(range(len(axes)), torch.export.Dim.DYNAMIC) for name, axes in inputs.items()}
    with evaluating(module), _traceable(module), _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(traced),
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(varying.values()),
        )
        assert program is not None and program.exported_program is not None
        _compare(program.exported_program.module(), module, compared)
    graph = program.model_proto
    _clean(graph.graph, {**inputs, **outputs})
    return graph.SerializeToString(deterministic=True)


def _compare(traced: nn.Module, module: nn.Module, arguments: Sequence[Tensor]) -> None:
    """Compares a traced program with its module; a length that was frozen in the trace is a ValueError."""
    try:
        pairs = list(zip(traced(*arguments), module(*arguments), strict=True))
        equal = [bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max()) for found, expected in pairs]
        differs = not all(equal)  # NaN too
        reason = "its outputs differ"
    except (RuntimeError, AssertionError) as error:
        differs, reason = True, " ".join(str(error).split())[:160]
    if differs:
        raise ValueError(
            f"the ONNX graph must run at lengths that were not traced, but does not with torch {torch.__version__} ({reason}); "
            "export with torch 2.11"
        )


@contextmanager
def _traceable(module: nn.Module) -> Iterator[None]:
    """Computes attention of the encoders inside `module` by operations with traces that hold at any length."""
    encoders = [part for part in module.modules() if isinstance(part, TransformerEncoder)]
    before = [(encoder.attention_backend, encoder.spread_bias) for encoder in encoders]
    try:
        for encoder in encoders:
            # torch 2.11 cannot decompose the traced form of the fused kernels.
            encoder.attention_backend, encoder.spread_bias = "eager", toeplitz_by_gather
        yield
    finally:
        for encoder, (backend, spread) in zip(encoders, before, strict=True):
            encoder.attention_backend, encoder.spread_bias = backend, spread


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's log of each pass, its notes about packages that are not needed, and its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [log.level for log in loggers]
    try:
        for log in loggers:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loggers, before, strict=True):
            log.setLevel(level)


def _clean(graph: Any, axes: Axes) -> None:
    """Names the axes of inputs and outputs, and removes the traces of the machine that wrote the graph."""
    for value in (*graph.input, *graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=False):
            axis.dim_param = name
    for node in graph.node:
        del node.metadata_props[:]  # stack traces with paths of this machine
    del graph.value_info[:]  # shapes in symbols without names; runtimes infer them again
    del graph.metadata_props[:]
