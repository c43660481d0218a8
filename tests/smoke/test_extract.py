"""`openwavlm extract`: features and units of a folder of recordings."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import openwavlm
from closeness import assert_close_to_scale
from openwavlm.audio.frames import num_frames
from openwavlm.audio.mfcc import mfcc_features
from openwavlm.audio.read import decode
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.labels.feature_files import extract_features_of_folder, extract_units_of_folder, units_line
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.teacher import layer_chunks
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from programs import run_program
from synthetic import make_shard_set, speech_like


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"conv_dims": (8,) * 7, "dim": 16, "ffn_dim": 32, "heads": 2, "layers": 2}
    folder = tmp_path_factory.mktemp("model")
    save_huggingface(WavLM(WavLMConfig(**sizes, pre_norm=True, positional_kernel=8, positional_groups=2)), folder)
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "sub").mkdir()
    soundfile.write(folder / "a.wav", speech_like(1.3, 0), 16_000)
    soundfile.write(folder / "a.flac", speech_like(0.9, 1), 16_000)
    stereo = np.stack([speech_like(2.0, 2), speech_like(2.0, 3)], axis=1)
    soundfile.write(folder / "sub" / "ä b.ogg", stereo, 22_050)
    soundfile.write(folder / "long.flac", np.resize(speech_like(3.0, 4), 31 * 16_000), 16_000)
    soundfile.write(folder / "short.wav", speech_like(1.0, 5)[:300], 16_000)
    (folder / "notes.txt").write_text("no recording")
    return folder


NAMES = ["a.flac", "a.wav", "long.flac", "short.wav", "sub/ä b.ogg"]


def codebook_of(folder: Path, **features: object) -> Path:
    shards = make_shard_set(folder, speakers=3, utterances=2, seconds=(0.8, 1.2))
    fit_codebook(
        [shards], folder / "km", clusters=4, engine="minibatch", min_frames_per_cluster=20, validation_share=0.0, **features
    )
    return folder / "km"


def test_every_recording_gets_the_hidden_states_of_its_frames(model: Path, recordings: Path, tmp_path: Path) -> None:
    done = run_program(tmp_path, "openwavlm", "extract", f"encoder={model}", f"input={recordings}", "output=out")
    assert done.status == 0, done
    assert "5 recordings, " in done.stderr and "out/NAME.npy" in done.stderr
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.npy"))
    assert found == [f"{name}.npy" for name in NAMES]
    loaded = openwavlm.load(model)
    for name in NAMES:
        samples, features = decode(recordings / name).samples, np.load(tmp_path / "out" / f"{name}.npy")
        assert features.shape == (3, num_frames(len(samples)), 16) and features.dtype == np.float32
        if name in ("short.wav", "long.flac"):
            parts = [states[0].numpy() for _, states in layer_chunks(loaded, [1], samples)]
            assert np.array_equal(features[1], np.concatenate([np.zeros((0, 16), np.float32), *parts]))
        else:
            whole = loaded.extract(torch.from_numpy(samples)[None].float() / 32768)
            assert_close_to_scale(features, torch.cat(whole))
    about = json.loads((tmp_path / "out" / "extract.json").read_text())
    assert (about["layers"], about["dtype"], about["dim"], about["residual"]) == ([0, 1, 2], "float32", 16, "after")


def test_a_second_call_does_what_is_missing_or_older_than_its_recording(model: Path, recordings: Path, tmp_path: Path) -> None:
    settings = {"layers": [2, 0], "dtype": "float16"}
    first = extract_features_of_folder(model, recordings, tmp_path, **settings)
    assert (first.files, first.kept, first.skipped) == (5, 0, {})
    before = (tmp_path / "a.wav.npy").read_bytes()
    assert np.load(tmp_path / "a.wav.npy").dtype == np.float16 and len(np.load(tmp_path / "a.wav.npy")) == 2
    (tmp_path / "a.wav.npy").unlink()
    os.utime(tmp_path / "a.flac.npy", ns=(0, 0))
    again = extract_features_of_folder(model, recordings, tmp_path, **settings)
    assert (again.files, again.kept) == (5, 3)
    assert (tmp_path / "a.wav.npy").read_bytes() == before
    with pytest.raises(ValueError, match=r"holds other features \(by dtype, layers\): name another output"):
        extract_features_of_folder(model, recordings, tmp_path)


def test_features_of_recordings_that_are_gone_are_named(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("gone.wav", "stays.wav"):
        (tmp_path / "in").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "in" / name, speech_like(0.8), 16_000)
    extract_features_of_folder(model, tmp_path / "in", tmp_path / "out")
    assert "are gone" not in caplog.text
    (tmp_path / "in" / "gone.wav").unlink()
    extract_features_of_folder(model, tmp_path / "in", tmp_path / "out")
    assert f"features of 1 deleted recordings remain, first {tmp_path / 'out' / 'gone.wav.npy'};" in caplog.text


def test_units_are_the_codebooks_labels_and_merge_into_runs(model: Path, recordings: Path, tmp_path: Path) -> None:
    codebook = codebook_of(tmp_path, features="layer", teacher=model, layer=1)
    asked = [f"encoder={model}", f"codebook={codebook}", f"input={recordings}", "output=out"]
    done = run_program(tmp_path, "openwavlm", "extract", *asked)
    assert done.status == 0, done
    lines = dict(line.split("\t") for line in (tmp_path / "out" / "units.tsv").read_text().splitlines())
    assert list(lines) == NAMES and lines["short.wav"] == ""
    book, loaded = Codebook.load(codebook), openwavlm.load(model)
    for name in NAMES:
        parts = layer_chunks(loaded, [1], decode(recordings / name).samples)
        assert lines[name].split() == [str(unit) for _, states in parts for unit in book.assign(states[0])]
    extract_units_of_folder(model, recordings, tmp_path / "merged", codebook, merge=True, workers=2)
    for line in (tmp_path / "merged" / "units.tsv").read_text().splitlines():
        name, units, lengths = line.split("\t")
        assert all(left != right for left, right in zip(units.split(), units.split()[1:], strict=False))
        spread = [unit for unit, length in zip(units.split(), lengths.split(), strict=True) for _ in range(int(length))]
        assert spread == lines[name].split()
    before = (tmp_path / "out" / "units.tsv").read_bytes()
    message = run_program(tmp_path, "openwavlm", "extract", *asked, "merge=true").error()
    assert "out already holds other units (by merge): name another output" in message
    with pytest.raises(ValueError, match=r"other units \(by codebook\)"):
        extract_units_of_folder(None, recordings, tmp_path / "out", codebook_of(tmp_path / "mfcc"))
    assert (tmp_path / "out" / "units.tsv").read_bytes() == before
    message = run_program(tmp_path, "openwavlm", "extract", *asked, "layers=[1]").error()
    assert "layer of their codebook" in message
    message = run_program(tmp_path, "openwavlm", "extract", *asked[1:]).error()
    assert message.endswith("add encoder=DIR")


def test_units_of_mfcc_need_no_model(recordings: Path, tmp_path: Path) -> None:
    codebook = codebook_of(tmp_path)
    extract_units_of_folder(None, recordings, tmp_path / "out", codebook)
    first = (tmp_path / "out" / "units.tsv").read_text().splitlines()[0]
    expected = Codebook.load(codebook).assign(mfcc_features(decode(recordings / "a.flac").samples))
    assert first == "a.flac\t" + " ".join(map(str, expected))


def test_runs_of_units_are_written_with_their_lengths() -> None:
    units = np.array([7, 7, 3, 0, 0, 0, 7], dtype=np.uint16)
    assert units_line(units, merge=False) == "7 7 3 0 0 0 7"
    assert units_line(units, merge=True) == "7 3 0 7\t2 1 3 1"
    assert units_line(units[:0], merge=True) == "\t"


def test_unreadable_recordings_are_named_and_past_the_rate_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "good.wav", speech_like(0.8), 16_000)
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF and then nothing")
    with pytest.raises(ValueError, match=r"1 of 2 are .*raise max_skip_rate"):
        extract_features_of_folder(model, tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "good.wav.npy").is_file()
    result = extract_features_of_folder(model, tmp_path / "in", tmp_path / "out", max_skip_rate=0.5)
    assert list(result.skipped) == ["bad.wav"] and (result.files, result.kept) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [3]}, r"of 0…2"),
        ({"layers": []}, r"of 0…2"),
        ({"dtype": "int8"}, "one of float32, float16"),
        ({"folder": Path("/nowhere")}, "does not exist"),
    ],
)
def test_wrong_requests_are_refused(model: Path, recordings: Path, tmp_path: Path, arguments: dict, message: str) -> None:
    request = {"model": model, "folder": recordings, "output": tmp_path / "out"} | arguments
    with pytest.raises(ValueError, match=message):
        extract_features_of_folder(**request)
    assert not (tmp_path / "out").exists()
