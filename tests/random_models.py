"""Small models with random parameters that all matter, for comparisons with other libraries."""

from dataclasses import replace

import torch

from openwavlm.model.config import WavLMConfig

TINY = WavLMConfig(
    conv_dims=(32,) * 7,
    dim=64,
    ffn_dim=128,
    heads=4,
    layers=3,
    positional_kernel=16,
    positional_groups=4,
    num_buckets=32,
    max_distance=80,
)
TINY_LARGE = replace(TINY, pre_norm=True, extractor_norm="layer", normalise_waveform=True)
# In the names of ours, Hugging Face, torchaudio and fairseq.
_RELATIVE_BIAS = ("rel_attn_embed", "relative_bias", "relative_attention_bias")
_GATES = ("gru_rel_pos", ".gate", "grep_")
_WEIGHT_NORM = ("original", "weight_g", "weight_v")


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Biases, norms and gates away from 0 and 1, a relative bias as large as the logits, matrices of the size of their inputs.

    Returns:
        The model, in evaluation mode.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if any(part in name for part in _RELATIVE_BIAS):
                parameter.copy_(noise)
            elif parameter.dim() == 1 or any(part in name for part in _GATES):
                parameter.add_(0.2 * noise)
            elif not any(part in name for part in _WEIGHT_NORM):
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model.eval()
