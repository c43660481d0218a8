"""What is damaged, lost or mixed up in a run's folder or in a model's files is named, and nothing is cut in silence."""

import csv
import json
import logging
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from openwavlm.batches.plan import PLAN_VERSION
from openwavlm.checkpoints import account as account_module
from openwavlm.checkpoints.about import ABOUT, about_bytes
from openwavlm.checkpoints.fairseq_config import microsoft_config
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.checkpoints.load import load_checkpoint
from openwavlm.model.wavlm import WavLM
from openwavlm.report.content import read_iteration
from openwavlm.runs.replay import _recorded
from openwavlm.runs.run_directory import RunRecord, accept_config
from openwavlm.runs.segments import segment_of
from openwavlm.runtime.sealed import sealed
from openwavlm.training.checkpoint import AtomicCheckpointIO, checkpoint_path, named_checkpoint, newest_checkpoint
from openwavlm.training.checkpoint_reader import read_checkpoint
from openwavlm.training.records import CsvRecord, read_record
from openwavlm.training.run_files import config_checksum, flatten, parse_config, read_config
from random_models import TINY

COLUMNS = ["step", "loss"]
CONFIG = {"seed": 1, "optim": {"lr": 0.1, "updates": 100}}


# --- tables -------------------------------------------------------------------------------------------------------------


def table(path: Path, last: int = 9, at: int = 6) -> dict:
    """A table of `last` rows; returns what a checkpoint after row `at` keeps of it."""
    record, kept = CsvRecord(path, COLUMNS), {}
    for step in range(1, last + 1):
        record.write({"step": step, "loss": step / 8})
        if step == at:
            kept = record.prefix()
    record.close()
    return kept


def goes_on(path: Path, prefix: dict | None, at: int = 6) -> CsvRecord:
    record = CsvRecord(path, COLUMNS, last_step=at, prefix=prefix, every_update=True)
    record.close()
    return record


def steps(path: Path) -> list[int]:
    return [int(line.split(",")[0]) for line in path.read_text().splitlines()[1:]]


def test_rows_past_a_checkpoint_are_cut_without_a_word(tmp_path, caplog):
    path = tmp_path / "metrics.csv"
    prefix = table(path)
    assert goes_on(path, prefix).damage is None and steps(path) == [1, 2, 3, 4, 5, 6]
    assert not caplog.records and [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("damage", "said", "left"),
    [
        (lambda text: text.replace("3,0.375", "3,0.975"), "its content is not what was written", [1, 2, 3, 4, 5, 6]),
        (lambda text: text.replace("3,0.375", "3,0.3x5"), r"line 4 cannot be read.* update 3 has no figures", [1, 2, 4, 5, 6]),
        (lambda text: text.replace("3,0.375\n", "\0\0"), r"updates 3-4 have no figures", [1, 2, 5, 6]),
        (lambda text: text.replace("3,0.375", "53,0.375"), r"update 3 has no figures", [1, 2, 4, 5, 6]),
        (lambda text: text[:20], r"it has 20 bytes, not \d+ or more\).* updates 2-6 have no figures", [1]),
        (lambda text: text.replace("step", "st\0p"), "its first line does not name its columns", [1, 2, 3, 4, 5, 6]),
        (lambda text: "", r"updates 1-6 have no figures", []),
        (lambda text: text.replace("3,0.375\n", "3,0.375\n3,0.25\n"), r"line 5 cannot be read", [1, 2, 3, 4, 5, 6]),
    ],
    ids=["digit", "letter", "zeros", "step", "cut", "first line", "empty", "two rows of one update"],
)
def test_damage_before_a_checkpoint_is_said_and_the_file_is_kept(tmp_path, caplog, damage, said, left):
    path = tmp_path / "metrics.csv"
    prefix = table(path)
    path.write_text(damage(path.read_text()))
    before = path.read_bytes()
    record = goes_on(path, prefix)
    assert steps(path) == left
    assert record.damage.startswith(f"{path} is damaged (") and "before update 6" in record.damage
    assert caplog.messages == [record.damage] and read_record(path).faults == []
    assert re.search(said, record.damage), record.damage
    assert (tmp_path / "metrics.csv.damaged-6").read_bytes() == before


