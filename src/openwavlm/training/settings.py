"""Settings of the step, its side jobs, records and processes. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Loss:
    """Weights of the loss.

    The two warm-up losses make the waveform extractor of a small model learn several times sooner; they are in no reference.

    Attributes:
        feature_penalty: λ, weight of the mean squared convolutional feature (fairseq: loss_weights [10]).
        unmasked: First weight of the cross-entropy on unmasked frames, which then falls linearly to 0 (fairseq: pred_nomask_weight,
            constant there).
        logmel: First weight of the mean squared error of a linear map from the convolutional features to 40 normalised log-mels.
        warm_share: Share of the updates over which both fall to 0.
        targets: Weight of each label set in a run with several; null = all equal. The loss is the weighted mean over the sets.

    Raises:
        ValueError: If a weight is negative, or a label set's not positive.
    """

    feature_penalty: float = 10.0
    unmasked: float = 0.0
    logmel: float = 0.0
    warm_share: float = 0.4
    targets: list[float] | None = None

    def __post_init__(self) -> None:
        for name in ("feature_penalty", "unmasked", "logmel"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"loss.{name} must be a number that is not negative, but is {getattr(self, name)}")
        if not 0 < self.warm_share <= 1:
            raise ValueError(f"loss.warm_share must lie in (0, 1], but is {self.warm_share}")
        if self.targets is not None and not all(0 < weight < float("inf") for weight in self.targets):
            raise ValueError(
                f"loss.targets must be positive numbers, one a label set, but is {self.targets}: leave a set out instead"
            )

    def target_weights(self, sets: int) -> list[float]:
        """Each label set's part of the loss; they sum to 1.

        Raises:
            ValueError: If there are not as many weights as sets.
        """
        given = [1.0] * sets if self.targets is None else self.targets
        if len(given) != sets:
            raise ValueError(
                f"loss.targets must have a weight for each label set of data.sources, {sets}, but has {len(given)}: give as many, or "
                "null for equal ones"
            )
        return [weight / sum(given) for weight in given]

    def warm(self, step: int, updates: int) -> float:
        """Factor of the warm-up losses at update `step` of `updates`."""
        return max(0.0, 1 - step / (self.warm_share * updates))


@dataclass(frozen=True)
class Schedules:
    """Intervals of the side jobs at step boundaries; nothing here changes the trajectory.

    Attributes:
        checkpoint_every: Updates between two checkpoints; one is always written at the end and at a stop.
        keep_last: Number of the last checkpoints that are kept.
        keep_every: Checkpoints after a multiple of so many updates are kept too; 0 = none.
        keep_best: Number of those with the lowest cross-entropy on held-out speakers that are kept too.
        validate_every: Updates between two validations; one is always made at the end. 0 = never.
        unmasked_every: Updates between two measurements of the accuracy on unmasked frames; 0 = never.

    Raises:
        ValueError: If a number is out of range.
    """

    checkpoint_every: int = 1000
    keep_last: int = 3
    keep_every: int = 0
    keep_best: int = 0
    validate_every: int = 1000
    unmasked_every: int = 50

    def __post_init__(self) -> None:
        least = {"checkpoint_every": 1, "keep_last": 1, "keep_every": 0, "keep_best": 0, "validate_every": 0, "unmasked_every": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"callbacks.{name} must be at least {value}, but is {getattr(self, name)}: raise it")

    def kept_of(self, updates: int) -> int:
        """Largest number of checkpoints in the folder of a run of `updates`, with the one that is being written."""
        saved = -(-updates // self.checkpoint_every)
        return min(saved, self.keep_last + self.keep_best + (updates // self.keep_every if self.keep_every else 0)) + 1


@dataclass(frozen=True)
class Logging:
    """Intervals of records, and trackers.

    Attributes:
        every_s: Seconds between two progress lines.
        tensorboard_every: Steps between two points in TensorBoard and the trackers.
        project: Project in W&B, experiment in MLflow.
        wandb: `off`, `offline` (files in the run directory) or `online`.
        mlflow: MLflow's store of runs, a URI such as `file:///data/mlruns` or a server's; null = no MLflow.

    Raises:
        ValueError: If a number is not positive.
    """

    every_s: float = 10.0
    tensorboard_every: int = 10
    project: str = "openwavlm"
    wandb: Literal["off", "offline", "online"] = "off"
    mlflow: str | None = None

    def __post_init__(self) -> None:
        if not (self.every_s > 0 and self.tensorboard_every > 0):
            raise ValueError(
                f"logger.every_s and logger.tensorboard_every must be positive, but are {self.every_s}, {self.tensorboard_every}"
            )


@dataclass(frozen=True)
class TrainerSettings:
    """Device and processes; nothing here changes the trajectory.

    Attributes:
        accelerator: `auto`, `cpu` or `gpu`.
        devices: Processes on this node, unless torchrun or Slurm started them.
        threads: CPU threads of each process; null = torch's choice.
        strategy: `ddp` (each process has the whole model) or `fsdp` (parameters, gradients and moments in shards, FSDP2); without effect
            on one process.
        watchdog_s: Seconds without progress after which a process prints its stacks and exits with status 75; null = never.
        requeue: Whether SIGUSR1 (`#SBATCH --signal=USR1@180`) queues a Slurm job again after saving.

    Raises:
        ValueError: If a number is not positive.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    threads: int | None = None
    strategy: Literal["ddp", "fsdp"] = "ddp"
    watchdog_s: float | None = 1800.0
    requeue: bool = True

    def __post_init__(self) -> None:
        if self.devices < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(
                f"trainer.devices and trainer.threads must be at least 1 (threads: null for torch's choice), but are {self.devices}, "
                f"{self.threads}"
            )
        if self.watchdog_s is not None and not self.watchdog_s > 0:
            raise ValueError(f"trainer.watchdog_s must be positive, or null for no watchdog, but is {self.watchdog_s}: raise it")
