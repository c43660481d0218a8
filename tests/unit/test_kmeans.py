"""Codebooks: fitting, assignment, and the folder that they live in."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.labels.fit import affordable_clusters
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.minibatch import fit_minibatch_kmeans
from openwavlm.runtime.sealed import sealed


def blobs(frames: int = 4000, clusters: int = 4, dim: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    centres = 20 * generator.standard_normal((clusters, dim))
    owner = generator.integers(clusters, size=frames)
    return (centres[owner] + generator.standard_normal((frames, dim))).astype(np.float32), owner, centres


def test_separate_blobs_are_found() -> None:
    features, owner, centres = blobs()
    codebook = fit_minibatch_kmeans(features, clusters=4, seed=0)
    labels = codebook.assign(features)
    pairs = set(zip(labels.tolist(), owner.tolist(), strict=True))
    assert len(pairs) == 4
    for label, blob in pairs:
        np.testing.assert_allclose(codebook.centroids[label].numpy(), centres[blob], atol=0.25)
    assert codebook.fitted["used_clusters"] == 4
    assert 3.5 < codebook.fitted["perplexity"] <= 4
    # Unit variance in each of five dimensions.
    assert 4.7 < codebook.fitted["mean_squared_distance"] < 5.3


def test_the_same_seed_gives_the_same_codebook_whatever_the_number_of_threads() -> None:
    features, _, _ = blobs(clusters=7)
    before = torch.get_num_threads()
    first = fit_minibatch_kmeans(features, clusters=7, seed=3)
    torch.set_num_threads(2)
    second = fit_minibatch_kmeans(features, clusters=7, seed=3)
    torch.set_num_threads(before)
    assert first.hash == second.hash
    assert first.fitted == second.fitted
    assert first.hash != fit_minibatch_kmeans(features, clusters=7, seed=4).hash


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_frames_that_are_not_finite_get_no_label(value: float) -> None:
    codebook = Codebook(torch.eye(3))
    features = np.ones((10, 3), dtype=np.float32)
    features[[4, 7], 1] = value
    with pytest.raises(ValueError, match=r"features must be finite, but 2 of 10 frames are not, the first is frame 4: look at"):
        codebook.assign(features)


def test_assignment_is_the_nearest_centroid_of_a_brute_force_search() -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((70_000, 6)).astype(np.float32)
    codebook = Codebook(torch.from_numpy(generator.standard_normal((50, 6)).astype(np.float32)))
    distances = np.zeros((len(features), 50))
    for cluster, centroid in enumerate(codebook.centroids.double().numpy()):
        distances[:, cluster] = np.square(features.astype(np.float64) - centroid).sum(axis=1)
    labels = codebook.assign(features)
    assert labels.dtype == np.uint16
    chosen = distances[np.arange(len(features)), labels]
    assert (chosen <= distances.min(axis=1) + 1e-4).all()
    assert (labels == distances.argmin(axis=1)).mean() > 0.9999


def test_of_equally_near_centroids_the_lowest_number_wins() -> None:
    centroids = torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    codebook = Codebook(centroids)
    assert codebook.assign(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 5.0]])).tolist() == [1, 1, 1]


def test_no_frames_have_no_labels() -> None:
    assert Codebook(torch.zeros(3, 2)).assign(torch.zeros(0, 2)).shape == (0,)


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(frames, 2\)"):
        Codebook(torch.zeros(3, 2)).assign(torch.zeros(4, 3))


def test_the_hash_is_of_values_and_shape() -> None:
    one, other = Codebook(torch.zeros(4, 3)), Codebook(torch.zeros(3, 4))
    assert one.hash == Codebook(torch.zeros(4, 3)).hash != other.hash
    assert one.hash != Codebook(torch.full((4, 3), 1e-9)).hash


def test_too_few_frames_lower_the_number_of_clusters_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert affordable_clusters(10_000, 10, 1000) == 10
        assert not caplog.text
        assert affordable_clusters(9_999, 10, 1000) == 9
    assert "9999 frames are 999.9 a cluster, but min_frames_per_cluster=1000: K is lowered from 10 to 9" in caplog.text
    assert affordable_clusters(9_999, 10, 500) == 10


def test_fewer_frames_than_one_cluster_needs_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"needs 1000 frames a cluster .*, but the sample has 999 in all: give more audio, or lower"
    ):
        affordable_clusters(999, 10, 1000)
    with pytest.raises(ValueError, match="must be positive, but are 0 and 5"):
        affordable_clusters(999, 0, 5)
    with pytest.raises(ValueError, match="has 4 for 5"):
        fit_minibatch_kmeans(blobs(frames=4)[0], clusters=5, seed=0)


def test_features_that_are_not_finite_are_refused() -> None:
    features, _, _ = blobs()
    features[17, 2] = np.nan
    with pytest.raises(ValueError, match="finite"):
        fit_minibatch_kmeans(features, clusters=4, seed=0)


def test_a_codebook_needs_one_to_65536_clusters_of_float32() -> None:
    with pytest.raises(ValueError, match="1 to 65536"):
        Codebook(torch.zeros(65_537, 1))
    with pytest.raises(ValueError, match="float32"):
        Codebook(torch.zeros(3, 1, dtype=torch.float64))


def test_a_saved_codebook_comes_back_whole(tmp_path: Path) -> None:
    codebook = Codebook(torch.randn(5, 3), {"name": "mfcc"}, {"frames": 7})
    codebook.save(tmp_path)
    found = Codebook.load(tmp_path)
    assert torch.equal(found.centroids, codebook.centroids)
    assert (found.hash, found.features, found.fitted) == (codebook.hash, {"name": "mfcc"}, {"frames": 7})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codebook.npy", "meta.json"]


def test_a_codebook_without_its_finished_mark_is_refused(tmp_path: Path) -> None:
    Codebook(torch.zeros(2, 2)).save(tmp_path)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(ValueError, match="finished mark"):
        Codebook.load(tmp_path)


def test_a_codebook_of_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    Codebook(torch.zeros(2, 2)).save(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(sealed(meta | {"format_version": 9})))
    with pytest.raises(ValueError, match=r"format_version 9.*reads up to 1: update OpenWavLM"):
        Codebook.load(tmp_path)


def test_a_value_that_changed_in_the_description_of_a_codebook_is_noticed_and_one_without_checksum_is_read(
    tmp_path: Path,
) -> None:
    Codebook(torch.zeros(2, 2), {"name": "layer", "layer": 9}).save(tmp_path)
    text = (tmp_path / "meta.json").read_text()
    (tmp_path / "meta.json").write_text(text.replace("9", "8", 1))
    with pytest.raises(ValueError, match=r"meta\.json is damaged \(its checksum differs\)"):
        Codebook.load(tmp_path)
    older = {key: value for key, value in json.loads(text).items() if key != "seal"}
    (tmp_path / "meta.json").write_text(json.dumps(older))
    assert Codebook.load(tmp_path).features == {"name": "layer", "layer": 9}


def test_an_exchanged_or_truncated_array_is_refused(tmp_path: Path) -> None:
    Codebook(torch.zeros(2, 2)).save(tmp_path)
    np.save(tmp_path / "codebook.npy", np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="must have the hash"):
        Codebook.load(tmp_path)
    (tmp_path / "codebook.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"codebook\.npy is damaged \(no array begins there\)"):
        Codebook.load(tmp_path)


def test_a_damaged_meta_file_is_refused(tmp_path: Path) -> None:
    Codebook(torch.zeros(2, 2)).save(tmp_path)
    (tmp_path / "meta.json").write_text('{"format_version": 1,')
    with pytest.raises(ValueError, match="is damaged"):
        Codebook.load(tmp_path)
