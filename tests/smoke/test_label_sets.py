"""Several label sets in one run: a head for each, one loss over all; a run with one set stays what it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openwavlm.batches.settings import Data
from openwavlm.batches.sources import OpenData
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.model.config import Head, WavLMConfig
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.runs.export import export_run, load_run
from openwavlm.runs.gather import report_runs
from openwavlm.runs.launch import train
from openwavlm.runs.replay import rebuild_update
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader, UnreadableAudio
from openwavlm.training.settings import Loss
from runs import SETTINGS, compose, launch, table, weights
from synthetic import make_shard_set

SHAPE = {"conv_dims": (8,) * 7, "dim": 16, "ffn_dim": 32, "heads": 2, "layers": 2, "positional_kernel": 8}
RUN = [*SETTINGS, "mixing.noise_prob=0", "optim.updates=6", "callbacks.validate_every=3", "loss.targets=[3,1]"]


class Place:
    """A shard set and its labels by two codebooks, of 10 and 6 clusters; `other`, labelled by the first and a third of 6."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, seed in (("shards", 0), ("other", 5)):
            made = make_shard_set(folder / "work" / name, speakers=6, utterances=4, seconds=(1.0, 3.0), seed=seed)
            made.rename(folder / name)
        for number, clusters in enumerate((10, 6, 6)):
            fit_codebook(
                [folder / "shards"],
                folder / f"codebook-{number}",
                clusters=clusters,
                min_frames_per_cluster=20,
                seed=number,
                validation_share=0.3,
            )
        for name, number in (("shards", 0), ("shards", 1), ("other", 0), ("other", 2)):
            assign_labels(folder / name, folder / f"codebook-{number}", folder / f"{name}-labels-{number}")

    def data(self, *labels: str) -> list[str]:
        folders = ",".join(str(self.folder / name) for name in labels)
        return [f"data.sources.speech.shards={self.folder / 'shards'}", f"data.sources.speech.labels=[{folders}]"]

    @property
    def both(self) -> list[str]:
        return self.data("shards-labels-0", "shards-labels-1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def run(place: Place) -> Path:
    assert launch([*RUN, *place.both], place.folder / "run") == [0]
    return place.folder / "run"


def test_each_head_gives_what_it_gives_alone() -> None:
    torch.manual_seed(0)
    both = WavLMForPretraining(WavLM(WavLMConfig(**SHAPE)), Head(final_dim=8), num_classes=[10, 6]).eval()
    waveforms, index = torch.randn(2, 4000), torch.arange(3, 17)
    labels = [torch.randint(0, classes, (len(index),)) for classes in (10, 6)]
    apart = torch.arange(3), [torch.randint(0, classes, (3,)) for classes in (10, 6)]
    output = both(waveforms, None, None, index, labels, None, *apart)
    assert len(both.heads()) == 2 and both.num_classes == 10
    for number, figures in enumerate(output.sets):
        alone = WavLMForPretraining(both.wavlm, Head(final_dim=8), num_classes=(10, 6)[number]).eval()
        alone.final_proj, alone.label_embeddings = both.heads()[number].final_proj, both.heads()[number].label_embeddings
        (expected,) = alone(waveforms, None, None, index, [labels[number]], None, apart[0], [apart[1][number]]).sets
        for name in ("cross_entropy_sum", "num_correct", "unmasked_cross_entropy_sum", "num_unmasked_correct"):
            assert torch.equal(getattr(figures, name), getattr(expected, name))


def test_the_gradient_of_a_step_is_the_weighted_mean_of_each_heads(place: Place, tmp_path: Path) -> None:
    assert Loss(targets=[3.0, 1.0]).target_weights(2) == [0.75, 0.25] and Loss().target_weights(4) == [0.25] * 4
    one = [*RUN, "loss.feature_penalty=0", "optim.clip_norm=1e9", "stop_after=1"]
    gradients = []
    for name, targets in (("first", "[1e12,1]"), ("second", "[1,1e12]"), ("mean", "[3,1]")):
        assert launch([*one, *place.both, f"loss.targets={targets}", "loss.logmel=0"], tmp_path / name) == [0]
        content = torch.load(tmp_path / name / "checkpoints" / "step-00000001.ckpt", weights_only=True)
        # A tenth of the first gradient: AdamW's mean of a single one.
        gradients.append({key: state["exp_avg"] for key, state in content["optimizer_states"][0]["state"].items()})
    first, second, mean = gradients
    assert any(key.startswith("model.other_heads.0.") for key in mean) and any(".layers.1." in key for key in mean)
    scale = max(float(gradient.abs().max()) for gradient in mean.values())
    for key, gradient in mean.items():
        torch.testing.assert_close(gradient, 0.75 * first[key] + 0.25 * second[key], rtol=1e-4, atol=1e-6 * scale)


def test_a_further_head_is_drawn_after_the_first() -> None:
    models = []
    for classes in (10, [10, 6]):
        torch.manual_seed(3)
        models.append(WavLMForPretraining(WavLM(WavLMConfig(**SHAPE)), Head(final_dim=8), num_classes=classes).state_dict())
    assert set(models[1]) - set(models[0]) == {
        f"other_heads.0.{name}" for name in ("final_proj.weight", "final_proj.bias", "label_embeddings")
    }
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert models[1]["other_heads.0.label_embeddings"].shape == (6, 8)
    assert not torch.equal(models[1]["other_heads.0.final_proj.weight"], models[1]["final_proj.weight"])


def test_the_loss_is_the_weighted_mean_over_the_sets(run: Path) -> None:
    rows = table(run)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert list(rows[0])[-2:] == ["cross_entropy_2", "accuracy_2"]
    for row in rows:
        figures = {name: float(value) for name, value in row.items() if value}
        mean = 0.75 * figures["cross_entropy"] + 0.25 * figures["cross_entropy_2"]
        assert figures["loss"] == pytest.approx(mean + 10 * figures["feature_penalty"], rel=1e-12)
        assert figures["cross_entropy_2"] != figures["cross_entropy"]


def test_validation_and_weights_are_of_both_heads(run: Path, place: Place) -> None:
    columns = ["cross_entropy_2", "accuracy_2", "unigram_cross_entropy_2"]
    assert [list(row)[-3:] for row in table(run, "validation.csv")] == [columns] * 2
    for row in table(run, "validation.csv"):
        assert 0 < float(row["unigram_cross_entropy_2"]) < np.log(6) + 0.5
    state = weights(run, 6)
    assert state["model.label_embeddings"].shape == (10, 8) and state["model.other_heads.0.label_embeddings"].shape == (6, 8)
    prints = json.loads((run / "run.json").read_text())["fingerprints"]
    assert {"codebook", "codebook.2", "labels.speech", "labels.speech.2"} <= set(prints)
    assert prints["codebook"] != prints["codebook.2"]


def test_a_list_of_one_set_is_the_run_of_that_set(place: Place, tmp_path: Path) -> None:
    short = [*RUN, "loss.targets=null", "stop_after=2"]
    assert launch([*short, *place.data("shards-labels-0")], tmp_path / "list") == [0]
    alone = [*place.data()[:1], f"data.sources.speech.labels={place.folder / 'shards-labels-0'}"]
    assert launch([*short, *alone], tmp_path / "alone") == [0]
    assert (tmp_path / "list/metrics.csv").read_bytes() == (tmp_path / "alone/metrics.csv").read_bytes()
    assert "cross_entropy_2" not in table(tmp_path / "alone")[0]
    first, second = (weights(tmp_path / name, 2) for name in ("list", "alone"))
    assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_killed_and_resumed_it_is_bit_equal(run: Path, place: Place, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    assert launch([*RUN, *place.both], killed, kill_at_fsync=14) != [0]
    assert not (killed / "summary.json").exists()
    assert launch([*RUN, *place.both], killed) == [0]
    for name in ("metrics.csv", "validation.csv"):
        assert (killed / name).read_bytes() == (run / name).read_bytes()
    after, before = weights(killed, 6), weights(run, 6)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_two_processes_do_what_one_does(run: Path, place: Place, tmp_path: Path, strategy: str) -> None:
    assert launch([*RUN, *place.both, f"trainer.strategy={strategy}"], tmp_path / "two", world_size=2) == [0, 0]
    for name, columns in (
        ("metrics.csv", ("loss", "cross_entropy", "cross_entropy_2", "accuracy_2", "grad_norm")),
        ("validation.csv", ("cross_entropy", "cross_entropy_2", "unigram_cross_entropy_2")),
    ):
        for one, two in zip(table(run, name), table(tmp_path / "two", name), strict=True):
            assert [float(two[column]) for column in columns] == pytest.approx(
                [float(one[column]) for column in columns], rel=1e-5
            )


def test_an_export_holds_both_heads_and_a_replay_both_labels(run: Path, place: Place, tmp_path: Path) -> None:
    model, _ = load_run(run)
    output = export_run(run, tmp_path / "export")
    head = load_file(output / "pretraining_head.safetensors")
    assert torch.equal(head["label_embs_concat"], torch.cat([one.label_embeddings for one in model.heads()]))
    assert head["final_proj.weight"].shape == (16, 16) and head["label_embs_concat"].shape == (16, 8)
    assert json.loads((output / "openwavlm.json").read_text())["label_embeddings"] == [10, 6]
    page = report_runs([run], tmp_path / "report").read_text()
    assert "10 clusters" in page and str(place.folder / "shards-labels-1") in page
    batch = rebuild_update(run, 2).micro_batches[0].batch
    assert batch.labels.shape == (2, *batch.mask.shape)
    assert torch.equal(batch.labels[0] >= 0, batch.labels[1] >= 0) and int(batch.labels[1].max()) < 6 <= int(
        batch.labels[0].max()
    )


def refused(sentence: str, *overrides: str, run: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(compose([*RUN, *overrides]), run)
    assert not (run / "metrics.csv").exists()


def test_sets_that_do_not_fit_each_other_are_refused(place: Place, tmp_path: Path) -> None:
    other = f"{{shards: {place.folder / 'other'}, labels: [{place.folder / 'other-labels-0'}"
    new = tmp_path / "run"
    few = f"+data.sources.other={other}]}}"
    refused("must have as many label sets, but speech has 2, other has 1: give each the same", *place.both, few, run=new)
    mixed = f"+data.sources.other={other}, {place.folder / 'other-labels-2'}]}}"
    refused(r"the sources other, speech come from different codebooks \(label set 2\), so equal", *place.both, mixed, run=new)
    refused(
        r"every shard of .*/shards must have labels in .*/other-labels-2, but \d+ of \d+ have none",
        *place.data("shards-labels-0", "other-labels-2"),
        run=new,
    )
    refused(
        r"loss\.targets must have a weight for each label set of data\.sources, 2, but has 3",
        *place.both,
        "loss.targets=[1,1,1]",
        run=new,
    )
    twice = place.data("shards-labels-0", "shards-labels-0")
    refused(r"data\.sources\.speech\.labels must be a folder or a list of different folders", *twice, run=new)
    with pytest.raises(ValueError, match=r"loss\.targets must be positive numbers, one a label set, but is \[1\.0, 0\.0\]"):
        Loss(targets=[1.0, 0.0])


def test_a_second_set_that_changed_is_refused_at_resume(run: Path, place: Place, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    assign_labels(place.folder / "shards", place.folder / "codebook-2", tmp_path / "third")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(place.folder / "shards-labels-1"), str(tmp_path / "third")))
    speech = "data.sources.speech.labels"
    third = [*place.data()[:1], f"{speech}=[{place.folder / 'shards-labels-0'},{tmp_path / 'third'}]"]
    with pytest.raises(ValueError, match=r"has changed since it began \(codebook\.2, labels\.speech\.2 in .*/third\)"):
        train(compose([*RUN, *third]), tmp_path / "run")
    alone = [*place.data()[:1], f"{speech}=[{place.folder / 'shards-labels-0'}]", "loss.targets=null", "allow_change=[data,loss]"]
    with pytest.raises(
        ValueError, match=r"the head of .*ckpt predicts 10 and 6 labels, but the data need 10: another codebook needs a"
    ):
        train(compose([*RUN, *alone]), tmp_path / "run")


def test_a_row_that_one_set_lacks_is_in_none(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, labels, read = Index.open(place.folder / "shards"), tmp_path / "labels", ShardReader.read

    def read_all_but_the_first(self, row, *rest, **named):
        if row == 0:
            raise UnreadableAudio("it is gone")
        return read(self, row, *rest, **named)

    monkeypatch.setattr(ShardReader, "read", read_all_but_the_first)
    assign_labels(place.folder / "shards", place.folder / "codebook-1", labels, max_skip_rate=0.5)
    monkeypatch.undo()
    assert np.load(labels / "pack-00000.rows.npy")["frames"][0] == 0
    sets = [place.folder / "shards-labels-0", labels]
    from openwavlm.runs.compose import plain
    from openwavlm.training.build import make_builder
    from openwavlm.training.config import RunConfig

    overrides = [*RUN, *place.data()[:1], f"data.sources.speech.labels=[{sets[0]},{sets[1]}]"]
    parts = RunConfig.of(plain(compose(overrides)))
    opened = OpenData(parts.data, parts.batch, 0)
    assert isinstance(opened.data, Data) and opened.classes == (10, 6) and index.first_row[0] == 0
    builder, met = make_builder(parts, opened, training=True), 0
    for step in range(4):
        for spec in opened.schedule().step(step).specs:
            batch = builder[spec]
            place_of = (batch.rows == 0).nonzero().flatten().tolist()
            met += len(place_of)
            for row in place_of:
                assert int(batch.num_samples[row]) == 0 and bool((batch.labels[:, row] == -1).all())
    opened.close()
    assert met
