"""k-means step by step against float64 written out: starts, passes, when they end, empty clusters, and the sample it is fitted on."""

import inspect
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from openwavlm.audio.frames import num_frames
from openwavlm.audio.mfcc import mfcc_features
from openwavlm.labels import fit as fit_module
from openwavlm.labels import lloyd
from openwavlm.labels.chunks import ChunkedFrames, standardise
from openwavlm.labels.fit import affordable_clusters, check_skip_rate, fit_codebook
from openwavlm.labels.kmeans import Codebook, check_amount
from openwavlm.labels.lloyd import fit_lloyd_kmeans, whole
from openwavlm.labels.minibatch import fit_minibatch_kmeans
from openwavlm.labels.sample import (
    _UTTERANCES_A_TASK,
    draw_sample,
    keyed_hash,
    quotas,
    sampled_frames,
    thinned_places,
)
from openwavlm.labels.seeding import SEEDING_FRAMES_PER_CLUSTER, greedy_seeds
from openwavlm.runtime.collectives import Ranks
from openwavlm.runtime.randomness import stable_hash, uniform, words
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader, UnreadableAudio
from synthetic import make_shard_set

CPU = torch.device("cpu")


def crowded(frames: int = 1500, dim: int = 6, seed: int = 0) -> torch.Tensor:
    """Thirty overlapping Gaussians away from the origin."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((30, dim)) + 2
    return torch.from_numpy((centres[rng.integers(30, size=frames)] + rng.standard_normal((frames, dim))).astype(np.float32))


def distances(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Squared distances (frames, clusters) in float64, difference by difference."""
    return np.square(frames[:, None].astype(np.float64) - centroids[None].astype(np.float64)).sum(axis=2)


def lloyd_by_hand(frames: np.ndarray, centroids: np.ndarray, passes: int) -> tuple[np.ndarray, list[float]]:
    """Centroids after so many moves, and the mean squared distance before each move and after the last."""
    found = []
    for move in range(passes + 1):
        apart = distances(frames, centroids)
        found.append(float(apart.min(axis=1).mean()))
        if move < passes:
            nearest = apart.argmin(axis=1)
            centroids = np.stack([frames[nearest == k].astype(np.float64).mean(axis=0) for k in range(len(centroids))])
    return centroids, found


def starting_at(monkeypatch: pytest.MonkeyPatch, *starts: torch.Tensor) -> None:
    """Makes k-means begin at these centroids, one set a start."""
    monkeypatch.setattr(lloyd, "_settled_seeds", lambda frames, sample, clusters, seed, start: starts[start])


# Passes


def test_passes_are_those_of_float64_and_as_many_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    features = crowded()
    start = features[::150][:8].clone()
    starting_at(monkeypatch, start)
    for iterations in (1, 3, 6):
        book = fit_lloyd_kmeans(whole(features, 8), 8, 0, iterations=iterations, tolerance=0.0)
        centroids, means = lloyd_by_hand(features.numpy(), start.numpy(), iterations)
        np.testing.assert_allclose(book.centroids.numpy(), centroids, atol=1e-4)
        assert len(book.fitted["mean_squared_distance_by_iteration"]) == iterations + 1
        np.testing.assert_allclose(book.fitted["mean_squared_distance_by_iteration"], means, rtol=1e-5)
        apart = distances(features.numpy(), book.centroids.numpy())
        counts = np.bincount(apart.argmin(axis=1), minlength=8)
        assert book.fitted["mean_squared_distance"] == pytest.approx(apart.min(axis=1).mean(), rel=1e-5)
        assert book.fitted["used_clusters"] == np.count_nonzero(counts) and book.fitted["frames"] == 1500
        shares = counts / counts.sum()
        assert book.fitted["perplexity"] == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-4)


