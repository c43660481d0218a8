"""Schedule of a run: the micro-batch in each slot of each global step, independent of processes and interruptions.

Each of several sources gets its share of a step's M slots to within one: the whole part at every step, the fractional parts dealt by
a low-discrepancy sequence (docs/decisions/0003). Slot j of a source reads stream j mod S of that source. With several sources and
streams the assignment rotates by one slot a step, so that every stream of every source is read.
"""

import bisect
import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from openwavlm.batches.plan import EpochPlan, MicroBatchSpec, PlanStatistics

_UNIT = 1 << 32
_GOLDEN = 2_654_435_769  # 2³² / golden ratio: the phases s · φ mod 1 spread evenly over any run of steps


class SourceStream:
    """Endless concatenation of one stream's data epochs.

    Args:
        make_plan: Epoch → plan of that epoch.
        background: Pool that plans the next epoch once half of one is used; None = plan when needed.
    """

    def __init__(self, make_plan: Callable[[int], EpochPlan], name: str, background: ThreadPoolExecutor | None = None) -> None:
        self._make_plan, self._name, self._background = make_plan, name, background
        self.first_epoch = 0
        self.epoch_starts: list[int] = [0]  # position of the first micro-batch of each known epoch from `first_epoch` on
        self._epoch = -1
        self._plan: EpochPlan | None = None
        self._next: Future[EpochPlan] | None = None

    def at(self, position: int) -> tuple[EpochPlan, int]:
        """Plan of the epoch, and index within it, of the stream's micro-batch `position`; a ValueError without usable audio."""
        epoch = bisect.bisect_right(self.epoch_starts, position) - 1  # epochs with a known end are skipped without planning them
        while True:
            plan = self._plan_of(epoch)
            if len(plan) == 0:
                raise ValueError(
                    f"{self._name} has no usable audio: every utterance is shorter than batch.min_seconds or held out"
                )
            end = self.epoch_starts[epoch] + len(plan)
            if epoch + 1 == len(self.epoch_starts):
                self.epoch_starts.append(end)
            if position < end:
                index = position - self.epoch_starts[epoch]
                if self._background is not None and self._next is None and 2 * index >= len(plan):
                    self._next = self._background.submit(self._make_plan, self.first_epoch + epoch + 1)
                return plan, index
            epoch += 1

    def _plan_of(self, epoch: int) -> EpochPlan:
        if epoch != self._epoch or self._plan is None:
            ready = self._next if self._next is not None and epoch == self._epoch + 1 else None
            self._plan = ready.result() if ready is not None else self._make_plan(self.first_epoch + epoch)
            self._epoch, self._next = epoch, None
        return self._plan


@dataclass(frozen=True)
class StepPlan:
    """One global step of one rank."""

    step: int  # the update, from 0
    specs: list[MicroBatchSpec]  # the rank's micro-batches in order
    digest: int  # 40-bit hash of all plans of the step; the run stops if ranks differ


