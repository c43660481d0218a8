"""A training run from a composed config: enter the run directory, open the data, find the checkpoint, fit, sum up."""

import json
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

from openwavlm.batches.loader import StepLoader
from openwavlm.batches.mixing import check_noise_bank
from openwavlm.batches.plan import PLAN_VERSION, Batching
from openwavlm.batches.schedule import Schedule
from openwavlm.batches.sources import OpenData
from openwavlm.evaluation.live import LiveProbe, LiveProbes
from openwavlm.model.wavlm import WavLM
from openwavlm.runs.announce import announce
from openwavlm.runs.branch import begin_branch, check_branch, check_head
from openwavlm.runs.compose import plain
from openwavlm.runs.init_from import begin_from, check_same_beginning
from openwavlm.runs.lock import RunLock
from openwavlm.runs.monitoring import make_figures, make_monitor
from openwavlm.runs.run_directory import (
    RunRecord,
    accept_config,
    changed_keys,
    names_in,
    refuse_changes,
)
from openwavlm.runs.segments import names_of_checkpoint
from openwavlm.runtime.watchdog import Watchdog
from openwavlm.training.callbacks import StepBoundary
from openwavlm.training.checkpoint import AtomicCheckpointIO, newest_checkpoint, write_atomically
from openwavlm.training.checkpoint_reader import read_checkpoint
from openwavlm.training.config import TrainerSettings, make_builder, make_model, objects
from openwavlm.training.control import Control, forget_requests, hear_requeue
from openwavlm.training.health.core_wait import CoreWait
from openwavlm.training.health.monitor import HealthMonitor, WallClock
from openwavlm.training.label_watch import LabelWatch
from openwavlm.training.log import RunLog, log_file, open_trackers, write_log
from openwavlm.training.module import PretrainingModule, StepRecord
from openwavlm.training.ranks import join_processes, on_rank_zero, requeue_job, together
from openwavlm.training.records import known_records, last_row
from openwavlm.training.run_files import flatten, read_config, read_summary
from openwavlm.training.sharding import ShardedStrategy
from openwavlm.training.validation import Evaluation, Unigram
from openwavlm.training.void_updates import check_learned

log = logging.getLogger(__name__)


def check_world_size(world_size: int, batching: Batching) -> None:
    """Refuses more processes than micro-batches.

    Raises:
        ValueError: With the way out.
    """
    if world_size > batching.slots:
        raise ValueError(
            f"{world_size} processes but only {batching.slots} micro-batches a step: use at most {batching.slots} processes, or lower "
            "batch.micro_seconds (which changes the micro-batches, so start a new run)"
        )


def _commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed package or without git."""
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def _version(package: str) -> str:
    """Version of a package; a checkout that runs by PYTHONPATH alone has none of its own."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _segment(
    step: int, world_size: int, changes: dict[str, Any], fingerprints: dict[str, str], plan: dict[str, Any]
) -> dict[str, Any]:
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


class CheckedData(NamedTuple):
    """What a launch needs to know of data that were checked.

    Attributes:
        classes: Labels of each label set.
        fingerprints: As of `OpenData`.
        places: As of `OpenData`.
    """

    classes: tuple[int, ...]
    fingerprints: dict[str, str]
    places: dict[str, str]


def check_launch(values: dict[str, Any], directory: Path, opened: dict[str, CheckedData]) -> None:
    """Refuses what a launch would refuse before its first update; trains, writes and keeps nothing.

    Args:
        values: The training config as plain values.
        directory: Where the run lives or would live.
        opened: Data that have been checked, by their part of the config; grows.

    Raises:
        ValueError: If the config, the data or the state of the run directory does not allow the launch.
    """
    parts, seed = objects(values), int(values["seed"])
    check_world_size(int(os.environ.get("WORLD_SIZE", "1")), parts["batch"])
    data = json.dumps([values[key] for key in ("data", "batch", "mixing", "loss", "seed")], sort_keys=True)
    if data not in opened:
        found = _open(parts, seed)
        opened[data] = CheckedData(tuple(found.classes), found.fingerprints(), found.places())
        found.close()
    classes, fingerprints, places = opened[data]
    with torch.device("meta"):
        model = make_model(parts, classes)
    if values["init_from"]:
        begin_from(model.wavlm.to_empty(device="cpu"), values["init_from"])
    allowed, config = list(values["allow_change"]), directory / "config.yaml"
    if config.exists():
        refuse_changes(changed_keys(read_config(config), values), allowed, f"the run in {directory}")
        RunRecord(directory).check_fingerprints(dict(fingerprints), allowed, places)
    checkpoint = newest_checkpoint(directory / "checkpoints")
    if checkpoint is None and values["branch_from"]:
        checkpoint = Path(values["branch_from"])
        check_branch(checkpoint, values, parts["optim"], allowed)
    if checkpoint is not None:
        check_head(checkpoint, _embeddings(parts, classes), fingerprints)


