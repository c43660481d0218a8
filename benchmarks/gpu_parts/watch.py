"""An ordinary training run (`openwavlm.runs.launch.train`), watched by a callback of Lightning's."""

import contextlib
import gc
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

import openwavlm.runs.launch
from gpu_parts.setting import Setting, synchronise
from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.batches.loader import StepBatch
from openwavlm.model.costs import MicroBatchShape
from openwavlm.planning.budget import GPUS, Recipe, peak_flops
from openwavlm.runs.compose import composed, plain
from openwavlm.training.config import RunConfig, with_placeholders

_SYNCHRONISING = "called a synchronizing"


def recipe(overrides: list[str], classes: int) -> Recipe:
    """Cost of a training's updates, as `openwavlm plan` computes it."""
    values = with_placeholders(plain(composed("train", overrides)))
    return Recipe(RunConfig.of(values), (classes,))


@contextlib.contextmanager
def _with_callback(callback: lightning.Callback) -> Iterator[None]:
    """Adds a callback to the trainers that `openwavlm.runs.launch` makes."""
    original = openwavlm.runs.launch.make_trainer

    def make(*arguments: Any, **settings: Any) -> lightning.Trainer:
        trainer = original(*arguments, **settings)
        trainer.callbacks.append(callback)
        return trainer

    openwavlm.runs.launch.make_trainer = make
    try:
        yield
    finally:
        openwavlm.runs.launch.make_trainer = original


def train(overrides: list[str], directory: Path, callback: lightning.Callback) -> None:
    """Launches a training in this process."""
    with _with_callback(callback), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        openwavlm.runs.launch.train(composed("train", overrides), directory)


def forget(directory: Path | None = None) -> None:
    """Frees what a training leaves behind: memory, compiled code, its run directory."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


class StopAt(lightning.Callback):
    """Ends a training at the first step boundary after a moment of `time.monotonic()`."""

    def __init__(self, moment: float) -> None:
        self._moment = moment

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ends it."""
        if time.monotonic() >= self._moment:
            pl_module.flush()
            trainer.should_stop = True


