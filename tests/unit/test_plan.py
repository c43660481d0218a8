"""The plan: exactly once, at every W, over epochs, and nothing else decides what is trained on."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwavlm.audio.frames import frames_of_seconds, num_frames, num_samples_of
from openwavlm.batches import plan as plan_module
from openwavlm.batches.batch import MicroBatchId
from openwavlm.batches.plan import EpochPlan, MicroBatchSpec
from openwavlm.batches.schedule import Schedule, SourceStream
from openwavlm.batches.settings import Batching
from openwavlm.runtime.randomness import words

BATCHING = Batching(seconds=64.0, micro_seconds=16.0, max_seconds=4.0, min_seconds=0.5, shards_per_block=3, group=2)


def ids_of(schedule: Schedule, step: int) -> list[MicroBatchId]:
    """Names of the step's micro-batches in slot order."""
    return [spec.id for spec in schedule.step(step).specs]


def lengths(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2_000, 200_000, rows).astype(np.uint32)


def epoch_plan(
    epoch: int,
    *,
    rows: int = 300,
    batching: Batching = BATCHING,
    stream: int = 0,
    streams: int = 1,
    seed: int = 5,
    source: str = "a",
):
    first_row = np.minimum(np.arange(0, rows + 20, 20), rows)
    usable = np.ones(rows, dtype=bool)
    usable[::7] = False
    return EpochPlan(
        lengths(rows), first_row, usable, batching, seed=seed, source=source, epoch=epoch, stream=stream, streams=streams
    )


def schedule(slots: int, *, rows: int = 300, streams: int = 1, batching: Batching = BATCHING, others: tuple[float, ...] = ()):
    def stream_of(which: int) -> SourceStream:
        return SourceStream(lambda epoch: epoch_plan(epoch, rows=rows, batching=batching, stream=which, streams=streams), "a")

    sources = {"a": (1.0, [stream_of(w) for w in range(streams)])}
    for share in others:
        plans = [
            SourceStream(lambda epoch, w=w: epoch_plan(epoch, rows=60, stream=w, streams=streams, source="b"), "b")
            for w in range(streams)
        ]
        sources["b"] = (share, plans)
    return Schedule(sources, slots)


def pieces_of(plan: EpochPlan) -> list[tuple[int, int, int]]:
    specs = [plan.spec(i) for i in range(len(plan))]
    return [piece for s in specs for piece in zip(s.rows.tolist(), s.start_frame.tolist(), s.num_frames.tolist(), strict=True)]


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_covers_every_frame_of_every_usable_row_once(epoch):
    plan = epoch_plan(epoch)
    frames = num_frames(lengths(300).astype(np.int64))
    seen = {row: np.zeros(frames[row], dtype=int) for row in range(300)}
    for row, start, count in pieces_of(plan):
        seen[row][start : start + count] += 1
    for row in range(300):
        expected = row % 7 != 0 and frames[row] >= BATCHING.min_frames
        assert (seen[row] == int(expected)).all()


def test_pieces_respect_the_longest_and_the_shortest_row_and_the_budget():
    plan = epoch_plan(0)
    for index in range(len(plan)):
        spec = plan.spec(index)
        assert spec.num_frames.max() <= BATCHING.max_frames
        assert spec.num_frames.min() >= BATCHING.min_frames
        assert spec.num_frames.max() * len(spec.rows) <= BATCHING.micro_frames


def test_borders_of_a_long_utterance_move_between_epochs_but_not_between_calls():
    first, second = sorted(pieces_of(epoch_plan(0))), sorted(pieces_of(epoch_plan(1)))
    assert first == sorted(pieces_of(epoch_plan(0)))
    inner = lambda pieces: {(row, start) for row, start, _ in pieces if start}  # noqa: E731
    assert inner(first) and len(inner(first) & inner(second)) < 0.2 * len(inner(first))


def test_order_differs_between_epochs_and_seeds():
    orders = [tuple(pieces_of(epoch_plan(e, seed=s))) for e, s in ((0, 1), (1, 1), (0, 2))]
    assert len(set(orders)) == 3
    assert len({epoch_plan(e, seed=s).digest for e, s in ((0, 1), (1, 1), (0, 2), (0, 1))}) == 3


# --- lengths by hand ----------------------------------------------------------------------------------------------------


def samples_of(*frames: int) -> list[int]:
    return [320 * (count - 1) + 400 for count in frames]


