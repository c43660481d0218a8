"""Checks of a checkpoint's files, tensors and configuration values."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openwavlm.model.config import WavLMConfig
from openwavlm.runtime.resources import retried

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", tuple: "a list of whole numbers"}


def typed(value: Any, like: Any, key: str, origin: str) -> Any:
    """The value of `key` in the file `origin`, converted to the type of `like`: 0 or 1 to bool, int to float, list to tuple."""
    kind = type(like)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    fits = {
        bool: isinstance(value, int) and value in (0, 1),
        int: is_number,
        float: is_number or isinstance(value, float),
        str: isinstance(value, str),
        tuple: isinstance(value, list | tuple) and all(isinstance(one, int) for one in value),
    }
    if not fits[kind]:
        raise ValueError(f"{key} must be {_KINDS[kind]}, but is {shown(value)} in {origin}")
    return kind(value)


def read_fields(
    content: Mapping[str, Any], keys: Mapping[str, tuple[str, Any]], allowed: Mapping[str, tuple[Any, ...]], origin: str
) -> dict[str, Any]:
    """Fields of our configuration from another program's.

    Args:
        content: Their configuration.
        keys: Our field → their key and its default.
        allowed: Their key → the values that this encoder implements, the default first.
        origin: The file, for messages.

    Raises:
        ValueError: If a value is of another type, or not implemented.
    """
    for key, values in allowed.items():
        found = content.get(key, values[0])
        if found not in values:
            known = " or ".join(map(repr, values))
            raise ValueError(f"{key} must be {known}, but is {shown(found)} in {origin}; this encoder has no such variant")
    return {field: typed(content.get(key, default), default, key, origin) for field, (key, default) in keys.items()}


def built(fields: Mapping[str, Any], origin: str) -> WavLMConfig:
    """The configuration with these fields; raises a ValueError that names the file if they are none of WavLM's family."""
    try:
        return WavLMConfig(**fields)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{origin} must describe an encoder of WavLM's family, but {error}") from error


def saved(content: Mapping[str, Any]) -> bytes:
    """Bytes of `torch.save`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


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


def check_conv_front_end(config: WavLMConfig, owner: str) -> None:
    """Refuses to export a model without the waveform extractor, which `owner`'s class has."""
    if config.front_end != "conv":
        raise ValueError(
            f"{owner} WavLM has a convolutional front end, but this model's is {config.front_end}; train with model.front_end=conv"
        )


def check_is_weights(path: Path) -> None:
    """Raises a ValueError for a git-lfs pointer, a web page, gzip, JSON, or safetensors under another name, by the first bytes."""

    def beginning() -> bytes:
        with path.open("rb") as file:
            return file.read(64)

    first = retried(beginning, path)
    # The first eight bytes of safetensors are a length, which may look like any of the kinds below.
    if first[8:9] == b"{" and int.from_bytes(first[:8], "little") < path.stat().st_size:
        if path.suffix == ".safetensors":
            return
        raise ValueError(f"{path} must be a weights file of torch.save, but is of the form safetensors; rename it")
    kinds = {
        b"version https://git-lfs": "a pointer of git-lfs, in place of the file; fetch it with `git lfs pull`",
        b"<!doctype": "a web page, in place of the file; fetch it again",
        b"<html": "a web page, in place of the file; fetch it again",
        b"\x1f\x8b": "compressed by gzip; unpack it",
        b"{": "JSON; give its directory, or the file of weights",
    }
    what = next((what for start, what in kinds.items() if first.lstrip().lower().startswith(start)), None)
    if what is not None:
        raise ValueError(f"{path} must be a weights file, but is {what}")
