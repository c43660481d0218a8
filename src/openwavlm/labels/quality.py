"""Quality of labels: baselines without audio, usage of clusters, mutual information with phones (SPEC §4.5)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Rounding leaves a single phone an entropy of 1e-16, by which no mutual information may be divided.
_NO_ENTROPY = 1e-12


def unigram(counts: np.ndarray, reference: np.ndarray | None = None) -> tuple[float, float]:
    """Cross-entropy (nats) and accuracy of the unigram baseline, which predicts labels by their frequency.

    Args:
        counts: (classes,) frames of each label in evaluation.
        reference: (classes,) counts in training, to each of which one is added; None: `counts`, unchanged.

    Raises:
        ValueError: If there are no frames.
    """
    judged = np.asarray(counts, dtype=np.float64)
    if judged.sum() <= 0:
        raise ValueError("a unigram needs at least one labelled frame, but all counts are zero")
    learnt = judged if reference is None else np.asarray(reference, dtype=np.float64) + 1
    share = judged / judged.sum()
    seen = share > 0
    cross_entropy = -float(np.sum(share[seen] * np.log(learnt[seen] / learnt.sum())))
    return cross_entropy, float(share[int(np.argmax(learnt))])


def perplexity(counts: np.ndarray) -> float:
    """Number of evenly used clusters with the entropy of `counts` (classes,); 0 without frames."""
    return float(np.exp(unigram(counts)[0])) if np.sum(counts) > 0 else 0.0


def used_clusters(counts: np.ndarray) -> int:
    """Number of clusters with at least one frame."""
    return int(np.count_nonzero(counts))


def repeat_nearest(labels: Tensor, mask: Tensor) -> Tensor:
    """Baseline without audio: int64 (batch, frames), the label of the nearest unmasked, labelled frame.

    Of two equally near frames the left one counts; rows without one have −1.

    Args:
        labels: integers (batch, frames), −1 where there is none.
        mask: bool (batch, frames), True = masked.
    """
    frames = labels.shape[1]
    position = torch.arange(frames, device=labels.device).expand_as(labels)
    known = ~mask & (labels >= 0)
    far = 2 * frames + 1
    left = torch.where(known, position, -far).cummax(dim=1).values
    right = torch.where(known, position, far).flip(1).cummin(dim=1).values.flip(1)
    nearest = torch.where(position - left <= right - position, left, right)
    guess = labels.long().gather(1, nearest.clamp(0, max(frames - 1, 0)))
    return torch.where(known.any(dim=1, keepdim=True), guess, -1)


def joint_histogram(phones: np.ndarray, labels: np.ndarray, *, num_phones: int, num_classes: int) -> np.ndarray:
    """Counts of frames by phone and cluster, without frames where either is negative: int64 (phones, classes)."""
    both = (np.asarray(phones) >= 0) & (np.asarray(labels) >= 0)
    flat = np.asarray(phones)[both].astype(np.int64) * num_classes + np.asarray(labels)[both].astype(np.int64)
    return np.bincount(flat, minlength=num_phones * num_classes).reshape(num_phones, num_classes)


def _entropy(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return -float(np.sum(positive * np.log(positive)))


def pnmi(joint: np.ndarray) -> float:
    """Mutual information of phone and cluster over the entropy of the phone (HuBERT §IV-C) from (phones, classes) counts."""
    share = np.asarray(joint, dtype=np.float64) / np.sum(joint)
    phone_entropy = _entropy(share.sum(axis=1))
    information = phone_entropy + _entropy(share.sum(axis=0)) - _entropy(share.ravel())
    return max(information, 0.0) / phone_entropy if phone_entropy > _NO_ENTROPY else 0.0


def shuffled_joint(joint: np.ndarray, seed: int) -> np.ndarray:
    """Histogram of shuffled labels: drawn with both margins fixed, the distribution under a random permutation."""
    generator = np.random.default_rng(seed)
    left = np.asarray(joint, dtype=np.int64).sum(axis=0)
    rows = []
    for size in np.asarray(joint, dtype=np.int64).sum(axis=1):
        rows.append(generator.multivariate_hypergeometric(left, size, method="marginals"))
        left = left - rows[-1]
    return np.stack(rows)


@dataclass(frozen=True)
class PhoneQuality:
    """Agreement of clusters and phones.

    Attributes:
        frames: Counted frames N.
        classes: Clusters K with at least one frame.
        phones: Phones P with at least one frame.
        phone_purity: Share of frames whose phone is the most frequent one of their cluster.
        cluster_purity: Share of frames whose cluster is the most frequent one of their phone.
        pnmi: Phone-normalised mutual information, as published: biased upwards on few frames.
        pnmi_shuffled: PNMI of shuffled labels, mean of several shuffles.
        pnmi_expected_bias: Theoretical PNMI of shuffled labels, (K − 1)(P − 1) / (2 N H(phone)).
        pnmi_corrected: `pnmi` less `pnmi_shuffled`; the figure to compare.
    """

    frames: int
    classes: int
    phones: int
    phone_purity: float
    cluster_purity: float
    pnmi: float
    pnmi_shuffled: float
    pnmi_expected_bias: float
    pnmi_corrected: float


def phone_quality(joint: np.ndarray, *, seed: int = 0, shuffles: int = 5) -> PhoneQuality:
    """Measures clusters against phones by (phones, classes) frames; the correction is the mean of some shuffles.

    Raises:
        ValueError: If the histogram is empty.
    """
    counts = np.asarray(joint, dtype=np.int64)
    frames = int(counts.sum())
    if frames == 0:
        raise ValueError("label quality needs frames that have both a phone and a label, but there is none: check the alignment")
    phones, classes = int((counts.sum(axis=1) > 0).sum()), int((counts.sum(axis=0) > 0).sum())
    phone_entropy = _entropy(counts.sum(axis=1) / frames)
    measured = pnmi(counts)
    shuffled = float(np.mean([pnmi(shuffled_joint(counts, seed + shuffle)) for shuffle in range(shuffles)]))
    bias = (classes - 1) * (phones - 1) / (2 * frames * phone_entropy) if phone_entropy > _NO_ENTROPY else 0.0
    return PhoneQuality(
        frames=frames,
        classes=classes,
        phones=phones,
        phone_purity=float(counts.max(axis=0).sum() / frames),
        cluster_purity=float(counts.max(axis=1).sum() / frames),
        pnmi=measured,
        pnmi_shuffled=shuffled,
        pnmi_expected_bias=bias,
        pnmi_corrected=measured - shuffled,
    )
