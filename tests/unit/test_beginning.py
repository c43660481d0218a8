"""A run begins as a checkpoint of its own architecture and normalisation, whatever the two train with."""

import json
import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openwavlm.checkpoints.about import about_bytes, file_checksum
from openwavlm.checkpoints.account import NO_GATED_BIAS, Account
from openwavlm.checkpoints.fairseq import microsoft_bytes
from openwavlm.checkpoints.head import HEAD_FILE, head_bytes, tensors_of
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.model.config import Head, WavLMConfig
from openwavlm.model.pretraining import WavLMForPretraining
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


def with_heads(seed: int = 1, classes: Sequence[int] = (5,), config: WavLMConfig = TINY, **head: int) -> WavLMForPretraining:
    torch.manual_seed(seed)
    return WavLMForPretraining(WavLM(config), Head(**{"final_dim": 8, **head}), classes)


def exported(folder: Path, source: WavLMForPretraining, codebooks: Sequence[str], **changed: object) -> Path:
    """A folder as `export_run` writes it, of labels by these codebooks."""
    save_huggingface(source.wavlm, folder)
    (folder / HEAD_FILE).write_bytes(head_bytes(source))
    prints = {f"codebook.{number}" if number > 1 else "codebook": hash for number, hash in enumerate(codebooks, start=1)}
    about = {
        "fingerprints": prints,
        "head": file_checksum(folder / HEAD_FILE),
        "label_embeddings": [len(head.label_embeddings) for head in source.heads()],
        **changed,
    }
    (folder / "openwavlm.json").write_bytes(about_bytes(about, [folder / "model.safetensors"]))
    return folder