class Watch(lightning.Callback):
    """Lets updates pass, times some, counts the synchronisations of some more, and ends the training.

    Args:
        recipe: Cost of an update.
        device: `cpu` or `cuda`.
        seconds: Updates are timed for so long, and at least two of them.
        warm_up: Updates that are not timed.
        counted: Updates whose synchronisations are counted.
    """

    def __init__(self, recipe: Recipe, device: str, seconds: float, *, warm_up: int = 2, counted: int = 2) -> None:
        self._recipe, self._device, self._seconds = recipe, device, seconds
        self._warm_up, self._counted = warm_up, counted if device == "cuda" else 0
        self._timed = self._samples = 0
        self._shapes: list[MicroBatchShape] = []
        self._began = self._ended = self._waited = self._waited_before = 0.0
        self._memory: dict[str, int] | None = None
        self._synchronisations: Counter[str] = Counter()
        self._updates_counted = 0
        self._caught: contextlib.ExitStack | None = None
        self._messages: list[warnings.WarningMessage] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        """Counts the update that has just been queued."""
        updates = trainer.global_step
        waited = trainer.train_dataloader.waited_s
        if updates == self._warm_up:
            synchronise(self._device)
            if self._device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self._began, self._waited_before = time.monotonic(), waited
        elif updates > self._warm_up and not self._ended:
            self._count(batch)
            if time.monotonic() - self._began >= self._seconds and self._timed >= 2:
                synchronise(self._device)
                self._ended, self._waited = time.monotonic(), waited - self._waited_before
                self._keep_memory()
                self._end_or_count(trainer)
        elif self._ended:
            self._end_or_count(trainer)

    def _count(self, batch: StepBatch) -> None:
        for micro in batch.micro_batches:
            rows, samples = micro.waveforms.shape
            self._shapes.append(MicroBatchShape(rows=rows, samples=samples, predicted_frames=micro.num_masked))
            self._samples += micro.valid_samples
        self._timed += 1

    def _keep_memory(self) -> None:
        if self._device == "cuda":
            self._memory = {
                "allocated": torch.cuda.max_memory_allocated(),
                "reserved": torch.cuda.max_memory_reserved(),
            }

    def _end_or_count(self, trainer: lightning.Trainer) -> None:
        """From the end of one update to the end of the next every synchronisation warns; without a GPU training ends here."""
        if self._caught is not None:
            self._caught.close()
            self._caught = None
            for message in self._messages:
                if _SYNCHRONISING in str(message.message):
                    self._synchronisations[f"{Path(message.filename).name}:{message.lineno}"] += 1
            self._counted -= 1
            self._updates_counted += 1
        if not self._counted:
            trainer.should_stop = True
            return
        self._caught = contextlib.ExitStack()
        self._messages = self._caught.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        self._caught.callback(torch.cuda.set_sync_debug_mode, "default")
        torch.cuda.set_sync_debug_mode("warn")

    def figures(self) -> dict[str, Any]:
        """All that was measured; what needs a GPU is null on a CPU, with the reason in `without_a_gpu`.

        Raises:
            ValueError: If the training ended before enough updates were timed.
        """
        if not self._ended:
            raise ValueError(
                f"the training ended after {self._timed} timed updates, before its time was over: give it more updates"
            )
        seconds = self._ended - self._began
        return {
            "updates_timed": self._timed,
            "seconds_an_update": seconds / self._timed,
            "audio_s_per_s": self._samples / SAMPLE_RATE_HZ / seconds,
            "waiting_for_data_share": self._waited / seconds,
            **self._arithmetic(seconds),
            "memory": self._memory_figures(),
            "synchronisations": self._synchronisation_figures(),
            **({} if self._device == "cuda" else {"without_a_gpu": "peak memory, utilisation and synchronisations are a GPU's"}),
        }

    def _arithmetic(self, seconds: float) -> dict[str, Any]:
        peak = device_peak(self._device, self._recipe.config.precision)
        flops, recomputed = operations(self._recipe, self._shapes)
        return {
            "flops_per_s": flops / seconds,
            "flop_utilisation": flops / seconds / peak["flops_per_s"] if peak else None,
            "flop_utilisation_without_recomputing": (flops - recomputed) / seconds / peak["flops_per_s"] if peak else None,
            "device_peak": peak,
        }

    def _memory_figures(self) -> dict[str, Any]:
        recipe, found = self._recipe, self._memory
        planned = recipe.memory().total
        of_largest = recipe.memory(batch=max(self._shapes, key=lambda shape: shape.rows * shape.samples)).total
        return {
            "peak_allocated_bytes": found and found["allocated"],
            "peak_reserved_bytes": found and found["reserved"],
            "planned_bytes": planned,
            "planned_bytes_of_largest_seen": of_largest,
            "measured_over_planned": found and found["allocated"] / planned,
            "measured_over_planned_of_largest_seen": found and found["allocated"] / of_largest,
        }

    def _synchronisation_figures(self) -> dict[str, Any] | None:
        updates = self._updates_counted
        if not updates:
            return None
        places = {place: count / updates for place, count in self._synchronisations.most_common()}
        return {"an_update": sum(places.values()), "updates": updates, "places": places}


def operations(recipe: Recipe, shapes: list[MicroBatchShape]) -> tuple[float, float]:
    """All operations of micro-batches, and those that are computed again.

    Counted are the shortest and the longest row; operations a frame grow linearly with the length (within 1e-4: convolutions round
    their output lengths down).
    """
    ends = [min(shapes, key=lambda shape: shape.samples), max(shapes, key=lambda shape: shape.samples)]
    per_frame = []
    for end in ends:
        costs = recipe.costs_of(end)
        per_frame.append([figure / (end.rows * end.frames) for figure in (costs.operations, costs.recomputed)])
    lengths = [end.frames for end in ends]
    rates = [np.interp([shape.frames for shape in shapes], lengths, figures) for figures in zip(*per_frame, strict=True)]
    positions = np.array([shape.rows * shape.frames for shape in shapes])
    return float(positions @ rates[0]), float(positions @ rates[1])


def device_peak(device: str, precision: str) -> dict[str, Any] | None:
    """Peak operations a second of this machine's GPU by `openwavlm plan`'s table, with the source; None if it is not in it."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    known = next((gpu for key, gpu in GPUS.items() if key in name.lower()), None)
    if known is None or (precision == "bf16-mixed" and not known.bfloat16):
        return None
    return {"device": name, "flops_per_s": peak_flops(known, precision), "source": known.source}


def measure_training(setting: Setting, overrides: list[str], directory: Path, seconds: float) -> dict[str, Any]:
    """Figures of a training's updates; `failed` with the reason if it ended with an error, as for want of memory."""
    watch = Watch(recipe(overrides, setting.classes), setting.device, seconds)
    try:
        train(overrides, directory, watch)
        return watch.figures()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"}
    finally:
        forget(directory)
