"""The embedded corpus end to end: layout, hold-outs, phone times, resuming, and the program."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.audio.mfcc import mfcc_features
from openwavlm.audio.read import decode
from openwavlm.evaluation.phones.alignment_files import read_tsv
from openwavlm.evaluation.phones.alignments import frame_phones
from openwavlm.labels.minibatch import fit_minibatch_kmeans
from openwavlm.labels.quality import joint_histogram, pnmi
from openwavlm.shards.prepare import make_shards
from openwavlm.synthesis.corpus import PHONE_COLUMNS, synthesize
from openwavlm.synthesis.utterance import CLASSES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeak-ng is not installed: pip install 'openwavlm[demo]'"
)
ROOT = Path(__file__).parents[2]
# Below one utterance a voice, so each of the 212 says one.
SMALL = {"minutes": 1.0, "dev_minutes": 0.5, "test_minutes": 1.0}
SETS = ("train", "train_clean", "dev", "dev_clean", "test", "test_clean")


def rows_of(path: Path) -> list[dict[str, str]]:
    header, *lines = (line.split("\t") for line in path.read_text().splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthesis") / "corpus"
    synthesize(output=folder, **SMALL)
    return folder


def test_the_manifests_list_every_speaker_and_their_files_have_the_announced_length(corpus: Path):
    stats = json.loads((corpus / "stats.json").read_text())
    counts = {"train": 128, "train_clean": 128, "dev": 24, "dev_clean": 24, "test": 60, "test_clean": 60}
    speakers = {"train": 64, "dev": 6, "test": 12}
    for name in SETS:
        rows = rows_of(corpus / f"{name}.tsv")
        assert len(rows) == counts[name] == stats["sets"][name]["utterances"]
        for row in rows:
            assert row["split"] == name and row["speaker"].removesuffix("-2") == row["variant"]
            assert row["path"].split("/")[1] == f"{row['speaker']}_{row['accent']}"
            assert row["path"] == row["recording"] + ".flac" and row["text"]
        assert len({row["speaker"] for row in rows}) == speakers[name.removesuffix("_clean")] == stats["sets"][name]["speakers"]
        for row in rows[::8]:
            samples = decode(corpus / row["path"]).samples
            assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(float(row["seconds"]), abs=1e-4)
            assert 2 <= float(row["seconds"]) <= 8


def test_held_out_speakers_and_accents_are_not_in_training(corpus: Path):
    rows = {name: rows_of(corpus / f"{name}.tsv") for name in ("train", "dev", "test")}
    variants = {name: {row["variant"] for row in found} for name, found in rows.items()}
    assert {name: len(found) for name, found in variants.items()} == {"train": 32, "dev": 6, "test": 12}
    assert len(set.union(*variants.values())) == 50
    accents = {name: {row["accent"] for row in found} for name, found in rows.items()}
    assert len(accents["train"]) == 4 and accents["test"] - accents["train"] == {"caribbean"}


def test_phone_times_are_contiguous_and_cover_the_audio(corpus: Path):
    assert (corpus / "phones.tsv").read_text().splitlines()[0] == "\t".join(PHONE_COLUMNS)
    table = read_tsv(corpus / "phones.tsv")
    rows = [row for name in SETS for row in rows_of(corpus / f"{name}.tsv")]
    assert set(table) == {row["path"] for row in rows}
    for row in rows:
        segments = table[row["path"]]
        assert segments[0].start_s == 0 and segments[-1].end_s == pytest.approx(float(row["seconds"]), abs=1e-4)
        assert all(before.end_s == after.start_s for before, after in pairwise(segments))
        assert all(segment.end_s > segment.start_s for segment in segments)
        assert segments[0].phone == segments[-1].phone == "sil" and {segment.phone for segment in segments} <= set(CLASSES)


def test_training_keeps_a_clean_twin_of_as_much_as_was_asked_for(tmp_path: Path):
    stats = synthesize(output=tmp_path / "corpus", **SMALL | {"minutes": 12.0, "clean_minutes": 1.0})
    whole, clean = (rows_of(tmp_path / "corpus" / f"{name}.tsv") for name in ("train", "train_clean"))
    assert len(whole) > len(clean) == 128 and stats["sets"]["train_clean"]["speakers"] == 64
    said = {row["path"].removeprefix("train/"): row["text"] for row in whole}
    assert all(said[row["path"].removeprefix("train_clean/")] == row["text"] for row in clean)


def test_the_clean_twin_says_the_same_at_the_same_time(corpus: Path):
    table = read_tsv(corpus / "phones.tsv")
    for row, twin in zip(rows_of(corpus / "test.tsv"), rows_of(corpus / "test_clean.tsv"), strict=True):
        assert row["text"] == twin["text"] and table[row["path"]] == table[twin["path"]]
    heard = decode(corpus / row["path"]).samples.astype(float)
    clean = decode(corpus / twin["path"]).samples.astype(float)
    size = 2 * len(clean)
    correlation = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(clean, size)), size)
    lag = int(correlation.argmax())
    assert min(lag, size - lag) <= 2
    assert not (heard == clean).all()


def test_the_mfcc_codebook_knows_most_about_the_phones_where_they_are(corpus: Path):
    table = read_tsv(corpus / "phones.tsv")
    paths = [row["path"] for row in rows_of(corpus / "train.tsv")]
    features = [mfcc_features(decode(corpus / path).samples) for path in paths]
    codebook = fit_minibatch_kmeans(np.concatenate(features), 50, seed=0, n_init=1)
    labels = [codebook.assign(one) for one in features]

    def information(shift_s: float) -> float:
        spoken = [frame_phones(table[path], len(one), CLASSES, shift_s=shift_s) for path, one in zip(paths, labels, strict=True)]
        return pnmi(joint_histogram(np.concatenate(spoken), np.concatenate(labels), num_phones=len(CLASSES), num_classes=50))

    shifts_ms = np.arange(-100, 101, 10)
    curve = np.array([information(shift_ms / 1000) for shift_ms in shifts_ms])
    assert abs(shifts_ms[curve.argmax()]) <= 20
    assert curve.max() > 0.25
    assert max(curve[0], curve[-1]) < 0.5 * curve.max()


def test_two_workers_write_the_same_bytes_and_a_killed_run_is_finished(corpus: Path, tmp_path: Path):
    synthesize(output=tmp_path / "two", workers=2, **SMALL)
    expected = contents(corpus)
    assert contents(tmp_path / "two") == expected
    (tmp_path / "two" / "stats.json").unlink()
    (tmp_path / "two" / "parts" / "dev" / "victor_rp.json").unlink()
    (tmp_path / "two" / "train" / "m1_us" / "0000.flac").write_bytes(b"cut")
    (tmp_path / "two" / "test" / "m4_us" / "0000.flac.7.tmp").write_bytes(b"left over")
    kept = tmp_path / "two" / "train" / "m3_us" / "0000.flac"
    before = kept.stat().st_mtime_ns
    synthesize(output=tmp_path / "two", **SMALL)
    assert contents(tmp_path / "two") == expected
    assert kept.stat().st_mtime_ns == before


def test_other_settings_for_an_existing_corpus_are_refused(corpus: Path):
    with pytest.raises(ValueError, match=r"was made with seed=0, but this run has seed=1"):
        synthesize(output=corpus, seed=1, **SMALL)
    with pytest.raises(ValueError, match="minutes must be above 0"):
        synthesize(output=corpus, **SMALL | {"minutes": 0})


def test_make_shards_reads_a_manifest(corpus: Path, tmp_path: Path):
    stats = make_shards(input=corpus / "test.tsv", output=tmp_path / "shards", layout="manifest", source="synthetic")
    assert (stats["utterances"], stats["speakers"], stats["recordings"], stats["joined"]) == (60, 12, 60, 0)


def test_the_program_finishes_a_corpus_and_prints_what_is_in_it(corpus: Path):
    settings = [f"{name}={value}" for name, value in SMALL.items()]
    command = [sys.executable, str(ROOT / "data_prep" / "synthesize.py"), f"output={corpus}", *settings]
    done = subprocess.run(command, capture_output=True, text=True, cwd=corpus)
    assert done.returncode == 0, done.stderr
    assert "train: 128 utterances" in done.stdout and "45 phone classes" in done.stdout
