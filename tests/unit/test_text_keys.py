"""Names and paths are text whatever they look like, and a run's name leads nowhere but into `runs/`."""

from pathlib import Path

import pytest

from openwavlm.runs.compose import composed
from openwavlm.runs.names import as_text, run_folder
from openwavlm.runs.run_directory import changed_keys


@pytest.mark.parametrize(
    "value", ["1e3", "007", "1_000", "true", "False", "null", "NULL", ".5", "-1", "+7", "1e-07", "inf", "NaN", "0x1f", "a"]
)
def test_a_name_keeps_its_letters(value):
    assert composed("train", [f"name={value}"]).name == value
    assert composed("tune", [f"++name={value}"]).name == value
    assert composed("iterate", [f"name={value}"]).name == value


@pytest.mark.parametrize("value", ["1e3", "007", "1_000", "true"])
def test_a_path_keeps_its_letters_and_null_is_none(value):
    config = composed(
        "prep/assign_labels", [f"shards={value}", f"output=[{value}, b ,{value}]", f"codebook={value}", "carry_from=null"]
    )
    assert (config.shards, config.codebook, config.carry_from) == (value, value, None)
    assert list(config.output) == [value, "b", value]
    source = f"data.sources.speech={{shards: {value}, labels: {value}, weight: 2e0}}"
    assert dict(composed("train", ["name=x", source]).data.sources.speech) | {"share": None} == {
        "shards": value,
        "labels": value,
        "weight": 2.0,
        "share": None,
    }
    assert (
        composed("prep/make_shards", [f"input={value}", "output=x", f"source={value}", f"columns.text={value}"]).source == value
    )


def test_a_number_stays_a_number_and_quotes_stay():
    assert composed("train", ["name=x", "optim.lr=1e-3", "seed=007", "debug=true"]).optim.lr == 1e-3
    for word in (
        "optim.lr=1e3",
        "name='1e3'",
        'output="007"',
        "name=a1e3",
        "name=1e3x",
        "name=${seed}",
        "-m",
        "~name",
        "output=null",
        "name=x",
    ):
        assert as_text(word) == word


@pytest.mark.parametrize("key", ["columns.speaker", "columns.path", "+columns.channel"])
def test_the_name_of_a_column_keeps_its_letters(key):
    assert as_text(f"{key}=007") == f"{key}='007'"


def test_each_value_of_a_sweep_keeps_its_letters():
    assert as_text("name=1e3,007,b,true") == "name='1e3','007',b,'true'"
    assert as_text("data.sources.speech.labels=1,2") == "data.sources.speech.labels='1','2'"


@pytest.mark.parametrize("name", ["a", "1e3", "a.b", "sweep/optim.lr-0.001", "größe", "a b", "-x", "..a", ".hidden"])
def test_a_name_is_a_folder_below_runs(name):
    assert run_folder(name) == Path("runs") / name
    assert Path("runs") in run_folder(name).parents


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        ".",
        "",
        " ",
        "/x",
        "/",
        "a/../../x",
        "a/..",
        "a//b",
        "a/",
        "./a",
        "a.",
        "a..",
        "a\0b",
        "a\nb",
        "a/b ",
        "...",
        "a/ /b",
        ["a"],
        {"a": 1},
        None,
    ],
)
def test_a_name_that_leads_elsewhere_or_is_no_folders_is_refused(name):
    with pytest.raises(ValueError, match="name must be the name of a folder below runs/"):
        run_folder(name)


@pytest.mark.parametrize("name", ["x" * 256, "ö" * 128, "a/" + "b" * 256, "/".join(["x" * 200] * 6)])
def test_a_name_that_no_file_system_takes_is_refused(name):
    with pytest.raises(ValueError, match=r"name must have at most 255 bytes between two / and 1024 in all"):
        run_folder(name)
    assert run_folder(name.split("/")[0][:127]) == Path("runs", name.split("/")[0][:127])


def test_a_run_that_an_earlier_version_called_by_a_number_goes_on():
    assert changed_keys({"name": 1, "seed": 2}, {"name": "1", "seed": 2}) == {}
    assert set(changed_keys({"name": "a"}, {"name": "b"})) == {"name"}
