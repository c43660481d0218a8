"""OpenWavLM: the complete open path from recordings to a WavLM-family model."""

from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from openwavlm.model.wavlm import WavLM


def load(path: Path | str, *, normalise_waveform: bool | None = None) -> "WavLM":
    """Loads a checkpoint of WavLM, HuBERT or wav2vec 2.0, of any dialect (docs/checkpoints.md), in evaluation mode.

    `load(path).extract(waveforms)` gives the features of every layer. `checkpoints.load.load_checkpoint` also gives the account of
    what was left out.

    Args:
        path: Hugging Face directory, or a file of Microsoft, fairseq, s3prl or torchaudio.
        normalise_waveform: Whether the model expects normalised waveforms; None = as the checkpoint says.

    Returns:
        The model, float32, on the CPU.

    Raises:
        ValueError: If a file is missing, damaged, or describes something that WavLM's encoder cannot represent.
    """
    from openwavlm.checkpoints.load import load_checkpoint

    return load_checkpoint(path, normalise_waveform=normalise_waveform).model
