"""The plan: exactly once, at every W, over epochs, and nothing else decides what is trained on."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwavlm.data.plan import Batching, EpochPlan
from openwavlm.data.schedule import Schedule, SourceStream
from openwavlm.frames import num_frames

BATCHING = Batching(seconds=64.0, micro_seconds=16.0, max_seconds=4.0, min_seconds=0.5, shards_per_block=3, group=2)


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


def test_a_change_of_ranks_in_mid_epoch_neither_repeats_nor_drops_anything():
    expected = [i for step in range(12) for i in schedule(9).ids(step)]
    stream = []
    for step in range(12):
        world_size = (1, 4, 2, 8)[step // 3]
        stream += collect([schedule(9).step(step, rank, world_size) for rank in range(world_size)])
    assert stream == expected


def test_a_corpus_smaller_than_one_step_is_passed_over_several_times_within_it():
    plan = schedule(32, rows=15)
    epochs = [i.epoch for i in plan.ids(0)]
    assert max(epochs) >= 2 and epochs == sorted(epochs)
    first = [i.index for i in plan.ids(0) if i.epoch == 0]
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


@pytest.mark.parametrize("streams", [1, 3])
def test_a_schedule_entered_in_the_middle_equals_one_walked_through(streams):
    walked = schedule(9, streams=streams, others=(0.3,))
    expected = [walked.ids(step) for step in range(30)]
    fresh = schedule(9, streams=streams, others=(0.3,))
    assert fresh.ids(23) == expected[23]
    restored = schedule(9, streams=streams, others=(0.3,))
    restored.restore(walked.state(23))
    assert restored.ids(23) == expected[23]
    assert walked.ids(3) == expected[3]


def test_a_restored_stream_plans_no_epoch_that_lies_behind_it():
    walked = schedule(9)
    for step in range(100):
        walked.ids(step)
    planned = []

    def plan(epoch):
        planned.append(epoch)
        return epoch_plan(epoch)

    restored = Schedule({"a": (1.0, [SourceStream(plan, "a")])}, 9)
    restored.restore(walked.state(100))
    restored.statistics()
    assert restored.ids(100) == walked.ids(100)
    assert walked.ids(100)[0].epoch > 3 and len(planned) <= 3


def test_what_a_checkpoint_keeps_does_not_depend_on_how_far_the_loader_has_read_ahead():
    behind, ahead = schedule(9), schedule(9)
    for step in range(40):
        ahead.ids(step)
        if step < 15:
            behind.ids(step)
    assert behind.state(15) == ahead.state(15)


def test_another_plan_begins_each_stream_with_its_next_epoch():
    old = schedule(9)
    for step in range(20):
        old.ids(step)
    begun = max(name.epoch for name in old.ids(19))
    for slots, rows in ((5, 300), (9, 120), (12, 300)):
        new = schedule(slots, rows=rows)
        new.begin_at(20, old.state(20))
        names = [name for step in range(20, 50) for name in new.ids(step)]
        assert (names[0].epoch, names[0].index) == (begun + 1, 0)
        seen = {}
        for name in names:
            seen.setdefault(name.epoch, []).append(name.index)
        assert all(indices == list(range(len(indices))) for indices in seen.values())
        again = schedule(slots, rows=rows)
        again.restore(new.state(33))
        assert again.ids(33) == new.ids(33)


def test_each_stream_of_each_source_is_passed_over_without_gaps():
    plan = schedule(6, streams=3, others=(0.5,))
    seen: dict[tuple[str, int, int], list[int]] = {}
    for step in range(40):
        for name in plan.ids(step):
            seen.setdefault((name.source, name.stream, name.epoch), []).append(name.index)
    assert all(sorted(indices) == list(range(len(indices))) for indices in seen.values())
    assert {(source, stream) for source, stream, _ in seen} == {(s, w) for s in "ab" for w in range(3)}


def test_more_processes_than_micro_batches_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="use at most 4 processes"):
        schedule(4).step(0, 0, 8)


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
    ],
)
def test_impossible_lengths_and_policies_are_refused(arguments):
    with pytest.raises(ValueError):
        Batching(*arguments)