@pytest.mark.parametrize("tolerance", [0.02, 0.005, 1e-3])
def test_it_ends_after_the_first_pass_that_gains_less_than_the_tolerances_share(
    tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = crowded()
    # A start far outside: the first passes gain nearly all, so that a share of the first distance would end it at once.
    start = 40 + 0.1 * features[::150][:8]
    starting_at(monkeypatch, start)
    means = fit_lloyd_kmeans(whole(features, 8), 8, 0, iterations=60, tolerance=0.0).fitted["mean_squared_distance_by_iteration"]
    reseeded = 1  # where all start outside, empty clusters are filled first, and no pass that fills one is the last
    gains = [1 - after / before for before, after in pairwise(means)]
    last = next(place for place, gain in enumerate(gains) if gain <= tolerance and place > reseeded) + 1
    book = fit_lloyd_kmeans(whole(features, 8), 8, 0, iterations=60, tolerance=tolerance)
    assert book.fitted["mean_squared_distance_by_iteration"] == means[: last + 1]
    assert gains[last - 1] <= tolerance < min(gains[reseeded + 1 : last - 1], default=1)


def test_without_a_word_it_makes_fifty_passes_at_most_and_stops_below_two_thousandths() -> None:
    for function in (fit_lloyd_kmeans, fit_codebook):
        defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
        assert (defaults["iterations"], defaults["tolerance"]) == (50, 2e-3)
    assert fit_lloyd_kmeans(whole(crowded(200), 3), 3, 4).fitted["n_init"] == 1


# Starts


RECTANGLE = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 0.0], [4.0, 1.0]]).repeat(25, 1)
GOOD, BAD = torch.tensor([[0.0, 0.5], [4.0, 0.5]]), torch.tensor([[2.0, 0.0], [2.0, 1.0]])  # both stay: ¼ and 4