def _embeddings(parts: dict[str, Any], classes: Sequence[int]) -> list[int]:
    """Label embeddings that the run's heads need, one number a label set."""
    return [parts["head"].special_rows + size for size in classes]


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
    parts = objects(values)
    hear_requeue()
    rank, world_size = join_processes()
    if parts["trainer"].threads:
        torch.set_num_threads(parts["trainer"].threads)
    lock: list[RunLock] = []
    writing: list[logging.Handler] = []

    def enter() -> dict[str, Any]:
        lock.append(RunLock(run_directory))
        forget_requests(run_directory)
        return accept_config(run_directory, values, list(values["allow_change"]))

    try:
        changes = on_rank_zero(enter)
        writing.append(write_log(run_directory, rank))
        return _train(values, parts, run_directory, changes, rank, world_size)
    finally:
        for handler in writing:
            logging.getLogger().removeHandler(handler)
            handler.close()
        for held in lock:
            held.release()


def _train(
    values: dict[str, Any], parts: dict[str, Any], directory: Path, changes: dict[str, Any], rank: int, world_size: int
) -> dict[str, Any]:
    seed, batching, optim = int(values["seed"]), parts["batch"], parts["optim"]
    check_world_size(world_size, batching)
    if parts["model"].layer_drop_mode == "skip" and world_size > 1:
        raise ValueError("model.layer_drop_mode=skip works on one process only (ranks would skip different layers): use where")
    opened: OpenData = together(lambda: _open(parts, seed))
    fingerprints = opened.fingerprints()
    if together(lambda: fingerprints) != on_rank_zero(lambda: fingerprints):
        raise ValueError("the ranks read different data: the shards, labels or noise on this node differ from rank 0's")
    record = RunRecord(directory)
    record.hear(values["data"], fingerprints, opened.source_names())
    record.check_fingerprints(fingerprints, list(values["allow_change"]), opened.places())
    found = on_rank_zero(lambda: newest_checkpoint(directory / "checkpoints"))
    embeddings = _embeddings(parts, opened.classes)
    own = found is not None
    if not own:
        on_rank_zero(record.refuse_lost_checkpoints)
        on_rank_zero(record.say_what_is_lost)
    if found is not None:
        check_head(found, embeddings, fingerprints)
    elif values["branch_from"]:
        found = Path(values["branch_from"])
        changes = on_rank_zero(
            lambda: begin_branch(
                found,
                directory,
                values,
                optim,
                list(values["allow_change"]),
                lambda: check_head(found, embeddings, fingerprints),
            )
        )
        record.inherit(RunRecord(found.resolve().parents[1]))
    state = read_checkpoint(found)["openwavlm"] if found else None
    start = int(state["step"]) if state else 0
    stop_after = values["stop_after"]
    if start >= optim.updates or (stop_after is not None and start >= stop_after):
        log.info("%s has %d updates already; nothing to do", directory, start)
        skipped = int(state.get("voids", 0)) if state else 0
        summary = _summary(directory, start, optim.updates, 0.0, 0.0, rank, skipped=skipped)
        if start >= optim.updates:
            check_learned(start, skipped)
        return summary

    torch.manual_seed(seed)
    model = make_model(parts, opened.classes)
    if found is None and values["init_from"]:
        _continue(model.wavlm, values, record)
    if parts["model"].compile_layers:
        model.wavlm.compile_layers()
    schedule = opened.schedule()
    plan_key = opened.plan_key()
    if state is not None:
        same_names = names_of_checkpoint(found, state.get("fingerprints", {})) == names_in(fingerprints)
        _resume_plan(schedule, state["plan"], plan_key, start, list(values["allow_change"]), same_names=same_names)
    target_weights = parts["loss"].target_weights(len(opened.classes))
    control = Control(directory)
    stores = [store for stores in opened.label_sets.values() for store in stores]
    watch = LabelWatch(
        stores, reads=os.environ.get("LOCAL_RANK", "0") == "0", on_damage=lambda _: control.ask_stop("damaged labels")
    )
    live = together(lambda: _live_probe(parts, opened, directory))
    builder = make_builder(parts, opened, seed, training=True)
    loader = StepLoader(
        schedule, builder, parts["loader"], rank=rank, world_size=world_size, start_step=start, num_steps=optim.updates
    )
    on_cpu = _device_type(parts["trainer"]) == "cpu"
    run_log, clock = (
        None,
        WallClock((lambda: loader.waited_s) if parts["loader"].workers else None, CoreWait() if on_cpu else None),
    )
    monitor: HealthMonitor | None = None
    if rank == 0:
        run_log = RunLog(
            directory,
            parts["logger"],
            last_step=start,
            updates=optim.updates,
            penalty_weight=parts["loss"].feature_penalty,
            target_weights=target_weights,
            trackers=open_trackers(parts["logger"], directory, flatten(values)),
            prefixes=known_records(state, own=own),
        )
        announce(
            parts,
            values["precision"],
            opened,
            schedule.statistics(),
            start=start,
            world_size=world_size,
            directory=directory,
            probes=live,
        )
        monitor = make_monitor(
            parts,
            opened,
            schedule,
            run_log,
            control,
            clock,
            on_cpu=on_cpu,
            seed=seed,
            start=start,
            state=state if own else None,
            from_random=not (values["branch_from"] or values["init_from"]),
        )

    def on_record(record: StepRecord) -> None:
        if run_log is not None:
            run_log.update(record)
        if monitor is not None:
            monitor.update(record)

    module = PretrainingModule(
        model,
        optim,
        parts["loss"],
        parts["mixing"],
        seed=seed,
        control=control,
        on_record=on_record,
        target_weights=target_weights,
        unmasked_every=parts["callbacks"].unmasked_every,
        max_skip_rate=opened.data.max_skip_rate,
        float16=values["precision"] == "16-mixed",
        fingerprints=fingerprints,
        plan_state=lambda step: {"plan_version": PLAN_VERSION, "key": plan_key, **schedule.state(step)},
        health=make_figures(parts, opened, rank),
        health_state=lambda: monitor.state() if monitor is not None else None,
        records=lambda: (
            run_log.tables.record(len(record.content["segments"]), record.content["run"]) if run_log is not None else {}
        ),
    )

    def begin() -> None:
        """All that can be refused has been: the launch binds the run from here on."""
        control.listen(_watchdog(parts["trainer"], rank, directory))
        if rank == 0:
            plan = {"key": plan_key, **schedule.beginning()}
            damaged = {"damaged": run_log.tables.damaged} if run_log is not None and run_log.tables.damaged else {}
            record.begin_segment(_segment(start, world_size, changes, fingerprints, plan) | damaged)
        watch.start()

    boundary = StepBoundary(
        parts["callbacks"],
        directory,
        updates=optim.updates,
        stop_after=stop_after,
        evaluation=_evaluation(parts, opened, seed, control),
        log=run_log,
        on_start=begin,
        probe=_probe(live, run_log),
        probe_every=parts["probes"].every,
        paused=clock.paused,
        before_save=lambda: together(watch.confirm),
        after_save=record.note_checkpoint,
    )
    trainer = make_trainer(parts["trainer"], values["precision"], optim.updates, directory, boundary, world_size)
    began = time.monotonic()
    try:
        trainer.fit(module, loader, ckpt_path=str(found) if found else None)
    except SystemExit as error:  # Lightning's answer to a KeyboardInterrupt
        raise KeyboardInterrupt from error
    finally:
        watch.close()
        opened.close()
        control.close()
        if run_log is not None:
            run_log.close()
    done = trainer.global_step
    if rank == 0 and done < optim.updates:
        why = "stop_after" if done == stop_after else control.why or "what another rank was asked"
        log.info("stopped after update %d of %d by %s; the same command goes on", done, optim.updates, why)
        if boundary.requeue and parts["trainer"].requeue:
            requeue_job()
    elif rank == 0 and module.voids.count < done:
        log.info("finished; openwavlm export run=%s writes the model for Transformers", directory)
    audio_s = run_log.audio_s_total if run_log is not None else 0.0
    summary = _summary(
        directory,
        done,
        optim.updates,
        audio_s,
        time.monotonic() - began,
        rank,
        monitor.summary() if monitor is not None else None,
        skipped=module.voids.count,
    )
    if done >= optim.updates:
        check_learned(done, module.voids.count)
    return summary


