"""The programs as a user calls them: sweep, export, several processes, help."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

import openwavlm
from closeness import assert_close_to_scale
from openwavlm.cli.main import COMMANDS
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from patience import HANG_S, wait_until
from programs import REPOSITORY, run_program
from runs import TINY_MODEL
from synthetic import make_shard_set, speech_like

SETTINGS = [
    "experiment=wavlm_nano",
    *TINY_MODEL,
    "batch.seconds=8",
    "batch.micro_seconds=4",
    "batch.max_seconds=2",
    "optim.updates=4",
    "optim.warmup_updates=0",
    "callbacks.checkpoint_every=2",
    "callbacks.validate_every=4",
    "data.validation_share=0.3",
    "loader.workers=0",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Overrides that name a small labelled corpus and a noise bank."""
    folder = tmp_path_factory.mktemp("data")
    shards = make_shard_set(folder, speakers=6, utterances=4, seconds=(1.0, 3.0))
    noise = make_shard_set(folder / "noise", speakers=2, utterances=2, seconds=(0.5, 2.0), seed=9)
    fit_codebook([shards], folder / "codebook", clusters=10, engine="minibatch", min_frames_per_cluster=20, validation_share=0.3)
    assign_labels(shards, folder / "codebook", folder / "labels")
    return [f"data.sources.speech.shards={shards}", f"data.sources.speech.labels={folder / 'labels'}", f"data.noise={noise}"]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A working directory in which `runs/first` was trained."""
    folder = tmp_path_factory.mktemp("trained")
    outcome = run_program(folder, "train.py", "name=first", *SETTINGS, *data)
    assert outcome.status == 0, outcome
    assert "runs/first at update 0 of 4: 0.01 M parameters, 10 classes" in outcome.stderr
    return folder


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_a_run_lives_where_its_name_says_and_nowhere_else(trained):
    run = trained / "runs" / "first"
    assert summary(run)["complete"]
    assert {path.name for path in trained.iterdir()} - {"stdout.txt", "stderr.txt", "elsewhere"} == {"runs"}
    assert {path.name for path in run.iterdir()} - {"export", "config.yaml.next"} == {
        *(
            "config.yaml",
            "run.json",
            "metrics.csv",
            "validation.csv",
            "health.csv",
            "logs",
            "summary.json",
            "checkpoints",
            "tensorboard",
            "lock",
        )
    }


def test_the_same_command_again_has_nothing_to_do(trained, data):
    run = trained / "runs" / "first"
    before = (run / "metrics.csv").read_bytes(), sorted(run.glob("checkpoints/*"))
    outcome = run_program(trained, "train.py", "name=first", *SETTINGS, *data)
    assert outcome.status == 0 and "nothing to do" in outcome.stderr
    assert ((run / "metrics.csv").read_bytes(), sorted(run.glob("checkpoints/*"))) == before
    assert summary(run)["complete"]


def test_a_sweep_makes_a_run_of_each_value_and_goes_on_where_it_stopped(data, tmp_path):
    # One value is written as Hydra would not write it: it must not become part of the names.
    command = ["train.py", "name=sweep", *SETTINGS, *data, "optim.eps=1e-07", "-m", "optim.lr=1e-3,5e-4"]
    assert run_program(tmp_path, *command, "stop_after=2").status == 0
    trials = [tmp_path / "runs" / "sweep" / f"optim.lr-{value}" for value in ("0.001", "0.0005")]
    folders = [path for path in (tmp_path / "runs" / "sweep").iterdir() if path.is_dir()]
    assert sorted(folders) == sorted(trials), "named by what is swept and nothing else"
    assert [summary(trial)["updates"] for trial in trials] == [2, 2]

    assert run_program(tmp_path, *command).status == 0
    tables = [(trial / "metrics.csv").read_bytes() for trial in trials]
    assert [summary(trial)["complete"] for trial in trials] == [True, True] and tables[0] != tables[1]
    rates = [float(next(csv.DictReader(table.decode().splitlines()))["lr"]) for table in tables]
    assert rates == [1e-3, 5e-4]

    outcome = run_program(tmp_path, *command)
    assert outcome.status == 0 and outcome.stderr.count("nothing to do") == 2
    assert [(trial / "metrics.csv").read_bytes() for trial in trials] == tables
    starts = [[s["from_step"] for s in json.loads((trial / "run.json").read_text())["segments"]] for trial in trials]
    assert starts == [[0, 2]] * 2, "a launch that has nothing to do adds no segment"


def test_a_signal_to_a_sweep_saves_its_trial_and_begins_no_other(data, tmp_path):
    command = [sys.executable, "-m", "openwavlm", "train", "-m", "name=sweep", *SETTINGS, *data, "optim.lr=1e-3,5e-4"]
    command += ["optim.updates=100000", "callbacks.checkpoint_every=100000", "callbacks.validate_every=0", "health.enabled=false"]
    trials = tmp_path / "runs" / "sweep"
    metrics = trials / "optim.lr-0.001" / "metrics.csv"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=_environment()) as program:
        wait_until(lambda: _trains(metrics), while_true=lambda: program.poll() is None)
        program.send_signal(signal.SIGTERM)
        try:
            _, told = program.communicate(timeout=HANG_S)
        finally:
            program.kill()
    assert program.returncode == 0 and "the sweep ends with this trial" in told, told
    assert list(metrics.parent.glob("checkpoints/*.ckpt")) and not (trials / "optim.lr-0.0005" / "metrics.csv").exists()


def test_a_sweep_over_several_processes_is_refused(tmp_path):
    places = "data.sources.speech={shards: a, labels: b}"
    message = run_program(tmp_path, "train.py", "-m", "name=x", "seed=1,2", "trainer.devices=2", places).error()
    assert message.startswith("a sweep with trainer.devices > 1 needs a launcher") and "trainer.devices=1" in message


# --- export -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(trained) -> Path:
    outcome = run_program(trained, "openwavlm", "export", "run=runs/first")
    assert outcome.status == 0, outcome
    assert "runs/first/export" in outcome.stderr and "transformers.WavLMModel.from_pretrained" in outcome.stderr
    return trained / "runs" / "first" / "export"


def test_what_is_exported_loads_in_transformers_with_equal_hidden_states(exported):
    theirs, info = transformers.WavLMModel.from_pretrained(exported, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ours = openwavlm.load(exported)
    waveforms = torch.from_numpy(speech_like(1.5)).float()[None] / 32768
    features = ours.extract(waveforms, final_norm=True)
    with torch.no_grad():
        output = theirs.eval()(waveforms, output_hidden_states=True)
    reference = [*output.hidden_states[:-1], output.last_hidden_state]  # the last hidden state is normalised or not by version
    assert len(features) == len(reference) == 3 and features[0].shape == (1, 74, 16)
    for mine, other in zip(features, reference, strict=True):
        assert_close_to_scale(mine, other)


def test_what_is_exported_are_the_weights_of_the_newest_checkpoint(exported):
    checkpoint = exported.parent / "checkpoints" / "step-00000004.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    head = load_file(exported / "pretraining_head.safetensors")
    assert torch.equal(head["label_embs_concat"], state["model.label_embeddings"]) and head["final_proj.weight"].shape == (8, 16)
    model = openwavlm.load(exported)
    trained = {key.removeprefix("model.wavlm."): value for key, value in state.items() if key.startswith("model.wavlm.")}
    mine = model.state_dict()
    assert set(mine) == set(trained) and all(torch.equal(mine[key], trained[key]) for key in mine)
    about = json.loads((exported / "openwavlm.json").read_text())
    assert about["updates"] == 4 and {"codebook", "labels.speech", "metadata.speech", "shards.speech", "noise"} == set(
        about["fingerprints"]
    )
    trained_on = about["trained_on"]
    assert trained_on["indexes"] == [about["fingerprints"]["shards.speech"]] and trained_on["validation_indexes"] == []
    config = yaml.safe_load((exported.parent / "config.yaml").read_text())["data"]
    assert {name: trained_on[name] for name in ("validation_share", "split_seed")} == {
        name: config[name] for name in ("validation_share", "split_seed")
    }
    assert "synthetic" in trained_on["sources"]


def test_an_export_goes_where_it_is_told(trained):
    assert run_program(trained, "openwavlm", "export", "run=runs/first", "output=elsewhere/model").status == 0
    assert openwavlm.load(trained / "elsewhere" / "model").config.dim == 16


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the config needs a value for run, as in run=..."),
        (["run=nowhere"], "nowhere is no run directory (it has no config.yaml): give the folder that train.py wrote"),
        (["run=runs/first", "outptu=x"], "outptu is not a known key; did you mean output?"),
    ],
)
def test_an_export_of_nothing_is_refused(trained, arguments, sentence):
    assert run_program(trained, "openwavlm", "export", *arguments).error().startswith(sentence)


def test_a_run_without_a_checkpoint_is_not_exported(trained, tmp_path):
    (tmp_path / "config.yaml").write_bytes((trained / "runs" / "first" / "config.yaml").read_bytes())
    message = run_program(trained, "openwavlm", "export", f"run={tmp_path}").error()
    assert message.startswith(f"{tmp_path} has no checkpoint yet: let it train to callbacks.checkpoint_every, or touch")


# --- several processes --------------------------------------------------------------------------------------------------


def test_two_processes_train_through_the_program(trained, data, tmp_path):
    # `python -m openwavlm train` hands over to torchrun, which must find its way back to the same command.
    command = [sys.executable, "-m", "openwavlm", "train", "name=two", *SETTINGS, *data, "trainer.devices=2"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=HANG_S, env=_environment())
    assert found.returncode == 0, found.stderr
    run = tmp_path / "runs" / "two"
    assert [s["world_size"] for s in json.loads((run / "run.json").read_text())["segments"]] == [2]
    losses = [
        [float(line.split(",")[1]) for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
        for folder in (run, trained / "runs" / "first")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 4


@pytest.mark.parametrize(
    "number", [signal.SIGUSR1, *(pytest.param(number, marks=pytest.mark.long) for number in (signal.SIGTERM, signal.SIGINT))]
)
def test_a_signal_to_the_program_of_two_processes_saves_and_stops_both(data, tmp_path, number):
    command = [sys.executable, "-m", "openwavlm", "train", "name=two", *SETTINGS, *data, "trainer.devices=2"]
    command += ["optim.updates=100000", "callbacks.checkpoint_every=100000", "callbacks.validate_every=0"]
    metrics = tmp_path / "runs" / "two" / "metrics.csv"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=_environment()) as program:
        wait_until(lambda: _trains(metrics), while_true=lambda: program.poll() is None)
        program.send_signal(number)
        _, told = program.communicate(timeout=HANG_S)
    assert program.returncode == 0, told
    assert f"by {number.name}; the same command resumes it" in told and "Traceback" not in told
    (kept,) = (tmp_path / "runs" / "two" / "checkpoints").glob("*.ckpt")
    assert int(kept.stem[5:]) == metrics.read_text().count("\n") - 1
    assert json.loads((tmp_path / "runs" / "two" / "summary.json").read_text())["complete"] is False


@pytest.mark.long
def test_processes_stop_when_the_program_that_started_them_is_killed(data, tmp_path):
    command = [sys.executable, "-m", "openwavlm", "train", "name=two", *SETTINGS, *data, "trainer.devices=2"]
    command += ["optim.updates=100000", "callbacks.checkpoint_every=100000", "callbacks.validate_every=0"]
    run = tmp_path / "runs" / "two"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=_environment()) as program:
        wait_until(lambda: _trains(run / "metrics.csv"), while_true=lambda: program.poll() is None)
        program.kill()
    # Orphans would train on for hours.
    wait_until(lambda: list(run.glob("checkpoints/*.ckpt")) and not (run / "lock").read_bytes())


def _trains(metrics: Path) -> bool:
    """Whether a run has recorded some updates."""
    return metrics.is_file() and metrics.read_text().count("\n") > 3


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


# --- help ---------------------------------------------------------------------------------------------------------------

SCRIPTS = sorted(path.name for path in (REPOSITORY / "data_prep").glob("*.py"))


def test_all_scripts_are_known_here():
    assert {"assign_labels.py", "fit_kmeans.py", "make_shards.py", "verify.py"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_help_of_a_script_shows_its_command_line_and_every_key(tmp_path, name):
    outcome = run_program(tmp_path, f"data_prep/{name}", "--help")
    assert outcome.status == 0 and outcome.stderr == ""
    assert f"openwavlm {name.removesuffix('.py').replace('_', '-')} " in outcome.stdout and "debug: false" in outcome.stdout
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".txt"], "help must leave nothing behind"


def test_the_help_of_train_shows_its_command_line_groups_and_keys(tmp_path):
    outcome = run_program(tmp_path, "train.py", "--help")
    assert outcome.status == 0 and outcome.stderr == ""
    assert "python train.py name=NAME experiment=EXPERIMENT data.sources.speech.shards=DIR" in outcome.stdout
    assert "model=base | base_plus | large | nano | nano_mel | small" in outcome.stdout
    assert "optim.warmup_updates=32000\n      Steps of linear warm-up from 0." in outcome.stdout


def test_the_help_of_export_shows_its_command_line(tmp_path):
    outcome = run_program(tmp_path, "openwavlm", "export", "--help")
    assert outcome.status == 0 and "openwavlm export run=runs/NAME" in outcome.stdout and "format: huggingface" in outcome.stdout


def test_the_help_of_every_command_is_answered_without_the_packages_that_take_seconds_to_import():
    code = (
        "import sys; from openwavlm.cli import main\n"
        "for name in main.COMMANDS: sys.argv = ['openwavlm', name, '--help']; main.main()\n"
        "print([name for name in ('torch', 'lightning', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("\n[]\n")
    for name in COMMANDS:
        assert f"openwavlm {name}" in shown
    assert shown.count("usage: ") == 3 and len(COMMANDS) == 21, "the others begin with their purpose"


@pytest.mark.parametrize("arguments", [[], ["train", "--help"], ["plan", "experiment=wavlm_nano"], ["nonsense"]])
def test_a_reader_that_ends_early_ends_the_program_without_a_word(tmp_path, arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "openwavlm", *arguments]
    outcome = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=HANG_S)
    os.close(write)
    if arguments == ["nonsense"]:
        assert outcome.returncode == 2 and outcome.stderr.startswith("error: there is no command nonsense\n")
    else:
        assert (outcome.returncode, outcome.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_program_lists_its_commands(tmp_path, arguments):
    outcome = run_program(tmp_path, "openwavlm", *arguments)
    assert outcome.status == 0 and outcome.stderr == ""
    assert outcome.stdout.startswith("usage: openwavlm COMMAND key=value ...")
    assert "\n  train " in outcome.stdout and "\n  export " in outcome.stdout


def test_an_unknown_command_is_refused_with_the_list(tmp_path):
    outcome = run_program(tmp_path, "openwavlm", "trian")
    assert outcome.error() == "there is no command trian" and "\n  train " in outcome.stderr
