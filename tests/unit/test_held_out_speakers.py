"""Held-out speakers that cannot serve: too short, a source's only one, of a kept share, or known to the model that a run begins from."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from openwavlm.batches.settings import Batching, Data
from openwavlm.batches.sources import OpenData
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.label_packs import write_labels_meta
from openwavlm.report.content import Iteration
from openwavlm.report.facts import warnings_of
from openwavlm.report.page import _note
from openwavlm.runs.announce import _announce_data
from openwavlm.runs.beginning import note_held_out_seen
from openwavlm.runs.init_from import check_held_out_unseen
from openwavlm.shards.index import Index
from openwavlm.shards.splits import settled_share, split_hash, split_names, validation_rows
from synthetic import make_shard_set, write_speech_like
from synthetic_labels import write_pack

BATCHING = Batching(seconds=8.0, micro_seconds=4.0, max_seconds=2.0, min_seconds=1.0)
NAMES = [f"spk{number:02d}" for number in range(6)]
ORDERED = sorted(NAMES, key=lambda name: split_hash(f"synthetic/{name}"))
SMALLEST = split_hash(f"synthetic/{ORDERED[0]}") / 2**64
FEW = SMALLEST / 2  # a share below which no speaker has a hash


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Messages of warnings; other records depend on the level that other tests leave."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def labelled(folder: Path, speakers: dict[str, float], source: str = "synthetic", **fitted: Any) -> dict[str, str]:
    """A source of two utterances of each speaker, of these seconds, with labels by a codebook of this record of its fit."""
    for number, (name, seconds) in enumerate(speakers.items()):
        for utterance in range(2):
            write_speech_like(
                folder / "corpus" / name / f"{utterance}.flac", seconds + 0.1 * utterance, 10 * number + utterance, name
            )
    shards = make_shard_set(folder, corpus=folder / "corpus", source=source)
    index = Index.open(shards)
    codebook = Codebook(torch.arange(12.0).reshape(4, 3), {"name": "test"}, fitted)
    codebook.save_array(folder / "labels")
    label_row = lambda row: np.arange(1 + (int(index.num_samples[row]) - 400) // 320) % 4  # noqa: E731
    pack = write_pack(folder / "labels", "pack-00000", index, range(len(index.shards)), label_row, 4)
    write_labels_meta(folder / "labels", codebook, [pack.record], pack.label_counts)
    return {"shards": str(shards), "labels": str(folder / "labels")}


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return labelled(tmp_path_factory.mktemp("six"), dict.fromkeys(NAMES, 1.5))


def opened(sources: dict[str, Any], share: float = FEW, *, kept: float | None = None, **settings: Any) -> OpenData:
    return OpenData(Data(sources, validation_share=share, **settings), BATCHING, 3, validation_share=kept)


def announced(data: OpenData, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    caplog.set_level(logging.INFO)
    plan: Any = SimpleNamespace(padding_share=0.0, lost_share=0.0, too_short=0)
    _announce_data(SimpleNamespace(batch=BATCHING, optim=SimpleNamespace(updates=2)), data, plan)  # type: ignore[arg-type]
    return caplog.text


# --- nothing usable is held out -----------------------------------------------------------------------------------------


def test_a_held_out_speaker_with_short_utterances_only_leaves_no_validation_and_this_is_said(six, tmp_path, caplog):
    data = opened({"speech": labelled(tmp_path, dict.fromkeys(NAMES, 1.5) | {ORDERED[0]: 0.6})})
    found = data.summary()
    assert data.validation_specs() == []
    assert (found["validation_rows"], found["usable_validation_rows"], found["validation_speakers"]) == (2, 0, 1)
    said = announced(data, caplog)
    assert "there is no validation: each of the 2 held-out utterances is shorter than batch.min_seconds=1" in said
    (limit,) = warnings_of(Iteration("first", tmp_path, metrics={"step": np.ones(1)}, data=found))
    assert limit == "Nothing was validated: every held-out utterance is shorter than batch.min_seconds."
    sound = opened({"speech": six})
    assert sound.summary()["usable_validation_rows"] == 2 and sound.validation_specs()
    assert "there is no validation" not in announced(sound, caplog)


# --- how the share was settled ------------------------------------------------------------------------------------------


def test_a_kept_share_is_logged_as_kept_and_a_settled_one_by_its_rule(six, caplog):
    half = sorted(split_hash(f"synthetic/{name}") for name in NAMES)[3] / 2**64
    largest = settled_share([Index.open(six["shards"])], share=0.9999999, split_seed=0, key="")
    kept = "the run keeps the held-out share of {:.4g} that an earlier launch settled from data.validation_share={:g}"
    for data, expected in (
        (opened({"speech": six}, kept=half), kept.format(half, FEW)),
        (opened({"speech": six}, 0.9999999, kept=half), kept.format(half, 0.9999999)),
        (
            opened({"speech": six}),
            f"no speaker has a hash below data.validation_share={FEW:g}: the one with the smallest is held",
        ),
        (
            opened({"speech": six}, 0.9999999),
            "all speakers have a hash below data.validation_share=1: the one with the largest is ",
        ),
        (opened({"speech": six}, half, kept=half), ""),
        (opened({"speech": six}, half), ""),
    ):
        said = announced(data, caplog)
        assert expected in said and data.settlement.startswith(expected)
        assert [text in said for text in ("keeps", "the smallest", "the largest")].count(True) == bool(expected)
    assert opened({"speech": six}, 0.9999999).data.validation_share == largest


def test_a_codebook_that_a_kept_share_refuses_is_to_be_fitted_with_that_share(tmp_path):
    source = labelled(tmp_path, dict.fromkeys(NAMES, 1.5), validation_share=SMALLEST / 1.5, split_seed=0)
    kept = split_hash(f"synthetic/{ORDERED[2]}") / 2**64
    with pytest.raises(
        ValueError, match=rf"^the run keeps the held-out share .*fit it again with validation_share={kept}, or set"
    ):
        opened({"speech": source}, kept=kept)
    with pytest.raises(ValueError, match=r"^no speaker has a hash below .*: fit it again on these shard sets, or set data\.val"):
        opened({"speech": source})


# --- a source without training speakers ---------------------------------------------------------------------------------


def test_a_source_of_one_held_out_speaker_is_refused_with_advice_that_helps(tmp_path):
    first, *others = ORDERED
    a = labelled(tmp_path / "a", dict.fromkeys(others, 1.5))
    b = labelled(tmp_path / "b", {first: 1.5})
    expected = "source b has no usable audio to train on: .* are held out "
    with pytest.raises(ValueError, match=expected) as refused:
        opened({"a": a, "b": b})
    message = str(refused.value)
    assert f"data.validation_share={FEW:g}: the one with the smallest" in message and "lower data.validation_share" not in message
    for way_out in ({"share": 0.0}, {"split_seed": _seed_that_leaves(first)}):
        assert re.search(r"data\.split_seed .*data\.validation_share=0", message)
        assert opened({"a": a, "b": b}, **way_out).training_rows()
    with pytest.raises(
        ValueError, match=rf"{expected}\(data\.validation_share={2 * SMALLEST:g}\): lower data\.validation_share, choose"
    ):
        opened({"a": a, "b": b}, 2 * SMALLEST)
    with pytest.raises(ValueError, match=r"every utterance is shorter than batch\.min_seconds=1: lower it"):
        opened({"b": labelled(tmp_path / "c", {first: 0.6})}, 0.0)


def _seed_that_leaves(name: str) -> int:
    """A split seed by which this speaker does not have the smallest hash."""
    return next(seed for seed in range(1, 99) if min(NAMES, key=lambda other: split_hash(f"synthetic/{other}", seed)) != name)


# --- the model that a run begins from -----------------------------------------------------------------------------------


def begun(index: Index, share: float = FEW, **changed: Any) -> dict[str, Any]:
    """Entry of `init_from` of a model that was trained on this shard set with this split."""
    fit = {"validation_share": share, "split_seed": 0, "indexes": [index.fingerprint], "validation_indexes": []}
    fit |= {"sources": ["", "synthetic"], "metadata": {index.fingerprint: index.metadata}}
    return {"path": "parent/export", "trained_on": fit | changed}


def compared(data: OpenData, of: dict[str, Any], *, first: bool = True) -> int | None:
    return check_held_out_unseen(data.held_out_rows(), data.data.validation, of, first=first)


def test_a_new_run_is_not_validated_on_speakers_that_its_initial_model_was_trained_on(six, caplog):
    data, index = opened({"speech": six}), Index.open(six["shards"])
    sentence = (
        rf"parent/export was perhaps trained on 1 of the speakers .* \(synthetic/{ORDERED[0]}\): hold out others \(.* a share of "
        rf"{FEW:.4g} by split_seed=0\), .*data\.validation, or set data\.validation_share=0"
    )
    with pytest.raises(ValueError, match=sentence):
        compared(data, begun(index))
    assert not warnings_in(caplog)
    assert compared(data, begun(index), first=False) == 1 and "parent/export was perhaps trained on 1 of" in caplog.text
    caplog.clear()
    assert compared(data, begun(index, data.data.validation_share)) == 0 and not warnings_in(caplog), (
        "the settled share of its training"
    )
    assert compared(opened({"speech": six}, 0.0), begun(index)) == 0, "nobody is held out"
    assert compared(data, begun(index, indexes=["other"], sources=["", "other"], metadata={})) == 0, "of another corpus"
    with pytest.raises(ValueError, match="perhaps trained on 1 of"):
        compared(data, begun(index, indexes=["other"], metadata={}))  # another set of the same source


def test_all_initial_models_on_record_are_compared_and_a_gap_in_the_record_is_said(six, caplog):
    data, index = opened({"speech": six}), Index.open(six["shards"])
    unseen = begun(index, data.data.validation_share)["trained_on"]
    with pytest.raises(ValueError, match="perhaps trained on 1 of"):
        compared(data, {"path": "p", "trained_on": unseen | {"before": begun(index)["trained_on"]}})
    assert not warnings_in(caplog)
    for gap in (None, unseen | {"before": None}):
        caplog.clear()
        assert compared(data, {"path": "p", "trained_on": gap}) is None
        assert "p does not record all of its training data" in caplog.text


def test_a_validation_set_is_refused_where_it_was_trained_on_and_warned_of_where_only_its_source_was(six, tmp_path, caplog):
    dev = labelled(tmp_path, dict.fromkeys(["one", "two"], 1.5))
    data, index = opened({"speech": six}, 0.0, validation={"dev": dev}), Index.open(dev["shards"])
    elsewhere = begun(Index.open(six["shards"]), 0.0)
    with pytest.raises(ValueError, match=r"2 of the speakers .* \(synthetic/one, synthetic/two\)"):
        compared(data, begun(index, 0.0))
    with pytest.raises(ValueError, match=r"2 of the speakers"):
        compared(data, {"path": "p", "trained_on": elsewhere["trained_on"] | {"before": begun(index, 0.0)["trained_on"]}})
    assert not warnings_in(caplog)
    assert compared(data, elsewhere) == 2 and "no evidence about new speakers" in caplog.text
    caplog.clear()
    held_out_whole = elsewhere["trained_on"] | {"validation_indexes": [index.fingerprint]}
    assert compared(data, {"path": "p", "trained_on": held_out_whole}) == 0 and not warnings_in(caplog)


def test_the_run_records_the_count_at_each_launch_and_the_report_claims_no_more(six, tmp_path):
    data, index = opened({"speech": six}), Index.open(six["shards"])
    verdicts: Any = [SimpleNamespace(interval=None)]

    def noted(of: dict[str, Any] | None, checkpoint: Path | None = None) -> str:
        content = {} if of is None else {"init_from": of}
        beginning = SimpleNamespace(record=SimpleNamespace(content=content), data=data, checkpoint=checkpoint)
        note_held_out_seen(SimpleNamespace(data=data.data), beginning)  # type: ignore[arg-type]
        assert of is None or of.items() < content["init_from"].items()
        return _note(Iteration("first", tmp_path, record=content, data=data.summary()), verdicts)

    claim = "All figures are of held-out speakers, which the model was not trained on."
    weaker = "All figures are of held-out speakers, which this run was not trained on; the model that it was initialised from "
    assert noted(None) == noted(begun(index, data.data.validation_share)) == claim
    assert noted({"path": "p", "trained_on": None}) == f"{weaker}may have been trained on any of them."
    assert noted(begun(index), tmp_path / "step.ckpt") == f"{weaker}was perhaps trained on 1 of them."
    with pytest.raises(ValueError, match="no run may be validated"):
        noted(begun(index))
    older = Iteration("first", tmp_path, record={"init_from": {"path": "p"}}, data=data.summary())
    assert _note(older, verdicts).startswith(weaker)


def test_names_of_chosen_rows_are_theirs_alone(six):
    index = Index.open(six["shards"])
    rows = validation_rows(index, share=opened({"speech": six}).data.validation_share, split_seed=0)
    assert split_names(index, rows) == [f"synthetic/{ORDERED[0]}"] and len(split_names(index)) == 6
