"""The third act of a launch: assembly of model, batches, records, health rules and step from config, data and checkpoint."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from openwavlm.batches.loader import StepLoader
from openwavlm.batches.plan import PLAN_VERSION
from openwavlm.batches.schedule import Schedule
from openwavlm.batches.sources import OpenData
from openwavlm.checkpoints.head import codebooks_in
from openwavlm.evaluation.live import LiveProbe
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.runs.announce import announce
from openwavlm.runs.beginning import Beginning, Launch, note_held_out_seen
from openwavlm.runs.init_from import begin_from, check_same_beginning
from openwavlm.runs.monitoring import make_figures, make_monitor
from openwavlm.runs.parts import Parts
from openwavlm.runs.run_directory import RunRecord, names_in
from openwavlm.runs.segments import names_of_checkpoint, segment_entry
from openwavlm.runs.trainer import device_type
from openwavlm.runtime.collectives import on_rank_zero, together
from openwavlm.runtime.watchdog import Watchdog
from openwavlm.training.build import make_builder, make_model
from openwavlm.training.callbacks import StepBoundary
from openwavlm.training.config import LaunchConfig, RunConfig
from openwavlm.training.control import Control
from openwavlm.training.health.core_wait import CoreWait
from openwavlm.training.health.monitor import HealthMonitor, WallClock
from openwavlm.training.label_watch import LabelWatch
from openwavlm.training.log import RunLog
from openwavlm.training.log_file import log_file
from openwavlm.training.masked_figures import MaskedFigures
from openwavlm.training.masked_prediction import MaskedPrediction
from openwavlm.training.module import TrainingModule
from openwavlm.training.records import known_records
from openwavlm.training.run_files import flatten
from openwavlm.training.sums import StepRecord
from openwavlm.training.trackers import open_trackers
from openwavlm.training.validation import Evaluation


def assemble(launch: Launch[RunConfig], beginning: Beginning[OpenData]) -> Parts:
    """Act 3: assembles model, batches, records, health rules and step; nothing is written to the run yet."""
    config, data, directory = launch.config, beginning.data, launch.directory
    model = _model(config, beginning)
    schedule = resumed_schedule(config, beginning)
    control = Control(directory)
    watch = LabelWatch(
        [store for stores in data.label_sets.values() for store in stores],
        reads=os.environ.get("LOCAL_RANK", "0") == "0",
        on_damage=lambda _: control.ask_stop("damaged labels"),
    )
    live = together(lambda: LiveProbe(config.probes, data.training_rows(), directory) if config.probes.every else None)
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
        run_log = _run_log(launch, beginning)
        announce(launch, beginning, schedule.statistics(), live)
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
    module = _module(launch, beginning, model, schedule, control, run_log, monitor)

    def start() -> None:
        begin_launch(launch, beginning, schedule, control, run_log)
        watch.start()

    boundary = StepBoundary(
        config.callbacks,
        directory,
        updates=config.optim.updates,
        stop_after=config.stop_after,
        evaluation=_evaluation(config, data, control),
        log=run_log,
        on_start=start,
        probe=_probe(live, run_log),
        probe_every=config.probes.every,
        paused=clock.paused,
        before_save=lambda: together(watch.confirm),
        after_save=beginning.record.note_checkpoint,
    )
    return Parts(module, loader, boundary, control, watch, run_log, monitor)


def _model(config: RunConfig, beginning: Beginning[OpenData]) -> WavLMForPretraining:
    """Random weights by the config's seed; the encoder of `init_from`, and a head that fits, in a run's first launch."""
    torch.manual_seed(config.seed)
    model = make_model(config, beginning.data.classes)
    if beginning.checkpoint is None and config.init_from:
        _begin_from(model, config, beginning.record, beginning.data.fingerprints())
    note_held_out_seen(config, beginning)
    if config.model.compile_layers:
        model.wavlm.compile_layers()
    return model


def _begin_from(model: WavLMForPretraining, config: RunConfig, record: RunRecord, fingerprints: dict[str, str]) -> None:
    """Initialises the model from the checkpoint `init_from`, the same one on every rank, and records it in `run.json`."""
    path, before = config.init_from, record.content.get("init_from")
    assert path is not None
    books = codebooks_in(fingerprints)
    begun = together(lambda: begin_from(model, path, books, new_head=config.init_head == "new", before=before))
    if together(lambda: [begun["model"], begun.get("head")]) != on_rank_zero(lambda: [begun["model"], begun.get("head")]):
        raise ValueError(
            f"the ranks are initialised from different models: {path} on this node differs from rank 0's; copy it to every node again"
        )
    check_same_beginning(before, begun, config.allow_change)
    record.content["init_from"] = begun


def resumed_schedule(config: LaunchConfig, beginning: Beginning[Any]) -> Schedule:
    """The plan of the data, at the checkpoint's place in it."""
    data, state = beginning.data, beginning.state
    schedule = data.schedule()
    if state is not None:
        assert beginning.checkpoint is not None
        names = names_of_checkpoint(beginning.checkpoint, state.get("fingerprints", {}))
        same_names = names == names_in(data.fingerprints())
        _resume_plan(schedule, state["plan"], data.plan_key(), beginning.step, config.allow_change, same_names=same_names)
    return schedule