def test_a_sentence_with_quotation_marks_and_commas_comes_back_as_it_was(tmp_path):
    record = CsvRecord(tmp_path / "health.csv", ["step", "rule", "sentence"])
    record.write({"step": 1, "rule": "a", "sentence": 'the "loss", it says, is 3'})
    record.close()
    with (tmp_path / "health.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == ["1", "a", 'the "loss", it says, is 3']
    assert read_record(tmp_path / "health.csv").rows == [["1", "a", 'the "loss", it says, is 3']]


def test_a_table_that_is_missing_is_said(tmp_path, caplog):
    path = tmp_path / "metrics.csv"
    prefix = table(path)
    path.unlink()
    assert goes_on(path, prefix).damage.startswith(f"{path} is missing before update 6, from which the run resumes: updates 1-6")
    assert len(caplog.messages) == 1


def test_without_a_checkpoints_word_updates_without_a_row_are_said_once_and_a_second_damage_has_a_name_of_its_own(tmp_path):
    path = tmp_path / "metrics.csv"
    table(path)
    path.write_text(path.read_text().replace("3,0.375\n", ""))
    first = goes_on(path, None)
    assert "update 3 has no figures" in first.damage and steps(path) == [1, 2, 4, 5, 6]
    kept = first.prefix()
    assert goes_on(path, kept).damage is None, "the gap was said when it arose"
    path.write_text(path.read_text().replace("5,0.625\n", ""))
    assert "updates 3 and 5 have no figures" in goes_on(path, kept).damage
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.csv", "metrics.csv.damaged-6", "metrics.csv.damaged-6-1"]


# --- run.json, config.yaml ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of two launches, the second from update 6 on, and its checkpoints after 3, 6 and 9 updates."""
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (0, 6):
        accept_config(folder, CONFIG, [])
        made_by = {"versions": {"openwavlm": "0.1"}, "commit": None, "threads": 1, "plan_version": 1, "changes": {}}
        made_by |= {"plan": {"key": "k"}, "fingerprints": {}}
        RunRecord(folder).begin_segment({"from_step": step, **made_by})
    for step in (3, 6, 9):
        save(folder, step)
    return folder


def save(run: Path, step: int, of: str = "") -> Path:
    records = {"launch": 2, "run": of, "tables": {}}
    ours = {"step": step, "fingerprints": {}, "plan": {}, "records": records, "validation": 1 / step}
    path = checkpoint_path(run / "checkpoints", step)
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(2)}, "openwavlm": ours}, path)
    return path


def test_a_value_that_changed_in_run_json_or_config_yaml_is_noticed(run):
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"from_step": 6', '"from_step": 7'))
    with pytest.raises(ValueError, match=r"run\.json is damaged \(its checksum differs\): restore it"):
        RunRecord(run)
    (run / "run.json").write_text(text)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("lr: 0.1", "lr: 0.9"))
    with pytest.raises(ValueError, match=r"config\.yaml is damaged or was edited \(no launch in run\.json wrote it\)"):
        read_config(run / "config.yaml")


@pytest.mark.parametrize("value", [True, -1, 1.0, "1", None])
def test_a_launch_begins_at_a_whole_number_of_updates(run, value):
    content = json.loads((run / "run.json").read_text())
    content["segments"][0]["from_step"] = value
    (run / "run.json").write_text(json.dumps(sealed(content)))
    with pytest.raises(ValueError, match=r"run\.json is damaged \(it must hold the launches of a run"):
        RunRecord(run)


def test_a_config_is_known_by_every_value_but_its_paths():
    config = {"precision": "32-true", "data": {"sources": {"a": {"shards": "data/a", "weight": 1.0}}}, "layers": [1, "x"]}
    moved = {**config, "data": {"sources": {"a": {"shards": "/elsewhere/a", "weight": 1.0}}}}
    assert config_checksum(moved) == config_checksum(config)
    for changed in (
        {**config, "precision": "bf16-mixed"},
        {**config, "layers": [1, "y"]},
        {**config, "data": {"sources": {"b": config["data"]["sources"]["a"]}}},
        {**config, "data": {"sources": {"a": {"shards": "data", "weight": 1.0}}}},
    ):
        assert config_checksum(changed) != config_checksum(config)


@pytest.mark.parametrize(("lost", "other"), [("run.json", "config.yaml"), ("config.yaml", "run.json")])
def test_a_run_that_lost_its_record_or_its_config_is_not_begun_anew(run, lost, other):
    (run / lost).unlink()
    (run / "config.yaml.next").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=rf"{lost} is missing, but {other}"):
        accept_config(run, CONFIG, [])


