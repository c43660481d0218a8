"""`benchmarks/gpu.py`: time boxes, parts that fail, results that survive, and all of it on a CPU at toy size."""

import json
import os
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import openwavlm.runs.segments
from openwavlm.audio.frames import num_frames
from programs import REPOSITORY, run_program

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import gpu
from gpu_parts import devices, kernels, marked_tests, parity, precision, resume, step, watch
from gpu_parts.child import Reporter, run_in_child
from gpu_parts.setting import Setting, SkippedError
from gpu_parts.timebox import Part, run_parts

MODULE = "gpu_parts.planted"


# --- time boxes ---------------------------------------------------------------------------------------------------------


class Parts:
    """Parts of a program whose clock moves only when a part runs, by the seconds that the part takes."""

    def __init__(self, *parts: Part, takes: dict[str, float] | None = None, results: dict[str, Any] | None = None) -> None:
        self.parts, self.takes, self.results = parts, takes or {}, results or {}
        self.now, self.boxes, self.saved = 100.0, {}, []

    def run(self, part: Part, box: float) -> dict[str, Any]:
        self.boxes[part.name] = box
        self.now += self.takes.get(part.name, 0.0)
        found = self.results.get(part.name, {"status": "done"})
        if isinstance(found, BaseException):
            raise found
        return found

    def all(self, total: float) -> dict[str, Any]:
        return run_parts(
            self.parts,
            total,
            self.run,
            lambda name, result: self.saved.append((name, result)),
            size="full",
            clock=lambda: self.now,
        )


def part(name: str, share: float, least: float = 1.0, needs: tuple[str, ...] = ()) -> Part:
    return Part(name, "none", share, (0.0, least), needs)


def test_a_part_gets_its_share_of_the_time_left_and_unused_time_goes_to_those_after_it():
    program = Parts(part("a", 0.5), part("b", 0.3), part("c", 0.2), takes={"a": 10.0, "b": 54.0, "c": 36.0})
    program.all(100.0)
    # 100 · 0.5; then 90 · 0.3 / 0.5; then all that is left.
    assert program.boxes == pytest.approx({"a": 50.0, "b": 54.0, "c": 36.0})


def test_a_part_gets_at_least_the_time_that_it_needs():
    program = Parts(part("a", 0.1, least=30.0), part("b", 0.9))
    program.all(100.0)
    assert program.boxes == pytest.approx({"a": 30.0, "b": 100.0})


def test_a_part_for_which_too_little_time_is_left_is_skipped_with_a_reason_and_a_shorter_one_still_runs():
    program = Parts(part("a", 0.4), part("b", 0.3, least=20.0), part("c", 0.3, least=5.0), takes={"a": 90.0})
    results = program.all(100.0)
    assert results["b"] == {"status": "skipped", "reason": "10 s are left, but it needs 20 s"}
    assert results["c"]["status"] == "done" and program.boxes["c"] == pytest.approx(10.0)


def test_a_part_that_fails_is_recorded_and_does_not_stop_the_others():
    program = Parts(part("a", 0.5), part("b", 0.5), results={"a": RuntimeError("no kernel\nfor this")}, takes={"a": 3.0})
    results = program.all(100.0)
    assert results["a"] == {"status": "failed", "reason": "RuntimeError: no kernel", "box_s": 50.0, "seconds": 3.0}
    assert results["b"]["status"] == "done"


def test_a_part_is_skipped_if_what_it_needs_is_not_done():
    needing = part("b", 0.5, needs=("a",))
    for status in ("failed", "skipped", "out of time"):
        results = Parts(part("a", 0.5), needing, results={"a": {"status": status}}).all(100.0)
        assert results["b"] == {"status": "skipped", "reason": "it needs a, which is not done"}
    assert Parts(part("a", 0.5), needing).all(100.0)["b"]["status"] == "done"


