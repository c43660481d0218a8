"""A training run from a composed config, in four acts: open the data, find where to begin, put the parts together, fit."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from omegaconf import DictConfig

from openwavlm.batches.loader import StepLoader
from openwavlm.batches.plan import PLAN_VERSION
from openwavlm.batches.schedule import Schedule
from openwavlm.batches.sources import OpenData
from openwavlm.evaluation.live import LiveProbe
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.runs.announce import announce
from openwavlm.runs.branch import begin_branch, check_head
from openwavlm.runs.check import check_world_size, embeddings_of, open_data
from openwavlm.runs.compose import plain
from openwavlm.runs.init_from import begin_from, check_same_beginning
from openwavlm.runs.lock import RunLock
from openwavlm.runs.monitoring import make_figures, make_monitor
from openwavlm.runs.run_directory import RunRecord, accept_config, names_in
from openwavlm.runs.segment import segment_entry
from openwavlm.runs.segments import names_of_checkpoint
from openwavlm.runs.summary import write_summary
from openwavlm.runs.trainer import device_type, make_trainer
from openwavlm.runtime.collectives import on_rank_zero, together
from openwavlm.runtime.watchdog import Watchdog
from openwavlm.training.build import make_builder, make_model
from openwavlm.training.callbacks import StepBoundary
from openwavlm.training.checkpoint import newest_checkpoint
from openwavlm.training.checkpoint_reader import read_checkpoint
from openwavlm.training.config import RunConfig
from openwavlm.training.control import Control, forget_requests, hear_requeue
from openwavlm.training.health.core_wait import CoreWait
from openwavlm.training.health.monitor import HealthMonitor, WallClock
from openwavlm.training.label_watch import LabelWatch
from openwavlm.training.log import RunLog, log_file, open_trackers, write_log
from openwavlm.training.module import PretrainingModule
from openwavlm.training.ranks import join_processes, requeue_job
from openwavlm.training.records import known_records
from openwavlm.training.run_files import flatten
from openwavlm.training.skipped_updates import check_learned
from openwavlm.training.sums import StepRecord
from openwavlm.training.validation import Evaluation, Unigram

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """One process of one launch.

    Attributes:
        config: Typed config.
        values: The same as plain values, for the records.
        directory: Run directory.
        rank: Of this process.
        world_size: Processes.
    """

    config: RunConfig
    values: dict[str, Any]
    directory: Path
    rank: int
    world_size: int


@dataclass(frozen=True)
class Opened:
    """Data and record of a run.

    Attributes:
        data: Shards and labels, open.
        fingerprints: Their content, equal on all ranks.
        record: The run's `run.json`.
        plan_key: Hash of all that decides the plan.
    """

    data: OpenData
    fingerprints: dict[str, str]
    record: RunRecord
    plan_key: str


@dataclass(frozen=True)
class Beginning:
    """Where a launch begins.

    Attributes:
        checkpoint: The checkpoint that it goes on from; None = the first launch of a run of its own.
        state: What the checkpoint keeps beside weights and optimiser.
        own: Whether the checkpoint is of this run, and not of the run that this one branches from.
        changes: Config keys that differ from the launch or the run before: key → (before, now).
    """

    checkpoint: Path | None
    state: dict[str, Any] | None
    own: bool
    changes: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates that are done."""
        return int(self.state["step"]) if self.state else 0


@dataclass(frozen=True)
class Parts:
    """What a launch trains with.

    Attributes:
        module: The step.
        loader: Its micro-batches.
        trainer: Lightning's.
        boundary: What happens between two updates.
        control: Signals and requests.
        watch: Background check of the labels.
        run_log: Records, on rank 0.
        monitor: Health rules, on rank 0.
    """

    module: PretrainingModule
    loader: StepLoader
    trainer: Trainer
    boundary: StepBoundary
    control: Control
    watch: LabelWatch
    run_log: RunLog | None
    monitor: HealthMonitor | None


def train(config: DictConfig, run_directory: Path) -> dict[str, Any]:
    """Launches or resumes a run.

    Args:
        config: The composed training config.
        run_directory: Where the run lives; the same directory goes on where it stopped.

    Returns:
        The summary that is also written to `summary.json`.

    Raises:
        ValueError: If the config, the data or the state of the run directory does not allow the launch; nothing was trained.
    """
    values = plain(config)
    settings = RunConfig.of(values)
    hear_requeue()
    rank, world_size = join_processes()
    if settings.trainer.threads:
        torch.set_num_threads(settings.trainer.threads)
    lock: list[RunLock] = []
    writing: list[logging.Handler] = []

    def enter() -> dict[str, Any]:
        lock.append(RunLock(run_directory))
        forget_requests(run_directory)
        return accept_config(run_directory, values, settings.allow_change)

    try:
        changes = on_rank_zero(enter)
        writing.append(write_log(run_directory, rank))
        return run_launch(Launch(settings, values, run_directory, rank, world_size), changes)
    finally:
        for handler in writing:
            logging.getLogger().removeHandler(handler)
            handler.close()
        for held in lock:
            held.release()