def test_a_launch_that_was_killed_before_its_config_took_its_name_is_finished_by_the_next(run):
    (run / "config.yaml").rename(run / "config.yaml.next")
    assert accept_config(run, CONFIG, []) == {} and read_config(run / "config.yaml") == CONFIG
    with pytest.raises(ValueError, match=r"seed: 1 -> 2"):
        accept_config(run, {**CONFIG, "seed": 2}, [])


def test_a_run_of_format_1_goes_on_and_is_brought_to_this_format(run):
    content = json.loads((run / "run.json").read_text())
    old = {key: value for key, value in content.items() if key not in ("configs", "seal")} | {"format_version": 1}
    (run / "run.json").write_text(json.dumps(old))
    assert segment_of(run, 7).number == 1
    accept_config(run, CONFIG, [])
    record = RunRecord(run)
    record.begin_segment({"from_step": 9})
    upgraded = json.loads((run / "run.json").read_text())
    assert upgraded["format_version"] == 2 and upgraded == sealed(upgraded) and upgraded["segments"][:2] == old["segments"]


OLDER = {  # as versions before 2026-11-29 wrote it
    "seed": 1,
    "optim": {"_target_": "openwavlm.training.optim.Optim", "lr": 0.1, "max_void_rate": 0.02},
    "model": {"_target_": "openwavlm.model.config.WavLMConfig", "dim": 8},
    "head": {"_target_": "openwavlm.training.config.Head", "final_dim": 4, "special_rows": 0},
    "data": {"_target_": "openwavlm.batches.sources.Data", "sources": {"a.b": {"shards": "x", "weight": 1.0}}, "validation": {}},
    "health": {"_target_": "openwavlm.training.health.settings.Health", "void_share": 0.03, "mixing_tolerance": 0.05},
}
TODAY = {
    "seed": 1,
    "optim": {"lr": 0.1, "max_skip_rate": 0.02},
    "model": {"dim": 8, "head": {"final_dim": 4, "special_rows": 0}},
    "data": {"sources": {"a.b": {"shards": "x", "weight": 1.0}}, "validation": {}},
    "health": {"skipped_share": 0.03},
}


def test_a_config_of_an_older_version_is_read_under_todays_keys_and_its_run_goes_on(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    made_by = {"versions": {"openwavlm": "0.1"}, "commit": None, "threads": 1, "plan_version": PLAN_VERSION, "changes": {}}
    made_by |= {"plan": {"key": "k"}, "fingerprints": {}}
    older = deepcopy(OLDER)
    for step, rows, rate in ((0, 0, 0.02), (3, 4, 0.05)):
        older["head"]["special_rows"], older["optim"]["max_void_rate"] = rows, rate
        accept_config(run, older, ["head", "optim", "model", "data"])
        changes = {"head.special_rows": [0, 4], "optim.max_void_rate": [0.02, 0.05]} if step else {}
        RunRecord(run).begin_segment({"from_step": step, **made_by, "changes": changes})
    identity = RunRecord(run).content["run"]
    assert read_config(run / "config.yaml")["model"]["head"] == {"final_dim": 4, "special_rows": 4}
    assert segment_of(run, 5).config["optim"] == {"lr": 0.1, "max_skip_rate": 0.05}
    first = segment_of(run, 2).config
    assert (first["model"]["head"]["special_rows"], first["optim"]["max_skip_rate"]) == (0, 0.02)
    assert not [key for key in flatten(first) if "_target_" in key or key.startswith("head")]

    today = deepcopy(TODAY) | {"optim": {"lr": 0.1, "max_skip_rate": 0.05}}
    today["model"]["head"]["special_rows"] = 4
    assert accept_config(run, today, []) == {}
    RunRecord(run).begin_segment({"from_step": 6, **made_by})
    assert read_config(run / "config.yaml") == today == parse_config(run / "config.yaml")
    assert RunRecord(run).content["run"] == identity


def test_each_key_of_an_older_config_has_its_place(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(OLDER))
    assert read_config(path) == TODAY
    path.write_text(json.dumps(TODAY))
    assert read_config(path) == TODAY


YAMLS = {
    "a loop": "a: &a [*a]",
    "without end": "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
    "deep": "a: " + "[" * 2000,
    "code": "a: !!python/object/apply:os.system [false]",
    "a date": "a: 2024-13-45",
    "a number": "a: !!int ''",
    "bytes": "a: !!binary aGk=",
    "a number as key": "1: 2",
    "zeros": "\0\0",
    "a list": "[1]",
}


@pytest.mark.parametrize("kind", YAMLS)
def test_what_is_no_config_is_named(tmp_path, kind):
    (tmp_path / "config.yaml").write_text(YAMLS[kind])
    with pytest.raises(
        ValueError, match=r"config\.yaml is damaged \(.*\): restore it from a copy, or start a new run"
    ) as refusal:
        read_config(tmp_path / "config.yaml")
    assert "\n" not in str(refusal.value)


# --- checkpoints in odd states ------------------------------------------------------------------------------------------


def sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def renamed(run: Path) -> None:
    newest, wrong = checkpoint_path(run / "checkpoints", 9), checkpoint_path(run / "checkpoints", 12)
    newest.rename(wrong)
    sidecar(newest).rename(sidecar(wrong))


def swapped(run: Path) -> None:
    shutil.copy(sidecar(checkpoint_path(run / "checkpoints", 3)), sidecar(checkpoint_path(run / "checkpoints", 9)))


def of_other_step(run: Path) -> None:
    shutil.copy(checkpoint_path(run / "checkpoints", 3), checkpoint_path(run / "checkpoints", 9))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: sidecar(checkpoint_path(run / "checkpoints", 9)).unlink(), r"step-00000009\.ckpt\.json is missing"),
        (
            lambda run: checkpoint_path(run / "checkpoints", 9).unlink(),
            r"step-00000009\.ckpt\.json is of a checkpoint that is not",
        ),
        (renamed, r"step-00000012\.ckpt is named after update 12, but step-00000012\.ckpt\.json describes one after update 9"),
        (swapped, r"step-00000009\.ckpt is named after update 9, but step-00000009\.ckpt\.json describes one after update 3"),
        (of_other_step, r"step-00000009\.ckpt is damaged \(its size or checksum is not that in step-00000009\.ckpt\.json\)"),
    ],
    ids=["no description", "description alone", "renamed", "description of another", "content of another"],
)
def test_an_odd_checkpoint_is_named_and_the_one_before_is_taken(run, caplog, change, said):
    change(run)
    assert newest_checkpoint(run / "checkpoints") == checkpoint_path(run / "checkpoints", 6)
    assert re.search(said, caplog.text), caplog.text


