"""One timed trial of `openwavlm tune`: some micro-batches of a config in a fresh process; its end by a signal is a result too."""

import contextlib
import itertools
import json
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.batches.batch import MicroBatchId, MixRecord, PretrainBatch
from openwavlm.batches.loader import StepLoader
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.sources import OpenData
from openwavlm.model.costs import LOW_PRECISION
from openwavlm.planning.budget import Recipe
from openwavlm.runtime.processes import killed_worker, leave_with_parent, start_fork_server
from openwavlm.runtime.resources import explained
from openwavlm.training.build import make_builder, make_model
from openwavlm.training.config import RunConfig
from openwavlm.training.control import Control
from openwavlm.training.masked_prediction import MaskedPrediction
from openwavlm.training.module import TrainingModule

_FEWEST = 2  # timed micro-batches of a trial, however long they take


def synthetic_batch(recipe: Recipe) -> PretrainBatch:
    """A full micro-batch of the longest rows: noise, random labels, masks of the config, no mixtures."""
    shape, generator = recipe.micro_batch, np.random.default_rng(0)
    rows, frames = shape.rows, shape.frames
    mask = draw_span_mask(recipe.config.masking, np.full(rows, frames), 0, source=0, epoch=0, micro=0)
    waveforms = generator.integers(-3000, 3000, (rows, shape.samples), dtype=np.int16)
    labels = [torch.from_numpy(generator.integers(0, size, (rows, frames), dtype=np.int32)) for size in recipe.classes]
    return PretrainBatch(
        waveforms=torch.from_numpy(waveforms),
        num_samples=torch.full((rows,), shape.samples),
        labels=torch.stack(labels),
        mask=torch.from_numpy(mask),
        masked_index=torch.from_numpy(np.flatnonzero(mask)),
        unmasked_index=torch.from_numpy(np.flatnonzero(~mask)),
        layer_keep=torch.ones(recipe.config.model.layers, dtype=torch.bool),
        mix=MixRecord.empty(),
        noise=torch.zeros(0, 0, dtype=torch.int16),
        noise_num_samples=torch.zeros(0, dtype=torch.int64),
        rows=torch.arange(rows),
        start_frame=torch.zeros(rows, dtype=torch.int64),
        id=MicroBatchId("synthetic", 0, 0, 0),
        valid_samples=rows * shape.samples,
    )


class _Step:
    """Forward, backward and update of the training module, without Lightning's trainer."""

    def __init__(self, config: RunConfig, classes: Sequence[int], device: torch.device) -> None:
        model = make_model(config, classes)
        if config.model.compile_layers:
            model.wavlm.compile_layers()
        self.objective = MaskedPrediction.of(config, len(classes))
        self.module = TrainingModule(
            model,
            config.optim,
            self.objective,
            control=Control(),
            on_record=lambda record: None,
            logmel_map=self.objective.logmel_map,
            float16=config.precision == "16-mixed",
            fingerprints={},
            plan_state=lambda step: {},
        )
        self.module.to(device).train()
        self.device, self.low = device, LOW_PRECISION.get(config.precision)
        optimizer = self.module.configure_optimizers()
        # Lightning hands the module a wrapper with these attributes.
        self.optimizer = SimpleNamespace(optimizer=optimizer, param_groups=optimizer.param_groups, step=optimizer.step)

    def micro_batch(self, batch: PretrainBatch) -> None:
        """Adds one micro-batch's gradient, and waits for it."""
        module, batch = self.module, batch.to(self.device)
        with torch.autocast(self.device.type, dtype=self.low, enabled=self.low is not None):
            loss = self.objective.outcome(module.model, batch, 0, measured=False).loss / max(1, batch.num_masked)
        (loss if module.loss_scale is None else loss * module.loss_scale.scale).backward()
        self._wait()

    def update(self) -> float:
        """Clips and updates; returns the seconds."""
        began = time.perf_counter()
        self.module.update_weights(self.optimizer, 0)
        self.optimizer.optimizer.zero_grad(set_to_none=True)
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(values: dict[str, Any], classes: Sequence[int], seconds: float, *, with_data: bool) -> dict[str, float]:
    """Times micro-batches of a config in this process.

    Args:
        values: The training config as plain values.
        classes: Number of synthetic labels of each label set.
        seconds: Timed seconds, after one micro-batch and one update that are not timed.
        with_data: Whether to read the config's data through its loader workers, instead of repeating one synthetic batch.

    Returns:
        `audio_seconds_a_second` (padding not counted), `wait_share` (share of the time spent waiting for data),
        `seconds_a_micro_batch`, `peak_memory_bytes` (of the GPU, or of the process on a CPU).

    Raises:
        ValueError: If the config or its data are refused.
    """
    config = RunConfig.of(values)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    with contextlib.ExitStack() as stack:
        if with_data:
            opened = stack.enter_context(contextlib.closing(OpenData(config.data, config.batch, config.seed)))
            classes, batches = opened.classes, _read(config, opened)
        else:
            batches = itertools.repeat(synthetic_batch(Recipe(config, tuple(classes))))
        step = _Step(config, classes, device)
        step.micro_batch(next(batches))
        step.update()
        return _timed(step, batches, seconds, config.batch.slots)


