"""`openwavlm quality`: judged on speakers that nothing was fitted on, each labelling on its own rows, the layer chosen on clean speech."""

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from openwavlm.evaluation import quality
from openwavlm.evaluation.features import SPECTRA, MfccFeatures, spectral_baselines
from openwavlm.evaluation.intervals import Interval
from openwavlm.evaluation.phones.matching import Matches
from openwavlm.evaluation.quality_rows import QualityRow, rows_of
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance
from openwavlm.evaluation.settings import QualitySettings
from openwavlm.evaluation.shard_sets import Judged, _who, judged_set, speech_set
from openwavlm.evaluation.unit_figures import UnitFigures, UnitTally
from openwavlm.evaluation.unseen import fitted_set, judged_rows, unseen_rows
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.runs.compose import conf_dir
from openwavlm.runtime.randomness import stable_hash
from openwavlm.shards.index import Index
from openwavlm.shards.splits import split_hash
from synthetic import make_shard_set


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Eight speakers; two of them again with other recordings; others; and the eight without speakers' names."""
    folder = tmp_path_factory.mktemp("entry")
    sizes = {"seconds": (0.5, 0.9), "utterances": 2}
    made = {
        "shards": make_shard_set(folder / "a", speakers=8, seed=1, source="corpus", **sizes),
        "same": make_shard_set(folder / "b", speakers=2, seed=2, source="corpus", **sizes),
        "others": make_shard_set(folder / "c", speakers=3, seed=3, source="others", **sizes),
    }
    return made | {"nameless": make_shard_set(folder / "d", corpus=folder / "a" / "corpus", source="corpus", speaker_folder=0)}


def held_out(names: list[str], share: float, split_seed: int) -> np.ndarray:
    """The split of `shards.splits` by its rule: a hash below the share of 2⁶⁴."""
    return np.array([stable_hash(f"{split_seed}/split/{name}") < share * 2**64 for name in names])


def speakers_of(index: Index) -> list[str]:
    return [index.speakers[int(number)] for number in index.speaker[:]]


def asked(places: dict[str, Path], **changed: object) -> QualitySettings:
    return QualitySettings(**{"output": "out", "shards": str(places["shards"]), **changed})


def test_rows_not_fitted_on_are_those_of_the_fits_own_split_and_of_speakers_outside_its_data(places: dict[str, Path]) -> None:
    index, same, others = (Index.open(places[name]) for name in ("shards", "same", "others"))
    names = speakers_of(index)
    split = {"validation_share": 0.5, "split_seed": 3}
    by_split = held_out(names, 0.5, 3)
    assert by_split.any() and not by_split.all()
    for more, expected in (
        ({}, by_split),
        ({"indexes": [index.fingerprint], "sources": ["elsewhere"]}, by_split),
        ({"sources": ["elsewhere"]}, np.ones(len(index), dtype=bool)),
        ({"sources": ["corpus"]}, by_split),
        ({"validation_indexes": [index.fingerprint]}, np.ones(len(index), dtype=bool)),
        ({"indexes": ["x"], "validation_indexes": ["y"]}, by_split),
        ({"before": {"validation_share": 0.5, "split_seed": 4}}, by_split & held_out(names, 0.5, 4)),
        ({"before": None}, by_split),
    ):
        np.testing.assert_array_equal(unseen_rows(index, split | more), expected, err_msg=str(more))
    # All that was fitted on lies beside it: speakers that it does not have were not there.
    in_same = np.isin(names, list(same.speakers))
    assert 0 < in_same.sum() < len(index)
    only_same = split | {"indexes": [same.fingerprint]}
    np.testing.assert_array_equal(unseen_rows(index, only_same, same), by_split | ~in_same)
    both = split | {"indexes": [same.fingerprint, "another"]}
    np.testing.assert_array_equal(unseen_rows(index, both, same), by_split)
    np.testing.assert_array_equal(unseen_rows(index, split | {"indexes": [others.fingerprint]}, same), by_split)


def test_without_speakers_recordings_are_looked_up(places: dict[str, Path], tmp_path: Path) -> None:
    nameless = Index.open(places["nameless"])
    assert not nameless.speaker[:].any()
    corpus = places["shards"].parent / "corpus"
    some = sorted(corpus.glob("spk0[01]/*.flac"))
    part = tmp_path / "corpus"
    for file in some:
        (part / file.parent.name).mkdir(parents=True, exist_ok=True)
        (part / file.parent.name / file.name).write_bytes(file.read_bytes())
    smaller = Index.open(make_shard_set(tmp_path, corpus=part, source="corpus", speaker_folder=0))
    recordings = [nameless.recordings[int(number)] for number in nameless.recording[:]]
    fit = {"validation_share": 0.0, "split_seed": 0, "indexes": [smaller.fingerprint]}
    expected = ["spk00" not in name and "spk01" not in name for name in recordings]
    assert unseen_rows(nameless, fit, smaller).tolist() == expected


