"""Monitor of a run, window by window, on rank 0: a rule that fires is logged, written to `health.csv`, and may stop the run."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from openwavlm.training.health.core_wait import CoreWait
from openwavlm.training.health.judgement import Judgement, Known, Lap
from openwavlm.training.health.rules import RULES, current_name, median, speed_of
from openwavlm.training.health.window import Window
from openwavlm.training.records import Value
from openwavlm.training.sums import StepRecord

log = logging.getLogger(__name__)
_HISTORY = 20  # windows that a block's gradient is compared with


@dataclass
class RuleState:
    """State of a rule: windows judged, times it fired, the last judgement, and windows that it has held since it was broken."""

    judged: int = 0
    fired: int = 0
    broken: bool = False
    held: int = 0
    last_step: int = 0
    value: float = 0.0
    threshold: float = 0.0


class WallClock:
    """Wall time of the windows of this launch, on rank 0, without validation and saving.

    Args:
        waited: Seconds of waiting for the loader so far; None if the process reads by itself.
        core_wait: Measures the wait for a core, where the step runs on a CPU.
        now: The clock, in seconds.
    """

    def __init__(
        self, waited: Callable[[], float] | None, core_wait: CoreWait | None = None, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._waited, self._paused, self._before = waited, 0.0, 0.0
        self._core_wait, self._now = core_wait, now
        self._began: float | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time within out."""
        began = self._now()
        try:
            yield
        finally:
            self._paused += self._now() - began

    def lap(self) -> Lap | None:
        """The time since the last call; None at the first, whose window includes the warm-up."""
        now, waited = self._now(), self._waited() if self._waited is not None else None
        without_core = self._core_wait.lap() if self._core_wait is not None else None
        began, paused, before = self._began, self._paused, self._before
        self._began, self._paused, self._before = now, 0.0, waited or 0.0
        if began is None:
            return None
        return Lap(now - began - paused, None if waited is None else waited - before, without_core)


class HealthMonitor:
    """Adds up windows of updates and judges each by every rule.

    A rule that fires can fire again after it has held for `recovery` windows. All rules but the two of wall time depend on the updates
    alone, so a resumed run has the findings of an uninterrupted one.

    Args:
        on_finding: Called with a row of `health.csv` for each rule that fires.
        on_figures: Called with (update, figures by name) for TensorBoard.
        stop: Ends the run at the next step boundary.
        state: `state()` of the checkpoint.
    """

    def __init__(
        self,
        known: Known,
        clock: WallClock,
        *,
        on_finding: Callable[[dict[str, Value]], None],
        on_figures: Callable[[int, dict[str, float]], None],
        stop: Callable[[], None],
        state: dict[str, Any] | None = None,
    ) -> None:
        self._known, self._clock = known, clock
        self._on_finding, self._on_figures, self._stop = on_finding, on_figures, stop
        self._rules = {rule.name: RuleState() for rule in RULES}
        self._window: Window | None = None
        if state is not None:
            kept = {current_name(name): RuleState(**rule) for name, rule in state["rules"].items()}
            self._rules |= {name: rule for name, rule in kept.items() if name in self._rules}
            known.gradients = {block: list(norms) for block, norms in state["gradients"].items()}
            if state["window"] is not None and state["size"] == [known.settings.window, known.settings.every]:
                self._window = Window.restored(state["window"])

    def update(self, record: StepRecord) -> None:
        """Adds one update, and judges the window that it ends."""
        window = self._window
        if window is None or window.first + window.updates != record.step:
            window = self._window = Window(first=record.step)
        window.add(record.sums, record.grad_norm, record.health)
        if record.health is not None:
            norms = record.health.gradients.items()
            self._on_figures(record.step, {f"health_gradients/{block}": norm for block, norm in norms})
        size = self._known.settings.window
        if record.step % size == 0:
            self._window = None
            self._known.lap = self._clock.lap()
            if window.updates == size:
                self._judge(record.step, window)
            self._remember(window)

    def _judge(self, step: int, window: Window) -> None:
        figures: dict[str, float] = {}
        for rule in RULES:
            judgement = rule.judge(window, self._known)
            if judgement is not None:
                figures[f"health/{rule.name}"] = judgement.value
                self._enter(step, rule.name, judgement)
        self._on_figures(step, figures)

    def _enter(self, step: int, name: str, judgement: Judgement) -> None:
        state = self._rules[name]
        state.judged += 1
        state.last_step, state.value, state.threshold = step, float(judgement.value), float(judgement.threshold)
        if not judgement.broken:
            state.held += 1
            state.broken = state.broken and state.held < self._known.settings.recovery
            return
        state.held = 0
        if state.broken:
            return
        state.broken, state.fired = True, state.fired + 1
        log.warning("health, update %d: %s: %s", step, name, judgement.sentence)
        figures = {"value": state.value, "threshold": state.threshold}
        self._on_finding({"step": step, "rule": name, **figures, "sentence": judgement.sentence})
        if self._known.settings.action == "stop":
            self._stop()

    def _remember(self, window: Window) -> None:
        for block, norms in window.gradients.items():
            middle = median(norms)
            if middle is not None:
                self._known.gradients[block] = [*self._known.gradients.get(block, []), middle][-_HISTORY:]
        lap = self._known.lap
        if lap is not None and not lap.shared and window.updates == self._known.settings.window:
            self._known.speeds.append(speed_of(window, lap))

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "rules": self.summary(),
            "gradients": self._known.gradients,
            "window": None if self._window is None else asdict(self._window),
            "size": [self._known.settings.window, self._known.settings.every],
            "references": asdict(self._known.references),
        }

    def summary(self) -> dict[str, Any]:
        """State of each rule, for `summary.json`."""
        return {name: asdict(state) for name, state in self._rules.items()}
