"""What cost others months with pseudo-labels (PEERS §3 B) is refused before the first step, in a sentence with the way out.

Labels of another frame rate by their `meta.json`, of another codebook than their own, and beyond their codebook: `test_refusals`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.label_packs import write_labels_meta
from openwavlm.labels.labelling import LabelPacks
from openwavlm.labels.verify import verify_labels
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.runs.launch import train
from openwavlm.shards.index import Index
from runs import TINY_MODEL, compose, launch
from synthetic import make_corpus, make_shard_set
from synthetic_labels import write_pack

SETTINGS = [
    "experiment=wavlm_nano",
    "name=test",
    *TINY_MODEL,
    "batch.seconds=8",
    "batch.micro_seconds=4",
    "batch.max_seconds=2",
    "optim.updates=20",
    "optim.warmup_updates=0",
    "data.validation_share=0.3",
    "loader.workers=0",
]


class Place:
    """Shards of a corpus and of a second one for validation; `labels-10` and `labels-20`, by codebooks of so many clusters; a run of
    two updates on the first."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        self.corpus = make_corpus(folder / "corpus", speakers=6, utterances=4, seconds=(1.0, 2.5))
        self.shards = make_shard_set(folder, corpus=self.corpus)
        self.heldout = make_shard_set(folder / "heldout", speakers=2, utterances=3, seconds=(1.0, 2.0), seed=8)
        for clusters in (10, 20):
            fit_codebook(
                [self.shards], folder / f"codebook-{clusters}", clusters=clusters, min_frames_per_cluster=20, validation_share=0.3
            )
            assign_labels(self.shards, folder / f"codebook-{clusters}", folder / f"labels-{clusters}")
        assert launch([*SETTINGS, *self.data("labels-10"), "stop_after=2"], self.run) == [0]

    def data(self, labels: str | Path, shards: Path | None = None) -> list[str]:
        return [
            f"data.sources.speech.shards={shards or self.shards}",
            f"data.sources.speech.labels={self.folder / labels}",
        ]

    @property
    def checkpoint(self) -> Path:
        return self.run / "checkpoints" / "step-00000002.ckpt"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def refused(sentence: str, overrides: list[str], run: Path) -> str:
    before = (run / "metrics.csv").read_bytes() if (run / "metrics.csv").exists() else None
    with pytest.raises(ValueError, match=sentence) as refusal:
        train(compose([*SETTINGS, *overrides]), run)
    assert ((run / "metrics.csv").read_bytes() if (run / "metrics.csv").exists() else None) == before
    return str(refusal.value)


def rewritten(place: Place, folder: Path, label_of: int) -> Path:
    """The labels of ten clusters with one label everywhere: what an empty dictionary makes of any labels."""
    index, book = Index.open(place.shards), LabelPacks.open(place.folder / "labels-10").codebook
    book.save_array(folder)
    frames = 1 + (np.asarray(index.num_samples[:]).astype(np.int64) - 400) // 320
    shards = range(len(index.shards))
    result = write_pack(folder, "pack-00000", index, shards, lambda row: np.full(frames[row], label_of), len(book))
    write_labels_meta(folder, book, [result.record], result.label_counts)
    return folder


def test_labels_that_are_all_one_are_refused(place: Place, tmp_path: Path) -> None:
    labels = rewritten(place, tmp_path / "labels", 7)
    message = refused("labels must use at least two clusters, but ", place.data(labels), tmp_path / "run")
    assert f"{labels} uses 1 of its 10 clusters: make them again" in message


def test_another_codebook_for_validation_is_refused(place: Place, tmp_path: Path) -> None:
    assign_labels(place.heldout, place.folder / "codebook-20", tmp_path / "dev-20")
    assign_labels(place.heldout, place.folder / "codebook-10", tmp_path / "dev-10")
    common = [*place.data("labels-10"), "data.validation_share=0"]
    dev = f"+data.validation.dev={{shards: {place.heldout}, labels: {tmp_path}/dev-"
    refused("the labels of the sources dev, speech come from different codebooks", [*common, dev + "20}"], tmp_path / "run")
    assert launch([*SETTINGS, *common, dev + "10}", "stop_after=1"], tmp_path / "run") == [0]


def test_a_codebook_that_was_fitted_on_the_validation_set_is_refused(place: Place, tmp_path: Path) -> None:
    both = [place.shards, place.heldout]
    fit_codebook(both, tmp_path / "codebook", clusters=10, min_frames_per_cluster=20, validation_share=0)
    for shards, name in zip(both, ("labels", "dev"), strict=True):
        assign_labels(shards, tmp_path / "codebook", tmp_path / name)
    dev = f"+data.validation.dev={{shards: {place.heldout}, labels: {tmp_path}/dev}}"
    settings = [*place.data(tmp_path / "labels"), "data.validation_share=0", dev]
    refused("that of validation set dev was fitted on 6 of its 6 rows: fit it again without", settings, tmp_path / "run")


