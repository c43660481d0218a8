"""The examples run as written, on small models and shards."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.model.wavlm import WavLM
from patience import HANG_S
from programs import REPOSITORY, run_program
from random_models import TINY
from synthetic import make_shard_set, write_speech_like
from tasks import make_encoder, make_task_shards

EXAMPLES = REPOSITORY / "examples"


def run_example(name: str, folder: Path, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_huggingface(WavLM(TINY), folder)
    return folder


def test_all_examples_are_tried_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "continue_from_hugging_face.py",
        "digits_by_ctc.py",
        "features_of_a_file.py",
        "keyword_classifier.py",
        "read_shards.py",
    }


def test_features_of_a_file_have_a_line_for_each_layer(model, tmp_path):
    write_speech_like(tmp_path / "a.wav", 1.0, seed=1, speaker="one")
    lines = run_example("features_of_a_file.py", tmp_path, model, tmp_path / "a.wav").splitlines()
    assert lines[0] == "1.00 s" and len(lines) == 2 + TINY.layers
    assert all(f"(1, 49, {TINY.dim})" in line for line in lines[1:])


def test_shards_are_read_by_plain_webdataset(tmp_path):
    shards = make_shard_set(tmp_path, speakers=2, utterances=2)
    lines = run_example("read_shards.py", tmp_path, shards).splitlines()
    assert len(lines) == 4 and all(line.endswith("16000 Hz") for line in lines)


def test_pre_training_continues_from_a_hugging_face_folder(model, tmp_path):
    shards = make_shard_set(tmp_path, speakers=10, utterances=3)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import continue_from_hugging_face as example, subprocess; "
        "[subprocess.run([sys.executable, '-m', 'openwavlm', *words], check=True) for words in "
        "example.commands(*sys.argv[2:5], layer=1, clusters=5, settings=sys.argv[5:])]"
    )
    settings = [
        *(f"model.{name}={getattr(TINY, name)}" for name in ("dim", "ffn_dim", "heads", "layers", "positional_kernel")),
        *(f"model.{name}={getattr(TINY, name)}" for name in ("positional_groups", "num_buckets", "max_distance")),
        *(f"model.conv_dims={list(TINY.conv_dims)}", "optim.updates=2", "optim.warmup_updates=0", "batch.seconds=4"),
        *("batch.micro_seconds=4", "batch.max_seconds=2", "loader.workers=0", "data.validation_share=0.1"),
    ]
    command = [sys.executable, "-c", code, str(EXAMPLES), str(model), str(shards), "more", *settings]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "more" / "export" / "model.safetensors").is_file()
    assert "init_from" in (tmp_path / "runs" / "more" / "run.json").read_text()


def run_tuning(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs an example of fine-tuning on a corpus of seconds; its commands run in forked processes. Returns its run."""
    make_task_shards(folder, speakers=4, utterances=3)
    (folder / "corpus.tsv").rename(folder / "recordings.tsv")

    def run(command: list[str], *, check: bool) -> None:
        assert check and command[:3] == [sys.executable, "-m", "openwavlm"]
        done = run_program(folder, "openwavlm", *command[3:])
        assert done.status == 0, done.stdout + done.stderr

    monkeypatch.chdir(folder)
    monkeypatch.setattr(subprocess, "run", run)
    example = runpy.run_path(str(EXAMPLES / name))
    quick = ["trainer.accelerator=cpu", "loader.workers=0", "optim.updates=4", "optim.warmup_updates=1", "batch.seconds=4"]
    steps = ["batch.micro_seconds=4", "batch.max_seconds=4", "callbacks.checkpoint_every=2", "callbacks.validate_every=2"]
    example["main"](str(make_encoder(folder / "encoder")), "recordings.tsv", "mine", *quick, *steps)
    return folder / "runs" / "mine"


@pytest.mark.filterwarnings("ignore")  # Transformers' own
@pytest.mark.parametrize(
    ("name", "column", "line", "end"),
    [
        ("digits_by_ctc.py", "text", r"reference '(.*)', transcript '.*'", "word error rate of the test part: "),
        (
            "keyword_classifier.py",
            "word",
            r"reference '(.*)', class '(?:ab|ba|abba)' with probability [01]\.\d\d",
            "wrong classes in the",
        ),
    ],
    ids=["digits", "keywords"],
)
def test_a_fine_tuning_prints_its_predictions_for_recordings_of_held_out_speakers(
    name, column, line, end, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("transformers")
    run = run_tuning(name, tmp_path, monkeypatch)
    printed = capsys.readouterr().out.splitlines()
    test = json.loads((run / "summary.json").read_text())["test"]
    tested = {row.split("\t")[1] for row in (run / "test.tsv").read_text().splitlines()[1:]}
    rows = [row.split("\t") for row in (tmp_path / "recordings.tsv").read_text().splitlines()]
    place = rows[0].index(column)
    assert len(tested) == 1 == test["speakers"]
    found = [re.fullmatch(line, one) for one in printed[3:-1]]
    assert [one and one[1] for one in found] == list(dict.fromkeys(row[place] for row in rows[1:] if row[1] in tested))
    assert printed[-1].startswith(end) and printed[-1].endswith(f"({test['rows']} recordings, 1 speakers)")
