"""What `openwavlm plan` says of a run, against operations that torch counts and bytes and hours by hand."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from openwavlm.budget import GPUS, Recipe, disk_bytes, peak_flops, seconds_of_run, wasted_share
from openwavlm.costs import HeadShape
from openwavlm.data.plan import Batching
from openwavlm.masking import SpanMasking
from openwavlm.models.config import WavLMConfig
from openwavlm.models.pretraining import WavLMForPretraining
from openwavlm.models.wavlm import WavLM
from openwavlm.plan_command import Question, plan_run

MODEL = WavLMConfig(
    conv_dims=(8,) * 7, dim=24, ffn_dim=40, heads=3, layers=2, positional_kernel=8, positional_groups=1, num_buckets=32, max_distance=80
)  # fmt: skip
BATCHING = Batching(seconds=24.0, micro_seconds=6.0, max_seconds=1.5, min_seconds=0.5)
CLASSES, WIDTH = 20, 16


def recipe(model: WavLMConfig = MODEL, batching: Batching = BATCHING, **settings: object) -> Recipe:
    head = HeadShape(final_dim=WIDTH, embeddings=CLASSES)
    return Recipe(model, head, batching, SpanMasking(), "32-true", 1000, **{"recompute": model.recompute, **settings})


def question(**changes: object) -> Question:
    keys = {"hours": 100.0, "classes": CLASSES, "gpus": 1, "gpu": "a100", "gpu_memory_gib": None}
    return Question(**{**keys, "utilisation": 0.5, "flac_share": 0.5, "json": None, **changes})  # type: ignore[arg-type]


def counted(model: WavLMConfig, rows: int, samples: int, predicted: int) -> int:
    """Operations of forward and backward that torch counts while the model runs."""
    made = WavLMForPretraining(WavLM(model), num_classes=CLASSES, final_dim=WIDTH).train()
    frames = 1 + (samples - 400) // 320
    index = torch.arange(predicted)
    mask = (torch.arange(rows * frames) < predicted).view(rows, frames)
    keep = torch.ones(model.layers, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        output = made(torch.randn(rows, samples), torch.full((rows,), samples), mask, index, index % CLASSES, keep)
        (output.cross_entropy_sum + output.feature_penalty).backward()
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
@pytest.mark.parametrize("learns_unmasked", [False, True])
def test_operations_a_second_times_rows_and_seconds_are_those_that_torch_counts(changes, learns_unmasked):
    model = dataclasses.replace(MODEL, **{"attention_backend": "eager", **changes})
    plan = plan_run(recipe(model, learns_unmasked=learns_unmasked), question(), 3)
    update = plan["update"]
    rows, samples = update["rows"], round(16_000 * update["row_seconds"])
    # 6 s have 299 frames, the longest row of 1.5 s has 74: four rows of 320 · 73 + 400 samples.
    assert (rows, samples) == (4, 23_760)
    predicted = round(update["predicted_share"] * rows * 74)
    assert predicted == rows * 74 if learns_unmasked else 0.45 < predicted / (rows * 74) < 0.68
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


def test_peaks_are_those_of_the_precision():
    assert peak_flops(GPUS["a100"], "32-true") == pytest.approx(19.5e12)
    assert peak_flops(GPUS["a100"], "bf16-mixed") == peak_flops(GPUS["a100"], "16-mixed") == pytest.approx(312e12)
    assert peak_flops(GPUS["v100"], "16-mixed") == 125e12
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
    assert both.micro_batch().rows == 2 and both.with_slots(2).micro_batch().rows == 1 and one_row < two_rows
    found = [both.fitting_slots(total / 0.9 / 2**30, 1) for total in (1.001 * two_rows, 0.999 * two_rows, 0.999 * one_row)]
    assert found == [1, 2, None]
    assert [both.fitting_slots(1000, processes) for processes in (1, 2, 3)] == [1, 2, None]