def same_head(one: WavLMForPretraining, other: WavLMForPretraining, number: int = 0, of_other: int = 0) -> bool:
    pairs = zip(tensors_of(one.heads()[number]), tensors_of(other.heads()[of_other]), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_heads_of_several_label_sets_are_matched_by_codebook(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source, run, fresh = with_heads(0, (5, 7, 3)), with_heads(1, (7, 6, 5)), with_heads(1, (7, 6, 5))
    exported(tmp_path, source, ["a" * 64, "b" * 64, "c" * 64])
    with caplog.at_level(logging.INFO):
        begun = begin_from(run, tmp_path, ["b" * 64, "d" * 64, "a" * 64])
    assert same_head(run, source, 0, 1) and same_head(run, fresh, 1, 1) and same_head(run, source, 2, 0)
    assert begun["head"][1] is None and len({*begun["head"]}) == 3
    assert (
        "label set 1: labels of the same codebook (hash bbbbbbbb…): the head is its head; label set 2: labels of another codebook (hash "
        "aaaaaaaa… and bbbbbbbb… and cccccccc…, here dddddddd…): the head is new; label set 3: labels of the same"
    ) in caplog.text


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        ({"special_rows": 4}, "its head has dim=64, final_dim=8 and special_rows=0, this run's 64, 8 and 4: the head is new"),
        ({"final_dim": 16}, "its head has dim=64, final_dim=8 and special_rows=0, this run's 64, 16 and 0: the head is new"),
    ],
)
def test_a_head_of_other_sizes_is_new(head, sentence, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    exported(tmp_path, with_heads(0), ["a" * 64])
    run, fresh = with_heads(**head), with_heads(**head)
    with caplog.at_level(logging.INFO):
        assert begin_from(run, tmp_path, ["a" * 64])["head"] == [None]
    assert sentence in caplog.text and same_head(run, fresh)


def test_a_head_is_new_where_none_is_saved_or_wanted_or_its_codebook_is_not_on_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    source = with_heads(0)
    whole, unnamed, without, file = (
        exported(tmp_path / name, source, ["a" * 64][:count]) for name, count in zip("wuof", (1, 0, 1, 1), strict=True)
    )
    (without / HEAD_FILE).unlink()
    (file / "model.safetensors").unlink()
    (file / "other.pt").write_bytes(microsoft_bytes(source.wavlm))
    (file / "openwavlm.json").write_bytes(about_bytes({"fingerprints": {"codebook": "a" * 64}}, []))
    for path, new_head, sentence in (
        (whole, True, "init_head=new: the head is new"),
        (unnamed, False, "labels of another codebook (not on record, here aaaaaaaa…): the head is new"),
        (without, False, "there is no prediction head beside it: the head is new"),
        (file / "other.pt", False, "there is no prediction head beside it: the head is new"),
    ):
        caplog.clear()
        run = with_heads()
        with caplog.at_level(logging.INFO):
            assert begin_from(run, path, ["a" * 64], new_head=new_head)["head"] == [None]
        assert sentence in caplog.text and same_head(run, with_heads()), path
    run = with_heads()
    begun = begin_from(run, whole, ["a" * 64], before={"path": "p", "model": "m"})
    assert "head" not in begun and same_head(run, with_heads()), "an earlier version began the run with the encoder alone"
    assert begin_from(run, whole, ["a" * 64], before={"head": [None]})["head"] != [None] and same_head(run, source)
    (file / "openwavlm.json").write_bytes(about_bytes({"fingerprints": {"codebook": "a" * 64}}, [file / "other.pt"]))
    run = with_heads()
    assert begin_from(run, file / "other.pt", ["a" * 64])["head"] != [None] and same_head(run, source), (
        "its folder names the file"
    )


def test_a_damaged_head_is_refused_and_a_folder_of_before_its_checksum_is_not(tmp_path: Path):
    source = with_heads(0)
    saved = load_file(exported(tmp_path, source, ["a" * 64]) / HEAD_FILE)
    good = {name: tensor.clone() for name, tensor in saved.items()}  # the file is mapped, and changed below
    file, codebooks = tmp_path / HEAD_FILE, ["a" * 64]
    about = {"fingerprints": {"codebook": "a" * 64}}

    def refused(sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            begin_from(with_heads(), tmp_path, codebooks)

    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(
        r"pretraining_head.safetensors is not the exported file \(openwavlm.json has another checksum\): export the run again"
    )
    begin_from(with_heads(), tmp_path, codebooks, new_head=True)
    (tmp_path / "openwavlm.json").write_bytes(about_bytes(about, []))
    file.write_bytes(content[:40])
    refused("pretraining_head.safetensors must be a complete weights file, but cannot be read")
    nan = good["final_proj.bias"].clone()
    nan[3] = float("nan")
    for changed, sentence in (
        ({"more": nan}, "is damaged .it must hold final_proj.weight, final_proj.bias, label_embs_concat, but holds .*more"),
        (
            {"final_proj.bias": nan[:-1].clone()},
            r"damaged .the shapes final_proj.weight \(8, 64\), final_proj.bias \(7,\), .* \[5\] label",
        ),
        ({"final_proj.bias": nan}, "is damaged .it has values that are not finite"),
    ):
        save_file(good | changed, file)
        refused(sentence)
    save_file(good, file)
    run = with_heads()
    assert begin_from(run, tmp_path, codebooks)["head"] != [None] and same_head(run, source)
    (tmp_path / "openwavlm.json").write_bytes(about_bytes(about | {"label_embeddings": [3, 3]}, []))
    refused(r"with \[3, 3\] label embeddings")


def test_a_run_has_the_tensors_of_its_beginning_and_keeps_its_own_settings(tmp_path: Path):
    source, run = model(0), with_heads(config=replace(TINY, dropout=0.3))
    save_huggingface(source, tmp_path)
    (tmp_path / "openwavlm.json").write_text(json.dumps({"trained_on": {"split": "s"}}))
    bound = begin_from(run, tmp_path, ["a"])
    assert run.wavlm.config.dropout == 0.3
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in run.wavlm.state_dict().items())
    assert (bound["path"], bound["trained_on"], bound["left_out"], bound["made"]) == (str(tmp_path), {"split": "s"}, {}, {})
    (tmp_path / "openwavlm.json").write_text(json.dumps({"trained_on": {"split": "s"}, "init_from": {}}))
    assert begin_from(run, tmp_path, ["a"])["trained_on"] == {"split": "s", "before": None}, (
        "an export of before `before` was noted"
    )
    other = tmp_path / "other"
    save_huggingface(model(1), other)
    changed = begin_from(run, other, ["a"])
    assert changed["trained_on"] is None and changed["model"] != bound["model"]
    check_same_beginning(bound, bound, [])
    check_same_beginning(None, changed, [])
    check_same_beginning(bound, changed, ["init_from"])
    check_same_beginning(bound, bound | {"path": "moved"}, [])
    with pytest.raises(ValueError, match=r"was initialised from the model .* or allow_change=\[init_from\]"):
        check_same_beginning(bound, changed | {"path": bound["path"]}, ["data"])
    with pytest.raises(ValueError, match=r"initialised with another prediction head than .* or allow_change=\[init_from\]"):
        check_same_beginning(bound, bound | {"head": ["h"]}, ["optim"])
    for allowed in ("init_from", "init_head", "data.sources", "model.head"):
        check_same_beginning(bound, bound | {"head": ["h"]}, [allowed])


@pytest.mark.parametrize("buckets", [TINY.num_buckets, 64])
def test_a_bias_that_the_beginning_lacks_is_0_in_the_runs_own_buckets(
    buckets: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    table = "encoder.relative_bias.embedding.weight"
    source, run = model(0), with_heads(config=replace(TINY, num_buckets=buckets, max_distance=100))
    with torch.no_grad():
        source.encoder.relative_bias.embedding.weight.zero_()
    account = Account("Microsoft", "hubert.pt", created={table: NO_GATED_BIAS})
    monkeypatch.setattr(continuation, "load_checkpoint", lambda path: (source, account))
    begin_from(run, tmp_path / "hubert.pt", ["a"])
    found = run.wavlm.state_dict()
    assert found[table].shape == (buckets, TINY.heads) and not found[table].any()
    assert all(torch.equal(found[name], tensor) for name, tensor in source.state_dict().items() if name != table)
