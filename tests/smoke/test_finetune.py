"""Fine-tunings as whole programs: killed and resumed, on one process and two, tested at the end, and refused in a sentence."""

import json
from pathlib import Path
from shutil import copytree

import jiwer
import pytest

from openwavlm.checkpoints.load import load_checkpoint
from openwavlm.downstream.config import FinetuneConfig
from openwavlm.downstream.data import OpenTask
from openwavlm.downstream.testing import measure_test
from openwavlm.downstream.validation import TaskEvaluation
from openwavlm.runs.gather import report_runs
from openwavlm.training.config import RunConfig
from openwavlm.training.run_files import read_config
from programs import run_program
from runs import launch, table, weights
from tasks import FINETUNE, begin, make_encoder, make_task_shards, values_of
from torch_audio import torchaudio


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_task_shards(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "exported")


def arguments(shards: Path, encoder: Path | str, *overrides: str) -> list[str]:
    speakers = ["data.validation_share=0", "data.validation_speakers=[s1]", "data.test_speakers=[s2,s3]"]
    return [*FINETUNE, f"init={encoder}", f"data.sources.speech.shards={shards}", *speakers, *overrides]


RECORDS = ("metrics.csv", "validation.csv", "health.csv", "test.tsv", "symbols.json")


@pytest.fixture(scope="module")
def whole(shards, encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert launch(arguments(shards, encoder), folder, begin=begin) == [0]
    return folder


def test_a_fine_tuning_that_was_killed_and_stopped_is_that_of_one_launch(shards, encoder, whole, tmp_path):
    run = tmp_path / "run"
    assert launch(arguments(shards, encoder), run, kill_at_fsync=18, begin=begin) == [-9]
    assert len(table(run)) < 12
    assert launch(arguments(shards, encoder, "stop_after=7"), run, begin=begin) == [0]
    assert len(table(run)) == 7
    assert launch(arguments(shards, encoder), run, begin=begin) == [0]
    for name in RECORDS:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    first, second = weights(whole, 12), weights(run, 12)
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def test_two_processes_follow_the_trajectory_of_one(shards, encoder, whole, tmp_path):
    assert launch(arguments(shards, encoder), tmp_path / "run", world_size=2, begin=begin) == [0, 0]
    for name, figures in (("metrics.csv", ("loss", "grad_norm")), ("validation.csv", ("loss", "word_error"))):
        one, two = table(whole, name), table(tmp_path / "run", name)
        assert len(one) == len(two) > 0
        for before, after in zip(one, two, strict=True):
            for figure in figures:
                assert float(after[figure]) == pytest.approx(float(before[figure]), rel=1e-5), (name, figure)


def test_the_encoder_is_held_over_the_first_updates_and_trained_then(shards, encoder, whole, tmp_path):
    assert launch(arguments(shards, encoder, "stop_after=3"), tmp_path / "run", begin=begin) == [0]
    first, given = weights(tmp_path / "run", 3), load_checkpoint(encoder)[0].state_dict()
    assert all((first[f"model.wavlm.{name}"] == value).all() for name, value in given.items())
    held, later = weights(whole, 4), weights(whole, 12)
    moved = {name for name in held if not (held[name] == later[name]).all()}
    assert {"model.head.lm_head.weight", "model.wavlm.encoder.layers.1.attention.query.weight"} <= moved
    assert not any("extractor" in name for name in moved)
    assert [float(row["lr"]) for row in table(whole)][:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])


def test_the_test_is_measured_once_with_an_interval_over_speakers(shards, encoder, whole):
    test = json.loads((whole / "summary.json").read_text())["test"]
    rows = [line.split("\t") for line in (whole / "test.tsv").read_text().splitlines()]
    assert rows[0] == ["key", "speaker", "reference", "prediction", "edits", "length"] and len(rows) == 1 + test["rows"] == 9
    assert {row[1] for row in rows[1:]} == {"s2", "s3"} and test["speakers"] == 2
    edits, length = (sum(int(row[place]) for row in rows[1:]) for place in (4, 5))
    assert test["word_error"] == pytest.approx(edits / length) and test["checkpoint"] in (4, 8, 12)
    before = (whole / "test.tsv").stat().st_mtime_ns
    assert launch(arguments(shards, encoder), whole, begin=begin) == [0]
    assert (whole / "test.tsv").stat().st_mtime_ns == before