def run_launch(launch: Launch, changes: dict[str, Any]) -> dict[str, Any]:
    """The four acts, inside a run directory that is locked.

    Args:
        launch: Config and place.
        changes: Config keys that differ from the launch before.

    Returns:
        The summary.
    """
    opened = open_run(launch)
    beginning = resume(launch, opened, changes)
    optim, stop_after = launch.config.optim, launch.config.stop_after
    if beginning.step >= optim.updates or (stop_after is not None and beginning.step >= stop_after):
        return _nothing_to_do(launch, beginning)
    return fit(launch, opened, beginning, assemble(launch, opened, beginning))


def open_run(launch: Launch) -> Opened:
    """Act 1: opens data and record, and refuses what does not fit the config, the machine or the launches before.

    Raises:
        ValueError: If something does not fit.
    """
    config = launch.config
    check_world_size(launch.world_size, config.batch)
    if config.model.layer_drop_mode == "skip" and launch.world_size > 1:
        raise ValueError("model.layer_drop_mode=skip works on one process only (ranks would skip different layers): use where")
    data: OpenData = together(lambda: open_data(config))
    fingerprints = data.fingerprints()
    if together(lambda: fingerprints) != on_rank_zero(lambda: fingerprints):
        raise ValueError("the ranks read different data: the shards, labels or noise on this node differ from rank 0's")
    record = RunRecord(launch.directory)
    record.hear(launch.values["data"], fingerprints, data.source_names())
    record.check_fingerprints(fingerprints, config.allow_change, data.places())
    return Opened(data, fingerprints, record, data.plan_key())


def resume(launch: Launch, opened: Opened, changes: dict[str, Any]) -> Beginning:
    """Act 2: finds the checkpoint to go on from, of this run or of the one that it branches from.

    Raises:
        ValueError: If the checkpoints are lost, or their head does not fit the labels.
    """
    config, record, fingerprints = launch.config, opened.record, opened.fingerprints
    embeddings = embeddings_of(config, opened.data.classes)
    found = on_rank_zero(lambda: newest_checkpoint(launch.directory / "checkpoints"))
    own = found is not None
    if not own:
        on_rank_zero(record.refuse_lost_checkpoints)
        on_rank_zero(record.say_what_is_lost)
    if found is not None:
        check_head(found, embeddings, fingerprints)
    elif config.branch_from:
        found = Path(config.branch_from)
        changes = on_rank_zero(
            lambda: begin_branch(
                found,
                launch.directory,
                launch.values,
                config.optim,
                config.allow_change,
                lambda: check_head(found, embeddings, fingerprints),
            )
        )
        record.inherit(RunRecord(found.resolve().parents[1]))
    return Beginning(found, read_checkpoint(found)["openwavlm"] if found else None, own, changes)


def _nothing_to_do(launch: Launch, beginning: Beginning) -> dict[str, Any]:
    done, updates = beginning.step, launch.config.optim.updates
    log.info("%s has %d updates already; nothing to do", launch.directory, done)
    skipped = int(beginning.state["voids"]) if beginning.state else 0
    summary = write_summary(launch.directory, done, updates, 0.0, 0.0, launch.rank, skipped=skipped)
    if done >= updates:
        check_learned(done, skipped)
    return summary


