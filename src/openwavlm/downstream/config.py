"""The typed config of a fine-tuning."""

from dataclasses import dataclass
from typing import Any, ClassVar

from openwavlm.batches.settings import Batching, Loading, SpanMasking
from openwavlm.downstream.settings import Regularisation, Task, TaskData, Trained
from openwavlm.training.config import LaunchConfig, Precision
from openwavlm.training.health.settings import Health
from openwavlm.training.optim import Optim
from openwavlm.training.settings import Logging, Schedules, TrainerSettings

SPECTRA = ("mfcc", "log_mel")


@dataclass(frozen=True)
class FinetuneConfig(LaunchConfig):
    """A fine-tuning's config: the settings of each group, and the keys that stand alone.

    Attributes:
        task: The task, and the field with its targets.
        data: What is trained on, validated on and tested on.
        trained: What of the model is trained.
        encoder: Regularisation of the encoder.
        masking: Span masks on the encoder's input; the frames get the mask embedding.
        batch: Audio of an update and of a micro-batch.
        optim: Optimiser and schedule.
        trainer: Where the run executes.
        callbacks: How often it validates and saves.
        logger: Records and trackers.
        loader: Loader processes.
        health: Health rules.
        name: The run lives in `runs/NAME`.
        seed: Of the head's initialisation, plan, masks and dropout.
        precision: Of the forward pass.
        init: The encoder: a checkpoint of any dialect, a run of pre-training, or the control `mfcc` or `log_mel` (normalised over the
            utterance, with five frames to each side).
        untrained: Whether the encoder gets random weights, as a control of the same architecture.
        stop_after: Update after which this launch ends, resumable; None = none.
        branch_from: Checkpoint of another run at which this one begins; None = none.
        allow_change: Keys that may differ from the launch before.
        debug: Tracebacks instead of sentences.
    """

    LATER: ClassVar[dict[str, Any]] = {}

    task: Task
    data: TaskData
    trained: Trained
    encoder: Regularisation
    masking: SpanMasking
    batch: Batching
    optim: Optim
    trainer: TrainerSettings
    callbacks: Schedules
    logger: Logging
    loader: Loading
    health: Health
    name: str | int | float
    seed: int
    precision: Precision
    init: str
    untrained: bool
    stop_after: int | None
    branch_from: str | None
    allow_change: list[str]
    debug: bool

    @property
    def weighted_sum(self) -> bool:
        """Whether the head reads a weighted sum of all layers."""
        chosen = self.trained.weighted_sum
        return (self.trained.encoder == "frozen" or self.task.name == "sid") if chosen is None else chosen

    @property
    def of_spectra(self) -> bool:
        """Whether the encoder is one of the controls without a model."""
        return self.init in SPECTRA
