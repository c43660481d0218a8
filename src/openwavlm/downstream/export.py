"""A fine-tuned model as a folder that Transformers loads with its head, tokenizer and feature extractor."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from openwavlm.checkpoints.about import ABOUT, about_bytes
from openwavlm.checkpoints.huggingface import huggingface_state
from openwavlm.checkpoints.huggingface_config import huggingface_config, preprocessor_config
from openwavlm.checkpoints.onnx import GRAPH_FILE, example_batch, onnx_bytes
from openwavlm.downstream.load import LoadedTask, load_task_run
from openwavlm.downstream.model import CtcHead, TaskModel, merge_adapters
from openwavlm.downstream.symbols import write_symbols
from openwavlm.downstream.vocabulary import BLANK, DELIMITER, SPECIAL
from openwavlm.model.wavlm import normalise
from openwavlm.runs.export import trained_on_of
from openwavlm.runtime.atomic import write_atomically

_CTC = """from transformers import pipeline

print(pipeline("automatic-speech-recognition", "{folder}")("speech.wav")["text"])"""
_ONNX = """import numpy
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/model.onnx")
waveforms = numpy.zeros((2, 32_000), numpy.float32)  # (batch, samples) in [-1, 1], 16 kHz, zero-padded at the end
num_samples = numpy.array([32_000, 20_000])  # valid samples of each row
# ({shape}); symbols.json has the names
logits, num_frames = session.run(None, {{"waveforms": waveforms, "num_samples": num_samples}})"""
_CLASSES = """from transformers import pipeline

print(pipeline("audio-classification", "{folder}")("speech.wav"))"""


def export_task(
    run: Path, output: Path | None = None, *, checkpoint: str = "best", weights: str = "trained", format: str = "huggingface"
) -> Path:
    """Writes a fine-tuning with its head, as a folder of Transformers or as an ONNX graph; returns the folder.

    The folder of Transformers gets model.safetensors, config.json, preprocessor_config.json, openwavlm.json, README.md and, for CTC,
    vocab.json, tokenizer_config.json and processor_config.json. That of ONNX gets model.onnx, symbols.json and README.md.

    Args:
        run: Run directory; `checkpoint` and `weights` as in `load_task_run`.
        output: Folder to write; by default `run/export`, of ONNX `run/export-onnx`.
        format: `huggingface` or `onnx`.

    Raises:
        ValueError: If the format is another one, Transformers has no class for the model, or there is nothing to export.
    """
    if format not in ("huggingface", "onnx"):
        raise ValueError(
            f"a fine-tuning is exported with its head by format=huggingface or onnx, but format is {format}: leave it out"
        )
    loaded = load_task_run(run, checkpoint, weights)
    config = loaded.config
    if config.of_spectra:
        raise ValueError(
            f"a control without an encoder has no class in Transformers, but init is {config.init}: export another run"
        )
    if format == "onnx":
        return _export_onnx(loaded, output or run / "export-onnx")
    if config.task.of_sequences and loaded.model.layer_weights is not None:
        raise ValueError(
            "Transformers' WavLMForCTC reads the last layer, but this run's head reads a weighted sum of all layers: train it with "
            "trained.weighted_sum=false, or load it by openwavlm"
        )
    merge_adapters(loaded.model.wavlm)
    output = output or run / "export"
    output.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {f"wavlm.{name}": tensor for name, tensor in huggingface_state(loaded.model.wavlm).items()}
    for name, tensor in loaded.model.head.state_dict().items():
        state[name] = tensor.detach().cpu().contiguous()
    if loaded.model.layer_weights is not None:
        state["layer_weights"] = loaded.model.layer_weights.detach().cpu()
    files = {"config.json": _config(loaded), "preprocessor_config.json": preprocessor_config(loaded.model.wavlm.config)}
    if config.task.of_sequences:
        files |= _tokenizer(loaded)
    for name, content in files.items():
        write_atomically(output / name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    write_atomically(output / "model.safetensors", save(state, metadata={"format": "pt"}))
    example = (_CTC if config.task.of_sequences else _CLASSES).format(folder=output.name)
    readme = (
        f"# {output.resolve().name}\n\nTask {config.task.name} after {loaded.step} updates, written by `openwavlm export`.\n\n"
        f"```python\n{example}\n```\n"
    )
    write_atomically(output / "README.md", readme.encode())
    write_atomically(
        output / ABOUT, about_bytes(_about(loaded, run, weights), [output / name for name in (*files, "model.safetensors")])
    )
    return output


def _about(loaded: LoadedTask, run: Path, weights: str) -> dict[str, Any]:
    """Content of `openwavlm.json`."""
    return {
        "format_version": 1,
        "updates": loaded.step,
        "weights": weights,
        "task": loaded.config.task.name,
        "fingerprints": loaded.fingerprints,
        "trained_on": trained_on_of(run) | {"before": loaded.init.get("trained_on")},
        "init": {name: loaded.init[name] for name in ("model", "dialect")},
    }


class TaskGraph(nn.Module):
    """A fine-tuned model with the inputs and outputs of its ONNX graph."""

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Maps waveforms (batch, samples) that are not normalised to logits and valid frames; a padded row equals the row alone."""
        if self.model.wavlm.config.normalise_waveform:
            waveforms = normalise(waveforms, num_samples)
        output = self.model(waveforms, num_samples)
        return output.logits, output.frames


