"""`openwavlm plan`: cost of a training run, with every assumption."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.planning.budget import (
    GIB,
    GPUS,
    PUBLISHED,
    USABLE_SHARE,
    Recipe,
    disk_bytes,
    peak_flops,
    seconds_of_run,
    wasted_share,
)

_LIBRISPEECH_HOURS = 960.0
_PUBLISHED_HOURS = {"wavlm_base_plus": 94_000.0, "wavlm_large": 94_000.0}  # WavLM §V-A


@dataclass(frozen=True)
class Question:
    """The keys of `conf/plan.yaml` that are not the training's; `ValueError` if the GPU is unknown or a number is out of range."""

    hours: float | None
    classes: int
    gpus: int
    gpu: str
    gpu_memory_gib: float | None
    utilisation: float | None
    flac_share: float
    json: str | None

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ValueError(
                f"gpu must be one of {', '.join(GPUS)}, but is {self.gpu}: take the nearest one and scale the days by its peak"
            )
        whole = all(isinstance(value, int) and value >= 1 for value in (self.gpus, self.classes))
        given = [value for value in (self.hours, self.gpu_memory_gib, self.flac_share) if value is not None]
        if not whole or not all(_is_positive(value) for value in given):
            raise ValueError(
                "hours, classes, gpus, gpu_memory_gib and flac_share must be positive and classes and gpus whole, but are "
                f"{self.hours}, {self.classes}, {self.gpus}, {self.gpu_memory_gib}, {self.flac_share}"
            )
        if self.utilisation is not None and not (_is_positive(self.utilisation) and self.utilisation <= 1):
            raise ValueError(f"utilisation must lie in (0, 1], but is {self.utilisation}: null gives the range of published runs")

    def of(self, experiment: str | None) -> "Question":
        """A copy with the hours of the corpus that the preset was published with, unless `hours` is given."""
        return self if self.hours else replace(self, hours=_PUBLISHED_HOURS.get(experiment or "", _LIBRISPEECH_HOURS))

    @property
    def memory_gib(self) -> float:
        """The GPU's memory."""
        return self.gpu_memory_gib or GPUS[self.gpu].memory_gib

    @property
    def utilisations(self) -> list[float]:
        """The given utilisation, or the highest and the lowest of published runs."""
        published = [run.utilisation for run in PUBLISHED]
        return [max(published), min(published)] if self.utilisation is None else [self.utilisation]


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def plan_run(recipe: Recipe, question: Question, checkpoints: int) -> dict[str, Any]:
    """All figures of a run that keeps so many checkpoints, the content of `json=FILE`.

    Without a given utilisation, hours and days are a list of the fewest and the most.

    Raises:
        ValueError: If there are more GPUs than micro-batches, or the GPU does not support the precision.
    """
    _check_gpus(recipe, question.gpus)
    assert question.hours is not None
    batching, updates = recipe.config.batch, recipe.config.optim.updates
    batch, costs, a_second = recipe.micro_batch, recipe.costs, recipe.flops_a_second()
    hours_seen = updates * batching.seconds / 3600
    total = sum(recipe.parameters.values())
    return {
        "format_version": 1,
        "parameters": {"total": total, **recipe.parameters},
        "update": {
            "audio_seconds": batching.seconds,
            "micro_batches": batching.slots,
            "micro_seconds": batching.micro_seconds,
            "rows": batch.rows,
            "row_seconds": batch.samples / SAMPLE_RATE_HZ,
            "predicted_share": batch.predicted_frames / (batch.rows * batch.frames),
        },
        "run": {
            "updates": updates,
            "hours": hours_seen,
            "corpus_hours": question.hours,
            "passes": hours_seen / question.hours,
        },
        "flops": {
            "a_second_of_audio": a_second,
            "an_update": a_second * batching.seconds,
            "run": a_second * batching.seconds * updates,
            "forward": costs.forward,
            "backward": costs.backward,
            "recomputed": costs.recomputed,
        },
        "memory_bytes": _memory(recipe, question),
        "time": _time(recipe, question),
        "disk_bytes": disk_bytes(question.hours, question.flac_share, total, checkpoints, ema=recipe.config.optim.ema > 0),
        "assumptions": _assumptions(recipe, question, checkpoints),
    }


def _memory(recipe: Recipe, question: Question) -> dict[str, Any]:
    memory = recipe.memory(question.gpus)
    slots = recipe.fitting_slots(question.memory_gib, question.gpus)
    return {
        "total": memory.total,
        **asdict(memory),
        "gpu": question.memory_gib * GIB,
        "fits": memory.total <= USABLE_SHARE * question.memory_gib * GIB,
        "fitting_micro_seconds": recipe.config.batch.seconds / slots if slots else None,
        "fitting_micro_batches": slots,
    }


def _time(recipe: Recipe, question: Question) -> dict[str, Any]:
    peak = peak_flops(GPUS[question.gpu], recipe.config.precision)
    walls_s = [seconds_of_run(recipe, question.gpus, peak * share) for share in question.utilisations]

    def each(factor: float) -> float | list[float]:
        return walls_s[0] * factor if question.utilisation is not None else [wall_s * factor for wall_s in walls_s]

    return {
        "gpu": question.gpu,
        "gpus": question.gpus,
        "precision": recipe.config.precision,
        "peak_flops_a_second": peak,
        "utilisation": question.utilisation if question.utilisation is not None else question.utilisations,
        "gpu_hours": each(question.gpus / 3600),
        "days": each(1 / 86_400),
        "seconds_an_update": each(1 / recipe.config.optim.updates),
        "wasted_share": wasted_share(recipe.config.batch.slots, question.gpus),
    }