def _continue(encoder: WavLM, values: dict[str, Any], record: RunRecord) -> None:
    """Begins a new run from the checkpoint `init_from`, the same one on every rank, and notes it in `run.json`."""
    begun = together(lambda: begin_from(encoder, values["init_from"]))
    if together(lambda: begun["model"]) != on_rank_zero(lambda: begun["model"]):
        raise ValueError(f"the ranks begin from different models: {values['init_from']} on this node differs from rank 0's")
    check_same_beginning(record.content.get("init_from"), begun, list(values["allow_change"]))
    record.content["init_from"] = begun


def _live_probe(parts: dict[str, Any], opened: OpenData, directory: Path) -> LiveProbe | None:
    settings: LiveProbes = parts["probes"]
    return LiveProbe(settings, opened.training_rows(), directory) if settings.every else None


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


def _watchdog(settings: TrainerSettings, rank: int, directory: Path) -> Watchdog | None:
    return Watchdog(settings.watchdog_s, rank, log_file(directory, rank)) if settings.watchdog_s else None


def _open(parts: dict[str, Any], seed: int) -> OpenData:
    opened = OpenData(parts["data"], parts["batch"], seed, labels_at_once_bytes=parts["loader"].label_check_mib << 20)
    check_noise_bank(parts["mixing"], len(opened.noise_index) if opened.noise_index is not None else 0)
    parts["loss"].target_weights(len(opened.classes))  # refused here, where the other data are
    return opened


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


