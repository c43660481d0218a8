"""Full passes of k-means: as good as scikit-learn's, and the same bits however the work is divided."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from openwavlm.labels.chunks import ChunkedFrames, chunk_frames, own_places, snap_to_grid, standardise
from openwavlm.labels.lloyd import _lloyd, _squares, fit_lloyd_kmeans, whole
from openwavlm.labels.minibatch import fit_minibatch_kmeans
from openwavlm.labels.seeding import greedy_seeds
from openwavlm.runtime.collectives import Ranks
from patience import HANG_S

CPU = torch.device("cpu")


def crowded(frames: int = 6000, dim: int = 12, seed: int = 0) -> torch.Tensor:
    """Sixty Gaussians of unequal weight that overlap, in dimensions of unequal scale."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(1, -2, dim)
    centres = 2 * scale * torch.randn(60, dim, generator=generator)
    owner = torch.multinomial(1 / torch.arange(1, 61).float(), frames, replacement=True, generator=generator)
    return centres[owner] + scale * torch.randn(frames, dim, generator=generator)


def held(features: torch.Tensor, chunk: int, filled: torch.Tensor | None = None, ranks: Ranks | None = None) -> ChunkedFrames:
    ranks = ranks or Ranks()
    first, stop = own_places(len(features), chunk, ranks)
    mine = None if filled is None else filled[first:stop]
    return ChunkedFrames(features[first:stop].clone(), len(features), chunk, mine, ranks)


def test_it_is_no_worse_than_mini_batches_with_five_starts() -> None:
    features = crowded()
    ours = fit_lloyd_kmeans(whole(features, 40), 40, 0)
    theirs = fit_minibatch_kmeans(features, 40, 0)
    assert ours.inertia(features)[0] <= 1.01 * theirs.inertia(features)[0]
    fitted = ours.fitted
    assert fitted["mean_squared_distance"] == pytest.approx(ours.inertia(features)[0], rel=1e-5)
    assert (fitted["frames"], fitted["used_clusters"]) == (6000, 40) and 25 < fitted["perplexity"] <= 40
    by_iteration = fitted["mean_squared_distance_by_iteration"]
    assert by_iteration == sorted(by_iteration, reverse=True) and by_iteration[-1] == fitted["mean_squared_distance"]


