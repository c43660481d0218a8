"""`openwavlm quality`: labels and layers judged on held-out voices, beside MFCC and shuffled units."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.evaluation.features import SPECTRA
from openwavlm.evaluation.quality import judge as measured
from openwavlm.evaluation.quality_rows import QualityRow
from openwavlm.evaluation.settings import QualitySettings
from openwavlm.evaluation.unseen import unseen_rows
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.report.quality_page import write_quality
from openwavlm.shards.index import Index
from openwavlm.shards.prepare import make_shards
from openwavlm.shards.splits import validation_rows
from programs import REPOSITORY, run_program
from runs import phone_times
from synthetic import make_corpus, make_shard_set

REAL = REPOSITORY.parent / "shared" / "data"


def judge(question: QualitySettings) -> tuple[dict, list[QualityRow]]:
    """What the command does: measures and writes."""
    result, rows = measured(question)
    write_quality(Path(question.output), result, rows)
    return result, rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of six voices, labels whose codebook heard some of them, a model, and times of two phones that take turns."""
    folder = tmp_path_factory.mktemp("quality")
    shards = make_shard_set(folder, speakers=6, utterances=3, seconds=(1.0, 2.0))
    shards.rename(folder / "shards")
    fit_codebook([folder / "shards"], folder / "codebook", clusters=8, min_frames_per_cluster=20, validation_share=0.5)
    fit_codebook([folder / "shards"], folder / "all-heard", clusters=8, min_frames_per_cluster=20, validation_share=0.0)
    for codebook, name in (("codebook", "labels"), ("all-heard", "labels-heard")):
        assign_labels(folder / "shards", folder / codebook, folder / name)
    phone_times(folder / "shards", folder / "phones.tsv")
    torch.manual_seed(0)
    sizes = {"conv_dims": (8,) * 7, "dim": 16, "ffn_dim": 32, "heads": 2, "layers": 2}
    save_huggingface(WavLM(WavLMConfig(**sizes, positional_kernel=8, positional_groups=2)), folder / "model")
    return folder


def asked(place: Path, output: Path, **changed: object) -> QualitySettings:
    defaults = {"shards": str(place / "shards"), "alignments": str(place / "phones.tsv"), "clusters": 8, "output": str(output)}
    return QualitySettings(**defaults | changed)


def test_the_program_judges_labels_and_layers_and_says_which_layer(place: Path) -> None:
    outcome = run_program(
        place,
        *("openwavlm", "quality", "shards=shards", "labels=labels", "encoder=model", "alignments=phones.tsv", "output=out"),
        *("conditions=[clean,noise10]", "abx=true", "layers=[1,2]"),
    )
    assert outcome.status == 0, outcome
    result = json.loads((place / "out" / "quality.json").read_text())
    kinds = [(row["kind"], row["layer"], row["condition"]) for row in result["rows"]]
    judged_layers = [("layer", 1), ("layer", 2), *((name, None) for name in SPECTRA), ("shuffled", None)]
    assert kinds == [
        ("labels", None, "clean"),
        *((*of, "clean") for of in judged_layers),
        *((*of, "noise10") for of in judged_layers),
    ]
    assert result["chosen_layer"] in (1, 2) and f"Best layer on these speakers: {result['chosen_layer']}" in outcome.stdout
    index = Index.open(place / "shards")
    held_out = validation_rows(index, share=0.5, split_seed=0)
    assert result["judged"]["utterances"] == held_out.sum(), "the voices that the labels' codebook has not heard"
    assert result["fitted_on"]["speakers"] == 6 - result["judged"]["speakers"]
    table = list(csv.DictReader((place / "out" / "quality.tsv").read_text().splitlines(), delimiter="\t"))
    assert [float(row["pnmi"]) for row in table] == pytest.approx([row["pnmi"] for row in result["rows"]], abs=1e-4)
    assert (place / "out" / "quality.png").read_bytes().startswith(b"\x89PNG")
    page = (place / "out" / "quality.html").read_text()
    assert "<svg" in page and "http" not in page.replace("http://www.w3.org", "")
    items = (place / "out" / "abx" / "phones.item").read_text().splitlines()
    names = {path.stem for path in (place / "out" / "abx" / "layer-01").iterdir()}
    assert len(items) > 10 and {line.split()[0] for line in items[1:]} <= names and len(names) == held_out.sum()
    assert {path.name for path in (place / "out" / "abx").iterdir()} == {
        "layer-01",
        "layer-02",
        "mfcc",
        "phones.item",
        "triphones.item",
    }


