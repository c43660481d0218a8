"""OpenWavLM: the complete open path from recordings to a WavLM-family model."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openwavlm.models.wavlm import WavLM


def load(path: Path | str, *, normalise_waveform: bool | None = None) -> "WavLM":
    """Loads the model of a Hugging Face directory, ours or published, in evaluation mode.

    `load(path).extract(waveforms)` gives the features of every layer.

    Args:
        path: Directory with `config.json`, `preprocessor_config.json` and the weights.
        normalise_waveform: Whether the model expects normalised waveforms; None = read it from `preprocessor_config.json`.

    Returns:
        The model, float32, on the CPU.

    Raises:
        ValueError: If a file is missing, damaged, or describes something that is not a WavLM encoder.
    """
    from openwavlm.checkpoints.huggingface import load_huggingface

    return load_huggingface(path, normalise_waveform=normalise_waveform)