def test_without_a_speaker_each_recording_is_one_of_its_own_and_without_a_recording_each_row(places: dict[str, Path]) -> None:
    rows = np.arange(16)
    known, nameless = (judged_set(places[name], rows, None).utterances for name in ("shards", "nameless"))
    index = Index.open(places["shards"])
    recordings = [index.recordings[int(number)].removeprefix("corpus/") for number in index.recording[:]]
    assert known.speakers == tuple(sorted({f"corpus/spk{number:02d}" for number in range(8)}))
    assert [one.name for one in known.utterances] == recordings and len(set(recordings)) == 16
    assert (
        sorted(one.speaker for one in nameless.utterances)
        == sorted(one.name for one in nameless.utterances)
        == sorted(recordings)
    )
    speech = speech_set(places["nameless"], rows, 1e6, ())
    assert sorted(one.speaker for one in speech.utterances) == sorted(recordings)
    bare: Any = SimpleNamespace(
        speakers=["", "ann"],
        speaker=np.array([1, 0, 1, 0]),
        recordings=["", "corpus/a/b"],
        recording=np.array([1, 1, 0, 0]),
        keys=["k0", "k1", "k2", "k3"],
    )
    assert [_who(bare, row) for row in range(4)] == [("ann", "a/b"), ("a/b", "a/b"), ("ann", "k2"), ("k3", "k3")]


def test_half_of_the_speakers_are_judged_unless_something_else_says_who(places: dict[str, Path]) -> None:
    index = Index.open(places["shards"])
    names = speakers_of(index)

    def rows(**changed: object) -> list[int]:
        return judged_rows(asked(places, **changed), index, {}).tolist()

    for share, split_seed in ((0.5, 0), (0.5, 2), (0.3, 2)):
        expected = np.flatnonzero(held_out(names, share, split_seed)).tolist()
        changed = {} if share == 0.5 else {"held_out": share}
        assert rows(split_seed=split_seed, **changed) == expected
    assert rows(held_out=0) == list(range(len(index)))
    assert rows(fit=str(places["others"])) == list(range(len(index)))
    first = min(speakers_of(index), key=split_hash)
    assert rows(held_out=1e-12) == [row for row, name in enumerate(names) if name == first], "at least one speaker"


def test_the_share_of_a_run_that_did_not_record_its_split_is_not_settled(places: dict[str, Path], tmp_path: Path) -> None:
    index = Index.open(places["shards"])
    (tmp_path / "openwavlm.json").write_text(json.dumps({"fingerprints": {"shards.speech": index.fingerprint}}))
    with pytest.raises(ValueError, match="the split holds none of 8 out"):
        judged_rows(asked(places, encoder=str(tmp_path), held_out=1e-12), index, {})


def test_rows_that_a_codebook_or_a_model_was_fitted_on_are_not_judged(places: dict[str, Path], tmp_path: Path) -> None:
    index = Index.open(places["shards"])
    names = speakers_of(index)
    store = SimpleNamespace(codebook_fitted={"validation_share": 0.5, "split_seed": 1, "hours_by_source": {"corpus": 1.0}})
    elsewhere = SimpleNamespace(codebook_fitted={"validation_share": 0.0, "split_seed": 1, "hours_by_source": {"other": 1.0}})
    unknown = SimpleNamespace(codebook_fitted={})
    (tmp_path / "openwavlm.json").write_text(json.dumps({"trained_on": {"validation_share": 0.6, "split_seed": 2}}))
    model = {"encoder": str(tmp_path)}
    one, other = held_out(names, 0.5, 1), held_out(names, 0.6, 2)
    assert (one & other).any() and (one != other).any()

    def rows(stores: dict, **changed: object) -> list[int]:
        return judged_rows(asked(places, **changed), index, stores).tolist()

    assert rows({Path("a"): store}) == np.flatnonzero(one).tolist()
    assert rows({Path("a"): store}, **model) == np.flatnonzero(one & other).tolist()
    assert rows({Path("a"): elsewhere, Path("b"): unknown}, **model) == np.flatnonzero(other).tolist()
    assert rows({Path("a"): store}, held_out=0.4, split_seed=5) == np.flatnonzero(one & held_out(names, 0.4, 5)).tolist()
    assert rows({Path("a"): store}, allow_overlap=True) == np.flatnonzero(held_out(names, 0.5, 0)).tolist()
    # Where the shard set that was fitted on is given as fit, speakers that it does not have may be judged.
    same = Index.open(places["same"])
    fitted = {"validation_share": 0.0, "split_seed": 1, "indexes": [same.fingerprint]}
    strangers = np.flatnonzero(~np.isin(names, list(same.speakers))).tolist()
    assert rows({Path("a"): SimpleNamespace(codebook_fitted=fitted)}, fit=str(places["same"])) == strangers
    with pytest.raises(ValueError, match="the codebook of a may have seen all of"):
        rows({Path("a"): SimpleNamespace(codebook_fitted=fitted)}, fit=str(places["others"]))
    everyone = SimpleNamespace(codebook_fitted={"validation_share": 0.0, "split_seed": 1})
    with pytest.raises(ValueError, match="the codebook of a may have seen all of"):
        rows({Path("a"): everyone})


