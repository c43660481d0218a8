"""Which launch trained an update, with what config and plan; and at which checkpoints another run may branch off."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from openwavlm.batches.plan import PLAN_VERSION
from openwavlm.runs.branch import begin_branch, check_head
from openwavlm.runs.segments import follow_plan, segment_of
from openwavlm.training.checkpoint import AtomicCheckpointIO, checkpoint_path
from openwavlm.training.optim import Optim

# --- launches -----------------------------------------------------------------------------------------------------------

SOURCES = {"speech": {"shards": "here", "labels": "l1", "share": None}}
CONFIG = {"name": "r", "seed": 1, "batch": {"seconds": 16}, "data": {"sources": SOURCES, "noise": None}, "optim": {"lr": 0.3}}


def launch(from_step: int, plan_version: int = PLAN_VERSION, **changes: tuple[Any, Any]) -> dict[str, Any]:
    dotted = {key.replace("__", "."): list(values) for key, values in changes.items()}
    plan = {"key": "k", "origin": 0, "first_epochs": {"speech": [0]}}
    made_by = {
        "versions": {"openwavlm": "0.9"},
        "commit": None,
        "threads": 1,
        "plan": plan,
        "fingerprints": {"shards.speech": "new"},
    }
    return {"from_step": from_step, "plan_version": plan_version, "changes": dotted, **made_by}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of four launches, of which the later ones changed the rate, then the batch, then the labels' folder."""
    launches = [
        launch(0),
        launch(10, optim__lr=(0.1, 0.2), data__sources__speech__labels=("l0", "l1")),
        {**launch(20, batch__seconds=(8, 16)), "fingerprints": {"shards.speech": "old"}},
        launch(30, optim__lr=(0.2, 0.3)),
    ]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    content = {"format_version": 1, "segments": launches, "fingerprints": {"shards.speech": "new"}}
    (tmp_path / "run.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    ("step", "number", "rate", "seconds", "labels"),
    [
        (1, 0, 0.1, 8, "l0"),
        (10, 0, 0.1, 8, "l0"),
        (11, 1, 0.2, 8, "l1"),
        (20, 1, 0.2, 8, "l1"),
        (21, 2, 0.2, 16, "l1"),
        (30, 2, 0.2, 16, "l1"),
        (31, 3, 0.3, 16, "l1"),
        (999, 3, 0.3, 16, "l1"),
    ],
)
def test_an_update_belongs_to_the_last_launch_that_began_before_it(run, step, number, rate, seconds, labels):
    segment = segment_of(run, step)
    assert segment.number == number
    assert segment.config["optim"]["lr"] == rate and segment.config["batch"]["seconds"] == seconds
    assert segment.config["data"]["sources"]["speech"]["labels"] == labels and segment.newest == CONFIG
    assert segment.record["fingerprints"] == {"shards.speech": "old" if number == 2 else "new"}


def test_a_key_that_a_launch_added_or_took_away_is_absent_where_it_was(run):
    content = json.loads((run / "run.json").read_text())
    content["segments"] = [
        launch(0),
        launch(5, optim__ema=(None, 0.9)),
        launch(9, optim__ema=(0.9, None), data__noise=("n", None)),
    ]
    (run / "run.json").write_text(json.dumps(content))
    first, second, third = (segment_of(run, step).config for step in (1, 6, 10))
    assert first["optim"] == third["optim"] == {"lr": 0.3} and second["optim"] == {"lr": 0.3, "ema": 0.9}
    assert first["data"]["noise"] == second["data"]["noise"] == "n" and "noise" not in third["data"]


def test_a_launch_that_was_killed_before_its_config_took_its_name_is_known_by_its_changes(run):
    config = json.loads(json.dumps(CONFIG))
    config["optim"]["lr"] = 0.2
    (run / "config.yaml").write_text(yaml.safe_dump(config))  # as it was before the last launch
    assert [segment_of(run, step).config["optim"]["lr"] for step in (1, 11, 21, 31)] == [0.1, 0.2, 0.2, 0.3]


