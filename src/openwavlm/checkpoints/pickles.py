"""Reads pickled files without running anything in them.

A pickle names functions for its reader to call. Here a name resolves to a constructor of tensors or containers from a short list, or, for
classes that training programs save with their weights (argparse, omegaconf, fairseq, …), to an object that stores its arguments. Every
other name is refused before anything is imported or called.
"""

import collections
import logging
import pickle
import pickletools
import re
import tarfile
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openwavlm.checkpoints.values import check_is_weights, unreadable
from openwavlm.runtime.resources import check_of_the_file, is_archive, read_again

# Modules whose objects describe a training and are read as data.
_DESCRIBING = ("argparse", "omegaconf", "fairseq", "hydra", "numpy", "typing", "enum", "pathlib", "datetime", "collections")
# Names of other modules in pickles of typed configurations and of tensors on other devices.
_INERT = ("_operator.getitem", "operator.getitem", "builtins.type", "__builtin__.type", "torch.device", "torch.Tensor")
_INERT_MODULES = ("torch._tensor", "torch.nn.parameter")
# Conversion to plain values and tensors, which need no classes to be read.
_SAFELY = (
    "import torch; "
    "plain = lambda value: value.detach().clone() if torch.is_tensor(value) "
    "else plain(__import__('omegaconf').OmegaConf.to_container(value)) if type(value).__module__.startswith('omegaconf') "
    "else {name: plain(value[name]) for name in value} if isinstance(value, dict) "
    "else [plain(each) for each in value] if isinstance(value, (list, tuple)) "
    "else value if isinstance(value, (str, int, float, type(None))) and type(value).__module__ == 'builtins' "
    "else value.item() if hasattr(value, 'item') "
    "else plain(value.value) if hasattr(value, 'value') "
    "else plain(vars(value)) if hasattr(value, '__dict__') else None; "
    "content = torch.load('FILE', weights_only=False); torch.save(plain({}), 'NEW')"
)
# The entries that readers of single files use; torchaudio's state dicts hold tensors by name instead.
_ENTRIES = "('cfg', 'args', 'model', 'task_cfg', 'model_cfg', 'model_weight')"
_PARTS = f"{{name: value for name, value in content.items() if name in {_ENTRIES} or torch.is_tensor(value)}}"
_TENSORS = "{name: value for name, value in content.items() if torch.is_tensor(value)}"
_UNSEEN = "damage in its numbers would not be noticed; load and save it with today's torch"
_MOST_OBJECTS = 10_000_000
log = logging.getLogger(__name__)


