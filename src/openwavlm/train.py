"""A training run from a composed config: enter the run directory, open the data, find the checkpoint, fit, sum up."""

import json
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

from openwavlm.augment.mixing import check_noise_bank
from openwavlm.build import TrainerSettings, make_builder, make_model, objects, plain
from openwavlm.data.loader import StepLoader
from openwavlm.data.plan import PLAN_VERSION, Batching, PlanStatistics
from openwavlm.data.schedule import Schedule
from openwavlm.data.sources import OpenData
from openwavlm.models.pretraining import WavLMForPretraining
from openwavlm.monitoring import make_figures, make_monitor
from openwavlm.training.callbacks import StepBoundary
from openwavlm.training.checkpoint import AtomicCheckpointIO, newest_checkpoint, write_atomically
from openwavlm.training.control import Control
from openwavlm.training.evaluation import Evaluation, Unigram
from openwavlm.training.health.monitor import HealthMonitor, WallClock
from openwavlm.training.log import RunLog
from openwavlm.training.module import PretrainingModule, StepRecord
from openwavlm.training.run_directory import RunLock, RunRecord, accept_config
from openwavlm.training.sharding import ShardedStrategy

log = logging.getLogger(__name__)


def join_processes() -> tuple[int, int]:
    """Joins the process group that torchrun prepared; returns (rank, world size).

    Raises:
        ValueError: If Slurm started several tasks without torchrun.
    """
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            f"Slurm started {os.environ['SLURM_NTASKS']} tasks, but each would train by itself: start one task a node, and torchrun in it"
        )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend)
    return int(os.environ.get("RANK", "0")), world_size


def on_rank_zero(function: Callable[[], Any]) -> Any:
    """Runs `function` on rank 0 and gives all ranks its result, or its error as a `ValueError`."""
    if not (dist.is_available() and dist.is_initialized()):
        return function()
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = function()
        except (ValueError, OSError) as error:
            box[1] = str(error)
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise ValueError(box[1])
    return box[0]


def together(function: Callable[[], Any]) -> Any:
    """Runs `function` on every rank and gives each its own result; if one rank fails, all raise its error instead of waiting for it.

    Raises:
        ValueError: With the first failing rank's message.
    """
    result, error = None, None
    try:
        result = function()
    except (ValueError, OSError) as failure:
        error = str(failure)
    if dist.is_available() and dist.is_initialized():
        errors: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, error)
        error = next((f"rank {rank}: {text}" for rank, text in enumerate(errors) if text), None)
    if error is not None:
        raise ValueError(error)
    return result


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
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def _segment(step: int, world_size: int, changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "from_step": step,
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("openwavlm", "torch", "lightning", "numpy", "soundfile")},
        "commit": _commit(),
        "plan_version": PLAN_VERSION,
        "changes": {key: list(values) for key, values in changes.items()},
        "command": " ".join(sys.argv),
    }


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
    rank, world_size = join_processes()
    if parts["trainer"].threads:
        torch.set_num_threads(parts["trainer"].threads)
    lock: list[RunLock] = []

    def enter() -> dict[str, Any]:
        lock.append(RunLock(run_directory))
        return accept_config(run_directory, values, list(values["allow_change"]))

    try:
        changes = on_rank_zero(enter)
        return _train(values, parts, run_directory, changes, rank, world_size)
    finally:
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
    record.check_fingerprints(fingerprints, list(values["allow_change"]))
    found = on_rank_zero(lambda: newest_checkpoint(directory / "checkpoints"))
    state = torch.load(found, map_location="cpu", weights_only=True, mmap=True)["openwavlm"] if found else None
    start = int(state["step"]) if state else 0
    stop_after = values["stop_after"]
    if start >= optim.updates or (stop_after is not None and start >= stop_after):
        log.info("%s has %d updates already; nothing to do", directory, start)
        return _summary(directory, start, optim.updates, 0.0, 0.0, rank)

    torch.manual_seed(seed)
    model = make_model(parts, opened.num_classes)
    schedule = opened.schedule()
    plan_key = opened.plan_key()
    if state is not None:
        _resume_plan(schedule, state["plan"], plan_key, start, list(values["allow_change"]))
    control = Control(directory)
    builder = make_builder(parts, opened, seed, training=True)
    loader = StepLoader(
        schedule, builder, parts["loader"], rank=rank, world_size=world_size, start_step=start, num_steps=optim.updates
    )
    run_log, clock = None, WallClock((lambda: loader.waited_s) if parts["loader"].workers else None)
    monitor: HealthMonitor | None = None
    if rank == 0:
        run_log = RunLog(
            directory, parts["logger"], last_step=start, updates=optim.updates, penalty_weight=parts["loss"].feature_penalty
        )
        _announce(parts, opened, model, schedule.statistics(), start, world_size, directory)
        monitor = make_monitor(parts, opened, schedule, run_log, control, clock, seed=seed, state=state)

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
        unmasked_every=parts["callbacks"].unmasked_every,
        max_skip_rate=opened.data.max_skip_rate,
        fingerprints=fingerprints,
        plan_state=lambda step: {"plan_version": PLAN_VERSION, "key": plan_key, **schedule.state(step)},
        health=make_figures(parts, opened, rank),
        health_state=lambda: monitor.state() if monitor is not None else None,
    )
    boundary = StepBoundary(
        parts["callbacks"],
        directory,
        updates=optim.updates,
        stop_after=stop_after,
        evaluation=_evaluation(parts, opened, seed, control),
        log=run_log,
        on_start=control.listen,
        paused=clock.paused,
    )
    trainer = make_trainer(parts["trainer"], values["precision"], optim.updates, directory, boundary, world_size)
    if rank == 0:
        record.begin_segment(_segment(start, world_size, changes))
    began = time.monotonic()
    try:
        trainer.fit(module, loader, ckpt_path=str(found) if found else None)
    finally:
        opened.close()
        if run_log is not None:
            run_log.close()
    done = trainer.global_step
    if rank == 0 and done < optim.updates:
        log.info("stopped after update %d of %d; the same command goes on", done, optim.updates)
    elif rank == 0:
        log.info("finished; openwavlm export run=%s writes the model for Transformers", directory)
    audio_s = run_log.audio_s_total if run_log is not None else 0.0
    return _summary(
        directory,
        done,
        optim.updates,
        audio_s,
        time.monotonic() - began,
        rank,
        monitor.summary() if monitor is not None else None,
    )