def judged_of(places: dict[str, Path], rows: np.ndarray) -> Judged:
    return judged_set(places["shards"], rows, None)


def test_codebooks_are_fitted_on_the_rows_that_are_not_judged(places: dict[str, Path]) -> None:
    index = Index.open(places["shards"])
    rows = np.flatnonzero(held_out(speakers_of(index), 0.5, 0))
    left = {speakers_of(index)[row] for row in range(len(index)) if row not in rows}
    judged = judged_of(places, rows)
    assert set(fitted_set(asked(places), index, rows, judged).speakers) == left
    same_set = fitted_set(asked(places, fit=str(places["shards"])), index, rows, judged)
    assert set(same_set.speakers) == left, "the judged set named as the one to fit on is what is left of it"
    others = fitted_set(asked(places, fit=str(places["others"])), index, rows, judged)
    assert set(others.speakers) == {name for name in Index.open(places["others"]).speakers if name}
    on_themselves = fitted_set(asked(places, held_out=0), index, rows, judged)
    assert on_themselves.speakers == judged.utterances.speakers


def test_a_fit_that_shares_a_speaker_with_the_judged_is_refused_though_no_recording_is_the_same(places: dict[str, Path]) -> None:
    index = Index.open(places["shards"])
    rows = np.arange(len(index))
    judged = judged_of(places, rows)
    with pytest.raises(ValueError, match="must be different people, but 'corpus/spk00' is in fit and judged") as refusal:
        fitted_set(asked(places, fit=str(places["same"])), index, rows, judged)
    assert "\n" not in str(refusal.value)
    allowed = fitted_set(asked(places, fit=str(places["same"]), allow_overlap=True), index, rows, judged)
    assert set(allowed.speakers) == {"corpus/spk00", "corpus/spk01"}


# Measuring


def two_judged() -> Judged:
    """Rows 5, 2 and 9 with utterances of two speakers."""
    utterances = tuple(
        ProbeUtterance(np.zeros(320 * 3 + 400, np.int16), np.array(phones), speaker)
        for phones, speaker in (([0, 0, 1, 1], "a"), ([1, 0, 1, -1], "b"), ([0, 1, 1, 0], "a"))
    )
    return Judged(ProbeSet(utterances, ("x", "y")), (5, 2, 9), ("k", "l", "m"), ((), (), ()), Matches({}, [], [], []))


