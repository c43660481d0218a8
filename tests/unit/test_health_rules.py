"""Each health rule holds on one side of its threshold and is broken on the other; the monitor fires once, and again after recovery."""

import csv
import math
import multiprocessing
import os
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from openwavlm.training.health.core_wait import CoreWait, _waits
from openwavlm.training.health.figures import HealthFigures, HealthRecord, block_of
from openwavlm.training.health.judgement import Known, Lap, References
from openwavlm.training.health.monitor import HealthMonitor, WallClock
from openwavlm.training.health.rules import RULES
from openwavlm.training.health.settings import Health
from openwavlm.training.health.window import Window
from openwavlm.training.records import CsvRecord
from openwavlm.training.sums import SUMS, StepRecord
from openwavlm.training.tables import HEALTH_COLUMNS

SETTINGS = Health(window=4, every=1, settle_updates=0, count_updates=0, early_share=1.0, recovery=2)
KNOWN = Known(
    SETTINGS,
    updates=100,
    from_random=True,
    references=References(unigram=3.0, perplexity=20.0, count_table=2.0),
    lap=Lap(10.0, 0.1),
    speeds=[1.0] * 5,
    gradients={"head": [1.0] * 5},
)


def window(**parts) -> Window:
    """A sound window of four updates, changed in some parts."""
    sums = {"cross_entropy": 1.5e4, "masked": 1e4, "rows": 200.0, "unreadable": 0.0, "samples": 160_000.0}
    seen = {"masked": 1e5, "correct": 2e4, "unmasked": 1e5, "unmasked_correct": 3e4}
    sound = Window(97, 4, 0, sums, seen, [1.0] * 20, [1.0] * 50, {"head": [1.0, 1.1, 0.9, 1.0]})
    for name, value in parts.items():
        setattr(sound, name, {**getattr(sound, name), **value} if isinstance(value, dict) else value)
    return sound


def broken(judged: Window, known: Known = KNOWN) -> set[str]:
    return {rule.name for rule in RULES if (found := rule.judge(judged, known)) is not None and found.broken}


def test_a_sound_window_breaks_no_rule_and_is_judged_by_all():
    assert broken(window()) == set()
    assert [rule.name for rule in RULES if rule.judge(window(), KNOWN) is None] == []


SIDES = [
    ("count_table", {"sums": {"cross_entropy": 1.999e4}}, {"sums": {"cross_entropy": 2.0e4}}),
    ("unmasked_accuracy", {"seen": {"unmasked_correct": 1.86e4}}, {"seen": {"unmasked_correct": 1.7e4}}),
    ("perplexity", {"marginal": [1.0] * 11}, {"marginal": [1.0] * 9}),
    ("gradient_flow", {"gradients": {"layer_01": [0.0, 0.0, 1.0]}}, {"gradients": {"layer_01": [0.0, math.nan, 0.0]}}),
    ("gradient_flow", {"gradients": {"layer_01": [0.0, 0.0]}}, {"gradients": {"layer_01": [math.inf] * 3}}),
    ("gradient_growth", {"gradients": {"head": [5.0] * 3}}, {"gradients": {"head": [5.1] * 3}}),
    ("gradient_growth", {"gradients": {"head": [1.0, 1.0, 90.0]}}, {"gradients": {"head": [90.0, 90.0, 1.0]}}),
    ("dead_channels", {"activations": [1.0] * 48 + [0.0] * 2}, {"activations": [1.0] * 47 + [0.0] * 3}),
    ("dead_channels", {"activations": [1.0] * 47 + [0.002] * 3}, {"activations": [0.0] * 50}),
    ("skipped_updates", {}, {"skipped": 1}),
    ("unreadable_rows", {}, {"sums": {"unreadable": 1.0}}),
]


@pytest.mark.parametrize(("rule", "sound", "fault"), SIDES)
def test_a_rule_holds_on_one_side_of_its_threshold_alone(rule, sound, fault):
    assert broken(window(**sound)) == set()
    assert broken(window(**fault)) == {rule}
    sentence = next(r for r in RULES if r.name == rule).judge(window(**fault), KNOWN).sentence
    assert len(sentence) > 30 and "\n" not in sentence


