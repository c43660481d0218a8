"""Masked cross-entropy of a trained run by speaker, so that two runs on the same labels can be compared voice by voice."""

import numpy as np
import torch
import torch.nn.functional as F

from openwavlm.batches.sources import OpenData
from openwavlm.evaluation.paired import Sums
from openwavlm.model.losses import cosine_logits
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.pipeline.masked import whole_set
from openwavlm.training.build import make_builder
from openwavlm.training.config import RunConfig
from openwavlm.training.forward import prepare_waveforms


@torch.no_grad()
def masked_by_speaker(model: WavLMForPretraining, config: RunConfig, opened: OpenData, *, test: str) -> Sums:
    """Sums of the cross-entropy over the masked frames of each speaker of a validation set; the masks are the same for every run.

    Args:
        model: Encoder and head, in eval mode, on the CPU.
        config: The run's.
        opened: The run's data.
        test: Name of the set.
    """
    index, seed = opened.indexes[test], opened.data.split_seed
    builder = make_builder(config, opened, training=False)
    nats, frames = np.zeros(len(index.speakers)), np.zeros(len(index.speakers))
    for spec in whole_set(opened, test, seed):
        batch = builder[spec]
        waveforms = prepare_waveforms(batch, None, normalised=model.wavlm.config.normalise_waveform)
        encoded = model.wavlm(waveforms, batch.num_samples, mask=batch.mask).final.flatten(0, 1)
        projected = model.final_proj(encoded.index_select(0, batch.masked_index))
        logits = cosine_logits(projected, model.label_embeddings, model.logit_temperature)
        labels = batch.labels[0].flatten().to(torch.int64).index_select(0, batch.masked_index) + model.special_rows
        losses = F.cross_entropy(logits, labels, reduction="none").double().numpy()
        rows = batch.rows.numpy()[batch.masked_index.numpy() // batch.mask.shape[1]]
        speakers = index.speaker[rows]
        nats += np.bincount(speakers, weights=losses, minlength=len(nats))
        frames += np.bincount(speakers, minlength=len(frames))
    heard = np.flatnonzero(frames)
    return Sums(tuple(index.speakers[speaker] for speaker in heard.tolist()), nats[heard], frames[heard])
