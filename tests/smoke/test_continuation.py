"""A run that begins from a checkpoint, and a run exported in every format and loaded again."""

import json
from pathlib import Path

import pytest
import torch
import transformers

import openwavlm
from openwavlm.checkpoints.fairseq import microsoft_bytes
from openwavlm.evaluation.unseen import unseen_rows
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.feature_files import extract_features_of_folder
from openwavlm.labels.teacher import model_hash
from openwavlm.runs.check import check_launch
from openwavlm.runs.compose import plain
from openwavlm.runs.export import export_run
from openwavlm.runs.launch import train
from openwavlm.runtime.sealed import sealed
from openwavlm.shards.index import Index
from openwavlm.shards.splits import settled_share
from programs import run_program
from runs import SETTINGS, compose, launch, make_data, table, weights
from synthetic import make_shard_set, write_speech_like
from torch_audio import torchaudio

SHORT = [*SETTINGS, "optim.updates=4", "callbacks.checkpoint_every=2", "callbacks.validate_every=0", "health.enabled=false"]
FRESH = "label_embeddings"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def first(data, tmp_path_factory) -> Path:
    """A run of four updates."""
    directory = tmp_path_factory.mktemp("first")
    assert launch([*SHORT, *data], directory) == [0]
    return directory


@pytest.fixture(scope="module")
def microsoft(first, tmp_path_factory) -> Path:
    return export_run(first, tmp_path_factory.mktemp("microsoft") / "model", format="microsoft") / "model.pt"


def refused(overrides: list[str], directory: Path, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(compose(overrides), directory)
    assert not (directory / "metrics.csv").exists()


# --- export -------------------------------------------------------------------------------------------------------------


def test_the_format_of_torchaudio_loads_there_strictly(first, tmp_path):
    folder, make = export_run(first, tmp_path, format="torchaudio"), torchaudio().models.wavlm_model
    said = json.loads((folder / "model.json").read_text())
    reference = make(**{name: said[name] for name in make.__code__.co_varnames[: make.__code__.co_argcount]})
    reference.load_state_dict(torch.load(folder / "model.pt", weights_only=True), strict=True)


def test_each_format_of_one_run_loads_as_the_same_model(first, tmp_path):
    hashes = {}
    for name in ("huggingface", "microsoft", "torchaudio", "s3prl"):
        folder = export_run(first, tmp_path / name, format=name)
        hashes[name] = model_hash(openwavlm.load(folder))
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        export_run(first, tmp_path / name, format=name)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files, "equal models give equal bytes"
        assert {"pretraining_head.safetensors", "openwavlm.json"} < set(files)
    assert len(set(hashes.values())) == 1
    with pytest.raises(ValueError, match=r"one folder holds one format, but .* holds torchaudio and format is microsoft"):
        export_run(first, tmp_path / "torchaudio", format="microsoft")
    (tmp_path / "shards" / "index").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"a model has a folder of its own, but .* holds shards"):
        export_run(first, tmp_path / "shards")
    with pytest.raises(
        ValueError, match="format must be one of huggingface, microsoft, torchaudio, s3prl, onnx, but is 'tflite'"
    ):
        export_run(first, format="tflite")


@pytest.mark.parametrize(
    ("name", "said", "file"),
    [
        ("huggingface", "transformers.WavLMModel.from_pretrained('out')", "config.json"),
        ("microsoft", "torch.load('out/model.pt')['cfg']", "model.pt"),
        ("torchaudio", "the arguments in 'out/model.json'", "model.json"),
        ("s3prl", "wavlm_local('out/model.pt')", "model.pt"),
        pytest.param("onnx", "onnxruntime.InferenceSession('out/model.onnx')", "model.onnx", marks=pytest.mark.long),
    ],
)
def test_the_command_says_what_loads_its_export(first, tmp_path, name, said, file):
    if name == "onnx":
        pytest.importorskip("onnxscript")
    done = run_program(tmp_path, "openwavlm", "export", f"run={first}", f"format={name}", "output=out")
    assert done.status == 0 and said in done.stderr, done
    assert (tmp_path / "out" / file).is_file()


