"""A run that cannot be right does not begin: each refusal is one sentence that names the thing and the way out."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.runs.launch import train
from openwavlm.runtime.sealed import sealed
from openwavlm.shards.index import Index
from patience import HANG_S, wait_until
from programs import REPOSITORY, run_program
from runs import TINY_MODEL, compose, launch
from synthetic import make_shard_set

SETTINGS = [
    "experiment=wavlm_nano",
    "name=test",
    *TINY_MODEL,
    "mixing=speech",
    "batch.seconds=12",
    "batch.micro_seconds=4",
    "batch.max_seconds=2",
    "optim.updates=20",
    "optim.warmup_updates=0",
    "data.validation_share=0.3",
    "loader.workers=0",
]


class Place:
    """A folder with a labelled shard set (`shards`, `labels`), another one (`others`, `others-labels`), and labels of a
    second codebook (`labels-2`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def data(self, *, shards: str = "shards", labels: str = "labels", source: str = "speech") -> list[str]:
        return [f"data.sources.{source}.shards={self.folder / shards}", f"data.sources.{source}.labels={self.folder / labels}"]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def tars(self, shards: str = "shards") -> list[Path]:
        index = Index.open(self.folder / shards)
        return [index.path / shard.name for shard in index.shards]

    def change(self, file: str, **values: object) -> None:
        path = self.folder / file
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps(sealed(content) if "seal" in content else content))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Place:
    """All data, and a run of two updates."""
    folder = tmp_path_factory.mktemp("original")
    place = Place(folder)
    for name, seed in (("shards", 0), ("others", 5)):
        made = make_shard_set(folder / "work" / name, speakers=6, utterances=4, seconds=(1.0, 3.0), seed=seed)
        made.rename(folder / name)
    for number, source, labels in ((1, "shards", "labels"), (2, "shards", "labels-2"), (1, "others", "others-labels")):
        codebook = folder / f"codebook-{number}"
        if not codebook.exists():
            fit_codebook(
                [folder / "shards"],
                codebook,
                clusters=10,
                engine="minibatch",
                min_frames_per_cluster=20,
                seed=number,
                validation_share=0.3,
            )
        assign_labels(folder / source, codebook, folder / labels)
    shutil.rmtree(folder / "work")
    assert launch([*SETTINGS, *place.data(), "stop_after=2"], place.run) == [0]
    return place


@pytest.fixture
def place(original, tmp_path) -> Place:
    """A copy to damage, in which the run goes on by the same command."""
    shutil.copytree(original.folder, tmp_path / "data")
    copy = Place(tmp_path / "data")
    config = copy.run / "config.yaml"
    config.write_text(config.read_text().replace(str(original.folder), str(copy.folder)))
    return copy


def refused(place: Place, sentence: str, *overrides: str, run: Path | None = None) -> str:
    """Launches in this process and expects a refusal that leaves everything as it was; returns its text."""
    run = run or place.folder / "new-run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.parent.name != "tensorboard"}
    with pytest.raises(ValueError, match=sentence) as refusal:
        train(compose([*SETTINGS, *(overrides or place.data())]), run)
    assert not (run / "metrics.csv").exists() or (run / "metrics.csv").read_bytes() == before[run / "metrics.csv"]
    after = {path: path.read_bytes() for path in before}
    assert {path.name for path in before if before[path] != after[path]} <= {"config.yaml.next", "lock", "rank-0000.log"}
    assert (run / "lock").read_bytes() == b"", "the run must be free again"
    return str(refusal.value)


def test_the_undamaged_copy_goes_on(place):
    assert launch([*SETTINGS, *place.data(), "stop_after=3"], place.run) == [0]
    assert (place.run / "metrics.csv").read_text().count("\n") == 4


# --- labels and codebooks -----------------------------------------------------------------------------------------------


