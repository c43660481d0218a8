"""Device of a command, by its key `device`."""

import os

import torch


def named_device(device: str) -> str:
    """`cpu` or `cuda`; `auto` is `cuda` if torch finds a GPU.

    Raises:
        ValueError: If there is no such device.
    """
    if device not in ("cpu", "cuda", "auto"):
        raise ValueError(f"device must be one of cpu, cuda, auto, but is {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device is cuda, but torch finds no GPU here: use device=cpu, or device=auto; `nvidia-smi` lists the GPUs"
        )
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def choose_device(device: str) -> torch.device:
    """Device of this process, as in `named_device`; under torchrun each process of a node has its own GPU."""
    if named_device(device) == "cpu":
        return torch.device("cpu")
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(chosen)
    return chosen
