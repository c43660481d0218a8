"""Hidden states and gradients of the attention backends against eager attention in float32 on the CPU.

Dropout and TF32 are off. The rows of the batch are full, padded, short, and without a single valid frame; all their frames are
compared, padding included. A difference is the largest one in a tensor over the root mean square of the reference.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu_parts.child import Reporter, timed
from gpu_parts.setting import Setting
from openwavlm.audio.frames import num_frames
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.settings import SpanMasking
from openwavlm.model.config import Head, WavLMConfig
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.runs.compose import composed, plain
from openwavlm.training.config import RunConfig, with_placeholders
from random_models import TINY, TINY_LARGE, randomise

_PENALTY = 10.0
_OFF = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "input_dropout": 0.0, "layer_drop": 0.0}
# The softmax does not change when a key moves by the same vector at all frames: this gradient is zero but for rounding.
_ZERO_GRADIENT = ".key.bias"


@dataclass(frozen=True)
class Inputs:
    """A batch of waveforms, masks and labels."""

    waveforms: Tensor
    num_samples: Tensor
    mask: Tensor
    masked_index: Tensor
    labels: Tensor

    def to(self, device: str) -> "Inputs":
        """The same on a device."""
        return Inputs(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def make_inputs(seconds: float, classes: int) -> Inputs:
    """Four rows: full, 2/3, 1/4, and nothing valid; noise as audio."""
    generator = torch.Generator().manual_seed(0)
    longest = round(16_000 * seconds)
    num_samples = torch.tensor([longest, 2 * longest // 3, longest // 4, 0])
    valid = torch.arange(longest) < num_samples[:, None]
    waveforms = 0.1 * torch.randn(4, longest, generator=generator) * valid
    frames = num_frames(num_samples).clamp(min=0).numpy().astype(np.int64)
    mask = np.zeros((4, num_frames(longest)), dtype=bool)
    drawn = draw_span_mask(SpanMasking(), frames, 0, source=0, epoch=0, micro=0)
    mask[:, : drawn.shape[1]] = drawn
    index = torch.from_numpy(np.flatnonzero(mask))
    labels = torch.randint(0, classes, (len(index),), generator=generator)
    return Inputs(waveforms, num_samples, torch.from_numpy(mask), index, labels)


@dataclass(frozen=True)
class Passed:
    """What one forward and backward pass gives, on the CPU."""

    loss: float
    hidden_states: list[Tensor]
    gradients: dict[str, Tensor]


def run(model: WavLMForPretraining, inputs: Inputs, *, backward: bool = True) -> Passed:
    """Forward and backward of the loss of masked prediction with its feature penalty."""
    kept: list[Any] = []
    handle = model.wavlm.register_forward_hook(lambda module, arguments, output: kept.append(output))
    model.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(backward), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flex attention without torch.compile, on a CPU
        output = model(inputs.waveforms, inputs.num_samples, inputs.mask, inputs.masked_index, [inputs.labels])
        loss = output.sets[0].cross_entropy_sum / len(inputs.labels) + _PENALTY * output.feature_penalty
        if backward:
            loss.backward()
    handle.remove()
    gradients = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return Passed(float(loss.detach()), [state.detach().float().cpu() for state in kept[0].hidden_states], gradients)


def over_rms(found: Tensor, expected: Tensor) -> float | None:
    """Largest difference over the root mean square of `expected`; None if it is not finite."""
    value = float((found - expected).abs().max() / expected.square().mean().sqrt())
    return value if np.isfinite(value) else None


def compared(found: Passed, expected: Passed) -> dict[str, Any]:
    """The differences of two passes: each hidden state's, and the five largest of the gradients."""
    states = [over_rms(a, b) for a, b in zip(found.hidden_states, expected.hidden_states, strict=True)]
    of = {name: over_rms(found.gradients[name], b) for name, b in expected.gradients.items() if name in found.gradients}
    of = {name: value for name, value in of.items() if _ZERO_GRADIENT not in name}
    worst = sorted(of.items(), key=lambda item: float("inf") if item[1] is None else item[1], reverse=True)
    return {
        "loss": abs(found.loss - expected.loss) / abs(expected.loss),
        "hidden_states": states,
        "largest_of_hidden_states": None if None in states else max(states),
        "largest_of_gradients": worst[0][1] if worst else None,
        "worst_gradients": dict(worst[:5]),
        "gradients_compared": len(of),
    }


def shapes(setting: Setting) -> dict[str, tuple[WavLMConfig, int]]:
    """Architectures and the width of their heads."""
    if not setting.full:
        return {"base": (TINY, 16), "large": (TINY_LARGE, 16)}
    found = {}
    for name in ("base", "large"):
        values = plain(composed("train", ["name=x", f"experiment=wavlm_{name}"]))
        config = RunConfig.of(with_placeholders(values))
        found[name] = (config.model, config.head.final_dim)
    return found


def _variants(setting: Setting) -> list[tuple[str, str, bool]]:
    """(name, backend, whether layers are compiled)."""
    plainly = [(backend, backend, False) for backend in ("eager", "sdpa", "flex")]
    return [*plainly, ("sdpa, compiled layers", "sdpa", True)] if setting.on_gpu else plainly[1:]


def _compare_with(model: WavLMForPretraining, backend: str, inputs: Inputs, expected: Passed, setting: Setting) -> dict[str, Any]:
    # torch 2.11 has no backward of flex attention on a CPU.
    backward = setting.on_gpu or backend != "flex"
    seconds, found = timed(run, model.to(setting.device), inputs.to(setting.device), backward=backward)
    figures = compared(found, expected) | {"seconds": seconds}
    return figures if backward else figures | {"gradients": "flex attention has gradients on a GPU only"}


def measure(setting: Setting, report: Reporter) -> None:
    """Reports the differences of each backend for Base's architecture (post-norm, group norm) and Large's (pre-norm, layer norm)."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    classes, found = setting.classes, {}
    for shape, (config, final_dim) in shapes(setting).items():
        off = replace(config, **_OFF, attention_backend="eager")
        model = randomise(WavLMForPretraining(WavLM(off), Head(final_dim=final_dim), num_classes=classes)).train()
        inputs = make_inputs(4.0 if setting.full else 1.0, classes)
        seconds, expected = timed(run, model, inputs)
        rows = found[shape] = {"reference": {"device": "cpu", "loss": expected.loss, "seconds": seconds}, "backends": {}}
        for name, backend, compiled in _variants(setting):
            other = WavLMForPretraining(
                WavLM(replace(off, attention_backend=backend)), Head(final_dim=final_dim), num_classes=classes
            )
            other.load_state_dict(model.state_dict())
            if compiled:
                other.wavlm.compile_layers()
            try:
                rows["backends"][name] = _compare_with(other.train(), backend, inputs, expected, setting)
            except Exception as error:
                rows["backends"][name] = {"failed": f"{type(error).__name__}: {str(error).strip()[:300]}"}
            del other
            report(device=setting.device, rows_valid_samples=inputs.num_samples.tolist(), **found)
