"""A training run from a composed config, in four acts: open the data, find the checkpoint, assemble the parts, fit."""

import contextlib
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from openwavlm.runs.assemble import assemble
from openwavlm.runs.beginning import Beginning, Launch, check_label_head, open_run, resume
from openwavlm.runs.compose import plain
from openwavlm.runs.lock import RunLock
from openwavlm.runs.parts import Parts
from openwavlm.runs.run_directory import accept_config
from openwavlm.runs.trainer import make_trainer
from openwavlm.runtime.atomic import write_atomically
from openwavlm.runtime.collectives import on_rank_zero
from openwavlm.training.config import RunConfig
from openwavlm.training.control import forget_requests, keep_early_signals
from openwavlm.training.log_file import write_log
from openwavlm.training.ranks import join_processes, requeue_job
from openwavlm.training.records import last_row
from openwavlm.training.run_files import read_summary
from openwavlm.training.skipped_updates import check_learned

log = logging.getLogger(__name__)


def train(config: DictConfig, run_directory: Path) -> dict[str, Any]:
    """Launches a run, or resumes the one in the run directory; returns the summary, as in `summary.json`.

    Raises:
        ValueError: If the config, the data or the state of the run directory does not allow the launch; nothing was trained.
    """
    values = plain(config)
    return launched(values, RunConfig.of(values), run_directory, run_launch)


def launched(
    values: dict[str, Any],
    settings: Any,
    run_directory: Path,
    acts: Callable[[Launch[Any], dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """Locks the run directory and calls `acts` with the launch and the config keys that differ from the launch before.

    `values` are the config as plain values, `settings` the object made of it.
    """
    keep_early_signals()
    rank, world_size = join_processes()
    if settings.trainer.threads:
        torch.set_num_threads(settings.trainer.threads)
    with contextlib.ExitStack() as stack:

        def enter() -> dict[str, Any]:
            stack.callback(RunLock(run_directory).release)
            forget_requests(run_directory)
            return accept_config(run_directory, values, settings.allow_change)

        changes = on_rank_zero(enter)
        stack.callback(write_log(run_directory, rank).close)
        return acts(Launch(settings, values, run_directory, rank, world_size), changes)


def run_launch(launch: Launch[RunConfig], changes: dict[str, Any]) -> dict[str, Any]:
    """The four acts of pre-training; `changes` are config keys that differ from the launch before."""
    data, record = open_run(launch)
    return fit_the_rest(launch, resume(launch, data, record, changes, partial(check_label_head, launch, data)), assemble)


def fit_the_rest(
    launch: Launch[Any], beginning: Beginning[Any], assemble: Callable[[Launch[Any], Beginning[Any]], Parts]
) -> dict[str, Any]:
    """Acts 3 and 4, unless the run has all of its updates already."""
    optim, stop_after = launch.config.optim, launch.config.stop_after
    if beginning.step >= optim.updates or (stop_after is not None and beginning.step >= stop_after):
        log.info("%s has %d updates already; nothing to do", launch.directory, beginning.step)
        return write_summary(launch, beginning.step, beginning.skipped)
    return fit(launch, beginning, assemble(launch, beginning))


def fit(launch: Launch[Any], beginning: Beginning[Any], parts: Parts) -> dict[str, Any]:
    """Act 4: trains to the end or to a stop, and writes the summary; a `ValueError` if no update had a finite gradient."""
    config, directory, control, run_log = launch.config, launch.directory, parts.control, parts.run_log
    updates, began = config.optim.updates, time.monotonic()
    checkpoint = str(beginning.checkpoint) if beginning.checkpoint else None
    trainer = make_trainer(config.trainer, config.precision, updates, directory, parts.boundary, launch.world_size)
    try:
        trainer.fit(parts.module, parts.loader, ckpt_path=checkpoint)
    except SystemExit as error:  # Lightning's answer to a KeyboardInterrupt
        raise KeyboardInterrupt from error
    finally:
        parts.watch.close()
        beginning.data.close()
        control.close()
        if run_log is not None:
            run_log.close()
    done, skipped = trainer.global_step, parts.module.skipped.count
    if launch.rank == 0 and done < updates:
        why = "stop_after" if done == config.stop_after else control.why or "a request to another rank"
        log.info("stopped after update %d of %d by %s; the same command resumes it", done, updates, why)
        if parts.boundary.requeue and config.trainer.requeue:
            requeue_job()
    elif launch.rank == 0 and skipped < done:
        log.info("finished; openwavlm export run=%s writes the model for Transformers", directory)
    audio_s = run_log.audio_s_total if run_log is not None else 0.0
    health = parts.monitor.summary() if parts.monitor is not None else None
    return write_summary(launch, done, skipped, audio_s, time.monotonic() - began, health)


def write_summary(
    launch: Launch[Any], step: int, skipped: int, audio_s: float = 0.0, seconds: float = 0.0, health: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Writes `summary.json` on rank 0, with its entries of other commands; returns it.

    Args:
        step: Updates that are done, `skipped` of them without effect.
        audio_s: Audio of this launch.
        seconds: Wall time of this launch; 0 = it did not train.
        health: State of each health rule.

    Raises:
        ValueError: If all updates of a finished run were skipped; the summary is written before.
    """
    updates, directory = launch.config.optim.updates, launch.directory
    path = directory / "summary.json"
    kept: dict[str, Any] = {}
    if path.exists():
        try:
            kept = read_summary(path)
        except ValueError as error:
            log.warning("the summary is damaged and written again, without its other entries: %s", error)
    trained = {"audio_seconds": round(audio_s, 1), "wall_seconds": round(seconds, 1)}
    summary = {
        **kept,
        "format_version": 1,
        "updates": step,
        "complete": step >= updates and skipped < step,
        "skipped_updates": skipped,
        "validation": last_row(directory / "validation.csv"),
        "this_launch": trained if seconds else kept.get("this_launch", trained),
    }
    if health is not None:
        summary["health"] = health
    if launch.rank == 0:
        write_atomically(path, (json.dumps(summary, indent=1) + "\n").encode())
    if step >= updates:
        check_learned(step, skipped)
    return summary
