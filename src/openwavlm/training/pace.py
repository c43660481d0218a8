"""Time of a rank's own part of a step: waiting for data and computing, without waiting for other ranks."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Pace:
    """A stopwatch that is held while a rank waits for the others; `now` is the clock, in seconds.

    With `on_gpu` the host runs ahead of the device, so the forward passes are timed on the device and read a step later.
    """

    def __init__(self, *, on_gpu: bool, now: Callable[[], float] = time.monotonic) -> None:
        self._on_gpu, self._now = on_gpu, now
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._before: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._mark = self._now()
        self._data = self._computed = 0.0
        self.own_ms = 0.0

    def begin(self) -> None:
        """Starts a step, whose batch has arrived."""
        now = self._now()
        self._data, self._computed, self._mark = now - self._mark, 0.0, now

    def hold(self) -> None:
        """Stops the watch: the rank waits for others."""
        now = self._now()
        self._computed += now - self._mark
        self._mark = now

    def go(self) -> None:
        """Starts the watch again, after a wait for others or after side jobs."""
        self._mark = self._now()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Marks the start and end of a forward pass on the device."""
        if not self._on_gpu:
            yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._events.append((begin, end))

    def end(self) -> None:
        """Ends a step and computes `own_ms`."""
        # The device has passed the events of the step before, since its figures were read during this one.
        on_device = sum(begin.elapsed_time(end) for begin, end in self._before)
        self._before, self._events = self._events, []
        self.own_ms = 1000 * (self._data + self._computed) + on_device
        self._mark = self._now()
