"""Every task and preset of fine-tuning composes, and wrong values are refused by name."""

import pytest

from openwavlm.downstream.config import FinetuneConfig
from openwavlm.runs.compose import conf_dir
from tasks import values_of

TASKS, PRESETS = (sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")) for group in ("task", "preset"))


def config(*overrides: str) -> FinetuneConfig:
    return FinetuneConfig.of(values_of(["name=x", "init=encoder", "data.sources.speech.shards=shards", *overrides]))


def test_there_are_three_tasks_and_five_presets():
    assert TASKS == ["ctc", "phones", "sid"] and PRESETS == ["frozen", "hundred_hours", "nano", "one_hour", "ten_minutes"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes_with_every_preset(task, preset):
    found = config(f"task={task}", f"preset={preset}")
    assert found.task.name == task and found.optim.updates >= 400 and found.callbacks.keep_best == 1
    assert found.weighted_sum == (task == "sid" or preset == "frozen")
    assert found.trained.encoder == ("frozen" if preset == "frozen" else "full")
    if preset == "ten_minutes":
        assert (found.optim.updates, found.masking.prob, found.optim.schedule) == (8000, 0.75, "tri_stage")


def test_the_target_is_the_tasks_own_field_unless_another_is_named():
    assert [config(f"task={task}").task.target for task in TASKS] == ["text", "phones", "speaker"]
    assert config("task=sid", "task.field=emotion").task.target == "emotion"


def test_replacements_are_given_on_the_command_line():
    given = config('task.replace=["é=e","-= ","==x","!="]').task.replacements
    assert given == [("é", "e"), ("-", " "), ("=", "x"), ("!", "")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trained.encoder=half"], "trained.encoder must be one of frozen, top, full, lora"),
        (["trained.layer_decay=0"], r"trained.layer_decay must lie in \(0, 1\]"),
        (["encoder.channel_prob=-1"], "encoder.channel_prob lie in 0"),
        (["data.validation_share=1"], "data.validation_share and data.test_share must lie in"),
        (
            ["data.test_share=0.1", "data.test_speakers=[a]"],
            "data.test_speakers names what is held out, so data.test_share must be 0",
        ),
        (["+data.sources.other.labels=x"], "data.sources.other.labels is not a known key"),
        (["task.dropout=1"], "task.dropout lie in"),
        (["task.replace=[a]"], r"texts OLD=NEW, but has 'a'"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(overrides, message):
    with pytest.raises(ValueError, match=message):
        config(*overrides)
