"""Values of a checkpoint's configuration, each of the type that its key has, and files that are taken for weights and are none."""

from pathlib import Path
from typing import Any

from openwavlm.runtime.resources import retried

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", tuple: "a list of whole numbers"}


def typed(value: Any, like: Any, key: str, origin: str) -> Any:
    """A value as the type of another one: 0 and 1 are false and true, a whole number is a number, a list is a tuple.

    Args:
        value: What the configuration has.
        like: A value of the type that it must have.
        key: Its name there, for the message.
        origin: The file, for the message.

    Raises:
        ValueError: If it is of another type.
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
    raise ValueError(f"{key} must be {_KINDS[kind]}, but is {shown(value)} in {origin}; correct it there")


def shown(value: Any) -> str:
    """A value as an error shows it: its beginning, if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} …"


def check_is_no_other_file(path: Path) -> None:
    """Refuses what is often found where weights should be, by its first bytes.

    Raises:
        ValueError: If it is a pointer of git-lfs, a web page, compressed, JSON, or of the form safetensors under another name.
    """

    def beginning() -> bytes:
        with path.open("rb") as file:
            return file.read(64)

    first = retried(beginning, path)
    # Its first eight bytes are a length, which may look like anything below.
    if first[8:9] == b"{" and int.from_bytes(first[:8], "little") < path.stat().st_size:
        if path.suffix == ".safetensors":
            return
        raise ValueError(f"{path} must be a weights file of torch.save, but is of the form safetensors; name it so")
    kinds = (
        (
            first.startswith(b"version https://git-lfs"),
            "a pointer of git-lfs, in place of the file; fetch it with `git lfs pull`",
        ),
        (first.lstrip().lower().startswith((b"<!doctype", b"<html")), "a web page, in place of the file; fetch it again"),
        (first.startswith(b"\x1f\x8b"), "compressed by gzip; unpack it"),
        (first.lstrip().startswith(b"{"), "JSON; give the directory that it is in, or the file of weights"),
    )
    what = next((what for found, what in kinds if found), None)
    if what is not None:
        raise ValueError(f"{path} must be a weights file, but is {what}")