def _open(parts: dict[str, Any], seed: int) -> OpenData:
    opened = OpenData(parts["data"], parts["batch"], seed)
    check_noise_bank(parts["mixing"], len(opened.noise_index) if opened.noise_index is not None else 0)
    return opened


def _resume_plan(schedule: Schedule, state: dict[str, Any], key: str, start: int, allow_change: list[str]) -> None:
    """Goes on in the checkpoint's plan, or begins the next data epoch of each stream where an allowed change made it another one."""
    if state["plan_version"] != PLAN_VERSION and "plan" not in allow_change:
        raise ValueError(
            f"the checkpoint follows plan version {state['plan_version']}, this version plans by {PLAN_VERSION}: install the version that "
            "run.json names, or allow_change=[plan] to begin the next data epoch with the new plan"
        )
    if state["plan_version"] == PLAN_VERSION and state["key"] == key:
        schedule.restore(state)
    else:
        schedule.begin_at(start, state)


def _evaluation(parts: dict[str, Any], opened: OpenData, seed: int, control: Control) -> Evaluation | None:
    specs = opened.validation_specs()
    if not specs:
        return None
    unigram = Unigram.of(opened.label_counts())
    return Evaluation(specs, make_builder(parts, opened, seed, training=False), parts["loader"], unigram, control)


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
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=local if world_size > 1 else 1,
        num_nodes=world_size // local,
        strategy=strategy,
        precision=precision,
        max_steps=updates,
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[boundary],
        plugins=[AtomicCheckpointIO(), environment],
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


def _announce(
    parts: dict[str, Any],
    opened: OpenData,
    model: WavLMForPretraining,
    plan: PlanStatistics,
    start: int,
    world_size: int,
    directory: Path,
) -> None:
    batching, optim, data = parts["batch"], parts["optim"], opened.summary()
    if not data["validation_rows"]:
        log.warning("no speaker is held out (data.validation_share=%g): nothing will be validated", opened.data.validation_share)
    elif not data["validation_speakers"]:
        log.warning("no speaker is known: whole recordings are held out, so a voice may be on both sides of the split")
    parameters = sum(p.numel() for p in model.parameters())
    passes = optim.updates * batching.seconds / 3600 / max(1e-9, data["training_hours"])
    waste = -batching.slots % world_size
    log.info(
        "%s %s at update %d of %d: %.2f M parameters, %d classes",
        "resuming" if start else "starting",
        directory,
        start,
        optim.updates,
        parameters / 1e6,
        model.num_classes,
    )
    log.info(
        "data: %s h of %s speakers, %s h of %s speakers held out; about %.1f passes",
        data["training_hours"],
        data["training_speakers"],
        data["validation_hours"],
        data["validation_speakers"],
        passes,
    )
    log.info(
        "plan: %.2f %% padding, %.2f %% of the audio left out (%d utterances shorter than %g s)",
        100 * plan.padding_share,
        100 * plan.lost_share,
        plan.too_short,
        batching.min_seconds,
    )
    log.info("step: %d micro-batches of %g s on %d process(es)", batching.slots, batching.micro_seconds, world_size)
    if waste:
        share = waste / (batching.slots + waste)
        log.info(
            "%d padding micro-batch(es) a step: %.0f %% of the work is waste; a divisor of %d avoids it",
            waste,
            100 * share,
            batching.slots,
        )


def _summary(
    directory: Path, step: int, updates: int, audio_s: float, seconds: float, rank: int, health: dict[str, Any] | None = None
) -> dict[str, Any]:
    last = {}
    validation = directory / "validation.csv"
    if validation.exists():
        lines = validation.read_text().splitlines()
        values = lines[-1].split(",")
        if len(lines) > 1 and len(values) == len(lines[0].split(",")):
            last = {name: float(value) for name, value in zip(lines[0].split(","), values, strict=True) if value}
    path = directory / "summary.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    launch = {"audio_seconds": round(audio_s, 1), "wall_seconds": round(seconds, 1)}
    summary = {
        **kept,
        "format_version": 1,
        "updates": step,
        "complete": step >= updates,
        "validation": last,
        "this_launch": launch if seconds else kept.get("this_launch", launch),
    }
    if health is not None:
        summary["health"] = health
    if rank == 0:
        write_atomically(path, (json.dumps(summary, indent=1) + "\n").encode())
    return summary