def plan_of(num_samples: list[int], batching: Batching = BATCHING, *, shards: int = 1, **key: int) -> EpochPlan:
    first_row = np.arange(shards + 1) * len(num_samples) // shards
    key = {"seed": 5, "epoch": 0, **key}
    return EpochPlan(np.array(num_samples), first_row, np.ones(len(num_samples), dtype=bool), batching, source="a", **key)


def test_a_frame_needs_400_samples_and_each_further_one_320():
    samples, frames = [0, 1, 399, 400, 719, 720, 1039, 1040, 16_000], [0, 0, 0, 1, 1, 2, 2, 3, 49]
    assert [num_frames(count) for count in samples] == frames
    assert num_frames(np.array(samples)).tolist() == num_frames(torch.tensor(samples)).tolist() == frames
    assert [num_samples_of(count) for count in (1, 2, 3, 49)] == [400, 720, 1040, 15_760]
    assert [frames_of_seconds(seconds) for seconds in (0.0, 0.025, 0.0449, 0.045, 1.0, 15.625)] == [0, 1, 1, 2, 49, 781]
    # Seconds of whole samples are those samples, though 16000 times the nearest float is below some of them (8.065 s, say).
    for frames in range(1, 4000):
        samples = 400 + 320 * (frames - 1)
        assert (frames_of_seconds(samples / 16_000), frames_of_seconds((samples - 1) / 16_000)) == (frames, frames - 1)


def test_seconds_become_frames_of_whole_receptive_fields():
    batching = Batching(seconds=64.0, micro_seconds=16.0, max_seconds=4.0, min_seconds=0.5)
    # 1 + (16000 s − 400) // 320 frames
    assert (batching.min_frames, batching.max_frames, batching.micro_frames, batching.slots) == (24, 199, 799, 4)
    shortest = Batching(seconds=0.4, micro_seconds=0.2, max_seconds=0.1, min_seconds=0.025)
    assert (shortest.min_frames, shortest.max_frames, shortest.micro_frames, shortest.slots) == (1, 4, 9, 2)
    assert Batching(seconds=0.3, micro_seconds=0.1, max_seconds=0.1, min_seconds=0.05).slots == 3, (
        "0.3 / 0.1 is 2.9999999999999996"
    )
    with pytest.raises(ValueError, match=r"must lie|must satisfy 0\.025 ≤ min_seconds"):
        Batching(seconds=0.4, micro_seconds=0.2, max_seconds=0.1, min_seconds=0.024)
    with pytest.raises(ValueError, match=r"12\.2 / 4\.0 = 3\.050: 12 is the nearest"):
        Batching(seconds=12.2, micro_seconds=4.0, max_seconds=2.0, min_seconds=0.5)
    with pytest.raises(ValueError, match="max_seconds must be at most 1200, but is 1201"):
        Batching(seconds=1300.0, micro_seconds=1300.0, max_seconds=1201.0, min_seconds=0.5)


@pytest.mark.parametrize("policy", ["split", "pad"])
def test_rows_of_exactly_the_shortest_and_of_exactly_the_longest_length_are_taken_whole(policy):
    shortest, longest = samples_of(24, 199)
    batching = Batching(64.0, 16.0, 4.0, 0.5, policy)
    plan = plan_of([shortest - 1, shortest, longest, longest + 319, longest + 320], batching)
    assert [piece for piece in sorted(pieces_of(plan)) if piece[0] < 4] == [(1, 0, 24), (2, 0, 199), (3, 0, 199)]
    last = [piece for piece in pieces_of(plan) if piece[0] == 4]
    assert len(last) == (2 if policy == "split" else 1) and sum(count for *_, count in last) == (
        200 if policy == "split" else 199
    )
    assert plan.statistics.too_short == 1


