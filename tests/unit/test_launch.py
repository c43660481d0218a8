"""Parts of a launch: the summary that it writes, the plan that it goes on with, and the names that it refuses or makes."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from openwavlm.batches.plan import PLAN_VERSION
from openwavlm.cli.app import command
from openwavlm.runs import monitoring
from openwavlm.runs.assemble import _begin_from as begin_from_checkpoint
from openwavlm.runs.assemble import _resume_plan
from openwavlm.runs.check import check_world_size
from openwavlm.runs.compose import composed, conf_dir, plain, swept
from openwavlm.runs.launch import write_summary
from openwavlm.training.checkpoint import AtomicCheckpointIO, checkpoint_path, named_checkpoint
from openwavlm.training.config import RunConfig, with_placeholders


def test_as_many_processes_as_micro_batches_may_share_a_step():
    check_world_size(4, SimpleNamespace(slots=4))
    with pytest.raises(ValueError, match="5 processes but only 4 micro-batches a step: use at most 4 processes"):
        check_world_size(5, SimpleNamespace(slots=4))


def test_a_summary_has_the_newest_validation_and_keeps_what_a_launch_without_updates_does_not_know(tmp_path):
    (tmp_path / "validation.csv").write_text("step,cross_entropy,accuracy\n3,2.5,0.1\n6,2.25,\n")

    def of_rank(rank: int) -> Any:
        return SimpleNamespace(directory=tmp_path, rank=rank, config=SimpleNamespace(optim=SimpleNamespace(updates=10)))

    first = write_summary(of_rank(0), 6, 0, 12.34, 5.67, {"findings": 2})
    assert first == json.loads((tmp_path / "summary.json").read_text())
    assert first == {
        "format_version": 1,
        "updates": 6,
        "complete": False,
        "skipped_updates": 0,
        "validation": {"step": 6.0, "cross_entropy": 2.25},
        "this_launch": {"audio_seconds": 12.3, "wall_seconds": 5.7},
        "health": {"findings": 2},
    }
    again = write_summary(of_rank(0), 10, 0)
    assert again == {**first, "updates": 10, "complete": True}
    assert write_summary(of_rank(1), 9, 0, 1.0, 1.0)["complete"] is False, "a further rank writes nothing"
    assert json.loads((tmp_path / "summary.json").read_text()) == again
    with pytest.raises(ValueError, match="all 10 updates were skipped"):
        write_summary(of_rank(0), 10, 10)
    skipped = json.loads((tmp_path / "summary.json").read_text())
    assert (skipped["complete"], skipped["skipped_updates"]) == (False, 10)
    assert write_summary(of_rank(1), 10, 9)["complete"] is True
    (tmp_path / "validation.csv").write_text("step,cross_entropy,accuracy\n6,2.")
    assert write_summary(of_rank(0), 10, 0)["validation"] == {}, "a line that was torn off"


class Plan:
    """A schedule that remembers what it was set to."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on."""
        self.calls.append(("restore", state["key"]))

    def begin_at(self, start: int, state: dict[str, Any]) -> None:
        """Begins the next data epochs."""
        self.calls.append(("begin", start, state["key"]))


@pytest.mark.parametrize(
    ("version", "key", "allowed", "expected"),
    [
        (PLAN_VERSION, "k", [], ("restore", "k")),
        (PLAN_VERSION, "other", [], ("begin", 7, "other")),
        (PLAN_VERSION - 1, "k", ["plan"], ("begin", 7, "k")),
        (PLAN_VERSION - 1, "k", ["data", "planes"], None),
        (PLAN_VERSION + 1, "k", [], None),
    ],
)
def test_a_launch_goes_on_in_the_same_plan_or_begins_the_next_epochs_where_that_is_allowed(version, key, allowed, expected):
    schedule, state = Plan(), {"plan_version": version, "key": key}
    if expected is None:
        with pytest.raises(ValueError, match=f"follows plan version {version}, this version plans by {PLAN_VERSION}"):
            _resume_plan(schedule, state, "k", 7, allowed, same_names=True)
        assert schedule.calls == []
    else:
        _resume_plan(schedule, state, "k", 7, allowed, same_names=True)
        assert schedule.calls == [expected]
        if expected[0] == "restore":  # the same audio under other names is held out otherwise: another plan
            _resume_plan(schedule, state, "k", 7, allowed, same_names=False)
            assert schedule.calls[1] == ("begin", 7, "k")


def test_of_equal_figures_the_earlier_checkpoint_is_the_best(tmp_path):
    for step, figure in ((10, 2.0), (20, 1.5), (30, 1.5), (40, float("nan"))):
        content = {"openwavlm": {"step": step, "validation": figure}}
        AtomicCheckpointIO().save_checkpoint(content, checkpoint_path(tmp_path, step))
    assert named_checkpoint(tmp_path, "best") == checkpoint_path(tmp_path, 20)


