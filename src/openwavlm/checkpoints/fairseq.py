"""Single files of Microsoft (`cfg`, `model`), fairseq and UniSpeech (`cfg` or `args`, `model`, …) and s3prl (`model_cfg`, …)."""

from collections.abc import Mapping
from typing import Any

from openwavlm.checkpoints.account import FINE_TUNED_HEAD, PREDICTION_HEAD, QUANTISER_HEADS, TRAINING_STATE, Loaded, fill
from openwavlm.checkpoints.fairseq_config import microsoft_config, read_fairseq_config
from openwavlm.checkpoints.names import fairseq_name, old_spelling, prefix_of
from openwavlm.checkpoints.values import check_tensors, saved
from openwavlm.model.wavlm import WavLM

_PREFIXES = ("w2v_encoder.w2v_model.", "w2v_model.", "encoder.w2v_model.")
_HEADS = dict.fromkeys(("final_proj", "label_embs_concat", "label_embs", "target_glu"), PREDICTION_HEAD) | QUANTISER_HEADS


def is_fairseq(content: Any) -> bool:
    """True if a file's content looks like one of these dialects."""
    return isinstance(content, dict) and ("model" in content or "model_weight" in content)


def load_fairseq(content: Mapping[str, Any], *, origin: str, normalise_waveform: bool | None = None) -> Loaded:
    """Builds the encoder of a file of one of these dialects, from the result of `pickles.read_pickle`.

    Raises:
        ValueError: If the configuration is missing, or the normalisation without `normalise_waveform`; as `read_fairseq_config` and
            `fill` do.
    """
    entry = "model_weight" if "model_weight" in content else "model"
    state = content[entry]
    check_tensors(state or None, f"{entry} in {origin}")
    dialect, keys, normalise = _configuration(content, origin)
    normalise = normalise if normalise_waveform is None else normalise_waveform
    if not isinstance(normalise, int | float) or normalise not in (0, 1):
        raise ValueError(
            f"normalize must be true or false in the task's configuration, but {origin} lacks it (normalize); pass normalise_waveform: "
            "false for Base models, true for Large ones"
        )
    config, gated = read_fairseq_config(keys, normalise_waveform=bool(normalise), origin=origin)
    prefix = prefix_of(state, _PREFIXES)
    others = {str(name): TRAINING_STATE for name in content if name not in (entry, "cfg", "args", "task_cfg", "model_cfg")}

    def reason_of(name: str) -> str | None:
        if prefix and not name.startswith(prefix):
            return FINE_TUNED_HEAD
        return _HEADS.get(name.removeprefix(prefix).split(".")[0])

    return fill(
        config,
        state,
        dialect=dialect,
        origin=origin,
        name_of=lambda name: fairseq_name(name, extractor_norm=config.extractor_norm),
        reason_of=reason_of,
        prefix=prefix,
        gated=gated,
        others=others,
    )


def microsoft_bytes(model: WavLM) -> bytes:
    """Bytes of a file like Microsoft's releases: `cfg`, a dict, and `model`, float32; equal models give equal bytes.

    Their code loads it: `WavLM(WavLMConfig(content["cfg"])).load_state_dict(content["model"])`. A model without a waveform extractor is
    a ValueError.
    """
    config = microsoft_config(model.config)
    norm = model.config.extractor_norm
    state = {
        old_spelling(fairseq_name(name, extractor_norm=norm)): tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    return saved({"cfg": config, "model": state})


def _configuration(content: Mapping[str, Any], origin: str) -> tuple[str, dict[str, Any], Any]:
    """Dialect of a file, the model's keys, and the value of `normalize`, None if unknown."""
    if "model_weight" in content:
        keys, task = content.get("model_cfg"), content.get("task_cfg")
        dialect = "s3prl's conversion of fairseq"
    else:
        configuration = next(
            (content[name] for name in ("cfg", "args") if isinstance(content.get(name), dict) and content[name]), None
        )
        nested = isinstance(configuration, dict) and isinstance(configuration.get("model"), dict)
        keys = configuration["model"] if nested else configuration  # type: ignore[index]
        task = configuration.get("task") if nested else configuration  # type: ignore[union-attr]
        dialect = "fairseq" if nested or isinstance(content.get("args"), dict) else "Microsoft"
    # The configuration of a fine-tuned model contains that of its pre-trained one.
    if isinstance(keys, dict) and isinstance(keys.get("w2v_args"), dict) and keys["w2v_args"]:
        inner = keys["w2v_args"]
        keys = inner["model"] if isinstance(inner.get("model"), dict) else inner
        task = (inner.get("task") or task) if isinstance(inner.get("task"), dict) else inner
        dialect += ", fine-tuned"
    if not isinstance(keys, dict):
        raise ValueError(
            f"a single file must hold the model's configuration beside its weights, but {origin} has none (cfg, args or model_cfg)"
        )
    if dialect != "Microsoft" and "encoder_layers" not in keys:
        # fairseq writes all keys; without this one the configuration is another model's, and defaults would be guesses.
        raise ValueError(
            f"a fairseq file must describe its encoder (encoder_layers, …), but {origin} does not; of a fine-tuned model give a file "
            "with w2v_args, or the pre-trained one"
        )
    # Microsoft's class defaults to false; fairseq's tasks always write the key.
    normalise = task.get("normalize", False if dialect == "Microsoft" else None) if isinstance(task, dict) else None
    return dialect, keys, normalise
