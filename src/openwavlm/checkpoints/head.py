"""Prediction heads of an exported run, in a file of their own under fairseq's names.

Those of several label sets lie one after another: `final_proj.weight` (sets · final_dim, dim), `final_proj.bias` (sets · final_dim,)
and `label_embs_concat` (embeddings of all sets, final_dim). `openwavlm.json` beside it has their codebooks (`fingerprints`), their
sizes if there are several (`label_embeddings`), and the checksum of the file (`head`), which earlier exports lack.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from openwavlm.checkpoints.about import ABOUT, file_checksum
from openwavlm.checkpoints.huggingface import read_tensors
from openwavlm.model.pretraining import LabelHead, WavLMForPretraining

HEAD_FILE = "pretraining_head.safetensors"
_NAMES = ("final_proj.weight", "final_proj.bias", "label_embs_concat")
_AGAIN = "export the run again, copy its folder again, or delete the file for a new head"


class SavedHead(NamedTuple):
    """Projection and label embeddings of one label set."""

    codebook: str | None  # its hash; None if it is not on record
    weight: Tensor  # (final_dim, dim)
    bias: Tensor  # (final_dim,)
    embeddings: Tensor  # (special rows + classes, final_dim)

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the three tensors."""
        return [tuple(tensor.shape) for tensor in self[1:]]

    def hash(self) -> str:
        """SHA-256 of the tensors."""
        arrays = [np.ascontiguousarray(tensor.float().numpy(), dtype="<f4") for tensor in self[1:]]
        return hashlib.sha256(b"".join(f"{array.shape}\n".encode() + array.tobytes() for array in arrays)).hexdigest()


def tensors_of(head: WavLMForPretraining | LabelHead) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and bias of a head's projection, and its label embeddings."""
    return head.final_proj.weight, head.final_proj.bias, head.label_embeddings


def head_bytes(model: WavLMForPretraining) -> bytes:
    """Bytes of the file."""
    parts = zip(*map(tensors_of, model.heads()), strict=True)
    return save({name: torch.cat([tensor.detach() for tensor in each]) for name, each in zip(_NAMES, parts, strict=True)})


def codebooks_in(fingerprints: Mapping[str, str]) -> list[str]:
    """Hash of the codebook of each label set, by the fingerprints of a run's data."""
    found: list[str] = []
    while (key := f"codebook.{len(found) + 1}" if found else "codebook") in fingerprints:
        found.append(fingerprints[key])
    return found


def read_heads(folder: Path, about: Mapping[str, Any]) -> list[SavedHead]:
    """Reads the heads of an exported folder, with `about` its `openwavlm.json`; none without a file.

    Raises:
        ValueError: If the file is damaged or does not fit `about`.
    """
    file = folder / HEAD_FILE
    if not file.is_file():
        return []
    if "head" in about and about["head"] != file_checksum(file):
        raise ValueError(f"{file} is not the exported file ({ABOUT} has another checksum): {_AGAIN}")
    state = read_tensors(file)
    if state.keys() != set(_NAMES):
        raise ValueError(f"{file} is damaged (it must hold {', '.join(_NAMES)}, but holds {', '.join(sorted(state))}): {_AGAIN}")
    weight, bias, embeddings = (state[name] for name in _NAMES)
    sizes: Sequence[int] = about.get("label_embeddings", embeddings.shape[:1])
    fitting = (weight.ndim, bias.ndim, embeddings.ndim) == (2, 1, 2) and sum(sizes) == len(embeddings)
    if not (fitting and len(weight) == len(bias) == len(sizes) * embeddings.shape[1]):
        shapes = ", ".join(f"{name} {tuple(state[name].shape)}" for name in _NAMES)
        raise ValueError(
            f"{file} is damaged (the shapes {shapes} are not those of heads with {list(sizes)} label embeddings): {_AGAIN}"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise ValueError(f"{file} is damaged (it has values that are not finite): {_AGAIN}")
    codebooks = [*codebooks_in(about.get("fingerprints", {})), *[None] * len(sizes)]
    parts = zip(weight.chunk(len(sizes)), bias.chunk(len(sizes)), embeddings.split(list(sizes)), strict=True)
    return [SavedHead(codebook, *tensors) for codebook, tensors in zip(codebooks, parts, strict=False)]