def test_results_are_saved_after_each_part():
    program = Parts(part("a", 0.5), part("b", 0.5), results={"b": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        program.all(100.0)
    assert [(name, result["status"]) for name, result in program.saved] == [("a", "done")]


def test_the_shares_of_all_parts_sum_to_one_and_thirteen_minutes_are_enough_for_each():
    parts = gpu.all_parts()
    assert sum(one.share for one in parts) == pytest.approx(1.0)
    assert sum(max(one.least("full"), 1.0) for one in parts) < 13 * 60 and sum(one.least("toy") for one in parts) < 2 * 60
    names = [one.name for one in parts]
    assert all(names.index(need) < names.index(one.name) for one in parts for need in one.needs)


def test_parts_that_an_earlier_call_has_done_are_not_run_again_unless_named():
    kept = {name: {"status": "done"} for name in ("parity", "data", "base", "devices", "tests")} | {
        "large": {"status": "out of time"}
    }
    assert [one.name for one in gpu.chosen_parts(None, kept)] == ["data", "profile", "precision", "resume", "large"]
    assert [one.name for one in gpu.chosen_parts(["base"], kept)] == ["data", "base"]
    everything = {one.name: {"status": "done"} for one in gpu.all_parts()}
    assert gpu.chosen_parts(None, everything) == []
    with pytest.raises(ValueError, match="--only names bass, but the parts are parity, data, base"):
        gpu.chosen_parts(["bass"], {})


def test_results_of_another_machine_or_commit_are_not_kept(tmp_path):
    head, parts = {"commit": "a", "device": "cuda"}, {"base": {"status": "done"}}
    (tmp_path / "f.json").write_text(json.dumps(head | {"date": "2026-11-28", "parts": parts}))
    assert gpu.kept_results(tmp_path / "f.json", head) == parts
    assert gpu.kept_results(tmp_path / "f.json", head | {"commit": "b"}) == {}
    (tmp_path / "f.json").write_text('{"commit": ')
    assert gpu.kept_results(tmp_path / "f.json", head) == gpu.kept_results(tmp_path / "none.json", head) == {}


# --- a part in a process of its own -------------------------------------------------------------------------------------


@pytest.fixture
def run_planted(tmp_path, monkeypatch) -> Callable[..., dict[str, Any]]:
    """Runs a function as a part; its time is over as soon as it has reported, if it is `late`."""

    def run(
        measure: Callable[[Setting, Reporter], None], progress: list[Any] | None = None, *, late: bool = False
    ) -> dict[str, Any]:
        module = types.ModuleType(MODULE)
        module.measure = measure  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, MODULE, module)
        result = tmp_path / "x.json"
        setting = Setting(tmp_path, "cpu", "toy", 1, 100.0, clock=lambda: 1000.0 if late and result.is_file() else 0.0)
        seen: list[Any] = [] if progress is None else progress
        return run_in_child(Part("x", "planted", 1.0, (0.0, 0.0)), setting, seen.append)

    return run


def test_a_part_reports_its_figures(run_planted):
    def measure(setting: Setting, report: Reporter) -> None:
        report(one=1)
        report(two=2, one=3)

    assert run_planted(measure) == {"status": "done", "figures": {"one": 3, "two": 2}}


def test_a_part_that_raises_keeps_its_figures_a_sentence_and_the_end_of_the_traceback(run_planted):
    def measure(setting: Setting, report: Reporter) -> None:
        report(one=1)
        raise ValueError("a bad number\nand more")

    result = run_planted(measure)
    assert (result["status"], result["figures"], result["reason"]) == ("failed", {"one": 1}, "ValueError: a bad number")
    assert any("raise ValueError" in line for line in result["traceback"])


def test_a_part_that_cannot_run_here_is_skipped_with_its_reason(run_planted):
    def measure(setting: Setting, report: Reporter) -> None:
        raise SkippedError("there is no pytest")

    assert run_planted(measure) == {"status": "skipped", "figures": {}, "reason": "there is no pytest"}


def test_a_part_whose_process_dies_has_failed_and_keeps_its_figures(run_planted):
    def measure(setting: Setting, report: Reporter) -> None:
        report(one=1)
        os.write(1, b"on its way\n")
        os.kill(os.getpid(), signal.SIGKILL)

    result = run_planted(measure)
    assert (result["status"], result["figures"]) == ("failed", {"one": 1})
    assert result["reason"] == "its process ended with status -9" and result["log"] == ["on its way"]


def test_a_part_out_of_time_is_ended_with_its_processes_and_keeps_its_figures(run_planted, tmp_path):
    def measure(setting: Setting, report: Reporter) -> None:
        child = os.fork()
        if child == 0:
            time.sleep(600)
        (tmp_path / "child").write_text(str(child))
        report(one=1)
        time.sleep(600)

    progress: list[Any] = []
    result = run_planted(measure, progress, late=True)
    assert progress == [{"status": "running", "figures": {"one": 1}}]  # what a killed program would have kept
    assert (result["status"], result["figures"], result["reason"]) == ("out of time", {"one": 1}, "ended after its 100 s")
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    for _ in range(1000):  # it is dead; whoever has inherited it collects it
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.01)
    else:
        pytest.fail("the part's own process still runs")