def test_a_loss_at_the_unigram_is_one_finding_and_one_below_it_another():
    assert broken(window(sums={"cross_entropy": 3.0e4})) == {"unigram"}
    assert broken(window(sums={"cross_entropy": 2.99e4})) == {"count_table"}


def test_wall_time_has_two_rules():
    assert broken(window(), replace(KNOWN, lap=Lap(10.0, 0.51))) == {"data_wait"}
    assert broken(window(), replace(KNOWN, lap=Lap(10.0, 0.49))) == set()
    assert broken(window(), replace(KNOWN, lap=Lap(12.6, 0.0))) == {"throughput"}
    assert broken(window(), replace(KNOWN, lap=Lap(12.4, None))) == set()


def test_a_cpu_run_may_be_half_as_fast_as_usual():
    assert broken(window(), replace(KNOWN, on_cpu=True, lap=Lap(19.9, None))) == set()
    assert broken(window(), replace(KNOWN, on_cpu=True, lap=Lap(20.1, None))) == {"throughput"}


def test_times_on_shared_cores_are_not_judged():
    for lap in (Lap(10.0, 0.9, 1.01), Lap(40.0, 0.0, 4.1)):
        known = replace(KNOWN, lap=lap)
        assert {rule.name for rule in RULES if rule.judge(window(), known) is None} == {"data_wait", "throughput"}
    for without_core in (0.99, 1.0):  # a tenth of the time
        assert broken(window(), replace(KNOWN, lap=Lap(10.0, 0.9, without_core))) == {"data_wait"}
    assert broken(window(), replace(KNOWN, lap=Lap(40.0, 0.0, 3.9))) == {"throughput"}


def test_rules_wait_for_their_time():
    late = replace(KNOWN, settings=replace(SETTINGS, settle_updates=101, count_updates=101, early_share=0.5))
    unjudged = {rule.name for rule in RULES if rule.judge(window(), late) is None}
    assert unjudged == {"unigram", "count_table", "unmasked_accuracy", "perplexity"}
    assert (
        next(rule for rule in RULES if rule.name == "unmasked_accuracy").judge(window(), replace(KNOWN, from_random=False))
        is None
    )
    full = Health()
    assert full.settled(400_000) == 8000 and full.counted(400_000) == 60_000 and full.early(400_000) == 20_000
    assert full.settled(5000) == full.counted(5000) == 2000


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"every": 0}, "health.every must lie in 1"),
        ({"every": 101}, "health.every must lie in 1"),
        ({"recovery": -1}, "health.recovery must be a number that is not negative"),
        ({"skipped_share": 1.5}, "health.skipped_share is a share"),
        ({"chance": -1.0}, "health.chance must be a number that is not negative"),
        ({"unigram_ratio": 0.0}, "health.unigram_ratio must be a positive number"),
    ],
)
def test_thresholds_out_of_range_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        Health(**values)


