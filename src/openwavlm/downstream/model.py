"""Encoder and head of a task, and which of their parameters are trained."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from openwavlm.audio.frames import num_frames
from openwavlm.downstream.config import FinetuneConfig
from openwavlm.downstream.settings import Trained


class TaskOutput(NamedTuple):
    """Output of one forward pass."""

    logits: Tensor  # float32 (batch, frames, symbols), or (batch, classes)
    frames: Tensor  # int64 (batch,), valid frames
    features: Tensor  # (batch, channels, frames), the extractor's output


class CtcHead(nn.Module):
    """Dropout and a linear map of each frame (`lm_head` of Transformers' WavLMForCTC)."""

    def __init__(self, dim: int, symbols: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.lm_head = nn.Linear(dim, symbols)

    def forward(self, states: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Maps (batch, frames, dim) to float32 (batch, frames, symbols)."""
        return self.lm_head(self.dropout(states)).float()


class ClassHead(nn.Module):
    """Projection, mean over valid frames, linear map (`projector`, `classifier` of Transformers' WavLMForSequenceClassification)."""

    def __init__(self, dim: int, projection: int, classes: int) -> None:
        super().__init__()
        self.projector = nn.Linear(dim, projection)
        self.classifier = nn.Linear(projection, classes)

    def forward(self, states: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Maps (batch, frames, dim) to float32 (batch, classes)."""
        projected = self.projector(states)
        if padding_mask is None:
            return self.classifier(projected.mean(1)).float()
        valid = ~padding_mask.unsqueeze(-1)
        pooled = torch.where(valid, projected, 0).sum(1) / valid.sum(1).clamp(min=1)
        return self.classifier(pooled).float()


class TaskModel(nn.Module):
    """An encoder, a weighted sum of its layers if asked for, and the head of a task.

    The layers are those of Transformers' heads (version 5) and of s3prl: the encoder's input and each layer's output, the last one too
    before the closing norm. A head without the sum reads the last layer after that norm.

    Args:
        wavlm: The encoder, or a control in its place.
        head: The head.
        weighted: Whether the head reads the weighted sum; the weights pass through a softmax and begin equal.
        evaluates: Whether the encoder stays in eval mode while the head is trained.
    """

    def __init__(self, wavlm: Any, head: CtcHead | ClassHead, *, weighted: bool, evaluates: bool = False) -> None:
        super().__init__()
        self.wavlm, self.head, self.evaluates = wavlm, head, evaluates
        layers = wavlm.config.layers + 1
        self.layer_weights = nn.Parameter(torch.full((layers,), 1 / layers)) if weighted and layers > 1 else None

    def train(self, mode: bool = True) -> "TaskModel":  # noqa: FBT001, FBT002 (torch's signature)
        """Sets the mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.evaluates:
            self.wavlm.eval()
        return self

    def forward(
        self,
        waveforms: Tensor,
        num_samples: Tensor,
        *,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layer_keep: Tensor | None = None,
        frozen: bool = False,
    ) -> TaskOutput:
        """Runs encoder and head.

        Args:
            waveforms: float (batch, samples), normalised if the encoder's config asks for it.
            num_samples: int64 (batch,), valid samples.
            mask, channel_mask, layer_keep: As of `WavLM.forward`.
            frozen: Whether the encoder runs without gradients.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            encoded = self.wavlm(waveforms, num_samples, mask=mask, channel_mask=channel_mask, layer_keep=layer_keep)
        states = encoded.final
        if self.layer_weights is not None:
            layers = torch.stack(encoded.hidden_states)
            states = (self.layer_weights.softmax(0)[:, None, None, None] * layers).sum(0)
        return TaskOutput(self.head(states, encoded.padding_mask), num_frames(num_samples), encoded.features)


def make_task_model(config: FinetuneConfig, encoder: Any, num_outputs: int) -> TaskModel:
    """The model of a fine-tuning around its encoder; draws the head's weights, and adapters, from torch's generator."""
    dim = encoder.config.dim
    head: CtcHead | ClassHead
    if config.task.of_sequences:
        head = CtcHead(dim, num_outputs, dropout=config.task.dropout)
    else:
        head = ClassHead(dim, config.task.projection, num_outputs)
    frozen = config.trained.encoder == "frozen" or config.of_spectra
    model = TaskModel(encoder, head, weighted=config.weighted_sum, evaluates=frozen)
    if not config.of_spectra:
        choose_trained(encoder, config.trained)
    return model


def choose_trained(encoder: Any, trained: Trained) -> None:
    """Marks the encoder's parameters that are trained, and adds adapters."""
    encoder.requires_grad_(trained.encoder == "full")
    if not trained.extractor:
        encoder.extractor.requires_grad_(requires_grad=False)
    if trained.encoder == "top":
        layers = encoder.encoder.layers
        if trained.top_layers > len(layers):
            raise ValueError(
                f"trained.top_layers must be at most the encoder's {len(layers)} layers, but is {trained.top_layers}: lower it"
            )
        for layer in layers[len(layers) - trained.top_layers :]:
            layer.requires_grad_()
    elif trained.encoder == "lora":
        for layer in encoder.encoder.layers:
            for linear in (layer.attention.query, layer.attention.key, layer.attention.value, layer.attention.output):
                rows, columns = linear.weight.shape
                parametrize.register_parametrization(linear, "weight", LowRank(rows, columns, trained.lora_rank))


class LowRank(nn.Module):
    """Adds a product of two narrow matrices to a weight (LoRA, Hu et al. 2021); it begins as zero."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Maps a weight (rows, columns) to the adapted one."""
        return weight + self.up @ self.down


def merge_adapters(encoder: nn.Module) -> None:
    """Writes the adapted weights in place of weights and adapters, so that the encoder has its usual parameters."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