# --- what the parts compute ---------------------------------------------------------------------------------------------


def test_a_planted_difference_is_found_by_the_comparison_of_passes():
    setting = Setting(Path(), "cpu", "toy", 1, 100.0)
    config, final_dim = parity.shapes(setting)["base"]
    torch.manual_seed(0)
    model = parity.WavLMForPretraining(parity.WavLM(config), parity.Head(final_dim=final_dim), num_classes=20).eval()
    first = parity.run(model, parity.make_inputs(0.5, 20))
    same = parity.compared(first, first)
    assert same["largest_of_hidden_states"] == same["largest_of_gradients"] == same["loss"] == 0
    states, gradients = [state.clone() for state in first.hidden_states], {n: g.clone() for n, g in first.gradients.items()}
    states[2][3, -1, 0] += 0.01 * states[2].square().mean().sqrt()  # the last frame of the row without valid samples
    name = "wavlm.encoder.layers.1.attention.query.weight"
    gradients[name][0, 0] += 0.5 * gradients[name].square().mean().sqrt()
    found = parity.compared(parity.Passed(2 * first.loss, states, gradients), first)
    assert found["hidden_states"][2] == pytest.approx(0.01, rel=1e-3) and found["hidden_states"][1] == 0
    assert found["worst_gradients"][name] == found["largest_of_gradients"] == pytest.approx(0.5, rel=1e-3)
    assert found["loss"] == pytest.approx(1.0)
    states[0][0, 0, 0] = torch.nan
    assert parity.compared(parity.Passed(first.loss, states, gradients), first)["largest_of_hidden_states"] is None


def test_two_curves_are_compared_over_the_updates_that_both_have():
    found = precision.compare([4.4, 2.0, 1.1], [4.0, 2.0, 1.0, 7.0])
    assert found["updates_compared"] == 3 and found["update_of_largest_gap"] == 1
    assert [found[key] for key in ("largest_gap", "final_gap", "mean_gap_of_last_tenth")] == pytest.approx([0.1, 0.1, 0.1])
    assert found["mean_change_between_updates_fp32"] == pytest.approx(0.5)


def event(name: str, start: int, end: int, lane: int = 0) -> kernels.Event:
    return kernels.Event(name, ("gpu", lane), start, end)


def test_the_gaps_of_a_profile_are_the_time_during_which_no_stream_runs():
    found = kernels.gaps([event("b", 200_000, 250_000), event("a", 0, 100_000), event("c", 90_000, 120_000, lane=1)])
    assert found["span_ms"] == pytest.approx(0.25) and found["idle_ms"] == pytest.approx(0.08)
    assert found["idle_share"] == pytest.approx(0.32) and found["longest_ms"] == [0.08]
    assert (found["longer_than_10_us"], found["longer_than_100_us"]) == (1, 0)


def test_the_own_time_of_an_event_is_without_the_events_inside_it():
    nested = [event("outer", 0, 100), event("inner", 10, 40), event("inner", 50, 60), event("last", 100, 160)]
    other = [event("outer", 5, 25, lane=1)]
    rows = {row["name"]: (row["self_ms"], row["calls"], row["share"]) for row in kernels.table(nested + other)}
    assert rows == {
        "outer": (pytest.approx(80e-6), 2, pytest.approx(80 / 180)),
        "last": (pytest.approx(60e-6), 1, pytest.approx(60 / 180)),
        "inner": (pytest.approx(40e-6), 2, pytest.approx(40 / 180)),
    }


