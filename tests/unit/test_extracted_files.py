"""What `openwavlm extract` writes, frame by frame, with a stand-in for the model; units as text."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.labels import feature_files as extract
from openwavlm.labels import features as extract_module
from openwavlm.labels.feature_files import extract_features_of_folder, extract_units_of_folder, units_line

DIM, TOP = 3, 4


def figure(layer: int, frame: int, column: int) -> float:
    return 1000.0 * layer + frame + column / 4


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of four layers whose features name their layer, frame and column, in parts of at most ten frames."""
    model = SimpleNamespace(config=SimpleNamespace(layers=TOP, dim=DIM))

    def layer_chunks(asked: Any, layers: Sequence[int], waveform: np.ndarray) -> Iterator[tuple[int, list[torch.Tensor]]]:
        frames = num_frames(len(waveform))
        for first in range(0, frames, 10):
            part = range(first, min(first + 10, frames))
            yield first, [torch.tensor([[figure(layer, t, d) for d in range(DIM)] for t in part]) for layer in layers]

    monkeypatch.setattr(extract, "open_teacher", lambda path: SimpleNamespace(model=model, hash="hash"))
    monkeypatch.setattr(extract, "layer_chunks", layer_chunks)


def recording(folder: Path, name: str, frames: int) -> Path:
    folder.mkdir(exist_ok=True)
    soundfile.write(folder / name, np.full(400 + 320 * (frames - 1), 99, np.int16), 16_000)
    return folder / name


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layers", ["all", [3, 1]])
def test_each_layer_and_frame_lies_in_its_place_in_the_order_asked_for(tmp_path, layers, dtype):
    recording(tmp_path / "in", "a.wav", 37)
    result = extract_features_of_folder(Path("model"), tmp_path / "in", tmp_path / "out", layers=layers, dtype=dtype)
    found = np.load(tmp_path / "out" / "a.wav.npy")
    chosen = range(TOP + 1) if layers == "all" else layers
    expected = np.array([[[figure(layer, t, d) for d in range(DIM)] for t in range(37)] for layer in chosen])
    assert found.dtype == dtype and found.shape == (len(chosen), 37, DIM) and np.array_equal(found, expected.astype(dtype))
    assert (result.files, result.kept, result.frames, result.skipped) == (1, 0, 37, {})
    about = json.loads((tmp_path / "out" / "extract.json").read_text())
    assert (about["layers"], about["dim"], about["model"]) == (list(chosen), DIM, "hash")


@pytest.mark.usefixtures("stand_in")
def test_a_recording_is_done_again_if_it_is_newer_than_its_features(tmp_path):
    source = recording(tmp_path / "in", "a.wav", 5)
    recording(tmp_path / "in", "b.wav", 7)
    extract_features_of_folder(Path("model"), tmp_path / "in", tmp_path / "out")
    made = tmp_path / "out" / "a.wav.npy"
    for moment, done in ((10**18, 0), (10**18 + 1, 5), (10**18 - 1, 0)):  # equal, newer, older: in nanoseconds
        os.utime(made, ns=(10**18, 10**18))
        os.utime(source, ns=(moment, moment))
        result = extract_features_of_folder(Path("model"), tmp_path / "in", tmp_path / "out")
        assert (result.files, result.kept, result.frames) == (2, 1 if done else 2, done)


@pytest.mark.parametrize(("layers", "sound"), [([0], True), ([TOP], True), ([TOP + 1], False), ([-1], False), ([], False)])
@pytest.mark.usefixtures("stand_in")
def test_layers_from_the_encoders_input_to_its_last_may_be_asked_for(tmp_path, layers, sound):
    recording(tmp_path / "in", "a.wav", 5)
    if sound:
        extract_features_of_folder(Path("model"), tmp_path / "in", tmp_path / "out", layers=layers)
        assert np.load(tmp_path / "out" / "a.wav.npy")[0, 2, 0] == figure(layers[0], 2, 0)
    else:
        with pytest.raises(ValueError, match=r"a list of 0…4"):
            extract_features_of_folder(Path("model"), tmp_path / "in", tmp_path / "out", layers=layers)


@pytest.mark.parametrize(
    ("units", "line", "merged"),
    [
        ([0, 0, 3], "0 0 3", "0 3\t2 1"),
        ([5], "5", "5\t1"),
        ([1, 0, 0, 1, 1], "1 0 0 1 1", "1 0 1\t1 2 2"),
        ([499, 499], "499 499", "499\t2"),
        ([], "", "\t"),
    ],
)
def test_runs_are_the_units_with_their_lengths(units, line, merged):
    found = np.array(units, dtype=np.uint16)
    assert units_line(found, merge=False) == line and units_line(found, merge=True) == merged


def test_units_are_one_a_frame_of_the_features_in_the_folders_order(tmp_path, monkeypatch):
    for name, frames in (("b.wav", 4), ("a.wav", 3)):
        recording(tmp_path / "in", name, frames)

    def in_pieces(features: Any, samples: np.ndarray, model: None, **_: Any) -> Iterator[tuple[int, list[np.ndarray]]]:
        found = np.arange(num_frames(len(samples)))[:, None] // 2 + 0.1
        yield 0, [found[:2]]
        yield 2, [found[2:]]

    book: Any = SimpleNamespace(
        features={"name": "mfcc"}, hash="book", assign=lambda features: features[:, 0].round().astype(np.int64)
    )
    monkeypatch.setattr(extract.Codebook, "load", lambda folder: book)
    monkeypatch.setattr(extract, "check_reproducible", lambda *arguments: None)
    monkeypatch.setattr(extract_module, "extract_feature_chunks", in_pieces)
    result = extract_units_of_folder(None, tmp_path / "in", tmp_path / "out", Path("book"))
    assert (tmp_path / "out" / "units.tsv").read_text() == "a.wav\t0 0 1\nb.wav\t0 0 1 1\n"
    assert (result.files, result.frames) == (2, 7)
