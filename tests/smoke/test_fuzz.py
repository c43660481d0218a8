"""Every format, damaged at random: what is read is what was written, or one sentence names the file."""

import functools
import hashlib
import json
import logging
import multiprocessing
import re
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mutations import Damage
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.checkpoints.load import load_checkpoint
from openwavlm.evaluation.phones.alignment_files import read_alignments
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.store import LabelStore
from openwavlm.report.content import read_iteration
from openwavlm.runs.compose import composed, plain
from openwavlm.runs.export import export_run, load_run
from openwavlm.runs.run_directory import RunRecord, accept_config
from openwavlm.runs.segments import segment_of
from openwavlm.shards.corpora import manifest
from openwavlm.shards.done import read_done_file
from openwavlm.shards.index import COLUMNS, Index
from openwavlm.training.build import make_model
from openwavlm.training.checkpoint import AtomicCheckpointIO, checkpoint_path, newest_checkpoint
from openwavlm.training.checkpoint_reader import read_checkpoint
from openwavlm.training.config import RunConfig, with_placeholders
from openwavlm.training.run_files import flatten
from openwavlm.training.tables import RunTables
from patience import HANG_S
from runs import TINY_MODEL
from synthetic import make_shard_set

FORK = multiprocessing.get_context("fork")
MEMORY_BYTES = 3 * 2**30  # beyond what the process has when it begins
CLASSES = 5


@dataclass(frozen=True)
class Format:
    """A format and its reader.

    Attributes:
        files: Pattern below the folder of the files that are damaged, one at a time.
        read: Folder → content.
        checked: Whether any change of the content must be noticed; a file that a user writes, or that another program wrote without
            checksums, must only be read without a crash.
        alone: Whether its reader sees one file and no other of the kind.
    """

    files: str
    read: Callable[[Path], Any]
    checked: bool = True
    alone: bool = False


