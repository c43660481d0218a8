"""The model of a fine-tuning's checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openwavlm.downstream.config import FinetuneConfig
from openwavlm.downstream.encoders import encoder_of
from openwavlm.downstream.model import TaskModel, make_task_model
from openwavlm.downstream.symbols import read_symbols
from openwavlm.runs.run_directory import RunRecord
from openwavlm.training.checkpoint import named_checkpoint
from openwavlm.training.checkpoint_reader import read_checkpoint
from openwavlm.training.run_files import read_config


@dataclass(frozen=True)
class LoadedTask:
    """A fine-tuned model.

    Attributes:
        model: In eval mode, on the CPU.
        config: Config of the run.
        symbols: Output symbols or classes, by number.
        step: Updates of the checkpoint.
        init: Entry `init` of `run.json`.
        fingerprints: Of the data.
    """

    model: TaskModel
    config: FinetuneConfig
    symbols: tuple[str, ...]
    step: int
    init: dict[str, Any]
    fingerprints: dict[str, str]


def load_task_run(run: Path, checkpoint: str = "newest", weights: str = "trained") -> LoadedTask:
    """Reads the model of one of a fine-tuning's checkpoints.

    Args:
        checkpoint: `newest` that verifies, `best` on the validation part, or a number of updates.
        weights: `trained`, or `ema`, their running mean in a run with optim.ema.

    Raises:
        ValueError: If the folder is no fine-tuning, or holds no such checkpoint or weights.
    """
    if weights not in ("trained", "ema"):
        raise ValueError(f"weights must be trained or ema, but is {weights}")
    config, symbols, record = FinetuneConfig.of(read_config(run / "config.yaml")), read_symbols(run), RunRecord(run)
    found = named_checkpoint(run / "checkpoints", checkpoint)
    if found is None:
        record.refuse_lost_checkpoints()
        raise ValueError(f"{run} has no checkpoint yet: let it train to callbacks.checkpoint_every, or touch {run / 'save_now'}")
    content = read_checkpoint(found)
    prefix = "model." if weights == "trained" else "ema."
    state = {key.removeprefix(prefix): value for key, value in content["state_dict"].items() if key.startswith(prefix)}
    if not state:
        raise ValueError(f"{run} has no running mean of its weights: train with optim.ema=0.999, or use weights=trained")
    try:
        model = make_task_model(config, encoder_of(config, record.content["init"]), len(symbols))
        model.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{found} does not hold the model of {run / 'config.yaml'} ({reason}): restore both from a copy"
        ) from error
    own = content["openwavlm"]
    return LoadedTask(model.eval(), config, symbols, int(own["step"]), record.content["init"], own["fingerprints"])
