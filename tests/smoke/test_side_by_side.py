"""Several labellings in one pass over the audio: each is, byte for byte, what it would have become alone."""

import multiprocessing
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.labels import features as extract
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.verify import labels_of_teacher, verify_labels
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader
from patience import HANG_S, wait_until
from programs import run_program
from synthetic import make_corpus, make_shard_set, write_speech_like

NAMES = ("mfcc", "layer1", "layer2")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Place:
    """A shard set `shards`, a model `teacher`, and by name `codebooks` of three sizes and the `labels` of each, made alone."""

    def __init__(self, folder: Path) -> None:
        self.shards, self.teacher = make_shard_set(folder, speakers=5, utterances=4, seconds=(0.8, 1.6)), folder / "teacher"
        torch.manual_seed(0)
        shape = {"conv_dims": (8,) * 7, "dim": 16, "ffn_dim": 32, "heads": 2, "positional_kernel": 8, "positional_groups": 2}
        save_huggingface(WavLM(WavLMConfig(**shape, layers=2, pre_norm=True)), self.teacher)
        self.codebooks = [folder / f"codebook-{name}" for name in NAMES]
        self.labels = [folder / f"labels-{name}" for name in NAMES]
        features = ({}, {"features": "layer", "layer": 1}, {"features": "layer", "layer": 2})
        for number, (codebook, labels, settings) in enumerate(zip(self.codebooks, self.labels, features, strict=True)):
            teacher = self.teacher if settings else None
            fit_codebook(
                [self.shards],
                codebook,
                clusters=4 + number,
                min_frames_per_cluster=20,
                validation_share=0.0,
                teacher=teacher,
                **settings,
            )
            assign_labels(self.shards, codebook, labels, teacher=teacher)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def test_labellings_made_together_are_those_made_alone(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [tmp_path / name for name in NAMES]
    read: list[int] = []
    passes: list[list[int]] = []
    original, layers = ShardReader.read, extract._rechunked
    monkeypatch.setattr(ShardReader, "read", lambda self, row, *rest: read.append(row) or original(self, row, *rest))
    monkeypatch.setattr(extract, "_rechunked", lambda model, wanted, audio: passes.append(wanted) or layers(model, wanted, audio))
    assert assign_labels(place.shards, place.codebooks, outputs, teacher=place.teacher) is not None
    assert read == list(range(20)) and passes == [[1, 2]] * 20
    for output, alone in zip(outputs, place.labels, strict=True):
        assert files_of(output) == files_of(alone)


def test_a_labelling_that_is_there_already_is_left_alone(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [tmp_path / name for name in NAMES]
    assign_labels(place.shards, place.codebooks[1], outputs[1], teacher=place.teacher)
    before = {path: path.stat().st_mtime_ns for path in outputs[1].glob("pack-*")}
    passes: list[list[int]] = []
    layers = extract._rechunked
    monkeypatch.setattr(extract, "_rechunked", lambda model, wanted, audio: passes.append(wanted) or layers(model, wanted, audio))
    assign_labels(place.shards, place.codebooks, outputs, teacher=place.teacher)
    assert passes == [[2]] * 20 and {path: path.stat().st_mtime_ns for path in outputs[1].glob("pack-*")} == before
    for output, alone in zip(outputs, place.labels, strict=True):
        assert files_of(output) == files_of(alone)


def test_labellings_of_unequal_age_grow_together_as_they_grow_alone(place: Place, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", speakers=2, utterances=3, seconds=(0.8, 1.2), seed=5)
    shards = make_shard_set(tmp_path, corpus=corpus, utterances_per_shard=3)
    together, alone = [tmp_path / f"t{n}" for n in (0, 1)], [tmp_path / f"a{n}" for n in (0, 1)]
    for output in (together[0], alone[0]):
        assign_labels(shards, place.codebooks[0], output)
    old = files_of(together[0])
    write_speech_like(corpus / "spk09" / "new.flac", seconds=1.0, seed=1, speaker="new")
    make_shard_set(tmp_path, corpus=corpus, utterances_per_shard=3)
    books = [place.codebooks[0], place.codebooks[2]]
    assign_labels(shards, books, together, teacher=place.teacher)
    assign_labels(shards, books[0], alone[0])
    assign_labels(shards, books[1], alone[1], teacher=place.teacher)
    assert [files_of(folder) for folder in together] == [files_of(folder) for folder in alone]
    packs = {name: content for name, content in old.items() if name.startswith("pack-")}
    assert packs and {name: files_of(together[0])[name] for name in packs} == packs


def test_the_scripts_take_lists_and_the_check_names_each_share(place: Place, tmp_path: Path) -> None:
    books, teacher = f"codebook=[{place.codebooks[0]},{place.codebooks[2]}]", f"teacher={place.teacher}"
    done = run_program(tmp_path, "data_prep/assign_labels.py", f"shards={place.shards}", books, "output=[a,b]", teacher)
    assert done.status == 0, done.stderr
    assert (files_of(tmp_path / "a"), files_of(tmp_path / "b")) == (files_of(place.labels[0]), files_of(place.labels[2]))
    done = run_program(tmp_path, "data_prep/verify.py", f"shards={place.shards}", "labels=[a,b]", teacher, "share=0.9")
    assert done.status == 0, done
    for name in ("a", "b"):
        assert f"{name}: 18 of 20 rows (90.0%, " in done.stdout
    file = tmp_path / "b" / "pack-00000.u16"
    np.fromfile(file, dtype="<u2")[::-1].tofile(file)
    message = run_program(tmp_path, "data_prep/verify.py", f"shards={place.shards}", "labels=[a,b]", teacher, "share=1").error()
    assert message.startswith("1 problem in b: restore"), message
    message = run_program(
        tmp_path, "data_prep/assign_labels.py", f"shards={place.shards}", books, "output=[a,a]", teacher
    ).error()
    assert message.startswith("every codebook needs an output of its own, but there are 2 codebooks and 1 outputs")


def test_a_teacher_that_no_labelling_has_use_for_is_refused(place: Place, tmp_path: Path) -> None:
    assert labels_of_teacher(place.labels, place.teacher) == place.labels[1:]
    assert labels_of_teacher(place.labels[:1], None) == []
    with pytest.raises(ValueError, match="and need no teacher"):
        assign_labels(place.shards, [place.codebooks[0]], [tmp_path / "out"], teacher=place.teacher)
    with pytest.raises(ValueError, match="and need no teacher"):
        verify_labels(labels_of_teacher(place.labels[:1], place.teacher)[0], Index.open(place.shards), teacher=place.teacher)


def test_single_frames_may_differ_only_where_that_is_asked_for(place: Place, tmp_path: Path) -> None:
    assign_labels(place.shards, place.codebooks[0], tmp_path / "out")
    file, index = tmp_path / "out" / "pack-00000.u16", Index.open(place.shards)
    labels = np.fromfile(file, dtype="<u2")
    labels[3] = (labels[3] + 1) % 4
    labels.tofile(file)
    arguments = {"share": 1.0, "checksums": False}
    assert not verify_labels(tmp_path / "out", index, **arguments).passed
    report = verify_labels(tmp_path / "out", index, **arguments, tolerance=0.01)
    assert report.passed and report.differing_frames == 1 and "a share of 0.01 of the frames may" in report.sentence()
    assert not verify_labels(tmp_path / "out", index, **arguments, tolerance=0.5 / report.frames).passed


def test_a_device_that_is_not_there_is_told(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device is cuda, but torch finds no GPU here: .*use device=cpu, or device=auto"):
        assign_labels(place.shards, place.codebooks[1], tmp_path / "out", teacher=place.teacher, device="cuda")
    with pytest.raises(ValueError, match="device must be one of cpu, cuda, auto, but is 'gpu'"):
        assign_labels(place.shards, place.codebooks[1], tmp_path / "out", teacher=place.teacher, device="gpu")
    assign_labels(place.shards, place.codebooks[1], tmp_path / "out", teacher=place.teacher, device="auto")
    assert files_of(tmp_path / "out") == files_of(place.labels[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_labels_of_a_gpu_say_so_and_are_a_cpus_but_for_single_frames(place: Place, tmp_path: Path) -> None:
    meta = assign_labels(place.shards, place.codebooks[1], tmp_path / "out", teacher=place.teacher, device="cuda")
    assert meta is not None and {pack["computed_on"] for pack in meta["packs"]} == {torch.cuda.get_device_name()}
    report = verify_labels(tmp_path / "out", Index.open(place.shards), teacher=place.teacher, share=1.0, tolerance=0.01)
    assert report.passed, report.sentence()


def _job(place: Place, outputs: list[Path], index: int) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as in a program of its own
    arguments = {"teacher": place.teacher, "workers": 2, "num_tasks": 2, "task_index": index}
    assign_labels(place.shards, place.codebooks, outputs, **arguments)


@pytest.mark.long
def test_two_jobs_of_two_workers_killed_at_random_moments_give_the_bytes_of_one_process(place: Place, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in NAMES]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openwavlm.labels.assign"])
    chance, killed = random.Random(7), 0
    for attempt in range(6):
        jobs = [context.Process(target=_job, args=(place, outputs, index)) for index in (0, 1)]
        for job in jobs:
            job.start()
        if attempt < 2:  # while packs are being written, seconds after the start
            wait_until(lambda written=attempt: sum(1 for _ in outputs[0].glob("pack-*.u16*")) > written, poll_s=0.002)
            time.sleep(chance.uniform(0, 0.03))
            for job in jobs:
                job.kill()
        for job in jobs:
            job.join(HANG_S)
        killed += sum(job.exitcode == -signal.SIGKILL for job in jobs)
        if all((output / "meta.json").is_file() for output in outputs):
            break
    assert killed >= 2
    for output, alone in zip(outputs, place.labels, strict=True):
        assert files_of(output) == files_of(alone)
