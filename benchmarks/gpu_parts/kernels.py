"""A profile of ten updates: which kernels take the time, and how long the GPU waits for the host."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import lightning
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_parts.child import Reporter
from gpu_parts.setting import Setting, synchronise
from gpu_parts.watch import forget, train

_WARM_UP, _ROWS = 3, 30


@dataclass(frozen=True)
class Event:
    """A kernel, a copy, or on a CPU an operation, with its times in nanoseconds; `lane` is its stream or thread."""

    name: str
    lane: tuple[Any, int]
    start: int
    end: int


class Profiler(lightning.Callback):
    """Profiles `updates` updates after three, and ends the training."""

    def __init__(self, device: str, updates: int) -> None:
        self._device, self._last = device, _WARM_UP + updates
        # Host operations are left out on a GPU: recording them would make the gaps that are to be measured.
        activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
        self._profile = profile(activities=[activity], acc_events=True)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Begins or ends the profile."""
        if trainer.global_step == _WARM_UP:
            synchronise(self._device)
            self._profile.start()
        elif trainer.global_step == self._last:
            synchronise(self._device)
            self._profile.stop()
            trainer.should_stop = True

    def events(self, *, on_device: bool) -> list[Event]:
        """What ran on the GPU, or on the host."""
        # Not `profile.key_averages`, which takes longer than the updates: it builds a Python object an event.
        kind = DeviceType.CUDA if on_device else DeviceType.CPU
        return [
            Event(event.name(), (event.device_type(), event.device_resource_id()), event.start_ns(), event.end_ns())
            for event in self._profile.profiler.kineto_results.events()
            if event.device_type() == kind and not event.is_user_annotation()
        ]


def table(events: list[Event]) -> list[dict[str, Any]]:
    """The names with the most time of their own: that of the events within an event is not its own."""
    own, calls = defaultdict(int), defaultdict(int)
    stacks: dict[tuple[Any, int], list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda one: (one.start, -one.end)):
        stack = stacks[event.lane]
        while stack and stack[-1].end <= event.start:
            stack.pop()
        own[event.name] += event.end - event.start
        calls[event.name] += 1
        if stack:
            own[stack[-1].name] -= event.end - event.start
        stack.append(event)
    total = sum(own.values())
    rows = sorted(own, key=lambda name: -own[name])[:_ROWS]
    return [
        {"name": name[:120], "self_ms": own[name] / 1e6, "calls": calls[name], "share": own[name] / total if total else None}
        for name in rows
    ]


def gaps(events: list[Event]) -> dict[str, Any]:
    """Time during which nothing runs, between the beginning of the first event and the end of the last.

    Returns:
        `span_ms`, `idle_ms` and `idle_share`, and how many gaps are longer than 10, 100 and 1,000 µs, with the ten longest.
    """
    merged: list[list[int]] = []
    for start, end in sorted((event.start, event.end) for event in events):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    idle = [after[0] - before[1] for before, after in pairwise(merged)]
    span = merged[-1][1] - merged[0][0]
    longer = {f"longer_than_{limit}_us": sum(gap > 1000 * limit for gap in idle) for limit in (10, 100, 1000)}
    longest = [round(gap / 1e6, 3) for gap in sorted(idle, reverse=True)[:10]]
    return {"span_ms": span / 1e6, "idle_ms": sum(idle) / 1e6, "idle_share": sum(idle) / span, **longer, "longest_ms": longest}


def measure(setting: Setting, report: Reporter) -> None:
    """Reports the table, the gaps, and the calls that wait for the GPU."""
    updates, size = (10, ("batch.seconds=175", "precision=bf16-mixed")) if setting.full else (2, ("precision=bf16-mixed",))
    directory, profiler = setting.folder / "run-profile", Profiler(setting.device, updates)
    report(experiment="wavlm_base", overrides=list(size), updates=updates)
    train(setting.training("wavlm_base", *size), directory, profiler)
    forget(directory)
    report(kernels=table(profiler.events(on_device=setting.on_gpu)))
    if not setting.on_gpu:
        report(
            gaps=None,
            waiting_calls=None,
            without_a_gpu="gaps and waiting calls are a GPU's; the table is of operations on the CPU",
        )
        return
    report(gaps=gaps(profiler.events(on_device=True)))
    waiting = defaultdict(float)
    for event in profiler.events(on_device=False):
        if "Synchronize" in event.name:
            waiting[event.name] += 1 / updates
    report(waiting_calls=dict(waiting))