@pytest.mark.parametrize("change", [(None, 0.5), (0.5, None), (None, None)])
def test_a_key_that_a_launch_added_or_took_away_is_there_only_for_its_updates(run, change):
    config = json.loads(json.dumps(CONFIG))
    if change[1] is not None:
        config["optim"]["ema"] = change[1]
    content = json.loads((run / "run.json").read_text())
    content["segments"] = [launch(0), launch(7, optim__ema=change)]
    (run / "run.json").write_text(json.dumps(content))
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert [segment_of(run, step).config["optim"].get("ema") for step in (7, 8)] == list(change)
    assert [len(segment_of(run, step).config["optim"]) for step in (7, 8)] == [1 + (value is not None) for value in change]


@pytest.mark.parametrize("version", [PLAN_VERSION - 1, PLAN_VERSION + 1])
def test_an_update_of_another_plan_version_is_refused(run, version):
    content = json.loads((run / "run.json").read_text())
    content["segments"][1]["plan_version"] = version
    (run / "run.json").write_text(json.dumps(content))
    assert segment_of(run, 10).number == 0 and segment_of(run, 21).number == 2
    with pytest.raises(ValueError, match=rf"planned by plan version {version}, this version plans by {PLAN_VERSION}: .* 0\.9"):
        segment_of(run, 11)


class Plan:
    """A schedule that remembers what it was set to."""

    def __init__(self) -> None:
        self.began: dict[str, Any] = {"origin": 0, "first_epochs": {"speech": [0]}}
        self.restored: dict[str, Any] | None = None

    def begin_as(self, beginning: dict[str, Any]) -> None:
        self.began = {name: beginning[name] for name in ("origin", "first_epochs")}

    def beginning(self) -> dict[str, Any]:
        return self.began

    def restore(self, state: dict[str, Any]) -> None:
        self.restored = state


def plan_state(key: str, *starts: int, origin: int = 0, first_epoch: int = 0, version: int = PLAN_VERSION) -> dict[str, Any]:
    streams = {"speech": [{"first_epoch": first_epoch, "starts": list(starts)}]}
    return {"key": key, "plan_version": version, "origin": origin, "streams": streams}


def keep(run: Path, step: int, plan: dict[str, Any]) -> None:
    content = {"state_dict": {}, "openwavlm": {"step": step, "fingerprints": {}, "plan": plan}}
    AtomicCheckpointIO().save_checkpoint(content, checkpoint_path(run / "checkpoints", step))


def test_a_plan_is_followed_from_the_checkpoint_that_knows_most_of_it(run):
    keep(run, 5, plan_state("k", 0, 10))
    keep(run, 9, plan_state("k", 0, 10, 20))
    keep(run, 12, plan_state("other", 0, 10, 20, 30))
    keep(run, 13, plan_state("k", 0, 10, 20, 30, first_epoch=1))
    keep(run, 14, plan_state("k", 0, 10, 20, 30, version=PLAN_VERSION + 1))
    segment = segment_of(run, 3)
    schedule = Plan()
    follow_plan(schedule, segment, "k", run, 3)
    assert schedule.restored == plan_state("k", 0, 10, 20)
    with pytest.raises(ValueError, match=r"its key is k, but was other"):
        segment.record["plan"]["key"] = "other"
        follow_plan(Plan(), segment, "k", run, 3)


# --- branches -----------------------------------------------------------------------------------------------------------


def optim_of(updates: int, **changes: object) -> dict[str, Any]:
    return {"updates": updates, "lr": 0.1, "warmup_updates": 0, "schedule": "wsd", "decay_share": 0.2, **changes}


@pytest.fixture
def branch(tmp_path, caplog) -> Callable[..., dict[str, tuple[Any, Any]]]:
    """Branches from the checkpoint after 80 updates of a run of 100 with 20 of decay."""
    caplog.set_level(logging.INFO)
    stem = tmp_path / "stem"
    checkpoint = checkpoint_path(stem / "checkpoints", 80)
    AtomicCheckpointIO().save_checkpoint({"openwavlm": {"step": 80}}, checkpoint)
    (tmp_path / "new").mkdir()
    (stem / "metrics.csv").write_text("step\n80\n")
    (stem / "validation.csv").write_text("step\n40\n")

    def begin(
        optim: dict[str, Any], allowed: tuple[str, ...] = (), parent: dict[str, Any] | None = None, **config: object
    ) -> Any:
        (stem / "config.yaml").write_text(yaml.safe_dump({"name": "stem", "optim": parent or optim_of(100)}))
        asked = {"name": "new", "branch_from": str(checkpoint), "optim": optim, **config}
        checks: list[int] = []
        found = begin_branch(checkpoint, tmp_path / "new", asked, Optim(**optim), list(allowed), lambda: checks.append(1))
        assert checks == [1]
        return found

    return begin


