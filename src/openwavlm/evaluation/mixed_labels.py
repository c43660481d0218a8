"""Pseudo-labels of the first speaker predicted in mixtures by the pre-training head: cross-entropy and accuracy."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.settings import SpanMasking
from openwavlm.evaluation.mix_sets import Mixtures, share_of
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance
from openwavlm.labels.store import LabelStore
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import normalise
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader

VERSION = 2  # of the figures
_SUMS = ("nats", "correct", "frames", "masked_nats", "masked_frames")


def labelled_set(shards: Path, labels: Path) -> ProbeSet:
    """Utterances of a shard set with a pseudo-label in place of the phone of each frame; rows without a frame are left out.

    Raises:
        ValueError: If the labels are not those of the shards' audio, a file is damaged, or no row has a label.
    """
    index = Index.open(shards)
    store, reader = LabelStore.open(labels, index), ShardReader(index)
    utterances = []
    for row in range(len(index)):
        if (frames := num_frames(int(index.num_samples[row]))) == 0:
            continue
        found = store.read(row).astype(np.int64)
        own = found if len(found) else np.full(frames, -1)
        name = index.keys[row]
        utterances.append(ProbeUtterance(partial(reader.read, row), own, index.speakers[int(index.speaker[row])] or name, name))
    if not any((utterance.phones >= 0).any() for utterance in utterances):
        raise ValueError(f"no row of {shards} has a label in {labels}: label it with assign_labels.py")
    return ProbeSet(tuple(utterances), tuple(map(str, range(store.num_classes)))).readable()


@torch.no_grad()
def mixed_label_figures(
    model: WavLMForPretraining, mixtures: Mixtures, masking: SpanMasking, label_counts: np.ndarray, *, mask_seed: int = 0
) -> dict[str, Any]:
    """Predicts the first speaker's labels in mixtures, under the first head.

    One pass without a mask judges all frames with an audible second speaker. A second pass masks spans as training does and judges the
    masked frames of the whole utterance. Utterances are run one by one and whole.

    Args:
        model: Encoder and head, in eval mode.
        mixtures: Of a `labelled_set`.
        masking: Masks of the second pass.
        label_counts: int64 (classes,), counts of the training labels, for the unigram.
        mask_seed: Seed of those masks; keep it when models are compared.

    Returns:
        For JSON: `overlapped` (`cross_entropy` in nats, `accuracy`, `frames`, and `unigram` with the first two) and `masked`
        (`cross_entropy`, `frames`), each with `pseudo_values` (as `Mixtures.pseudo_values`) of its figures for paired differences.

    Raises:
        ValueError: If no frame has a label and an audible second speaker, or none is masked.
    """
    sums = np.zeros((len(_SUMS), len(mixtures.mixed)))
    truth = []
    for number, utterance in enumerate(mixtures.mixed.utterances):
        labels = torch.from_numpy(utterance.phones.astype(np.int64))
        overlapped = (labels >= 0) & torch.from_numpy(mixtures.overlapped[number])
        mask = draw_span_mask(masking, np.array([utterance.frames]), mask_seed, source=0, epoch=0, micro=number)
        spans = torch.from_numpy(mask)
        masked = (labels >= 0) & spans[0]
        unmasked_sums = _predicted(model, utterance.waveform(), labels, overlapped, None)
        masked_sum, _ = _predicted(model, utterance.waveform(), labels, masked, spans)
        sums[:, number] = *unmasked_sums, int(overlapped.sum()), masked_sum, int(masked.sum())
        truth.append(labels[overlapped].numpy())
    total = dict(zip(_SUMS, sums.sum(axis=1).tolist(), strict=True))
    if not (total["frames"] and total["masked_frames"]):
        raise ValueError(
            f"mixtures need labelled frames with an audible second speaker and masked ones, but have {total['frames']:.0f} and "
            f"{total['masked_frames']:.0f}: add utterances"
        )
    log_prob = np.log((label_counts + 1.0) / (label_counts + 1.0).sum())
    labels_of_all = np.concatenate(truth)
    nats, correct, frames, masked_nats, masked_frames = sums
    return {
        "overlapped": {
            "cross_entropy": total["nats"] / total["frames"],
            "accuracy": total["correct"] / total["frames"],
            "frames": int(total["frames"]),
            "unigram": {
                "cross_entropy": float(-log_prob[labels_of_all].mean()),
                "accuracy": float((labels_of_all == label_counts.argmax()).mean()),
            },
            "pseudo_values": mixtures.pseudo_values(cross_entropy=share_of(nats, frames), accuracy=share_of(correct, frames)),
        },
        "masked": {
            "cross_entropy": total["masked_nats"] / total["masked_frames"],
            "frames": int(total["masked_frames"]),
            "pseudo_values": mixtures.pseudo_values(cross_entropy=share_of(masked_nats, masked_frames)),
        },
    }


def _predicted(
    model: WavLMForPretraining, waveform: np.ndarray, labels: torch.Tensor, judged: torch.Tensor, mask: torch.Tensor | None
) -> tuple[float, int]:
    """Summed cross-entropy, and correct frames, of the `judged` frames, bool (frames,), of one utterance, int16 (samples,)."""
    if not judged.any():
        return 0.0, 0
    audio = torch.from_numpy(waveform).float()[None] / 32768
    if model.wavlm.config.normalise_waveform:
        audio = normalise(audio)
    output = model(
        audio,
        None,
        mask=mask,
        masked_index=judged.nonzero()[:, 0],
        masked_labels=[labels[judged]] * len(model.heads()),
        with_frames=True,
    )
    assert output.frame_cross_entropies is not None
    return float(output.frame_cross_entropies.double().sum()), int(output.sets[0].num_correct)
