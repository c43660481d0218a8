"""A fine-tuning from a composed config: the acts of a launch, as of pre-training, and the test at its end."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch

from openwavlm.batches.loader import StepLoader
from openwavlm.batches.plan import PLAN_VERSION
from openwavlm.batches.schedule import Schedule
from openwavlm.downstream.build import make_builder, symbols_of
from openwavlm.downstream.collapse import WatchedEvaluation
from openwavlm.downstream.config import FinetuneConfig
from openwavlm.downstream.data import OpenTask
from openwavlm.downstream.decoding import check_beam
from openwavlm.downstream.encoders import encoder_of, open_encoder
from openwavlm.downstream.figures import TaskFigures
from openwavlm.downstream.model import TaskModel, make_task_model
from openwavlm.downstream.objective import TaskObjective
from openwavlm.downstream.optim import TaskOptim
from openwavlm.downstream.overlap import check_unseen
from openwavlm.downstream.split import TEST, VALIDATION
from openwavlm.downstream.symbols import write_symbols
from openwavlm.downstream.testing import measure_test
from openwavlm.downstream.validation import TaskEvaluation
from openwavlm.runs.assemble import begin_launch, resumed_schedule
from openwavlm.runs.beginning import Beginning, Launch, resume
from openwavlm.runs.check import check_world_size
from openwavlm.runs.init_from import check_same_beginning
from openwavlm.runs.launch import fit_the_rest, launched
from openwavlm.runs.parts import Parts
from openwavlm.runs.run_directory import RunRecord
from openwavlm.runs.trainer import device_type
from openwavlm.runtime.collectives import on_rank_zero, together
from openwavlm.training.callbacks import StepBoundary
from openwavlm.training.checkpoint_reader import read_checkpoint
from openwavlm.training.control import Control
from openwavlm.training.health.core_wait import CoreWait
from openwavlm.training.health.figures import HealthFigures
from openwavlm.training.health.judgement import Known
from openwavlm.training.health.monitor import HealthMonitor, WallClock
from openwavlm.training.log import RunLog
from openwavlm.training.module import TrainingModule
from openwavlm.training.records import known_records
from openwavlm.training.run_files import flatten
from openwavlm.training.sums import StepRecord
from openwavlm.training.trackers import open_trackers

log = logging.getLogger(__name__)


def finetune(values: dict[str, Any], run_directory: Path) -> dict[str, Any]:
    """Launches a fine-tuning from plain values, or resumes the one in the run directory; returns the summary, as in `summary.json`.

    Raises:
        ValueError: If the config, the data or the state of the run directory does not allow the launch.
    """
    return launched(values, FinetuneConfig.of(values), run_directory, _acts)


def _acts(launch: Launch[FinetuneConfig], changes: dict[str, Any]) -> dict[str, Any]:
    data, record = open_task(launch)
    beginning = resume(launch, data, record, changes, partial(check_symbols, data))
    summary = fit_the_rest(launch, beginning, assemble)
    if summary["complete"] and launch.rank == 0 and data.specs(TEST):
        summary = measure_test(launch.directory, launch.config, data, summary)
    return summary


def open_task(launch: Launch[FinetuneConfig]) -> tuple[OpenTask, RunRecord]:
    """Act 1: opens data and record; a `ValueError` if they do not fit the config, the machine or the launches before."""
    config = launch.config
    check_world_size(launch.world_size, config.batch)
    data: OpenTask = together(lambda: OpenTask(config.task, config.data, config.batch, config.seed))
    vocabulary = data.vocabulary
    if config.task.decoder == "beam" and vocabulary is not None:
        on_rank_zero(lambda: check_beam(config.task, vocabulary) is None)  # not at the end of training; rank 0 alone tests
    fingerprints = data.fingerprints()
    if together(lambda: fingerprints) != on_rank_zero(lambda: fingerprints):
        raise ValueError(
            "the ranks read different data: shards or targets on this node differ from rank 0's; copy them to every node again"
        )
    record = RunRecord(launch.directory)
    apart = {**config.data.validation, **config.data.test}
    # Speakers are held out only where the split is by speaker; else all of them count as trained on.
    share = config.data.validation_share if data.split == "speaker" else 0.0
    split = {"validation_share": share, "split_seed": config.data.split_seed, "validation": apart}
    record.add_training_data(split, fingerprints, data.source_names())
    record.check_fingerprints(fingerprints, config.allow_change, data.places())
    return data, record


def check_symbols(data: OpenTask, checkpoint: Path) -> None:
    """Refuses a checkpoint with another number of outputs than the data need.

    Raises:
        ValueError: If the numbers differ.
    """
    state = read_checkpoint(checkpoint)["state_dict"]
    name = "model.head.lm_head.weight" if data.vocabulary is not None else "model.head.classifier.weight"
    found = len(state[name]) if name in state else 0
    if found != data.num_outputs:
        raise ValueError(
            f"the head of {checkpoint} has {found} outputs, but the data need {data.num_outputs}: other targets need a new head, so start "
            "a new run under another name"
        )


def assemble(launch: Launch[FinetuneConfig], beginning: Beginning[OpenTask]) -> Parts:
    """Act 3: assembles model, batches, records, health rules and step; nothing is written to the run yet."""
    config, data, directory = launch.config, beginning.data, launch.directory
    model = _model(config, beginning)
    schedule = resumed_schedule(config, beginning)
    control = Control(directory)
    loader = StepLoader(
        schedule,
        make_builder(config, data, model, training=True),
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
        _announce(launch, beginning, model, schedule)
        monitor = _monitor(config, beginning, run_log, control, clock, on_cpu=on_cpu)
    specs = data.specs(VALIDATION, config.data.validation_seconds)
    evaluation = None
    if specs:
        builder = make_builder(config, data, model, training=False)
        evaluation = WatchedEvaluation(
            launch, beginning, TaskEvaluation(data, specs, builder, config.loader, control, ctc=config.task.of_sequences)
        )
    boundary = StepBoundary(
        config.callbacks,
        directory,
        updates=config.optim.updates,
        stop_after=config.stop_after,
        evaluation=evaluation,
        log=run_log,
        on_start=lambda: _begin(launch, beginning, schedule, control, run_log),
        paused=clock.paused,
        after_save=beginning.record.note_checkpoint,
    )
    module = _module(launch, beginning, model, schedule, control, run_log, monitor)
    return Parts(module, loader, boundary, control, _Nothing(), run_log, monitor)


class _Nothing:
    def close(self) -> None:
        """There is nothing to end."""


def _model(config: FinetuneConfig, beginning: Beginning[OpenTask]) -> TaskModel:
    """Encoder of `init` in a run's first launch, of its record later; the head's random weights are of the seed."""
    content = beginning.record.content
    torch.manual_seed(config.seed)
    if beginning.checkpoint is None:
        encoder, entry = together(lambda: open_encoder(config))
        if together(lambda: entry["model"]) != on_rank_zero(lambda: entry["model"]):
            raise ValueError(
                f"the ranks begin with different encoders: {config.init} on this node differs from rank 0's; copy it again"
            )
        check_same_beginning(content.get("init"), entry, config.allow_change)
        content["init"] = entry | {"held_out_seen": together(lambda: check_unseen(beginning.data, entry))}
    else:
        encoder = encoder_of(config, content["init"])
    torch.manual_seed(config.seed)
    model = make_task_model(config, encoder, beginning.data.num_outputs)
    if config.encoder.compile_layers:
        encoder.compile_layers()
    return model


def _run_log(launch: Launch[FinetuneConfig], beginning: Beginning[OpenTask]) -> RunLog:
    config = launch.config
    return RunLog(
        launch.directory,
        config.logger,
        last_step=beginning.step,
        updates=config.optim.updates,
        figures=TaskFigures(config.task.name, symbols_of(beginning.data)),
        trackers=open_trackers(config.logger, launch.directory, flatten(launch.values)),
        prefixes=known_records(beginning.state, own=beginning.own),
    )


def _monitor(
    config: FinetuneConfig,
    beginning: Beginning[OpenTask],
    run_log: RunLog,
    control: Control,
    clock: WallClock,
    *,
    on_cpu: bool,
) -> HealthMonitor | None:
    if not config.health.enabled:
        return None
    state = beginning.state if beginning.own else None
    known = Known(config.health, config.optim.updates, from_random=False, on_cpu=on_cpu, held_until=config.trained.freeze_updates)
    return HealthMonitor(
        known,
        clock,
        on_finding=run_log.finding,
        on_figures=run_log.figures,
        stop=lambda: control.ask_stop("health.action=stop"),
        state=state.get("health") if state else None,
    )


def _module(
    launch: Launch[FinetuneConfig],
    beginning: Beginning[OpenTask],
    model: TaskModel,
    schedule: Schedule,
    control: Control,
    run_log: RunLog | None,
    monitor: HealthMonitor | None,
) -> TrainingModule:
    config, data, content = launch.config, beginning.data, beginning.record.content
    plan_key = data.plan_key()

    def on_record(step: StepRecord) -> None:
        if run_log is not None:
            run_log.update(step)
        if monitor is not None:
            monitor.update(step)

    encoder = model.wavlm.config
    objective = TaskObjective(
        ctc=config.task.of_sequences,
        seed=config.seed,
        freeze_updates=config.trained.freeze_updates,
        joined=launch.world_size > 1,
        masked=not model.evaluates,
    )
    health = HealthFigures(config.health.every, num_classes=data.num_outputs, channels=encoder.conv_dims[-1], rank=launch.rank)
    return TrainingModule(
        model,
        TaskOptim.of(config.optim, config.trained, encoder.layers),
        objective,
        control=control,
        on_record=on_record,
        max_skip_rate=config.data.max_skip_rate,
        float16=config.precision == "16-mixed",
        fingerprints=data.fingerprints(),
        plan_state=lambda step: {"plan_version": PLAN_VERSION, "key": plan_key, **schedule.state(step)},
        health=health if config.health.enabled else None,
        health_state=lambda: monitor.state() if monitor is not None else None,
        records=lambda: run_log.tables.record(len(content["segments"]), content["run"]) if run_log is not None else {},
    )


def _begin(
    launch: Launch[FinetuneConfig], beginning: Beginning[OpenTask], schedule: Schedule, control: Control, run_log: RunLog | None
) -> None:
    """Begins the launch in `run.json`, and writes the output symbols; on training start."""
    begin_launch(launch, beginning, schedule, control, run_log)
    if launch.rank == 0:
        write_symbols(launch.directory, launch.config.task.name, symbols_of(beginning.data))


def _announce(launch: Launch[FinetuneConfig], beginning: Beginning[OpenTask], model: TaskModel, schedule: Schedule) -> None:
    config, data = launch.config, beginning.data
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.info(
        "%s %s at update %d of %d: task %s on %s, %.2f M of %.2f M parameters trained, %d %s",
        "resuming" if beginning.step else "starting",
        launch.directory,
        beginning.step,
        config.optim.updates,
        config.task.name,
        config.init,
        trained / 1e6,
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        data.num_outputs,
        "symbols" if config.task.of_sequences else "classes",
    )
    for part, figures in data.summary().items():
        log.info("%s: %d rows, %.0f s, %d speakers", part, figures["rows"], figures["seconds"], figures["speakers"])
    for reason, keys in data.left_out.items():
        log.warning(
            "%d training rows are left out: %s (%s%s)", len(keys), reason, ", ".join(keys[:3]), ", …" if len(keys) > 3 else ""
        )
    if not any((of_set == VALIDATION).any() for of_set in data.parts.values()):
        log.warning("nothing is held out for validation, so the last checkpoint is the result")
    trained_s = max(1e-9, data.summary()["training"]["seconds"])
    log.info("about %.1f passes over the training part", config.optim.updates * config.batch.seconds / trained_s)
