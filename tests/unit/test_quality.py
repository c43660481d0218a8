"""Label quality against written-out references."""

import itertools

import numpy as np
import pytest
import torch

from openwavlm.labels.quality import (
    joint_histogram,
    perplexity,
    phone_quality,
    pnmi,
    repeat_nearest,
    shuffled_joint,
    unigram,
    used_clusters,
)


def reference_pnmi(joint: np.ndarray) -> tuple[float, float, float]:
    """Phone purity, cluster purity and PNMI with explicit loops (HuBERT §IV-C)."""
    total = joint.sum()
    information = entropy = 0.0
    for y in range(joint.shape[0]):
        share = joint[y].sum() / total
        entropy -= share * np.log(share) if share else 0.0
        for c in range(joint.shape[1]):
            if joint[y, c]:
                p = joint[y, c] / total
                information += p * np.log(p / (share * joint[:, c].sum() / total))
    phone = sum(joint[:, c].max() for c in range(joint.shape[1])) / total
    cluster = sum(joint[y].max() for y in range(joint.shape[0])) / total
    return phone, cluster, information / entropy


@pytest.mark.parametrize("seed", range(5))
def test_purities_and_pnmi_equal_the_reference(seed: int) -> None:
    joint = np.random.default_rng(seed).poisson(1.5, size=(7, 11))
    joint[2], joint[:, 3] = 0, 0
    quality = phone_quality(joint)
    phone, cluster, normalised = reference_pnmi(joint)
    assert quality.phone_purity == pytest.approx(phone, abs=1e-12)
    assert quality.cluster_purity == pytest.approx(cluster, abs=1e-12)
    assert quality.pnmi == pytest.approx(normalised, abs=1e-12)
    assert (quality.frames, quality.phones, quality.classes) == (joint.sum(), 6, 10)


def test_perfect_clusters_have_pnmi_one_and_constant_ones_zero() -> None:
    assert pnmi(np.diag([5, 9, 2])) == pytest.approx(1)
    assert pnmi(np.array([[5, 0], [9, 0], [2, 0]])) == pytest.approx(0)
    assert phone_quality(np.array([[4, 4]])).pnmi == 0


def test_labels_without_information_are_corrected_to_zero() -> None:
    generator = np.random.default_rng(0)
    phones, labels = generator.integers(40, size=100_000), generator.integers(100, size=100_000)
    quality = phone_quality(joint_histogram(phones, labels, num_phones=40, num_classes=100))
    assert quality.pnmi > 0.005
    assert abs(quality.pnmi_corrected) < 0.0005
    assert quality.pnmi_expected_bias == pytest.approx(quality.pnmi_shuffled, rel=0.05)


def test_shuffling_keeps_both_margins_and_equals_a_permutation_in_the_mean() -> None:
    generator = np.random.default_rng(1)
    joint = generator.poisson(3, size=(6, 9))
    shuffled = shuffled_joint(joint, seed=0)
    np.testing.assert_array_equal(shuffled.sum(axis=0), joint.sum(axis=0))
    np.testing.assert_array_equal(shuffled.sum(axis=1), joint.sum(axis=1))
    phones = np.repeat(np.arange(6), joint.sum(axis=1))
    labels = np.concatenate([np.repeat(np.arange(9), row) for row in joint])
    permuted = [pnmi(joint_histogram(phones, generator.permutation(labels), num_phones=6, num_classes=9)) for _ in range(400)]
    drawn = [pnmi(shuffled_joint(joint, seed)) for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(np.mean(permuted), rel=0.05)


def test_the_correction_of_a_few_frames_is_the_mean_over_their_shuffles() -> None:
    # Seven frames, whose 5,040 orders of labels can all be tried.
    phones, labels = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 1, 2, 0])
    joint = joint_histogram(phones, labels, num_phones=4, num_classes=3)
    orders = np.array(list(itertools.permutations(range(7))))
    every = np.array([reference_pnmi(joint_histogram(phones, labels[o], num_phones=4, num_classes=3))[2] for o in orders[::3]])
    drawn = np.array([reference_pnmi(shuffled_joint(joint, seed))[2] for seed in range(1000)])
    assert drawn.mean() == pytest.approx(every.mean(), abs=4 * every.std() / np.sqrt(1000))
    assert set(np.round(drawn, 9)) <= set(np.round(every, 9))
    measured = reference_pnmi(joint)[2]
    for settings, used in (({}, range(5)), ({"seed": 20, "shuffles": 3}, range(20, 23))):
        quality = phone_quality(joint, **settings)
        assert quality.pnmi == pytest.approx(measured)
        assert quality.pnmi_shuffled == pytest.approx(drawn[list(used)].mean())
        assert quality.pnmi_corrected == pytest.approx(measured - drawn[list(used)].mean())
        entropy = -sum(p * np.log(p) for p in (3 / 7, 2 / 7, 2 / 7))
        assert quality.pnmi_expected_bias == pytest.approx((3 - 1) * (3 - 1) / (2 * 7 * entropy))
    assert measured > 0.4 and every.mean() > 0.2, "on few frames most of it is chance"