def test_labels_are_read_of_the_judged_rows_and_counted_utterance_by_utterance(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {5: [0, 0, 2, 2], 2: [2, 1, 2, 1], 9: []}
    store: Any = SimpleNamespace(num_classes=3, read=lambda row: np.array(labels[row], dtype=np.int64))
    tally = quality._tally_labels(two_judged(), store)
    assert tally.joint.sum(axis=0).tolist() == [[2, 1, 0], [0, 0, 4]]
    assert tally.by_speaker.tolist() == [[2, 0, 2], [0, 2, 2]]
    added: list[tuple[str, int]] = []
    monkeypatch.setattr(UnitTally, "add", lambda self, speaker, units, phones, utterance: added.append((speaker, utterance)))
    quality._tally_labels(two_judged(), store)
    assert added == [("a", 0), ("b", 1)], "an unreadable row has no labels; each utterance has a number of its own"


def some_tally(seed: int, clusters: int) -> UnitTally:
    rng = np.random.default_rng(seed)
    tally = UnitTally(2, clusters, ["a", "b"])
    for number, speaker in enumerate("ab"):
        tally.add(speaker, rng.integers(0, clusters, 40), rng.integers(0, 2, 40), number)
    return tally


def test_every_condition_is_measured_on_its_audio_with_codebooks_of_clean_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder: Any = SimpleNamespace(dims=(4, 4, 4))
    fits, tallies = [], []

    def fit_layers(extract: Any, fit: ProbeSet, layers: list[int], settings: Any, progress: Any) -> dict:
        fits.append((extract, fit, tuple(layers), settings.clusters))
        return {layer: SimpleNamespace(codebooks=(range(settings.clusters),)) for layer in layers}

    def tally_layers(extract: Any, books: dict, judged: ProbeSet, *, change: Any = None, progress: Any) -> dict:
        tallies.append((extract, judged, change, tuple(books)))
        return {layer: [some_tally(layer, len(of.codebooks[0]))] for layer, of in books.items()}

    monkeypatch.setattr(quality, "fit_layers", fit_layers)
    monkeypatch.setattr(quality, "tally_layers", tally_layers)
    judged, fit = two_judged(), ProbeSet(two_judged().utterances.utterances[1:2], ("x", "y"))
    store: Any = SimpleNamespace(num_classes=5, read=lambda row: np.array([0, 4, 1, 2]))
    question = QualitySettings(output="o", shards="s", alignments="a", conditions=("clean", "telephone", "noise10"), clusters=7)
    table = quality._measure(question, judged, fit, {Path("labels"): store}, encoder, [1, 2])
    # Units of each baseline for every K that is compared, and the layers once; all on `fit`.
    spectral = [(name, (0,), clusters) for name in spectral_baselines() for clusters in (5, 7)]
    fitted = [(None if extract is encoder else extract.settings["name"], layers, size) for extract, _, layers, size in fits]
    assert fitted == [*spectral, (None, (1, 2), 7)]
    of_clean = [None if extract is encoder else extract.settings["name"] for extract, *_ in tallies[:9]]
    assert of_clean == [*(name for name, _, _ in spectral), None]
    assert all(of is fit for _, of, _, _ in fits) and all(of is judged.utterances for _, of, _, _ in tallies)
    sound = np.round(5000 * np.sin(0.02 * np.arange(8000) ** 1.2)).astype(np.int16)
    changes = [change for _, _, change, _ in tallies]
    assert len(changes) == 27 and changes[:9] == [None] * 9
    telephones, noises = ([change(sound).astype(float) for change in changes[first : first + 9]] for first in (9, 18))
    for degraded in telephones:
        assert np.abs(np.fft.rfft(degraded)[: 8000 * 250 // 16_000]).max() < 1e-3 * np.abs(np.fft.rfft(degraded)).max()
    for degraded in noises:
        ratio_db = 10 * np.log10(np.mean(sound.astype(float) ** 2) / np.mean((degraded - sound) ** 2))
        assert ratio_db == pytest.approx(10, abs=0.1) and np.array_equal(degraded, noises[0])
    names = [(row.kind, row.layer, row.condition) for row in table]
    others = [("layer", 1), ("layer", 2), *((name, None) for name, *_ in spectral), ("shuffled", None)]
    assert (
        names
        == [("labels", None, "clean"), *((*of, condition) for condition in question.conditions for of in others)][: len(names)]
    )
    assert [row.figures.clusters for row in table[:3]] == [5, 7, 7]


@pytest.mark.parametrize(
    ("clusters", "stores", "layers", "mfcc", "layer_units"),
    [
        (None, (), True, [100], 100),
        (None, (), False, [100], None),
        (7, (), False, [7], None),
        (None, (9, 5), True, [5, 9], 9),
        (None, (5, 9), True, [5, 9], 9),
        (7, (9, 5), True, [5, 7, 9], 7),
        (7, (9, 5), False, [5, 9], None),  # nothing has 7 units
    ],
)
def test_layers_have_as_many_units_as_the_largest_labels_unless_said_otherwise(
    clusters: int | None,
    stores: tuple[int, ...],
    layers: bool,
    mfcc: list[int],
    layer_units: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder: Any = SimpleNamespace(dims=(4, 4)) if layers else None
    fitted: list[tuple[bool, int]] = []

    def fit_layers(extract: Any, fit: ProbeSet, numbers: list[int], settings: Any, progress: Any) -> dict:
        fitted.append((extract is encoder, settings.clusters))
        return {layer: SimpleNamespace(codebooks=(range(settings.clusters),)) for layer in numbers}

    monkeypatch.setattr(quality, "fit_layers", fit_layers)
    monkeypatch.setattr(
        quality,
        "tally_layers",
        lambda extract, books, *_, **__: {layer: [some_tally(layer, len(of.codebooks[0]))] for layer, of in books.items()},
    )
    given: Any = {
        Path(f"{size}"): SimpleNamespace(num_classes=size, read=lambda row, size=size: np.array([0, 1, 2, size - 1]))
        for size in stores
    }
    question = QualitySettings(output="o", shards="s", alignments="a", clusters=clusters)
    table = quality._measure(question, two_judged(), two_judged().utterances, given, encoder, [1])
    assert fitted == [(False, size) for _ in spectral_baselines() for size in mfcc] + ([(True, layer_units)] if layers else [])
    assert [(row.name, row.figures.clusters) for row in table if row.kind == "labels"] == [(str(size), size) for size in stores]
    assert [row.figures.clusters for row in table if row.kind == "layer"] == ([layer_units] if layers else [])
    for name in spectral_baselines():
        assert [row.figures.clusters for row in table if row.kind == name] == mfcc


def test_the_best_layer_is_that_of_clean_speech_whatever_noise_says(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = UnitFigures.of([some_tally(0, 4)])

    def row(layer: int | None, condition: str, pnmi: float) -> QualityRow:
        kind, apart = "mfcc" if layer is None else "layer", Interval(0.1, 0.05, 0.2, 0.1, 3)
        return QualityRow(f"{kind} {layer}", kind, layer, condition, replace(base, pnmi=pnmi), apart, "logmel")

    equal = Interval(-0.05, -0.1, 0.03, 0.0712, 3)
    table = [QualityRow("mine", "labels", None, "clean", replace(base, pnmi=0.2), equal, "mfcc_norm")]
    table += [row(0, "clean", 0.9), row(1, "clean", 0.3), row(2, "clean", 0.5), row(3, "clean", 0.4), row(None, "clean", 0.95)]
    table += [row(0, "noise10", 0.9), row(1, "noise10", 0.8), row(2, "noise10", 0.1), row(3, "noise10", 0.2)]
    monkeypatch.setattr(quality, "_measure", lambda *_: table)
    monkeypatch.setattr(quality, "_encoder", lambda question: (SimpleNamespace(dims=(4,) * 4), [0, 1, 2, 3]))
    phones = two_judged().utterances
    shards = Judged(phones, (0, 1, 2), ("k", "l", "m"), ((), (), ()), Matches({}, [], [], []))
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        quality, "judged_set", lambda folder, rows, times, **settings: given.update(settings, rows=rows) or shards
    )
    monkeypatch.setattr(quality, "fitted_set", lambda *_: phones)
    monkeypatch.setattr(quality, "read_alignments", lambda *_, **__: {})
    chosen = {"held_out": 0.5, "folding": "timit39", "with_silence": False, "seconds": 77.0, "max_unmatched_share": 0.2}
    result, _ = quality.judge(asked(places, alignments="a", encoder="m", conditions=("clean", "noise10"), **chosen))
    assert given.pop("rows").tolist() == np.flatnonzero(held_out(speakers_of(Index.open(places["shards"])), 0.5, 0)).tolist()
    assert given == {"folding": "timit39", "with_silence": False, "seconds": 77.0, "max_unmatched_share": 0.2}
    labels = [sentence for sentence in result["sentences"] if "mine" in sentence]
    assert labels == [
        "Labels mine: PNMI 0.200, equal to a baseline, units of MFCC (normalised) of the same K (-0.050, 95 % interval -0.100 "
        "to +0.030; smallest visible difference 0.071)."
    ]
    assert result["chosen_layer"] == 2, "layer 0 is the encoder's input"
    best, noisy = result["sentences"][-2:]
    assert best.startswith(
        "Best layer on these speakers: 2, PNMI 0.500, higher than the best baseline, units of log-mel (normalised)"
    )
    assert noisy.startswith(
        "Layer 2 in condition noise10: PNMI 0.100, higher than the best baseline, units of log-mel (normalised)"
    )


def test_the_settings_defaults_are_those_of_the_config_and_reach_the_codebooks() -> None:
    values = yaml.safe_load((conf_dir() / "quality.yaml").read_text())
    defaults = {field.name: field.default for field in fields(QualitySettings) if field.default is not MISSING}
    assert len(defaults) >= 20
    for name, default in defaults.items():
        if values[name] != "???":  # must be given
            assert values[name] == (list(default) if isinstance(default, tuple) else default), name
    question = QualitySettings(
        output="o", shards="s", codebook_seeds=(4, 9), fit_frames=123, frames_per_cluster=7, memory_gb=0.5, labels=["a", "b"]
    )
    units = quality._units(question, 33)
    assert (units.clusters, units.codebook_seeds, units.fit_frames) == (33, (4, 9), 123)
    assert (units.frames_per_cluster, units.memory_gb, units.quick) == (7, 0.5, False)
    assert question.labellings == [Path("a"), Path("b")] and QualitySettings(output="o", shards="s", labels="a").labellings == [
        Path("a")
    ]


@pytest.mark.parametrize(("layers", "expected"), [(None, [0, 1, 2]), ("all", [0, 1, 2]), ([2, 0, 2], [0, 2]), ([1], [1])])
def test_all_layers_are_measured_or_those_that_were_named(
    layers: Any, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"conv_dims": (8,) * 7, "dim": 16, "ffn_dim": 16, "heads": 2, "layers": 2, "positional_kernel": 8}
    model = WavLM(WavLMConfig(**sizes, positional_groups=2))
    monkeypatch.setattr(quality, "open_teacher", lambda path: SimpleNamespace(model=model))
    encoder, found = quality._encoder(QualitySettings(output="o", shards="s", encoder="m", layers=layers, device="cpu"))
    assert found == expected and encoder is not None and encoder.model is model
    with pytest.raises(ValueError, match="a list out of 0…2"):
        quality._encoder(QualitySettings(output="o", shards="s", encoder="m", layers=[3]))


def test_rows_without_a_source_could_be_of_any() -> None:
    index: Any = SimpleNamespace(
        fingerprint="f",
        speakers=["", "a", "b"],
        speaker=np.array([1, 2, 1]),
        sources=["", "corpus"],
        source=np.array([0, 0, 1]),
        recordings=[""],
        recording=np.array([0, 0, 0]),
    )
    fit = {"validation_share": 0.0, "split_seed": 0, "sources": ["other"]}
    assert unseen_rows(index, fit).tolist() == [False, False, True]


# What is said


def quality_row(
    kind: str,
    layer: int | None,
    pnmi: float,
    *,
    gains: tuple[float, ...] = (0.0, 0.0, 0.0),
    condition: str = "clean",
    difference: Interval | None = Interval(0.1, 0.05, 0.2, 0.11, 3),  # noqa: B008
) -> QualityRow:
    """A row of three speakers, whose pseudo-values differ from `pnmi` by `gains`."""
    figures = replace(UnitFigures.of([some_tally(0, 4)]), pnmi=pnmi, pseudo=np.array([[pnmi + gain for gain in gains]]))
    return QualityRow(f"{kind} {layer}" if kind == "layer" else "mine", kind, layer, condition, figures, difference, "mfcc")


def said(table: list[QualityRow], chosen: int | None = None, speech: dict[str, Any] | None = None, **changed: Any) -> list[str]:
    question = QualitySettings(**{"output": "o", "shards": "s", "alignments": "a", "codebook_seeds": (1, 2)} | changed)
    numbers = {"seconds": 1234.4, "speakers": 7, "phones": 39, "without_alignment": 5, "without_speaker": 0, "utterances": 300}
    fit = SimpleNamespace(seconds=99.6, speakers=("a", "b", "c"))
    return quality._sentences(question, numbers | (speech or {}), fit, table, chosen)


def test_the_first_sentence_says_on_whom_and_against_what() -> None:
    fitted = "codebooks of 2 seeds fitted on 100 s of 3 speakers"
    phones = "against 39 phones (5 recordings without an alignment left out)"
    assert said([]) == [f"Judged on 1234 s of 7 speakers {phones}; {fitted}: other speakers."]
    assert said([], held_out=0.0) == [
        f"Judged on 1234 s of 7 speakers {phones}; {fitted}: the same speakers, which is no evidence about others."
    ]
    assert said([], held_out=0.5) == said([])
    assert said([], alignments=None)[0].startswith("Judged on 1234 s of 7 speakers without phones, so their figures are empty;")
    (_, unknown) = said([], speech={"without_speaker": 12})
    assert unknown.startswith("12 of 300 utterances are of unknown speakers")


def test_layers_are_equal_to_the_best_where_the_interval_of_the_difference_contains_0() -> None:
    equal = Interval(0.1, -0.01, 0.21, 0.1234, 3)
    table = [
        quality_row("layer", 0, 0.4999),  # below by as much for every speaker
        quality_row("layer", 1, 0.45, gains=(0.06, 0.0, -0.06)),
        quality_row("layer", 2, 0.5, difference=equal),
        quality_row("layer", 3, 0.4, gains=(0.001, 0.0, -0.001)),
        quality_row("layer", 4, 0.5, condition="noise10"),
        quality_row("labels", None, 0.5),
    ]
    last, noisy = said([*table[:4], replace(table[4], layer=2), table[5]], chosen=2)[-2:]
    assert noisy.startswith("Layer 2 in condition noise10: PNMI 0.500, higher than the best baseline, units of MFCC (raw)")
    visible = table[2].figures.minus(table[1].figures).visible
    assert last == (
        "Best layer on these speakers: 2, PNMI 0.500, equal to a baseline, units of MFCC (raw) of the same K (+0.100, 95 % interval "
        f"-0.010 to +0.210; smallest visible difference 0.123); equal to the best: layers 1 (visible from {visible:.3f})."
    )
    *_, alone = said([quality_row("layer", 1, 0.2), quality_row("layer", 2, 0.5)], chosen=2)
    assert alone == (
        "Best layer on these speakers: 2, PNMI 0.500, higher than the best baseline, units of MFCC (raw) of the same K (+0.100, 95 % "
        "interval +0.050 to +0.200)."
    )
    without = [quality_row("labels", None, 0.4, difference=None)]
    assert len(said(without)) == 1, "labels without phones have no verdict"


def test_labels_are_compared_with_the_best_baseline_in_words_that_fit_the_interval() -> None:
    (_, labels) = said([quality_row("labels", None, 0.4, difference=Interval(0.0302, 0.0004, 0.06, 0.04, 12))])
    assert labels == (
        "Labels mine: PNMI 0.400, higher than the best baseline, units of MFCC (raw) of the same K (+0.0302, 95 % interval +0.0004 "
        "to +0.0600)."
    )
    (_, alone) = said([quality_row("labels", None, 0.4, difference=Interval(0.03, np.nan, np.nan, np.nan, 1))])
    against = "the best baseline, units of MFCC (raw) of the same K"
    assert alone == f"Labels mine: PNMI 0.400, +0.030 against {against} (no interval: one speaker)."


def test_what_was_judged_and_fitted_on_is_counted(places: dict[str, Path]) -> None:
    shards = Index.open(places["shards"])
    utterances = judged_set(places["shards"], np.array([0, 3, 4]), None).utterances
    with_phones = ProbeSet(utterances.utterances, ("x", "y", "z"))
    matches = Matches({}, ["u", "v"], ["w"], ["1", "2", "3", "4", "5"])
    judged = Judged(with_phones, (0, 3, 4), ("k", "l", "m"), ((), (), ()), matches)
    fit = ProbeSet(judged_set(places["others"], np.arange(4), None).utterances.utterances, ("x", "y", "z"))
    question = asked(places, alignments="a")
    result = quality._result(question, judged, fit, [], layers_of_model=None)
    frames = sum(one.frames for one in utterances.utterances)
    assert result["judged"] == {
        "seconds": frames / 50,
        "speakers": len({speakers_of(shards)[row] for row in (0, 3, 4)}),
        "without_speaker": 0,
        "phones": 3,
        "utterances": 3,
        "without_alignment": 3,
        "unused_alignments": 5,
        "fingerprint": with_phones.fingerprint,
    }
    assert result["fitted_on"] == {"seconds": fit.seconds, "speakers": len(fit.speakers), "held_out": True}
    assert not quality._result(replace(question, held_out=0), judged, fit, [], layers_of_model=None)["fitted_on"]["held_out"]
    assert result["chosen_layer"] is None and result["rows"] == []
    assert result["asked"]["shards"] == str(places["shards"]) and "output" not in result["asked"]
    nameless = quality._result(replace(question, shards=str(places["nameless"])), judged, fit, [], layers_of_model=None)
    assert nameless["judged"]["without_speaker"] == 3


def test_a_layer_is_chosen_where_phones_and_a_model_were_given() -> None:
    def chosen(inventory: tuple[str, ...], layers: int | None) -> int | None:
        utterances = tuple(replace(one, phones=one.phones * 0 - 1) for one in two_judged().utterances.utterances)
        judged = replace(two_judged(), utterances=ProbeSet(utterances, inventory))
        table = [quality_row("layer", layer, pnmi) for layer, pnmi in ((0, 0.9), (1, 0.2), (2, 0.6), (3, 0.4))]
        table += [quality_row("layer", 1, 0.95, condition="noise10")]
        index = SimpleNamespace(open=lambda path: SimpleNamespace(speaker=np.ones(20, dtype=int)))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(quality, "Index", index)
            result = quality._result(
                QualitySettings(output="o", shards="s"), judged, judged.utterances, table, layers_of_model=layers
            )
        return result["chosen_layer"]

    assert chosen(("x",), 3) == 2
    assert chosen(("x",), None) is None and chosen((), 3) is None


def test_the_bar_is_as_long_as_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    totals: list[float] = []
    done: list[float] = []

    class Noting:
        def __init__(self, total: float, **settings: bool) -> None:
            totals.append(total)

        def __enter__(self) -> "Noting":
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def advance(self, amount: float, description: str) -> None:
            done.append(amount)

    monkeypatch.setattr(quality, "ProgressBar", Noting)
    rng = np.random.default_rng(0)

    def speech(speaker: str, seconds: int) -> ProbeSet:
        audio = rng.integers(-5000, 5000, seconds * 16_000 + 80).astype(np.int16)
        return ProbeSet((ProbeUtterance(audio, rng.integers(0, 2, 50 * seconds), speaker),), ("x", "y"))

    judged = replace(two_judged(), utterances=speech("b", 2), rows=(5,), keys=("k",), segments=((),))
    store: Any = SimpleNamespace(num_classes=2, read=lambda row: rng.integers(0, 2, 100))
    question = QualitySettings(
        output="o", shards="s", alignments="a", conditions=("clean", "telephone"), clusters=3, codebook_seeds=(0,)
    )
    for stores, encoder, kinds in (({}, None, 4), ({Path("l"): store}, MfccFeatures(), 9), ({Path("l"): store}, None, 4)):
        totals.clear()
        done.clear()
        quality._measure(question, judged, speech("a", 3), stores, encoder, [0, 1])
        # Each kind of units: 3 s to fit on, and 2 s in both conditions.
        assert totals == [pytest.approx(kinds * (3 + 2 * 2))] and sum(done) == pytest.approx(totals[0])


def test_features_for_fastabx_are_of_mfcc_and_the_asked_layers_at_50_frames_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Any, ...]] = []

    def write_features(judged: Judged, extract: Any, layers: list[int], folder: Path, name: str = "layer") -> list[str]:
        given.append((type(extract).__name__, layers, folder))
        return [f"{name}-{layer}" for layer in layers]

    monkeypatch.setattr(quality.abx, "write_items", lambda judged, folder: {"phones": 3, "triphones": 2})
    monkeypatch.setattr(quality.abx, "write_features", write_features)
    encoder: Any = SimpleNamespace()
    tokens = {"phones": 3, "triphones": 2}
    found = quality._write_abx(two_judged(), encoder, [1, 4], tmp_path)
    assert found == {"tokens": tokens, "features": ["mfcc-0", "layer-1", "layer-4"], "frequency": 16_000 // 320}
    assert given == [("MfccFeatures", [0], tmp_path), ("SimpleNamespace", [1, 4], tmp_path)]
    assert quality._write_abx(two_judged(), None, [], tmp_path)["features"] == ["mfcc-0"]


@pytest.mark.parametrize(
    ("about", "says_all"),
    [
        ({"trained_on": {}}, True),
        ({"trained_on": {"before": None}}, False),
        ({"trained_on": {"before": {}}}, True),
        ({"trained_on": {"before": {"before": None}}}, False),
        ({"trained_on": {}, "init_from": "x"}, False),
        ({"trained_on": {"before": {}}, "init_from": "x"}, True),
    ],
)
def test_a_model_that_began_as_one_of_unknown_training_is_warned_of(
    about: dict[str, Any], says_all: bool, places: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = {"validation_share": 0.5, "split_seed": 1}

    def written(heard: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if heard is None else split | {name: written(value) for name, value in heard.items()}

    (tmp_path / "openwavlm.json").write_text(json.dumps(about | {"trained_on": written(about["trained_on"])}))
    judged_rows(asked(places, encoder=str(tmp_path)), Index.open(places["shards"]), {})
    assert ("without a record of training data" in caplog.text) is not says_all


def test_codebooks_are_fitted_on_as_many_seconds_as_were_asked_for(places: dict[str, Path]) -> None:
    index = Index.open(places["shards"])
    rows = np.flatnonzero(held_out(speakers_of(index), 0.5, 0))
    judged = judged_of(places, rows)
    for more in ({}, {"fit": str(places["shards"])}, {"fit": str(places["others"])}, {"held_out": 0}):
        whole = fitted_set(asked(places, seconds=0.1, **more), index, rows, judged)
        part = fitted_set(asked(places, fit_seconds=1.2, **more), index, rows, judged)
        assert len(part) < len(whole) and part.seconds <= 1.2 and whole.seconds > 1.5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seconds": 0.0}, "must be positive"),
        ({"fit_seconds": 0.0}, "must be positive"),
        ({"max_unmatched_share": -0.01}, "a share"),
        ({"max_unmatched_share": 1.01}, "a share"),
        ({"held_out": -0.1}, r"in \[0, 1\)"),
        ({"held_out": 1.0}, r"in \[0, 1\)"),
        ({"held_out": 0.0, "fit": "f"}, "beside fit=f"),
        ({"abx": True, "alignments": None}, "abx compares phones"),
        ({"conditions": ()}, "conditions must be out of clean, telephone, noise10, but is empty"),
        ({"conditions": ("clean", "mp3")}, "conditions must be out of"),
        ({"device": "tpu"}, "device must be out of auto, cpu, cuda"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused(changed: dict[str, Any], message: str) -> None:
    given = {"output": "o", "shards": "s", "alignments": "a"}
    for allowed in (
        {"held_out": 0.0},
        {"held_out": 0.99},
        {"max_unmatched_share": 0.0},
        {"max_unmatched_share": 1.0},
        {"abx": True},
    ):
        QualitySettings(**given | allowed)
    with pytest.raises(ValueError, match=message):
        QualitySettings(**given | changed)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=6, max_size=6), st.integers(0, 2**32 - 1))
def test_no_row_or_sentence_is_better_than_baselines_where_the_best_one_is_as_good(agreements: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)

    def of(agreement: float, seeds: int) -> list[UnitTally]:
        made = []
        for _ in range(seeds):
            tally = UnitTally(3, 4, ["a", "b", "c"])
            for number, name in enumerate("abc"):
                phones = rng.integers(0, 3, 60)
                agree = rng.random(60) < agreement
                tally.add(name, np.where(agree, phones, rng.integers(0, 4, 60)), phones, number)
            made.append(tally)
        return made

    baselines = {key: {4: of(agreement, 2)} for key, agreement in zip(SPECTRA, agreements, strict=False)}
    rows = rows_of(
        {("mine", "labels", None): of(agreements[4], 1), ("layer 1", "layer", 1): of(agreements[5], 2)}, baselines, "clean"
    )
    figures = {key: UnitFigures.of(sizes[4]) for key, sizes in baselines.items()}
    best = max(figures.values(), key=lambda of: of.pnmi)
    for row, sentence in zip(rows[:2], said(rows, chosen=1)[1:], strict=True):
        words = {key: row.figures.minus(of).outcome for key, of in figures.items()}
        wanted = "lower" if "lower" in words.values() else "higher" if set(words.values()) == {"higher"} else "equal"
        assert row.verdict == wanted and row.difference == row.figures.minus(figures[row.baseline])
        assert figures[row.baseline].pnmi == max(figures[key].pnmi for key in words if words[key] == wanted)
        assert (row.verdict == "higher") == (" higher than the best baseline" in sentence)
        assert row.verdict != "higher" or row.figures.pnmi > best.pnmi
        assert SPECTRA[row.baseline] in sentence