def _read(config: RunConfig, opened: OpenData) -> Iterator[PretrainBatch]:
    builder = make_builder(config, opened, training=True)
    for step in StepLoader(opened.schedule(), builder, config.loader, num_steps=config.optim.updates):
        yield from step.micro_batches


def _timed(step: _Step, batches: Iterator[PretrainBatch], seconds: float, slots: int) -> dict[str, float]:
    count, samples, waited, began = 0, 0, 0.0, time.perf_counter()
    while count < _FEWEST or time.perf_counter() - began < seconds:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        waited += time.perf_counter() - asked
        step.micro_batch(batch)
        samples += batch.valid_samples
        count += 1
    taken = time.perf_counter() - began
    whole = taken + step.update() * count / slots  # an update's part of each micro-batch
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if step.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(step.device)
    return {
        "audio_seconds_a_second": samples / SAMPLE_RATE_HZ / whole,
        "wait_share": waited / whole,
        "seconds_a_micro_batch": whole / max(1, count),
        "peak_memory_bytes": float(peak),
    }


def _child(path: str, values: dict[str, Any], classes: Sequence[int], seconds: float, with_data: bool) -> None:  # noqa: FBT001
    leave_with_parent()
    multiprocessing.set_start_method("fork", force=True)  # loader workers, as in an ordinary training
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), sys.stderr.fileno())
    try:
        result: dict[str, Any] = measure(values, classes, seconds, with_data=with_data)
    except (MemoryError, torch.OutOfMemoryError):
        result = {"failed": "out of memory"}
    except RuntimeError as error:
        first = killed_worker(error) or str(error).strip().split("\n")[0]
        result = {"failed": "out of memory" if re.search("(not enough|out of|allocate) memory", first) else first}
    except (ValueError, OSError) as error:
        result = {"failed": explained(error)}
    Path(path).write_text(json.dumps(result))


def run_trial(
    values: dict[str, Any], classes: Sequence[int], seconds: float, timeout: float, *, with_data: bool
) -> dict[str, Any]:
    """Runs `measure` in a process of its own; returns its figures, or `failed` with the reason, as after `timeout` seconds."""
    # The fork server has imported everything and initialised no GPU: each trial starts clean in a fraction of a second.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openwavlm.planning.trial"])
    start_fork_server()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        process = context.Process(target=_child, args=(str(path), values, classes, seconds, with_data))
        process.start()
        return outcome_of(process, path, timeout)


def outcome_of(process: Any, path: Path, timeout: float) -> dict[str, Any]:
    """Result of a started trial from its file, or `failed` with the reason; ends a trial that takes longer than `timeout` seconds."""
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        return {"failed": f"took longer than timeout={timeout:g} s"}
    if path.is_file():
        return json.loads(path.read_text())
    code = process.exitcode
    if code < 0:
        return {"failed": f"killed by signal {-code}, possibly out of memory: lower batch.micro_seconds or loader.workers"}
    return {"failed": f"ended with status {code}"}
