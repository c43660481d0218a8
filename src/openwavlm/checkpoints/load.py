"""Loads checkpoints of every dialect: a Hugging Face directory, or a single file of Microsoft, fairseq, s3prl or torchaudio."""

import logging
from pathlib import Path

from openwavlm.checkpoints.about import ABOUT, check_files
from openwavlm.checkpoints.account import Loaded
from openwavlm.checkpoints.fairseq import is_fairseq, load_fairseq
from openwavlm.checkpoints.huggingface import load_huggingface, weights_files
from openwavlm.checkpoints.onnx import GRAPH_FILE
from openwavlm.checkpoints.pickles import read_pickle
from openwavlm.checkpoints.torchaudio import is_torchaudio, load_torchaudio, sidecar_of

# The file of tensors in a folder of `openwavlm export format=microsoft` or `torchaudio`.
SINGLE_FILE = "model.pt"
_DESCRIPTIONS = ("config.json", "preprocessor_config.json", "processor_config.json", ABOUT)
log = logging.getLogger(__name__)


def load_checkpoint(path: Path | str, *, normalise_waveform: bool | None = None) -> Loaded:
    """Loads an encoder of WavLM's family.

    HuBERT and wav2vec 2.0 get a neutral gated bias and equal their source. Pickles are read as data; nothing in them is run. The log and
    the account name the tensors that are left out or created.

    Args:
        path: A Hugging Face directory; a folder that `openwavlm export` wrote; a `.pt` file.
        normalise_waveform: True if the model expects normalised waveforms; None for the value in the checkpoint.

    Raises:
        ValueError: If the path does not exist or its dialect is unknown; if it is damaged, differs from `openwavlm.json` beside it, or
            asks for code to be run; if WavLM's encoder cannot represent it; if a tensor is unknown, missing or of another shape.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"a checkpoint must be a directory or a file, but {path} does not exist")
    known = check_files(path if path.is_dir() else path.parent)
    try:
        return _load(path, known=known, normalise_waveform=normalise_waveform)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError) as error:
        # A damaged configuration can hold anything.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{path} must hold an encoder, but cannot be read ({reason}); fetch or save it again") from error


def _load(path: Path, *, known: bool, normalise_waveform: bool | None) -> Loaded:
    if path.suffix == ".onnx" or (path / GRAPH_FILE).is_file():
        raise ValueError(
            f"{path} holds an ONNX graph, which an ONNX runtime loads, not OpenWavLM; export the run with format=huggingface too"
        )
    if path.is_dir():
        if (path / "config.json").is_file() or not (path / SINGLE_FILE).is_file():
            if not known:
                log.info("%s carries no checksums: damage in its numbers would not be noticed", path)
            return load_huggingface(path, normalise_waveform=normalise_waveform)
        path /= SINGLE_FILE
    if path.suffix in (".safetensors", ".json"):
        raise ValueError(f"Hugging Face's files belong together: give their directory {path.parent} in place of {path.name}")
    content = read_pickle(path)
    if is_fairseq(content):
        return load_fairseq(content, origin=str(path), normalise_waveform=normalise_waveform)
    if is_torchaudio(content):
        return load_torchaudio(content, origin=path, normalise_waveform=normalise_waveform)
    if isinstance(content, dict) and {"openwavlm", "state_dict"} <= content.keys():
        raise ValueError(
            f"{path} is a checkpoint of a run of OpenWavLM; write its model by `openwavlm export run=RUN` (checkpoint= names one of "
            "several) and give that folder"
        )
    held = ", ".join(sorted(map(str, content))[:4]) if isinstance(content, dict) else type(content).__name__
    raise ValueError(
        f"a single file must be Microsoft's, fairseq's, s3prl's or torchaudio's, but {path} holds {held or 'nothing'}; Hugging Face's "
        "weights need the directory with their config.json"
    )


def files_of(path: Path) -> list[Path]:
    """Files that a checkpoint may be read from; parts of weights only if they exist."""
    if path.is_dir():
        single = path / SINGLE_FILE
        return [*(path / name for name in _DESCRIPTIONS), *weights_files(path), single, sidecar_of(single)]
    return [path, sidecar_of(path)]