@pytest.mark.parametrize("place", [0, 1, 2])
def test_of_several_starts_the_one_that_ends_best_is_kept(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = [BAD, BAD, BAD]
    starts[place] = GOOD
    starting_at(monkeypatch, *starts)
    book = fit_lloyd_kmeans(whole(RECTANGLE, 2), 2, 0, n_init=3)
    assert book.fitted["mean_squared_distance"] == pytest.approx(0.25) and book.fitted["n_init"] == 3
    assert torch.equal(book.centroids, GOOD)
    starting_at(monkeypatch, GOOD)
    settled = fit_lloyd_kmeans(whole(RECTANGLE, 2), 2, 0, tolerance=0.0).fitted["mean_squared_distance_by_iteration"]
    assert settled == [0.25, 0.25], "a pass that gains nothing is the last"
    starting_at(monkeypatch, BAD)
    assert fit_lloyd_kmeans(whole(RECTANGLE, 2), 2, 0).fitted["mean_squared_distance"] == pytest.approx(4.0)


def test_five_starts_are_as_good_as_the_best_of_each_alone_and_all_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    features = crowded()
    together = fit_lloyd_kmeans(whole(features, 12), 12, 3, n_init=5)
    original, alone = lloyd._settled_seeds, []
    for start in range(5):
        monkeypatch.setattr(lloyd, "_settled_seeds", lambda *given, start=start: original(*given[:-1], start))
        alone.append(fit_lloyd_kmeans(whole(features, 12), 12, 3).fitted["mean_squared_distance"])
    assert together.fitted["mean_squared_distance"] == min(alone) and len(set(alone)) == 5
    assert alone.index(min(alone)) != 0, "a program that keeps the first start would not be noticed"
    other = fit_lloyd_kmeans(whole(features, 12), 12, 4, n_init=5)
    assert other.hash != together.hash


def greedy_by_hand(frames: np.ndarray, clusters: int, seed: int, start: int) -> list[int]:
    """Greedy k-means++ in float64: of the candidates drawn by squared distance, the one that leaves the smallest sum of them."""
    trials = 2 + int(np.log(clusters))

    def draws(step: int, count: int) -> np.ndarray:
        return uniform(words(seed, "kmeans.seeding", count, epoch=start, micro=step))

    chosen = [int(draws(0, 1)[0] * len(frames))]
    nearest = distances(frames, frames[chosen])[:, 0]
    while len(chosen) < clusters:
        reach = np.cumsum(nearest)
        candidates = [int(np.searchsorted(reach, share * reach[-1], side="right")) for share in draws(len(chosen), 4 * trials)]
        apart = distances(frames, frames[candidates])
        for _ in range(min(4, clusters - len(chosen))):
            potentials = np.minimum(apart, nearest[:, None]).sum(axis=0)
            best = int(potentials.argmin())
            chosen.append(candidates[best])
            nearest = np.minimum(nearest, apart[:, best])
    return chosen


@pytest.mark.parametrize(("clusters", "seed", "start"), [(5, 0, 0), (12, 0, 3), (12, 9, 0), (1, 0, 0)])
def test_seeds_are_those_of_greedy_k_means_plus_plus(clusters: int, seed: int, start: int) -> None:
    frames = crowded(600)
    chosen = greedy_by_hand(frames.numpy(), clusters, seed, start)
    assert torch.equal(greedy_seeds(frames, clusters, seed, start, device=CPU), frames[chosen])


def test_seeds_settle_on_at_most_64_frames_a_cluster_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    features, given = crowded(), []
    original = lloyd.greedy_seeds

    def noted(sample: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        given.append((sample.clone(), others))
        return original(sample, *others, **named)

    monkeypatch.setattr(lloyd, "greedy_seeds", noted)
    book = fit_lloyd_kmeans(whole(features, 5), 5, 6, n_init=2)
    assert SEEDING_FRAMES_PER_CLUSTER == 64 and book.fitted["seeding_frames"] == 320
    wanted = features[[place * 1500 // 320 for place in range(320)]]
    torch.testing.assert_close(given[0][0], wanted, atol=1e-5, rtol=1e-5)
    assert [others for _, others in given] == [(5, 6, 0), (5, 6, 1)]
    few = fit_lloyd_kmeans(whole(features[:40], 5), 5, 6)
    assert few.fitted["seeding_frames"] == 40 and few.fitted["frames"] == 40


def test_where_the_spread_places_are_mostly_empty_all_frames_are_seeding_frames() -> None:
    features = crowded(1500)
    filled = torch.zeros(1500, dtype=torch.bool)
    spread = {place * 1500 // 256 for place in range(256)}
    filled[[next(at for at in range(first, 1500) if at not in spread) for first in (1, 2, 70, 333, 700, 1001, 1400)]] = True
    frames = ChunkedFrames(features.clone(), 1500, 64, filled)
    book = fit_lloyd_kmeans(frames, 4, 0)
    assert (book.fitted["frames"], book.fitted["seeding_frames"], book.fitted["used_clusters"]) == (7, 7, 4)
    own = features[filled].numpy()
    assert book.fitted["mean_squared_distance"] == pytest.approx(
        distances(own, book.centroids.numpy()).min(axis=1).mean(), rel=1e-4
    )


def test_seeds_move_on_the_seeding_frames_alone_for_ten_passes_at_most() -> None:
    features = crowded()
    frames = whole(features, 8)
    sample = features[::3]
    moved = lloyd._settled_seeds(frames, sample, 8, 5, 2)
    centroids = features[::3].numpy()[greedy_by_hand(sample.numpy(), 8, 5, 2)]
    _, means = lloyd_by_hand(sample.numpy(), centroids, 10)
    gains = [1 - after / before for before, after in pairwise(means)]
    passes = next((place for place, gain in enumerate(gains) if gain <= 1e-3), 10)
    assert passes >= 4
    found = [lloyd_by_hand(sample.numpy(), centroids, count)[0] for count in (passes, passes + 1)]
    assert min(np.abs(moved.numpy() - wanted).max() for wanted in found) < 1e-3


# Empty clusters


def test_empty_clusters_take_the_farthest_frames_the_first_of_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    near = torch.tensor([[0.0, 0.0], [0.25, 0.0]]).repeat(20, 1)
    far = torch.tensor([[0.0, 9.0], [8.0, 0.0], [0.0, -8.0], [7.0, 0.0]])
    features = torch.cat([near, far])
    # One centroid holds all; of the two frames at 8 the earlier one comes first.
    for empty, taken in ((1, [0]), (2, [0, 1]), (3, [0, 1, 2])):
        start = torch.cat([torch.tensor([[0.0, 0.0]]), torch.full((empty, 2), 1e3)])
        starting_at(monkeypatch, start)
        frames = whole(features, 1 + empty)
        found = lloyd._lloyd(frames, lloyd._squares(frames), start, 1, 0.0, lambda *_: None)
        assert found.reseeded == empty
        np.testing.assert_allclose(found.centroids[1:].numpy(), far[taken].numpy(), atol=1e-4)
        np.testing.assert_allclose(found.centroids[0].numpy(), features.mean(dim=0).numpy(), atol=1e-4)


def test_the_farthest_frame_of_a_later_process_is_found_at_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "sum", lambda self, tensor: tensor)
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value])
    features = crowded(256)
    frames = ChunkedFrames(features[128:].clone(), 256, 64, None, Ranks(1, 2))
    apart = torch.arange(128.0) % 100
    found = lloyd._farthest(frames, torch.zeros(128), apart, 3)
    assert torch.equal(found, features[[128 + 99, 128 + 98, 128 + 97]])


def test_duplicates_get_one_cluster_each_and_no_more_are_looked_for() -> None:
    # 37 copies of each of three frames whose float32 distances to themselves are not quite 0.
    rng = np.random.default_rng(0)
    three = (1000 + rng.standard_normal((3, 7))).astype(np.float32)
    features = torch.from_numpy(np.repeat(three, 37, axis=0)[rng.permutation(111)])
    book = fit_lloyd_kmeans(whole(features, 5), 5, 0, iterations=30)
    assert book.fitted["used_clusters"] == 3
    assert len(book.fitted["mean_squared_distance_by_iteration"]) < 10, "a frame on its centroid fills no empty cluster"
    assert distances(three, book.centroids.numpy()).min(axis=1).max() < 1e-5
    exact = fit_lloyd_kmeans(whole(features, 3), 3, 0)
    assert exact.fitted["used_clusters"] == 3 and exact.fitted["reseeded_clusters"] == 0


def test_a_pass_that_filled_a_cluster_is_never_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    # Filling the empty cluster with the lone frame gains less than the tolerance at once, and it is filled all the same.
    features = torch.cat([torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[6.0, 0.0]])])
    starting_at(monkeypatch, torch.tensor([[0.0, 0.0], [1e3, 0.0], [1e3, 1.0]]))
    book = fit_lloyd_kmeans(whole(features, 3), 3, 0, tolerance=0.9)
    assert book.fitted["used_clusters"] == 3 and book.fitted["reseeded_clusters"] == 2
    # The two farthest frames are equal, so one of the two clusters is empty again and takes the next frame.
    twice = torch.cat([features[:4000], torch.tensor([[60.0, 0.0], [60.0, 0.0], [0.0, 50.0]])])
    book = fit_lloyd_kmeans(whole(twice, 3), 3, 0, tolerance=0.99)
    assert book.fitted["used_clusters"] == 3 and book.fitted["reseeded_clusters"] == 3