def frozen(value: Any) -> Any:
    """A value that can be compared, whatever it holds."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, hashlib.sha1(value.tobytes()).hexdigest()
    if is_dataclass(value):
        return [(field.name, frozen(getattr(value, field.name))) for field in fields(value)]
    if isinstance(value, dict):
        return sorted((str(key), frozen(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return [frozen(each) for each in value]
    return repr(value)


# --- what is read -------------------------------------------------------------------------------------------------------


def read_index(world: Path) -> Any:
    index = Index.open(world / "shard-set")
    tables = [index.speakers, index.recordings, index.sources, index.languages, index.keys]
    return [index.shards, index.fingerprint, [getattr(index, name) for name in COLUMNS], tables, index.members]


def read_done(world: Path) -> Any:
    return [read_done_file(file) for file in sorted((world / "shard-set" / "shards").glob("*/*.json"))]


def read_labels(world: Path) -> Any:
    index = Index.open(world / "shard-set")
    store = LabelStore.open(world / "labels", index)
    return [store.fingerprint, store.label_counts, [store.read(row) for row in range(len(index))]]


def read_codebook(world: Path) -> Any:
    codebook = Codebook.load(world / "codebook")
    return [codebook.hash, codebook.features, codebook.fitted, codebook.assign(np.eye(codebook.centroids.shape[1], dtype="<f4"))]


def read_resume(world: Path) -> Any:
    """What a second launch reads before it trains."""
    run = world / "run"
    accept_config(run, config(), [])
    (run / "config.yaml.next").unlink()
    record = RunRecord(run)
    found = newest_checkpoint(run / "checkpoints")
    state = read_checkpoint(found)
    return [record.content, found.name, state]


def read_history(world: Path) -> Any:
    """What a replay reads; without paths, which are checked where they are opened."""
    segment = segment_of(world / "run", 2)
    return [without_paths(segment.config), without_paths(segment.newest), segment.record]


def without_paths(config: dict[str, Any]) -> list[Any]:
    return [(key, "/" if "/" in str(value) else value) for key, value in sorted(flatten(config).items())]


def read_tables(world: Path) -> Any:
    """The tables as a launch that goes on opens them, in a copy, since it cuts them."""
    copy = world / "going-on"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(world / "run", copy)
    state = read_checkpoint(world / "run" / "checkpoints" / "step-00000004.ckpt")["openwavlm"]
    tables = open_tables(copy, last_step=4, prefixes=state["records"]["tables"])
    tables.close()
    return [(copy / name).read_text() for name in ("metrics.csv", "validation.csv", "health.csv", "probes.csv")]


def read_report(world: Path) -> Any:
    iteration = read_iteration(world / "run")
    for note in iteration.notes:
        logging.getLogger("report").warning("%s", note)
    iteration.notes.clear()
    return iteration


def read_export(world: Path) -> Any:
    model, bound = load_run(world / "run")
    return [model.state_dict(), bound]


def model_in(folder: str) -> Callable[[Path], Any]:
    def read(world: Path) -> Any:
        loaded = load_checkpoint(world / folder)
        return [loaded.model.config, loaded.model.state_dict()]

    return read


def rows_of(name: str) -> Callable[[Path], Any]:
    return lambda world: list(manifest.utterances(world / name))


def segments_of(name: str) -> Callable[[Path], Any]:
    return lambda world: dict(read_alignments(world / name, tier="words" if "alignment" in name else "phones").items())


FORMATS = {
    "index": Format("shard-set/index/*", read_index),
    "done-files of shards": Format("shard-set/shards/*/*.json", read_done, alone=True),
    "labels": Format("labels/*.*", read_labels),
    "codebook": Format("codebook/*.*", read_codebook),
    "run.json": Format("run/run.json", read_resume),
    "run.json of a replay": Format("run/run.json", read_history),
    "config.yaml": Format("run/config.yaml", read_history),
    "checkpoint": Format("run/checkpoints/*", read_resume),
    "tables of a resumed run": Format("run/*.csv", read_tables),
    "tables of a report": Format("run/*.csv", read_report),
    "checkpoint that is exported": Format("run/checkpoints/*", read_export),
    "export, Hugging Face": Format("export/*", model_in("export")),
    "export, Microsoft": Format("export-microsoft/*", model_in("export-microsoft")),
    "export, torchaudio": Format("export-torchaudio/model.*", model_in("export-torchaudio")),
    "Hugging Face": Format("huggingface/*", model_in("huggingface"), checked=False),
    "torch before 1.6": Format("old/model.pt", model_in("old/model.pt"), checked=False),
    "torch without checksums": Format("unchecked/model.pt", model_in("unchecked/model.pt"), checked=False),
    "manifest, tsv": Format("manifest.tsv", rows_of("manifest.tsv"), checked=False),
    "manifest, csv": Format("manifest.csv", rows_of("manifest.csv"), checked=False),
    "manifest, jsonl": Format("manifest.jsonl", rows_of("manifest.jsonl"), checked=False),
    "alignments, tsv": Format("phones.tsv", segments_of("phones.tsv"), checked=False),
    "alignments, ctm": Format("phones.ctm", segments_of("phones.ctm"), checked=False),
    "alignments, TextGrid": Format("phones.TextGrid", segments_of("phones.TextGrid"), checked=False),
    "alignments, PHN": Format("phones.phn", segments_of("phones.phn"), checked=False),
    "alignments, LibriSpeech": Format("phones.alignment.txt", segments_of("phones.alignment.txt"), checked=False),
}

# --- a small world of files ---------------------------------------------------------------------------------------------


@functools.cache
def config() -> dict[str, Any]:
    return with_placeholders(plain(composed("train", ["experiment=wavlm_nano", "name=x", *TINY_MODEL])))


def open_tables(run: Path, *, last_step: int = 0, prefixes: dict[str, Any] | None = None) -> RunTables:
    validation = ["step", "cross_entropy", "accuracy", "unigram_cross_entropy", "unigram_accuracy", "repeat_nearest_accuracy"]
    return RunTables(
        run,
        metrics=["step", "loss", "accuracy", "unmasked_accuracy", "audio_s"],
        validation=[*validation, "masked_frames"],
        last_step=last_step,
        prefixes=prefixes or {},
    )


def make_run(run: Path) -> None:
    """A run directory after four updates, checkpoints after two and four."""
    run.mkdir()
    values = config()
    accept_config(run, values, [])
    record = RunRecord(run)
    record.content["fingerprints"] = {"shards.speech": "a", "labels.speech": "b", "codebook": "c"}
    launch = {"from_step": 0, "world_size": 1, "threads": 1, "versions": {"openwavlm": "0.1"}, "commit": None, "plan_version": 1}
    record.begin_segment(
        launch | {"changes": {}, "fingerprints": {}, "plan": {"key": "k", "origin": 0, "first_epochs": {"speech": [0]}}}
    )
    torch.manual_seed(0)
    state = {f"model.{name}": tensor for name, tensor in make_model(RunConfig.of(values), [CLASSES]).state_dict().items()}
    tables = open_tables(run)
    for step in range(1, 5):
        tables.metrics.write({"step": step, "loss": 1 / step, "accuracy": 0.1 * step, "audio_s": 12.5})
        tables.health.write({"step": step, "rule": "unigram", "value": 1 / 3, "threshold": 2.0, "sentence": 'a "quoted", text'})
        tables.probes(["step", "layer_0", "layer_1"]).write({"step": step, "layer_0": 0.1, "layer_1": 0.2 * step})
        if step % 2 == 0:
            names = tables.validation.columns[1:]
            tables.validation.write({"step": step, **{name: 1 / (step + place) for place, name in enumerate(names, start=1)}})
            plan = {"key": "k", "plan_version": 1, "origin": 0, "streams": {"speech": [{"first_epoch": 0, "starts": [0]}]}}
            ours = {"step": step, "fingerprints": record.content["fingerprints"], "plan": plan, "validation": 1 / step}
            content = {"state_dict": state, "openwavlm": {**ours, "records": tables.record(1, ""), "rows": 3.0}}
            AtomicCheckpointIO().save_checkpoint(content, checkpoint_path(run / "checkpoints", step))
    tables.close()
    (run / "summary.json").write_text(json.dumps({"format_version": 1, "updates": 4, "complete": False}))


def make_texts(folder: Path) -> None:
    rows = [
        ("a/one.wav", "s1", "hello", "0.5", "2.25"),
        ("a/two.wav", "s2", "two words", "0", "3"),
        ("b/three.flac", "s1", "", "", ""),
    ]
    names = ["path", "speaker", "text", "start_s", "end_s"]
    for suffix, separator in ((".tsv", "\t"), (".csv", ",")):
        (folder / f"manifest{suffix}").write_text("".join(separator.join(row) + "\n" for row in [names, *rows]))
    lines = [json.dumps({name: value for name, value in zip(names, row, strict=True) if value}) + "\n" for row in rows]
    (folder / "manifest.jsonl").write_text("".join(lines))
    said = [(0.0, 0.25, "sil"), (0.25, 0.5, "HH"), (0.5, 1.0, "AH0")]
    (folder / "phones.tsv").write_text(
        "path\tstart\tend\tphone\n" + "".join(f"u.flac\t{a}\t{b}\t{phone}\n" for a, b, phone in said)
    )
    (folder / "phones.ctm").write_text(";; made up\n" + "".join(f"u 1 {a} {b - a} {phone} 0.9\n" for a, b, phone in said))
    (folder / "phones.phn").write_text("".join(f"{int(a * 16000)} {int(b * 16000)} {phone}\n" for a, b, phone in said))
    (folder / "phones.alignment.txt").write_text('u "sil,HH,AH0" "0.25,0.5,1.0"\n')
    head = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n1\n<exists>\n1\n"IntervalTier"\n"phones"\n0\n1\n3\n'
    (folder / "phones.TextGrid").write_text(head + "".join(f'{a}\n{b}\n"{phone}"\n' for a, b, phone in said))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of every kind, whole."""
    folder = tmp_path_factory.mktemp("world")
    shards = make_shard_set(folder, speakers=3, utterances=3, seconds=(0.6, 1.2), utterances_per_shard=4)
    fit_codebook([shards], folder / "codebook", clusters=CLUSTERS, engine="minibatch", min_frames_per_cluster=5)
    assign_labels(shards, folder / "codebook", folder / "labels")
    make_run(folder / "run")
    for name, file_format in (("export", "huggingface"), ("export-microsoft", "microsoft"), ("export-torchaudio", "torchaudio")):
        export_run(folder / "run", folder / name, format=file_format)
    save_huggingface(load_checkpoint(folder / "export").model, folder / "huggingface")
    content = torch.load(folder / "export-microsoft" / "model.pt", weights_only=True)
    for name in ("old", "unchecked"):
        (folder / name).mkdir()
    torch.save(content, folder / "old" / "model.pt", _use_new_zipfile_serialization=False)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    torch.save(content, folder / "unchecked" / "model.pt")
    torch.serialization.set_crc32_options(before)
    make_texts(folder)
    return folder