def test_labels_of_another_shard_set_are_refused(place):
    message = refused(place, r"must have labels in .*others-labels, but 3 of 3 have none", *place.data(labels="others-labels"))
    assert str(place.folder / "shards") in message and "openwavlm assign-labels" in message


def test_labels_of_another_hop_are_refused(place):
    place.change("labels/meta.json", hop_samples=160)
    refused(
        place,
        r"frame grid, hop_samples = 320, but those in .*/labels have hop_samples = 160: make them again with openwavlm assign-labels",
    )


def test_labels_with_other_classes_than_their_codebook_are_refused(place):
    place.change("labels/meta.json", num_classes=12)
    refused(place, r"labels/meta\.json: label_counts must be a list of 12 whole numbers from 0 on, but is a list of 10 entries")


def test_labels_beyond_the_codebook_are_refused(place):
    file = next((place.folder / "labels").glob("pack-*.u16"))
    labels = np.fromfile(file, dtype="<u2")
    labels[17] = 4000
    labels.tofile(file)
    refused(place, rf"below the 10 clusters of their codebook, but .*{file.name} has the label 4000: copy the folder again")


def test_a_codebook_that_was_exchanged_is_refused(place):
    shutil.copy(place.folder / "labels-2/codebook.npy", place.folder / "labels/codebook.npy")
    refused(
        place, r"labels/codebook\.npy must have the hash .* clusters that meta\.json names, but has .*: copy the folder again"
    )


def test_sources_of_different_codebooks_are_refused(place):
    other = f"{{shards: {place.folder / 'shards'}, labels: {place.folder / 'labels-2'}}}"
    message = refused(
        place,
        "labels of the sources other, speech come from different codebooks, so equal numbers mean different sounds: assign all",
        *place.data(),
        f"+data.sources.other={other}",
    )
    assert "with one codebook" in message


@pytest.mark.parametrize("override", ["data.split_seed=1", "data.validation_share=0.4"])
def test_a_codebook_that_was_fitted_on_held_out_speakers_is_refused(place, override):
    sentence = r"codebook of source speech was fitted with validation_share=0\.3 and split_seed=0, perhaps on speakers that"
    message = refused(place, sentence, *place.data(), override)
    assert "set data.validation_share and data.split_seed to the codebook's, or fit it again" in message


def test_unfinished_labels_are_refused(place):
    (place.folder / "labels/meta.json").unlink()
    refused(place, r"finished mark, but .*/labels has none: run openwavlm assign-labels")


# --- shards -------------------------------------------------------------------------------------------------------------


def cut_between_members(tar: Path) -> None:
    with tarfile.open(tar) as file:
        last = file.getmembers()[-2]
    with tar.open("r+b") as file:
        file.truncate(last.offset)
    with tarfile.open(tar) as file:
        assert len(file.getmembers()) > 2, "a tar reader must not notice the cut"


def garble(tar: Path) -> None:
    tar.write_bytes(os.urandom(tar.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            cut_between_members,
            r"the shard {tar} must have \d+ bytes, but has \d+: restore it from a copy, or run openwavlm verify",
        ),
        (garble, r"the shard {tar} does not begin with its first utterance .*: restore it from a copy"),
        (Path.unlink, r"the shard {tar} is missing: restore it from a copy"),
    ],
)
def test_a_damaged_shard_is_refused(place, damage: Callable[[Path], None], sentence):
    tar = place.tars()[1]
    damage(tar)
    refused(place, sentence.format(tar=re.escape(str(tar))))


def test_a_shard_that_was_exchanged_for_another_is_refused(place):
    first, second = place.tars()[:2]
    size = first.stat().st_size
    first.write_bytes(second.read_bytes()[:size].ljust(size, b"\0"))  # of the same size, which alone would not be seen
    refused(place, rf"{re.escape(str(first))} does not begin with its first utterance \(was it swapped for another\?\)")


