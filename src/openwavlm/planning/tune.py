"""`openwavlm tune`: the fastest settings on this machine, by short timed trials, as a file for a new run.

Settings are tried in turn, each with those chosen before it. A value replaces the one before only if it is faster by `margin`.
"""

import json
import logging
import os
import platform
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from openwavlm.batches.sources import OpenData
from openwavlm.model.attention import choose_backend
from openwavlm.planning.budget import GIB, GPUS, Recipe, peak_flops
from openwavlm.planning.trial import run_trial
from openwavlm.runtime.atomic import write_atomically
from openwavlm.training.config import RunConfig, with_placeholders

log = logging.getLogger(__name__)

Trial = Callable[[dict[str, Any], bool], dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """The keys of `conf/tune.yaml` that are not the training's; `ValueError` if a number is out of range."""

    classes: int
    seconds: float
    timeout: float
    margin: float
    output: str

    def __post_init__(self) -> None:
        numbers = (self.classes, self.seconds, self.timeout)
        if not all(isinstance(value, int | float) and value > 0 for value in numbers) or not self.classes == int(self.classes):
            raise ValueError(
                f"classes, seconds and timeout must be positive and classes whole, but are {', '.join(map(str, numbers))}"
            )
        if not isinstance(self.margin, int | float) or not 0 <= self.margin < 1:
            raise ValueError(f"margin must lie in [0, 1), but is {self.margin}: 0.03 takes a setting that is 3 % faster")


@dataclass
class Search:
    """The trials so far and the best settings among them.

    Args:
        values: The training config.
        trial: Runs one trial: config, whether to read its data → figures, or `failed`.
        margin: Least gain in speed, as a share.
        on_row: Called with the rows after each trial.
    """

    values: dict[str, Any]
    trial: Trial
    margin: float
    on_row: Callable[[list[dict[str, Any]]], None] = lambda rows: None
    rows: list[dict[str, Any]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    rate: float = 0.0

    def measure(self, knob: str, value: Any, *, with_data: bool = False) -> float:
        """Runs one trial of the chosen settings with `knob` at `value`; returns audio seconds a second, 0 if it failed."""
        tried = {**self.chosen, **({knob: value} if knob else {})}
        groups = {group: self.values[group] | keys for group, keys in _by_group(tried).items()}
        figures = self.trial(self.values | groups, with_data)
        self.rows.append({"knob": knob or "as given", "value": value, "with_data": with_data, **figures})
        log.info("%s", line_of(self.rows[-1]))
        self.on_row(self.rows)
        return float(figures.get("audio_seconds_a_second", 0.0))

    def offer(self, knob: str, value: Any, *, with_data: bool = False) -> float:
        """Tries a value, and keeps it if it is faster by the margin; returns its rate."""
        rate = self.measure(knob, value, with_data=with_data)
        if rate > self.rate * (1 + self.margin):
            self.chosen[knob], self.rate = value, rate
        return rate


def _by_group(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Dotted keys `group.key` and their values as a config."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        group, key = name.split(".")
        nested.setdefault(group, {})[key] = value
    return nested


def search(found: Search, *, on_gpu: bool, with_data: bool, cores: int) -> None:
    """Runs all trials: attention backend, compiled layers and micro-batches (on a GPU), threads (on a CPU), loader workers (with data).

    Raises:
        ValueError: If no trial ran to its end.
    """
    values = found.values
    model, workers_given = values["model"], values["loader"]["workers"]
    found.rate = found.measure("", None)
    out_of_memory = found.rows[0].get("failed") == "out of memory"
    if on_gpu and out_of_memory:
        _smaller(found)
    backends = ["eager", "sdpa"] + (["flex"] if on_gpu and model["attention_dropout"] == 0 else [])
    for backend in backends:
        if backend != choose_backend(model["attention_backend"]):
            found.offer("model.attention_backend", backend)
    if on_gpu:
        found.offer("model.compile_layers", not model["compile_layers"])
    if on_gpu and not out_of_memory:
        _larger(found)
    for threads in [] if on_gpu else _powers(cores):
        if threads != (values["trainer"]["threads"] or cores):
            found.offer("trainer.threads", threads)
    if not found.rate:
        raise ValueError(f"no trial ran to its end; the first: {found.rows[0]['failed']}")
    if with_data:
        found.rate = found.measure("loader.workers", workers_given, with_data=True)
        for workers in [0, *_powers(cores)]:
            if workers != workers_given:
                found.offer("loader.workers", workers, with_data=True)


def _powers(most: int) -> list[int]:
    """1, 2, 4, … below `most`, and `most`."""
    return sorted({1 << power for power in range(most.bit_length()) if 1 << power <= most} | {most})


def _larger(found: Search) -> None:
    """Halves the number of micro-batches until one does not fit."""
    batch = found.values["batch"]
    slots = round(batch["seconds"] / batch["micro_seconds"])
    while slots > 1:
        slots //= 2
        if not found.offer("batch.micro_seconds", batch["seconds"] / slots):
            return


def _smaller(found: Search) -> None:
    """Doubles the number of micro-batches until one fits."""
    batch = found.values["batch"]
    slots = 2 * round(batch["seconds"] / batch["micro_seconds"])
    while batch["seconds"] / slots >= batch["max_seconds"]:
        if found.offer("batch.micro_seconds", batch["seconds"] / slots):
            return
        slots *= 2


def line_of(row: dict[str, Any]) -> str:
    """Line of the table for one trial."""
    value = f"{row['value']:.10g}" if isinstance(row["value"], float) else row["value"]
    setting = row["knob"] if value is None else f"{row['knob']}={value}"
    data = " with data" if row["with_data"] else ""
    if "failed" in row:
        return f"{setting + data:<42} {row['failed']}"
    return (
        f"{setting + data:<42} {row['audio_seconds_a_second']:9.1f} s of audio a second, {row['peak_memory_bytes'] / GIB:6.2f} GiB"
        + (f", {row['wait_share']:.0%} of the time waiting for it" if row["with_data"] else "")
    )


def pasted(chosen: dict[str, Any]) -> str:
    """Settings as command-line arguments."""
    return " ".join(f"{name}={value}" for name, value in chosen.items())


def write_settings(folder: Path, chosen: dict[str, Any], machine: str) -> Path:
    """Writes `machine/tuned.yaml` below `folder`, which `--config-dir=FOLDER +machine=tuned` adds to a training's config."""
    head = (
        "# @package _global_\n"
        f"# Measured by openwavlm tune on {machine}; for a new run on that machine:\n"
        f"# python train.py --config-dir={folder} +machine=tuned name=NAME ...\n"
        f"# or paste: {pasted(chosen) or '(nothing is faster than the settings as given)'}\n"
    )
    path = folder / "machine" / "tuned.yaml"
    write_atomically(path, (head + yaml.safe_dump(_by_group(chosen), sort_keys=False)).encode())
    return path


def tune(values: dict[str, Any]) -> None:
    """Searches by short trials, and writes the fastest settings and every trial; `values` is `conf/tune.yaml` as plain values.

    Raises:
        ValueError: If a setting or the training config is refused, or no trial succeeds.
    """
    settings = Settings(**{key: values.pop(key) for key in Settings.__dataclass_fields__})
    named = any(source.get(key) for source in values["data"]["sources"].values() for key in ("shards", "labels"))
    values = values if named else with_placeholders(values)
    config = RunConfig.of(values)
    classes: tuple[int, ...] = (int(settings.classes),)
    if named:
        with closing(OpenData(config.data, config.batch, config.seed)) as opened:  # refuses damaged data before the first trial
            classes = opened.classes
    on_gpu = torch.cuda.is_available() and config.trainer.accelerator != "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = torch.cuda.get_device_name() if on_gpu else None
    machine = f"{platform.node()}, {gpu or f'CPU, {cores} cores'}, torch {torch.__version__}"
    folder = Path(str(settings.output))
    folder.mkdir(parents=True, exist_ok=True)

    def trial(tried: dict[str, Any], reads: bool) -> dict[str, Any]:  # noqa: FBT001
        return run_trial(tried, classes, settings.seconds, settings.timeout, with_data=reads)

    def save(rows: list[dict[str, Any]]) -> None:
        kept = {"format_version": 1, "machine": machine, "trials": rows, "chosen": found.chosen}
        write_atomically(folder / "tune.json", (json.dumps(kept, indent=1) + "\n").encode())

    log.info("%s; %s", machine, "with data" if named else "synthetic batches, so loader workers are not tried")
    found = Search(values, trial, settings.margin, save)
    search(found, on_gpu=on_gpu, with_data=named, cores=cores)
    save(found.rows)
    path = write_settings(folder, found.chosen, machine)
    log.info("chosen: %s", pasted(found.chosen) or "the settings as given")
    reached = max(row.get("audio_seconds_a_second", 0.0) for row in found.rows) * Recipe(config, classes).flops_a_second()
    log.info("%s", speed_line(reached, gpu, config.precision))
    log.info("wrote %s; for a new run: python train.py --config-dir=%s +machine=tuned name=NAME ...", path, folder)


def speed_line(flops_per_second: float, gpu_name: str | None, precision: str) -> str:
    """Log line of the fastest trial's speed; for a GPU in plan's table, by its name in torch, as the `utilisation` of a plan too."""
    line = f"the fastest trial does {flops_per_second:.3g} operations a second"
    known = next((name for name in GPUS if gpu_name and name in gpu_name.lower()), None)
    if known is None:
        return line
    share = flops_per_second / peak_flops(GPUS[known], precision)
    return f"{line}, {share:.2f} of the peak: openwavlm plan gpu={known} utilisation={share:.2f}"
