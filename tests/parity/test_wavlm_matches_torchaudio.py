"""Hidden states equal torchaudio's WavLM on un-padded batches (it refuses a padding mask: torchaudio #3700)."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from random_models import TINY
from torch_audio import torchaudio as torchaudio_or_skip

torchaudio = torchaudio_or_skip(whole_file=True)


def reference_model(config: WavLMConfig):
    torch.manual_seed(0)
    model = torchaudio.models.wavlm_model(
        extractor_mode="group_norm" if config.extractor_norm == "group" else "layer_norm",
        extractor_conv_layer_config=list(zip(config.conv_dims, config.conv_kernels, config.conv_strides, strict=True)),
        extractor_conv_bias=config.conv_bias,
        encoder_embed_dim=config.dim,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=config.positional_kernel,
        encoder_pos_conv_groups=config.positional_groups,
        encoder_num_layers=config.layers,
        encoder_num_heads=config.heads,
        encoder_num_buckets=config.num_buckets,
        encoder_max_distance=config.max_distance,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=config.ffn_dim,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=config.pre_norm,
        encoder_layer_drop=0.0,
        aux_num_out=None,
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "rel_attn_embed" in name:
                parameter.copy_(noise)
            elif "gru_rel_pos" in name or parameter.dim() == 1:
                parameter.add_(0.2 * noise)
    return model


# torchaudio's name → ours, applied in this order.
RENAMED = (
    (r"^feature_extractor\.conv_layers\.(\d)\.layer_norm", r"extractor.layers.\1.norm"),
    (r"^feature_extractor\.conv_layers", "extractor.layers"),
    (r"^encoder\.feature_projection\.layer_norm", "feature_norm"),
    (r"^encoder\.feature_projection\.projection", "projection"),
    (r"^encoder\.transformer\.layer_norm", "encoder.norm"),
    (r"^encoder\.transformer\.pos_conv_embed", "encoder.positional"),
    (r"weight_g$", "parametrizations.weight.original0"),
    (r"weight_v$", "parametrizations.weight.original1"),
    (r".*rel_attn_embed", "encoder.relative_bias.embedding"),
    (r"^encoder\.transformer\.layers", "encoder.layers"),
    (r"(\d)\.layer_norm", r"\1.attention_norm"),
    (r"\.final_layer_norm", ".feed_forward_norm"),
    (r"attention\.attention\.out_proj", "attention.output"),
    (r"gru_rel_pos_linear", "gate"),
    (r"gru_rel_pos_const", "gate_scale"),
    (r"intermediate_dense", "expand"),
    (r"output_dense", "contract"),
)


def copy_weights(model: WavLM, reference) -> None:
    named: dict[str, Tensor] = {"mask_embedding": model.mask_embedding}
    for name, tensor in reference.state_dict().items():
        for pattern, ours in RENAMED:
            name = re.sub(pattern, ours, name)
        if "in_proj" in name:
            stem, kind = name.split("attention.in_proj_")
            named |= {
                f"{stem}{part}.{kind}": piece for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            }
        else:
            named[name] = tensor
    model.load_state_dict(named)


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, pre_norm=True, extractor_norm="layer"), replace(TINY, extractor_norm="layer", positional_kernel=31)],
    ids=["post-norm, group", "pre-norm, layer", "post-norm, layer, odd kernel"],
)
@torch.no_grad()
def test_every_layer_equals(config):
    reference = reference_model(config)
    model = WavLM(config).eval()
    copy_weights(model, reference)
    waveforms = 0.1 * torch.randn(2, 40_000, generator=torch.Generator().manual_seed(2)).cumsum(-1).sin()
    theirs, _ = reference.extract_features(waveforms)
    ours = model.extract(waveforms)[1:]
    assert len(theirs) == config.layers
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max() / b.square().mean().sqrt()) < 1e-5
    final, _ = reference(waveforms)
    assert float((model(waveforms).final - final).abs().max() / final.square().mean().sqrt()) < 1e-5