def test_a_folder_that_is_no_shard_set_is_refused(place):
    refused(place, r"nowhere has no finished index \(index/shards\.json\)", *place.data(shards="nowhere"))


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (
            "shards/index/shards.json",
            r"the index of .*/shards has format 99, but this version of OpenWavLM reads up to 2: update",
        ),
        ("labels/meta.json", r"/labels has labels of format_version 99, but this OpenWavLM reads up to 3: update"),
        (
            "run/checkpoints/step-00000002.ckpt.json",
            r"step-00000002\.ckpt has checkpoint format 99, this version reads up to 1: install",
        ),
        ("run/run.json", r"run/run\.json has format 99, this version reads up to 2: install a newer openwavlm"),
    ],
)
def test_a_newer_format_is_refused_by_name(place, file, sentence):
    place.change(file, format_version=99)
    refused(place, sentence, run=place.run)


def test_noise_without_a_noise_bank_is_refused(place):
    message = refused(place, r"mixing\.noise_prob is 0\.1 and there is no noise clip", *place.data(), "mixing=speech_noise")
    assert "data.noise=shards/NOISE" in message


def test_a_batch_without_usable_audio_is_refused(place):
    refused(
        place,
        r"source speech has no usable audio: every utterance is shorter than batch\.min_seconds=4: lower it, or give longer audio",
        *place.data(),
        "batch.min_seconds=4",
        "batch.max_seconds=4",
    )


# --- the run ------------------------------------------------------------------------------------------------------------


def test_more_processes_than_micro_batches_are_refused(place, monkeypatch):
    monkeypatch.setattr("openwavlm.runs.launch.join_processes", lambda: (0, 4))
    refused(place, "4 processes but only 3 micro-batches a step: use at most 3 processes, or lower batch.micro_seconds")


def test_a_run_does_not_go_on_with_other_settings(place):
    message = refused(place, "this launch differs from the run in", *place.data(), "optim.lr=0.5", "seed=3", run=place.run)
    assert "\n  optim.lr: 0.001 -> 0.5\n  seed: 1337 -> 3\n" in message and "allow_change=[optim.lr,seed]" in message


def test_a_run_does_not_go_on_with_labels_that_changed_in_their_place(place):
    shutil.rmtree(place.folder / "labels")
    (place.folder / "labels-2").rename(place.folder / "labels")
    sentence = (
        r"the data of this run has changed since it began \(codebook, labels\.speech in .*/labels\): restore it, start a new run"
    )
    refused(place, sentence, run=place.run)


def test_a_run_does_not_go_on_with_shards_that_were_added_to(place):
    for name in ("shards", "labels"):
        shutil.rmtree(place.folder / name)
    (place.folder / "others").rename(place.folder / "shards")
    (place.folder / "others-labels").rename(place.folder / "labels")
    refused(
        place,
        r"has changed since it began \(labels\.speech in .*, metadata\.speech in .*, shards\.speech in .*/shards\): restore it, .* or "
        r"allow_change=\[data\]",
        run=place.run,
    )


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(place):
    for path in (place.run / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-10])
    refused(place, r"none of the 1 checkpoints in .* verifies: restore one of them from a copy", run=place.run)


def test_two_launches_of_one_run_do_not_write_at_once(place):
    run = place.folder / "new-run"
    codes: list[int] = []
    overrides = [*SETTINGS, *place.data(), "optim.updates=100000"]
    first = threading.Thread(target=lambda: codes.extend(launch(overrides, run)))
    first.start()
    wait_until((run / "metrics.csv").exists, while_true=first.is_alive)
    holder = json.loads((run / "lock").read_text())["pid"]
    sentence = (
        rf"the run {re.escape(str(run))} is being written by process {holder} on {socket.gethostname()}: wait for it, stop it"
    )
    try:
        with pytest.raises(ValueError, match=sentence):
            train(compose(overrides), run)
    finally:
        (run / "stop").touch()
        first.join(HANG_S)
    assert codes == [0]
    assert len(json.loads((run / "run.json").read_text())["segments"]) == 1


