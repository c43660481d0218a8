"""From a run to a directory that Transformers loads."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig
from safetensors.torch import save

from openwavlm.build import make_model, objects
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.cli import command
from openwavlm.models.pretraining import WavLMForPretraining
from openwavlm.training.checkpoint import named_checkpoint, write_atomically

log = logging.getLogger(__name__)


def load_run(run: Path, checkpoint: str = "newest", weights: str = "trained") -> tuple[WavLMForPretraining, dict[str, Any]]:
    """The model of one of a run's checkpoints, in eval mode, and what the checkpoint is bound to.

    Args:
        run: Run directory.
        checkpoint: `newest` that verifies, `best` by cross-entropy on held-out speakers, or a number of updates.
        weights: `trained`, or `ema`, their running mean where the run kept one.

    Raises:
        ValueError: If the directory is no run, or holds no such checkpoint or weights.
    """
    if weights not in ("trained", "ema"):
        raise ValueError(f"weights must be trained or ema, but is {weights}")
    config = run / "config.yaml"
    if not config.is_file():
        raise ValueError(
            f"{run} is no run directory (it has no config.yaml): give the folder that train.py wrote, as in run=runs/NAME"
        )
    found = named_checkpoint(run / "checkpoints", checkpoint)
    if found is None:
        raise ValueError(f"{run} has no checkpoint yet: let it train to callbacks.checkpoint_every, or touch {run / 'save_now'}")
    content = torch.load(found, map_location="cpu", weights_only=True)
    prefix = "model." if weights == "trained" else "ema."
    state = {key.removeprefix(prefix): value for key, value in content["state_dict"].items() if key.startswith(prefix)}
    if not state:
        raise ValueError(f"{run} kept no running mean of its weights: train with optim.ema=0.999, or use weights=trained")
    parts = objects(yaml.safe_load(config.read_text()))
    embeddings = [state["label_embeddings"]]
    while (key := f"other_heads.{len(embeddings) - 1}.label_embeddings") in state:
        embeddings.append(state[key])
    model = make_model(parts, [len(of_set) - parts["head"].special_rows for of_set in embeddings])
    model.load_state_dict(state, strict=True)
    return model.eval(), content["openwavlm"]


def export_run(run: Path, output: Path | None = None, *, checkpoint: str = "newest", weights: str = "trained") -> Path:
    """Writes the encoder in Hugging Face's format, and the prediction head in a file beside it.

    Args:
        run: Run directory.
        output: Folder to write; `run/export` by default.
        checkpoint: As in `load_run`.
        weights: As in `load_run`.

    Returns:
        The folder: model.safetensors, config.json, preprocessor_config.json, pretraining_head.safetensors, openwavlm.json.

    Raises:
        ValueError: If there is nothing to export.
    """
    model, bound = load_run(run, checkpoint, weights)
    output = output or run / "export"
    output.mkdir(parents=True, exist_ok=True)
    save_huggingface(model.wavlm, output)
    heads = model.heads()  # several label sets lie one after another, as fairseq's untied heads do
    head = {
        "final_proj.weight": torch.cat([of_set.final_proj.weight.detach() for of_set in heads]),
        "final_proj.bias": torch.cat([of_set.final_proj.bias.detach() for of_set in heads]),
        "label_embs_concat": torch.cat([of_set.label_embeddings.detach() for of_set in heads]),
    }
    write_atomically(output / "pretraining_head.safetensors", save(head))
    about = {"format_version": 1, "updates": bound["step"], "weights": weights, "fingerprints": bound["fingerprints"]}
    if len(heads) > 1:
        about["label_embeddings"] = [len(of_set.label_embeddings) for of_set in heads]
    write_atomically(output / "openwavlm.json", (json.dumps(about, indent=1) + "\n").encode())
    return output


@command("export")
def main(config: DictConfig) -> None:
    """The command `openwavlm export`."""
    output = Path(config.output) if config.output else None
    output = export_run(Path(config.run), output, checkpoint=str(config.checkpoint), weights=config.weights)
    log.info("wrote %s: transformers.WavLMModel.from_pretrained(%r) loads it", output, str(output))
