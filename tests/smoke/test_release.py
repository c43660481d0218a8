"""A release folder: loads as `init_from`, as teacher and in Transformers, labels other audio as the run's labels, and has a model card."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from openwavlm.downstream.release import release_run
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.store import LabelStore
from openwavlm.labels.teacher import open_teacher
from openwavlm.shards.index import Index
from runs import SETTINGS, launch, make_data
from tasks import FINETUNE, begin, make_task_shards

pytest.importorskip("huggingface_hub")
QUICK = [*SETTINGS, "optim.updates=4", "callbacks.checkpoint_every=4", "callbacks.validate_every=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def released(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    assert launch([*QUICK, *data], folder / "run") == [0]
    return release_run(folder / "run", licence="cc-by-4.0", data_licence="made by the tests", languages=["en"])


def place(data: list[str], key: str) -> Path:
    return Path(next(one.partition("=")[2] for one in data if f".{key}=" in one))


def test_others_continue_from_it_without_clustering_again(data, released, tmp_path):
    shards = place(data, "shards")
    assign_labels(shards, released / "codebook", tmp_path / "labels")
    index = Index.open(shards)
    ours, theirs = LabelStore.open(tmp_path / "labels", index), LabelStore.open(place(data, "labels"), index)
    assert ours.codebook_hash == theirs.codebook_hash
    assert all(np.array_equal(ours.read(row), theirs.read(row)) for row in range(len(index)))
    overrides = [*QUICK, *data, f"data.sources.speech.labels={tmp_path / 'labels'}", f"init_from={released}"]
    assert launch(overrides, tmp_path / "run") == [0]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["init_from"]["model"] == open_teacher(released).hash


@pytest.mark.filterwarnings("ignore")  # Transformers' own
def test_transformers_loads_it(released):
    transformers = pytest.importorskip("transformers")
    _, report = transformers.WavLMModel.from_pretrained(str(released), output_loading_info=True)
    assert not any(report.values()), report


def test_its_card_is_filled_from_the_run(released):
    text = (released / "README.md").read_text()
    head, body = text.split("---\n")[1:3]
    card = yaml.safe_load(head)
    assert (card["license"], card["language"], card["library_name"]) == ("cc-by-4.0", ["en"], "transformers")
    record = json.loads((released.parent / "run.json").read_text())
    book = json.loads((released / "codebook" / "meta.json").read_text())
    assert record["fingerprints"]["codebook"] == book["hash"]
    for said in (
        "- updates: 4",
        "licence of the data: made by the tests",
        f"`codebook`: 10 clusters of mfcc, hash {book['hash']}",
        record["fingerprints"]["shards.speech"],
        "- sources: synthetic; sets speech",
        "cross_entropy: ",
        "codebook=FOLDER/codebook",
    ):
        assert said in body, said


def test_a_fine_tuning_is_released_with_its_head(tmp_path, released):
    shards = make_task_shards(tmp_path / "corpus", speakers=5, utterances=3)
    begin([*FINETUNE, f"init={released}", f"data.sources.speech.shards={shards}", "data.validation_share=0.3"], tmp_path / "run")
    folder = release_run(tmp_path / "run", checkpoint="best")
    text = (folder / "README.md").read_text()
    assert "pipeline_tag: automatic-speech-recognition" in text and "the task ctc" in text and (folder / "vocab.json").is_file()
    assert "the licence of the weights is not stated" in text and not (folder / "codebook").exists()
