"""Masked prediction of a trained run: judged on the test set, with a count table of train and dev labels beside it, speaker by speaker."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.sources import OpenData
from openwavlm.evaluation.counts import CountTable
from openwavlm.evaluation.intervals import ratio_interval
from openwavlm.evaluation.probe import summary
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.model.config import Head
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.pipeline import masked as masked_module
from openwavlm.pipeline.masked import masked_figures, whole_set
from openwavlm.runs.compose import plain
from openwavlm.runtime.randomness import stable_hash
from openwavlm.training.build import make_builder
from openwavlm.training.config import RunConfig
from random_models import randomise
from runs import TINY_MODEL, compose
from synthetic import make_shard_set


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], OpenData, WavLMForPretraining]]:
    """A run's objects, its data with a dev and a test set, and a model with fairseq's four special rows."""
    folder = tmp_path_factory.mktemp("masked")
    places: list[str] = []
    for seed, (name, utterances) in enumerate((("train", 6), ("dev", 3), ("test", 4))):
        shards = make_shard_set(folder / name, speakers=3, utterances=utterances, seconds=(1.0, 2.0), seed=seed, source=name)
        if name == "train":
            fit_codebook([shards], folder / "codebook", clusters=7, min_frames_per_cluster=20, validation_share=0.0, split_seed=2)
        assign_labels(shards, folder / "codebook", folder / name / "labels")
        if name == "train":
            places += [f"data.sources.speech.shards={shards}", f"data.sources.speech.labels={folder / name / 'labels'}"]
        else:
            places.append(f"+data.validation.{name}={{shards: {shards}, labels: {folder / name / 'labels'}}}")
    batch = ["batch.seconds=8", "batch.micro_seconds=4", "batch.max_seconds=2", "batch.min_seconds=0.5", "loader.workers=0"]
    values = compose(
        ["experiment=wavlm_nano", "name=test", *TINY_MODEL, *batch, "data.validation_share=0", "data.split_seed=2", *places]
    )
    parts = RunConfig.of(plain(values))
    opened = OpenData(parts.data, parts.batch, 3)
    model = WavLMForPretraining(randomise(WavLM(parts.model)), Head(final_dim=8, special_rows=4), num_classes=opened.num_classes)
    yield parts, opened, model.eval()
    opened.close()


def sequences(parts: RunConfig, opened: OpenData, name: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Labels and masks of all rows of a set, in the order of its plan."""
    labels, masks = [], []
    for spec in whole_set(opened, name, opened.data.split_seed):
        drawn = draw_span_mask(
            parts.masking,
            spec.num_frames,
            opened.data.split_seed,
            source=stable_hash(name),
            epoch=spec.id.epoch,
            micro=spec.id.stream << 32 | spec.id.index,
        )
        for place, (row, start, frames) in enumerate(zip(spec.rows, spec.start_frame, spec.num_frames, strict=True)):
            labels.append(opened.label_sets[name][0].read(int(row)).astype(np.int64)[int(start) : int(start) + int(frames)])
            masks.append(drawn[place, : int(frames)])
    return labels, masks


def losses(
    parts: RunConfig, opened: OpenData, model: WavLMForPretraining
) -> tuple[dict[str, list[float]], dict[str, list[bool]]]:
    """Cross-entropy of each masked frame of the test set by speaker, and whether it is guessed right, written out in float64."""
    found: dict[str, list[float]] = {}
    right: dict[str, list[bool]] = {}
    builder = make_builder(parts, opened, training=False)
    for spec in whole_set(opened, "test", opened.data.split_seed):
        batch = builder[spec]
        with torch.no_grad():
            waveforms = batch.waveforms.float() / 32768
            hidden = model.wavlm(waveforms, batch.num_samples, mask=batch.mask).final
            projected = model.final_proj(hidden).double().numpy()
        embeddings = model.label_embeddings.detach().double().numpy()[4:]
        embeddings_all = model.label_embeddings.detach().double().numpy()
        for row in range(len(batch.rows)):
            speaker = opened.indexes["test"].speakers[int(opened.indexes["test"].speaker[int(batch.rows[row])])]
            for frame in np.flatnonzero(batch.mask[row].numpy()):
                label = int(batch.labels[0, row, frame])
                x = projected[row, frame] / np.linalg.norm(projected[row, frame])
                cosine = embeddings_all @ x / np.linalg.norm(embeddings_all, axis=1) / model.logit_temperature
                own = embeddings[label] @ x / np.linalg.norm(embeddings[label]) / model.logit_temperature
                found.setdefault(speaker, []).append(float(np.log(np.exp(cosine).sum()) - own))
                right.setdefault(speaker, []).append(bool(cosine.argmax() == 4 + label))
    return found, right


