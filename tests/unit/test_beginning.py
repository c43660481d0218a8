"""A run begins as a checkpoint of its own architecture and normalisation, whatever the two train with."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from openwavlm.checkpoints.account import NO_GATED_BIAS, Account
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.runs import init_from as continuation
from openwavlm.runs.init_from import begin_from, check_same_architecture, check_same_beginning
from random_models import TINY

# Another value of every field: those that a run may choose, and those that its checkpoint decides.
FREE = {
    "dropout": 0.3,
    "attention_dropout": 0.3,
    "activation_dropout": 0.3,
    "input_dropout": 0.3,
    "layer_drop": 0.3,
    "layer_drop_mode": "skip",
    "feature_grad_mult": 0.5,
    "attention_backend": "eager",
    "recompute": "all",
    "compile_layers": True,
}
BOUND = {
    "conv_dims": (32,) * 6 + (16,),
    "conv_bias": True,
    "extractor_norm": "layer",
    "dim": 128,
    "ffn_dim": 64,
    "heads": 8,
    "layers": 2,
    "pre_norm": True,
    "positional_kernel": 8,
    "positional_groups": 8,
    "num_buckets": 64,
    "max_distance": 100,
    "normalise_waveform": True,
}
# These change together with others: the front end has no convolutions, kernels and strides keep the 320-sample grid.
UNTRIED = {"front_end", "conv_kernels", "conv_strides"}


def test_every_field_is_a_runs_own_or_its_checkpoints():
    names = {field.name for field in fields(WavLMConfig)}
    assert names == {*FREE, *BOUND, *UNTRIED, *(name for name in names if name.startswith("logmel"))}
    for name, value in FREE.items():
        check_same_architecture(TINY, replace(TINY, **{name: value}), "origin")
    for name, value in BOUND.items():
        written = f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value).replace("True", "true")
        with pytest.raises(ValueError) as refused:
            check_same_architecture(TINY, replace(TINY, **{name: value}), "origin")
        assert str(refused.value).endswith(f"differs from this run's model in {name}: add model.{name}={written}")


def test_a_neutral_bias_may_have_any_buckets_and_nothing_else_may_differ():
    check_same_architecture(TINY, replace(TINY, num_buckets=64, max_distance=100), "origin", neutral=True)
    for name, value in BOUND.items():
        if name not in ("num_buckets", "max_distance"):
            with pytest.raises(ValueError, match=f"in {name}: add"):
                check_same_architecture(TINY, replace(TINY, num_buckets=64, **{name: value}), "origin", neutral=True)


def model(seed: int) -> WavLM:
    torch.manual_seed(seed)
    return WavLM(TINY)


def test_a_run_has_the_tensors_of_its_beginning_and_keeps_its_own_settings(tmp_path: Path):
    source, run = model(0), WavLM(replace(TINY, dropout=0.3))
    save_huggingface(source, tmp_path)
    (tmp_path / "openwavlm.json").write_text(json.dumps({"trained_on": {"split": "s"}}))
    bound = begin_from(run, tmp_path)
    assert run.config.dropout == 0.3
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in run.state_dict().items())
    assert (bound["path"], bound["trained_on"], bound["left_out"], bound["made"]) == (str(tmp_path), {"split": "s"}, {}, {})
    (tmp_path / "openwavlm.json").write_text(json.dumps({"trained_on": {"split": "s"}, "init_from": {}}))
    assert begin_from(run, tmp_path)["trained_on"] == {"split": "s", "before": None}, "an export of before `before` was noted"
    other = tmp_path / "other"
    save_huggingface(model(1), other)
    changed = begin_from(run, other)
    assert changed["trained_on"] is None and changed["model"] != bound["model"]
    check_same_beginning(bound, bound, [])
    check_same_beginning(None, changed, [])
    check_same_beginning(bound, changed, ["init_from"])
    check_same_beginning(bound, bound | {"path": "moved"}, [])
    with pytest.raises(ValueError, match=r"was initialised from the model .* or allow_change=\[init_from\]"):
        check_same_beginning(bound, changed | {"path": bound["path"]}, ["data"])


@pytest.mark.parametrize("buckets", [TINY.num_buckets, 64])
def test_a_bias_that_the_beginning_lacks_is_0_in_the_runs_own_buckets(
    buckets: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    table = "encoder.relative_bias.embedding.weight"
    source, run = model(0), WavLM(replace(TINY, num_buckets=buckets, max_distance=100))
    with torch.no_grad():
        source.encoder.relative_bias.embedding.weight.zero_()
    account = Account("Microsoft", "hubert.pt", created={table: NO_GATED_BIAS})
    monkeypatch.setattr(continuation, "load_checkpoint", lambda path: (source, account))
    begin_from(run, tmp_path / "hubert.pt")
    found = run.state_dict()
    assert found[table].shape == (buckets, TINY.heads) and not found[table].any()
    assert all(torch.equal(found[name], tensor) for name, tensor in source.state_dict().items() if name != table)
