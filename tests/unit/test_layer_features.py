"""Hidden states as features: exact frames, what identifies a teacher, and the norm that a codebook carries."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import openwavlm
from openwavlm.audio.frames import num_frames
from openwavlm.audio.mfcc import mfcc_features
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.labels.chunks import standardise
from openwavlm.labels.features import (
    assign_in_chunks,
    check_reproducible,
    extract_feature_chunks,
    feature_settings,
)
from openwavlm.labels.kmeans import IMPORTED, Codebook, UnknownCodebook
from openwavlm.labels.lloyd import whole
from openwavlm.labels.minibatch import fit_minibatch_kmeans
from openwavlm.labels.teacher import CHUNK_SECONDS, layer_chunks, model_hash, open_teacher
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.runtime.devices import named_device
from synthetic import speech_like

TINY = WavLMConfig(
    conv_dims=(8,) * 7, dim=16, ffn_dim=32, heads=2, layers=2, pre_norm=True, positional_kernel=8, positional_groups=2
)


def tiny(seed: int = 0, **changes: object) -> WavLM:
    torch.manual_seed(seed)
    return WavLM(replace(TINY, **changes)).eval()


def features_of_layers(model: WavLM, layers: list[int], waveform: np.ndarray) -> list[torch.Tensor]:
    """Features of several layers of one utterance, all parts together."""
    parts = [[torch.zeros(0, model.config.dim)] * len(layers), *(states for _, states in layer_chunks(model, layers, waveform))]
    return [torch.cat(of_layer) for of_layer in zip(*parts, strict=True)]


def features_of(kinds: list[dict], waveform: np.ndarray, teacher: Path) -> list[torch.Tensor]:
    """Several kinds of features of one utterance, all pieces together."""
    pieces = [found for _, found in extract_feature_chunks(kinds, waveform, teacher)]
    return [torch.cat(of_kind) for of_kind in zip(*pieces, strict=True)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    save_huggingface(tiny(), folder)
    return folder


@pytest.mark.parametrize("samples", [0, 399, 400, 719, 720, 16_000, 479_999, 480_000, 480_080, 960_100])
def test_there_are_exactly_as_many_rows_as_frames(samples: int) -> None:
    model = tiny()
    waveform = np.resize(speech_like(1.0), samples)
    assert features_of_layers(model, [1], waveform)[0].shape == (num_frames(samples), 16)
    parts = [(first, len(states[0])) for first, states in layer_chunks(model, [1], waveform)]
    assert [first for first, _ in parts] == np.cumsum([0, *(length for _, length in parts)])[: len(parts)].tolist()
    assert all(length <= num_frames(CHUNK_SECONDS * 16_000) for _, length in parts)
    assert max((length for _, length in parts), default=0) - min((length for _, length in parts), default=0) <= 1


@pytest.mark.parametrize("changes", [{}, {"pre_norm": False, "normalise_waveform": True}])
def test_features_are_the_hidden_states_after_the_residual_of_the_whole_utterance(tmp_path: Path, changes: dict) -> None:
    save_huggingface(tiny(**changes), tmp_path)
    waveform = speech_like(1.37)
    expected = openwavlm.load(tmp_path).extract(torch.from_numpy(waveform)[None].float() / 32768, layers=[0, 2])
    for layer, states in zip((0, 2), expected, strict=True):
        settings = feature_settings("layer", teacher=tmp_path, layer=layer)
        assert settings["feature_norm"] == ("none" if changes else "standardise")
        assert torch.equal(features_of([settings], waveform, tmp_path)[0], states[0])


def test_parts_of_a_long_utterance_know_nothing_of_each_other() -> None:
    model = tiny()
    waveform = np.concatenate([speech_like(20.0, seed) for seed in range(2)])
    other = waveform.copy()
    other[20 * 16_000 + 400 :] = speech_like(20.0, 7)[400:]
    whole, changed = features_of_layers(model, [2], waveform)[0], features_of_layers(model, [2], other)[0]
    half = num_frames(len(waveform)) // 2
    assert torch.equal(whole[:half], changed[:half])
    assert not torch.equal(whole[half:], changed[half:])


@pytest.mark.parametrize("seconds", [30.01, 30.03, 65.3])
def test_each_part_is_extracted_from_the_samples_of_its_own_frames(seconds: float) -> None:
    model = tiny()
    waveform = np.tile(speech_like(5.3), 14)[: round(seconds * 16_000)]
    parts = list(layer_chunks(model, [0, 2], waveform))
    frames = num_frames(len(waveform))
    number = -(-frames // 1499)  # 30 s are 1,499 frames
    assert [start for start, _ in parts] == [frames * part // number for part in range(number)]
    for place, (start, states) in enumerate(parts):
        stop = parts[place + 1][0] if place + 1 < len(parts) else frames
        end = len(waveform) if stop == frames else 320 * (stop - 1) + 400
        audio = torch.from_numpy(waveform[320 * start : end])[None].float() / 32768
        with torch.no_grad():
            for found, wanted in zip(states, model.extract(audio, layers=[0, 2]), strict=True):
                assert len(found) == stop - start and torch.equal(found, wanted[0])


def test_several_kinds_of_features_come_in_the_order_that_they_were_asked_for(teacher: Path) -> None:
    waveform = speech_like(1.0)
    kinds = [
        feature_settings("layer", teacher=teacher, layer=2),
        feature_settings("mfcc"),
        feature_settings("layer", teacher=teacher, layer=0, feature_norm="none"),
        feature_settings("layer", teacher=teacher, layer=1),
        feature_settings("layer", teacher=teacher, layer=2, feature_norm="none"),
    ]
    found = features_of(kinds, waveform, teacher)
    model = open_teacher(teacher).model
    for features, layer in ((found[0], 2), (found[2], 0), (found[3], 1), (found[4], 2)):
        assert torch.equal(features, model.extract(torch.from_numpy(waveform)[None].float() / 32768, layers=[layer])[0][0])
    assert torch.equal(found[1], mfcc_features(waveform)) and len(found) == 5
    assert [kind.get("feature_norm") for kind in kinds] == ["standardise", None, "none", "standardise", "none"]


def test_a_codebook_that_was_never_given_has_a_size_and_a_hash_and_nothing_else(tmp_path: Path) -> None:
    book = UnknownCodebook.of(7, "abc", {"name": IMPORTED}, {"frames": 3})
    assert (len(book), book.hash, book.features, book.fitted) == (7, "abc", {"name": "imported"}, {"frames": 3})
    book.save_array(tmp_path)
    assert not list(tmp_path.iterdir())
    for refused in (lambda: book.assign(torch.zeros(2, 2)), lambda: book.inertia(torch.zeros(2, 2)), lambda: book.save(tmp_path)):
        with pytest.raises(ValueError, match="have no centroids, so nothing can be computed with it"):
            refused()
    with pytest.raises(ValueError, match="were imported without their codebook"):
        check_reproducible(book.features, "here")


def test_a_teachers_hash_is_of_the_written_form_that_older_codebooks_name() -> None:
    model = tiny()
    unread = {"dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_drop", "layer_drop_mode"}
    unread |= {"feature_grad_mult", "attention_backend"}
    architecture = {name: value for name, value in vars(model.config).items() if name not in unread}
    assert unread < vars(model.config).keys() and {"dim", "layers", "pre_norm"} < architecture.keys()
    content = json.dumps(architecture, sort_keys=True).encode()
    for name, tensor in sorted(model.state_dict().items()):
        content += f"\n{name} {tuple(tensor.shape)}\n".encode() + tensor.numpy().astype("<f4").tobytes()
    assert model_hash(model) == hashlib.sha256(content).hexdigest()


def test_a_teacher_is_its_weights_and_architecture_and_not_its_folder_or_training(teacher: Path, tmp_path: Path) -> None:
    model = tiny()
    known = model_hash(model)
    assert open_teacher(teacher).hash == known
    save_huggingface(tiny(dropout=0.3, layer_drop=0.2), tmp_path, metadata={"run": "other"})
    assert open_teacher(tmp_path).hash == known
    assert model_hash(tiny(seed=1)) != known
    assert model_hash(tiny(normalise_waveform=True)) != known
    with torch.no_grad():
        model.projection.bias[3] += 1e-6
    assert model_hash(model) != known


def test_a_teacher_that_was_written_anew_is_loaded_anew(tmp_path: Path) -> None:
    save_huggingface(tiny(), tmp_path)
    first = open_teacher(tmp_path)
    assert open_teacher(tmp_path) is first
    save_huggingface(tiny(seed=1), tmp_path)
    assert open_teacher(tmp_path).hash != first.hash


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": "mfcc", "layer": 1}, "belong to features=layer"),
        ({"features": "layer", "layer": 1, "teacher": None}, "needs teacher"),
        ({"features": "layer"}, r"needs teacher .* and layer"),
        ({"features": "layer", "layer": 3}, r"layer must lie in 0…2"),
        ({"features": "layer", "layer": 1, "feature_norm": "whiten"}, "one of auto, standardise, none"),
        ({"features": "layer", "layer": 1, "teacher": Path("/nowhere")}, "/nowhere does not exist"),
    ],
)
def test_wrong_requests_are_refused(teacher: Path, arguments: dict, message: str) -> None:
    defaults = {} if arguments["features"] == "mfcc" else {"teacher": teacher}
    with pytest.raises(ValueError, match=message):
        feature_settings(**(defaults | arguments))


def test_another_teacher_a_missing_one_and_a_needless_one_are_refused(teacher: Path, tmp_path: Path) -> None:
    settings = feature_settings("layer", teacher=teacher, layer=1)
    check_reproducible(settings, "here", teacher)
    with pytest.raises(ValueError, match="no teacher was given: add teacher=DIR"):
        check_reproducible(settings, "here")
    save_huggingface(tiny(seed=1), tmp_path)
    with pytest.raises(ValueError, match=r"must come from the model .* holds the model"):
        check_reproducible(settings, "here", tmp_path)
    with pytest.raises(ValueError, match="need no teacher"):
        check_reproducible(feature_settings("mfcc"), "here", teacher)
    with pytest.raises(ValueError, match="differ in residual"):
        check_reproducible(settings | {"residual": "before"}, "here", teacher)


def frames_of_blobs() -> np.ndarray:
    generator = np.random.default_rng(0)
    centres = 4 * generator.standard_normal((5, 6))
    return (centres[generator.integers(5, size=3000)] + generator.standard_normal((3000, 6))).astype(np.float32)


def fitted(frames: np.ndarray) -> Codebook:
    own = whole(torch.from_numpy(frames), 5)
    norm = standardise(own)
    return replace(fit_minibatch_kmeans(own.features, 5, seed=0), norm=norm)


def test_standardised_labels_do_not_see_the_scale_of_a_dimension() -> None:
    frames = frames_of_blobs()
    scaled = frames * np.array([1, 1024, 1, 1, 2.0**-6, 1], dtype=np.float32)
    book, other = fitted(frames), fitted(scaled)
    assert np.array_equal(book.assign(frames), other.assign(scaled))
    assert torch.equal(book.centroids, other.centroids)
    plain = (fit_minibatch_kmeans(frames, 5, seed=0), fit_minibatch_kmeans(scaled, 5, seed=0))
    assert not np.array_equal(plain[0].assign(frames), plain[1].assign(scaled))


def test_standardising_gives_mean_zero_and_deviation_one_and_leaves_a_constant_dimension_at_zero() -> None:
    frames = frames_of_blobs()
    frames[:, 2] = 0.1
    standard = whole(torch.from_numpy(frames), 5)
    norm, own = standardise(standard).numpy(), standard.features.numpy()
    np.testing.assert_allclose(norm[0], frames.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(own.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(own.std(axis=0, dtype=np.float64), [1, 1, 0, 1, 1, 1], atol=1e-6)
    assert norm[1, 2] == 1
    with pytest.raises(ValueError, match="must be finite"):
        standardise(whole(torch.full((3, 2), torch.inf), 5))


def test_a_codebook_keeps_its_norm_and_its_hash_binds_it(tmp_path: Path) -> None:
    frames = frames_of_blobs()
    book = replace(fitted(frames), features={"name": "layer", "feature_norm": "standardise"})
    book.save(tmp_path)
    again = Codebook.load(tmp_path)
    assert again.hash == book.hash != replace(book, norm=None).hash
    assert np.array_equal(again.assign(frames), book.assign(frames))
    assert not np.array_equal(replace(book, norm=None).assign(frames), book.assign(frames))
    norm = np.load(tmp_path / "feature_norm.npy")
    np.save(tmp_path / "feature_norm.npy", norm * np.float32(1.5))
    with pytest.raises(ValueError, match="must have the hash"):
        Codebook.load(tmp_path)
    np.save(tmp_path / "feature_norm.npy", -norm)
    with pytest.raises(ValueError, match="positive deviations"):
        Codebook.load(tmp_path)
    (tmp_path / "feature_norm.npy").unlink()
    with pytest.raises(ValueError, match=r"feature_norm\.npy is missing"):
        Codebook.load(tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_a_device_is_a_gpu_where_there_is_one_unless_it_is_named(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert named_device("auto") == ("cuda" if there else "cpu") and named_device("cpu") == "cpu"
    if there:
        assert named_device("cuda") == "cuda"
    else:
        with pytest.raises(ValueError, match="torch finds no GPU here"):
            named_device("cuda")
    with pytest.raises(ValueError, match="device must be one of cpu, cuda, auto, but is 'gpu'"):
        named_device("gpu")


@pytest.mark.parametrize("seconds", [0.02, 3.0, 65.3])
def test_labels_computed_in_pieces_equal_those_of_all_features_at_once(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    waveform = speech_like(seconds, seed=4)
    settings = [
        feature_settings("layer", teacher=teacher, layer=2),
        feature_settings("mfcc"),
        feature_settings("layer", teacher=teacher, layer=1),
    ]
    books = [Codebook(torch.randn(50, each["dim"], generator=torch.Generator().manual_seed(0)), each) for each in settings]
    # Pieces of 700 frames, so that none ends where a part of the teacher's ends; a matrix product may depend on its number of rows.
    monkeypatch.setattr("openwavlm.labels.kmeans.CHUNK_FRAMES", 700)
    monkeypatch.setattr("openwavlm.labels.features.CHUNK_FRAMES", 700)
    model = open_teacher(teacher).model
    first, second = features_of_layers(model, [1, 2], waveform)
    expected = [book.assign(whole) for book, whole in zip(books, [second, mfcc_features(waveform), first], strict=True)]
    found = assign_in_chunks(books, waveform, teacher)
    assert [len(labels) for labels in found] == [num_frames(len(waveform))] * 3
    for labels, reference in zip(found, expected, strict=True):
        np.testing.assert_array_equal(labels, reference)