def test_a_checkpoint_of_another_step_is_refused_also_with_a_description_that_fits_it(run):
    path = checkpoint_path(run / "checkpoints", 9)
    other = checkpoint_path(run / "checkpoints", 3)
    with pytest.raises(ValueError, match=r"step-00000009\.ckpt is named after update 9, but holds the state after update 3"):
        shutil.copy(other, path)
        read_checkpoint(path)


def test_a_best_checkpoint_is_not_chosen_among_those_that_can_be_read_in_silence(run, caplog):
    path = checkpoint_path(run / "checkpoints", 9)
    sidecar(path).write_text("{")
    assert named_checkpoint(run / "checkpoints", "best") == checkpoint_path(run / "checkpoints", 6)
    assert "step-00000009.ckpt is not compared" in caplog.text and "step-00000009.ckpt.json is damaged" in caplog.text


def test_a_run_that_lost_its_checkpoints_does_not_begin_again(run):
    with pytest.raises(ValueError, match=r"checkpoints has no checkpoint, but by run\.json .* wrote one after update 6"):
        RunRecord(run).refuse_lost_checkpoints()
    content = json.loads((run / "run.json").read_text())
    content["segments"].pop()
    (run / "run.json").write_text(json.dumps(sealed(content)))
    RunRecord(run).refuse_lost_checkpoints()  # killed before its first checkpoint
    for step in (3, 6):
        RunRecord(run).note_checkpoint(step)
    with pytest.raises(ValueError, match=r"checkpoints has no checkpoint, but by run\.json .* wrote one after update 3"):
        RunRecord(run).refuse_lost_checkpoints()


def test_the_updates_of_a_launch_that_ended_before_its_first_checkpoint_are_said_to_be_lost(run, caplog):
    record = RunRecord(run)
    record.warn_of_lost_updates()
    assert not caplog.messages
    table(run / "metrics.csv", last=5)
    record.warn_of_lost_updates()
    assert "metrics.csv has updates 1 to 5 of a launch that ended before its first checkpoint: they are lost" in caplog.text
    caplog.clear()
    record.content["segments"][0]["from_step"] = 5  # a branch, whose first five rows are another run's
    record.warn_of_lost_updates()
    assert not caplog.messages