@pytest.mark.parametrize(
    ("frames", "min_seconds", "borders"),
    [
        # 500 frames, the longest piece 199, wanted 0.9 · 199 = 179: 3 pieces of 167 at most, so borders move by 199 − 167 = 32.
        (500, 0.5, [(166 - 32, 166 + 32), (333 - 32, 333 + 32)]),
        # Pieces of at least 74 frames: 200 frames in 2 pieces of 100 move by 100 − 74 = 26 and not by 99.
        (200, 1.5, [(74, 126)]),
        (359, 0.5, [(359 // 3 - 79, 359 // 3 + 79), (2 * 359 // 3 - 79, 2 * 359 // 3 + 79)]),
        (358, 0.5, [(179 - 20, 179 + 20)]),
        (200, 3.0, [(100, 100)]),
    ],
)
def test_borders_of_a_long_row_move_together_and_reach_both_ends_of_their_range(frames, min_seconds, borders):
    batching, epochs = Batching(64.0, 16.0, 4.0, min_seconds), 1500
    inner = [
        sorted(start for _, start, _ in pieces_of(plan_of(samples_of(frames), batching, epoch=e)))[1:] for e in range(epochs)
    ]
    first = borders[0][0]
    assert {tuple(start - here[0] for start in here) for here in inner} == {tuple(low - first for low, _ in borders)}
    counts = Counter(here[0] for here in inner)
    assert set(counts) == set(range(first, borders[0][1] + 1))
    expected = epochs / len(counts)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < len(counts) - 1 + 4 * (2 * len(counts)) ** 0.5


@pytest.mark.parametrize(("frames", "pieces"), [(62, 1), (63, 2), (110, 2), (111, 3), (165, 3), (166, 4)])
def test_a_long_row_is_cut_into_pieces_of_at_most_nine_tenths_of_the_longest(frames, pieces):
    # 1.25 s have 62 frames, of which 0.9 are 55.8: nominal pieces of 55 frames at most.
    found = pieces_of(plan_of(samples_of(frames), Batching(64.0, 16.0, 1.25, 0.5)))
    assert len(found) == pieces and sum(count for *_, count in found) == frames


def test_crops_reach_the_last_start_and_never_pass_it():
    epochs, starts = 800, {"pad": Counter(), "fairseq_crop": Counter()}
    for epoch in range(epochs):
        # Cropped to the longest row, 199 of 210 frames; and to the shortest row of the micro-batch, 50 of 60 frames.
        ((row, start, count),) = pieces_of(plan_of(samples_of(210), Batching(64.0, 16.0, 4.0, 0.5, "pad"), epoch=epoch))
        assert (row, count) == (0, 199)
        starts["pad"][start] += 1
        pieces = sorted(pieces_of(plan_of(samples_of(60, 50), Batching(64.0, 16.0, 4.0, 0.5, "fairseq_crop"), epoch=epoch)))
        assert [piece[0::2] for piece in pieces] == [(0, 50), (1, 50)] and pieces[1][1] == 0
        starts["fairseq_crop"][pieces[0][1]] += 1
    for policy, last in (("pad", 11), ("fairseq_crop", 10)):
        assert set(starts[policy]) == set(range(last + 1))
        expected = epochs / (last + 1)
        assert sum((count - expected) ** 2 / expected for count in starts[policy].values()) < 35


def test_micro_batches_are_filled_up_to_their_budget():
    plan = plan_of(samples_of(*range(24, 199)))
    by_length = sorted((plan.spec(i) for i in range(len(plan))), key=lambda spec: -spec.num_frames[0])
    assert np.concatenate([spec.num_frames for spec in by_length]).tolist() == list(range(198, 23, -1))
    assert all(len(spec.rows) == 799 // spec.num_frames[0] for spec in by_length[:-1])
    assert len(by_length[-1].rows) <= 799 // by_length[-1].num_frames[0]


@pytest.mark.parametrize("group", [1, 2, 3])
def test_neighbours_of_equal_length_stay_together_and_their_groups_are_shuffled(group):
    first = Counter()
    for epoch in range(300):
        plan = plan_of(samples_of(*range(24, 199)), Batching(64.0, 16.0, 4.0, 0.5, group=group), epoch=epoch)
        longest = [int(plan.spec(i).num_frames[0]) for i in range(len(plan))]
        place = [sorted(longest, reverse=True).index(frames) for frames in longest]
        groups = [number // group for number in place]
        assert place == [
            n for which in dict.fromkeys(groups) for n in range(group * which, min(group * which + group, len(place)))
        ]
        first[groups[0]] += 1
    assert len(first) == ceil(len(place) / group) > 4
    expected = 300 / len(first)
    assert sum((count - expected) ** 2 / expected for count in first.values()) < len(first) + 4 * (2 * len(first)) ** 0.5


def test_rows_of_equal_length_meet_others_in_every_epoch():
    partners = Counter()
    for epoch in range(200):
        plan = plan_of(samples_of(*[199] * 40), epoch=epoch)
        ((together,),) = [[spec.rows for spec in map(plan.spec, range(len(plan))) if 0 in spec.rows]]
        assert len(together) == 4
        partners.update(row for row in together.tolist() if row)
    expected = 200 * 3 / 39
    assert (
        sum((count - expected) ** 2 / expected for count in partners.values()) < 38 + 4 * (2 * 38) ** 0.5 and len(partners) == 39
    )


def test_a_micro_batch_holds_rows_of_one_block_of_shards():
    plan = plan_of(samples_of(*[100] * 120), Batching(64.0, 16.0, 4.0, 0.5, shards_per_block=3), shards=12)
    blocks = [frozenset((plan.spec(i).rows // 10).tolist()) for i in range(len(plan))]
    whole = [frozenset().union(*blocks[start : start + len(plan) // 4]) for start in range(0, len(plan), len(plan) // 4)]
    assert [len(shards) for shards in whole] == [3] * 4 and len(frozenset().union(*whole)) == 12
    assert max(map(len, blocks)) > 1 and whole[0] != {0, 1, 2}


@pytest.mark.parametrize("policy", ["split", "pad", "fairseq_crop"])
def test_statistics_are_those_of_a_walk_over_all_micro_batches(policy):
    plan = epoch_plan(0, batching=Batching(64.0, 16.0, 4.0, 2.0, policy, shards_per_block=3))
    frames = [1 + (int(samples) - 400) // 320 for row, samples in enumerate(lengths(300)) if row % 7]
    specs = [plan.spec(index) for index in range(len(plan))]
    found = plan.statistics
    assert found.available == sum(frames)
    assert found.too_short == sum(count < 99 for count in frames) > 0
    assert found.planned == sum(int(spec.num_frames.sum()) for spec in specs)
    assert found.padded == sum(len(spec.rows) * int(spec.num_frames.max()) for spec in specs)
    assert found.padding_share == pytest.approx(1 - found.planned / found.padded) and found.padding_share >= 0
    assert found.lost_share == pytest.approx(1 - found.planned / sum(frames)) and found.lost_share > 0
    twice = found + found
    assert (twice.available, twice.planned, twice.padded, twice.too_short) == tuple(
        2 * value for value in (found.available, found.planned, found.padded, found.too_short)
    )


@pytest.mark.parametrize(("policy", "purposes"), [("split", ("borders", "ties", "groups")), ("pad", ("ties", "crop", "groups"))])
def test_all_draws_of_a_plan_are_keyed_by_seed_source_epoch_stream_and_block(policy, purposes, monkeypatch):
    asked = []

    def record(seed, purpose, count, **place):
        asked.append((purpose, seed, place["micro"], place["source"], place["epoch"]))
        return words(seed, purpose, count, **place)

    monkeypatch.setattr(plan_module, "words", record)
    batching = Batching(64.0, 16.0, 4.0, 0.5, policy, shards_per_block=1)
    epoch_plan(4, rows=100, stream=1, streams=2, seed=9, batching=batching)  # two of five shards
    source = int.from_bytes(hashlib.blake2b(b"a", digest_size=8).digest(), "little")
    drawn = [(f"plan.{purpose}", 9, 2**32 + block, source, 4) for purpose in purposes for block in (0, 1)]
    assert Counter(asked) == Counter([("plan.shards", 9, 0, source, 4), *drawn])


@pytest.mark.parametrize(
    ("policy", "purpose"),
    [("split", "shards"), ("split", "borders"), ("split", "ties"), ("split", "groups"), ("pad", "crop")],
)
def test_a_plan_in_which_a_single_draw_differs_has_another_digest(policy, purpose, monkeypatch):
    batching = Batching(64.0, 16.0, 4.0, 0.5, policy, shards_per_block=3)
    before = epoch_plan(0, batching=batching).digest
    assert before == epoch_plan(0, batching=batching).digest

    def changed(seed, asked, count, **place):
        return words(seed + (asked == f"plan.{purpose}"), asked, count, **place)

    monkeypatch.setattr(plan_module, "words", changed)
    assert epoch_plan(0, batching=batching).digest != before


def test_fairseq_crop_gives_every_row_of_a_micro_batch_the_length_of_its_shortest():
    plan = epoch_plan(0, batching=Batching(64.0, 16.0, 4.0, 0.5, "fairseq_crop"))
    frames = num_frames(lengths(300).astype(np.int64))
    starts = []
    for index in range(len(plan)):
        spec = plan.spec(index)
        assert (spec.num_frames == spec.num_frames[0]).all()
        assert (spec.start_frame + spec.num_frames <= frames[spec.rows]).all()
        starts += spec.start_frame.tolist()
    assert len(set(starts)) > 20
    assert plan.statistics.padding_share == 0


def test_the_streams_of_an_epoch_share_out_the_shards():
    whole = Counter(row for row, _, _ in pieces_of(epoch_plan(0)))
    parts = Counter(row for which in range(3) for row, _, _ in pieces_of(epoch_plan(0, stream=which, streams=3)))
    assert set(parts) == set(whole)
    shards = [{row // 20 for row, _, _ in pieces_of(epoch_plan(0, stream=which, streams=3))} for which in range(3)]
    assert not shards[0] & shards[1] and not shards[1] & shards[2]


def collect(plans: list) -> list:
    """Slots of all ranks in slot order, without the padding micro-batches."""
    rounds = zip(*(plan.specs for plan in plans), strict=True)
    return [spec.id for specs in rounds for spec in specs if spec.weight]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("slots", [8, 9])
def test_every_micro_batch_of_two_epochs_comes_exactly_once_at_every_number_of_ranks(world_size, slots):
    total = len(epoch_plan(0)) + len(epoch_plan(1))
    expected = [(0, i) for i in range(len(epoch_plan(0)))] + [(1, i) for i in range(len(epoch_plan(1)))]
    assert total % slots, "the last step must straddle the epochs for this test to mean anything"
    ranks = [schedule(slots) for _ in range(world_size)]
    stream = []
    for step in range(-(-total // slots)):
        plans = [r.step(step, rank, world_size) for rank, r in enumerate(ranks)]
        assert len({len(p.specs) for p in plans}) == 1, "ranks must run equally many micro-batches"
        assert len({p.digest for p in plans}) == 1
        stream += [(i.epoch, i.index) for i in collect(plans)]
    assert stream[:total] == expected


def test_what_is_lacking_to_equal_numbers_is_the_first_micro_batch_without_weight():
    plan = schedule(5)
    steps = [plan.step(2, rank, 4) for rank in range(4)]
    ids = ids_of(plan, 2)
    found = [[(spec.id, spec.weight) for spec in step.specs] for step in steps]
    assert found == [[(ids[0], 1.0), (ids[4], 1.0)], *([(ids[rank], 1.0), (ids[0], 0.0)] for rank in (1, 2, 3))]


def test_a_change_of_ranks_in_mid_epoch_neither_repeats_nor_drops_anything():
    expected = [i for step in range(12) for i in ids_of(schedule(9), step)]
    stream = []
    for step in range(12):
        world_size = (1, 4, 2, 8)[step // 3]
        stream += collect([schedule(9).step(step, rank, world_size) for rank in range(world_size)])
    assert stream == expected


def test_a_corpus_smaller_than_one_step_is_passed_over_several_times_within_it():
    plan = schedule(32, rows=15)
    epochs = [i.epoch for i in ids_of(plan, 0)]
    assert max(epochs) >= 2 and epochs == sorted(epochs)
    first = [i.index for i in ids_of(plan, 0) if i.epoch == 0]
    assert first == list(range(len(first)))


@settings(max_examples=40, deadline=None)
@given(shares=st.lists(st.floats(0.02, 5.0), min_size=1, max_size=5), slots=st.integers(1, 40))
def test_each_source_gets_its_share_of_every_step_to_within_one_micro_batch(shares, slots):
    sources = {f"s{i}": (share, [SourceStream(epoch_plan, "s")]) for i, share in enumerate(shares)}
    counts = Schedule(sources, slots).counts(np.arange(500))
    exact = slots * np.array(shares) / sum(shares)
    assert (counts.sum(axis=1) == slots).all()
    assert (np.abs(counts - exact) < 1 + 1e-6).all()
    assert (np.abs(np.cumsum(counts, axis=0) - exact * np.arange(1, 501)[:, None]) < 4).all()


def test_fractional_shares_are_dealt_by_multiples_of_the_golden_ratio():
    sources = {"a": (0.7, [SourceStream(epoch_plan, "a")]), "b": (0.3, [SourceStream(epoch_plan, "b")])}
    golden = round(2**32 * (5**0.5 - 1) / 2)
    border = round(0.8 * 2**32)  # four slots are 2.8 and 1.2: two and one whole ones, and one that goes to a in 0.8 of the steps
    expected = []
    for step in range(300):
        first = 2 + (border + step * golden % 2**32) // 2**32
        expected.append([first, 4 - first])
    assert Schedule(sources, 4).counts(np.arange(300)).tolist() == expected
    assert np.mean([first for first, _ in expected]) == pytest.approx(2.8, abs=0.01)


@pytest.mark.parametrize("streams", [1, 3])
def test_a_schedule_entered_in_the_middle_equals_one_walked_through(streams):
    walked = schedule(9, streams=streams, others=(0.3,))
    expected = [ids_of(walked, step) for step in range(30)]
    fresh = schedule(9, streams=streams, others=(0.3,))
    assert ids_of(fresh, 23) == expected[23]
    restored = schedule(9, streams=streams, others=(0.3,))
    restored.restore(walked.state(23))
    assert ids_of(restored, 23) == expected[23]
    assert ids_of(walked, 3) == expected[3]


def test_a_restored_stream_plans_no_epoch_that_lies_behind_it():
    walked = schedule(9)
    for step in range(100):
        ids_of(walked, step)
    planned = []

    def plan(epoch):
        planned.append(epoch)
        return epoch_plan(epoch)

    restored = Schedule({"a": (1.0, [SourceStream(plan, "a")])}, 9)
    restored.restore(walked.state(100))
    restored.statistics()
    assert ids_of(restored, 100) == ids_of(walked, 100)
    assert ids_of(walked, 100)[0].epoch > 3 and len(planned) <= 3


def test_what_a_checkpoint_keeps_does_not_depend_on_how_far_the_loader_has_read_ahead():
    behind, ahead = schedule(9), schedule(9)
    for step in range(40):
        ids_of(ahead, step)
        if step < 15:
            ids_of(behind, step)
    assert behind.state(15) == ahead.state(15)


def test_another_plan_begins_each_stream_with_its_next_epoch():
    old = schedule(9)
    for step in range(20):
        ids_of(old, step)
    begun = max(name.epoch for name in ids_of(old, 19))
    for slots, rows in ((5, 300), (9, 120), (12, 300)):
        new = schedule(slots, rows=rows)
        new.begin_at(20, old.state(20))
        names = [name for step in range(20, 50) for name in ids_of(new, step)]
        assert (names[0].epoch, names[0].index) == (begun + 1, 0)
        seen = {}
        for name in names:
            seen.setdefault(name.epoch, []).append(name.index)
        assert all(indices == list(range(len(indices))) for indices in seen.values())
        again = schedule(slots, rows=rows)
        again.restore(new.state(33))
        assert ids_of(again, 33) == ids_of(new, 33)


@pytest.mark.parametrize(
    ("streams", "first"),
    [
        ([(0, 3), (0, 1)], 3),  # (epoch that a stream began with, epochs that it has begun)
        ([(0, 1), (0, 3)], 3),
        ([(4, 1), (2, 2)], 5),
        ([(2, 3), (4, 1)], 5),
    ],
)
def test_every_stream_of_another_plan_begins_behind_the_last_epoch_that_any_stream_of_its_source_had_begun(streams, first):
    old = [{"first_epoch": epoch, "starts": [40 * number for number in range(count)]} for epoch, count in streams]
    for number in (1, 2, 3):
        new = schedule(6, streams=number, others=(0.5,))
        new.begin_at(7, {"origin": 2, "streams": {"a": old}})
        assert new.beginning() == {"origin": 7, "first_epochs": {"a": [first] * number, "b": [0] * number}}
        assert {(name.source, name.epoch) for name in ids_of(new, 7)} == {("a", first), ("b", 0)}


def test_each_stream_of_each_source_is_passed_over_without_gaps():
    plan = schedule(6, streams=3, others=(0.5,))
    seen: dict[tuple[str, int, int], list[int]] = {}
    for step in range(40):
        for name in ids_of(plan, step):
            seen.setdefault((name.source, name.stream, name.epoch), []).append(name.index)
    assert all(sorted(indices) == list(range(len(indices))) for indices in seen.values())
    assert {(source, stream) for source, stream, _ in seen} == {(s, w) for s in "ab" for w in range(3)}


# --- epochs of a known length -------------------------------------------------------------------------------------------


@dataclass
class Counted:
    """An epoch of `size` micro-batches without audio."""

    epoch: int
    size: int = 10
    stream: int = 0

    @property
    def digest(self) -> int:
        return 1000 + self.epoch

    def __len__(self) -> int:
        return self.size

    def spec(self, index: int) -> MicroBatchSpec:
        return MicroBatchSpec(MicroBatchId("a", self.epoch, self.stream, index), *[np.zeros(1, dtype=np.int64)] * 3)


def counted(slots: int, background: ThreadPoolExecutor | None = None, planned: list[int] | None = None) -> Schedule:
    def plan(epoch: int) -> Counted:
        if planned is not None:
            planned.append(epoch)
        return Counted(epoch)

    return Schedule({"a": (1.0, [SourceStream(plan, "a", background)])}, slots)


def places(schedule: Schedule, step: int) -> list[tuple[int, int]]:
    return [(name.epoch, name.index) for name in ids_of(schedule, step)]


def step_digest(*epochs: int) -> int:
    text = b"".join((1000 + epoch).to_bytes(8, "little") for epoch in epochs)
    return int.from_bytes(hashlib.blake2b(text, digest_size=5).digest(), "little")


def test_a_step_across_the_end_of_an_epoch_holds_both_epochs_and_both_digests():
    schedule = counted(4)
    found = [schedule.step(step) for step in range(5)]
    assert [(spec.id.epoch, spec.id.index) for spec in found[2].specs] == [(0, 8), (0, 9), (1, 0), (1, 1)]
    assert [plan.digest for plan in found] == [step_digest(*epochs) for epochs in ((0,), (0,), (0, 1), (1,), (1,))]


@pytest.mark.parametrize("read_ahead", [0, 1, 5])
def test_at_an_epochs_very_end_the_state_knows_that_epoch_alone(read_ahead):
    schedule = counted(5)
    for step in range(2 + read_ahead):
        ids_of(schedule, step)
    # Ten micro-batches of epoch 0 are taken; epoch 1 begins with the next step, whether the loader has read it ahead or not.
    assert schedule.state(2) == {"origin": 0, "streams": {"a": [{"first_epoch": 0, "starts": [0]}]}}
    resumed = counted(5)
    resumed.restore(schedule.state(2))
    assert places(resumed, 2) == [(1, index) for index in range(5)]
    other = counted(3)
    ids_of(other, 9)  # what it has read of its own plan is forgotten
    other.begin_at(2, schedule.state(2))
    assert other.state(2) == {"origin": 2, "streams": {"a": [{"first_epoch": 1, "starts": [0]}]}}
    assert places(other, 2) == [(1, 0), (1, 1), (1, 2)]
    with pytest.raises(ValueError, match="this plan begins at step 2, but the step is 1"):
        ids_of(other, 1)


def test_a_step_behind_an_epochs_end_the_state_knows_the_next_one():
    schedule = counted(5)
    for step in range(5):
        ids_of(schedule, step)
    assert schedule.state(3)["streams"]["a"] == [{"first_epoch": 0, "starts": [0, 10]}]
    assert schedule.state(0)["streams"]["a"] == schedule.state(1)["streams"]["a"] == [{"first_epoch": 0, "starts": [0]}]
    other = counted(5)
    other.begin_at(3, schedule.state(3))
    assert places(other, 3)[0] == (2, 0)


def test_a_plan_that_began_with_a_later_epoch_keeps_its_numbers_through_states_and_beginnings():
    first = counted(5)
    ids_of(first, 4)
    second = counted(4)
    second.begin_at(5, first.state(5))  # epochs 0 to 2 have begun
    expected = [places(second, step) for step in range(5, 16)]
    assert expected[0][0] == (3, 0) and expected[2] == [(3, 8), (3, 9), (4, 0), (4, 1)]
    assert second.state(8) == {"origin": 5, "streams": {"a": [{"first_epoch": 3, "starts": [0, 10]}]}}
    assert second.beginning() == {"origin": 5, "first_epochs": {"a": [3]}}
    resumed, again, third = counted(4), counted(4), counted(4)
    resumed.restore(second.state(8))
    again.begin_as(second.beginning())
    assert [places(resumed, step) for step in range(8, 16)] == expected[3:]
    assert [places(again, step) for step in range(5, 16)] == expected
    third.begin_at(8, second.state(8))
    assert places(third, 8)[0] == (5, 0)


def test_planning_in_the_background_changes_no_step_in_any_order():
    order = [0, 1, 2, 3, 9, 0, 1, 12, 5, 6, 0]
    with ThreadPoolExecutor(1) as background:
        for state in (None, {"origin": 0, "streams": {"a": [{"first_epoch": 7, "starts": [0]}]}}):
            alone, helped = counted(4), counted(4, background)
            if state:
                alone.restore(state)
                helped.restore(state)
            assert [places(helped, step) for step in order] == [places(alone, step) for step in order]


def test_the_next_epoch_is_planned_in_the_background_once_half_of_one_is_given_out():
    planned: list[int] = []
    with ThreadPoolExecutor(1) as background:
        schedule = counted(1, background, planned)
        for step in range(5):
            ids_of(schedule, step)
        assert planned == [0]
        ids_of(schedule, 5)
        background.submit(int).result()  # what was asked for before has been done
        assert planned == [0, 1]


def test_positions_after_many_steps_are_those_of_a_walk():
    size, steps, slots = 10**7, 70_000, 4
    names = {"a": 0.7, "b": 0.3}
    sources = {
        name: (share, [SourceStream(lambda epoch, w=w: Counted(epoch, size, w), name) for w in range(2)])
        for name, share in names.items()
    }
    schedule = Schedule(sources, slots)
    counts = schedule.counts(np.arange(steps + 1)).tolist()
    taken = {name: [0, 0] for name in names}
    for step in range(steps):
        slot = step  # the assignment turns by one slot a step
        for name, count in zip(names, counts[step], strict=True):
            for _ in range(count):
                taken[name][slot % 2] += 1
                slot += 1
    expected, slot = [None] * slots, steps
    for name, count in zip(names, counts[steps], strict=True):
        for _ in range(count):
            expected[slot % slots] = (slot % 2, taken[name][slot % 2])
            taken[name][slot % 2] += 1
            slot += 1
    assert [(name.stream, name.index) for name in ids_of(schedule, steps)] == expected


def test_statistics_are_summed_over_sources_and_streams():
    plans = [epoch_plan(0, stream=w, streams=3).statistics for w in range(3)]
    plans += [epoch_plan(0, rows=60, stream=w, streams=3, source="b").statistics for w in range(3)]
    found = schedule(6, streams=3, others=(0.5,)).statistics()
    for name in ("available", "planned", "padded", "too_short"):
        assert getattr(found, name) == sum(getattr(plan, name) for plan in plans)


def test_streams_that_do_not_divide_the_slots_are_refused():
    stream = SourceStream(epoch_plan, "a")
    with pytest.raises(ValueError, match=r"data\.streams must divide the 4 micro-batches of a step, but is 3"):
        Schedule({"a": (1.0, [stream] * 3)}, 4)


def test_more_processes_than_micro_batches_are_refused_with_the_way_out():
    assert len(schedule(4).step(0, 3, 4).specs) == 1
    for processes in (5, 8):
        with pytest.raises(ValueError, match=f"{processes} processes but only 4 micro-batches per step: use at most 4 processes"):
            schedule(4).step(0, 0, processes)


def test_a_source_without_usable_audio_is_refused_by_name():
    empty = SourceStream(lambda epoch: epoch_plan(epoch, batching=Batching(500, 500, 400, 300)), "source a")
    with pytest.raises(ValueError, match="source a has no usable audio"):
        Schedule({"a": (1.0, [empty])}, 2).step(0)


@pytest.mark.parametrize(
    "arguments",
    [
        (3.0, 3.0, 1.0, 2.0),
        (8.0, 8.0, 4.0, 0.0),
        (3.0, 3.0, 4.0, 1.0),
        (8.0, 8.0, 4.0, 1.0, "sorted"),
        (1400.0, 1400.0, 1300.0, 1.0),
        (12.0, 8.0, 4.0, 1.0),
        (4.0, 8.0, 4.0, 1.0),
        (24.04, 8.0, 4.0, 1.0),
        (23.999, 8.0, 4.0, 1.0),
        (1300.0, 1300.0, 1200.1, 1.0),
        (8.0, 8.0, 8.01, 1.0),
        (8.0, 8.0, 4.0, 4.01),
        (8.0, 8.0, 4.0, 0.0249),
        (8.0, 8.0, 4.0, 1.0, "split", 0),
        (8.0, 8.0, 4.0, 1.0, "split", 20, 0),
    ],
)
def test_impossible_lengths_and_policies_are_refused(arguments):
    with pytest.raises(ValueError):
        Batching(*arguments)


def test_the_outermost_lengths_are_allowed():
    assert Batching(1200.0, 1200.0, 1200.0, 1200.0, "pad", 1, 1).max_frames == 1 + (1200 * 16_000 - 400) // 320
    assert Batching(0.025, 0.025, 0.025, 0.025).slots == 1
    assert Batching(24.000001, 8.0, 4.0, 1.0).slots == 3, "a millionth is rounding"
    plain = Batching(8.0, 8.0, 4.0, 1.0)
    assert (plain.policy, plain.shards_per_block, plain.group) == ("split", 20, 4)
