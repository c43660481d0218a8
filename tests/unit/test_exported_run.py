"""A run's checkpoint becomes the model that it holds: trained weights or their mean, every label set, and what they were trained on."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import openwavlm
from openwavlm.runs import export
from openwavlm.runs.compose import composed, plain
from openwavlm.runs.export import export_run, load_run
from openwavlm.training.build import make_model
from openwavlm.training.checkpoint import AtomicCheckpointIO, checkpoint_path
from openwavlm.training.config import RunConfig, with_placeholders
from runs import TINY_MODEL

CLASSES = [5, 7]
FINGERPRINTS = {"shards.speech": "f-speech", "labels.speech": "f-labels", "codebook": "f-codebook"}


@pytest.fixture(scope="module", params=[0, 3], ids=["no special rows", "special rows"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of random weights; the running mean is the weights and one more."""
    folder = tmp_path_factory.mktemp("run")
    values = with_placeholders(plain(composed("train", ["experiment=wavlm_nano", "name=x", *TINY_MODEL])))
    values["model"]["head"]["special_rows"] = request.param
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    (folder / "checkpoints").mkdir()
    for step in (3, 8):
        torch.manual_seed(step)
        model = make_model(RunConfig.of(values), CLASSES)
        state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        state |= {f"ema.{name}": tensor + 1 for name, tensor in model.state_dict().items()}
        content = {
            "state_dict": state | {"logmel_map.weight": torch.zeros(2)},
            "openwavlm": {"step": step, "fingerprints": FINGERPRINTS, "plan": {}},
        }
        AtomicCheckpointIO().save_checkpoint(content, checkpoint_path(folder / "checkpoints", step))
    return folder


def kept(run: Path, step: int) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint_path(run / "checkpoints", step), weights_only=True)["state_dict"]
    return {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}


@pytest.mark.parametrize(("checkpoint", "step"), [("newest", 8), ("3", 3)])
@pytest.mark.parametrize(("weights", "more"), [("trained", 0), ("ema", 1)])
def test_a_run_is_loaded_with_the_weights_that_were_asked_for(run, checkpoint, step, weights, more):
    model, bound = load_run(run, checkpoint, weights)
    assert bound["step"] == step and not model.training
    expected = kept(run, step)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name] + more) for name, tensor in model.state_dict().items())


def test_an_export_holds_the_encoder_and_the_heads_of_all_label_sets_in_order(run, tmp_path):
    export_run(run, tmp_path, checkpoint="3")
    expected, encoder = kept(run, 3), openwavlm.load(tmp_path)
    assert all(torch.equal(tensor, expected[f"wavlm.{name}"]) for name, tensor in encoder.state_dict().items())
    head = load_file(tmp_path / "pretraining_head.safetensors")
    for theirs, ours in (
        ("final_proj.weight", "final_proj.weight"),
        ("final_proj.bias", "final_proj.bias"),
        ("label_embs_concat", "label_embeddings"),
    ):
        assert torch.equal(head[theirs], torch.cat([expected[ours], expected[f"other_heads.0.{ours}"]]))
    about = json.loads((tmp_path / "openwavlm.json").read_text())
    assert (about["updates"], about["weights"], about["fingerprints"]) == (3, "trained", FINGERPRINTS)
    assert about["label_embeddings"] == [len(expected[name]) for name in ("label_embeddings", "other_heads.0.label_embeddings")]
    trained_on = about["trained_on"]
    assert (trained_on["indexes"], trained_on["validation_indexes"]) == (["f-speech"], [])


def test_an_export_of_the_running_mean_says_so_and_holds_it(run, tmp_path):
    export_run(run, tmp_path, weights="ema")
    about = json.loads((tmp_path / "openwavlm.json").read_text())
    assert (about["updates"], about["weights"]) == (8, "ema")
    assert torch.equal(
        load_file(tmp_path / "pretraining_head.safetensors")["final_proj.bias"][:8], kept(run, 8)["final_proj.bias"] + 1
    )


def test_one_folder_holds_one_format(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "check_packages", lambda: None)
    monkeypatch.setattr(export, "encoder_onnx_bytes", lambda model: b"graph")  # tests/parity/test_onnx.py writes real ones
    formats = {"huggingface", "microsoft", "torchaudio", "onnx"}
    for format in sorted(formats):
        export_run(run, tmp_path / format, format=format)
        export_run(run, tmp_path / format, format=format)
        for other in formats - {format}:
            with pytest.raises(ValueError, match=f"holds {format} and format is {other}"):
                export_run(run, tmp_path / format, format=other)
    for wrong in ({"weights": "mean"}, {"checkpoint": "4"}, {"format": "tensorflow"}):
        with pytest.raises(ValueError, match="must be"):
            export_run(run, tmp_path / "wrong", **wrong)


def test_the_file_for_s3prl_is_microsofts_and_a_graph_has_a_checksum(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "check_packages", lambda: None)
    monkeypatch.setattr(export, "encoder_onnx_bytes", lambda model: b"graph")
    microsoft, s3prl, onnx = (export_run(run, tmp_path / name, format=name) for name in ("microsoft", "s3prl", "onnx"))
    assert (s3prl / "model.pt").read_bytes() == (microsoft / "model.pt").read_bytes()
    assert (onnx / "model.onnx").read_bytes() == b"graph"
    for folder, file in ((s3prl, "model.pt"), (onnx, "model.onnx")):
        assert set(json.loads((folder / "openwavlm.json").read_text())["files"]) == {file}
        assert {path.name for path in folder.iterdir()} == {file, "openwavlm.json", "README.md", "pretraining_head.safetensors"}
    export_run(run, s3prl, format="microsoft")
    assert "s3prl" in (export_run(run, s3prl, format="s3prl") / "README.md").read_text()
    with pytest.raises(ValueError, match="holds microsoft and format is onnx"):
        export_run(run, s3prl, format="onnx")
