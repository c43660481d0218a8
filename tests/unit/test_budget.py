"""Figures of `openwavlm plan`, against operations that torch counts and bytes and hours by hand."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.settings import Batching, SpanMasking
from openwavlm.model.config import Head, WavLMConfig
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.planning.budget import GPUS, PUBLISHED, Recipe, disk_bytes, peak_flops, seconds_of_run, wasted_share
from openwavlm.planning.memory import estimate_memory
from openwavlm.planning.plan import Question, lines_of, plan_run
from openwavlm.runs.compose import plain
from openwavlm.training.config import RunConfig, with_placeholders
from runs import compose

MODEL = WavLMConfig(
    conv_dims=(8,) * 7, dim=24, ffn_dim=40, heads=3, layers=2, positional_kernel=8, positional_groups=1, num_buckets=32, max_distance=80
)  # fmt: skip
BATCHING = Batching(seconds=24.0, micro_seconds=6.0, max_seconds=1.5, min_seconds=0.5)
CLASSES, WIDTH = 20, 16


@functools.cache
def composed(*overrides: str) -> RunConfig:
    return RunConfig.of(with_placeholders(plain(compose(["name=x", *overrides]))))


def recipe(model: WavLMConfig = MODEL, batching: Batching = BATCHING, *, unmasked: float = 0.0, **settings: object) -> Recipe:
    """1000 updates in float32 without a running mean, but for `settings`, which are those of the config and of its groups."""
    config = composed()
    groups: dict[str, dict[str, object]] = {
        "optim": {"updates": 1000, "warmup_updates": 0, "ema": 0.0},
        "loss": {"unmasked": unmasked},
        "trainer": {"strategy": "ddp"},
    }
    for of_group in groups.values():
        of_group |= {key: settings.pop(key) for key in of_group if key in settings}
    changed = {name: dataclasses.replace(getattr(config, name), **of_group) for name, of_group in groups.items()}
    changed |= {
        "model": model,
        "head": Head(final_dim=WIDTH),
        "batch": batching,
        "masking": SpanMasking(),
        "precision": "32-true",
    }
    return Recipe(dataclasses.replace(config, **{**changed, **settings}), (CLASSES,))


def question(**changes: object) -> Question:
    keys = {"hours": 100.0, "classes": CLASSES, "gpus": 1, "gpu": "a100", "gpu_memory_gib": None}
    return Question(**{**keys, "utilisation": 0.5, "flac_share": 0.5, "json": None, **changes})  # type: ignore[arg-type]


def counted(model: WavLMConfig, rows: int, samples: int, predicted: int) -> int:
    """Operations of forward and backward that torch counts while the model runs."""
    made = WavLMForPretraining(WavLM(model), Head(final_dim=WIDTH), num_classes=CLASSES).train()
    frames = 1 + (samples - 400) // 320
    index = torch.arange(predicted)
    mask = (torch.arange(rows * frames) < predicted).view(rows, frames)
    keep = torch.ones(model.layers, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        output = made(torch.randn(rows, samples), torch.full((rows,), samples), mask, index, [index % CLASSES], keep)
        (output.sets[0].cross_entropy_sum + output.feature_penalty).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pre_norm": True, "extractor_norm": "layer", "attention_backend": "eager"},
        {"recompute": "extractor"},
        {"recompute": "all", "dropout": 0.1},
    ],
)
@pytest.mark.parametrize("unmasked", [0.0, 0.5])
def test_operations_a_second_times_rows_and_seconds_are_those_that_torch_counts(changes, unmasked):
    model = dataclasses.replace(MODEL, **{"attention_backend": "eager", **changes})
    plan = plan_run(recipe(model, unmasked=unmasked), question(), 3)
    update = plan["update"]
    rows, samples = update["rows"], round(16_000 * update["row_seconds"])
    # 6 s have 299 frames, the longest row of 1.5 s has 74: four rows of 320 · 73 + 400 samples.
    assert (rows, samples) == (4, 23_760)
    assert (update["audio_seconds"], update["micro_batches"], update["micro_seconds"]) == (24.0, 4, 6.0)
    predicted = round(update["predicted_share"] * rows * 74)
    assert predicted == rows * 74 if unmasked else 0.45 < predicted / (rows * 74) < 0.68
    found = plan["flops"]["a_second_of_audio"] * rows * samples / 16_000
    assert found == pytest.approx(counted(model, rows, samples, predicted), rel=2e-3)
    assert plan["flops"]["an_update"] == pytest.approx(24.0 * plan["flops"]["a_second_of_audio"])
    assert plan["flops"]["run"] == pytest.approx(1000 * 24.0 * plan["flops"]["a_second_of_audio"])


@pytest.mark.parametrize(("gpus", "rounds", "waste"), [(1, 4, 0.0), (2, 2, 0.0), (3, 2, 2 / 6), (4, 1, 0.0)])
def test_a_run_takes_the_rounds_of_its_slots_on_all_gpus(gpus, rounds, waste):
    """Four micro-batches of 6 s on `gpus` A100s at half of 19.5e12 operations a second."""
    plan = plan_run(recipe(), question(gpus=gpus), 3)
    seconds = rounds * 6.0 * plan["flops"]["a_second_of_audio"] / (0.5 * 19.5e12)
    taken = plan["time"]
    assert taken["seconds_an_update"] == pytest.approx(seconds) == pytest.approx(seconds_of_run(recipe(), gpus, 9.75e12) / 1000)
    assert taken["gpu_hours"] == pytest.approx(1000 * gpus * seconds / 3600)
    assert taken["days"] == pytest.approx(1000 * seconds / (24 * 3600))
    assert taken["wasted_share"] == wasted_share(4, gpus) == pytest.approx(waste)
    assert plan["run"] == {"updates": 1000, "hours": 1000 * 24 / 3600, "corpus_hours": 100.0, "passes": 1000 * 24 / 3600 / 100}


def test_as_many_gpus_as_micro_batches_are_enough_and_one_more_is_too_many():
    plan_run(recipe(), question(gpus=4), 3)
    with pytest.raises(
        ValueError, match=r"5 GPUs, but an update of 24 s has only 4 micro-batches of 6 s: .*gpus=4, or batch\.micro_seconds=4\.8"
    ):
        plan_run(recipe(), question(gpus=5), 3)


def test_more_gpus_than_micro_batches_of_one_longest_row_need_a_longer_update():
    # 24 s are 16 longest rows of 1.5 s; 2.1 s are three of 0.7 s, although 2.1 / 0.7 is a little less than 3 in binary.
    with pytest.raises(ValueError, match=r"16 GPUs, .*use at most gpus=4, or batch\.micro_seconds=1\.5$"):
        plan_run(recipe(), question(gpus=16), 3)
    with pytest.raises(ValueError, match=r"17 GPUs, .*use at most gpus=4, or a larger batch\.seconds$"):
        plan_run(recipe(), question(gpus=17), 3)
    thirds = recipe(batching=Batching(seconds=2.1, micro_seconds=2.1, max_seconds=0.7, min_seconds=0.5))
    with pytest.raises(ValueError, match=r"3 GPUs, .*use at most gpus=1, or batch\.micro_seconds=0\.7$"):
        plan_run(thirds, question(gpus=3), 3)
    assert thirds.fitting_slots(1000, 3) == 3


def test_micro_batches_that_fit_come_in_multiples_of_the_processes_and_keep_the_update():
    whole = recipe(batching=Batching(seconds=24.0, micro_seconds=24.0, max_seconds=1.5, min_seconds=0.5))
    for processes, slots, more in ((1, 1, 2), (2, 2, 4), (3, 3, 6), (4, 4, 8)):
        total = whole.with_slots(slots).memory(processes).total
        assert whole.with_slots(more).memory(processes).total < total
        enough, too_little = (factor * total / 0.9 / 2**30 for factor in (1.0001, 0.9999))
        assert (whole.fitting_slots(enough, processes), whole.fitting_slots(too_little, processes)) == (slots, more)
        planned = plan_run(recipe(), question(gpus=processes, gpu_memory_gib=too_little), 3)["memory_bytes"]
        assert (planned["fitting_micro_batches"], planned["fitting_micro_seconds"]) == (more, 24.0 / more)
    assert whole.with_slots(4).config.batch == BATCHING and whole.fitting_slots(1000, 17) is None


def test_masked_frames_are_those_of_a_draw_and_all_are_predicted_where_unmasked_ones_are_learnt_too():
    for masking in (SpanMasking(), SpanMasking(prob=0.2, length=4)):
        masked = draw_span_mask(masking, np.full(4, 74), 0, source=0, epoch=0, micro=0)
        made = recipe(masking=masking)
        assert made.micro_batch.predicted_frames == np.count_nonzero(masked)
        plan = plan_run(made, question(), 3)
        assert plan["update"]["predicted_share"] == pytest.approx(np.count_nonzero(masked) / (4 * 74))
        assert recipe(masking=masking, unmasked=0.5).micro_batch.predicted_frames == 4 * 74


def test_a_plan_holds_the_parts_of_parameters_operations_and_memory():
    made = recipe(dataclasses.replace(MODEL, recompute="extractor"), precision="bf16-mixed", ema=0.9)
    plan, costs, memory = plan_run(made, question(gpus=2, gpu="l40s"), 5), made.costs, made.memory(2)
    total = sum(p.numel() for p in WavLMForPretraining(WavLM(MODEL), Head(final_dim=WIDTH), num_classes=CLASSES).parameters())
    assert plan["format_version"] == 1 and plan["parameters"] == {"total": total, **made.parameters}
    found = plan["flops"]
    assert (found["forward"], found["backward"], found["recomputed"]) == (costs.forward, costs.backward, costs.recomputed)
    assert costs.recomputed > 0 and found["a_second_of_audio"] == pytest.approx(costs.operations * 16_000 / (4 * 23_760))
    found = plan["memory_bytes"]
    assert (found["states"], found["kept"], found["backward"], found["total"]) == (
        memory.states,
        memory.kept,
        memory.backward,
        memory.total,
    )
    assert found["gpu"] == 48 * 2**30 and plan["disk_bytes"]["checkpoints"] == 5 * 16 * total
    taken = plan["time"]
    assert (taken["gpu"], taken["gpus"], taken["precision"], taken["utilisation"]) == ("l40s", 2, "bf16-mixed", 0.5)
    assert taken["peak_flops_a_second"] == pytest.approx(362.05e12)


def test_the_assumptions_name_the_values_that_were_assumed():
    model = dataclasses.replace(MODEL, attention_backend="eager", recompute="all")
    made = recipe(model, precision="bf16-mixed", strategy="fsdp")
    rows, parts, gpu, share, loader, memory, disk, hours = plan_run(made, question(hours=1234.0, flac_share=0.4), 7)[
        "assumptions"
    ]
    assert rows == "every micro-batch is full: 4 rows of 1.49 s; shorter rows need less attention"
    assert parts.startswith("a multiply-add is two operations") and loader.startswith("the loader, the exchange between GPUs")
    assert gpu.startswith("a100: 312 TFLOP/s at precision=bf16-mixed (NVIDIA A100 datasheet")
    assert share == "training reaches 0.5 of it (utilisation=)"
    assert (
        memory.startswith("memory: strategy=fsdp,") and "recompute=all and attention_backend=eager" in memory and "90%" in memory
    )
    assert disk.startswith("disk: FLAC takes 0.4 of 16-bit PCM, a label 2 bytes a frame of 20 ms, a checkpoint 12 bytes")
    assert disk.endswith(", 7 of them at the end") and hours == "a corpus of 1,234 h (hours=)"
    assert "a checkpoint 16 bytes" in plan_run(recipe(ema=0.9), question(), 7)["assumptions"][6]


def test_peaks_are_those_of_the_precision():
    assert peak_flops(GPUS["a100"], "32-true") == pytest.approx(19.5e12)
    assert peak_flops(GPUS["a100"], "bf16-mixed") == peak_flops(GPUS["a100"], "16-mixed") == pytest.approx(312e12)
    assert peak_flops(GPUS["v100"], "16-mixed") == 125e12 and peak_flops(GPUS["v100"], "32-true") == pytest.approx(15.7e12)
    with pytest.raises(ValueError, match="no bfloat16"):
        peak_flops(GPUS["v100"], "bf16-mixed")


def test_bytes_on_disk_are_those_of_samples_frames_and_moments():
    # Two hours: 7200 s · 16000 samples · 2 bytes · 0.5; 50 labels of 2 bytes a second; weights and two moments of 4 bytes each.
    expected = {"shards": 115_200_000.0, "labels": 720_000.0, "checkpoints": 3 * 12 * 1000}
    assert disk_bytes(2, 0.5, 1000, 3) == expected
    assert disk_bytes(2, 0.5, 1000, 3, ema=True) == {**expected, "checkpoints": 3 * 16 * 1000}
    plan = plan_run(recipe(), question(hours=2.0), 3)
    assert plan["disk_bytes"] == {**expected, "checkpoints": 3 * 12 * plan["parameters"]["total"]}


def test_nine_tenths_of_a_gpu_can_be_filled():
    total = recipe().memory().total
    for factor, fits in ((1.001, True), (0.999, False)):
        memory = plan_run(recipe(), question(gpu_memory_gib=factor * total / 0.9 / 2**30), 3)["memory_bytes"]
        assert (memory["fits"], memory["total"]) == (fits, total) and memory["gpu"] == pytest.approx(factor * total / 0.9)


def test_the_fewest_micro_batches_that_fit_are_proposed_down_to_one_longest_row():
    # 6 s hold two rows of 3 s; in two micro-batches each is one row.
    both = recipe(batching=Batching(seconds=6.0, micro_seconds=6.0, max_seconds=3.0, min_seconds=0.5))
    two_rows, one_row = both.memory().total, both.with_slots(2).memory().total
    assert both.micro_batch.rows == 2 and both.with_slots(2).micro_batch.rows == 1 and one_row < two_rows
    found = [both.fitting_slots(total / 0.9 / 2**30, 1) for total in (1.001 * two_rows, 0.999 * two_rows, 0.999 * one_row)]
    assert found == [1, 2, None]
    assert [both.fitting_slots(1000, processes) for processes in (1, 2, 3)] == [1, 2, None]


def test_memory_follows_precision_processes_strategy_and_running_mean():
    for settings in ({}, {"precision": "bf16-mixed"}, {"strategy": "fsdp"}, {"ema": 0.9}):
        made, asked = recipe(**settings), {"precision": "32-true", **settings}
        for processes in (1, 2):
            expected = estimate_memory(
                MODEL,
                sum(made.parameters.values()),
                made.costs,
                made.micro_batch,
                processes=processes,
                **{**asked, "ema": "ema" in asked},
            )
            assert made.memory(processes) == expected
            assert plan_run(made, question(gpus=processes), 3)["memory_bytes"]["states"] == expected.states
    assert recipe(precision="bf16-mixed").costs.kept != recipe().costs.kept
    again = recipe(dataclasses.replace(MODEL, recompute="all")).memory()
    assert sum(again.kept.values()) < sum(recipe().memory().kept.values())


# --- utilisation ----------------------------------------------------------------------------------------------------------


def test_without_a_utilisation_hours_are_a_range_of_published_runs_each_with_its_source():
    plan, given = plan_run(recipe(), question(utilisation=None), 3), plan_run(recipe(), question(utilisation=0.5), 3)
    shares = [run.utilisation for run in PUBLISHED]
    assert plan["time"]["utilisation"] == [max(shares), min(shares)]
    for key in ("gpu_hours", "days", "seconds_an_update"):
        assert plan["time"][key] == pytest.approx([0.5 * given["time"][key] / share for share in (max(shares), min(shares))])
    line = next(line for line in lines_of(plan) if line.startswith("time: "))
    fewest, most = plan["time"]["gpu_hours"]
    assert line.startswith(f"time: {fewest:,.1f} to {most:,.1f} GPU-hours, ")
    for run in PUBLISHED:
        assert f"utilisation {run.utilisation:g}: {run.what} ({run.source})" in plan["assumptions"]
    assert any("published runs trained in 16 bits:" in assumption for assumption in plan["assumptions"])
    mixed = plan_run(recipe(precision="bf16-mixed"), question(utilisation=None), 3)["assumptions"]
    assert not any("trained in 16 bits:" in assumption for assumption in mixed)


def test_the_utilisation_of_published_runs_is_derived_from_their_speed():
    """Operations of a second of audio in full rows, times the published seconds of audio a second and GPU, over the peak in 16 bits."""
    speeds = [
        ("base", "v100", 100_000 * 2800 / (32 * 9.5 * 3600)),
        ("base", "h100", 400_000 * 2800 / (16 * 10 * 3600)),
        ("large", "h100", 605),
        ("large", "h100", 452),
    ]
    for (model, gpu, speed), run in zip(speeds, PUBLISHED, strict=True):
        operations = Recipe(composed(f"model={model}", "precision=bf16-mixed"), (500,)).flops_a_second()
        assert run.utilisation == pytest.approx(speed * operations / peak_flops(GPUS[gpu], "16-mixed"), abs=6e-4)


def test_a_published_run_is_planned_within_the_range_of_its_own_hours():
    # HuBERT Base on 16 H100 took 160 GPU-hours for 400,000 updates of 2,800 s.
    made = Recipe(
        composed("precision=bf16-mixed", "optim.updates=400_000", "batch.seconds=2800", "batch.micro_seconds=175"), (500,)
    )
    fewest, most = plan_run(made, question(utilisation=None, gpus=16, gpu="h100"), 3)["time"]["gpu_hours"]
    assert fewest < 160 < most


def test_the_figures_are_printed_in_the_units_that_they_are_named_by():
    figures = {
        "parameters": {"total": 94_706_800},
        "update": {"audio_seconds": 2800.0, "micro_batches": 16, "micro_seconds": 175.0, "predicted_share": 0.567},
        "run": {"updates": 400_000, "hours": 311_111.1, "passes": 324.07, "corpus_hours": 960.0},
        "flops": {"a_second_of_audio": 4.321e10, "an_update": 1.2099e14, "run": 4.84e19},
        "memory_bytes": {
            "total": 3 * 2**30, "states": {"a": 2**30, "b": 2**29}, "kept": {"c": 2**30}, "backward": 2**29, "gpu": 80 * 2**30,
            "fits": True, "fitting_micro_seconds": 350.0, "fitting_micro_batches": 8,
        },
        "time": {"gpu_hours": 1234.56, "days": 12.345, "gpus": 4, "gpu": "h100", "seconds_an_update": 1.2345, "wasted_share": 0.111},
        "disk_bytes": {"shards": 56_400_000_000.0, "labels": 345_600_000.0, "checkpoints": 1_500.0},
        "assumptions": ["one", "two"],
    }  # fmt: skip
    assert lines_of(figures) == [
        "model: 94.71 M parameters",
        "update: 2800 s of audio in 16 micro-batches of 175 s; 57% of the frames are predicted",
        "run: 400,000 updates, 311,111 h of audio, 324.1 passes over 960 h",
        "operations: 4.32e+10 a second of audio, 1.21e+14 an update, 4.84e+19 in all",
        "memory: 3.0 GiB a GPU (1.5 of weights and optimiser, 1.5 of activations), which fits into 80 GiB; the largest micro-batch that "
        "fits is batch.micro_seconds=350 (8 an update; it changes the micro-batches, so decide before the run)",
        "time: 1,234.6 GPU-hours, 12.35 days on 4 x h100, 1.23 s an update; 11% of it for padding micro-batches",
        "disk: 56.4 GB of shards, 345.6 MB of labels, 1.5 kB of checkpoints",
        "assumed:",
        "  - one",
        "  - two",
    ]
    figures["time"] |= {"gpu_hours": [150.0, 1260.0], "days": [1.5, 12.6], "seconds_an_update": [0.25, 2.1]}
    assert lines_of(figures)[5] == (
        "time: 150.0 to 1,260.0 GPU-hours, 1.50 to 12.60 days on 4 x h100, 0.25 to 2.1 s an update; 11% of it for padding micro-batches"
    )
    figures["memory_bytes"] |= {"fits": False, "fitting_micro_seconds": None}
    figures["disk_bytes"] |= {"shards": 1e12, "labels": 1e9, "checkpoints": 999_900.0}
    printed = lines_of(figures)
    assert printed[4].endswith("does not fit into 80 GiB; not even micro-batches of one longest row fit: lower batch.max_seconds")
    assert printed[6] == "disk: 1.0 TB of shards, 1.0 GB of labels, 999.9 kB of checkpoints"
    figures["disk_bytes"] |= {"shards": 999.9e9, "labels": 999.9e6, "checkpoints": 1e6}
    assert lines_of(figures)[6] == "disk: 999.9 GB of shards, 999.9 MB of labels, 1.0 MB of checkpoints"


@pytest.mark.parametrize(
    "changes",
    [
        *({"utilisation": value} for value in (1.01, 0.0, -0.5, float("nan"), True)),
        *({name: value} for name in ("hours", "gpu_memory_gib", "flac_share") for value in (-1.0, 0.0, float("inf"), "8")),
        *({name: value} for name in ("classes", "gpus") for value in (0, -1, 1.5)),
    ],
)
def test_a_question_out_of_range_is_refused(changes):
    question(utilisation=1.0, classes=1, gpus=1, hours=1e-3, gpu_memory_gib=1, flac_share=2.0)
    question(utilisation=1e-3, hours=None, gpu_memory_gib=None)
    with pytest.raises(ValueError, match=r"utilisation must lie in \(0, 1\]|must be positive and classes and gpus whole"):
        question(**changes)


def test_a_gpu_that_is_not_in_the_table_is_refused_with_all_that_are():
    with pytest.raises(ValueError, match=r"gpu must be one of h100, h200, a100, v100, l40s, but is b17"):
        question(gpu="b17")


def test_a_preset_has_the_hours_it_was_published_with_and_others_those_of_librispeech():
    for experiment, hours in (("wavlm_large", 94_000.0), ("wavlm_base_plus", 94_000.0), ("wavlm_base", 960.0), (None, 960.0)):
        assert question(hours=None).of(experiment).hours == hours and question(hours=5.0).of(experiment).hours == 5.0
    assert question(gpu_memory_gib=24).memory_gib == 24 and question().memory_gib == 80


def test_the_table_holds_the_peaks_of_the_data_sheets():
    # NVIDIA, 10¹² operations a second, dense: matrix units in 16 bits, and float32.
    sheets = {"h100": (989.4, 66.9), "h200": (989.4, 66.9), "a100": (312, 19.5), "v100": (125, 15.7), "l40s": (362.05, 91.6)}
    assert {name: (gpu.tflops_16_bit, gpu.tflops_32_bit) for name, gpu in GPUS.items()} == sheets