def _resume_plan(
    schedule: Schedule, state: dict[str, Any], key: str, start: int, allow_change: list[str], *, same_names: bool
) -> None:
    """Continues the checkpoint's plan; if an allowed change made it another one, begins the next data epoch of each stream."""
    if state["plan_version"] != PLAN_VERSION and "plan" not in allow_change:
        raise ValueError(
            f"the checkpoint follows plan version {state['plan_version']}, this version plans by {PLAN_VERSION}: install the version that "
            "run.json names, or allow_change=[plan] to begin the next data epoch with the new plan"
        )
    if state["plan_version"] == PLAN_VERSION and state["key"] == key and same_names:
        schedule.restore(state)
    else:
        schedule.begin_at(start, state)


def _run_log(launch: Launch[RunConfig], beginning: Beginning[OpenData]) -> RunLog:
    config = launch.config
    return RunLog(
        launch.directory,
        config.logger,
        last_step=beginning.step,
        updates=config.optim.updates,
        figures=MaskedFigures(config.loss.feature_penalty, config.loss.target_weights(len(beginning.data.classes))),
        trackers=open_trackers(config.logger, launch.directory, flatten(launch.values)),
        prefixes=known_records(beginning.state, own=beginning.own),
    )


def _module(
    launch: Launch[RunConfig],
    beginning: Beginning[OpenData],
    model: WavLMForPretraining,
    schedule: Schedule,
    control: Control,
    run_log: RunLog | None,
    monitor: HealthMonitor | None,
) -> TrainingModule:
    config, data, content, plan_key = launch.config, beginning.data, beginning.record.content, beginning.data.plan_key()

    def on_record(step: StepRecord) -> None:
        if run_log is not None:
            run_log.update(step)
        if monitor is not None:
            monitor.update(step)

    objective = MaskedPrediction.of(config, len(data.classes))
    return TrainingModule(
        model,
        config.optim,
        objective,
        control=control,
        on_record=on_record,
        logmel_map=objective.logmel_map,
        max_skip_rate=config.data.max_skip_rate,
        float16=config.precision == "16-mixed",
        fingerprints=data.fingerprints(),
        plan_state=lambda step: {"plan_version": PLAN_VERSION, "key": plan_key, **schedule.state(step)},
        health=make_figures(config, data, launch.rank),
        health_state=lambda: monitor.state() if monitor is not None else None,
        records=lambda: run_log.tables.record(len(content["segments"]), content["run"]) if run_log is not None else {},
    )


def begin_launch(
    launch: Launch[Any],
    beginning: Beginning[Any],
    schedule: Schedule,
    control: Control,
    run_log: RunLog | None,
) -> None:
    """Begins the launch in `run.json`, after all checks; on training start."""
    patience = launch.config.trainer.watchdog_s
    control.listen(Watchdog(patience, launch.rank, log_file(launch.directory, launch.rank)) if patience else None)
    if launch.rank == 0:
        data = beginning.data
        plan = {"key": data.plan_key(), **schedule.beginning()}
        damaged = {"damaged": run_log.tables.damaged} if run_log is not None and run_log.tables.damaged else {}
        split = data.data.validation_share
        entry = segment_entry(beginning.step, launch.world_size, beginning.changes, data.fingerprints(), split, plan)
        beginning.record.begin_segment(entry | damaged)


def _probe(live: LiveProbe | None, run_log: RunLog | None) -> Callable[[TrainingModule, int], None] | None:
    """The probe for the step boundary; None without probes."""
    if live is None:
        return None

    def probe(module: TrainingModule, step: int) -> None:
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
    counts = [data.label_counts(number) for number in range(len(data.classes))]
    return Evaluation(specs, make_builder(config, data, training=False), config.loader, counts, control)
