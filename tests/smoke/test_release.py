"""A release folder: loads as `init_from`, as teacher and in Transformers, labels other audio as the run's labels, and has a model card."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from openwavlm.batches.sources import OpenData
from openwavlm.checkpoints.head import codebooks_in, read_heads
from openwavlm.downstream.release import release_run
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.store import LabelStore
from openwavlm.labels.teacher import open_teacher
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.runs.check import check_launch
from openwavlm.runs.compose import plain
from openwavlm.runs.init_from import begin_from
from openwavlm.shards.index import Index
from openwavlm.training.build import make_builder, make_model
from openwavlm.training.config import RunConfig
from openwavlm.training.control import Control
from openwavlm.training.validation import Evaluation
from runs import SETTINGS, compose, launch, make_data, table, weights
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


@pytest.fixture(scope="module")
def continued(data, released, tmp_path_factory) -> tuple[list[str], Path]:
    """Overrides of a run on labels by the released codebook that begins as the release, and its folder."""
    folder = tmp_path_factory.mktemp("continued")
    assign_labels(place(data, "shards"), released / "codebook", folder / "labels")
    labelled = [f"data.sources.speech.labels={folder / 'labels'}", f"init_from={released}"]
    overrides = [*QUICK, *data, *labelled, "callbacks.checkpoint_every=2"]
    assert launch(overrides, folder / "run") == [0]
    return overrides, folder / "run"


def test_others_continue_from_it_without_clustering_again(data, released, continued):
    index = Index.open(place(data, "shards"))
    ours, theirs = LabelStore.open(continued[1].parent / "labels", index), LabelStore.open(place(data, "labels"), index)
    assert ours.codebook_hash == theirs.codebook_hash
    assert all(np.array_equal(ours.read(row), theirs.read(row)) for row in range(len(index)))
    begun = json.loads((continued[1] / "run.json").read_text())["init_from"]
    (head,) = read_heads(released, json.loads((released / "openwavlm.json").read_text()))
    assert (begun["model"], begun["head"]) == (open_teacher(released).hash, [head.hash()])


def cross_entropy(model: WavLMForPretraining, config: RunConfig, opened: OpenData, folder: Path) -> float:
    """Masked cross-entropy of the held-out speakers, as the run's validation has it."""
    counts = [opened.label_counts(number) for number in range(len(opened.classes))]
    builder = make_builder(config, opened, training=False)
    evaluation = Evaluation(opened.validation_specs(), builder, config.loader, counts, Control(folder))
    return float(evaluation.run(model, torch.device("cpu"))["cross_entropy"])


def test_the_first_cross_entropy_is_the_last_of_the_released_run(data, released, tmp_path):
    config = RunConfig.of(plain(compose([*QUICK, *data])))
    last = float(table(released.parent, "validation.csv")[-1]["cross_entropy"])
    with closing(OpenData(config.data, config.batch, config.seed)) as opened:
        model, codebooks = make_model(config, opened.classes), codebooks_in(opened.fingerprints())
        begin_from(model, released, codebooks, new_head=True)
        assert cross_entropy(model, config, opened, tmp_path) > last + 0.01, "a new head predicts worse"
        assert None not in begin_from(model, released, codebooks)["head"]
        assert cross_entropy(model, config, opened, tmp_path) == pytest.approx(last, rel=1e-5)


def test_with_labels_of_another_codebook_the_head_is_new(data, released, tmp_path):
    shards = place(data, "shards")
    settings = {"engine": "minibatch", "min_frames_per_cluster": 20, "validation_share": 0.3, "seed": 5}
    fit_codebook([shards], tmp_path / "codebook", clusters=10, **settings)
    assign_labels(shards, tmp_path / "codebook", tmp_path / "labels")
    other = f"data.sources.speech.labels={tmp_path / 'labels'}"
    check_launch(plain(compose([*QUICK, *data, other, f"init_from={released}"])), tmp_path / "run", {})
    assert launch([*QUICK, *data, other, f"init_from={released}", "stop_after=1"], tmp_path / "run") == [0]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["init_from"]["head"] == [None]


@pytest.mark.parametrize(("kill_at", "saved"), [(14, 0), (20, 1)])
def test_killed_before_or_after_its_first_checkpoint_it_goes_on_bit_equal(continued, tmp_path, kill_at, saved):
    overrides, whole = continued
    assert launch(overrides, tmp_path, kill_at_fsync=kill_at) != [0]
    assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == saved
    assert launch(overrides, tmp_path) == [0]
    assert (tmp_path / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    after, before = weights(tmp_path, 4), weights(whole, 4)
    assert all(torch.equal(after[name], before[name]) for name in before)


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
