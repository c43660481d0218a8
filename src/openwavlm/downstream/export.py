"""A fine-tuned model as a folder of Transformers with its head, as an ONNX graph, or as an encoder for other libraries and a head."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from openwavlm.checkpoints.about import ABOUT, about_bytes
from openwavlm.checkpoints.huggingface import huggingface_state
from openwavlm.checkpoints.huggingface_config import huggingface_config, preprocessor_config
from openwavlm.checkpoints.load import SINGLE_FILE
from openwavlm.checkpoints.onnx import GRAPH_FILE, check_packages, example_batch, onnx_bytes
from openwavlm.checkpoints.torchaudio import sidecar_of
from openwavlm.downstream.load import LoadedTask, load_task_run
from openwavlm.downstream.model import CtcHead, TaskModel, merge_adapters
from openwavlm.downstream.symbols import write_symbols
from openwavlm.downstream.vocabulary import BLANK, DELIMITER, SPECIAL
from openwavlm.model.wavlm import normalise
from openwavlm.runs.export import check_format_of, trained_on_of, write_encoder
from openwavlm.runs.export_readme import FORMATS, readme
from openwavlm.runtime.atomic import write_atomically

HEAD_FILE = "head.safetensors"
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
    """Writes a fine-tuning with its head in one of `export_readme.FORMATS`; returns the folder.

    The folder of Transformers gets model.safetensors, config.json, preprocessor_config.json, openwavlm.json, README.md and, for CTC,
    vocab.json, tokenizer_config.json and processor_config.json. That of ONNX gets model.onnx, symbols.json and README.md. Those of
    `microsoft`, `s3prl` and `torchaudio`, which have no class for the heads, get the encoder as in `export_run`, and beside it
    head.safetensors, symbols.json, openwavlm.json and README.md.

    Args:
        run: Run directory; `checkpoint` and `weights` as in `load_task_run`.
        output: Folder to write; by default `run/export`, of the other formats `run/export-FORMAT`.
        format: One of `export_readme.FORMATS`.

    Raises:
        ValueError: If the format is unknown, the output holds another one, Transformers has no class for the model, or there is nothing to
            export.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, but is {format!r}")
    if format == "onnx":
        check_packages()
    output = output or run / ("export" if format == "huggingface" else f"export-{format}")
    check_format_of(output, format)
    loaded = load_task_run(run, checkpoint, weights)
    config = loaded.config
    if config.of_spectra:
        raise ValueError(
            f"a control without an encoder has no class in Transformers, but init is {config.init}: export another run"
        )
    if format == "onnx":
        return _export_onnx(loaded, output)
    return (_export_huggingface if format == "huggingface" else _export_parts)(loaded, run, output, format, weights)


def _export_huggingface(loaded: LoadedTask, run: Path, output: Path, format: str, weights: str) -> Path:
    config = loaded.config
    if config.task.of_sequences and loaded.model.layer_weights is not None:
        raise ValueError(
            "Transformers' WavLMForCTC reads the last layer, but this run's head reads a weighted sum of all layers: train it with "
            "trained.weighted_sum=false, or export it with format=onnx, microsoft or torchaudio"
        )
    merge_adapters(loaded.model.wavlm)
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
    page = (
        f"# {output.resolve().name}\n\nTask {config.task.name} after {loaded.step} updates, written by `openwavlm export`.\n\n"
        f"```python\n{example}\n```\n"
    )
    write_atomically(output / "README.md", page.encode())
    write_atomically(
        output / ABOUT, about_bytes(_about(loaded, run, weights), [output / name for name in (*files, "model.safetensors")])
    )
    return output


def _export_parts(loaded: LoadedTask, run: Path, output: Path, format: str, weights: str) -> Path:
    """Encoder for a library without a class for the head, and the head's tensors beside it."""
    model = loaded.model
    merge_adapters(model.wavlm)
    output.mkdir(parents=True, exist_ok=True)
    write_encoder(model.wavlm, output, format)
    head = dict(model.head.state_dict()) | ({} if model.layer_weights is None else {"layer_weights": model.layer_weights})
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in head.items()}
    write_atomically(output / HEAD_FILE, save(tensors))
    write_symbols(output, loaded.config.task.name, loaded.symbols)
    page = readme(output.resolve().name, format, updates=loaded.step, config=model.wavlm.config) + _head_section(loaded, format)
    write_atomically(output / "README.md", page.encode())
    file = output / SINGLE_FILE
    files = [path for path in (file, sidecar_of(file), output / HEAD_FILE) if path.is_file()]
    write_atomically(output / ABOUT, about_bytes(_about(loaded, run, weights), files))
    return output


def _head_section(loaded: LoadedTask, format: str) -> str:
    """Section of the page: the head's arithmetic in terms of its tensors."""
    states = "the last layer's output, through the closing norm if the model has one"
    if loaded.model.layer_weights is not None:
        first = "; torchaudio's `extract_features` leaves the input out" if format == "torchaudio" else ""
        states = (
            f"the sum of {len(loaded.model.layer_weights)} states, the encoder's input and each layer's output before the closing norm, "
            f"weighted by `layer_weights.softmax(0)`{first}"
        )
    linear = (
        "`logits = states @ lm_head.weight.T + lm_head.bias` of each frame are those of CTC, with the blank as symbol 0"
        if loaded.config.task.of_sequences
        else "`projected = states @ projector.weight.T + projector.bias`; its mean over a recording's frames, `pooled`, gives "
        "`logits = pooled @ classifier.weight.T + classifier.bias`"
    )
    return (
        f"\n## Head\n\n`{HEAD_FILE}` has the head of task {loaded.config.task.name}, `symbols.json` the names of its outputs. It reads "
        f"{states}: {linear}.\n"
    )


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