def test_shuffles_of_different_seeds_differ() -> None:
    joint = np.random.default_rng(1).poisson(3, size=(6, 9))
    drawn = [shuffled_joint(joint, seed).tobytes() for seed in range(5)]
    assert len(set(drawn)) == 5 and drawn[0] == shuffled_joint(joint, 0).tobytes()


def test_frames_without_a_phone_or_a_label_are_not_counted() -> None:
    joint = joint_histogram(np.array([0, -1, 1, 1]), np.array([2, 0, -1, 0]), num_phones=2, num_classes=3)
    assert joint.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_an_empty_histogram_is_refused() -> None:
    with pytest.raises(ValueError, match="both a phone and a label"):
        phone_quality(np.zeros((3, 4), dtype=np.int64))


def test_the_unigram_is_the_entropy_and_the_share_of_the_most_frequent_label() -> None:
    entropy, accuracy = unigram(np.array([2, 1, 1, 0]))
    assert entropy == pytest.approx(1.5 * np.log(2))
    assert accuracy == 0.5


def test_a_unigram_learnt_elsewhere_costs_cross_entropy() -> None:
    cross_entropy, accuracy = unigram(np.array([2, 1, 1]), reference=np.array([0, 7, 0]))
    assert cross_entropy == pytest.approx(-(0.5 * np.log(0.1) + 0.25 * np.log(0.8) + 0.25 * np.log(0.1)))
    assert accuracy == 0.25
    assert cross_entropy > unigram(np.array([2, 1, 1]))[0]


def test_a_unigram_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one labelled frame"):
        unigram(np.zeros(4))


def test_usage_and_perplexity_of_even_clusters_are_their_number() -> None:
    counts = np.array([5, 0, 5, 5, 5])
    assert used_clusters(counts) == 4
    assert perplexity(counts) == pytest.approx(4)
    assert perplexity(np.zeros(3)) == 0


def test_repeat_nearest_on_a_case_by_hand() -> None:
    #                       0  1  2  3  4  5   6  7
    labels = torch.tensor([[7, 1, 2, 3, 4, 5, 6, -1], [1, 2, 3, 4, -1, -1, -1, -1], [1, 2, 3, 4, 5, 6, 7, 8]])
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[0, [0, 2, 3, 4, 6]] = True
    mask[1, [2, 3]] = True
    mask[2] = True
    guess = repeat_nearest(labels, mask)
    # Frame 3 of row 0 is two from frame 1 and two from frame 5: the left one wins.
    assert guess[0].tolist() == [1, 1, 1, 1, 5, 5, 5, 5]
    assert guess[1].tolist() == [1, 2, 2, 2, 2, 2, 2, 2]
    assert guess[2].tolist() == [-1] * 8


def test_repeat_nearest_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 20, (20, 57), generator=generator)
    mask = torch.rand(20, 57, generator=generator) < 0.7
    expected = torch.full_like(labels, -1)
    for row in range(20):
        known = [frame for frame in range(57) if not mask[row, frame] and labels[row, frame] >= 0]
        for frame in range(57):
            if known:
                expected[row, frame] = labels[row, min(known, key=lambda other: (abs(other - frame), other))]
    assert torch.equal(repeat_nearest(labels, mask), expected)
