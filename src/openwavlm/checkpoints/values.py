"""Checks of a checkpoint's files, tensors and configuration values."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from openwavlm.model.config import WavLMConfig
from openwavlm.runtime.resources import retried

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", tuple: "a list of whole numbers"}


def typed(value: Any, like: Any, key: str, origin: str) -> Any:
    """A value of a configuration, converted to the type of `like`: 0 or 1 to bool, int to float, list to tuple.

    Raises:
        ValueError: If it is of another type; with its `key` and the file, `origin`.
    """
    kind = type(like)
    if kind is bool and isinstance(value, int) and value in (0, 1):
        return bool(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    if kind is tuple and isinstance(value, list | tuple) and all(isinstance(one, int) for one in value):
        return tuple(value)
    raise ValueError(f"{key} must be {_KINDS[kind]}, but is {shown(value)} in {origin}")


def shown(value: Any) -> str:
    """A value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} …"


def unreadable(path: Path, error: Exception) -> ValueError:
    """Error for a file of weights that a library cannot read."""
    reason = str(error).split("\n")[0] or type(error).__name__
    return ValueError(f"{path} must be a complete weights file, but cannot be read ({reason}); fetch or save it again")


def check_tensors(state: Any, what: str) -> None:
    """Refuses a state dict that holds anything but tensors by name, with `what` as the subject of the error."""
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise ValueError(f"{what} must hold tensors by name and nothing else, but does not; save the model's state_dict() alone")


def check_conv_front_end(config: WavLMConfig, whose: str) -> None:
    """Refuses to export a model without the waveform extractor, which the class of another program has."""
    if config.front_end != "conv":
        raise ValueError(
            f"{whose} WavLM has a convolutional front end, but this model's is {config.front_end}: it is a control and cannot be "
            "exported; train with model.front_end=conv"
        )


def first_match(name: str, patterns: Iterable[tuple[str, str]]) -> str | None:
    """Reason of the first pattern that matches the beginning of a tensor's name; None without one."""
    return next((reason for pattern, reason in patterns if re.match(pattern, name)), None)


def check_is_weights(path: Path) -> None:
    """Refuses files that are often found in place of weights, by their first bytes.

    Raises:
        ValueError: If it is a pointer of git-lfs, a web page, compressed, JSON, or of the form safetensors under another name.
    """

    def beginning() -> bytes:
        with path.open("rb") as file:
            return file.read(64)

    first = retried(beginning, path)
    # The first eight bytes of safetensors are a length, which may look like any of the kinds below.
    if first[8:9] == b"{" and int.from_bytes(first[:8], "little") < path.stat().st_size:
        if path.suffix == ".safetensors":
            return
        raise ValueError(f"{path} must be a weights file of torch.save, but is of the form safetensors; name it so")
    kinds = {
        b"version https://git-lfs": "a pointer of git-lfs, in place of the file; fetch it with `git lfs pull`",
        b"<!doctype": "a web page, in place of the file; fetch it again",
        b"<html": "a web page, in place of the file; fetch it again",
        b"\x1f\x8b": "compressed by gzip; unpack it",
        b"{": "JSON; give the directory that it is in, or the file of weights",
    }
    what = next((what for start, what in kinds.items() if first.lstrip().lower().startswith(start)), None)
    if what is not None:
        raise ValueError(f"{path} must be a weights file, but is {what}")
