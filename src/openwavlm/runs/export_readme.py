"""README.md of an exported folder: the code that loads it, and the effect of padding."""

from pathlib import Path

from openwavlm.checkpoints.load import SINGLE_FILE
from openwavlm.checkpoints.onnx import GRAPH_FILE
from openwavlm.checkpoints.torchaudio import sidecar_of
from openwavlm.model.config import WavLMConfig

# Code that loads each format, in one expression.
FORMATS = {
    "huggingface": "transformers.WavLMModel.from_pretrained({folder!r})",
    "microsoft": "WavLM(WavLMConfig(torch.load({weights!r})['cfg'])) of Microsoft's code",
    "torchaudio": "torchaudio.models.wavlm_model with the arguments in {arguments!r}",
    "s3prl": "s3prl.upstream.wavlm.hubconf.wavlm_local({weights!r})",
    "onnx": "onnxruntime.InferenceSession({graph!r})",
}

_ONNX = """import numpy
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
waveforms = numpy.zeros((2, 32_000), numpy.float32)  # (batch, samples) in [-1, 1], zero-padded at the end
num_samples = numpy.array([32_000, 20_000])  # valid samples of each row
states, num_frames = session.run(
    ["hidden_state_{layers}", "num_frames"], {{"waveforms": waveforms, "num_samples": num_samples}}
)
second = states[1, : num_frames[1]]  # (frames, {dim})"""
_S3PRL = """import torch
from s3prl.upstream.wavlm.hubconf import wavlm_local

upstream = wavlm_local("FOLDER/model.pt").eval()
with torch.no_grad():
    states = upstream([torch.zeros(32_000), torch.zeros(20_000)])["hidden_states"]  # {states} tensors (2, frames, {dim})"""
_MORE = {
    "onnx": """

Outputs: `hidden_state_0` (the encoder's input), `hidden_state_1` to `hidden_state_{layers}` (after each layer), `last_hidden_state`
(through the closing norm, if the model has one) and `num_frames`. Name the ones that you need: the others are not copied. A batch may have
any number of rows and any length from 400 samples on. {normalised}""",
    "s3prl": """

`model.pt` is the file of `format=microsoft`, since s3prl contains Microsoft's code. A task of SUPERB, in the folder `s3prl` of s3prl's
repository:

```bash
python3 run_downstream.py -m train -n NAME -d TASK -u wavlm_local -k FOLDER/model.pt
```""",
}
_NORMALISED = {
    True: "The graph normalises each row over its valid samples: pass plain waveforms.",
    False: "The waveforms are not normalised, neither in the graph nor before it.",
}

_GROUP_NORM = """The first convolution has a group norm, whose statistics are taken over time, padding included: a row that was padded in a
batch with longer ones gets other features than the row alone, with or without {mask}. Run recordings of one length together,
or one at a time, wherever features are compared or kept"""
_LAYER_NORM = (
    """Every convolution has a layer norm of its own frame: with {mask} a padded row has the features of the row alone."""
)
_OPENWAVLM = "; `openwavlm extract` and `openwavlm.load(FOLDER).extract` do"
_ATTENTION_MASK = {
    "group": """ Published models of
this kind were trained without a mask, so `preprocessor_config.json` says `return_attention_mask: false`, as theirs do.""",
    "layer": """ Pass the mask on:
`return_attention_mask: true` in `preprocessor_config.json`, as in published models of this kind.""",
}
_MICROSOFTS_RULE = """ s3prl masks by the
rule of Microsoft's code, which can count one frame more of a padded row as valid than `openwavlm` does; that row then differs."""
_NUM_SAMPLES = " A row without a valid frame (fewer than 400 samples) has finite values without meaning."


def loaded_by(format: str, folder: str) -> str:
    """The expression that loads an exported folder."""
    file = Path(folder) / SINGLE_FILE
    files = {"weights": str(file), "arguments": str(sidecar_of(file)), "graph": str(Path(folder) / GRAPH_FILE)}
    return FORMATS[format].format(folder=folder, **files)


def readme(title: str, format: str, *, updates: int, config: WavLMConfig) -> str:
    """Text of the page.

    Args:
        title: Name of the folder.
        format: One of `FORMATS`.
        updates: Number of updates after which the model was saved.
        config: Architecture of the model.
    """
    values = {
        "layers": config.layers,
        "states": config.layers + 1,
        "dim": config.dim,
        "normalised": _NORMALISED[config.normalise_waveform],
    }
    code = {"onnx": _ONNX, "s3prl": _S3PRL}.get(format)
    code = loaded_by(format, "FOLDER") if code is None else code.format(**values)
    return (
        f"# {title}\n\nA {config.layers}-layer speech encoder after {updates} updates, written by `openwavlm "
        f"export` ({format}). Audio is 16 kHz, mono{', each recording normalised' if config.normalise_waveform else ''}; one frame every "
        f"20 ms.\n\n```python\n{code}\n```{_MORE.get(format, '').format(**values)}\n\n## Padding\n\n{_padding(format, config)}\n"
    )


def _padding(format: str, config: WavLMConfig) -> str:
    mask = "`num_samples`" if format == "onnx" else "an attention mask"
    if config.extractor_norm == "group":
        text = f"{_GROUP_NORM.format(mask=mask)}{'' if format == 'onnx' else _OPENWAVLM}."
    else:
        text = _LAYER_NORM.format(mask=mask)
    own = {"onnx": _NUM_SAMPLES, "s3prl": _MICROSOFTS_RULE}
    return text + own.get(format, _ATTENTION_MASK[config.extractor_norm])