def test_a_trial_is_called_by_what_its_sweep_varies(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "-m", "name=x", "seed=1,2", "optim.lr=choice(0.1,0.2)", "--flag=7"])
    assert swept(["name=x", "seed=1", "optim.lr=0.1"]) == "seed-1__optim.lr-0.1"
    assert swept(["name=x"]) == "trial"
    monkeypatch.setattr("sys.argv", ["train.py", "-m", "optim.lr=1e-3", "optim.lr=1e-2,1e-1", "seed=1,2", "seed=3"])
    assert swept(["optim.lr=0.01", "seed=3"]) == "optim.lr-0.01"
    assert swept(["optim.betas=[0.9,0.98]"]) == "optim.betas--0.9-0.98-"


def test_a_config_that_is_composed_within_a_command_leaves_the_commands_state():
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert composed("train", ["seed=7"]).seed == 7
        assert GlobalHydra.instance().hydra is outer
        with pytest.raises(ValueError, match=r"sed is not a known key; did you mean seed\?"):
            composed("train", ["sed=7"])
        assert GlobalHydra.instance().hydra is outer
    assert composed("train", ["seed=8"]).seed == 8


@pytest.mark.parametrize(
    ("error", "arguments", "status"),
    [(KeyboardInterrupt, [], 130), (ValueError, [], 2), (OSError, [], 2), (ValueError, ["debug=true"], None)],
)
def test_an_interrupted_command_and_a_refused_one_have_statuses_of_their_own(monkeypatch, tmp_path, error, arguments, status):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["program", "name=x", *arguments])
    monkeypatch.setattr("openwavlm.cli.app.check_complete", lambda config: None)
    monkeypatch.setattr("openwavlm.cli.app.logging.basicConfig", lambda **values: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # which the command sets

    def fail(config: object) -> None:
        raise error("refused")

    with pytest.raises(SystemExit if status else error) as ended:
        command("train")(fail)()
    if status:
        assert ended.value.code == status


def test_a_run_goes_on_only_from_the_model_that_it_began_as(monkeypatch):
    record = SimpleNamespace(content={})
    config = SimpleNamespace(init_from="here", init_head=None, allow_change=[])
    asked: list[Any] = []

    def begin(model: str, path: str, codebooks: list[str], *, new_head: bool, before: Any) -> dict[str, Any]:
        asked.append((codebooks, before))
        return {"path": path, "model": model, "head": [None if new_head else "h"]}

    monkeypatch.setattr("openwavlm.runs.assemble.begin_from", begin)

    def _begin_from(model: str, config: Any, record: Any) -> None:
        begin_from_checkpoint(model, config, record, {"shards.speech": "s", "codebook": "a", "codebook.2": "b"})

    _begin_from("first", config, record)
    assert record.content == {"init_from": {"path": "here", "model": "first", "head": ["h"]}} and asked == [(["a", "b"], None)]
    _begin_from("first", config, record)
    config.init_head = "new"
    with pytest.raises(ValueError, match="was initialised with another prediction head than here gives it now"):
        _begin_from("first", config, record)
    config.init_head = None
    assert asked[-1][1] == record.content["init_from"]
    with pytest.raises(ValueError, match="was initialised from the model first of here, but here now holds other"):
        _begin_from("other", config, record)
    assert record.content["init_from"]["model"] == "first"
    config.allow_change = ["init_from"]
    _begin_from("other", config, record)
    assert record.content["init_from"]["model"] == "other"


def test_only_folders_that_are_not_named_get_a_placeholder():
    sources = {"a": {"shards": "here", "labels": None, "share": 0.5}, "b": {"labels": "l"}}
    values = {"seed": 1, "data": {"noise": None, "sources": sources}}
    made = {"a": {"shards": "here", "labels": "(none)", "share": 0.5}, "b": {"shards": "(none)", "labels": "l"}}
    assert with_placeholders(values) == {"seed": 1, "data": {"noise": None, "sources": made}}


@pytest.mark.parametrize(("begun", "random"), [({}, True), ({"init_from": "x"}, False), ({"branch_from": "x"}, False)])
def test_a_run_that_begins_from_a_checkpoint_is_not_judged_as_one_of_random_weights(monkeypatch, begun, random):
    config = RunConfig.of(with_placeholders(plain(composed("train", ["name=x", "health.count_rows=0"]))))
    made: list[Any] = []
    monkeypatch.setattr(monitoring, "label_references", lambda *_, **__: None)
    monkeypatch.setattr(monitoring, "HealthMonitor", lambda known, *_, **__: made.append(known))
    opened = SimpleNamespace(fingerprints=dict)
    log, control = SimpleNamespace(finding=None, figures=None), SimpleNamespace()
    monitoring.make_monitor(replace(config, **begun), opened, None, log, control, None, on_cpu=True, start=0, state=None)
    assert made[0].from_random is random