def test_as_many_clusters_as_frames_hold_a_frame_each() -> None:
    features = crowded(6)
    check_amount(6, 6)
    assert fit_lloyd_kmeans(whole(features, 6), 6, 0).fitted["mean_squared_distance"] == pytest.approx(0, abs=1e-4)
    with pytest.raises(ValueError, match="has 5 for 6"):
        check_amount(5, 6)
    with pytest.raises(ValueError, match="must be positive, but is 0"):
        check_amount(5, 0)


# Codebooks


@pytest.mark.parametrize("normed", [False, True])
def test_distance_and_usage_are_those_of_a_brute_force_search(normed: bool) -> None:
    rng = np.random.default_rng(0)
    frames = (rng.standard_normal((66_000, 3)) * [1, 10, 1] + [0, 5, 0]).astype(np.float32)  # more than a chunk of 65,536
    centroids = rng.standard_normal((6, 3)).astype(np.float32)
    norm = np.array([[0.0, 5.0, 0.1], [1.0, 10.0, 2.0]], dtype=np.float32) if normed else None
    book = Codebook(torch.from_numpy(centroids), norm=None if norm is None else torch.from_numpy(norm))
    apart = distances(frames if norm is None else (frames - norm[0]) / norm[1], centroids)
    inertia, counts = book.inertia(frames)
    assert inertia == pytest.approx(apart.min(axis=1).mean(), rel=1e-5)
    assert counts.sum() == 66_000 and np.abs(counts - np.bincount(apart.argmin(axis=1), minlength=6)).max() <= 3
    labels = book.assign(frames)
    assert (labels == apart.argmin(axis=1)).mean() > 0.9999
    chosen = apart[np.arange(66_000), labels]
    assert (chosen <= apart.min(axis=1) + 1e-5 * apart.max()).all()
    assert book.inertia(frames[:0])[0] == 0


def test_deviations_are_of_all_frames() -> None:
    frames = crowded(40).numpy()
    frames[:, 1] *= 1e-4  # small, but it moves
    frames[:, 2] = 3 + 1e-5 * frames[:, 2]  # a deviation above a millionth of the value
    wanted = np.stack([frames.mean(axis=0, dtype=np.float64), frames.std(axis=0, dtype=np.float64)])
    many = whole(torch.from_numpy(np.tile(frames[:, :2], (1700, 1))), 2)  # 34 chunks
    np.testing.assert_allclose(standardise(many).numpy(), wanted[:, :2], rtol=1e-5)
    chunked = whole(torch.from_numpy(frames), 2)
    np.testing.assert_allclose(standardise(chunked).numpy(), wanted, rtol=1e-5)
    np.testing.assert_allclose(chunked.features.numpy(), (frames - wanted[0]) / wanted[1], atol=2e-2, rtol=1e-3)


