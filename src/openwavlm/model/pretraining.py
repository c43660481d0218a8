"""WavLM with the head that predicts pseudo-labels of masked frames (WavLM §III-A; HuBERT §II-B, Eq. 3).

Where this differs from Microsoft's code: the logits are float32 throughout (there the cosine is rounded to the model's type),
and the four embeddings of fairseq's special symbols, which are never correct, exist only with `special_rows=4`.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openwavlm.model.config import Head
from openwavlm.model.losses import cosine_logits, feature_penalty, masked_prediction
from openwavlm.model.wavlm import WavLM


class SetFigures(NamedTuple):
    """Sums of one micro-batch over one label set, tensors of one element on the model's device."""

    cross_entropy_sum: Tensor  # float32, over the masked frames, in nats
    num_correct: Tensor  # int64, masked frames with the largest logit at their label
    unmasked_cross_entropy_sum: Tensor | None  # float32, over the unmasked frames; None without `unmasked_index`
    num_unmasked_correct: Tensor | None  # int64, likewise


class PretrainingOutput(NamedTuple):
    """Result of one micro-batch, on the model's device."""

    sets: tuple[SetFigures, ...]  # sums over the frames of each label set
    feature_penalty: Tensor  # float32 (), mean square of the convolutional features
    features: Tensor  # (batch, channels, frames), the extractor's output
    marginal: Tensor | None = None  # float32 (classes,), sums of the first head's probabilities; needs `with_marginal`
    frame_cross_entropies: Tensor | None = None  # float32 (masked,), under the first head; needs `with_frames`
    frame_correct: Tensor | None = None  # bool (masked,), largest logit at the label; likewise


class LabelHead(nn.Module):
    """Projection and label embeddings of a further label set, sized as the first one's (HuBERT's multi-target heads)."""

    def __init__(self, dim: int, final_dim: int, embeddings: int) -> None:
        super().__init__()
        self.label_embeddings = nn.Parameter(torch.empty(embeddings, final_dim))
        # Nothing is drawn here, so the first head of a run does not depend on the others.
        self.final_proj = nn.Linear(dim, final_dim, device="meta").to_empty(device=self.label_embeddings.device)


class WavLMForPretraining(nn.Module):
    """Encoder, projection of its masked frames, and one embedding per pseudo-label.

    Args:
        num_classes: Clusters of the codebook, ≥ 1, or of each codebook.

    Raises:
        ValueError: If a codebook has no cluster.
    """

    def __init__(self, wavlm: WavLM, head: Head, num_classes: int | Sequence[int]):
        super().__init__()
        classes = (num_classes,) if isinstance(num_classes, int) else tuple(num_classes)
        if min(classes) < 1:
            raise ValueError(f"num_classes must be at least 1, but is {min(classes)}")
        self.num_classes = classes[0]
        self.logit_temperature, self.special_rows, self.label_init = head.logit_temperature, head.special_rows, head.label_init
        self.wavlm = wavlm
        dim, final_dim = wavlm.config.dim, head.final_dim
        self.final_proj = nn.Linear(dim, final_dim)
        self.label_embeddings = nn.Parameter(torch.empty(head.special_rows + classes[0], final_dim))
        self.other_heads = nn.ModuleList(LabelHead(dim, final_dim, head.special_rows + size) for size in classes[1:])
        if not self.label_embeddings.is_meta:
            self.initialise_head()

    @torch.no_grad()
    def initialise_head(self) -> None:
        """Draws projection and label embeddings, on the CPU and from torch's generator, whatever the model's device."""
        for head in self.heads():
            fresh = nn.Linear(head.final_proj.in_features, head.final_proj.out_features, device="cpu")
            head.final_proj.load_state_dict(fresh.state_dict())
            labels = torch.empty(head.label_embeddings.shape, device="cpu")
            head.label_embeddings.copy_(labels.uniform_(0, 1) if self.label_init == "uniform" else labels.normal_(0, 1))

    def heads(self) -> list["WavLMForPretraining | LabelHead"]:
        """Modules with the `final_proj` and `label_embeddings` of each label set; for the first, the model itself."""
        return [self, *(head for head in self.other_heads if isinstance(head, LabelHead))]

    def forward(
        self,
        waveforms: Tensor,
        num_samples: Tensor | None,
        mask: Tensor | None,
        masked_index: Tensor,
        masked_labels: Sequence[Tensor],
        layer_keep: Tensor | None = None,
        unmasked_index: Tensor | None = None,
        unmasked_labels: Sequence[Tensor] = (),
        *,
        learn_unmasked: bool = False,
        with_marginal: bool = False,
        with_frames: bool = False,
    ) -> PretrainingOutput:
        """Predicts the pseudo-labels of the masked frames.

        Frames are chosen by index: the size of a boolean mask would need a synchronisation. Without a masked frame the loss is 0 and
        every parameter still gets a gradient, zero except for the feature penalty's.

        Args:
            waveforms: float (batch, samples), mixed, and normalised if `normalise_waveform` is set.
            num_samples: int64 (batch,), valid samples; None = all.
            mask: bool (batch, frames), True = replaced by the mask embedding.
            masked_index: int64 (masked,), flat positions batch · frames that enter the loss.
            masked_labels: For each label set integers (masked,), their pseudo-labels, 0 … num_classes − 1.
            layer_keep: bool (layers,), LayerDrop's draw.
            unmasked_index: int64 (unmasked,), flat positions of other frames, for the unmasked sums.
            unmasked_labels: For each label set integers (unmasked,), their pseudo-labels.
            learn_unmasked: Gives their cross-entropy a gradient.
            with_marginal: Also sums the predicted probabilities, without a gradient.
            with_frames: Also returns cross-entropy and correctness of each masked frame, without a gradient.
        """
        encoded = self.wavlm(waveforms, num_samples, mask=mask, layer_keep=layer_keep)
        frames = encoded.final.flatten(0, 1)
        marginal, by_frame, right, figures = None, None, None, list[SetFigures]()
        of_sets = zip_longest(masked_labels, unmasked_labels if unmasked_index is not None else ())
        for head, (of_masked, of_unmasked) in zip(self.heads(), of_sets, strict=True):
            logits = self._logits(head, frames, masked_index)
            cross_entropy_sum, num_correct = masked_prediction(logits, of_masked + self.special_rows)
            unmasked_cross_entropy_sum, num_unmasked_correct = None, None
            if unmasked_index is not None:
                with torch.set_grad_enabled(learn_unmasked and torch.is_grad_enabled()):
                    unmasked_cross_entropy_sum, num_unmasked_correct = masked_prediction(
                        self._logits(head, frames, unmasked_index), of_unmasked + self.special_rows
                    )
            if with_marginal and marginal is None:
                marginal = logits.detach().softmax(-1).sum(0)[self.special_rows :]
            if with_frames and by_frame is None:
                truth = (of_masked + self.special_rows).long()
                by_frame, right = F.cross_entropy(logits.detach(), truth, reduction="none"), logits.argmax(-1) == truth
            figures.append(SetFigures(cross_entropy_sum, num_correct, unmasked_cross_entropy_sum, num_unmasked_correct))
        return PretrainingOutput(tuple(figures), feature_penalty(encoded.features), encoded.features, marginal, by_frame, right)

    def _logits(self, head: "WavLMForPretraining | LabelHead", frames: Tensor, index: Tensor) -> Tensor:
        projected = head.final_proj(frames.index_select(0, index))
        return cosine_logits(projected, head.label_embeddings, self.logit_temperature)
