"""Our configuration ↔ Hugging Face's `config.json` and `preprocessor_config.json`."""

from collections.abc import Mapping
from typing import Any

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.checkpoints.values import built, check_conv_front_end, read_fields, shown
from openwavlm.model.config import WavLMConfig

# Our field → Hugging Face's key and the class's default (transformers 5.23).
_KEYS: dict[str, tuple[str, Any]] = {
    "conv_dims": ("conv_dim", (512, 512, 512, 512, 512, 512, 512)),
    "conv_kernels": ("conv_kernel", (10, 3, 3, 3, 3, 2, 2)),
    "conv_strides": ("conv_stride", (5, 2, 2, 2, 2, 2, 2)),
    "conv_bias": ("conv_bias", False),
    "extractor_norm": ("feat_extract_norm", "group"),
    "dim": ("hidden_size", 768),
    "ffn_dim": ("intermediate_size", 3072),
    "heads": ("num_attention_heads", 12),
    "layers": ("num_hidden_layers", 12),
    "pre_norm": ("do_stable_layer_norm", False),
    "positional_kernel": ("num_conv_pos_embeddings", 128),
    "positional_groups": ("num_conv_pos_embedding_groups", 16),
    "num_buckets": ("num_buckets", 320),
    "max_distance": ("max_bucket_distance", 800),
    "dropout": ("hidden_dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.1),
    "input_dropout": ("feat_proj_dropout", 0.0),
    "layer_drop": ("layerdrop", 0.1),
}
KINDS = ("wavlm", "hubert", "wav2vec2")
# Values that this encoder always has, which are the classes' defaults too.
_FIXED = {"hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": 1e-5, "add_adapter": False}
# The same, in other classes than WavLM's.
_FIXED_ELSEWHERE = {"adapter_attn_dim": None, "conv_pos_batch_norm": False, "feat_proj_layer_norm": True}


def huggingface_config(config: WavLMConfig) -> dict[str, Any]:
    """Content of `config.json`: every value explicit, since the class's defaults are not those of the published models."""
    check_conv_front_end(config, "Hugging Face's")
    content: dict[str, Any] = {"architectures": ["WavLMModel"], "model_type": "wavlm"} | _FIXED
    for field, (key, _) in _KEYS.items():
        value = getattr(config, field)
        content[key] = list(value) if isinstance(value, tuple) else value
    content |= {
        "num_feat_extract_layers": len(config.conv_dims),
        "output_hidden_size": config.dim,
        "initializer_range": 0.02,
        "vocab_size": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # Fine-tuning's masking. Without mask_time_prob > 0 the class has no mask embedding to load; without
        # mask_feature_min_masks, which it does not define, mask_feature_prob > 0 fails in training (transformers 5.23).
        "apply_spec_augment": True,
        "mask_time_prob": 0.05,
        "mask_time_length": 10,
        "mask_time_min_masks": 2,
        "mask_feature_prob": 0.0,
        "mask_feature_length": 10,
        "mask_feature_min_masks": 0,
        "final_dropout": 0.1,
        "ctc_loss_reduction": "mean",
        "ctc_zero_infinity": False,
        "use_weighted_layer_sum": False,
        "classifier_proj_size": 256,
        "tdnn_dim": [512, 512, 512, 512, 1500],
        "tdnn_kernel": [5, 3, 3, 1, 1],
        "tdnn_dilation": [1, 2, 3, 1, 1],
        "xvector_output_dim": 512,
    }
    return content


def preprocessor_config(config: WavLMConfig) -> dict[str, Any]:
    """Content of `preprocessor_config.json`."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE_HZ,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": config.normalise_waveform,
        # As in the published files: Base models, with a group norm over padding, were trained without a mask, Large ones with it.
        "return_attention_mask": config.extractor_norm == "layer",
    }


def read_config(content: Mapping[str, Any], *, normalise_waveform: bool, origin: str) -> WavLMConfig:
    """Our configuration from the content of a `config.json`; keys of heads, masking and older models are ignored.

    Raises:
        ValueError: If the file describes another model, or numbers that `WavLMConfig` refuses.
    """
    kind = content.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"model_type must be one of {', '.join(KINDS)}, but is {shown(kind)} in {origin}")
    allowed = {key: (value,) for key, value in (_FIXED | _FIXED_ELSEWHERE).items()}
    return built(read_fields(content, _KEYS, allowed, origin) | {"normalise_waveform": normalise_waveform}, origin)