@pytest.mark.parametrize("step", [9, 12])
def test_a_checkpoint_of_another_run_is_refused_in_place_of_one_of_the_runs_own_and_beside_them(run, step):
    own = RunRecord(run).content["run"]
    assert newest_checkpoint(save(run, 9, of=own).parent) == checkpoint_path(run / "checkpoints", 9)
    path = save(run, step, of="another")
    for find in (newest_checkpoint, lambda folder: named_checkpoint(folder, str(step))):
        with pytest.raises(ValueError, match=rf"{path} was written by another run than that of {run / 'run.json'}: move it"):
            find(run / "checkpoints")
    assert path.exists()


def test_a_runs_identity_is_that_of_its_first_config_and_data(tmp_path):
    def identity(name: str, config: dict, fingerprints: dict) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        accept_config(folder, config, ["optim", "seed"])
        record = RunRecord(folder)
        record.content["fingerprints"] = fingerprints
        record.begin_segment({"from_step": 0})
        return RunRecord(folder).content["run"]

    first = identity("first", CONFIG, {"shards.a": "x"})
    assert identity("second", CONFIG, {"shards.a": "x"}) == first
    assert (
        len({first, identity("third", {**CONFIG, "seed": 2}, {"shards.a": "x"}), identity("fourth", CONFIG, {"shards.a": "y"})})
        == 3
    )
    assert identity("first", {**CONFIG, "seed": 2}, {"shards.a": "y"}) == first


def test_a_run_of_which_only_the_checkpoints_are_left_is_not_gone_on_with(run):
    for name in ("run.json", "config.yaml"):
        (run / name).unlink()
    with pytest.raises(
        ValueError, match=r"config\.yaml and run\.json are missing, but there are 3 checkpoints, .* step-00000009\.ckpt"
    ):
        accept_config(run, CONFIG, [])


@pytest.mark.parametrize("change", [{"indexes": "x"}, {"validation_indexes": None}, {"split_seed": "0"}, {"metadata": {"x": 1}}])
@pytest.mark.parametrize("key", ["trained_on", "heard"])
def test_what_launches_trained_on_is_checked_under_its_present_and_its_former_key(run, change, key):
    content = json.loads((run / "run.json").read_text())
    whole = {"validation_share": 0.1, "split_seed": 0, "indexes": ["x"], "validation_indexes": []}
    (run / "run.json").write_text(json.dumps(sealed(content | {key: [whole]})))
    assert RunRecord(run).trained_on == [whole]
    (run / "run.json").write_text(json.dumps(sealed(content | {key: [whole | change]})))
    with pytest.raises(ValueError, match=r"run\.json is damaged \(it must hold the launches of a run and what they trained on\)"):
        RunRecord(run)


# --- the report ---------------------------------------------------------------------------------------------------------


def reported(run: Path, damage: Callable[[str], str]) -> list[str]:
    prefix = table(run / "metrics.csv", last=9, at=9)
    ours = {"step": 9, "fingerprints": {}, "plan": {}, "records": {"launch": 2, "tables": {"metrics.csv": prefix}}}
    AtomicCheckpointIO().save_checkpoint({"openwavlm": ours}, checkpoint_path(run / "checkpoints", 9))
    (run / "metrics.csv").write_text(damage((run / "metrics.csv").read_text()))
    return read_iteration(run).notes


def test_a_report_says_what_is_damaged_or_lost(run):
    assert reported(run, lambda text: text) == []
    (note,) = reported(run, lambda text: text.replace("3,0.375", "3,0.975"))
    assert note == f"{run / 'metrics.csv'} is damaged (its content is not what was written); the rows that can be read are shown."
    note, gap = reported(run, lambda text: text.replace("3,0.375", "3,0.3x5"))
    assert "line 4 cannot be read" in note and gap.startswith(f"{run / 'metrics.csv'} has no row for update 3")
    reported(run, lambda text: text)
    (run / "metrics.csv").unlink()
    assert read_iteration(run).notes == [f"{run / 'metrics.csv'} is missing: its figures are not shown."]
    reported(run, lambda text: text)
    (run / "run.json").unlink()
    assert read_iteration(run).notes[0].startswith(f"{run / 'run.json'} is missing, so neither")


