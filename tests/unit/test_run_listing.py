"""`openwavlm runs`: each run's state and figures, from its records alone."""

import json
import os
from pathlib import Path

import pytest
import yaml

from openwavlm.cli.runs import table
from openwavlm.runs.listing import RunRow, list_runs
from openwavlm.runs.lock import DEAD_AFTER_S

NOW = 1_000_000.0


def make_run(folder: Path, *, rows: int = 3, complete: bool = False, lock: str = "", age: float = 50.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"optim": {"updates": 40}}))
    (folder / "run.json").write_text("{}")
    lines = [f"{step},{step / 2},{5 - step / 4}" for step in range(1, rows + 1)]
    (folder / "metrics.csv").write_text("\n".join(["step,loss,cross_entropy", *lines, ""]))
    launch = {"audio_seconds": 120.0, "wall_seconds": 60.0}
    (folder / "summary.json").write_text(json.dumps({"updates": rows, "complete": complete, "this_launch": launch}))
    (folder / "lock").write_text(lock)
    for path in folder.iterdir():
        os.utime(path, (NOW - age, NOW - age))
    return folder


def test_a_run_is_shown_with_its_last_row_and_the_speed_of_its_last_launch(tmp_path):
    make_run(tmp_path / "a")
    assert list_runs(tmp_path, NOW) == [RunRow("a", "stopped", 3, 40, 4.25, 2.0, 50.0)]


@pytest.mark.parametrize(
    ("settings", "state"),
    [
        ({}, "stopped"),
        ({"complete": True}, "finished"),
        ({"lock": "{}", "age": DEAD_AFTER_S - 1}, "training"),
        ({"lock": "{}", "age": DEAD_AFTER_S + 1}, "stopped"),
        ({"lock": "{}", "age": DEAD_AFTER_S - 1, "complete": True}, "training"),
    ],
)
def test_a_run_trains_while_its_lock_is_renewed(tmp_path, settings, state):
    make_run(tmp_path / "a", **settings)
    assert list_runs(tmp_path, NOW)[0].state == state


def test_runs_of_sweeps_and_chains_are_found_and_the_one_that_changed_last_comes_first(tmp_path):
    make_run(tmp_path / "sweep" / "lr-1", age=30)
    make_run(tmp_path / "sweep" / "lr-2", age=10)
    make_run(tmp_path / "chain" / "stages" / "1" / "train-x" / "run", age=1)
    os.utime(tmp_path / "chain", (NOW - 20, NOW - 20))
    assert [(row.name, row.state) for row in list_runs(tmp_path, NOW)] == [
        ("sweep/lr-2", "stopped"),
        ("chain", "chain"),
        ("sweep/lr-1", "stopped"),
    ]
    assert list_runs(tmp_path / "nowhere", NOW) == []


@pytest.mark.parametrize("damage", ["config.yaml", "metrics.csv", "summary.json"])
def test_a_damaged_run_is_shown_and_hides_no_other(tmp_path, damage):
    make_run(tmp_path / "a", age=5)
    make_run(tmp_path / "b")
    (tmp_path / "a" / damage).write_text("step\n1,2\n" if damage == "metrics.csv" else "[")
    assert next((row.name, row.state) for row in list_runs(tmp_path, NOW)) == ("a", "damaged")
    assert len(list_runs(tmp_path, NOW)) == 2


def test_a_run_before_its_first_update_has_no_loss(tmp_path):
    run = make_run(tmp_path / "a", rows=0)
    for name in ("summary.json", "metrics.csv"):
        (run / name).unlink()
    assert list_runs(tmp_path, NOW) == [RunRow("a", "stopped", 0, 40, None, None, 50.0)]


def test_a_long_table_is_read_from_its_end(tmp_path):
    make_run(tmp_path / "a", rows=5000)
    assert list_runs(tmp_path, NOW)[0].step == 5000


def test_the_table_is_aligned(tmp_path):
    lines = table([RunRow("long/name", "training", 1000, 400_000, 2.5, 101.4, 7500.0), RunRow("b", "chain", age_s=3.0)])
    assert lines == [
        "name       state     update            loss   audio-s/s  age",
        "long/name  training  1,000 of 400,000  2.500  101        2 h",
        "b          chain                                         3 s",
    ]
