"""Study of fine-tuning: its outcomes are those of its file, and its page begins with what pre-training does not bring."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import downstream as study
import downstream_sets
from downstream_errors import SYSTEMS, compared, merged, summarised
from downstream_page import page
from downstream_runs import by_speaker, validation_error
from openwavlm.pipeline.stages import Chain, Stage

CONFIG: dict[str, Any] = yaml.safe_load((Path(study.__file__).with_suffix(".yaml")).read_text())
SPEAKERS = {"digits": "abcdef", "phones": "xy", "train": "q", "dev": "r", "test": "stuv"}
# Errors of 100 in each task, by speaker: `libri` is better than all, `demo` than the untrained encoder alone.
ERRORS = {"libri": 20, "demo": 40, "untrained": 60, "mfcc": 30, "log_mel": 50}


def sets_of(folder: Path) -> dict[str, Stage]:
    return {name: Stage(name, folder / name, {"speakers": list(of)}, 0.0, made=False) for name, of in SPEAKERS.items()}


def trainings(folder: Path, **changes: Any) -> dict[Any, Any]:
    models = {name: Stage(name, folder / name, {}, 0.0, made=False) for name in ("demo", "libri")}
    rates = dict.fromkeys(CONFIG["tasks"], dict.fromkeys(SYSTEMS, 0.01))
    return dict(study.trainings(folder, CONFIG | changes, sets_of(folder), models, rates))


def made_up(folder: Path, errors: dict[str, int] = ERRORS) -> dict[str, Any]:
    """Summary of results in which speakers and seeds differ a little."""
    found = {}
    for (task, system, seed, fold), job in trainings(folder).items():
        speakers = "stuv" if task == "speech" else [SPEAKERS[CONFIG["tasks"][task]["set"]][fold]]
        edits = [errors[system] + (ord(one) + seed + len(system)) % 3 for one in speakers]
        sums = {"speakers": list(speakers), "edits": edits, "length": [100] * len(speakers)}
        layers = None if system in ("mfcc", "log_mel") else [0.25, 0.75]
        found[task, system, seed, fold] = {"by_speaker": sums, "validation_error": 0.5, "layers": layers, "commit": "abc"}
        assert job.characters == (task in ("digits_ctc", "speech"))
    costs = {"trainings": 9, "training_seconds": [1.0, 2.0, 3.0], "pretraining_seconds": 60.0, "machine": "one"}
    rates = dict.fromkeys(CONFIG["tasks"], dict.fromkeys(SYSTEMS, 0.01))
    errors = {task: {system: {f"{rate:g}": 0.5 for rate in CONFIG["rates"]} for system in SYSTEMS} for task in CONFIG["tasks"]}
    return summarised(CONFIG, found) | costs | {"chosen_rates": rates, "rate_errors": errors}


def test_every_system_is_trained_in_every_fold_and_seed_on_the_same_settings(tmp_path: Path) -> None:
    jobs = trainings(tmp_path)
    assert len(jobs) == 5 * 3 * (6 + 6 + 2 + 1)
    assert len({job.found().key for job in jobs.values()}) == len(jobs)
    for (task, system, seed, fold), job in jobs.items():
        known = jobs[task, "libri", seed, fold]
        own = {"untrained": ["untrained=true"], "mfcc": ["init=mfcc"], "log_mel": ["init=log_mel"]}.get(system, [])
        assert list(job.words) == [*known.words, *own]
        assert sum("init=" in word for word in (*job.words, *job.paths)) == 1
    words = jobs["digits", "demo", 1, 5].words
    assert {"data.test_speakers=[f]", "data.validation_speakers=[a]", "seed=1", "optim.lr=0.01"} <= set(words)
    assert len(trainings(tmp_path, folds=1, seeds=[0])) == 4 * 5


def test_the_page_begins_with_the_models_that_do_not_beat_the_controls(tmp_path: Path) -> None:
    summary = made_up(tmp_path)
    found = compared(CONFIG, summary["sums"])
    assert found["digits"]["libri"].control == ("mfcc", "higher") and found["digits"]["demo"].control == ("mfcc", "lower")
    assert found["digits"]["demo"].differences["untrained"].differences == pytest.approx([-0.2] * 3, abs=0.03)
    assert found["digits"]["demo"].differences["mfcc"].interval.clusters == 6
    lines = page(summary, found).splitlines()
    assert "does not beat" in lines[2]
    first = "Class error of digits by classification: **the demo's model** is better than the untrained encoder and worse than"
    assert lines[4].lower().startswith(f"- {first}".lower()) and lines[4].endswith("MFCC ± 5.")
    assert not any("**nano on LibriSpeech excerpts** is" in line and "digits" in line for line in lines[2:9])
    text = "\n".join(lines)
    assert "is lower, which is better, than untrained encoder by 0.4" in text and "0.25, 0.75" in text
    best = made_up(tmp_path, ERRORS | {"demo": 10})
    assert page(best, compared(CONFIG, best["sums"])).splitlines()[2].startswith("In every task both pre-trained models beat")


def test_equal_errors_are_called_equal_with_the_smallest_visible_difference(tmp_path: Path) -> None:
    summary = made_up(tmp_path, dict.fromkeys(SYSTEMS, 40))
    text = page(summary, compared(CONFIG, summary["sums"]))
    assert "are equal: the difference of" in text and "smallest visible difference" in text


def test_one_fold_has_no_interval_and_still_a_page(tmp_path: Path) -> None:
    summary = made_up(tmp_path)
    for of in summary["sums"].values():
        for system in of:
            of[system] = [{name: values[:1] for name, values in one.items()} for one in of[system]]
    assert "no interval, as there is one speaker" in page(summary, compared(CONFIG, summary["sums"]))


def test_folds_are_merged_by_speaker_and_the_rate_is_chosen_on_validation() -> None:
    parts = [{"speakers": ["b"], "edits": [1], "length": [10]}, {"speakers": ["a"], "edits": [2], "length": [20]}]
    assert merged(parts) == {"speakers": ["a", "b"], "edits": [2, 1], "length": [20, 10]}
    found: dict[float, Any] = {
        rate: {("digits", system, 0, 0): {"validation_error": error} for system, error in errors.items()}
        for rate, errors in {0.1: {"demo": 0.1, "mfcc": 0.9}, 0.2: {"demo": 0.3, "mfcc": 0.3}}.items()
    }
    errors = study.rate_errors(found)
    assert errors == {"digits": {"demo": {"0.1": 0.1, "0.2": 0.3}, "mfcc": {"0.1": 0.9, "0.2": 0.3}}}
    assert study.chosen_rates(errors) == {"digits": {"demo": 0.1, "mfcc": 0.2}}, "each system has its own best"


def test_errors_are_read_from_the_files_of_a_run(tmp_path: Path) -> None:
    rows = [
        "key\tspeaker\treference\tprediction\tedits\tlength",
        "k\tb\tONE\tONES\t1\t1",
        "l\ta\tTWO\t\t1\t1",
        "m\tb\tSIX\tSIX\t0\t1",
    ]
    (tmp_path / "test.tsv").write_text("\n".join(rows) + "\n")
    assert by_speaker(tmp_path / "test.tsv") == {"speakers": ["a", "b"], "edits": [1, 1], "length": [1, 2]}
    assert by_speaker(tmp_path / "test.tsv", characters=True) == {"speakers": ["a", "b"], "edits": [3, 1], "length": [3, 6]}
    (tmp_path / "validation.csv").write_text("step,word_error,character_error\n1,1.0,0.5\n2,0.9,0.7\n")
    assert validation_error(tmp_path / "validation.csv") == 0.9
    assert validation_error(tmp_path / "validation.csv", characters=True) == 0.5


def test_rows_of_each_set_come_from_the_tables(tmp_path: Path) -> None:
    rows = [{"path": f"fsdd/s{place}/{place}.flac", "speaker": "-", "text": "ONE"} for place in range(2)]
    rows += [{"path": f"phones/autovot/{g}/{n}.flac", "speaker": "-", "text": "-"} for g in "12" for n in range(3)]
    rows += [{"path": f"LibriSpeech/train-clean-100/{n}.flac", "speaker": f"l{n:02}", "text": "A"} for n in range(10)]
    rows += [{"path": "LibriSpeech/test-other/1.flac", "speaker": "o", "text": "B"}]
    spoken = [
        "path\tphone\tset",
        *(f"phones/autovot/{g}/{n}.flac\t{p}\tautovot" for g in "12" for n in range(3) for p in ("sil", "AA1", "T")),
        "phones/autovot/1/0.flac\tSH\tautovot",
    ]
    (tmp_path / "phones.tsv").write_text("\n".join(spoken) + "\n")
    assert [row["speaker"] for row in downstream_sets._digits(rows)] == ["s0", "s1"]
    found = downstream_sets._phones(rows, tmp_path)
    assert len(found) == 5 and {row["phones"] for row in found} == {"AA T"}, "SH is in one group alone"
    parts = downstream_sets._speech(rows)
    assert [row["speaker"] for row in parts["dev"]] == ["l00", "l08"] and len(parts["train"]) == 8 and len(parts["test"]) == 1


def test_a_study_that_lacks_its_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*model\.safetensors: run make demo"):
        study.demo_model(Chain(tmp_path / "stages"), tmp_path)
    with pytest.raises(ValueError, match="which does not exist: give"):
        downstream_sets.task_sets(Chain(tmp_path / "stages"), tmp_path)
    study.check(CONFIG)
    with pytest.raises(ValueError, match="name the task words"):
        study.check(CONFIG | {"secondary": ["words"]})