class Schedule:
    """Maps steps to micro-batches.

    Args:
        sources: Name → (share, streams), at least one; shares are positive and need not sum to 1.
        slots: M, micro-batches of a global step, ≥ 1.

    Raises:
        ValueError: If the streams of a source do not divide the slots.
    """

    def __init__(self, sources: dict[str, tuple[float, list[SourceStream]]], slots: int) -> None:
        for _, streams in sources.values():
            if slots % len(streams):
                raise ValueError(f"data.streams must divide the {slots} micro-batches of a step, but is {len(streams)}")
        self.slots = slots
        self._streams = {name: streams for name, (_, streams) in sources.items()}
        total = sum(share for share, _ in sources.values())
        exact = [slots * share / total for share, _ in sources.values()]
        self._whole = np.array([int(e + 1e-9) for e in exact])
        parts = np.array([e - int(e + 1e-9) for e in exact]).clip(min=0)
        self._left = slots - int(self._whole.sum())
        borders = np.round(np.cumsum(parts) * _UNIT).astype(np.int64)
        borders[-1] = self._left * _UNIT
        self._borders = np.concatenate([[0], borders])
        self._shape = (len(sources), max(len(s) for s in self._streams.values()))
        self._origin = 0
        self._reset()

    def counts(self, step: int | np.ndarray) -> np.ndarray:
        """Slots of each source at `step`: int64 (..., sources), each within one of its exact share."""
        phase = (np.asarray(step, dtype=np.int64) * _GOLDEN) % _UNIT
        return self._whole + np.diff((self._borders + phase[..., None]) // _UNIT, axis=-1)

    def step(self, step: int, rank: int = 0, world_size: int = 1) -> StepPlan:
        """Micro-batches of `rank` of W processes at `step`: slots rank, rank + W, …, filled to equal numbers; a ValueError if W > M."""
        if world_size > self.slots:
            raise ValueError(
                f"{world_size} processes but only {self.slots} micro-batches per step: use at most {self.slots} processes, or start a new "
                "run with a lower batch.micro_seconds"
            )
        self._seek(step)
        located: list[tuple[EpochPlan, int]] = [None] * self.slots  # type: ignore[list-item]
        digest = hashlib.blake2b(digest_size=5)
        slot = self._turn(step)
        for number, (count, streams) in enumerate(zip(self.counts(step), self._streams.values(), strict=True)):
            taken = self._taken[number].copy()
            for _ in range(int(count)):
                which = slot % len(streams)
                located[slot % self.slots] = streams[which].at(int(taken[which]))
                taken[which] += 1
                slot += 1
        for plan_digest in dict.fromkeys(plan.digest for plan, _ in located):
            digest.update(plan_digest.to_bytes(8, "little"))
        specs = []
        for mine in range(rank, rank + self.slots, world_size):
            plan, index = located[mine if mine < self.slots else 0]
            specs.append(plan.spec(index) if mine < self.slots else replace(plan.spec(index), weight=0.0))
        return StepPlan(step, specs, int.from_bytes(digest.digest(), "little"))

    def state(self, step: int) -> dict[str, Any]:
        """State for a checkpoint after `step` updates: first epoch of each stream, and first position of its epochs so far.

        The same for every number of processes and however far the loader has read ahead.
        """

        def begun(stream: SourceStream, taken: int) -> dict[str, Any]:
            known = bisect.bisect_left(stream.epoch_starts, max(1, taken))
            return {"first_epoch": stream.first_epoch, "starts": stream.epoch_starts[:known]}

        given = zip(self._streams.items(), self._given(self._origin, step).tolist(), strict=True)
        return {"origin": self._origin, "streams": {name: list(map(begun, members, taken)) for (name, members), taken in given}}

    def beginning(self) -> dict[str, Any]:
        """Beginning of this plan: `origin`, its first step, and `first_epochs`, the data epoch of each stream there."""
        epochs = {name: [stream.first_epoch for stream in members] for name, members in self._streams.items()}
        return {"origin": self._origin, "first_epochs": epochs}

    def begin_as(self, beginning: dict[str, Any]) -> None:
        """Follows the plan with this `beginning`, from its first step on."""
        first_epochs = beginning["first_epochs"].items()
        streams = {name: [{"first_epoch": epoch, "starts": [0]} for epoch in epochs] for name, epochs in first_epochs}
        self.restore({"origin": beginning["origin"], "streams": streams})

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from `state` of the same plan, without planning its past epochs again."""
        self._origin = state["origin"]
        for name, members in self._streams.items():
            for stream, kept in zip(members, state["streams"][name], strict=True):
                stream.first_epoch, stream.epoch_starts = kept["first_epoch"], list(kept["starts"])
        self._reset()

    def begin_at(self, step: int, state: dict[str, Any]) -> None:
        """Begins another plan at `step`: each stream with the epoch after the last one begun in `state` of the old plan."""
        first_epochs = {}
        for name, members in self._streams.items():
            begun = (kept["first_epoch"] + len(kept["starts"]) for kept in state["streams"].get(name, []))
            first_epochs[name] = [max(begun, default=0)] * len(members)
        self.begin_as({"origin": step, "first_epochs": first_epochs})

    def statistics(self) -> PlanStatistics:
        """Frames planned, padded and left out in the epochs of the first step."""
        first = (stream.at(0)[0].statistics for streams in self._streams.values() for stream in streams)
        return sum(first, start=PlanStatistics())

    def _reset(self) -> None:
        self._step, self._taken = self._origin, np.zeros(self._shape, dtype=np.int64)

    def _turn(self, step: int | np.ndarray) -> int | np.ndarray:
        return step if len(self._streams) > 1 else 0 * step

    def _seek(self, step: int) -> None:
        """Counts the micro-batches that each stream has given before `step`."""
        if step < self._origin:
            raise ValueError(f"this plan begins at step {self._origin}, but the step is {step}")
        if step < self._step:
            self._reset()
        self._taken = self._taken + self._given(self._step, step)
        self._step = step

    def _given(self, first: int, last: int) -> np.ndarray:
        """Number of micro-batches of each stream in the steps [first, last)."""
        given = np.zeros(self._shape, dtype=np.int64)
        for start in range(first, last, 65_536):
            steps = np.arange(start, min(last, start + 65_536))
            counts = self.counts(steps)
            ends = np.cumsum(counts, axis=1) + np.asarray(self._turn(steps))[..., None]
            for number, streams in enumerate(self._streams.values()):
                size = len(streams)
                for which in range(size):
                    upto = (ends[:, number] - which + size - 1) // size
                    before = (ends[:, number] - counts[:, number] - which + size - 1) // size
                    given[number, which] += int((upto - before).sum())
        return given
