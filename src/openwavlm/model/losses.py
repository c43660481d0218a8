"""Masked-prediction loss and feature penalty (WavLM §III-A, HuBERT §II-B)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_logits(projected: Tensor, label_embeddings: Tensor, temperature: float) -> Tensor:
    """Cosine similarity of every projected frame with every label embedding, over the temperature.

    Always float32, under autocast too: bfloat16 rounds a logit between 8 and 16 by up to 0.03.
    A softmax over these logits equals fairseq's, which moves the positive to the front and masks its duplicate.

    Args:
        projected: (frames, dim).
        label_embeddings: (classes, dim).
        temperature: Divides the cosine; 0.1 in HuBERT and WavLM.

    Returns:
        float32 (frames, classes).
    """
    with torch.autocast(projected.device.type, enabled=False):
        directions = F.normalize(projected.float(), dim=-1, eps=1e-8)
        label_directions = F.normalize(label_embeddings.float(), dim=-1, eps=1e-8)
        return directions @ label_directions.T / temperature


def masked_prediction(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and correct predictions of a set of frames; without frames both are 0, and gradients are zero, not missing.

    Args:
        logits: (frames, classes).
        labels: Integers (frames,), each 0 … classes − 1.

    Returns:
        Sum of cross-entropies in nats, float32 (), and number of frames with the largest logit at their label, int64 ().
    """
    targets = labels.long()
    cross_entropy_sum = F.cross_entropy(logits.float(), targets, reduction="sum")
    return cross_entropy_sum, (logits.detach().argmax(-1) == targets).sum()


def feature_penalty(features: Tensor) -> Tensor:
    """Mean square of the convolutional features (after the gradient multiplier, padding included, as in fairseq); float32 ()."""
    return features.float().square().sum() / max(features.numel(), 1)