def test_labels_and_losses_are_compared_by_count_and_by_share(tmp_path):
    first, second = torch.tensor([1, 2, 3, 4]).numpy(), torch.tensor([1, 2, 0, 4]).numpy()
    assert devices.labels_that_differ(first, second) == {"frames": 4, "different": 1, "share": 0.25}
    for name, loss in (("a", "2.0"), ("b", "2.5")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(f"step,loss,grad_norm\n1,4.0,1.0\n2,{loss},1.0\n")
    assert resume.difference(tmp_path / "b", tmp_path / "a") == {"loss": 0.25, "grad_norm": 0.0, "bit_equal": False}
    assert resume.difference(tmp_path / "a", tmp_path / "a")["bit_equal"]


def test_the_counts_of_pytest_are_read_from_its_last_line():
    assert marked_tests.tally("..\n1 warning\n3 passed, 1 skipped, 8 deselected in 5.04s\n") == {
        "passed": 3,
        "skipped": 1,
        "deselected": 8,
    }
    assert marked_tests.tally("") == {}
    assert Path(__file__).parents[1] / "smoke" / "test_side_by_side.py" in marked_tests.marked_files(REPOSITORY / "tests")


def test_every_variant_of_the_step_composes_for_base_and_large():
    setting = Setting(Path("/nowhere"), "cuda", "full", 16, 100.0)
    for one in gpu.all_parts():
        if one.module == "step":
            settings = dict(one.settings or {})
            for overrides in step.VARIANTS.values():
                command = setting.training(settings["experiment"], *settings.get("overrides", ()), *overrides)
                assert watch.recipe(command, 500).costs.operations > 0


class FakeGpu:
    """Stands in for `torch.cuda`: warns of synchronisations in `warn` mode, as torch does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode = "default"
        for name, function in {
            "synchronize": lambda *device: None,
            "reset_peak_memory_stats": lambda *device: None,
            "max_memory_allocated": lambda *device: 3_000_000,
            "max_memory_reserved": lambda *device: 4_000_000,
            "get_device_name": lambda *device: "NVIDIA H200",
            "set_sync_debug_mode": self.set_mode,
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def set_mode(self, mode: str) -> None:
        self.mode = mode

    def wait(self, *, times: int) -> None:
        for _ in range(times if self.mode == "warn" else 0):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
            warnings.warn("something else", UserWarning, stacklevel=1)


def test_a_watched_training_reports_speed_memory_utilisation_and_synchronisations(monkeypatch):
    fake, clock = FakeGpu(monkeypatch), SimpleNamespace(now=0.0)
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock.now)
    overrides = Setting(Path("/nowhere"), "cuda", "toy", 2, 100.0).training("wavlm_base", "precision=bf16-mixed")
    recipe = watch.recipe(overrides, 20)
    watched = watch.Watch(recipe, "cuda", seconds=5.0, warm_up=2, counted=2)
    loader = SimpleNamespace(waited_s=0.0)
    trainer = SimpleNamespace(global_step=0, train_dataloader=loader, should_stop=False)
    micro = SimpleNamespace(waveforms=torch.zeros(2, 32_000), num_masked=50, valid_samples=64_000)
    batch: Any = SimpleNamespace(micro_batches=[micro, micro])
    while not trainer.should_stop:
        trainer.global_step += 1
        clock.now += 2.0  # three timed updates take 6 s ≥ 5 s, of which 1.5 s are waits for data
        loader.waited_s += 0.5
        fake.wait(times=3)
        watched.on_train_batch_end(trainer, None, None, batch, 0)
    found = watched.figures()
    assert trainer.global_step == 2 + 3 + 2 and found["updates_timed"] == 3 and fake.mode == "default"
    assert found["audio_s_per_s"] == pytest.approx(3 * 2 * 4.0 / 6.0) and found["waiting_for_data_share"] == pytest.approx(0.25)
    assert found["synchronisations"]["an_update"] == 3 and len(found["synchronisations"]["places"]) == 1
    shape = watch.MicroBatchShape(rows=2, samples=32_000, predicted_frames=50)
    flops = 3 * 2 * recipe.costs_of(shape).operations
    assert found["flop_utilisation"] == pytest.approx(flops / 6.0 / 989.4e12)
    assert "H200 datasheet" in found["device_peak"]["source"]
    memory = found["memory"]
    assert memory["measured_over_planned"] == pytest.approx(3_000_000 / recipe.memory().total)


def test_operations_of_micro_batches_are_interpolated_between_the_shortest_and_the_longest_row():
    recipe = watch.recipe(Setting(Path("/nowhere"), "cuda", "toy", 2, 100.0).training("wavlm_base", "model.recompute=all"), 20)
    shapes = [
        watch.MicroBatchShape(rows=rows, samples=samples, predicted_frames=rows * num_frames(samples) // 2)
        for rows, samples in ((8, 32_000), (3, 51_234), (2, 100_001), (1, 250_000))
    ]
    costs = [recipe.costs_of(shape) for shape in shapes]
    expected = sum(cost.operations for cost in costs), sum(cost.recomputed for cost in costs)
    assert watch.operations(recipe, shapes) == pytest.approx(expected, rel=2e-3)
    assert watch.operations(recipe, shapes[:1] * 3) == pytest.approx((3 * costs[0].operations, 3 * costs[0].recomputed))


def test_a_gpu_that_is_not_in_the_table_has_no_peak(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "NVIDIA GeForce RTX 9090")
    assert watch.device_peak("cuda", "32-true") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Tesla V100-SXM2-32GB")
    assert watch.device_peak("cuda", "bf16-mixed") is None
    peak = watch.device_peak("cuda", "32-true")
    assert peak is not None and peak["flops_per_s"] == pytest.approx(15.7e12)


# --- the program --------------------------------------------------------------------------------------------------------


def test_the_program_runs_on_a_cpu_at_toy_size_and_writes_what_it_measured(tmp_path):
    command = ("benchmarks/gpu.py", "--minutes", "10", "--json", "found.json", "--device", "cpu")
    outcome = run_program(tmp_path, *command, "--only", "parity", "base", "precision")
    assert outcome.status == 0, outcome
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["order"] == ["parity", "data", "base", "precision"] and (found["size"], found["device"]) == ("toy", "cpu")
    assert {result["status"] for result in found["parts"].values()} == {"done"}, found
    assert "at toy size" in outcome.stdout and "precision  done in" in outcome.stdout
    figures = {name: result["figures"] for name, result in found["parts"].items()}
    for shape in ("base", "large"):
        of = figures["parity"][shape]["backends"]
        assert of["sdpa"]["largest_of_hidden_states"] < 1e-5 and of["sdpa"]["largest_of_gradients"] < 1e-3
        assert of["flex"]["largest_of_hidden_states"] < 1e-5 and "on a GPU only" in of["flex"]["gradients"]
    variants = figures["base"]["variants"]
    assert list(step.VARIANTS) == sorted(variants, key=list(step.VARIANTS).index)
    measured = [variant for variant in variants.values() if "skipped" not in variant]
    assert len(measured) == 4 and all(variant["audio_s_per_s"] > 0 for variant in measured)
    assert all(variant["memory"]["peak_allocated_bytes"] is None and variant["without_a_gpu"] for variant in measured)
    curves = figures["precision"]
    assert len(curves["cross_entropy_fp32"]) == len(curves["cross_entropy_bf16"]) == curves["updates_compared"] == 12
    assert 0 < curves["largest_gap"] < 0.05
    again = run_program(tmp_path, *command, "--only", "bass")
    assert again.status == 2 and "--only names bass" in again.stderr


def test_a_checkout_that_is_not_installed_has_no_version(monkeypatch):
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    assert openwavlm.runs.segments._version("torch") == version("torch")
    monkeypatch.setattr(openwavlm.runs.segments, "version", absent)
    assert openwavlm.runs.segments._version("openwavlm") == "not installed"


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(gpu, "NEEDED", ("json", "no_such_package", "torch"))
    assert gpu.missing_packages() == ["no_such_package"]