CLUSTERS = 6


# --- one try ------------------------------------------------------------------------------------------------------------


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _too_long(*_: object) -> None:
    raise TimeoutError("took too long")  # an OSError without a file name, so that it is a fault


def fault_of(name: str, world: Path, path: Path, damage: Damage, expected: Any, said: Said) -> str | None:
    """What is wrong with how the damaged file is read; None if nothing is."""
    of = FORMATS[name]
    named = re.compile(re.escape(path.name))
    said.lines.clear()
    signal.alarm(int(HANG_S))
    try:
        found = frozen(of.read(world))
    except (ValueError, OSError) as error:
        sentence = str(error)
        if not named.search(sentence):
            return f"does not name the file: {type(error).__name__}: {sentence[:300]}"
        return f"is not one sentence: {sentence[:300]}" if "\n" in sentence or len(sentence) > 1500 else None
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.alarm(0)
    if found == expected or damage.free or not of.checked:
        return None
    return None if any(named.search(line) for line in said.lines) else "other content without a word"


def _tries(name: str, world: Path, count: int, results: Any) -> None:
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _too_long)
    said = Said()
    logging.getLogger().addHandler(said)
    logging.getLogger().setLevel(logging.INFO)
    expected = frozen(FORMATS[name].read(world))
    paths = sorted(path for path in world.glob(FORMATS[name].files) if path.is_file())
    for number in range(count):
        path = paths[number % len(paths)]
        others = [other for other in paths if other != path and other.suffix == path.suffix]
        damage = Damage(path, others, f"{name}/{number}", alone=FORMATS[name].alone)
        try:
            results.send((number, f"{path.name}, {damage.what}", fault_of(name, world, path, damage, expected, said)))
        finally:
            damage.heal()
    results.send((count, "", None))


def damaged(name: str, world: Path, tmp_path: Path, count: int) -> None:
    """Damages files of a format one after another, in a process with little memory; fails with all that is wrong."""
    shutil.copytree(world, tmp_path / "world")
    results, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_tries, args=(name, tmp_path / "world", count, sender))
    process.start()
    sender.close()
    faults, done = [], -1
    while done < count:
        if not results.poll(2 * HANG_S):
            process.kill()
            pytest.fail(f"{name}: try {done + 1} hangs")
        try:
            done, what, fault = results.recv()
        except EOFError:
            break
        if fault:
            faults.append(f"{done}: {what}: {fault}")
    process.join(HANG_S)
    assert done == count and process.exitcode == 0, f"{name}: the process died at try {done + 1}"
    shutil.rmtree(tmp_path / "world")
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults[:40])


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_as_it_was_or_named(name: str, world: Path, tmp_path: Path) -> None:
    damaged(name, world, tmp_path, 15)


@pytest.mark.long
@pytest.mark.parametrize("name", FORMATS)
def test_a_thousand_damaged_files_of_a_format_are_read_as_they_were_or_named(name: str, world: Path, tmp_path: Path) -> None:
    damaged(name, world, tmp_path, 1000)
