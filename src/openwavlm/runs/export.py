"""Export of a run to files that Transformers, Microsoft's code, torchaudio, s3prl or an ONNX runtime load."""

import logging
from pathlib import Path
from typing import Any

from openwavlm.checkpoints.about import ABOUT, about_bytes, file_checksum
from openwavlm.checkpoints.fairseq import microsoft_bytes
from openwavlm.checkpoints.head import HEAD_FILE, head_bytes
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.checkpoints.load import SINGLE_FILE
from openwavlm.checkpoints.onnx import GRAPH_FILE, check_packages, encoder_onnx_bytes
from openwavlm.checkpoints.torchaudio import sidecar_of, torchaudio_bytes
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.runs.branch import head_sizes
from openwavlm.runs.export_readme import FORMATS, readme
from openwavlm.runs.run_directory import RunRecord, of_other_data, training_data
from openwavlm.runs.segments import newest_share
from openwavlm.runtime.atomic import write_atomically
from openwavlm.training.build import make_model
from openwavlm.training.checkpoint import named_checkpoint
from openwavlm.training.checkpoint_reader import read_checkpoint
from openwavlm.training.config import RunConfig
from openwavlm.training.run_files import read_config

log = logging.getLogger(__name__)

# Formats that are the same file; only README.md differs.
_SAME = {"s3prl": "microsoft"}


def load_run(run: Path, checkpoint: str = "newest", weights: str = "trained") -> tuple[WavLMForPretraining, dict[str, Any]]:
    """The model of one of a run's checkpoints, in eval mode, and the checkpoint's own entries (`openwavlm`).

    Args:
        checkpoint: `newest` that verifies, `best` by cross-entropy on held-out speakers, or a number of updates.
        weights: `trained`, or `ema`, their running mean in a run with optim.ema.

    Raises:
        ValueError: If the directory is no run, or holds no such checkpoint or weights.
    """
    if weights not in ("trained", "ema"):
        raise ValueError(f"weights must be trained or ema, but is {weights}")
    values = read_config(run / "config.yaml")
    found = named_checkpoint(run / "checkpoints", checkpoint)
    if found is None:
        RunRecord(run).refuse_lost_checkpoints()
        raise ValueError(f"{run} has no checkpoint yet: let it train to callbacks.checkpoint_every, or touch {run / 'save_now'}")
    content = read_checkpoint(found)
    prefix = "model." if weights == "trained" else "ema."
    state = {key.removeprefix(prefix): value for key, value in content["state_dict"].items() if key.startswith(prefix)}
    if not state:
        raise ValueError(f"{run} has no running mean of its weights: train with optim.ema=0.999, or use weights=trained")
    config = RunConfig.of(values)
    try:
        model = make_model(config, [size - config.head.special_rows for size in head_sizes(state)])
        model.load_state_dict(state, strict=True)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{found} does not hold the model of {run / 'config.yaml'} ({reason}): restore both from a copy"
        ) from error
    return model.eval(), content["openwavlm"]


def export_run(
    run: Path, output: Path | None = None, *, checkpoint: str = "newest", weights: str = "trained", format: str = "huggingface"
) -> Path:
    """Writes the encoder in one of `export_readme.FORMATS`, and the prediction head in a file beside it; returns their folder.

    Besides the files of `format` it gets pretraining_head.safetensors, openwavlm.json and README.md.

    Args:
        run: Run directory; `checkpoint` and `weights` as in `load_run`.
        output: Folder to write; by default `run/export`, of the other formats `run/export-FORMAT`.
        format: `huggingface`: model.safetensors, config.json, preprocessor_config.json; `microsoft` and `s3prl`: model.pt;
            `torchaudio`: model.pt, model.json; `onnx`: model.onnx.

    Raises:
        ValueError: If the format is unknown or needs a package that is not installed, the output holds another one, or there is nothing
            to export.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, but is {format!r}")
    if format == "onnx":
        check_packages()
    output = output or run / ("export" if format == "huggingface" else f"export-{format}")
    check_format_of(output, format)
    model, bound = load_run(run, checkpoint, weights)
    record = RunRecord(run)
    output.mkdir(parents=True, exist_ok=True)
    write_encoder(model.wavlm, output, format)
    write_atomically(output / HEAD_FILE, head_bytes(model))
    about = {
        "format_version": 1,
        "updates": bound["step"],
        "weights": weights,
        "fingerprints": bound["fingerprints"],
        "trained_on": _trained_on(run, record, bound["fingerprints"]),
        "head": file_checksum(output / HEAD_FILE),
    }
    if len(heads := model.heads()) > 1:
        about["label_embeddings"] = [len(of_set.label_embeddings) for of_set in heads]
    if (begun := record.content.get("init_from")) is not None:
        about["init_from"] = {name: begun[name] for name in ("model", "dialect")}
    page = readme(output.resolve().name, format, updates=bound["step"], config=model.wavlm.config)
    write_atomically(output / "README.md", page.encode())
    tensors = ("model.safetensors", SINGLE_FILE, GRAPH_FILE)
    names = ("config.json", "preprocessor_config.json", *tensors, sidecar_of(Path(SINGLE_FILE)).name)
    write_atomically(output / ABOUT, about_bytes(about, [output / name for name in names if (output / name).is_file()]))
    return output


def trained_on_of(run: Path) -> dict[str, Any]:
    """What a run was trained on so far, as its export records it (`_trained_on`)."""
    record = RunRecord(run)
    return _trained_on(run, record, record.content.get("fingerprints", {}))


def _trained_on(run: Path, record: RunRecord, fingerprints: dict[str, str]) -> dict[str, Any]:
    """The run's split, shard sets and sources, and, as `before`, other data of earlier launches and of the initial model."""
    share = newest_share(run)
    split = read_config(run / "config.yaml")["data"] | ({} if share is None else {"validation_share": share})
    found, noted = training_data(split, fingerprints), record.content
    before = {"before": noted["init_from"].get("trained_on")} if "init_from" in noted else {}
    for earlier in of_other_data(record.trained_on, found):
        before = {"before": earlier | before}
    return found | ({"sources": noted["sources"]} if "sources" in noted else {}) | before


def check_format_of(output: Path, format: str) -> None:
    """Checks that the folder holds no other format and no shards: loaders look for Hugging Face's files first.

    Raises:
        ValueError: If it does.
    """
    if (output / "index").is_dir():
        raise ValueError(f"a model has a folder of its own, but {output} holds shards: name another output")
    held = [
        *(["huggingface"] if (output / "config.json").is_file() else []),
        *(["torchaudio"] if (file := output / SINGLE_FILE).is_file() and sidecar_of(file).is_file() else []),
        *(["microsoft"] if file.is_file() and not sidecar_of(file).is_file() else []),
        *(["onnx"] if (output / GRAPH_FILE).is_file() else []),
    ]
    if held and held != [_SAME.get(format, format)]:
        raise ValueError(f"one folder holds one format, but {output} holds {held[0]} and format is {format}: name another output")


def write_encoder(model: WavLM, output: Path, format: str) -> None:
    """Writes the files of an encoder in one of the formats into a folder."""
    file = output / SINGLE_FILE
    if format == "huggingface":
        save_huggingface(model, output)
    elif format in ("microsoft", "s3prl"):
        write_atomically(file, microsoft_bytes(model))
    elif format == "onnx":
        write_atomically(output / GRAPH_FILE, encoder_onnx_bytes(model))
    else:
        weights, arguments = torchaudio_bytes(model)
        write_atomically(sidecar_of(file), arguments)
        write_atomically(file, weights)