def test_the_same_question_gets_the_same_answer(place: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        judge(asked(place, tmp_path / name, labels=str(place / "labels")))
    for name in ("quality.tsv", "quality.html", "quality.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_without_alignments_the_phones_columns_are_empty(place: Path, tmp_path: Path) -> None:
    question = {"labels": str(place / "labels"), "encoder": str(place / "model"), "layers": [2]}
    result, rows = judge(asked(place, tmp_path / "with", **question))
    without, bare = judge(asked(place, tmp_path / "out", **question, alignments=None))
    assert [row.kind for row in bare] == ["labels", "layer", *SPECTRA, "shuffled"] and without["chosen_layer"] is None
    for name in ("seconds", "speakers", "utterances"):
        assert without["judged"][name] == result["judged"][name]
    assert without["judged"]["phones"] == 0
    for row, other in zip(rows, bare, strict=True):
        for name in ("used", "perplexity", "run_frames", "run_median", "speaker_information", "speaker_accuracy"):
            assert getattr(row.figures, name) == getattr(other.figures, name)
    table = list(csv.DictReader((tmp_path / "out" / "quality.tsv").read_text().splitlines(), delimiter="\t"))
    assert {row[name] for row in table for name in ("pnmi", "phone_purity", "pnmi_low", "verdict", "difference_to_best")} == {""}
    assert all(row["used"] and row["frames"] != "0" for row in table)
    written = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert written["rows"][0]["pnmi"] is None and "without phones" in written["sentences"][0]


def test_labels_know_nothing_of_a_clock(place: Path, tmp_path: Path) -> None:
    result, rows = judge(asked(place, tmp_path / "out", labels=str(place / "labels")))
    labels, mfcc, *_, shuffled = rows
    assert labels.kind == "labels" and labels.figures.frames == mfcc.figures.frames == shuffled.figures.frames
    # The made-up phones take turns every 0.2 s, whatever is heard.
    assert abs(labels.figures.pnmi) < 0.15 and result["chosen_layer"] is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"labels": "labels-heard"},
            "only speakers not seen in training are judged, but the codebook of .*labels-heard may have seen all of",
        ),
        ({"labels": "labels", "held_out": 0.3, "fit": "x"}, "held_out must be in"),
        ({"layers": [1]}, "layers=\\[1\\] needs a model, but encoder is null: add encoder=DIR"),
        ({"encoder": "model", "layers": [3]}, "a list out of 0…2"),
        ({"alignments": "none.tsv"}, "none.tsv does not exist"),
        ({"folding": "ipa"}, "folding must be one of"),
        ({"conditions": ["rain"]}, "conditions must be out of clean, telephone, noise10"),
        ({"seconds": 0}, "must be positive"),
        ({"alignments": None, "abx": True}, "abx compares phones, but alignments is null"),
        ({"fit": "shards"}, "no row of other speakers left"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_a_sentence(place: Path, tmp_path: Path, changed: dict, sentence: str) -> None:
    folders = {name: str(place / changed[name]) for name in ("labels", "encoder", "alignments", "fit") if changed.get(name)}
    with pytest.raises(ValueError, match=sentence) as refusal:
        judge(asked(place, tmp_path / "out", **changed | folders))
    assert "\n" not in str(refusal.value) and not (tmp_path / "out").exists()


def test_voices_that_a_model_was_trained_on_are_refused_unless_the_split_is_named(place: Path, tmp_path: Path) -> None:
    about = place / "model" / "openwavlm.json"
    kept = about.read_text() if about.exists() else None
    about.write_text(json.dumps({"fingerprints": {"shards.speech": Index.open(place / "shards").fingerprint}}))
    try:
        with pytest.raises(
            ValueError, match=r"was trained on .*: export the run again, .* set held_out= and split_seed= to the run's"
        ):
            judge(asked(place, tmp_path / "out", encoder=str(place / "model")))
        result, _ = judge(asked(place, tmp_path / "out", encoder=str(place / "model"), held_out=0.5, layers=[2]))
        assert result["chosen_layer"] == 2
    finally:
        about.unlink() if kept is None else about.write_text(kept)


@pytest.mark.parametrize("kind", ["labels", "encoder"])
def test_voices_that_were_heard_stay_so_when_shards_are_divided_anew_or_grow(place: Path, tmp_path: Path, kind: str) -> None:
    make_corpus(tmp_path / "corpus", speakers=8, utterances=3, seconds=(1.0, 2.0))
    grown = make_shard_set(tmp_path, corpus=tmp_path / "corpus", utterances_per_shard=3)
    phone_times(grown, tmp_path / "phones.tsv")
    index = Index.open(grown)
    first = Index.open(place / "shards")
    assert index.fingerprint != first.fingerprint and set(first.speakers) < set(index.speakers)
    held_out = set(np.flatnonzero(validation_rows(index, share=0.5, split_seed=0)).tolist())
    question = {"shards": str(grown), "alignments": str(tmp_path / "phones.tsv")}
    if kind == "labels":
        for name in ("codebook", "all-heard"):
            assign_labels(grown, place / name, tmp_path / name)
        some, everyone = ({"labels": str(tmp_path / name)} for name in ("codebook", "all-heard"))
    else:
        some, everyone = ({"encoder": str(tmp_path / name), "layers": [1]} for name in ("some", "everyone"))
        for name, share in (("some", 0.5), ("everyone", 0.0)):
            shutil.copytree(place / "model", tmp_path / name)
            trained_on = {"validation_share": share, "split_seed": 0, "indexes": [first.fingerprint], "sources": ["synthetic"]}
            (tmp_path / name / "openwavlm.json").write_text(json.dumps({"trained_on": trained_on}))
    result, _ = judge(asked(place, tmp_path / "out", **question, **some))
    assert result["judged"]["utterances"] == len(held_out) < len(index)
    with pytest.raises(ValueError, match="may have seen all of"):
        judge(asked(place, tmp_path / "out", **question, **everyone))
    # Where all that was heard lies beside it, voices that are new are known to be so.
    result, _ = judge(asked(place, tmp_path / "new", **question, **everyone, fit=str(place / "shards")))
    assert result["judged"]["speakers"] == 2
    result, _ = judge(asked(place, tmp_path / "all", **question, **everyone, held_out=0.5, allow_overlap=True))
    assert result["judged"]["utterances"] == len(held_out)
    # An own split cannot bring heard voices back.
    other = int((validation_rows(index, share=0.9, split_seed=1) & validation_rows(index, share=0.5, split_seed=0)).sum())
    result, _ = judge(asked(place, tmp_path / "mine", **question, **some, held_out=0.9, split_seed=1))
    assert result["judged"]["utterances"] == other


def test_recordings_of_another_source_were_not_heard(place: Path, tmp_path: Path) -> None:
    index = Index.open(make_shard_set(tmp_path, corpus=place / "corpus", source="dev"))
    heard = {"validation_share": 0.0, "split_seed": 0}
    assert not unseen_rows(index, heard).any() and not unseen_rows(index, heard | {"sources": ["dev"]}).any()
    assert unseen_rows(index, heard | {"sources": ["synthetic", ""]}).all()
    held_out = heard | {"validation_indexes": [index.fingerprint]}
    assert unseen_rows(index, held_out).all()
    assert not unseen_rows(index, held_out | {"indexes": [index.fingerprint]}).any(), "what was trained on was heard"


def test_what_a_model_heard_before_it_was_trained_on_is_heard(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = Index.open(place / "shards")
    other = {"validation_share": 0.0, "split_seed": 0, "sources": ["elsewhere"]}
    half = {"validation_share": 0.5, "split_seed": 0, "indexes": [index.fingerprint]}
    held_out = validation_rows(index, share=0.5, split_seed=0)
    assert unseen_rows(index, other).all()
    assert (unseen_rows(index, other | {"before": half}) == held_out).all() and held_out.any() and not held_out.all()
    assert (unseen_rows(index, other | {"before": other | {"before": half}}) == held_out).all()
    shutil.copytree(place / "model", tmp_path / "model")
    begun = {"init_from": {"model": "abc", "dialect": "Microsoft"}}
    for number, (about, warned) in enumerate(
        [
            ({"trained_on": other | {"before": None}}, True),
            ({"trained_on": other | {"before": other | {"before": None}}}, True),
            ({"trained_on": other} | begun, True),
            ({"trained_on": other}, False),
            ({"trained_on": other | {"before": half}} | begun, False),
        ]
    ):
        (tmp_path / "model" / "openwavlm.json").write_text(json.dumps(about))
        caplog.clear()
        result, _ = judge(asked(place, tmp_path / str(number), encoder=str(tmp_path / "model"), layers=[1]))
        assert ("was initialised from a model without a record of training data" in caplog.text) == warned
    assert result["judged"]["utterances"] == held_out.sum()


def test_recordings_of_unknown_speakers_are_no_speakers_and_it_says_so(place: Path, tmp_path: Path) -> None:
    make_shards(input=place / "corpus", output=tmp_path / "shards", min_seconds=0.5)
    assert len(Index.open(tmp_path / "shards")) and not Index.open(tmp_path / "shards").speaker[:].any()
    known, _ = judge(asked(place, tmp_path / "known", labels=None, encoder=str(place / "model"), layers=[1], held_out=0.5))
    assert known["judged"]["without_speaker"] == 0 and not any("unknown speakers" in one for one in known["sentences"])
    phone_times(tmp_path / "shards", tmp_path / "phones.tsv")
    question = {"shards": str(tmp_path / "shards"), "alignments": str(tmp_path / "phones.tsv"), "labels": None, "layers": [1]}
    result, _ = judge(asked(place, tmp_path / "out", **question, encoder=str(place / "model"), held_out=0.5))
    assert result["judged"]["without_speaker"] == result["judged"]["utterances"] > 0
    assert any("each of their recordings counts as a speaker" in sentence for sentence in result["sentences"])


def test_alignments_that_fit_too_few_recordings_are_refused(place: Path, tmp_path: Path) -> None:
    lines = (place / "phones.tsv").read_text().splitlines()
    some = tmp_path / "some.tsv"
    some.write_text("\n".join(line for line in lines if "utt001" not in line) + "\n")
    with pytest.raises(ValueError, match=r"share of 0\.05 of the recordings .* may lack an alignment"):
        judge(asked(place, tmp_path / "out", alignments=str(some)))
    result, _ = judge(asked(place, tmp_path / "out", alignments=str(some), max_unmatched_share=0.5))
    assert result["judged"]["without_alignment"] > 0


@pytest.mark.parametrize(("name", "expected", "tolerance"), [("autovot", 0.54, 0.03), ("polyglotdb", 0.60, 0.05)])
def test_published_figures_of_mfcc_on_real_speech_come_out(tmp_path: Path, name: str, expected: float, tolerance: float) -> None:
    if not (REAL / "phones.tsv").is_file():
        pytest.skip(f"the real recordings of {REAL} are not on this machine")
    make_shards(input=REAL / "phones" / name, output=tmp_path / "shards", source=name, min_seconds=0.1)
    question = QualitySettings(
        shards=str(tmp_path / "shards"),
        alignments=str(REAL / "phones.tsv"),
        output=str(tmp_path / "out"),
        folding="none",
        held_out=0,
        frames_per_cluster=10,
    )
    result, rows = judge(question)
    (normalised,) = (row for row in rows if row.kind == "mfcc_norm")
    assert normalised.figures.clusters == 100 and result["judged"]["without_alignment"] == 0
    assert normalised.figures.pnmi_raw == pytest.approx(expected, abs=tolerance)
    assert np.isclose(normalised.figures.pnmi, normalised.figures.pnmi_raw - normalised.figures.pnmi_shuffled)


def damaged(place: Path, folder: Path, rows: list[int]) -> Path:
    """A copy of the shards in which these rows do not decode."""
    shards = folder / f"damaged-{len(rows)}"
    shutil.copytree(place / "shards", shards)
    index = Index.open(shards)
    for row in rows:
        with (shards / index.shards[int(index.shard[row])].name).open("r+b") as file:
            file.seek(int(index.offset[row]) + 200)
            file.write(b"\xff\x00" * 400)
    return shards


def test_one_unreadable_utterance_is_named_and_left_out_of_everything_that_is_compared(place, tmp_path, caplog) -> None:
    held_out = np.flatnonzero(validation_rows(Index.open(place / "shards"), share=0.5, split_seed=0)).tolist()
    labels = {"labels": str(place / "labels")}
    with_one, _ = judge(asked(place, tmp_path / "one", shards=str(damaged(place, tmp_path, held_out[:1])), **labels))
    whole, _ = judge(asked(place, tmp_path / "whole", **labels))
    assert with_one["judged"]["utterances"] == whole["judged"]["utterances"] - 1
    assert any(line.startswith(f"skipped: row {held_out[0]} of ") for line in caplog.messages)
    with pytest.raises(ValueError, match="may be unreadable, but 2 of"):
        judge(asked(place, tmp_path / "two", shards=str(damaged(place, tmp_path, held_out[:2])), **labels))