class Module(torch.nn.Module):
    """Two blocks of a training module, with gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.ModuleDict({"final_proj": torch.nn.Linear(2, 1), "wavlm": torch.nn.ModuleDict()})
        self.model["wavlm"]["projection"] = torch.nn.Linear(1, 1, bias=False)
        for parameter, gradient in zip(self.parameters(), ([[3.0, 0.0]], [4.0], [[-2.0]]), strict=True):
            parameter.grad = torch.tensor(gradient)


def test_predictions_channels_and_gradients_are_measured_at_every_nth_update_and_summed():
    figures = HealthFigures(4, num_classes=2, channels=3)
    for step in range(5):
        assert figures.begin(step) is (step == 3), "the fourth update"
        # Two micro-batches; features are (batch, channels, frames).
        for scale in (1.0, 2.0):
            features = scale * torch.tensor([[[1.0, -1.0], [0.0, 0.5], [0.0, 0.0]], [[-2.0, 0.0], [0.0, 0.0], [0.0, 0.25]]])
            figures.add(scale * torch.tensor([0.25, 0.75]), features)
        figures.gradients(Module())
        pending = figures.end()
        if step != 3:
            assert pending is None
            continue
        found = figures.record(pending.numpy())
        assert found.marginal.tolist() == [0.75, 2.25] and found.activations.tolist() == [12.0, 1.5, 0.75]
        assert found.gradients == {"head": 5.0, "projection": 2.0}, "norms"


def test_every_parameter_of_a_model_has_a_block_but_the_map_that_fades():
    names = ["model.wavlm.extractor.layers.0.conv.weight", "model.wavlm.feature_norm.bias", "model.wavlm.mask_embedding"]
    names += ["model.wavlm.encoder.positional.conv.bias", "model.wavlm.encoder.layers.11.norm.weight", "model.final_proj.weight"]
    assert [block_of(name) for name in names] == ["extractor", "projection", "projection", "positions", "layer_12", "head"]
    assert block_of("model.label_embeddings") == "head" and block_of("logmel_map.weight") is None


# --- figures by hand ----------------------------------------------------------------------------------------------------


def judged(name: str, part: Window, known: Known = KNOWN):
    return next(rule for rule in RULES if rule.name == name).judge(part, known)


# Every count differs from every other, so that no denominator can stand in for another one.
UNEVEN = window(
    sums={"cross_entropy": 1.8e4, "masked": 1.2e4, "unreadable": 4.0, "samples": 320_000.0},
    seen={"masked": 4e4, "correct": 1e4, "unmasked": 2e4, "unmasked_correct": 6e3},
    marginal=[2.0, 1.0, 1.0],
    skipped=1,
    activations=[1.0] * 30 + [0.0] * 20,
    gradients={"head": [1.0, 2.0, 9.0], "layer_01": [1.0, math.nan, 0.0]},
)
UNEVEN_KNOWN = replace(
    KNOWN,
    settings=replace(SETTINGS, unigram_ratio=0.9, count_ratio=0.8),
    gradients={"head": [1.0, 1.0, 4.0, 9.0, 100.0], "layer_01": [1.0] * 5},
    lap=Lap(20.0, 0.5),
    speeds=[1.0, 1.0, 2.0, 3.0, 10.0],
)
FIGURES = {
    "unigram": (1.5, 0.9 * 3.0),
    "count_table": (1.5, 0.8 * 2.0),
    # Ten neighbouring frames count as one: variance p (1 - p) · 10 · (1/n + 1/m) of the difference of two shares, p pooled.
    "unmasked_accuracy": (0.3, 0.25 - 5 * (16 / 60 * 44 / 60 * 10 * (1 / 4e4 + 1 / 2e4)) ** 0.5),
    "perplexity": (8**0.5, 10.0),  # probabilities 1/2, 1/4, 1/4: 1.5 bits
    "gradient_flow": (0.0, 0.0),
    "gradient_growth": (0.5, 5.0),
    "dead_channels": (0.4, 0.05),
    "skipped_updates": (0.25, 0.01),
    "data_wait": (0.025, 0.05),
    "throughput": (1.0, 0.8 * 2.0),
    "unreadable_rows": (0.02, 1e-4),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_rules_figure_and_threshold_are_those_of_its_formula(name):
    found = judged(name, UNEVEN, UNEVEN_KNOWN)
    assert (found.value, found.threshold) == pytest.approx(FIGURES[name], rel=1e-9)


@pytest.mark.parametrize(
    ("last", "unjudged"),
    [
        (100, set()),
        (101, {"unmasked_accuracy"}),
        (99, {"unigram", "count_table", "perplexity"}),
    ],
)
def test_a_rule_is_judged_from_the_update_that_the_settings_name_and_up_to_it(last, unjudged):
    known = replace(KNOWN, settings=replace(SETTINGS, settle_updates=100, count_updates=100))
    assert {rule.name for rule in RULES if rule.judge(window(first=last - 3), known) is None} == unjudged


def test_the_count_table_has_a_time_of_its_own():
    later = replace(SETTINGS, settle_updates=100, count_updates=101)
    assert judged("count_table", window(), replace(KNOWN, settings=later)) is None
    assert judged("unigram", window(), replace(KNOWN, settings=later)) is not None
    assert (
        judged("count_table", window(), replace(KNOWN, settings=replace(later, settle_updates=101, count_updates=100))).broken
        is False
    )
    odd = replace(SETTINGS, settle_share=0.1, count_share=0.3, early_share=0.5)
    assert (odd.settled(101), odd.counted(101), odd.early(101)) == (11, 31, 50)


def test_a_gradient_is_held_against_the_median_of_five_windows_or_more():
    grown = window(gradients={"head": [6.0] * 3})
    assert broken(grown, replace(KNOWN, gradients={"head": [1.0] * 4 + [100.0]})) == {"gradient_growth"}
    assert judged("gradient_growth", grown, replace(KNOWN, gradients={"head": [1.0] * 4})) is None
    assert broken(window(gradients={"head": [1.0, math.inf, math.inf]})) == set(), "the median of the finite ones"


def test_a_channel_is_dead_beside_the_channels_mean():
    assert broken(window(activations=[1000.0] + [0.05] * 39)) == set()
    assert broken(window(activations=[1000.0] + [0.02] * 39)) == {"dead_channels"}


def test_a_speed_is_held_against_five_windows_or_more():
    slow = replace(KNOWN, lap=Lap(40.0, None))
    assert broken(window(), slow) == {"throughput"}
    assert judged("throughput", window(), replace(slow, speeds=[1.0] * 4)) is None


def test_references_are_complete_when_all_is_there_that_the_run_will_be_held_to():
    settings = Health(settle_updates=100, count_updates=200, settle_share=0.0, count_share=0.0)
    for unigram, table, updates, complete in [
        (None, None, 99, True),
        (None, None, 100, False),
        (3.0, None, 199, True),
        (3.0, None, 200, False),
        (None, 2.0, 200, False),
        (3.0, 2.0, 200, True),
    ]:
        assert References(unigram, None, table).complete(settings, updates) is complete
    assert References(3.0, 20.0).complete(replace(settings, count_rows=0), 200)


def test_a_window_adds_up_what_each_update_measured():
    part = Window(1)

    def sums(**values: float) -> dict[str, float]:
        return dict.fromkeys(SUMS, 0.0) | {"rows": 10.0, "unreadable": 1.0, "samples": 100.0} | values

    first = {"cross_entropy": 6.0, "masked": 3.0, "correct": 1.0, "unmasked": 4.0, "unmasked_correct": 2.0}
    part.add(sums(**first), 1.0, HealthRecord(np.array([1.0, 2.0]), np.array([4.0, 8.0, 0.5]), {"head": 0.5}))
    # The second is not measured and has no unmasked frames, the third is skipped.
    part.add(sums(cross_entropy=5.0, masked=2.0, correct=2.0), 2.0, None)
    lost = HealthRecord(np.full(2, math.nan), np.ones(3), {"head": math.inf})
    part.add(sums(cross_entropy=math.nan, masked=7.0, unmasked=1.0), math.nan, lost)
    part.add(sums(**first), 1.0, HealthRecord(np.array([3.0, 3.0]), np.array([1.0, 1.0, 1.0]), {"head": 0.25}))
    assert (part.updates, part.skipped) == (4, 1)
    assert part.sums == {"cross_entropy": 17.0, "masked": 8.0, "rows": 40.0, "unreadable": 4.0, "samples": 400.0}
    assert part.seen == {"masked": 6.0, "correct": 2.0, "unmasked": 8.0, "unmasked_correct": 4.0}
    assert part.marginal == [4.0, 5.0] and part.activations == [5.0, 9.0, 1.5]
    assert part.gradients == {"head": [0.5, math.inf, 0.25]}


# --- the monitor --------------------------------------------------------------------------------------------------------


def record(step: int, *, unreadable: float = 0.0, grad_norm: float = 1.0) -> StepRecord:
    sums = dict.fromkeys(SUMS, 1.0) | {"rows": 50.0, "unreadable": unreadable}
    return StepRecord(step, sums, grad_norm, 1e-3, False, HealthRecord(np.ones(20), np.ones(5), {"head": grad_norm}))


class Watched:
    """A monitor and what it said."""

    def __init__(self, action: str = "warn", state: dict | None = None, **settings: int) -> None:
        self.findings: list[dict] = []
        self.figures: dict[int, dict[str, float]] = {}
        self.stops = 0
        self.seconds = 0.0
        known = Known(replace(SETTINGS, action=action, **settings), 10_000, from_random=False)

        def stop() -> None:
            self.stops += 1

        self.monitor = HealthMonitor(
            known,
            WallClock(None, now=self.tick),
            on_finding=self.findings.append,
            on_figures=lambda step, values: self.figures.setdefault(step, {}).update(values),
            stop=stop,
            state=state,
        )

    def tick(self) -> float:
        """A clock by which every window takes one second."""
        self.seconds += 1.0
        return self.seconds

    def run(self, first: int, last: int, bad: range | list[int] = ()) -> list[tuple[int, str]]:
        for step in range(first, last + 1):
            self.monitor.update(record(step, unreadable=float(step in bad)))
        return [(finding["step"], finding["rule"]) for finding in self.findings]


def test_a_rule_fires_once_and_again_only_after_it_recovered():
    watched = Watched()
    # Broken in the windows ending at 4, 8 and 16; it holds in one window, then in two.
    assert watched.run(1, 24, bad=[1, 7, 13]) == [(4, "unreadable_rows")]
    assert watched.run(25, 28, bad=[25]) == [(4, "unreadable_rows"), (28, "unreadable_rows")]
    state = watched.monitor.summary()["unreadable_rows"]
    assert (state["judged"], state["fired"], state["last_step"], state["value"]) == (7, 2, 28, 1 / 200)
    assert watched.figures[4]["health/unreadable_rows"] == 1 / 200 and watched.figures[3] == {"health_gradients/head": 1.0}


def test_stop_is_asked_for_once_a_firing_and_only_if_wished():
    watched, calm = Watched("stop"), Watched()
    watched.run(1, 8, bad=[1, 5])
    calm.run(1, 8, bad=[1, 5])
    assert (watched.stops, calm.stops) == (1, 0)


def test_a_resumed_monitor_judges_as_if_it_had_never_stopped():
    whole, first = Watched(), Watched()
    expected = whole.run(1, 40, bad=[2, 11, 12, 30])
    found = first.run(1, 11, bad=[2, 11])
    state = first.monitor.state()
    second = Watched(state=state)
    assert found + second.run(12, 40, bad=[12, 30]) == expected
    first_rules, second_rules = whole.monitor.summary(), second.monitor.summary()
    assert all(second_rules[name] == state for name, state in first_rules.items() if name != "throughput")


class Waits:
    """Windows in which the training waits for a core, in seconds."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    def lap(self) -> float:
        return self.seconds.pop(0)


