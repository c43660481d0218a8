"""Entry of one launch in `run.json`: first step, software, machine, command."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from openwavlm.batches.plan import PLAN_VERSION


def _commit() -> str | None:
    """The commit of this package's checkout; None for an installed package or without git."""
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def _version(package: str) -> str:
    """Version of a package; a checkout on PYTHONPATH has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def segment_entry(
    step: int, world_size: int, changes: dict[str, Any], fingerprints: dict[str, str], plan: dict[str, Any]
) -> dict[str, Any]:
    """Entry of a launch that begins after update `step`."""
    return {
        "from_step": step,
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("openwavlm", "torch", "lightning", "numpy", "soundfile")},
        "commit": _commit(),
        "plan_version": PLAN_VERSION,
        "plan": plan,
        "fingerprints": fingerprints,
        "changes": {key: list(values) for key, values in changes.items()},
        "command": " ".join(sys.argv),
    }