@pytest.mark.parametrize(("clusters", "n_init", "batch_size", "seed"), [(8, 5, 10_000, 0), (8, 1, 200, 7)])
def test_mini_batches_are_scikit_learns_with_fairseqs_settings(clusters: int, n_init: int, batch_size: int, seed: int) -> None:
    features = crowded().numpy()
    with threadpool_limits(limits=1):
        wanted = MiniBatchKMeans(
            clusters,
            init="k-means++",
            max_iter=100,
            batch_size=batch_size,
            tol=0.0,
            max_no_improvement=100,
            n_init=n_init,
            reassignment_ratio=0.0,
            compute_labels=False,
            random_state=seed,
        ).fit(features)
    settings = {} if (n_init, batch_size) == (5, 10_000) else {"n_init": n_init, "batch_size": batch_size}
    book = fit_minibatch_kmeans(features, clusters, seed, **settings)
    np.testing.assert_allclose(book.centroids.numpy(), wanted.cluster_centers_, rtol=1e-5, atol=1e-5)
    counts = np.bincount(distances(features, book.centroids.numpy()).argmin(axis=1), minlength=clusters)
    assert book.fitted["used_clusters"] == np.count_nonzero(counts) and book.fitted["mini_batches"] == wanted.n_steps_
    assert (book.fitted["n_init"], book.fitted["batch_size"], book.fitted["seed"]) == (n_init, batch_size, seed)
    shares = counts[counts > 0] / counts.sum()
    assert book.fitted["perplexity"] == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-2)


def test_clusters_without_a_frame_are_not_in_use() -> None:
    book = fit_minibatch_kmeans(np.repeat([[0.0, 0.0], [5.0, 5.0]], 30, axis=0).astype(np.float32), 3, 0)
    assert book.fitted["used_clusters"] == 2 and len(book) == 3


# The sample


