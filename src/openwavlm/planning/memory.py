"""Device memory of one training process, estimated from the counted activations (`model/costs.py`).

The backward peaks at one of two moments: at its beginning, when everything is still kept, by two gradients of the encoder's largest
tensor (and one layer computed again); or at its end, when only the extractor's activations are left (kept, or computed again), by two
gradients of the largest of these. Assumed: rows of equal length, `where` LayerDrop, no compiled layers. Not counted: the CUDA context,
fragmentation, cuDNN's workspaces, batches read ahead. `tests/unit/test_costs.py` compares the peak with torch's memory tracker on a CPU.
"""

from dataclasses import dataclass
from typing import Literal

from openwavlm.model.attention import choose_backend
from openwavlm.model.config import WavLMConfig
from openwavlm.model.costs import Costs, MicroBatchShape

_FLOAT = 4


@dataclass(frozen=True)
class Memory:
    """Bytes of a training process on its device.

    Attributes:
        states: Parameters, gradients, moments, 16-bit copies, buckets.
        kept: Activations at the end of the forward by part.
        backward: Peak of the backward beyond these.
    """

    states: dict[str, int]
    kept: dict[str, int]
    backward: int

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(self.states.values()) + sum(self.kept.values()) + self.backward


def estimate_memory(
    config: WavLMConfig,
    parameters: int,
    costs: Costs,
    batch: MicroBatchShape,
    *,
    precision: str,
    processes: int = 1,
    strategy: Literal["ddp", "fsdp"] = "ddp",
    ema: bool = False,
) -> Memory:
    """Estimates the memory of one training process.

    Args:
        config: The encoder, with its `recompute`.
        parameters: Number of parameters of encoder and head.
        costs: Costs of the micro-batch, counted at this precision.
        batch: The micro-batch.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        processes: Number; more than one keeps DDP's buckets, or FSDP2's shards and the two groups that are whole at a time.
        strategy: `ddp` or `fsdp`.
        ema: Whether a running mean of the weights is kept.
    """
    kept: dict[str, int] = {"waveforms": batch.rows * batch.samples * (2 + _FLOAT), **costs.kept}  # int16 and float32
    layer, extractor = kept["layers"] // config.layers, kept.get("extractor", 0)
    if config.recompute != "none":
        kept.pop("extractor", None)
    beginning = 2 * max(size for part, size in costs.largest.items() if part != "extractor")
    if config.recompute == "all":
        bias = 0 if choose_backend(config.attention_backend) == "flex" else _FLOAT * config.heads * batch.frames**2
        kept["layers"] = config.layers * _FLOAT * batch.rows * batch.frames * config.dim + bias  # each layer's input
        beginning += layer
    end = kept["waveforms"] + kept["features"] + extractor + 2 * costs.largest.get("extractor", 0) - sum(kept.values())
    states = _states(parameters, config.layers, processes, mixed=precision != "32-true", sharded=strategy == "fsdp", ema=ema)
    return Memory(states, kept, max(beginning, end))


def _states(parameters: int, layers: int, processes: int, *, mixed: bool, sharded: bool, ema: bool) -> dict[str, int]:
    states = {"parameters": _FLOAT * parameters, "gradients": _FLOAT * parameters, "moments": 2 * _FLOAT * parameters}
    if ema:
        states["running mean"] = _FLOAT * parameters
    whole = parameters
    if processes > 1 and sharded:
        states = {name: -(-count // processes) for name, count in states.items()}
        whole = 2 * (parameters // max(layers, 1))  # no group is larger than a layer by much
        states["gathered"] = _FLOAT * whole
    elif processes > 1:
        states["buckets"] = _FLOAT * parameters
    if mixed:
        states["weights in 16 bits"] = 2 * whole
    return states