def assemble(launch: Launch, opened: Opened, beginning: Beginning) -> Parts:
    """Act 3: model, batches, records, health rules and step; nothing is written to the run yet."""
    config, data, directory = launch.config, opened.data, launch.directory
    model = _model(launch, opened, beginning)
    schedule = _schedule(launch, opened, beginning)
    control = Control(directory)
    watch = LabelWatch(
        [store for stores in data.label_sets.values() for store in stores],
        reads=os.environ.get("LOCAL_RANK", "0") == "0",
        on_damage=lambda _: control.ask_stop("damaged labels"),
    )
    live = together(lambda: _live_probe(config, data, directory))
    loader = StepLoader(
        schedule,
        make_builder(config, data, training=True),
        config.loader,
        rank=launch.rank,
        world_size=launch.world_size,
        start_step=beginning.step,
        num_steps=config.optim.updates,
    )
    on_cpu = device_type(config.trainer) == "cpu"
    clock = WallClock((lambda: loader.waited_s) if config.loader.workers else None, CoreWait() if on_cpu else None)
    run_log, monitor = None, None
    if launch.rank == 0:
        run_log = _run_log(launch, data, beginning)
        announce(config, data, schedule.statistics(), beginning.step, launch.world_size, directory, live)
        monitor = make_monitor(
            config,
            data,
            schedule,
            run_log,
            control,
            clock,
            on_cpu=on_cpu,
            start=beginning.step,
            state=beginning.state if beginning.own else None,
        )
    module = _module(launch, opened, model, schedule, control, run_log, monitor)
    boundary = StepBoundary(
        config.callbacks,
        directory,
        updates=config.optim.updates,
        stop_after=config.stop_after,
        evaluation=_evaluation(config, data, control),
        log=run_log,
        on_start=lambda: _begin(launch, opened, beginning, schedule, control, watch, run_log),
        probe=_probe(live, run_log),
        probe_every=config.probes.every,
        paused=clock.paused,
        before_save=lambda: together(watch.confirm),
        after_save=opened.record.note_checkpoint,
    )
    trainer = make_trainer(config.trainer, config.precision, config.optim.updates, directory, boundary, launch.world_size)
    return Parts(module, loader, trainer, boundary, control, watch, run_log, monitor)


def _model(launch: Launch, opened: Opened, beginning: Beginning) -> WavLMForPretraining:
    """Random weights by the config's seed; the encoder of `init_from` in a run's first launch."""
    config = launch.config
    torch.manual_seed(config.seed)
    model = make_model(config, opened.data.classes)
    if beginning.checkpoint is None and config.init_from:
        _begin_from(model.wavlm, config, opened.record)
    if config.model.compile_layers:
        model.wavlm.compile_layers()
    return model


def _begin_from(encoder: WavLM, config: RunConfig, record: RunRecord) -> None:
    """Begins a new run from the checkpoint `init_from`, the same one on every rank, and notes it in `run.json`."""
    path = config.init_from
    assert path is not None
    begun = together(lambda: begin_from(encoder, path))
    if together(lambda: begun["model"]) != on_rank_zero(lambda: begun["model"]):
        raise ValueError(f"the ranks begin from different models: {path} on this node differs from rank 0's")
    check_same_beginning(record.content.get("init_from"), begun, config.allow_change)
    record.content["init_from"] = begun


def _schedule(launch: Launch, opened: Opened, beginning: Beginning) -> Schedule:
    """The plan of the data, from where the checkpoint stands in it."""
    schedule, state = opened.data.schedule(), beginning.state
    if state is not None:
        assert beginning.checkpoint is not None
        names = names_of_checkpoint(beginning.checkpoint, state.get("fingerprints", {}))
        same_names = names == names_in(opened.fingerprints)
        allowed = launch.config.allow_change
        _resume_plan(schedule, state["plan"], opened.plan_key, beginning.step, allowed, same_names=same_names)
    return schedule


def _resume_plan(
    schedule: Schedule, state: dict[str, Any], key: str, start: int, allow_change: list[str], *, same_names: bool
) -> None:
    """Goes on in the checkpoint's plan, or begins the next data epoch of each stream where an allowed change made it another one."""
    if state["plan_version"] != PLAN_VERSION and "plan" not in allow_change:
        raise ValueError(
            f"the checkpoint follows plan version {state['plan_version']}, this version plans by {PLAN_VERSION}: install the version that "
            "run.json names, or allow_change=[plan] to begin the next data epoch with the new plan"
        )
    if state["plan_version"] == PLAN_VERSION and state["key"] == key and same_names:
        schedule.restore(state)
    else:
        schedule.begin_at(start, state)


def _run_log(launch: Launch, data: OpenData, beginning: Beginning) -> RunLog:
    config = launch.config
    return RunLog(
        launch.directory,
        config.logger,
        last_step=beginning.step,
        updates=config.optim.updates,
        penalty_weight=config.loss.feature_penalty,
        target_weights=config.loss.target_weights(len(data.classes)),
        trackers=open_trackers(config.logger, launch.directory, flatten(launch.values)),
        prefixes=known_records(beginning.state, own=beginning.own),
    )