def _check_gpus(recipe: Recipe, gpus: int) -> None:
    batching = recipe.config.batch
    if gpus <= batching.slots:
        return
    way_out = f"batch.micro_seconds={batching.seconds / gpus:.10g}" if gpus <= recipe.most_slots else "a larger batch.seconds"
    raise ValueError(
        f"{gpus} GPUs, but an update of {batching.seconds:g} s has only {batching.slots} micro-batches of {batching.micro_seconds:g} s: "
        f"use at most gpus={batching.slots}, or {way_out}"
    )


def _assumptions(recipe: Recipe, question: Question, checkpoints: int) -> list[str]:
    config, batch, gpu = recipe.config, recipe.micro_batch, GPUS[question.gpu]
    peak = peak_flops(gpu, config.precision) / 1e12
    return [
        f"every micro-batch is full: {batch.rows} rows of {batch.samples / SAMPLE_RATE_HZ:.2f} s; shorter rows need less attention",
        "a multiply-add is two operations; only matrix products and convolutions count, backward = twice the forward",
        f"{question.gpu}: {peak:g} TFLOP/s at precision={config.precision} ({gpu.source})",
        *_utilisation(config.precision, question),
        "the loader, the exchange between GPUs and the validation cost no time beyond that",
        f"memory: strategy={config.trainer.strategy}, float32 parameters, gradients and two moments, activations of "
        f"recompute={config.model.recompute} and attention_backend={config.model.attention_backend}, the largest "
        f"gradients in flight; {USABLE_SHARE:.0%} of a GPU can be filled; not yet compared with a GPU",
        f"disk: FLAC takes {question.flac_share:g} of 16-bit PCM, a label 2 bytes a frame of 20 ms, a checkpoint "
        f"{16 if config.optim.ema else 12} bytes a parameter, {checkpoints} of them at the end",
        f"a corpus of {question.hours:,g} h (hours=)",
    ]


def _utilisation(precision: str, question: Question) -> list[str]:
    """Share of the peak that training reaches, and where it is from."""
    if question.utilisation is not None:
        return [f"training reaches {question.utilisation:g} of it (utilisation=)"]
    highest, lowest = question.utilisations
    in_float32 = (
        "; published runs trained in 16 bits: float32 reaches a larger share of its smaller peak, so the hours are upper limits"
    )
    return [
        f"training reaches {lowest:g} to {highest:g} of it, as published runs did; the days depend strongly on it, and openwavlm tune "
        f"measures utilisation=N here{in_float32 if precision == '32-true' else ''}",
        *(f"utilisation {run.utilisation:g}: {run.what} ({run.source})" for run in PUBLISHED),
    ]


def lines_of(figures: dict[str, Any]) -> list[str]:
    """The figures as lines to read."""
    update, run, flops, memory, taken, disk = (
        figures[key] for key in ("update", "run", "flops", "memory_bytes", "time", "disk_bytes")
    )
    fitting = memory["fitting_micro_seconds"]
    fit = (
        f"the largest micro-batch that fits is batch.micro_seconds={fitting:.10g} ({memory['fitting_micro_batches']} an update; it changes "
        "the micro-batches, so decide before the run)"
        if fitting
        else "not even micro-batches of one longest row fit: lower batch.max_seconds"
    )
    return [
        f"model: {figures['parameters']['total'] / 1e6:.2f} M parameters",
        f"update: {update['audio_seconds']:g} s of audio in {update['micro_batches']} micro-batches of {update['micro_seconds']:g} s; "
        f"{update['predicted_share']:.0%} of the frames are predicted",
        f"run: {run['updates']:,} updates, {run['hours']:,.0f} h of audio, {run['passes']:,.1f} passes over {run['corpus_hours']:,g} h",
        f"operations: {flops['a_second_of_audio']:.3g} a second of audio, {flops['an_update']:.3g} an update, {flops['run']:.3g} in all",
        f"memory: {memory['total'] / GIB:.1f} GiB a GPU ({sum(memory['states'].values()) / GIB:.1f} of weights and optimiser, "
        f"{(sum(memory['kept'].values()) + memory['backward']) / GIB:.1f} of activations), which "
        f"{'fits' if memory['fits'] else 'does not fit'} into {memory['gpu'] / GIB:g} GiB; {fit}",
        f"time: {_range(taken['gpu_hours'], ',.1f')} GPU-hours, {_range(taken['days'], ',.2f')} days on {taken['gpus']} x {taken['gpu']}, "
        f"{_range(taken['seconds_an_update'], '.3g')} s an update; {taken['wasted_share']:.0%} of it for padding micro-batches",
        f"disk: {_size(disk['shards'])} of shards, {_size(disk['labels'])} of labels, {_size(disk['checkpoints'])} of checkpoints",
        "assumed:",
        *(f"  - {assumption}" for assumption in figures["assumptions"]),
    ]


def _range(figure: float | list[float], form: str) -> str:
    return " to ".join(f"{value:{form}}" for value in (figure if isinstance(figure, list) else [figure]))


def _size(count: float) -> str:
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB")):
        if count >= 1000**power:
            return f"{count / 1000**power:.1f} {unit}"
    return f"{count / 1000:.1f} kB"