def test_the_model_and_the_count_table_are_judged_on_test_and_fitted_without_it(run) -> None:
    parts, opened, model = run
    figures, _ = masked_figures(model, parts, opened, train="speech", dev="dev", test="test")
    by_speaker, right = losses(parts, opened, model)
    accuracy = np.concatenate(list(right.values())).mean()
    every = np.concatenate(list(by_speaker.values()))
    assert figures["frames"] == len(every) == sum(int(mask.sum()) for mask in sequences(parts, opened, "test")[1])
    assert figures["cross_entropy"] == pytest.approx(every.mean(), rel=1e-4)
    assert figures["accuracy"] == pytest.approx(accuracy, abs=2 / len(every)) and figures["set"] == "test"
    train, dev, test = (sequences(parts, opened, name) for name in ("speech", "dev", "test"))
    wanted = CountTable(7).fit(*train, *dev).score(*test)
    assert figures["count_table"] == wanted._asdict()
    assert figures["count_table"] != CountTable(7).fit(*train, *test).score(*test)._asdict(), "by the test part it would differ"
    # The unigram is learnt on training labels, one added to each count.
    counts = np.bincount(np.concatenate(train[0]), minlength=7) + 1.0
    hidden = np.concatenate([labels[mask] for labels, mask in zip(*test, strict=True)])
    assert figures["unigram"]["cross_entropy"] == pytest.approx(-np.log(counts / counts.sum())[hidden].mean(), rel=1e-6)
    assert figures["unigram"]["accuracy"] == pytest.approx((hidden == counts.argmax()).mean())
    nearest = []
    for labels, mask in zip(*test, strict=True):
        known = np.flatnonzero(~mask)
        nearest += [labels[min(known, key=lambda at: (abs(at - t), at))] == labels[t] for t in np.flatnonzero(mask)]
    assert figures["nearest_label"]["accuracy"] == pytest.approx(np.mean(nearest))


def test_sums_by_speaker_are_of_each_speakers_own_frames(run) -> None:
    parts, opened, model = run
    figures, sums = masked_figures(model, parts, opened, train="speech", dev="dev", test="test", counted=False)
    assert "count_table" not in figures and figures["frames"] == sums.denominator.sum()
    by_speaker, _ = losses(parts, opened, model)
    index = opened.indexes["test"]
    assert sums.speakers == tuple(name for name in index.speakers if name in by_speaker) and len(sums.speakers) == 3
    for place, name in enumerate(sums.speakers):
        assert sums.denominator[place] == len(by_speaker[name])
        assert sums.numerator[place] == pytest.approx(sum(by_speaker[name]), rel=1e-4)
    assert sums.value == pytest.approx(np.concatenate(list(by_speaker.values())).mean(), rel=1e-4)