class Inert:
    """Stand-in for an object of a class that is not loaded: class name, arguments, state and items."""

    kind = ""
    args: tuple[Any, ...]
    state: Any
    listed: list[Any]
    named: dict[Any, Any]

    # Not __init__, which unpickling need not call.
    def __new__(cls, *args: Any, **_: Any) -> "Inert":  # noqa: D102
        made = super().__new__(cls)
        made.args, made.state, made.listed, made.named = args, None, [], {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.named[key] = value

    def append(self, value: Any) -> None:
        """Keeps an item of a list."""
        self.listed.append(value)

    def extend(self, values: Any) -> None:
        """Keeps the items of a list."""
        self.listed.extend(values)


class _RefusedError(Exception):
    """A name outside the allowed ones."""


def _rebuilt(function: Any) -> Any:
    """Wraps a constructor, so that a pickle cannot change the function itself."""
    return lambda *args: function(*args)


def _built(function: Any) -> Any:
    """A constructor of tensors that refuses one with more numbers than were stored, as with strides of 0."""

    def build(*args: Any) -> Any:
        tensor = function(*args)
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has more values than the file holds of it")
        return tensor

    return build


_PLAIN = (set, frozenset, bytearray, complex, dict, list, tuple, int, float, str, bool, bytes, object)
_CONSTRUCTORS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _built(torch._utils._rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _built(torch._utils._rebuild_tensor_v2),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    # A tensor with attributes; its function is one of these constructors or inert, as every name is here.
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, arguments, state: function(*arguments),
    "torch.Size": torch.Size,
    "_codecs.encode": lambda text, encoding: text.encode("latin1"),
    "collections.OrderedDict": collections.OrderedDict,
    # Python 2's names, which torch.save still writes.
    "__builtin__.long": int,
    "__builtin__.unicode": str,
    "copy_reg._reconstructor": lambda kind, *_: kind(),
    **{f"{module}.{kind.__name__}": kind for kind in _PLAIN for module in ("builtins", "__builtin__")},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, **options: Any) -> None:
        begin = file.tell()
        # The C reader allocates memory for any index that a damaged pickle names.
        if any("PUT" in code.name and int(place or 0) > _MOST_OBJECTS for code, place, _ in pickletools.genops(file)):
            raise ValueError("it names more objects than it has")
        file.seek(begin)
        super().__init__(file, **options)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _CONSTRUCTORS:
            return _rebuilt(_CONSTRUCTORS[full])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if full in _INERT or module in _INERT_MODULES or module.split(".")[0] in _DESCRIBING:
            return type("Inert", (Inert,), {"kind": full})
        raise _RefusedError(full)


# The parts of a pickle module that torch.load uses.
_module = types.ModuleType("openwavlm_inert_pickle")
_module.Unpickler = _Unpickler  # type: ignore[attr-defined]
_module.load = lambda file, **_: _Unpickler(file).load()  # type: ignore[attr-defined]
_module.UnpicklingError = pickle.UnpicklingError  # type: ignore[attr-defined]


def read_pickle(path: Path, *, tensors_alone: bool = False) -> Any:
    """Content of a file of `torch.save`, of today's format or from before torch 1.6, as plain values.

    Args:
        path: The file.
        tensors_alone: True if it should hold no configuration, for the message about a safe conversion.

    Returns:
        Tensors on the CPU (mapped from a file of today's format) and what `plain` returns.

    Raises:
        ValueError: If the file is a TorchScript or tar archive, asks for code to be run, or is damaged or incomplete.
    """
    check_is_weights(path)
    zipped = is_archive(path)
    if zipped:
        _check_archive(path)
    if _is_tar(path):
        raise ValueError(
            f"{path} must be a file of torch.save, but is a tar archive; unpack it, or save it again by a newer torch"
        )
    if not zipped:
        log.warning("%s is of the format from before torch 1.6, which has no checksums: %s", path, _UNSEEN)
    try:
        loaded = lambda: torch.load(path, map_location="cpu", pickle_module=_module, weights_only=False, mmap=zipped)  # noqa: E731
        return plain(read_again(loaded, path))
    except _RefusedError as refused:
        safely = _SAFELY.replace("{}", _TENSORS if tensors_alone else _PARTS)
        raise ValueError(
            f"{path} asks for {refused} to be run or loaded, which no weights need; nothing in it was run. If you trust its origin, "
            f'convert it where it was written, on a machine without anything of value: python -c "{safely}"'
        ) from None
    except Exception as error:  # a damaged file can raise almost anything on its way through torch and pickle
        check_of_the_file(error, path)
        raise unreadable(path, error) from error


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except Exception:  # tarfile decompresses some damaged files
        return False


def _check_archive(path: Path) -> None:
    """Refuses archives that are damaged, which torch does not notice, or not of `torch.save`."""
    try:
        names, unchecked = read_again(lambda: _read_through(path), path)
    except Exception as error:  # zipfile and zlib have errors of many kinds
        check_of_the_file(error, path)
        raise unreadable(path, error) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(f"{path} must hold weights, but is a TorchScript program; save the model's state_dict() instead")
    if not any(name.endswith("/data.pkl") for name in names):
        found = names[0] if names else "nothing"
        raise ValueError(f"{path} must be a file of torch.save, but is an archive with {found}; unpack it")
    if unchecked:
        log.warning("%s was written without checksums (%s and others): %s", path, unchecked, _UNSEEN)


def _read_through(path: Path) -> tuple[list[str], str | None]:
    """Names in an archive with correct checksums, and the first name without one; torch can omit them."""
    unchecked = None
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.file_size and not record.CRC:
                unchecked = unchecked or record.filename
                continue
            with archive.open(record) as file:
                while file.read(1 << 20):
                    pass
        return archive.namelist(), unchecked


def plain(value: Any) -> Any:
    """Configurations as dicts and lists, enumerations as their value, other inert objects as None, plain values unchanged."""
    if isinstance(value, Inert):
        return _described(value)
    if isinstance(value, dict):
        return {plain(key) if isinstance(key, Inert) else key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def _described(value: Inert) -> Any:
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    if isinstance(state, dict) and value.kind.startswith("omegaconf."):
        return plain(state["_content"] if "_content" in state else state.get("_val"))
    if isinstance(state, dict) and value.kind == "argparse.Namespace":
        return plain(state)
    if value.kind.endswith("multiarray.scalar") and len(value.args) == 2:
        return _numpy_scalar(*value.args)
    if value.named or value.listed:
        return plain(value.named or value.listed)
    return value.args[0] if len(value.args) == 1 and isinstance(value.args[0], str | int | float) else None


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    """Number or truth value of a NumPy scalar; None for other kinds."""
    name = dtype.args[0] if isinstance(dtype, Inert) and dtype.args else None
    if not isinstance(name, str) or not re.fullmatch(r"[biuf]\d", name) or not isinstance(data, bytes):
        return None
    order = ">" if isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",) else "<"
    return np.frombuffer(data, dtype=f"{order}{name}")[0].item()