def _module(
    launch: Launch,
    opened: Opened,
    model: WavLMForPretraining,
    schedule: Schedule,
    control: Control,
    run_log: RunLog | None,
    monitor: HealthMonitor | None,
) -> PretrainingModule:
    config, record, plan_key = launch.config, opened.record, opened.plan_key

    def on_record(step: StepRecord) -> None:
        if run_log is not None:
            run_log.update(step)
        if monitor is not None:
            monitor.update(step)

    return PretrainingModule(
        model,
        config.optim,
        config.loss,
        config.mixing,
        seed=config.seed,
        control=control,
        on_record=on_record,
        target_weights=config.loss.target_weights(len(opened.data.classes)),
        unmasked_every=config.callbacks.unmasked_every,
        max_skip_rate=config.data.max_skip_rate,
        float16=config.precision == "16-mixed",
        fingerprints=opened.fingerprints,
        plan_state=lambda step: {"plan_version": PLAN_VERSION, "key": plan_key, **schedule.state(step)},
        health=make_figures(config, opened.data, launch.rank),
        health_state=lambda: monitor.state() if monitor is not None else None,
        records=lambda: (
            run_log.tables.record(len(record.content["segments"]), record.content["run"]) if run_log is not None else {}
        ),
    )


def _begin(
    launch: Launch,
    opened: Opened,
    beginning: Beginning,
    schedule: Schedule,
    control: Control,
    watch: LabelWatch,
    run_log: RunLog | None,
) -> None:
    """Binds the run: all that can be refused has been."""
    patience = launch.config.trainer.watchdog_s
    control.listen(Watchdog(patience, launch.rank, log_file(launch.directory, launch.rank)) if patience else None)
    if launch.rank == 0:
        plan = {"key": opened.plan_key, **schedule.beginning()}
        damaged = {"damaged": run_log.tables.damaged} if run_log is not None and run_log.tables.damaged else {}
        entry = segment_entry(beginning.step, launch.world_size, beginning.changes, opened.fingerprints, plan)
        opened.record.begin_segment(entry | damaged)
    watch.start()


def fit(launch: Launch, opened: Opened, beginning: Beginning, parts: Parts) -> dict[str, Any]:
    """Act 4: trains to the end or to a stop, and writes the summary.

    Raises:
        ValueError: If no update had a finite gradient.
    """
    config, directory, control, run_log = launch.config, launch.directory, parts.control, parts.run_log
    updates, began = config.optim.updates, time.monotonic()
    checkpoint = str(beginning.checkpoint) if beginning.checkpoint else None
    try:
        parts.trainer.fit(parts.module, parts.loader, ckpt_path=checkpoint)
    except SystemExit as error:  # Lightning's answer to a KeyboardInterrupt
        raise KeyboardInterrupt from error
    finally:
        parts.watch.close()
        opened.data.close()
        control.close()
        if run_log is not None:
            run_log.close()
    done, skipped = parts.trainer.global_step, parts.module.skipped.count
    if launch.rank == 0 and done < updates:
        why = "stop_after" if done == config.stop_after else control.why or "what another rank was asked"
        log.info("stopped after update %d of %d by %s; the same command goes on", done, updates, why)
        if parts.boundary.requeue and config.trainer.requeue:
            requeue_job()
    elif launch.rank == 0 and skipped < done:
        log.info("finished; openwavlm export run=%s writes the model for Transformers", directory)
    audio_s = run_log.audio_s_total if run_log is not None else 0.0
    health = parts.monitor.summary() if parts.monitor is not None else None
    seconds = time.monotonic() - began
    summary = write_summary(directory, done, updates, audio_s, seconds, launch.rank, health, skipped=skipped)
    if done >= updates:
        check_learned(done, skipped)
    return summary


def _live_probe(config: RunConfig, data: OpenData, directory: Path) -> LiveProbe | None:
    return LiveProbe(config.probes, data.training_rows(), directory) if config.probes.every else None


def _probe(live: LiveProbe | None, run_log: RunLog | None) -> Callable[[PretrainingModule, int], None] | None:
    """What the step boundary calls where a probe is due; None without probes."""
    if live is None:
        return None

    def probe(module: PretrainingModule, step: int) -> None:
        began = time.monotonic()
        layers = live.run(module.model.wavlm)
        seconds = time.monotonic() - began
        if run_log is not None:
            run_log.probes(step, layers, live.baselines(module.model.wavlm), seconds)

    return probe


def _evaluation(config: RunConfig, data: OpenData, control: Control) -> Evaluation | None:
    specs = data.validation_specs()
    if not specs:
        return None
    unigrams = [Unigram.of(data.label_counts(number)) for number in range(len(data.classes))]
    return Evaluation(specs, make_builder(config, data, training=False), config.loader, unigrams, control)