def test_a_validation_set_that_is_trained_on_is_refused(place: Place, tmp_path: Path) -> None:
    fit_codebook([place.heldout], tmp_path / "codebook", clusters=10, min_frames_per_cluster=20, validation_share=0)
    assign_labels(place.shards, tmp_path / "codebook", tmp_path / "labels")
    shutil.copytree(place.corpus / "spk00", tmp_path / "some" / "spk00")
    some = make_shard_set(tmp_path, corpus=tmp_path / "some", source="other")
    for shards, count in ((place.shards, 24), (some, 4)):
        assign_labels(shards, tmp_path / "codebook", tmp_path / f"dev-{count}")
        dev = f"+data.validation.dev={{shards: {shards}, labels: {tmp_path}/dev-{count}}}"
        refused(
            rf"must not be trained on, but {count} of the {count} rows of data.validation.dev \(.*\) have audio of data.sources.speech",
            [*place.data(tmp_path / "labels"), "data.validation_share=0", dev],
            tmp_path / "run",
        )


def test_a_label_every_ten_milliseconds_is_refused(place: Place, tmp_path: Path) -> None:
    by_name = shutil.copytree(place.folder / "labels-10", tmp_path / "by-name")
    meta = json.loads((by_name / "meta.json").read_text())
    (by_name / "meta.json").write_text(json.dumps(meta | {"label_rate_hz": 100}))
    refused(
        "must lie on the model's frame grid, label_rate_hz = 50, but .* label_rate_hz = 100", place.data(by_name), tmp_path / "a"
    )
    unnamed = shutil.copytree(place.folder / "labels-10", tmp_path / "unnamed")
    for file in unnamed.glob("*.rows.npy"):
        rows = np.load(file)
        rows["frames"] *= 2
        np.save(file, rows)
    refused("labels must have exactly one entry a model frame, but from row 0 ", place.data(unnamed), tmp_path / "b")


@pytest.mark.parametrize("allowed", [[], ["allow_change=[data]"]])
def test_a_run_does_not_go_on_with_more_clusters(place: Place, tmp_path: Path, allowed: list[str]) -> None:
    run = shutil.copytree(place.run, tmp_path / "run")
    sentence = (
        "the head of .*ckpt predicts 10 labels, but the data need 20: another codebook needs a new head, so start a new run"
    )
    refused(sentence if allowed else "this launch differs from the run", [*place.data("labels-20"), *allowed], run)


@pytest.mark.parametrize("allowed", [[], ["allow_change=[data]"]])
def test_a_run_does_not_branch_to_more_clusters(place: Place, tmp_path: Path, allowed: list[str]) -> None:
    overrides = [*place.data("labels-20"), f"branch_from={place.checkpoint}", *allowed]
    sentence = (
        "the head of .*ckpt predicts 10 labels, but the data need 20: another codebook needs a new head, so start a new run"
    )
    refused(sentence if allowed else "differs from the run .* that it branches from", overrides, tmp_path / "run")


def test_labels_from_before_the_shards_were_made_again_are_refused_and_can_be_carried_over(place: Place, tmp_path: Path) -> None:
    again = make_shard_set(tmp_path, corpus=place.corpus, utterances_per_shard=5, seed=4)
    message = refused(r"must have labels in .*, but \d+ of \d+ have none", place.data("labels-10", again), tmp_path / "run")
    assert "carry labels of the same audio over with mode=rebind" in message
    assign_labels(again, None, tmp_path / "carried", mode="rebind", carry_from=place.folder / "labels-10")
    assert launch([*SETTINGS, *place.data(tmp_path / "carried", again), "stop_after=1"], tmp_path / "run") == [0]


def test_a_teacher_with_another_normalisation_is_another_teacher(place: Place, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"conv_dims": (8,) * 7, "dim": 16, "ffn_dim": 32, "heads": 2, "positional_kernel": 8, "positional_groups": 2}
    teacher = tmp_path / "teacher"
    save_huggingface(WavLM(WavLMConfig(**shape, layers=1, pre_norm=True, normalise_waveform=True)), teacher)
    settings = {
        "features": "layer",
        "teacher": teacher,
        "layer": 1,
        "clusters": 5,
        "min_frames_per_cluster": 20,
        "validation_share": 0.3,
    }
    fit_codebook([place.shards], tmp_path / "codebook", **settings)
    assign_labels(place.shards, tmp_path / "codebook", tmp_path / "labels", teacher=teacher)
    other = shutil.copytree(teacher, tmp_path / "other")
    file = other / "preprocessor_config.json"
    preprocessor = json.loads(file.read_text())
    assert preprocessor["do_normalize"] is True
    file.write_text(json.dumps(preprocessor | {"do_normalize": False}))
    sentence = "must come from the model .*other holds the model .*: give the model that the codebook was fitted on"
    with pytest.raises(ValueError, match=sentence):
        assign_labels(place.shards, tmp_path / "codebook", tmp_path / "again", teacher=other)
    with pytest.raises(ValueError, match=sentence):
        verify_labels(tmp_path / "labels", Index.open(place.shards), teacher=other)
    with pytest.raises(ValueError, match="already has one of another request"):
        fit_codebook([place.shards], tmp_path / "codebook", **(settings | {"teacher": other}))
    assert not (tmp_path / "again").exists()