def _evaluation(parts: dict[str, Any], opened: OpenData, seed: int, control: Control) -> Evaluation | None:
    specs = opened.validation_specs()
    if not specs:
        return None
    unigrams = [Unigram.of(opened.label_counts(number)) for number in range(len(opened.classes))]
    return Evaluation(specs, make_builder(parts, opened, seed, training=False), parts["loader"], unigrams, control)


def _device_type(settings: TrainerSettings) -> str:
    return "cuda" if torch.cuda.is_available() and settings.accelerator != "cpu" else "cpu"


def make_trainer(
    settings: TrainerSettings, precision: str, updates: int, directory: Path, boundary: StepBoundary, world_size: int
) -> Trainer:
    """Lightning's trainer, reduced to what the step needs: no samplers, loggers, clipping or accumulation of its own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Lightning 2.6 asks torch in a way that torch 2.11 deprecates, once a run.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", module="lightning.*")
    strategy: Any = "auto"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # Named, so that Lightning does not take a Slurm job for its own to requeue: signals are ours.
    environment: ClusterEnvironment = LightningEnvironment()
    if world_size > 1:
        environment = TorchElasticEnvironment()
        strategy = (
            ShardedStrategy()
            if settings.strategy == "fsdp"
            else DDPStrategy(find_unused_parameters=False, broadcast_buffers=False)
        )
    plugins: list[Any] = [AtomicCheckpointIO(), environment]
    if precision == "16-mixed":
        # Autocast alone: the loss is scaled by `loss_scale`, which needs no look at the device.
        device = _device_type(settings)
        plugins.append(MixedPrecision("16-mixed", device, scaler=torch.amp.GradScaler(device, enabled=False)))
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=local if world_size > 1 else 1,
        num_nodes=world_size // local,
        strategy=strategy,
        precision=None if precision == "16-mixed" else precision,
        max_steps=updates,
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[boundary],
        plugins=plugins,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(directory),
    )
    # Lightning broadcasts a flag and reads it back on the device before every batch; our signals ride in `Control` instead.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def _summary(
    directory: Path,
    step: int,
    updates: int,
    audio_s: float,
    seconds: float,
    rank: int,
    health: dict[str, Any] | None = None,
    *,
    skipped: int = 0,
) -> dict[str, Any]:
    path = directory / "summary.json"
    kept: dict[str, Any] = {}
    if path.exists():
        try:
            kept = read_summary(path)
        except ValueError as error:
            log.warning("what others wrote into the summary is lost, and it is written anew: %s", error)
    launch = {"audio_seconds": round(audio_s, 1), "wall_seconds": round(seconds, 1)}
    summary = {
        **kept,
        "format_version": 1,
        "updates": step,
        "complete": step >= updates and skipped < step,
        "skipped_updates": skipped,
        "validation": last_row(directory / "validation.csv"),
        "this_launch": launch if seconds else kept.get("this_launch", launch),
    }
    if health is not None:
        summary["health"] = health
    if rank == 0:
        write_atomically(path, (json.dumps(summary, indent=1) + "\n").encode())
    return summary
