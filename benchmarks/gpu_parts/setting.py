"""Arguments of each part: device, size, folders, time; and the overrides that every training of the program has."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

# A model of two layers of 16 numbers, and updates of two micro-batches of 4 s.
_TOY = (
    "model.conv_dims=[8,8,8,8,8,8,8]",
    "model.dim=16",
    "model.ffn_dim=32",
    "model.heads=2",
    "model.layers=2",
    "model.positional_kernel=8",
    "model.positional_groups=2",
    "model.head.final_dim=8",
    "batch.seconds=8",
    "batch.micro_seconds=4",
    "batch.max_seconds=2",
    "batch.min_seconds=0.5",
)


class SkippedError(Exception):
    """Raised by a part that cannot run here; its text is the reason."""


@dataclass(frozen=True)
class Setting:
    """Where and how a part runs.

    Attributes:
        folder: Scratch folder of the program.
        device: `cpu` or `cuda`.
        size: `toy` or `full`.
        cores: CPU cores that may be used.
        box_s: Seconds that the part may take.
        clock: Seconds from any origin.
        began: What the clock said at its beginning.
    """

    folder: Path
    device: str
    size: str
    cores: int
    box_s: float
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "began", self.clock())

    @property
    def full(self) -> bool:
        """Whether the size is `full`."""
        return self.size == "full"

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"

    @property
    def data(self) -> Path:
        """Folder of shards, codebook, labels and noise."""
        return self.folder / "data"

    @property
    def classes(self) -> int:
        """Clusters of the codebook."""
        return 500 if self.full else 20

    @property
    def workers(self) -> int:
        """Processes that prepare data; a pool takes longer to start than the toy data take."""
        return self.cores if self.full else 1

    def left_s(self) -> float:
        """Seconds that are left of the box."""
        return self.box_s - (self.clock() - self.began)

    def training(self, experiment: str, *overrides: str) -> list[str]:
        """Overrides of a training on the synthetic shards; at toy size of a tiny model.

        Nothing is held out, validated or saved, so that what is timed are updates.
        """
        return [
            f"experiment={experiment}",
            "name=gpu",
            f"data.sources.speech.shards={self.data / 'speech' / 'shard-set'}",
            f"data.sources.speech.labels={self.data / 'labels'}",
            f"data.noise={self.data / 'noise' / 'shard-set'}",
            "data.validation_share=0",
            "callbacks.validate_every=0",
            "callbacks.checkpoint_every=1000000",
            "health.count_rows=0",
            "trainer.watchdog_s=null",
            f"trainer.accelerator={'gpu' if self.on_gpu else 'cpu'}",
            f"loader.workers={max(1, min(8, self.cores // 2))}",
            *(() if self.full else _TOY),
            *overrides,
        ]


def synchronise(device: str) -> None:
    """Waits for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