def test_a_refused_first_launch_does_not_bind_the_next_one(place):
    refused(place, "has no finished index", *place.data(shards="misspelt"))
    assert launch([*SETTINGS, *place.data(), "stop_after=1"], place.folder / "new-run") == [0]


def test_a_run_stops_when_too_many_rows_cannot_be_read(place):
    index = Index.open(place.folder / "shards")
    for row in range(len(index)):
        with (index.path / index.shards[int(index.shard[row])].name).open("r+b") as file:
            file.seek(int(index.offset[row]) + 100)
            file.write(b"\x55" * (int(index.nbytes[row]) - 100))
    run = place.folder / "new-run"
    outcome = run_program(place.folder, "train.py", *SETTINGS, *place.data(), f"hydra.run.dir={run}")
    message = outcome.error()
    assert re.match(
        r"\d+ of \d+ rows could not be read, more than data\.max_skip_rate=0\.001 allows: run openwavlm verify", message
    )
    assert not list((run / "checkpoints").glob("*.ckpt"))
    assert "the FLAC data does not decode" in outcome.stderr or "samples decode" in outcome.stderr


# --- what a user sees ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optim.lrr=1"], "optim.lrr is not a known key; did you mean optim.lr?"),
        (["+optim.lrr=1"], "optim.lrr is not a known key; did you mean optim.lr?"),
        (["modle=base"], "modle is not a known key; did you mean model?"),
        (["model=bsae"], "model has no option 'bsae': choose one of base, base_plus, large, nano, nano_mel, small"),
        (["experiment=naon"], "experiment has no option 'naon': choose one of hubert_base_it1"),
        (["trainer=null"], "trainer must be a group of keys, but is None: take the override away"),
        (["~seed"], "the config lacks seed: leave out the override that deletes it"),
        (["~loss"], "the config lacks loss: leave out the override that deletes it"),
        (["-m", "~masking", "seed=1,2"], "the config lacks masking: leave out the override that deletes it"),
        (["optim.lr=fast"], "optim.lr must be a number, but is 'fast'"),
        (["optim.updates=oops oops"], "optim.updates must be a whole number, but is 'oops oops'"),
        (["name=???"], "the config needs a value for name, as in name=..."),
        (["updates"], "Error parsing override 'updates' missing EQUAL at '<EOF>'"),
        ([], "data.sources.speech.shards must name a folder, as in data.sources.speech.shards=shards/NAME"),
        (["-m", "seed=1,2"], "data.sources.speech.shards must name a folder"),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line(tmp_path, overrides, sentence):
    message = run_program(tmp_path, "train.py", "name=test", *overrides).error()
    assert message.startswith(sentence)


def test_debug_shows_where_it_happened(tmp_path):
    outcome = run_program(tmp_path, "train.py", "name=test", "debug=true")
    assert outcome.status == 1 and "Traceback" in outcome.stderr and "must name a folder" in outcome.stderr


def test_a_gpu_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    message = run_program(
        tmp_path, "train.py", "name=test", "trainer.accelerator=gpu", "data.sources.speech={shards: a, labels: b}"
    ).error()
    assert message.startswith("trainer.accelerator is gpu, but torch finds no GPU here") and "trainer.accelerator=auto" in message


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optim.warmup_update=3"], "optim.warmup_update is not a known key; did you mean optim.warmup_updates?"),
        pytest.param(
            ["data.sources.speech.shards=no", "data.sources.speech.labels=no"],
            "no has no finished index (index/shards.json)",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_program_of_its_own_ends_with_status_two_and_one_line(tmp_path, overrides, sentence):
    command = [sys.executable, str(REPOSITORY / "train.py"), "name=test", *overrides]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=HANG_S)
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith(f"error: {sentence}") and found.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("metrics.csv"))