def task_onnx_bytes(model: TaskModel) -> bytes:
    """Bytes of the ONNX graph: `waveforms` float32 (batch, samples), `num_samples` int64 (batch,) to `logits` and `num_frames`.

    Raises:
        ValueError: As `onnx_bytes` does.
    """
    merge_adapters(model.wavlm)
    axes = ("batch", "frames") if isinstance(model.head, CtcHead) else ("batch",)
    return onnx_bytes(
        TaskGraph(model),
        inputs={"waveforms": ("batch", "samples"), "num_samples": ("batch",)},
        outputs={"logits": axes, "num_frames": ("batch",)},
        traced=example_batch(8_000, 6_000),
        compared=example_batch(4_001, 2_000, 900),
    )


def _export_onnx(loaded: LoadedTask, output: Path) -> Path:
    graph = task_onnx_bytes(loaded.model)
    output.mkdir(parents=True, exist_ok=True)
    write_symbols(output, loaded.config.task.name, loaded.symbols)
    shape = "batch, frames, symbols" if loaded.config.task.of_sequences else "batch, classes"
    example = _ONNX.format(folder=output.name, shape=shape)
    write_atomically(output / "README.md", f"# {output.resolve().name}\n\n```python\n{example}\n```\n".encode())
    write_atomically(output / GRAPH_FILE, graph)
    return output


def _config(loaded: LoadedTask) -> dict[str, Any]:
    config = loaded.config
    content = huggingface_config(loaded.model.wavlm.config)
    if config.task.of_sequences:
        return content | {
            "architectures": ["WavLMForCTC"],
            "vocab_size": len(loaded.symbols),
            "pad_token_id": BLANK,
            "final_dropout": config.task.dropout,
            "ctc_zero_infinity": True,
        }
    return content | {
        "architectures": ["WavLMForSequenceClassification"],
        "use_weighted_layer_sum": loaded.model.layer_weights is not None,
        "classifier_proj_size": config.task.projection,
        "id2label": {str(number): label for number, label in enumerate(loaded.symbols)},
        "label2id": {label: number for number, label in enumerate(loaded.symbols)},
    }


def _tokenizer(loaded: LoadedTask) -> dict[str, dict[str, Any]]:
    """Files of Transformers' processor: the tokenizer's, and the feature extractor's beside it."""
    phones = loaded.config.task.name == "phones"
    pad, begin, end, unknown = SPECIAL
    tokenizer = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "processor_class": "Wav2Vec2Processor",
        "pad_token": pad,
        "bos_token": begin,
        "eos_token": end,
        "unk_token": unknown,
        "word_delimiter_token": None if phones else DELIMITER,
        "replace_word_delimiter_char": " ",
        "do_lower_case": False,
        "clean_up_tokenization_spaces": False,
    }
    extractor = preprocessor_config(loaded.model.wavlm.config)
    return {
        "vocab.json": {symbol: number for number, symbol in enumerate(loaded.symbols)},
        "tokenizer_config.json": tokenizer,
        "processor_config.json": {"processor_class": "Wav2Vec2Processor", "feature_extractor": extractor},
    }