def test_from_the_same_start_it_takes_the_steps_of_scikit_learn() -> None:
    from sklearn.cluster import KMeans

    features = crowded(2000)
    frames = held(features, 256)
    snap_to_grid(frames)
    start = features[:20].clone()
    found = _lloyd(frames, _squares(frames), start, 7, 0.0, lambda *_: None)
    theirs = KMeans(20, init=start.numpy(), n_init=1, max_iter=7, tol=0.0, algorithm="lloyd").fit(features.numpy())
    np.testing.assert_allclose(found.centroids.numpy(), theirs.cluster_centers_, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    features = crowded()
    before = torch.get_num_threads()
    found = []
    for number in (1, threads):
        torch.set_num_threads(number)
        found.append(fit_lloyd_kmeans(held(features, 512), 30, 0))
        assert torch.get_num_threads() == number
    torch.set_num_threads(before)
    assert found[0].hash == found[1].hash and found[0].fitted == found[1].fitted
    assert found[0].hash != fit_lloyd_kmeans(held(features, 512), 30, 1).hash


def _process(rank: int, size: int, folder: Path, holes: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size)
    torch.set_num_threads(1 + rank % 2)
    features = crowded()
    filled = torch.arange(len(features)) % 700 > 9 if holes else None
    frames = held(features, 512, filled, Ranks.current())
    norm = standardise(frames)
    book = fit_lloyd_kmeans(frames, 30, 0, n_init=2)
    torch.save([norm, book.centroids, book.fitted], folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("holes", [False, True])
def test_two_and_three_processes_give_the_codebook_of_one_bit_for_bit(tmp_path: Path, holes: bool) -> None:
    features = crowded()
    filled = torch.arange(len(features)) % 700 > 9 if holes else None
    frames = held(features, 512, filled)
    norm = standardise(frames)
    alone = fit_lloyd_kmeans(frames, 30, 0, n_init=2)
    assert alone.fitted["frames"] == (len(features) if filled is None else int(filled.sum()))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openwavlm.labels.lloyd"])
    for size in (2, 3):
        folder = tmp_path / str(size)
        folder.mkdir()
        processes = [context.Process(target=_process, args=(rank, size, folder, holes)) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(HANG_S)
            assert process.exitcode == 0
        for rank in range(size):
            found = torch.load(folder / f"{rank}.pt", weights_only=True)
            assert torch.equal(found[0], norm) and torch.equal(found[1], alone.centroids)
            assert found[2] == alone.fitted


def test_more_processes_than_chunks_share_what_there_is() -> None:
    shares = [own_places(1000, 512, Ranks(rank, 5)) for rank in range(5)]
    assert [stop - first for first, stop in shares] == [0, 0, 512, 0, 488]
    assert shares[0][0] == 0 and shares[-1][1] == 1000


def test_an_empty_cluster_takes_the_farthest_frame() -> None:
    features = torch.cat([torch.randn(300, 2), torch.tensor([[50.0, 0.0], [0.0, 60.0]])])
    frames = held(features, 64)
    snap_to_grid(frames)
    far = torch.tensor([[0.0, 0.0], [1e4, 1e4], [1e4, 1e4]])
    found = _lloyd(frames, _squares(frames), far, 20, 1e-4, lambda *_: None)
    assert found.reseeded == 2 and found.counts.min() == 1
    assert {tuple(centroid.round().tolist()) for centroid in found.centroids} >= {(50.0, 0.0), (0.0, 60.0)}


def test_frames_that_are_all_equal_leave_clusters_empty_and_end() -> None:
    book = fit_lloyd_kmeans(held(torch.ones(100, 3), 64), 4, 0)
    assert book.fitted["used_clusters"] == 1 and book.fitted["mean_squared_distance"] == 0.0
    assert bool(book.centroids.isfinite().all())


def test_seeds_are_frames_and_far_apart_ones_are_all_found() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 100 * torch.randn(25, 8, generator=generator)
    features = (centres[:, None] + torch.randn(25, 40, 8, generator=generator)).reshape(-1, 8)
    seeds = greedy_seeds(features, 25, seed=0, start=0, device=CPU)
    distances = torch.cdist(seeds.double(), features.double())
    assert bool((distances.min(dim=1).values < 1e-3).all())
    assert len({int(frame) // 40 for frame in distances.argmin(dim=1)}) == 25
    assert not torch.equal(seeds, greedy_seeds(features, 25, seed=0, start=1, device=CPU))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(2, 400), st.floats(1e-6, 1e6))
def test_sums_of_frames_on_the_grid_are_exact_in_any_order(seed: int, frames: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(frames, 3, generator=generator) ** 3
    own = held(features, 64)
    snap_to_grid(own)
    order = torch.randperm(frames, generator=generator)
    sums = [torch.zeros(3, dtype=torch.float64) for _ in range(2)]
    for number in range(frames):
        sums[0] += own.features[number].double()
        sums[1] += own.features[order[number]].double()
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], own.features.double().sum(dim=0))
    largest = features.abs().amax(dim=0)
    assert bool(((own.features - features).abs() <= 2.0**-40 * largest).all()), "for 400 frames the grid is 2⁻⁴⁴ of the largest"


def test_standardised_chunks_have_the_mean_and_deviation_of_all_and_a_constant_dimension_is_only_centred() -> None:
    features = crowded() + 3
    features[:, 5] = 7
    mean, deviation = (of(features.double().numpy(), axis=0).astype(np.float32) for of in (np.mean, np.std))
    deviation[5] = 1
    frames = held(features, 512)
    np.testing.assert_array_equal(standardise(frames).numpy(), np.stack([mean, deviation]))
    np.testing.assert_array_equal(frames.features.numpy(), (features.numpy() - mean) / deviation)


def test_the_scores_of_a_chunk_stay_below_4_mib() -> None:
    for clusters in (1, 100, 500, 2000, 16_384):
        assert chunk_frames(clusters, CPU) * clusters <= 1 << 20
    assert [chunk_frames(clusters, CPU) for clusters in (100, 500, 2000, 65_536)] == [2048, 2048, 512, 64]
    assert chunk_frames(500, torch.device("cuda")) == 32_768


def test_wrong_numbers_and_features_are_refused() -> None:
    features = crowded(200)
    for wrong, message in (({"n_init": 0}, "at least 1"), ({"iterations": 0}, "at least 1"), ({"tolerance": -1.0}, "at least 0")):
        with pytest.raises(ValueError, match=message):
            fit_lloyd_kmeans(whole(features, 4), 4, 0, **wrong)
    with pytest.raises(ValueError, match="has 200 for 201"):
        fit_lloyd_kmeans(whole(features, 201), 201, 0)
    features[3, 3] = torch.inf
    with pytest.raises(ValueError, match="features must be finite"):
        fit_lloyd_kmeans(whole(features, 4), 4, 0)
    with pytest.raises(ValueError, match="mean that is not"):
        standardise(held(features, 64))
