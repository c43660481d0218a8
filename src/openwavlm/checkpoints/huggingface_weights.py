"""Weights of a Hugging Face directory: one file, or several with an index from tensors to files.

model.safetensors                 or  model.safetensors.index.json   and  model-00001-of-00002.safetensors, …
pytorch_model.bin                 or  pytorch_model.bin.index.json   and  pytorch_model-00001-of-00002.bin, …
"""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from openwavlm.checkpoints.pickles import read_pickle
from openwavlm.checkpoints.values import check_is_weights, check_tensors, unreadable
from openwavlm.runtime.files import read_json
from openwavlm.runtime.resources import check_of_the_file, read_again

AGAIN = "fetch or save it again"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
# As transformers: safetensors before pickles, one file before several.
_CANDIDATES = tuple(candidate for name in _WHOLE for candidate in (name, f"{name}.index.json"))
_PARTS = ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")


def weights_files(directory: Path) -> list[Path]:
    """Possible weights files of a directory: whole files and indices, and existing parts."""
    parts = [part for pattern in _PARTS for part in sorted(directory.glob(pattern))]
    return [*(directory / name for name in _CANDIDATES), *parts]


def read_weights(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """The whole file or the index of a directory, and the tensors by name, on the CPU.

    Raises:
        ValueError: If there is neither; if the index or one of its parts is missing, damaged or does not hold its tensors.
    """
    path = next((directory / name for name in _CANDIDATES if (directory / name).is_file()), None)
    if path is None:
        raise ValueError(
            f"a Hugging Face directory must hold model.safetensors or pytorch_model.bin, or one of them in parts with its "
            f".index.json, but {directory} has none of these; give the directory that save_pretrained or export wrote"
        )
    return path, _read_parts(path) if path.suffix == ".json" else _read_file(path)


def _read_parts(index: Path) -> dict[str, Tensor]:
    file_of = read_json(index, remedy=AGAIN).values.get("weight_map")
    # A name with a folder in it could lead anywhere.
    if not isinstance(file_of, dict) or not all(isinstance(file, str) and Path(file).name == file for file in file_of.values()):
        raise ValueError(f"{index} must name the file of each tensor under weight_map, but does not; {AGAIN}")
    state: dict[str, Tensor] = {}
    for name in sorted(set(file_of.values())):
        part = index.parent / name
        if not part.is_file():
            raise ValueError(f"every file that {index} names must be beside it, but {name} is missing; fetch it too")
        held = _read_file(part)
        expected = {tensor for tensor, file in file_of.items() if file == name}
        if held.keys() != expected:
            wrong = min(held.keys() ^ expected)
            raise ValueError(
                f"{part} must hold the tensors that {index.name} says, but {wrong} is in only one of them; fetch or save both again"
            )
        state |= held
    return state


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".bin":
        state = read_pickle(path, tensors_alone=True)
    else:
        check_is_weights(path)
        try:
            state = read_again(lambda: load_file(path), path)
        except Exception as error:  # safetensors has errors of many kinds for a damaged header
            check_of_the_file(error, path)
            raise unreadable(path, error) from error
    check_tensors(state, str(path))
    return state
