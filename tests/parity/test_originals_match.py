"""Microsoft's WavLM, fairseq's HuBERT and wav2vec 2.0 themselves, against what is read from and written for them: to 1e-5.

Compared are all hidden states of random models.
s3prl carries a copy of both (`make setup` installs it without what it depends on). Its modules are imported one by one, for the package
as a whole needs more.
"""

import importlib
import importlib.util
import sys
import types
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openwavlm.checkpoints.account import NO_GATED_BIAS, PREDICTION_HEAD, QUANTISER
from openwavlm.checkpoints.fairseq import microsoft_bytes
from openwavlm.checkpoints.load import load_checkpoint
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from random_models import TINY, TINY_LARGE, randomise

S3PRL = importlib.util.find_spec("s3prl")
pytestmark = pytest.mark.skipif(S3PRL is None, reason="s3prl, which has the original code, is not installed: make setup does it")

TOLERANCE = 1e-5
SHAPES = pytest.mark.parametrize(
    "config", [TINY, TINY_LARGE, replace(TINY_LARGE, conv_bias=True)], ids=["Base", "Large", "Large, conv bias"]
)


@pytest.fixture(scope="module")
def original():
    """Imports a module of s3prl's folder `upstream` without its packages' own code."""
    assert S3PRL is not None and S3PRL.submodule_search_locations
    upstream = Path(S3PRL.submodule_search_locations[0]) / "upstream"
    for part in ("", "wavlm", "hubert", "wav2vec2"):
        package = types.ModuleType(f"originals.{part}".rstrip("."))
        package.__path__ = [str(upstream / part)]
        sys.modules[package.__name__] = package
    yield lambda name: importlib.import_module(f"originals.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "originals"]:
        del sys.modules[name]


def waveforms(*, normalise: bool) -> Tensor:
    audio = 0.1 * torch.randn(2, 20_000, generator=torch.Generator().manual_seed(2)).cumsum(-1).sin()
    return torch.nn.functional.layer_norm(audio, audio.shape[-1:]) if normalise else audio


def check_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) == TINY.layers + 1
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max() / other.square().mean().sqrt()) < TOLERANCE


@torch.no_grad()
def states_of_microsoft(model) -> list[Tensor]:
    audio = waveforms(normalise=model.cfg.normalize)
    (_, layers), _ = model.extract_features(audio, output_layer=model.cfg.encoder_layers, ret_layer_results=True)
    return [state.transpose(0, 1) for state, _ in layers]


@torch.no_grad()
def our_states(model: WavLM) -> list[Tensor]:
    return model(waveforms(normalise=model.config.normalise_waveform)).hidden_states


@SHAPES
def test_microsofts_code_loads_what_is_written_for_it_and_has_its_hidden_states(config, original, tmp_path):
    theirs = original("wavlm.WavLM")
    torch.manual_seed(0)
    model = randomise(WavLM(config))
    (tmp_path / "model.pt").write_bytes(microsoft_bytes(model))
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    reference = theirs.WavLM(theirs.WavLMConfig(content["cfg"]))
    assert reference.load_state_dict(content["model"], strict=True) == ([], [])
    assert reference.cfg.normalize == config.normalise_waveform
    check_equal(our_states(model), states_of_microsoft(reference.eval()))


@SHAPES
def test_a_file_of_microsofts_code_has_its_hidden_states_here(config, original, tmp_path):
    theirs = original("wavlm.WavLM")
    keys = vars(theirs.WavLMConfig())  # all of its class's defaults, and then the size
    written = torch.load(_microsoft_file(config, tmp_path), weights_only=True)["cfg"]
    torch.manual_seed(3)
    reference = randomise(theirs.WavLM(theirs.WavLMConfig(keys | written)))
    torch.save({"cfg": vars(reference.cfg), "model": reference.state_dict()}, tmp_path / "theirs.pt")
    model, account = load_checkpoint(tmp_path / "theirs.pt")
    assert not account.ignored and not account.created
    check_equal(our_states(model), states_of_microsoft(reference))


def _microsoft_file(config: WavLMConfig, folder: Path) -> Path:
    (folder / "ours.pt").write_bytes(microsoft_bytes(WavLM(config)))
    return folder / "ours.pt"


@torch.no_grad()
def states_of_fairseq(model, kind: str, layers: int, *, normalise: bool) -> list[Tensor]:
    first: list[Tensor] = []
    hook = model.encoder.layers[0].register_forward_hook(lambda module, inputs, output: first.append(inputs[0].transpose(0, 1)))
    audio = waveforms(normalise=normalise)
    after = [
        model.extract_features(audio, output_layer=layer + 1)[0]
        if kind == "hubert"
        else model.extract_features(audio, None, layer=layer)["x"]
        for layer in range(layers)
    ]
    hook.remove()
    return [first[0], *after]


def fairseqs(kind: str, config: WavLMConfig, theirs) -> tuple[dict, torch.nn.Module]:
    """The configuration and a random model of fairseq's HuBERT or wav2vec 2.0 of this size."""
    sizes = {
        "extractor_mode": "layer_norm" if config.extractor_norm == "layer" else "default",
        "encoder_layers": config.layers,
        "encoder_embed_dim": config.dim,
        "encoder_ffn_embed_dim": config.ffn_dim,
        "encoder_attention_heads": config.heads,
        "layer_norm_first": config.pre_norm,
        "conv_feature_layers": str(list(zip(config.conv_dims, config.conv_kernels, config.conv_strides, strict=True))),
        "conv_bias": config.conv_bias,
        "conv_pos": config.positional_kernel,
        "conv_pos_groups": config.positional_groups,
    }
    torch.manual_seed(4)
    if kind == "wav2vec2":
        keys = theirs.Wav2Vec2Config(quantize_targets=True, **sizes)
        return asdict(keys), randomise(theirs.Wav2Vec2Model(keys))
    keys = theirs.HubertConfig(label_rate=50, **sizes)
    task = theirs.HubertPretrainingConfig(normalize=config.normalise_waveform)
    return asdict(keys), randomise(theirs.HubertModel(keys, task, [["<s>", "<pad>", "</s>", "<unk>", "0", "1", "2"]]))


@pytest.mark.parametrize("form", ["fairseq", "s3prl"])
@pytest.mark.parametrize("kind", ["hubert", "wav2vec2"])
@SHAPES
def test_a_file_of_fairseqs_model_has_its_hidden_states_here(config, kind, form, original, tmp_path):
    keys, reference = fairseqs(kind, config, original(f"{kind}.{kind}_model"))
    state, task = reference.state_dict(), {"normalize": config.normalise_waveform}
    content = (
        {"args": None, "cfg": {"model": {"_name": kind, **keys}, "task": task}, "model": state}
        if form == "fairseq"
        else {"task_cfg": task, "model_cfg": keys, "model_weight": state, "dictionaries_symbols": [["0"]]}
    )
    torch.save(content, tmp_path / "model.pt")
    model, account = load_checkpoint(tmp_path / "model.pt")
    assert set(account.created.values()) == {NO_GATED_BIAS}
    heads = {PREDICTION_HEAD} if kind == "hubert" else {PREDICTION_HEAD, QUANTISER}
    assert {reason for name, reason in account.ignored.items() if name in state} == heads
    check_equal(our_states(model), states_of_fairseq(reference, kind, config.layers, normalise=config.normalise_waveform))