def test_a_replay_reads_no_row_that_is_lost_or_was_changed(run):
    assert reported(run, lambda text: text) == [] and _recorded(run, 3) == {"step": 3, "loss": 0.375}
    for damage, said in (
        (lambda text: text.replace("3,0.375", "3,0.975"), r"metrics\.csv is damaged \(its content is not what was written\)"),
        (lambda text: text.replace("3,0.375\n", ""), r"metrics\.csv is damaged \(it has \d+ bytes"),
        (lambda text: text.splitlines(keepends=True)[0], r"metrics\.csv is damaged"),
    ):
        (run / "metrics.csv").unlink()
        reported(run, damage)
        with pytest.raises(ValueError, match=said):
            _recorded(run, 3)
    (run / "metrics.csv").unlink()
    with pytest.raises(ValueError, match=r"metrics\.csv is missing or has no rows, but the run has checkpoints: restore it"):
        _recorded(run, 3)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match=r"has made no update yet"):
        _recorded(run, 3)
    table(run / "metrics.csv")
    (run / "metrics.csv").write_text((run / "metrics.csv").read_text().replace("3,0.375\n", ""))
    with pytest.raises(ValueError, match=r"metrics\.csv has no row for update 3, though it has one for update 9: restore it"):
        _recorded(run, 3)


@pytest.mark.parametrize(("changed", "notes"), [("", 0), (', "changed": true', 1)])
def test_a_report_says_that_probes_were_made_on_other_speech_on_the_way(run, changed, notes):
    (run / "probe_baselines.json").write_text(f'{{"format_version": 1, "sets": [], "baselines": {{}}{changed}}}')
    found = read_iteration(run).notes
    assert len(found) == notes and all("not all of the same speech" in note for note in found)


def test_a_report_repeats_what_was_said_when_the_run_went_on(run):
    record = RunRecord(run)
    record.content["segments"][-1]["damaged"] = {"metrics.csv": "metrics.csv is damaged before update 6"}
    record.save()
    assert reported(run, lambda text: text) == ["When the run resumed: metrics.csv is damaged before update 6."]


# --- models of other programs -------------------------------------------------------------------------------------------


@pytest.fixture
def unbuilt(monkeypatch) -> None:
    monkeypatch.setattr(account_module, "WavLM", lambda config: pytest.fail("the model is built before its tensors are counted"))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**7},
        {"hidden_size": 10**8, "num_attention_heads": 1},
        {"intermediate_size": 10**12},
        {"num_buckets": 4 * 10**9},
    ],
    ids=["layers", "width", "feed-forward", "buckets"],
)
@pytest.mark.usefixtures("unbuilt")
def test_tensors_are_counted_before_a_model_is_built(tmp_path, changes):
    save_huggingface(WavLM(TINY), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"max_bucket_distance": 10**10} | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"model\.safetensors describes .* numbers .*, and the file holds [\d,]+; use the configuration"
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "value", ["[(8,10,5)] * 64 * 64 * 64 * 64 * 64", "(" * 9000, "[" * 200 + "]" * 200, "1" * 9000, 7, None, [[1]]]
)
def test_an_extractor_without_end_is_refused(tmp_path, value):
    content = {"cfg": microsoft_config(TINY) | {"conv_feature_layers": value}, "model": {"x": torch.ones(2)}}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"conv_feature_layers must be .* in .*model\.pt") as refusal:
        load_checkpoint(tmp_path / "model.pt")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_a_tensor_of_more_numbers_than_were_stored_is_refused(tmp_path):
    content = {"cfg": microsoft_config(TINY), "model": {"mask_emb": torch.ones(1).expand(10**9)}}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt must be a complete weights file.*has more values than the file holds of it"):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("old", [False, True])
def test_a_file_without_checksums_is_said_to_be_one(tmp_path, caplog, old):
    caplog.set_level(logging.WARNING)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"cfg": {}, "model": {}}, tmp_path / "model.pt", _use_new_zipfile_serialization=not old)
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(ValueError, match=r"model in .*model\.pt must hold tensors by name"):
        load_checkpoint(tmp_path / "model.pt")
    assert "damage in its numbers would not be noticed" in caplog.text and "model.pt" in caplog.text


def test_files_of_an_export_that_changed_are_refused(tmp_path):
    save_huggingface(WavLM(TINY), tmp_path)
    files = sorted(tmp_path.iterdir())
    (tmp_path / ABOUT).write_bytes(about_bytes({"format_version": 1}, files))
    load_checkpoint(tmp_path)
    for file in files:
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[-9] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{file.name} is not the exported file .* delete .*openwavlm\.json"):
            load_checkpoint(tmp_path)
        file.unlink()
        with pytest.raises(ValueError, match=rf"{file.name} is missing, but openwavlm\.json beside it names it"):
            load_checkpoint(tmp_path)
        file.write_bytes(content)
    load_checkpoint(tmp_path)
