"""The second iteration: a layer of a model to a codebook to labels, with the teacher bound by its hash."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.labels import sample as sampled_frames
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.store import LabelStore
from openwavlm.labels.teacher import layer_chunks, open_teacher
from openwavlm.labels.verify import verify_labels
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader
from programs import run_program
from synthetic import make_shard_set

CLUSTERS = 8
FIT = {"validation_share": 0.3, "split_seed": 0, "min_frames_per_cluster": 20}


def make_teacher(folder: Path, seed: int, *, pre_norm: bool = True) -> Path:
    torch.manual_seed(seed)
    config = WavLMConfig(
        conv_dims=(8,) * 7, dim=16, ffn_dim=32, heads=2, layers=2, pre_norm=pre_norm, positional_kernel=8, positional_groups=2
    )
    save_huggingface(WavLM(config), folder)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher"), 0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"speakers": 6, "utterances": 4, "seconds": (0.8, 2.0), "utterances_per_shard": 4}
    return make_shard_set(tmp_path_factory.mktemp("shards"), **settings)


@pytest.fixture(scope="module")
def codebook(shards: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("codebook") / "layer2"
    fit_codebook([shards], output, features="layer", teacher=teacher, layer=2, clusters=CLUSTERS, **FIT)
    return output


@pytest.fixture(scope="module")
def labels(shards: Path, codebook: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("labels") / "layer2"
    assert assign_labels(shards, codebook, output, teacher=teacher) is not None
    return output


def test_labels_are_the_nearest_centroids_of_the_standardised_layer(
    shards: Path, codebook: Path, labels: Path, teacher: Path
) -> None:
    index, book = Index.open(shards), Codebook.load(codebook)
    store, reader, model = LabelStore.open(labels, index), ShardReader(index), open_teacher(teacher).model
    assert book.norm is not None
    mean, deviation = book.norm.double().numpy()
    for row in range(len(index)):
        parts = [states[0].double().numpy() for _, states in layer_chunks(model, [2], reader.read(row))]
        features = (np.concatenate(parts) - mean) / deviation
        distances = np.square(features[:, None] - book.centroids.double().numpy()).sum(axis=2)
        assert len(store.read(row)) == num_frames(int(index.num_samples[row]))
        assert (store.read(row) == distances.argmin(axis=1)).mean() > 0.99
    assert json.loads((labels / "stats.json").read_text())["used_clusters"] == CLUSTERS


def test_both_finished_marks_say_where_the_features_come_from(codebook: Path, labels: Path, teacher: Path) -> None:
    marks = [json.loads((folder / "meta.json").read_text()) for folder in (codebook, labels)]
    assert marks[0]["features"] == marks[1]["features"]
    assert marks[0]["hash"] == marks[1]["codebook_hash"]
    features = marks[1]["features"]
    assert features["teacher"] == open_teacher(teacher).hash
    assert (features["layer"], features["residual"], features["feature_norm"]) == (2, "after", "standardise")
    assert str(teacher) not in json.dumps(marks)


def test_recomputed_labels_are_equal_and_need_the_teacher(shards: Path, labels: Path, teacher: Path, tmp_path: Path) -> None:
    index = Index.open(shards)
    report = verify_labels(labels, index, teacher=teacher, share=1.0)
    assert report.passed and report.rows == 24
    with pytest.raises(ValueError, match="add teacher=DIR"):
        verify_labels(labels, index)
    with pytest.raises(ValueError, match="must come from the model"):
        verify_labels(labels, index, teacher=make_teacher(tmp_path, 1))


def test_two_workers_give_the_bytes_of_one(
    shards: Path, codebook: Path, labels: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled_frames, "_UTTERANCES_A_TASK", {"layer": 3})
    fit_codebook([shards], tmp_path / "km", features="layer", teacher=teacher, layer=2, clusters=CLUSTERS, workers=2, **FIT)
    assert files_of(tmp_path / "km") == files_of(codebook)
    assign_labels(shards, tmp_path / "km", tmp_path / "out", teacher=teacher, workers=2)
    assert files_of(tmp_path / "out") == files_of(labels)


def test_the_scripts_pass_the_teacher_on(shards: Path, codebook: Path, labels: Path, teacher: Path, tmp_path: Path) -> None:
    split = [f"{name}={value}" for name, value in FIT.items()]
    asked = ["features=layer", f"teacher={teacher}", "layer=2", f"clusters={CLUSTERS}"]
    done = run_program(tmp_path, "data_prep/fit_kmeans.py", f"shards={shards}", "output=km", *asked, *split)
    assert done.status == 0, done.stderr
    assert files_of(tmp_path / "km") == files_of(codebook)
    arguments = [f"shards={shards}", "codebook=km", "output=out", f"teacher={teacher}"]
    done = run_program(tmp_path, "data_prep/assign_labels.py", *arguments)
    assert done.status == 0, done.stderr
    assert files_of(tmp_path / "out") == files_of(labels)
    done = run_program(tmp_path, "data_prep/verify.py", f"shards={shards}", "labels=out", f"teacher={teacher}")
    assert done.status == 0 and "0 rows (0 frames) differ" in done.stdout, done
    other = make_teacher(tmp_path / "other", 1)
    message = run_program(tmp_path, "data_prep/assign_labels.py", *arguments[:2], "output=bad", f"teacher={other}").error()
    assert "must come from the model" in message and not (tmp_path / "bad").exists()
    message = run_program(tmp_path, "data_prep/assign_labels.py", *arguments[:2], "output=bad").error()
    assert message.endswith("add teacher=DIR, the folder of that model")


def test_a_codebook_of_another_layer_norm_or_teacher_is_another_request(
    shards: Path, codebook: Path, teacher: Path, tmp_path: Path
) -> None:
    request = {"features": "layer", "teacher": teacher, "layer": 2, "clusters": CLUSTERS, **FIT}
    fit_codebook([shards], codebook, **request)
    for change in ({"layer": 1}, {"feature_norm": "none"}, {"teacher": make_teacher(tmp_path, 1)}):
        with pytest.raises(ValueError, match="already has one of another request"):
            fit_codebook([shards], codebook, **(request | change))


def test_a_post_norm_teacher_is_clustered_as_it_is(shards: Path, tmp_path: Path) -> None:
    post_norm = make_teacher(tmp_path / "teacher", 0, pre_norm=False)
    book = fit_codebook([shards], tmp_path / "km", features="layer", teacher=post_norm, layer=1, clusters=4, **FIT)
    assert book.norm is None and book.features["feature_norm"] == "none"
    assert not (tmp_path / "km" / "feature_norm.npy").exists()


def test_layer_labels_are_carried_over_without_the_teacher(shards: Path, labels: Path, teacher: Path, tmp_path: Path) -> None:
    assign_labels(shards, None, tmp_path / "carried", mode="rebind", carry_from=labels)
    assert files_of(tmp_path / "carried") == files_of(labels)
    with pytest.raises(ValueError, match="needs no teacher"):
        assign_labels(shards, None, tmp_path / "carried", mode="rebind", carry_from=labels, teacher=teacher)