def split_mix(value: int) -> int:
    """SplitMix64's finaliser in whole numbers (Steele et al. 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def test_audio_is_hashed_by_split_mix_of_the_seed() -> None:
    pcm = np.array([0, 1, 2**63 + 12345, 2**64 - 1], dtype=np.uint64)
    for seed in (0, 5):
        word = int(np.random.Philox(key=seed).random_raw(1)[0])
        assert keyed_hash(pcm, seed).tolist() == [split_mix(int(value) ^ word) for value in pcm]
    # The first number that SplitMix64 gives for seed 0: the finaliser of 0x9e3779b97f4a7c15.
    assert split_mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Index]:
    return [
        Index.open(
            make_shard_set(tmp_path_factory.mktemp(name), source=name, speakers=6, utterances=3, seconds=(0.5, 1.5), seed=seed)
        )
        for seed, name in enumerate(("books", "calls"))
    ]


@pytest.mark.parametrize(("seed", "split_seed", "share", "seconds"), [(0, 0, 0.3, 12.0), (4, 2, 0.5, 5.0), (1, 0, 0.0, 1e6)])
def test_the_sample_is_training_speakers_by_hash_until_each_source_has_its_part(
    sources: list[Index], seed: int, split_seed: int, share: float, seconds: float
) -> None:
    word = int(np.random.Philox(key=seed).random_raw(1)[0])
    rows = []
    for number, index in enumerate(sources):
        for row in range(len(index)):
            speaker = index.speakers[int(index.speaker[row])]
            if stable_hash(f"{split_seed}/split/{speaker}") >= int(share * 2**64):
                rows.append((split_mix(int(index.pcm[row]) ^ word), number, row, int(index.num_samples[row])))
    held = [sum(samples for _, number, _, samples in rows if number == source) for source in (0, 1)]
    wanted, taken = [], [0, 0]
    for _, number, row, samples in sorted(rows):
        if taken[number] < seconds * 16_000 * held[number] / sum(held):
            wanted.append((number, row))
            taken[number] += samples
    found = draw_sample(sources, sample_hours=seconds / 3600, seed=seed, validation_share=share, split_seed=split_seed)
    assert list(zip(found.source.tolist(), found.row.tolist(), strict=True)) == wanted
    assert 0 < len(wanted) <= len(rows) and (len(wanted) < len(rows)) == (seconds < 1e5)
    assert found.hours == {name: round(taken[n] / 16_000 / 3600, 4) for n, name in enumerate(("books", "calls")) if taken[n]}


@pytest.mark.parametrize(
    ("held", "wanted", "weights", "expected"),
    [
        ({"a": 10, "b": 30}, 20, {}, {"a": 5, "b": 15}),
        ({"a": 10, "b": 30}, 20, {"a": 3}, {"a": 10, "b": 10}),  # equal parts, and a has just enough
        ({"a": 10, "b": 30}, 30, {"a": 3}, {"a": 10, "b": 20}),  # a cannot give its 15: b does
        ({"a": 1, "b": 2, "c": 30}, 18, {"a": 30, "b": 15}, {"a": 1, "b": 2, "c": 15}),
        ({"a": 1, "b": 4, "c": 40}, 15, {"a": 40, "b": 10}, {"a": 1, "b": 4, "c": 10}),  # first a, then b is exhausted
        ({"a": 10, "b": 30}, 20, {"b": 0}, {"a": 10, "b": 0}),
        ({"a": 10, "b": 30}, 4, {"b": 0}, {"a": 4, "b": 0}),
        ({"a": 10, "b": 30}, 50, {}, {"a": 10, "b": 30}),
        ({"a": 10, "b": 30}, 12, {"b": 1 / 3}, {"a": 6, "b": 6}),
        ({"": 5, "b": 5}, 4, {"": 3}, {"": 3, "b": 1}),
    ],
)
def test_each_source_gives_its_weighted_part_and_what_a_small_one_cannot_the_others_do(
    held: dict[str, float], wanted: float, weights: dict[str, float], expected: dict[str, float]
) -> None:
    assert quotas(held, wanted, weights) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"c": 1.0}, r"must name sources of the shard sets \('a', 'b'\), but names 'c'"),
        ({"a": -1.0}, "must not be negative nor all 0"),
        ({"a": 0.0, "b": 0.0}, "must not be negative nor all 0"),
    ],
)
def test_weights_that_leave_nothing_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quotas({"a": 10, "b": 30}, 20, weights)


def test_weights_of_sources_reach_the_sample(sources: list[Index]) -> None:
    draw = {"seed": 0, "validation_share": 0.0, "split_seed": 0}
    held = {index.sources[1]: int(np.sum(index.num_samples[:])) / 57_600_000 for index in sources}
    for weights in ({"books": 0.0}, {"calls": 0.0}):
        (left,) = set(held) - set(weights)
        found = draw_sample(sources, sample_hours=1.0, source_weights=weights, **draw)
        assert found.hours == {left: pytest.approx(held[left], abs=1e-4)}
        assert set(found.source.tolist()) == {["books", "calls"].index(left)}
    hours = 0.5 * min(held.values())
    found = draw_sample(sources, sample_hours=2 * hours, source_weights={"books": held["calls"] / held["books"]}, **draw)
    # Equal parts, each up to the utterance of at most 1.5 s that reaches it.
    for name in held:
        assert hours - 1e-4 <= found.hours[name] <= hours + 1.5 / 3600 + 1e-4


@pytest.mark.parametrize(("total", "keep"), [(1000, 37), (1000, 999), (10, 10), (10, 50), (7, 1)])
def test_frames_are_thinned_evenly(total: int, keep: int) -> None:
    places = thinned_places(0, total, total=total, keep=keep)
    stays = np.flatnonzero(np.diff(places))
    kept = min(keep, total)
    assert len(stays) == kept and places[0] == 0 and places[-1] == kept
    assert stays.tolist() == [-(-(place + 1) * total // kept) - 1 for place in range(kept)]
    # A part of the stream stands where it does in the whole.
    np.testing.assert_array_equal(thinned_places(3, 4, total=total, keep=keep), places[3:8])


@pytest.mark.parametrize("engine", ["lloyd", "minibatch"])
def test_kmeans_is_given_the_thinned_features_of_the_sample_and_what_was_asked_for(
    sources: list[Index], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    # Features that say which frame of which row they are.
    rows = {index.pcm[row]: (number, row) for number, index in enumerate(sources) for row in range(len(index))}
    lengths = {int(index.num_samples[row]): (number, row) for number, index in enumerate(sources) for row in range(len(index))}
    assert len(rows) == len(lengths) == 36, "a row is known by its length"

    def features(settings: list, waveform: np.ndarray, teacher: None, *, device: str) -> Iterator[tuple[int, list[torch.Tensor]]]:
        number, row = lengths[len(waveform)]
        frames = torch.arange(num_frames(len(waveform)), dtype=torch.float32)
        found = torch.stack([torch.full_like(frames, number), torch.full_like(frames, row), frames], dim=1)
        for first in range(0, len(found), 7):  # in pieces, as a long recording's
            yield first, [found[first : first + 7]]

    given: dict[str, Any] = {}

    def kmeans(frames: Any, clusters: int, seed: int, **settings: Any) -> Codebook:
        held = frames.features if engine == "lloyd" else torch.as_tensor(frames)
        given.update(frames=held.clone(), clusters=clusters, seed=seed, **settings)
        return Codebook(torch.zeros(clusters, 3), fitted={"used_clusters": 1, "perplexity": 1.0, "mean_squared_distance": 0.0})

    monkeypatch.setattr("openwavlm.labels.sample.extract_feature_chunks", features)
    monkeypatch.setitem(_UTTERANCES_A_TASK, "mfcc", 5)
    monkeypatch.setattr(fit_module, "feature_settings", lambda *_, **__: {"name": "mfcc", "dim": 3})
    monkeypatch.setattr(fit_module, f"fit_{engine}_kmeans", kmeans)
    asked = {"sample_hours": 20 / 3600, "validation_share": 0.2, "split_seed": 3, "seed": 8}
    book = fit_codebook(
        [index.path for index in sources],
        tmp_path / "book",
        clusters=50,
        min_frames_per_cluster=11,
        max_frames=400,
        n_init=3,
        engine=engine,
        device="cpu",
        **({"iterations": 9, "tolerance": 0.25} if engine == "lloyd" else {}),
        **asked,
    )
    sample = draw_sample(sources, **asked)
    stream = [
        (number, row, frame)
        for number, row, samples in zip(sample.source.tolist(), sample.row.tolist(), sample.num_samples.tolist(), strict=True)
        for frame in range(num_frames(samples))
    ]
    assert 400 < sample.frames == len(stream)
    wanted = [stream[at] for at in range(len(stream)) if (at + 1) * 400 // len(stream) > at * 400 // len(stream)]
    assert [tuple(map(int, frame)) for frame in given.pop("frames").tolist()] == wanted
    passes = {"iterations": 9, "tolerance": 0.25} if engine == "lloyd" else {}
    assert given == {"clusters": 400 // 11, "seed": 8, "n_init": 3, **passes}
    assert book.fitted["clusters_wanted"] == 50 and book.fitted["utterances"] == len(sample)
    assert (
        book.fitted["seconds"] == round(float(sample.num_samples.sum()) / 16_000, 3)
        and book.fitted["hours_by_source"] == sample.hours
    )


@pytest.mark.parametrize("engine", ["lloyd", "minibatch"])
def test_standardised_features_are_clustered_on_their_scale_and_the_codebook_keeps_it(
    sources: list[Index], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr(
        fit_module, "feature_settings", lambda *_, **__: {"name": "mfcc", "dim": 39, "feature_norm": "standardise"}
    )
    monkeypatch.setattr(
        "openwavlm.labels.sample.extract_feature_chunks",
        lambda settings, waveform, teacher, *, device: [(0, [5 + 3 * mfcc_features(waveform)])],
    )
    asked = {"sample_hours": 1.0, "validation_share": 0.0, "split_seed": 0, "seed": 0}
    shards = [index.path for index in sources]
    book = fit_codebook(shards, tmp_path / "book", clusters=4, min_frames_per_cluster=20, engine=engine, device="cpu", **asked)
    sample = draw_sample(sources, **asked)
    frames = np.concatenate(
        [
            5 + 3 * mfcc_features(ShardReader(sources[number]).read(row)).double().numpy()
            for number, row in zip(sample.source.tolist(), sample.row.tolist(), strict=True)
        ]
    )
    assert book.norm is not None
    np.testing.assert_allclose(book.norm.numpy(), np.stack([frames.mean(axis=0), frames.std(axis=0)]), rtol=1e-4, atol=1e-4)
    own = (frames - frames.mean(axis=0)) / frames.std(axis=0)
    assert book.fitted["mean_squared_distance"] == pytest.approx(
        distances(own, book.centroids.numpy()).min(axis=1).mean(), rel=1e-3
    )
    assert book.fitted["mean_squared_distance"] < 39, "less than the variance of 39 standardised dimensions"


def test_full_passes_have_one_start_and_mini_batches_five(
    monkeypatch: pytest.MonkeyPatch, sources: list[Index], tmp_path: Path
) -> None:
    starts = {}

    def noted(engine: str) -> Any:
        def fit(frames: Any, clusters: int, seed: int, *, n_init: int, **_: Any) -> Codebook:
            starts[engine] = n_init
            return Codebook(
                torch.zeros(clusters, 39), fitted={"used_clusters": 1, "perplexity": 1.0, "mean_squared_distance": 0.0}
            )

        return fit

    for engine in ("lloyd", "minibatch"):
        monkeypatch.setattr(fit_module, f"fit_{engine}_kmeans", noted(engine))
        fit_codebook(
            [sources[0].path],
            tmp_path / engine,
            engine=engine,
            clusters=2,
            min_frames_per_cluster=5,
            validation_share=0.0,
            device="cpu",
        )
    assert starts == {"lloyd": 1, "minibatch": 5}


def test_an_average_of_a_thousand_frames_a_cluster_is_needed_unless_said_otherwise() -> None:
    default = inspect.signature(fit_codebook).parameters["min_frames_per_cluster"].default
    assert default == 1000 and [affordable_clusters(frames, 7, 10) for frames in (70, 69, 19, 10)] == [7, 6, 1, 1]


def test_exactly_the_allowed_share_may_be_unreadable() -> None:
    check_skip_rate(2, 2000, 0.001)
    check_skip_rate(0, 5, 0.0)
    with pytest.raises(ValueError, match="but 3 of 2000 are"):
        check_skip_rate(3, 2000, 0.001)


@pytest.mark.parametrize("ranks", [[Ranks()], [Ranks(0, 3), Ranks(1, 3), Ranks(2, 3)]])
def test_places_of_an_utterance_that_cannot_be_read_stay_empty(
    sources: list[Index], monkeypatch: pytest.MonkeyPatch, ranks: list[Ranks]
) -> None:
    sample = draw_sample(sources, sample_hours=1.0, seed=0, validation_share=0.0, split_seed=0)
    lost = 7
    original = ShardReader.read

    def read(self: ShardReader, row: int) -> np.ndarray:
        if self.index.path == sources[sample.source[lost]].path and row == sample.row[lost]:
            raise UnreadableAudio("this row does not decode")
        return original(self, row)

    monkeypatch.setattr(ShardReader, "read", read)
    monkeypatch.setattr(Ranks, "sum", lambda self, tensor: tensor)  # each process alone: only its own share is looked at
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value])
    monkeypatch.setitem(_UTTERANCES_A_TASK, "mfcc", 5)
    wanted, owner = [], []
    for place, (number, row) in enumerate(zip(sample.source.tolist(), sample.row.tolist(), strict=True)):
        frames = mfcc_features(original(ShardReader(sources[number]), row))
        wanted.append(frames)
        owner += [place] * len(frames)
    stream, total = torch.cat(wanted), len(owner)
    stays = [at for at in range(total) if (at + 1) * 700 // total > at * 700 // total]
    found, filled, missing = [], [], 0
    for rank in ranks:
        frames, unreadable = sampled_frames(
            sources,
            sample,
            {"name": "mfcc", "dim": 39},
            None,
            700,
            64,
            workers=1,
            device=CPU,
            clustered_on=CPU,
            ranks=rank,
        )
        assert frames.total == 700
        found.append(frames.features)
        filled.append(torch.ones(len(frames.features), dtype=torch.bool) if frames.filled is None else frames.filled)
        missing = max(missing, unreadable)
    held = torch.cat(filled)
    assert missing == 1 and held.tolist() == [owner[at] != lost for at in stays]
    assert torch.equal(torch.cat(found)[held], stream[stays][held])


def test_a_codebook_of_any_other_request_is_not_taken_for_this_one(sources: list[Index], tmp_path: Path) -> None:
    shards = [index.path for index in sources]
    asked: dict[str, Any] = {
        "clusters": 3,
        "min_frames_per_cluster": 10,
        "validation_share": 0.0,
        "max_frames": 200,
        "device": "cpu",
    }
    book = fit_codebook(shards, tmp_path / "book", **asked)
    assert fit_codebook(shards[::-1], tmp_path / "book", **asked, max_memory_gib=1.0, n_init=1).hash == book.hash
    for name, value in {
        "sample_hours": 99.0,
        "max_frames": 199,
        "validation_share": 0.1,
        "split_seed": 1,
        "source_weights": {"calls": 2.0},
        "clusters": 4,
        "min_frames_per_cluster": 11,
        "seed": 1,
        "n_init": 2,
        "iterations": 49,
        "tolerance": 3e-3,
        "engine": "minibatch",
    }.items():
        with pytest.raises(ValueError, match="already has one of another request"):
            fit_codebook(shards, tmp_path / "book", **(asked | {name: value}))
    with pytest.raises(ValueError, match="already has one of another request"):
        fit_codebook(shards[:1], tmp_path / "book", **asked)