def test_a_lap_leaves_pauses_out_and_counts_the_waiting_of_its_own_window():
    now, waited = [100.0], [3.0]
    clock = WallClock(lambda: waited[0], Waits(0.0, 1.5, 0.0), now=lambda: now[0])
    assert clock.lap() is None
    now[0], waited[0] = 107.0, 4.0
    with clock.paused():
        now[0] = 112.0
    assert clock.lap() == Lap(seconds=7.0, waited=1.0, without_core=1.5) and clock.lap() == Lap(0.0, 0.0, 0.0)


def test_windows_on_shared_cores_do_not_enter_the_usual_speed():
    watched = Watched()
    watched.monitor._clock = WallClock(None, Waits(0.0, 0.0, 0.5, 0.0, 0.09), now=watched.tick)
    watched.run(1, 20)
    # The first window has no time; of the four others one was spent on shared cores.
    assert len(watched.monitor._known.speeds) == 3


def test_a_process_that_waits_for_a_core_is_seen_to_wait():
    cores = os.sched_getaffinity(0)
    rival = multiprocessing.get_context("fork").Process(target=_spin, args=(min(cores),))
    core_wait = CoreWait(lambda: [os.getpid()])
    try:
        os.sched_setaffinity(0, {min(cores)})
        rival.start()
        began = time.process_time()
        while time.process_time() - began < 0.2:  # processor time, not the wall's
            pass
        waited = core_wait.lap()
    finally:
        os.sched_setaffinity(0, cores)
        rival.kill()
        rival.join()
    if waited is None:
        pytest.skip("this system does not count the wait for a core")
    assert waited > 0.02
    assert CoreWait(lambda: [2**30]).lap() is None


