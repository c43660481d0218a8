"""What is refused before a sweep's first update: every trial's keys, values, data and folder. And names that lead out of `runs/`."""

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from openwavlm.cli.multirun import _values
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from programs import run_program
from runs import SETTINGS
from synthetic import make_shard_set

QUICK = [*SETTINGS, "optim.updates=1", "callbacks.validate_every=0", "mixing.noise_prob=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, seed in (("a", 1), ("b", 2)):
        shards = make_shard_set(folder / name, speakers=6, utterances=3, seconds=(1.0, 2.0), seed=seed)
        if name == "a":
            fit_codebook(
                [shards], folder / "book", clusters=6, engine="minibatch", min_frames_per_cluster=20, validation_share=0.3
            )
        assign_labels(shards, folder / "book", folder / name / "labels")
    return folder


def places(data: Path) -> list[str]:
    return [f"data.sources.speech.{key}={data / 'a' / folder}" for key, folder in (("shards", "shard-set"), ("labels", "labels"))]


@pytest.mark.parametrize(
    ("sweep", "sentence", "trial"),
    [
        (["optim.lr=1e-3,bogus"], "optim.lr must be a number, but is 'bogus'", "optim.lr=bogus"),
        (["branch_from=null,nowhere.ckpt"], "branch_from must be a whole checkpoint", "branch_from=nowhere.ckpt"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in [
                (["seed=1,2", "optim.warmup_updates=0,-1"], "optim.warmup_updates", "optim.warmup_updates=-1 seed=1"),
                (["batch.seconds=12,13"], "batch.seconds", "batch.seconds=13"),
                (["model.heads=2,3"], "model", "model.heads=3"),
                (["precision=32-true,8-bit"], "precision must be one of 32-true", "precision=8-bit"),
                (["mixing.noise_prob=0,0.5"], "mixing with noise needs a noise bank", "mixing.noise_prob=0.5"),
                (["trainer.watchdog_s=60,-1"], "trainer.watchdog_s must be positive", "trainer.watchdog_s=-1"),
                (["init_from=null,nowhere"], "nowhere", "init_from=nowhere"),
            ]
        ),
    ],
)
def test_a_trial_that_would_be_refused_is_refused_before_the_first_begins(data, tmp_path, sweep, sentence, trial):
    message = run_program(tmp_path, "train.py", "-m", *QUICK, *places(data), *sweep).error()
    assert sentence in message and trial in message, message
    assert not list(tmp_path.rglob("metrics.csv")) and not list(tmp_path.rglob("lock"))


@pytest.mark.long
def test_a_sweep_that_a_config_file_names_is_checked_too(data, tmp_path):
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    sweep = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 1,x\n"
    (tmp_path / "conf" / "sweep" / "seeds.yaml").write_text(sweep)
    words = ["-m", *QUICK, *places(data), f"--config-dir={tmp_path / 'conf'}", "+sweep=seeds"]
    message = run_program(tmp_path, "train.py", *words).error()
    assert "seed must be a whole number, but is 'x'" in message and "seed=x" in message
    assert not list(tmp_path.rglob("metrics.csv"))


def test_a_key_below_one_that_is_null_is_refused_in_a_sentence(data, tmp_path):
    message = run_program(tmp_path, "train.py", *QUICK, *places(data), "++hydra.sweeper.params.seed='1,2'").error()
    assert "the overrides cannot be composed" in message and "null" in message


def test_labels_that_do_not_fit_a_later_trial_are_refused_before_the_first_begins(data, tmp_path):
    sweep = f"data.sources.speech.labels={data / 'a' / 'labels'},{data / 'b' / 'labels'}"
    message = run_program(tmp_path, "train.py", "-m", *QUICK, *places(data), sweep).error()
    assert "must have labels in" in message and f"in the trial data.sources.speech.labels={data / 'b' / 'labels'}" in message
    assert not list(tmp_path.rglob("metrics.csv"))


def test_a_trial_that_could_not_go_on_in_its_folder_is_refused_before_the_others_begin(data, tmp_path):
    command, runs = ["train.py", *QUICK, *places(data)], tmp_path / "runs" / "test"
    assert run_program(tmp_path, *command, "optim.lr=2e-3", "hydra.run.dir=runs/test/optim.lr-0.002").status == 0
    assert json.loads((runs / "optim.lr-0.002" / "summary.json").read_text())["complete"]
    told = run_program(tmp_path, *command, "-m", "optim.lr=1e-3,2e-3", "optim.clip_norm=0.25").stderr
    assert "optim.clip_norm: 0.5 -> 0.25" in told and "in the trial optim.lr=0.002" in told
    assert not (runs / "optim.lr-0.001" / "metrics.csv").exists()


def test_trials_that_would_share_a_folder_are_refused(data, tmp_path):
    message = run_program(tmp_path, "train.py", "-m", *QUICK, *places(data), "seed=1,2,1").error()
    assert "seed=1 and seed=1 would both be in" in message and not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize("sweep", ["seed=range(1,1)", "optim=glob(nothing*)"])
def test_a_sweep_without_a_trial_is_refused(tmp_path, sweep):
    message = run_program(tmp_path, "train.py", "-m", *QUICK, sweep).error()
    assert "the sweep has no trial" in message and not list(tmp_path.rglob("metrics.csv"))


def test_a_later_trial_whose_checkpoints_are_damaged_is_refused_before_the_others_begin(data, tmp_path):
    command, runs = ["train.py", *QUICK, *places(data)], tmp_path / "runs" / "test"
    assert run_program(tmp_path, *command, "seed=2", "hydra.run.dir=runs/test/seed-2").status == 0
    (checkpoint,) = (runs / "seed-2" / "checkpoints").glob("*.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    message = run_program(tmp_path, *command, "-m", "seed=1,2").error()
    assert "none of the 1 checkpoints" in message and "in the trial seed=2" in message
    assert not (runs / "seed-1" / "metrics.csv").exists()


def overrides(*words: str) -> list:
    return OverridesParser.create().parse_overrides(list(words))


def test_every_value_and_both_ends_of_a_range_are_checked_for_other_sweepers():
    trials = list(_values(overrides("a=choice(1,2,3)", "b=interval(0.1,10)", "c=7", "d=range(1,9)", "e=x,y")))
    assert trials == [
        ["a=1", "b=0.1", "c=7", "d=1", "e=x"],
        ["a=2", "b=10.0", "c=7", "d=8", "e=y"],
        ["a=3", "b=10.0", "c=7", "d=8", "e=y"],
    ]
    assert list(_values(overrides("c=7"))) == [["c=7"]]


# --- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "name"),
    [
        *((["train.py"], name) for name in ("../x", "/tmp/x", "", ".", "a/../../x", "a..")),
        *((program, "../x") for program in (["train.py", "-m", "seed=1,2"], ["openwavlm", "iterate"], ["studies/learn.py"])),
    ],
)
def test_a_name_that_leads_out_of_runs_is_refused_and_makes_nothing(tmp_path, program, name):
    place = tmp_path / "place"
    place.mkdir()
    corpora = [f"corpora.{part}.input=." for part in ("train", "dev", "test")] if "iterate" in program else []
    message = run_program(place, *program, f"name={name}", *corpora).error()
    assert "name must be the name of a folder below runs/" in message
    assert {path.name for path in place.iterdir()} == {"stdout.txt", "stderr.txt"}
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
