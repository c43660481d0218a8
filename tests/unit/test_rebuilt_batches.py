"""Figures and words on a batch that was built again: levels, places and names, against what was put in."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.batches.batch import MicroBatchId, MixRecord, PretrainBatch
from openwavlm.batches.settings import Mixing
from openwavlm.report.batch_rows import describe_rows, find_mixtures
from openwavlm.report.rebuild import Rebuilt, measure_realised, mixtures, rebuild_step, rebuild_steps

SIZES = [400 + 320 * 48, 400 + 320 * 37, 400 + 320 * 24]
FRAMES = [num_frames(size) for size in SIZES]
LEVELS = [4000.0, 1000.0, 2500.0]
NOISE = 6000


def waveforms() -> torch.Tensor:
    """Rows whose second halves are louder, so that a level within an excerpt is another than over the whole."""
    generator, rows = np.random.default_rng(0), np.zeros((3, SIZES[0]))
    for row, (size, level) in enumerate(zip(SIZES, LEVELS, strict=True)):
        rows[row, :size] = level * generator.uniform(-1, 1, size) * np.where(np.arange(size) < size // 2, 0.3, 1.0)
    return torch.from_numpy(np.round(rows).astype(np.int16))


def batch(place: int = 0, *, ratio_db: float = 3.0, length: int = 5000) -> PretrainBatch:
    """Three rows; row 0 is mixed with row 2 and row 1 with the second of two noise clips."""
    mask = torch.zeros(3, max(FRAMES), dtype=torch.bool)
    mask[0, 3:13], mask[0, 20:22], mask[1, 0:5], mask[2, FRAMES[2] - 2 : FRAMES[2]] = True, True, True, True
    labels = torch.full((3, max(FRAMES)), -1, dtype=torch.int32)
    for row, frames in enumerate(FRAMES):
        labels[row, :frames] = torch.arange(frames) // 4 + row
    noise = torch.zeros(2, NOISE, dtype=torch.int16)
    noise[1, :4000] = torch.from_numpy(np.random.default_rng(1).integers(-3000, 3000, 4000).astype(np.int16))
    return PretrainBatch(
        waveforms=waveforms(),
        num_samples=torch.tensor(SIZES),
        labels=labels[None],
        mask=mask,
        masked_index=torch.from_numpy(np.flatnonzero(mask)),
        unmasked_index=torch.zeros(0, dtype=torch.int64),
        layer_keep=torch.ones(1, dtype=torch.bool),
        mix=MixRecord(
            row=torch.tensor([0, 1]),
            partner=torch.tensor([2, 4]),
            start=torch.tensor([7000, 200]),
            partner_start=torch.tensor([2000, 500]),
            length=torch.tensor([length, 1600]),
            energy_ratio_db=torch.tensor([ratio_db, -4.0]),
            max_length=max(length, 1600),
        ),
        noise=noise,
        noise_num_samples=torch.tensor([NOISE, 4000]),
        rows=torch.tensor([11, 12, 10]),
        start_frame=torch.tensor([0, 50, 25]),
        id=MicroBatchId("speech", 0, 0, place),
        valid_samples=sum(SIZES),
    )


def mean_square(values: torch.Tensor) -> float:
    return float(np.square(values.numpy().astype(np.float64) / 32768).mean())


def test_levels_of_a_mixture_are_those_of_whole_utterances_and_of_the_overlap():
    part = batch()
    speech, noise = mixtures(part, Mixing())
    assert (speech["row"], speech["noise"], noise["row"], noise["noise"]) == (0, False, 1, True)
    assert speech["energy_ratio_db"] == pytest.approx(3.0, abs=1e-3) and noise["energy_ratio_db"] == pytest.approx(-4.0, abs=1e-3)
    for found, row, start, length, secondary, begin, ratio_db in (
        (speech, 0, 7000, 5000, part.waveforms[2, : SIZES[2]], 2000, 3.0),
        (noise, 1, 200, 1600, part.noise[1, :4000], 500, -4.0),
    ):
        primary = part.waveforms[row, : SIZES[row]]
        # The secondary is scaled so that the ratio holds over the whole of both.
        gain = mean_square(primary) / mean_square(secondary) / 10 ** (ratio_db / 10)
        snr_db = 10 * np.log10(
            mean_square(primary[start : start + length]) / (gain * mean_square(secondary[begin : begin + length]))
        )
        assert found["overlap_snr_db"] == pytest.approx(snr_db, abs=1e-3) and abs(snr_db - ratio_db) > 0.5
        assert found["overlap_share"] == length / SIZES[row]
        assert (found["start"], found["length"], found["partner_start"]) == (start, length, begin)
        added = gain**0.5 * secondary[begin : begin + length].numpy() / 32768
        mixed = primary.numpy() / 32768
        assert np.array_equal(found["clean"], mixed.astype(np.float32))
        mixed[start : start + length] += added
        assert np.abs(found["mixed"] - mixed).max() < 1e-5


INDEX: Any = SimpleNamespace(
    keys=[f"utt-{row}" for row in range(20)],
    speaker=np.arange(20) % 4,
    speakers=["", "ann", "bob", "cyd"],
    recording=np.arange(20) % 3,
    recordings=["", "tape one", "tape two"],
)


def test_a_row_is_described_by_its_own_place_names_mask_and_labels():
    rows = describe_rows(Rebuilt(7, batch(), [("hum", 1.0), ("rain", 2.5)], ends_step=True), Mixing(), INDEX)
    first, second, third = (row.facts for row in rows)
    assert [(facts["row"], facts["key"], facts["speaker"], facts["recording"]) for facts in (first, second, third)] == [
        (11, "utt-11", "cyd", "tape two"),
        (12, "utt-12", None, None),
        (10, "utt-10", "bob", "tape one"),
    ]
    assert [facts["start_s"] for facts in (first, second, third)] == [0.0, 1.0, 0.5], "50 frames a second"
    assert [facts["duration_s"] for facts in (first, second, third)] == [size / 16_000 for size in SIZES]
    assert first["mask_spans"] == [[3, 10], [20, 2]] and first["masked_frames"] == 12
    assert second["mask_spans"] == [[0, 5]] and third["mask_spans"] == [[FRAMES[2] - 2, 2]]
    assert third["label_runs"][:2] == [[2, 4], [3, 4]] and sum(run[1] for run in third["label_runs"]) == FRAMES[2]
    assert third["mixture"] is None and all(facts["readable"] for facts in (first, second, third))
    assert {key: first["mixture"][key] for key in ("with", "partner_place", "partner_key", "partner_speaker")} == {
        "with": "speech",
        "partner_place": 2,
        "partner_key": "utt-10",
        "partner_speaker": "bob",
    }
    assert {key: second["mixture"][key] for key in ("with", "partner_place", "partner_key")} == {
        "with": "noise",
        "partner_place": None,
        "partner_key": "rain",
    }
    # Within its recording: the partner's piece begins at 0.5 s, the clip was read from 2.5 s.
    assert first["mixture"]["partner_start_s"] == pytest.approx(0.5 + 2000 / 16_000)
    assert second["mixture"]["partner_start_s"] == pytest.approx(2.5 + 500 / 16_000)
    assert (first["mixture"]["start_s"], first["mixture"]["length_s"]) == (7000 / 16_000, 5000 / 16_000)
    assert first["mixture"]["energy_ratio_db"] == 3.0 and rows[0].step == 7
    assert not np.array_equal(rows[0].mixed, rows[0].clean)
    assert np.array_equal(rows[2].mixed, rows[2].clean)


# --- batches of several updates -----------------------------------------------------------------------------------------


class Builder:
    """Builds `batch` for each spec."""

    def __init__(self, batches: list[PretrainBatch]) -> None:
        self.batches, self.draws = batches, SimpleNamespace(mixing=Mixing())

    def __getitem__(self, spec: int) -> PretrainBatch:
        return self.batches[spec]

    def noise_excerpts(self, spec: int) -> list[tuple[int, int, int]]:
        return [(1, 0, NOISE), (0, 16_000 * spec, 4000)]


def training_data(batches: list[PretrainBatch], *steps: list[int]) -> Any:
    schedule = SimpleNamespace(step=lambda step: SimpleNamespace(specs=steps[step]))
    opened = SimpleNamespace(indexes={"speech": INDEX}, noise_index=SimpleNamespace(keys=["hum", "rain"]))
    return SimpleNamespace(schedule=schedule, builder=Builder(batches), opened=opened)


def test_the_first_update_is_number_one_and_its_batches_are_built_in_slot_order():
    data = training_data([batch(place) for place in range(6)], [0, 1], [2, 3], [4, 5])
    assert [part.batch.id.index for part in rebuild_step(data, 2)] == [2, 3]
    assert [part.noise for part in rebuild_step(data, 2)] == [[("rain", 0.0), ("hum", 2.0)], [("rain", 0.0), ("hum", 3.0)]]
    built = [(part.step, part.batch.id.index, part.ends_step) for part in rebuild_steps(data, 5)]
    assert built == [(1, 0, False), (1, 1, True), (2, 2, False), (2, 3, True), (3, 4, False)]


def test_what_masking_and_mixing_did_is_summed_over_batches_and_compared_by_whole_updates():
    data = training_data([batch(place) for place in range(6)], [0, 1], [2, 3], [4, 5])
    metrics = {"step": np.array([1.0, 2, 3]), "masked_frames": np.array([38.0, 38, 39]), "mixed_rows": np.array([4.0, 4, 4])}
    found = measure_realised(data, metrics, micro_batches=4)
    assert (found.steps, found.micro_batches, found.rows, found.mixed_rows, found.noise_rows) == ((1, 2), 4, 12, 8, 4)
    assert found.mask_coverage == pytest.approx(19 / sum(FRAMES)), "12 + 5 + 2 masked frames"
    assert np.allclose(found.energy_ratio_db, [3.0, -4.0] * 4, atol=1e-3) and len(found.overlap_share) == 8
    assert found.as_recorded is True
    assert measure_realised(data, metrics, micro_batches=5).as_recorded is True, "half an update is not compared"
    assert measure_realised(data, metrics, micro_batches=6).as_recorded is False, "the third has another count"
    assert measure_realised(data, None, micro_batches=4).as_recorded is None


def test_the_mixture_that_is_shown_is_the_first_with_an_audible_overlap_of_speech():
    batches = [batch(0, ratio_db=25.0), batch(1, length=1000), batch(2), batch(3)]
    data = training_data(batches, [0], [1], [2], [3])
    (found,) = find_mixtures(data, micro_batches=4, seconds=0.5)
    assert (found.step, found.length, found.name) == (3, 5000, "tape two, from 0.00 s")
    assert found.mask.sum() == 12 and len(found.labels) == FRAMES[0]
    (first,) = find_mixtures(training_data(batches, [0], [1]), micro_batches=2)
    assert first.step == 1, "else the first of all"


def test_where_no_mixture_is_long_enough_several_are_shown_that_are_long_enough_together():
    data = training_data([batch(0, length=1000), *map(batch, range(1, 8))], *[[place] for place in range(8)])
    seconds = SIZES[0] / 16_000  # of each row
    for wanted, steps in ((seconds + 0.01, [2, 3]), (2 * seconds, [2, 3]), (2 * seconds + 0.01, [2, 3, 4])):
        assert [found.step for found in find_mixtures(data, micro_batches=8, seconds=wanted)] == steps
    assert len(find_mixtures(data, micro_batches=3, seconds=60.0)) == 2, "all there are"