def _spin(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        pass


def test_a_block_is_held_against_its_earlier_windows_and_at_most_twenty_of_them():
    watched = Watched()
    for step in range(1, 25 * 4 + 1):
        watched.monitor.update(record(step, grad_norm=float(-(-step // 4))))
        if step == 20:
            assert watched.monitor.summary()["gradient_growth"]["judged"] == 0, "five windows and none before the first"
    assert watched.monitor.state()["gradients"] == {"head": [float(number) for number in range(6, 26)]}
    growth = watched.monitor.summary()["gradient_growth"]
    assert (growth["judged"], growth["value"]) == (20, pytest.approx(25 / 14.5)), "14.5 is the median of 5 … 24"


def test_half_a_window_that_was_measured_otherwise_is_not_judged():
    first = Watched()
    first.run(1, 2)
    for changed, judged_windows in (({}, 1), ({"every": 2}, 0)):
        second = Watched(state=first.monitor.state(), **changed)
        second.run(3, 4)
        assert second.monitor.summary()["unreadable_rows"]["judged"] == judged_windows


def test_a_part_of_a_window_does_not_enter_the_usual_speed():
    watched = Watched()
    watched.run(1, 4)
    watched.run(7, 12)
    assert len(watched.monitor._known.speeds) == 1


def test_the_longest_wait_for_a_core_since_the_last_call_counts_and_stolen_time_with_it(monkeypatch):
    waits = [{1: 5.0, 2: 1.0}, {1: 5.25, 2: 3.0, 3: 0.5}, None, {1: 6.0}]
    stolen = [10.0, 10.125, 10.125, 10.125]
    monkeypatch.setattr("openwavlm.training.health.core_wait._waits", lambda processes: waits.pop(0))
    monkeypatch.setattr("openwavlm.training.health.core_wait._stolen", lambda: stolen.pop(0))
    core_wait = CoreWait(lambda: [1])
    assert core_wait.lap() == 2.125
    assert core_wait.lap() is None


def test_the_wait_of_a_process_is_the_second_field_of_its_schedstat_in_nanoseconds(monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_text", lambda self: "900000000 1500000000 7\n")
    assert _waits([os.getpid()]) == {os.getpid(): 1.5}


def test_a_window_that_is_not_whole_is_not_judged():
    watched = Watched()
    assert watched.run(3, 4, bad=[3]) == [] and watched.run(5, 8, bad=[5]) == [(8, "unreadable_rows")]


def test_skipped_updates_leave_losses_and_predictions_out():
    part = Window(1)
    part.add(record(1).sums, 1.0, record(1).health)
    part.add(dict.fromkeys(SUMS, math.nan) | {"rows": 1.0, "unreadable": 0.0, "samples": 1.0}, math.nan, None)
    assert (part.updates, part.skipped, part.sums["cross_entropy"], sum(part.marginal)) == (2, 1, 1.0, 20.0)
    assert asdict(Window.restored(asdict(part))) == asdict(part)


def test_a_monitor_takes_on_the_state_of_a_version_with_more_rules_and_other_names():
    first = Watched()
    first.run(1, 6, bad=[2])
    state = first.monitor.state()
    window = state["window"] | {"void": 1, "promised": {"mask": 3.0, "wrong_rows": 0.0}}
    del window["skipped"]
    rule = dict.fromkeys(("judged", "fired", "held", "last_step"), 1) | {"broken": False, "value": 1.0, "threshold": 1.0}
    rules = {"void_updates" if name == "skipped_updates" else name: kept for name, kept in state["rules"].items()}
    older = state | {"window": window, "rules": rules | {"mask_coverage": rule, "partners": rule}}
    second = Watched(state=older)
    assert second.monitor.state() == state | {"window": state["window"] | {"skipped": 1}}
    assert second.run(7, 8) == [(8, "skipped_updates")]


def test_a_finding_is_a_row_that_a_table_reader_takes_back(tmp_path):
    table = CsvRecord(tmp_path / "health.csv", HEALTH_COLUMNS)
    sentence = 'the "loss", of all,\nis high'
    table.write({"step": 4, "rule": "unigram", "value": 0.1 + 0.2, "threshold": 0.0, "sentence": sentence})
    table.close()
    (row,) = csv.DictReader((tmp_path / "health.csv").read_text().splitlines())
    assert (row["rule"], float(row["value"]), row["sentence"]) == ("unigram", 0.1 + 0.2, sentence.replace("\n", " "))
    CsvRecord(tmp_path / "health.csv", HEALTH_COLUMNS, last_step=3).close()
    assert len((tmp_path / "health.csv").read_text().splitlines()) == 1
