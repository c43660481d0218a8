"""make_shards from end to end: byte-identical however it is run, grows, joins, and refuses bad input in a sentence."""

import fcntl
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from webdataset.tariterators import group_by_keys, tar_file_expander

from openwavlm.audio.encode import pcm_id, pcm_md5
from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.index import Index
from openwavlm.shards.index_writer import build_index
from openwavlm.shards.prepare import make_shards
from openwavlm.shards.reader import ShardReader, check_shards
from openwavlm.shards.verify import verify_shards
from patience import wait_until
from synthetic import make_corpus, speech_like, write_speech_like

ROOT = Path(__file__).parents[2]
SMALL = {"speaker_folder": 1, "task_hours": 8 / 3600, "utterances_per_shard": 3, "min_seconds": 0.5, "source": "test"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "speech", speakers=4, utterances=8, seconds=(0.6, 2.0))


@pytest.fixture(scope="module")
def reference(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reference")
    make_shards(input=corpus, output=output, **SMALL)
    return output


@pytest.fixture
def copy(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "speech"))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def samples_of(tar: Path) -> list[dict[str, Any]]:
    """Reads a tar through webdataset's own stages (its `WebDataset` leaves the file to the garbage collector)."""
    with tar.open("rb") as stream:
        return list(group_by_keys(tar_file_expander([{"url": str(tar), "stream": stream}])))


def shard_identities(output: Path) -> dict[str, str]:
    return {shard.name: shard.identity for shard in Index.open(output).shards}