def test_a_single_file_gives_the_features_of_the_folder(first, microsoft, tmp_path):
    folder = export_run(first, tmp_path / "model")
    write_speech_like(tmp_path / "recordings" / "a.wav", 1.0)
    for encoder, output in ((folder, "one"), (microsoft, "two")):
        extract_features_of_folder(encoder, tmp_path / "recordings", tmp_path / output)
    for name in ("a.wav.npy", "extract.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# --- init_from ----------------------------------------------------------------------------------------------------------


def test_a_run_begins_as_the_checkpoint_with_a_new_head_and_goes_on_without_it(first, microsoft, data, tmp_path):
    mine = tmp_path / "moved.pt"
    mine.write_bytes(microsoft.read_bytes())
    overrides = [*SHORT, *data, f"init_from={mine}", "optim.lr=1e-12"]
    assert launch([*overrides, "stop_after=2"], tmp_path / "run") == [0]
    before, after = weights(first, 4), weights(tmp_path / "run", 2)
    encoder = [name for name in before if name.startswith("model.wavlm.")]
    for name in encoder:
        torch.testing.assert_close(after[name], before[name], rtol=1e-6, atol=1e-11)  # two updates at a rate of 1e-12
    assert not torch.allclose(after[f"model.{FRESH}"], before[f"model.{FRESH}"], atol=1e-4)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["init_from"]
    assert record["model"] == model_hash(openwavlm.load(mine)) and record["dialect"] == "Microsoft"
    assert record["held_out_seen"] is None, "a lone file does not name its training data"
    mine.unlink()
    assert launch(overrides, tmp_path / "run") == [0], "a resumed run needs its own checkpoint alone"
    assert len(table(tmp_path / "run")) == 4
    about = json.loads((export_run(tmp_path / "run", tmp_path / "out") / "openwavlm.json").read_text())
    assert about["init_from"] == {"model": record["model"], "dialect": "Microsoft"}
    begun = json.loads((microsoft.parent / "openwavlm.json").read_text())["trained_on"]
    assert about["trained_on"] == begun | {"before": None}, "the same voices again, and a lone file does not say what it heard"


def test_two_processes_begin_as_one_does(microsoft, data, tmp_path):
    overrides = [*SHORT, *data, f"init_from={microsoft}"]
    assert launch(overrides, tmp_path / "one") == [0]
    known, record = ((folder / name) for folder, name in ((microsoft.parent, "openwavlm.json"), (tmp_path / "one", "run.json")))
    begun = json.loads(record.read_text())["init_from"]
    assert begun["trained_on"] == json.loads(known.read_text())["trained_on"] and begun["held_out_seen"] == 0
    assert launch(overrides, tmp_path / "two", world_size=2) == [0, 0]
    losses = [[float(row["loss"]) for row in table(tmp_path / name)] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) == 4


def test_a_run_does_not_hold_out_speakers_that_its_initial_model_was_trained_on(data, tmp_path):
    nobody = [*SHORT, *data, "data.validation_share=0"]
    assert launch([*nobody, "stop_after=2"], tmp_path / "parent") == [0]
    begun = f"init_from={export_run(tmp_path / 'parent', tmp_path / 'model')}"
    sentence = "no run may be validated on speakers that its initial model was trained on, but .* set data.validation_share=0"
    refused([*SHORT, *data, begun], tmp_path / "run", sentence)
    with pytest.raises(ValueError, match=sentence):
        check_launch(plain(compose([*SHORT, *data, begun])), tmp_path / "run", {})
    check_launch(plain(compose([*nobody, begun])), tmp_path / "run", {})
    assert launch([*nobody, begun, "stop_after=2"], tmp_path / "run") == [0]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["init_from"]["held_out_seen"] == 0


def test_a_branch_says_what_its_run_began_as_and_heard(first, data, tmp_path):
    begun = export_run(first, tmp_path / "model")
    overrides = [*SHORT, *data, f"init_from={begun}", "optim.schedule=wsd", "optim.decay_share=0.2"]
    assert launch([*overrides, "optim.updates=40", "stop_after=2"], tmp_path / "stem") == [0]
    branch = [*overrides, f"branch_from={tmp_path / 'stem/checkpoints/step-00000002.ckpt'}"]
    assert launch(branch, tmp_path / "branch") == [0]
    stem, end = (export_run(tmp_path / name, tmp_path / f"{name}-model") for name in ("stem", "branch"))
    said = [json.loads((folder / "openwavlm.json").read_text()) for folder in (stem, end)]
    for about in said:
        del about["files"], about["head"], about["seal"]  # of other weights
    assert said[1] == said[0] | {"updates": 4} and said[0]["trained_on"]["before"]["sources"] == ["", "synthetic"]
    changed = [*branch, "data.validation_share=0.1", "allow_change=[data.validation_share]"]
    assert launch(changed, tmp_path / "other") == [0]
    about = json.loads((export_run(tmp_path / "other", tmp_path / "other-model") / "openwavlm.json").read_text())
    share = settled_share([Index.open(data[0].split("=")[1])], share=0.1, split_seed=0, key="data.validation_share")
    assert about["trained_on"] == said[0]["trained_on"] | {"validation_share": share, "before": said[0]["trained_on"]}


def test_data_of_launches_before_the_data_changed_are_in_the_export(data, tmp_path):
    folder = Path(data[1].split("=")[1]).parent
    one = Index.open(data[0].split("=")[1])
    other = make_shard_set(tmp_path / "other", speakers=8, utterances=4, seconds=(1.0, 3.0), seed=77, source="other")
    assign_labels(other, folder / "codebook", tmp_path / "labels")
    all_heard = [*SHORT, *data, "data.validation_share=0"]
    assert launch([*all_heard, "stop_after=2"], tmp_path / "run") == [0]
    before = json.loads((export_run(tmp_path / "run") / "openwavlm.json").read_text())["trained_on"]
    assert before == {
        "metadata": {one.fingerprint: one.metadata},
        "validation_share": 0,
        "split_seed": 0,
        "indexes": [one.fingerprint],
        "validation_indexes": [],
        "sources": ["", "synthetic"],
    }
    moved = [f"data.sources.speech.shards={other}", f"data.sources.speech.labels={tmp_path / 'labels'}"]
    assert launch([*SHORT, *data, *moved, "allow_change=[data]"], tmp_path / "run") == [0]
    after = json.loads((export_run(tmp_path / "run") / "openwavlm.json").read_text())["trained_on"]
    assert after["before"] == before and after["indexes"] == [Index.open(other).fingerprint]
    assert not unseen_rows(one, after).any() and not unseen_rows(one, after, Index.open(other)).any()


def test_where_a_run_began_is_part_of_it(microsoft, data, tmp_path):
    assert launch([*SHORT, *data, f"init_from={microsoft}", "stop_after=2"], tmp_path) == [0]
    with pytest.raises(ValueError, match=r"(?s)differs from the run in .*init_from: .*model\.pt' -> None"):
        train(compose([*SHORT, *data]), tmp_path)
    for checkpoint in (tmp_path / "checkpoints").iterdir():  # as if it had been killed before its first checkpoint
        checkpoint.unlink()
    record = json.loads((tmp_path / "run.json").read_text())
    del record["first_checkpoint"], record["seal"]
    (tmp_path / "run.json").write_text(json.dumps(sealed(record)))
    model = openwavlm.load(microsoft)
    with torch.no_grad():
        model.mask_embedding.add_(1)
    microsoft.with_name("kept.pt").write_bytes(content := microsoft.read_bytes())
    microsoft.write_bytes(microsoft_bytes(model))
    microsoft.with_name("openwavlm.json").rename(microsoft.with_name("kept.json"))
    try:
        with pytest.raises(
            ValueError, match=r"was initialised from the model \w{12} of .*, but .*model\.pt now holds \w{12}: restore it"
        ):
            train(compose([*SHORT, *data, f"init_from={microsoft}"]), tmp_path)
    finally:
        microsoft.write_bytes(content)
        microsoft.with_name("kept.json").rename(microsoft.with_name("openwavlm.json"))


def test_a_run_of_another_shape_or_normalisation_is_told_what_to_add(microsoft, data, tmp_path):
    start = [*SHORT, *data, f"init_from={microsoft}"]
    refused(
        [*start, "model.ffn_dim=48"],
        tmp_path,
        "must have its architecture and normalisation, but .* in ffn_dim: add model.ffn_dim=32",
    )
    refused([*start, "model.normalise_waveform=true"], tmp_path, "normalise_waveform: add model.normalise_waveform=false")
    refused([*start, "model.conv_dims=[8,8,16]"], tmp_path, r"in conv_dims: add model.conv_dims=\[8,8,8\]")
    refused(
        [*SHORT, *data, "init_from=nowhere.pt"],
        tmp_path,
        "a checkpoint must be a directory or a file, but nowhere.pt does not exist",
    )


def test_a_wavlm_begins_as_a_hubert(data, tmp_path):
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        conv_dim=[8, 8, 8],
        conv_kernel=[80, 5, 4],
        conv_stride=[20, 4, 4],
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        do_stable_layer_norm=True,
    )
    transformers.HubertModel(config).save_pretrained(tmp_path / "hubert")
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "hubert")
    start = [*SHORT, *data, f"init_from={tmp_path / 'hubert'}", "model.num_buckets=32", "model.max_distance=100"]
    assert launch(start, tmp_path / "run") == [0]
    trained = weights(tmp_path / "run", 4)
    assert trained["model.wavlm.encoder.relative_bias.embedding.weight"].shape == (32, 2)
    assert trained["model.wavlm.encoder.relative_bias.embedding.weight"].abs().max() > 0, "the neutral bias learns"
    made = json.loads((tmp_path / "run" / "run.json").read_text())["init_from"]["made"]
    assert len(made) == 1 + 3 * 2