def test_a_beam_search_decodes_the_test_beside_the_greedy_one(shards, encoder, whole, tmp_path):
    pytest.importorskip("flashlight", reason="flashlight-text is not installed: the extra decode has it")
    torchaudio()
    run, words = tmp_path / "run", tmp_path / "words"
    words.write_text("ab\nba\n")
    copytree(whole, run)
    config = FinetuneConfig.of(
        values_of(arguments(shards, encoder, "task.decoder=beam", f"task.lexicon={words}", "task.beam=20"))
    )
    data = OpenTask(config.task, config.data, config.batch, config.seed)
    before = json.loads((whole / "summary.json").read_text())
    summary = measure_test(run, config, data, {name: value for name, value in before.items() if name != "test"})
    test = dict(summary["test"])
    beam = test.pop("beam")
    assert test == before["test"] and json.loads((run / "summary.json").read_text()) == summary
    rows = [line.split("\t") for line in (run / "test.tsv").read_text().splitlines()]
    assert ["\t".join(row[:6]) for row in rows] == (whole / "test.tsv").read_text().splitlines()
    assert rows[0][6:] == ["beam_prediction", "beam_edits"]
    assert {word for row in rows[1:] for word in row[6].split()} <= {"ab", "ba"}
    edits = [jiwer.process_words(row[2], row[6]) for row in rows[1:]]
    edits = [one.substitutions + one.deletions + one.insertions for one in edits]
    assert [int(row[7]) for row in rows[1:]] == edits and beam["word_error"] == pytest.approx(
        sum(edits) / sum(int(row[5]) for row in rows[1:])
    )
    assert (beam["beam"], beam["lexicon"]["path"], len(beam["interval"])) == (20, str(words), 2) and "language_model" not in beam
    page = report_runs([run], tmp_path / "page").read_text()
    assert f"By beam search (lexicon {words}): word error rate {beam['word_error']:.3f}, character error rate" in page
    assert "Test rows with the most errors (8 of 8)" in page