def test_a_branch_may_begin_until_the_last_update_before_its_decay(branch, tmp_path):
    assert branch(optim_of(100)) == {}
    assert (tmp_path / "new" / "metrics.csv").read_text() == "step\n80\n"
    assert (tmp_path / "new" / "validation.csv").read_text() == "step\n40\n"
    with pytest.raises(ValueError, match=r"has 80 updates and the decay of optim\.updates=99 begins at 79"):
        branch(optim_of(99))
    # Its own decay counts, whatever that of the run it branches from is.
    longer, shorter, allowed = optim_of(100, decay_share=0.21), optim_of(100, decay_share=0.1), ("optim.decay_share",)
    assert (
        set(branch(optim_of(100), allowed, parent=longer)) == set(branch(optim_of(100), allowed, parent=shorter)) == {allowed[0]}
    )
    with pytest.raises(ValueError, match=r"the decay of optim\.updates=100 begins at 79"):
        branch(longer, allowed, parent=shorter)


def test_a_branch_must_end_after_its_checkpoint(branch):
    linear = {"schedule": "linear"}
    allowed = ("optim.schedule",)
    assert set(branch(optim_of(81, **linear), allowed)) == {"optim.schedule"}
    with pytest.raises(ValueError, match=r"optim\.updates=80 is not above its 80 updates"):
        branch(optim_of(80, **linear), allowed)


def test_a_jump_of_the_rate_and_a_checkpoint_in_a_decay_are_warned_of(branch, caplog):
    branch(optim_of(200))
    assert "learning rate goes" not in caplog.text and "lies in the decay" not in caplog.text
    branch(optim_of(200, lr=0.1009), ("optim.lr",))
    assert "learning rate goes" not in caplog.text, "less than a hundredth"
    branch(optim_of(200, lr=0.102), ("optim.lr",))
    assert "the learning rate goes from 0.1 to 0.102 at the branch, after update 80" in caplog.text
    caplog.clear()
    branch(optim_of(200), parent=optim_of(99))  # decays from update 79 on
    assert "lies in the decay of its run, from update 79 on" in caplog.text and "learning rate goes from 0.095" in caplog.text


def test_a_branch_differs_only_in_its_name_its_end_and_what_is_allowed(branch):
    with pytest.raises(ValueError, match=r"(?s)differs from the run .*\n  optim\.lr: 0\.1 -> 0\.2\n"):
        branch(optim_of(150, lr=0.2))
    assert branch(optim_of(150, lr=0.2), ("optim",)) == {"optim.lr": (0.1, 0.2)}
    with pytest.raises(ValueError, match="seed: None -> 3"):
        branch(optim_of(150), seed=3)


def test_a_damaged_checkpoint_is_no_beginning(branch, tmp_path):
    path = checkpoint_path(tmp_path / "stem" / "checkpoints", 80)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="branch_from must be a whole checkpoint"):
        branch(optim_of(100))


def test_the_head_of_a_checkpoint_must_have_the_labels_of_every_set(tmp_path, caplog):
    heads = {"model.label_embeddings": torch.zeros(10, 4), "model.other_heads.0.label_embeddings": torch.zeros(20, 4)}
    known = {"codebook": "a", "codebook.2": "b", "labels.speech": "c"}
    path = tmp_path / "step-00000001.ckpt"
    torch.save({"state_dict": heads, "openwavlm": {"step": 1, "fingerprints": known, "plan": {}}}, path)
    check_head(path, [10, 20], {**known, "labels.speech": "other"})
    assert caplog.text == ""
    for wanted, words in (([20, 10], "20 and 10"), ([10], "10"), ([10, 21], "10 and 21"), ([10, 20, 5], "10 and 20 and 5")):
        with pytest.raises(ValueError, match=f"predicts 10 and 20 labels, but the data need {words}: another codebook"):
            check_head(path, wanted, known)
    check_head(path, [10, 20], {**known, "codebook.2": "other"})
    assert "was trained on another codebook" in caplog.text