def test_the_model_is_compared_with_every_baseline_in_pairs_by_speaker(run) -> None:
    parts, opened, model = run
    figures, _ = masked_figures(model, parts, opened, train="speech", dev="dev", test="test")
    sums, index = figures["by_speaker"], opened.indexes["test"]
    by_speaker, right = losses(parts, opened, model)
    names = [name for name in index.speakers if name in by_speaker]
    assert sums["speakers"] == names and len(names) == 3
    frames = np.array([len(by_speaker[name]) for name in names])
    assert sums["frames"] == frames.tolist()
    assert sums["cross_entropy"]["model"] == pytest.approx([sum(by_speaker[name]) for name in names], rel=1e-4)
    assert sums["accuracy"]["model"] == [sum(right[name]) for name in names]
    # Baselines, from the sequences of each speaker alone.
    train, dev, test = (sequences(parts, opened, name) for name in ("speech", "dev", "test"))
    table, counts = CountTable(7).fit(*train, *dev), np.bincount(np.concatenate(train[0]), minlength=7) + 1.0
    rows = [int(row) for spec in whole_set(opened, "test", opened.data.split_seed) for row in spec.rows]
    for place, name in enumerate(names):
        own = [number for number, row in enumerate(rows) if index.speakers[int(index.speaker[row])] == name]
        labels, masks = ([part[number] for number in own] for part in test)
        score = table.score(labels, masks)
        assert score.frames == frames[place]
        assert sums["cross_entropy"]["count_table"][place] == pytest.approx(score.cross_entropy * score.frames, rel=1e-5)
        assert sums["accuracy"]["count_table"][place] == pytest.approx(score.accuracy * score.frames)
        hidden = np.concatenate([row[mask] for row, mask in zip(labels, masks, strict=True)])
        assert sums["cross_entropy"]["unigram"][place] == pytest.approx(-np.log(counts / counts.sum())[hidden].sum(), rel=1e-5)
        assert sums["accuracy"]["unigram"][place] == (hidden == counts.argmax()).sum()
    assert sum(sums["accuracy"]["nearest_label"]) / frames.sum() == pytest.approx(figures["nearest_label"]["accuracy"])
    compared = {name: set(of) for name, of in figures["differences"].items()}
    both = {"cross_entropy", "accuracy"}
    assert compared == {"unigram": both, "count_table": both, "nearest_label": {"accuracy"}}
    for name, of in figures["differences"].items():
        for figure, given in of.items():
            apart = ratio_interval(np.subtract(sums[figure]["model"], sums[figure][name]), frames)
            assert given == pytest.approx(summary(apart.as_list()), abs=2e-5)
            assert given[0] == pytest.approx(figures[figure] - figures[name][figure], abs=2e-5)
    assert any(abs(of["accuracy"][0]) > 0.01 for of in figures["differences"].values())


def test_a_count_table_of_other_frames_is_not_compared_in_pairs(run, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, opened, model = run

    def labels_and_masks(*given):
        labels, masks = drawn(*given)
        return labels, ([masks[0] & False, *masks[1:]] if given[1] == "test" else masks)

    drawn = masked_module._labels_and_masks
    monkeypatch.setattr(masked_module, "_labels_and_masks", labels_and_masks)
    figures, _ = masked_figures(model, parts, opened, train="speech", dev="dev", test="test")
    assert figures["count_table"]["frames"] < figures["frames"]
    assert set(figures["differences"]) == {"unigram", "nearest_label"}


def test_the_count_table_is_given_the_parts_in_their_roles(run, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, opened, model = run
    given: dict[str, list[np.ndarray]] = {}

    class Noting(CountTable):
        def fit(self, labels, masks, dev_labels, dev_masks):
            given.update(train=labels, dev=dev_labels)
            return super().fit(labels, masks, dev_labels, dev_masks)

        def guesses(self, labels, masks):
            given.update(test=labels)
            return super().guesses(labels, masks)

    monkeypatch.setattr(masked_module, "CountTable", Noting)
    masked_figures(model, parts, opened, train="speech", dev="dev", test="test")
    for role, name in (("train", "speech"), ("dev", "dev"), ("test", "test")):
        wanted = sequences(parts, opened, name)[0]
        assert len(wanted) == len(opened.indexes[name])
        assert all(np.array_equal(one, other) for one, other in zip(given[role], wanted, strict=True))


@pytest.mark.parametrize("enough", [1, 150, 400])
def test_the_count_table_counts_whole_micro_batches_up_to_the_one_that_has_enough_frames(
    run, monkeypatch: pytest.MonkeyPatch, enough: int
) -> None:
    parts, opened, model = run
    given: dict[str, int] = {}

    class Counting(CountTable):
        def fit(self, labels, masks, dev_labels, dev_masks):
            given.update(train=sum(map(len, labels)), dev=sum(map(len, dev_labels)))
            return super().fit(labels, masks, dev_labels, dev_masks)

    monkeypatch.setattr(masked_module, "CountTable", Counting)
    monkeypatch.setattr(masked_module, "COUNTED_FRAMES", enough)
    masked_figures(model, parts, opened, train="speech", dev="dev", test="test")
    of_micro_batches = [int(spec.num_frames.sum()) for spec in whole_set(opened, "speech", opened.data.split_seed)]
    upto = np.cumsum(of_micro_batches)
    assert len(of_micro_batches) > 2
    assert given["train"] == next((total for total in upto if total >= enough), upto[-1])
    assert given["dev"] == sum(map(len, sequences(parts, opened, "dev")[0])), "dev labels are all used"