def program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, name: str = "make_shards"
) -> str:
    """Runs the script in this process, expects exit status 2, and returns its one sentence."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "data_prep" / f"{name}.py"), run_name="__main__")
    assert caught.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


def wait_for_end_of_group(group: int) -> None:
    """Waits until no process of a group is left: workers may not outlive the program that started them."""

    def ended() -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(ended)


def test_every_utterance_comes_out_as_it_went_in(corpus: Path, reference: Path) -> None:
    index = Index.open(reference)
    check_shards(index)
    reader = ShardReader(index)
    files = {path.relative_to(corpus).with_suffix("").as_posix(): path for path in corpus.rglob("*.flac")}
    assert len(index) == len(files) == 32
    assert index.sources == ["", "test"]
    for row in range(len(index)):
        name = index.recordings[index.recording[row]].removeprefix("test/")
        np.testing.assert_array_equal(reader.read(row), soundfile.read(files.pop(name), dtype="int16")[0])
        assert index.speakers[index.speaker[row]] == f"test/{name.partition('/')[0]}"
    assert not files
    assert not verify_shards(reference, share=1.0).problems


def test_shards_are_plain_webdataset_tars(reference: Path) -> None:
    index = Index.open(reference)
    seen = []
    for shard in index.shards:
        assert shard.rows <= 3
        with tarfile.open(reference / shard.name) as tar:
            assert all(member.mtime == 0 and not member.pax_headers for member in tar)
        for sample in samples_of(reference / shard.name):
            fields = json.loads(sample["json"])
            samples, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
            assert (rate, len(samples), fields["source"]) == (16_000, fields["num_samples"], "test")
            assert fields["end_s"] == pytest.approx(len(samples) / 16_000)
            seen.append(sample["__key__"])
    assert seen == index.keys
    assert len(set(seen)) == 32


def test_neighbouring_rows_come_from_the_whole_corpus(reference: Path) -> None:
    stats = json.loads((reference / "stats.json").read_text())
    assert stats["utterances"] == 32
    assert stats["speakers"] == 4
    assert stats["same_recording_share"] == 0
    assert 0.15 < stats["same_speaker_share"] < 0.32


def test_two_workers_write_the_same_bytes(corpus: Path, reference: Path, tmp_path: Path) -> None:
    make_shards(input=corpus, output=tmp_path, workers=2, **SMALL)
    assert tree(tmp_path) == tree(reference)


def test_a_second_run_changes_nothing(corpus: Path, reference: Path) -> None:
    before = tree(reference)
    times = {path: path.stat().st_mtime_ns for path in reference.rglob("*.tar")}
    make_shards(input=corpus, output=reference, **SMALL)
    assert tree(reference) == before
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*.tar")} == times


def finished(output: Path) -> int:
    """Tasks that have left their done-file."""
    return len(list((output / "done").glob("*/*.json")))


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "speech", speakers=4, utterances=12, seconds=(0.6, 0.9))
    settings = ["speaker_folder=1", "task_hours=0.0002", "min_seconds=0.5", "workers=2"]
    command = [sys.executable, str(ROOT / "data_prep" / "make_shards.py"), f"input={corpus}", *settings]
    command.append(f"output={tmp_path / 'killed'}")
    for _ in range(20):  # on a busy machine it may have finished before the signal
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        wait_until(
            lambda: finished(tmp_path / "killed") >= 5, while_true=lambda started=process: started.poll() is None, poll_s=0.002
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for_end_of_group(process.pid)
        if finished(tmp_path / "killed") < 45:
            break
        shutil.rmtree(tmp_path / "killed")
    assert 5 <= finished(tmp_path / "killed") < 45
    assert not (tmp_path / "killed" / "index").exists()
    (tmp_path / "killed" / "shards" / "000" / "000000-000.tar.1.tmp").write_bytes(b"left by a killed run")
    for output in ("killed", "whole"):
        make_shards(input=corpus, output=tmp_path / output, speaker_folder=1, task_hours=0.0002, min_seconds=0.5)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_a_lost_or_cut_shard_is_made_again(corpus: Path, reference: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(reference, tmp_path / "copy"))
    tars = sorted(output.rglob("*.tar"))
    tars[0].unlink()
    os.truncate(tars[-1], tars[-1].stat().st_size // 2)
    make_shards(input=corpus, output=output, **SMALL)
    assert tree(output) == tree(reference)


def test_an_array_of_jobs_writes_the_same_bytes(corpus: Path, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run once with num_tasks=0"):
        make_shards(input=corpus, output=tmp_path, num_tasks=2, task_index=1, **SMALL)
    listed = make_shards(input=corpus, output=tmp_path, num_tasks=0, **SMALL)["tasks"]
    ran = [make_shards(input=corpus, output=tmp_path, num_tasks=2, task_index=job, **SMALL)["tasks"] for job in range(2)]
    assert min(ran) > 0
    assert sum(ran) == listed
    assert not (tmp_path / "index").exists()
    make_shards(input=corpus, output=tmp_path, **SMALL)
    assert tree(tmp_path) == tree(reference)


def test_the_seed_moves_utterances_between_shards(corpus: Path, reference: Path, tmp_path: Path) -> None:
    make_shards(input=corpus, output=tmp_path, seed=1, **SMALL)
    assert sorted(Index.open(tmp_path).keys) == sorted(Index.open(reference).keys)
    assert Index.open(tmp_path).keys != Index.open(reference).keys


def test_growth_adds_shards_and_rewrites_none(reference: Path, copy: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(reference, tmp_path / "grown"))
    before = {name: content for name, content in tree(output).items() if name.startswith(("shards/", "done/"))}
    for number in range(5):
        write_speech_like(copy / "new" / f"{number}.wav", 1.0, number, "new")
    stats = make_shards(input=copy, output=output, **SMALL)
    assert stats["utterances"] == 37
    after = tree(output)
    assert {name: after[name] for name in before} == before
    old, new = shard_identities(reference), shard_identities(output)
    assert old.items() < new.items()
    assert Index.open(output).fingerprint != Index.open(reference).fingerprint


def test_an_unfinished_run_refuses_another_input(corpus: Path, tmp_path: Path) -> None:
    make_shards(input=corpus, output=tmp_path / "out", num_tasks=0, **SMALL)
    other = make_corpus(tmp_path / "other", speakers=1, utterances=1, seed=9)
    shutil.move(other / "spk00", other / "someone")
    with pytest.raises(ValueError, match=r"unfinished tasks of .* need 32 utterances that are not in"):
        make_shards(input=other, output=tmp_path / "out", **SMALL)


def test_short_clips_are_joined_with_their_speaker(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "speech", speakers=2, utterances=7, seconds=(0.3, 0.5))
    write_speech_like(corpus / "alone" / "one.flac", 0.4)
    settings = SMALL | {"min_seconds": 1.0}
    stats = make_shards(input=corpus, output=tmp_path / "out", **settings)
    assert (stats["joined_clips"], stats["short"], stats["skipped"]) == (14, 1, 0)
    index = Index.open(tmp_path / "out")
    assert len(index) == stats["joined"] + 1
    assert len(index.members) == 14
    clips = {pcm_id(pcm_md5(soundfile.read(path, dtype="int16")[0])) for path in corpus.rglob("utt*.flac")}
    reader = ShardReader(index)
    for row in range(len(index)):
        samples, members = reader.read(row), index.members[index.members["row"] == row]
        covered = np.zeros(len(samples), bool)
        for member in members:
            part = slice(member["offset"], member["offset"] + member["num_samples"])
            covered[part] = True
            assert pcm_id(pcm_md5(samples[part])) == member["pcm"]
            clips.remove(int(member["pcm"]))
        if len(members):
            assert not samples[~covered].any()
            assert (~covered).sum() == 1600 * (len(members) - 1)
            assert index.num_samples[row] >= 16_000
    assert not clips
    apart = make_shards(input=corpus, output=tmp_path / "apart", join_short=False, **settings)
    assert (apart["utterances"], apart["joined"], apart["short"]) == (15, 0, 15)


def test_segments_of_long_recordings_follow_the_manifest(tmp_path: Path) -> None:
    long = {name: speech_like(12.0, n, n) for n, name in enumerate("ab")}
    rows = ["path\tstart_s\tend_s\tspeaker\ttext\tquality"]
    for name, samples in long.items():
        soundfile.write(tmp_path / f"{name}.flac", samples, 16_000)
        rows += [f"{name}.flac\t{start}\t{start + 2.5}\tspk{name}\tit's {start}\tgood" for start in (0.5, 4.0, 8.25)]
    (tmp_path / "list.tsv").write_text("\n".join(rows) + "\n")
    make_shards(input=tmp_path / "list.tsv", output=tmp_path / "out", layout="manifest")
    index = Index.open(tmp_path / "out")
    reader = ShardReader(index)
    seen = []
    for sample in samples_of(tmp_path / "out" / index.shards[0].name):
        fields = json.loads(sample["json"])
        row = index.keys.index(sample["__key__"])
        name, first = fields["recording"], round(fields["start_s"] * 16_000)
        np.testing.assert_array_equal(reader.read(row), long[name][first : first + 40_000])
        assert (fields["text"], fields["quality"]) == (f"it's {fields['start_s']:g}".replace("4", "4.0"), "good")
        seen.append((name, fields["start_s"]))
    assert len(set(seen)) == 6
    assert sorted(index.recordings) == ["", "list/a", "list/b"]


def test_bad_files_are_skipped_listed_and_taken_up_once_repaired(copy: Path, tmp_path: Path) -> None:
    victim = copy / "spk01" / "utt003.flac"
    sound = victim.read_bytes()
    victim.write_bytes(sound[:2000])
    stats = make_shards(input=copy, output=tmp_path / "out", max_skip_rate=0.05, **SMALL)
    assert (stats["utterances"], stats["skipped"], stats["skipped_by_reason"]) == (31, 1, {"truncated": 1})
    header, line = (tmp_path / "out" / "skipped.tsv").read_text().splitlines()
    assert header == "path\tname\treason\tdetail"
    assert line.startswith("spk01/utt003.flac\tspk01/utt003\ttruncated\t")
    before = shard_identities(tmp_path / "out")
    victim.write_bytes(sound)
    stats = make_shards(input=copy, output=tmp_path / "out", **SMALL)
    assert (stats["utterances"], stats["skipped"]) == (32, 0)
    assert before.items() < shard_identities(tmp_path / "out").items()


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("unreadable", b"not audio at all"),
        ("zero-length", b""),
        ("all-zero", np.zeros(8000, np.int16)),
        ("too-short", speech_like(0.02)),
        ("not-finite", np.full(8000, np.nan, np.float32)),
        ("too-long", speech_like(4.0)),
        ("truncated", speech_like(1.0)),
    ],
)
def test_too_many_bad_files_end_in_one_sentence(
    reason: str,
    content: bytes | np.ndarray,
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = copy / "spk00" / "bad.wav"
    if isinstance(content, bytes):
        bad.write_bytes(content)
    else:
        soundfile.write(bad, content, 16_000, subtype="FLOAT" if content.dtype == np.float32 else "PCM_16")
    if reason == "truncated":
        bad.write_bytes(bad.read_bytes()[:9000])
    output, settings = tmp_path / "out", ["speaker_folder=1", "max_hours=0.001", "min_seconds=0.5"]
    said = program(monkeypatch, capsys, f"input={copy}", f"output={output}", *settings)
    assert "1 of 33 utterances cannot be used (3.03%), more than max_skip_rate=0.01 allows" in said
    assert f"(first: spk00/bad.wav: {reason}, " in said
    assert "repair or remove the files" in said
    assert f"\t{reason}\t" in (output / "skipped.tsv").read_text()
    assert not (output / "index").exists()
    bad.unlink()
    make_shards(input=copy, output=output, source="speech", speaker_folder=1, max_hours=0.001, min_seconds=0.5)
    assert len(Index.open(output)) == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["input=nowhere"], "the input nowhere does not exist: give input=FOLDER"),
        (["seed=1"], "was made with seed=0, but this run has seed=1: repeat the settings, or give another output"),
        (["min_seconds=3", "source=b"], "was made with min_seconds=0.5, source=test, but this run has min_seconds=3, source=b"),
        (["layout=kaldi"], "layout must be one of folder, manifest, librispeech, but is 'kaldi'"),
        (["source=my.corpus"], "a source name consists of letters, digits, - and _, but is 'my.corpus'"),
        (["task_hours=0"], "task_hours must be above 0, but is 0"),
        (["max_skip_rate=2"], "max_skip_rate must lie in [0, 1], but is 2"),
        (["workers=0"], "workers must be at least 1, but is 0"),
        (["num_tasks=2", "task_index=2"], "task_index must lie in [0, num_tasks), but is 2 with num_tasks=2"),
        (["subfolders=[spk09]"], "the sub-folder spk09 does not exist"),
    ],
)
def test_a_wrong_setting_is_refused_with_exit_status_2(
    arguments: list[str],
    message: str,
    corpus: Path,
    reference: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = tree(reference)
    usual = {"input": str(corpus), "output": str(reference), **{key: str(value) for key, value in SMALL.items()}}
    usual |= dict(argument.split("=") for argument in arguments)
    if "workers" in usual:
        usual["output"] += "-other"
    said = program(monkeypatch, capsys, *(f"{key}={value}" for key, value in usual.items()))
    assert message in said
    assert tree(reference) == before


def test_a_second_writer_is_refused(corpus: Path, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is writing to"):
            make_shards(input=corpus, output=tmp_path, **SMALL)


def test_duplicate_keys_and_newer_formats_refuse_the_index(reference: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(reference, tmp_path / "copy"))
    file = sorted(output.glob("shards/*/*.json"))[0]
    again = json.loads(file.read_text()) | {"name": "shards/000/000099-000.tar"}
    write_sealed(file.with_name("000099-000.json"), {name: value for name, value in again.items() if name != "seal"})
    with pytest.raises(ValueError, match="every utterance needs a key of its own"):
        build_index(output)
    file.with_name("000099-000.json").unlink()
    done = json.loads(file.read_text())
    for changes, message in [
        ({"format_version": 3}, "format 3, but"),
        ({"identity": "0"}, "its checksum differs.*delete it"),
    ]:
        file.write_text(json.dumps(done | changes))
        with pytest.raises(ValueError, match=message):
            build_index(output)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"is damaged .*: delete it"):
        build_index(output)


def test_a_shard_set_of_a_newer_format_is_refused(corpus: Path, reference: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(reference, tmp_path / "copy"))
    settings = json.loads((output / "settings.json").read_text())
    (output / "settings.json").write_text(json.dumps(settings | {"format_version": 3}))
    with pytest.raises(ValueError, match="has format 3, but this version of OpenWavLM reads up to 2"):
        make_shards(input=corpus, output=output, **SMALL)


def test_verify_fails_on_a_damaged_shard(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(reference, tmp_path / "copy"))
    with sorted(output.rglob("*.tar"))[0].open("r+b") as file:
        file.seek(3000)
        file.write(b"rot")
    report = tmp_path / "report.json"
    said = program(monkeypatch, capsys, f"shards={output}", f"json={report}", name="verify")
    assert "restore the files from a copy" in said
    assert "does not have its checksum" in json.loads(report.read_text())["problems"][0]


def test_the_program_prints_figures_and_leaves_no_files_of_its_own(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    command = [sys.executable, str(ROOT / "data_prep" / "make_shards.py"), f"input={corpus}", "output=../out"]
    command += ["speaker_folder=1", "min_seconds=0.5"]
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True, check=True)
    assert "32 utterances, 0.01 hours, 4 speakers, 1 shards" in done.stdout
    assert "the speaker is the same in" in done.stdout
    split = json.loads((tmp_path / "out" / "stats.json").read_text())["split"]
    assert split["speakers"] == 4 and split["held_out"] >= 1
    assert (
        f"validation_share=0.1 holds out {split['held_out']} of 4 speakers, {split['held_out_seconds']:.1f} s of" in done.stdout
    )
    assert not list((tmp_path / "here").iterdir())
    assert Index.open(tmp_path / "out").sources == ["", "speech"]