def test_a_beam_search_that_cannot_run_is_refused_before_training(shards, encoder, tmp_path):
    pytest.importorskip("flashlight", reason="flashlight-text is not installed: the extra decode has it")
    torchaudio()
    wrong = arguments(shards, encoder, "task.decoder=beam", f"task.language_model={tmp_path / 'lm.arpa'}")
    with pytest.raises(ValueError, match=r"task.language_model must be an ARPA file, .*lm.arpa does not exist"):
        begin(wrong, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_the_page_opens_with_the_tested_rate_and_lists_the_worst_rows(whole, tmp_path):
    page = report_runs([whole], tmp_path).read_text()
    test = json.loads((whole / "summary.json").read_text())["test"]
    low, high = test["interval"]
    assert (
        f"Word error rate on the test part: {test['word_error']:.3f} ({low:.3f} … {high:.3f}), over 8 rows of 2 speakers." in page
    )
    assert "train the same task with init=mfcc" in page and "Test rows with the most errors (8 of 8)" in page
    assert page.count('role="img"') == 4 and all(f"<th>{speaker}</th>" in page for speaker in ("s2", "s3"))
    with pytest.raises(ValueError, match="is a fine-tuning: give it alone"):
        report_runs([whole, whole], tmp_path)
    with pytest.raises(ValueError, match="this is one of openwavlm finetune"):
        RunConfig.of(read_config(whole / "config.yaml"))


@pytest.mark.parametrize(
    ("overrides", "columns"),
    [
        (["task=phones"], ["phone_error"]),
        (["task=sid", "task.field=word", "trained.encoder=frozen", "trained.freeze_updates=0"], ["class_error"]),
        (["task=sid", "task.field=word", "init=log_mel", "trained.freeze_updates=0"], ["class_error"]),
        (["task=ctc", "untrained=true", "precision=bf16-mixed"], ["word_error", "character_error"]),
    ],
)
def test_every_task_trains_and_is_validated(shards, encoder, tmp_path, overrides, columns):
    assert launch(arguments(shards, encoder, *overrides), tmp_path / "run", begin=begin) == [0]
    rows = table(tmp_path / "run", "validation.csv")
    assert list(rows[0]) == ["step", *columns, "loss", "top_share", "top_symbol", "rows"] and [row["step"] for row in rows] == [
        "6",
        "12",
    ]
    assert all(row["rows"] == "4" for row in rows)


def test_a_run_of_pre_training_is_an_encoder_and_its_audio_may_not_be_held_out(shards, encoder, tmp_path):
    from openwavlm.labels.assign import assign_labels
    from openwavlm.labels.fit import fit_codebook
    from runs import SETTINGS

    fit_codebook([shards], tmp_path / "codebook", clusters=4, engine="minibatch", min_frames_per_cluster=5, validation_share=0.3)
    assign_labels(shards, tmp_path / "codebook", tmp_path / "labels")
    data = [f"data.sources.speech.shards={shards}", f"data.sources.speech.labels={tmp_path / 'labels'}", "mixing.noise_prob=0"]
    assert launch([*SETTINGS, *data, "optim.updates=3", "batch.min_seconds=0.5"], tmp_path / "pretrained") == [0]
    refused = run_program(tmp_path, "openwavlm", "finetune", *arguments(shards, tmp_path / "pretrained"))
    assert "held-out rows are in the pre-training of" in refused.error() and "data.allow_overlap=true" in refused.error()
    allowed = arguments(shards, tmp_path / "pretrained", "data.allow_overlap=true")
    assert launch(allowed, tmp_path / "run", begin=begin) == [0]
    record = json.loads((tmp_path / "run" / "run.json").read_text())["init"]
    assert record["dialect"] == "run of OpenWavLM" and record["held_out_seen"]["rows"] == 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.learning_rate=1"], "optim.learning_rate is not a known key; did you mean optim.lr?"),
        (["task.field=mood"], "task.field=mood must be a text or number"),
        (["data.test_speakers=[s9]"], "s9 is not: there are"),
        (["init=nowhere"], "nowhere does not exist"),
        (["task.projection=0"], "task.projection must be at least 1"),
        (["data.sources.speech.shards=null"], "data.sources.speech.shards must name a folder"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(shards, encoder, tmp_path, overrides, message):
    refused = run_program(tmp_path, "openwavlm", "finetune", *arguments(shards, encoder, *overrides))
    assert message in refused.error()


def test_other_targets_are_refused_on_a_second_launch(shards, encoder, tmp_path):
    from openwavlm.shards.index import Index

    keys, table_file = Index.open(shards).keys, tmp_path / "targets.tsv"
    table_file.write_text("key\ttext\n" + "".join(f"{key}\tab ba\n" for key in keys))
    given = arguments(shards, encoder, f"task.table={table_file}", "stop_after=2")
    begin(given, tmp_path / "run")
    with pytest.raises(ValueError, match=r"task.letters: 'as_is' -> 'upper'"):
        begin([*given, "task.letters=upper"], tmp_path / "run")
    table_file.write_text(table_file.read_text().replace("ab ba", "ba ab", 1))
    with pytest.raises(ValueError, match=r"the data of this run has changed since it began \(targets.speech in"):
        begin(given, tmp_path / "run")


def test_a_collapse_ends_the_run_with_advice_and_a_resumed_run_counts_on(shards, encoder, tmp_path, monkeypatch):
    real = TaskEvaluation.run
    monkeypatch.setattr(TaskEvaluation, "run", lambda *arguments: real(*arguments) | {"top_share": 0.996, "top_symbol": 0})
    every = arguments(shards, encoder, "callbacks.validate_every=2", "optim.updates=20")
    begin([*every, "stop_after=6"], tmp_path / "run")  # validated after 2, which is too early to count, 4 and 6
    with pytest.raises(ValueError, match=r"predictions have collapsed: '<pad>' is 99.6 % of them at 3 validations in a row"):
        begin(every, tmp_path / "run")
    assert [row["step"] for row in table(tmp_path / "run", "validation.csv")] == ["2", "4", "6"]
    assert len(table(tmp_path / "run")) == 7
