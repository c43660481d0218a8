"""Each step of the loop gets the part that it is for: probes and layers train and dev, the last figures test, codebooks training alone."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from learn import Seed
from openwavlm.evaluation.features import LogMelFeatures, MfccFeatures
from openwavlm.evaluation.sets import ProbeSet
from openwavlm.pipeline import iterate, iteration
from openwavlm.pipeline.settings import IterationSettings, iteration_settings
from openwavlm.pipeline.stages import Chain
from runs import phone_times
from synthetic import make_corpus, make_shard_set

NAMES = ("train", "dev", "test", "train_clean", "dev_clean", "test_clean")
PROBE = {"fold_stress": False, "train_seconds": 2.5, "clusters": 7, "codebook_seeds": [0, 3]}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Six shard sets, and the table of their phones."""
    folder = tmp_path_factory.mktemp("loop")
    made = {
        name: make_shard_set(folder / name, speakers=2, utterances=2, seconds=(1.0, 1.4), seed=seed, source=name)
        for seed, name in enumerate(NAMES)
    }
    for place in made.values():
        phone_times(place, folder / "phones.tsv")
    return made | {"phones": folder / "phones.tsv"}


def stage(folder: Path, result: dict[str, Any] | None = None, *, done: bool = True) -> Any:
    return SimpleNamespace(folder=folder, key=folder.name, done=done, result=result or {})


def loop(shards: dict[str, Path], tmp_path: Path) -> iteration.Iteration:
    stages = {name: stage(shards[name]) for name in NAMES}
    config = {"probe": PROBE, "seed": 11, "workers": 1, "device": "cpu", "alignments": None, "overrides": []}
    return iteration.Iteration(Chain(tmp_path / "stages"), config, stages, shards["phones"])


def test_a_probe_is_fitted_on_clean_training_chosen_on_clean_dev_and_reads_clean_test(
    shards: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def probe_model(
        model: object, train: ProbeSet, dev: ProbeSet, test: ProbeSet, settings: Any, *, cache: Path, workers: int
    ) -> dict:
        given.update(model=model, train=train, dev=dev, test=test, settings=settings, cache=cache, workers=workers)
        return {"phones": 1}

    def pnmi_by_layer(model: object, train: ProbeSet, dev: ProbeSet, settings: Any) -> list[float]:
        given.update(layers_model=model, layers_train=train, layers_dev=dev, layers_settings=settings)
        return [0.5]

    monkeypatch.setattr(iteration, "probe_model", probe_model)
    monkeypatch.setattr(iteration, "pnmi_by_layer", pnmi_by_layer)
    monkeypatch.setattr(iteration, "load_run", lambda run: (SimpleNamespace(wavlm=f"the encoder of {run.parent.name}"), None))
    found = loop(shards, tmp_path)._probe(stage(tmp_path / "trained"))
    assert found == {"phones": 1, "pnmi_of_layers": [0.5]}
    assert given["model"] == given["layers_model"] == "the encoder of trained"
    for name in ("train", "dev", "test"):
        assert {speaker.split("/")[0] for speaker in given[name].speakers} == {f"{name}_clean"}
    assert given["layers_train"] is given["train"] and given["layers_dev"] is given["dev"]
    assert len(given["train"]) == 2 < len(given["dev"]) == len(given["test"]) == 4, "2.5 s: an utterance of each speaker"
    assert given["settings"] == given["layers_settings"] and given["settings"].clusters == 7
    assert given["cache"] == tmp_path / "stages" / "baselines" and given["workers"] == 1


def test_mixtures_of_the_learning_comparison_are_given_the_clean_parts_in_their_order(
    shards: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = loop(shards, tmp_path)
    config = {**one.config, "mixtures": {"seed": 5, "energy_ratio_db": 2.0}}
    seed = Seed(one.chain, config, one.shards, shards["phones"], seed=3, one=threading.Lock())
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr("arms.probe_mixtures", lambda *sets, **settings: given.append((*sets, settings)) or {})
    baselines = seed.mixture_baselines()
    assert list(baselines) == ["mfcc", "mfcc_norm", "logmel_raw", "logmel"] and seed.config["seed"] == 3
    for (extract, *sets, settings), kind in zip(given, (MfccFeatures, MfccFeatures, LogMelFeatures, LogMelFeatures), strict=True):
        assert isinstance(extract, kind) and settings == config["mixtures"]
        assert [{name.split("/")[0] for name in part.speakers} for part in sets] == [
            {"train_clean"},
            {"dev_clean"},
            {"test_clean"},
        ]
        assert [len(part) for part in sets] == [2, 4, 4]


def test_masked_figures_are_of_test_with_dev_in_devs_role(
    shards: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    opened = SimpleNamespace(close=lambda: given.update(closed=True))
    monkeypatch.setattr(iteration, "load_run", lambda run: ("the model", None))
    monkeypatch.setattr(iteration, "OpenData", lambda *_: opened)
    monkeypatch.setattr(
        iteration, "RunConfig", SimpleNamespace(of=lambda config: SimpleNamespace(data=config["data"], batch=None, seed=5))
    )
    monkeypatch.setattr(iteration, "masked_figures", lambda *given_, **roles: given.update(roles) or given_[1].data)
    (tmp_path / "trained" / "run").mkdir(parents=True)
    (tmp_path / "trained" / "run" / "config.yaml").write_text("seed: 5\ndata: {validation: {dev: x}}\n")
    data = loop(shards, tmp_path)._masked(stage(tmp_path / "trained"), stage(tmp_path / "labelled"))
    assert given == {"train": "speech", "dev": "dev", "test": "test", "counted": True, "closed": True}
    test = {"shards": str(shards["test"]), "labels": str(tmp_path / "labelled" / "labels")}
    assert data == {"validation": {"dev": "x", "test": test}}


def test_a_codebook_is_fitted_on_the_training_set_alone_and_every_set_is_labelled_with_it(
    shards: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[Any, ...]] = []
    labelled: list[tuple[Path, ...]] = []

    def fit_codebook(places: list[Path], output: Path, **settings: Any) -> Any:
        fitted.append((places, settings))
        return SimpleNamespace(hash="abc")

    monkeypatch.setattr(iteration, "fit_codebook", fit_codebook)
    monkeypatch.setattr(iteration, "assign_labels", lambda *places, teacher, workers, device: labelled.append((*places, teacher)))
    one = loop(shards, tmp_path)
    previous = {
        "export": stage(tmp_path / "exported"),
        "train": stage(tmp_path / "trained", {"layers": 12}),
        "probe": stage(tmp_path / "probed", {"pnmi_of_layers": [0.1, 0.2, 0.9, 0.3], "phones": {"chosen_layer": 1}}),
    }
    settings = IterationSettings(features="layer", clusters=20, codebook={"sample_hours": 1.0})
    book = one._codebook(2, settings, previous)
    (places, asked) = fitted[0]
    assert places == [shards["train"]] and asked["validation_share"] == 0.0 and asked["seed"] == 11
    assert (asked["layer"], asked["teacher"], asked["clusters"]) == (3, tmp_path / "exported", 20)
    assert asked["sample_hours"] == 1.0 and book.result == {"hash": "abc", "layer": 3}
    one.shards["dev"].key = "other"
    assert one._codebook(2, settings, previous).folder == book.folder and len(fitted) == 1
    one.shards["train"].key = "grown"
    assert one._codebook(2, settings, previous).folder != book.folder and len(fitted) == 2
    for name in ("train", "dev", "test"):
        one._labels(2, name, book, settings, previous)
        assert labelled[-1][0] == shards[name] and labelled[-1][1] == book.folder / "codebook"
        assert labelled[-1][3] == tmp_path / "exported"


def test_the_next_layer_is_of_the_iteration_before(shards: dict[str, Path], tmp_path: Path) -> None:
    one = loop(shards, tmp_path)
    settings = IterationSettings(features="layer", clusters=20)
    previous = {"train": stage(tmp_path / "trained", {"layers": 12})}
    # HuBERT §III-A: layer 6 of 12 after the first iteration, 9 after the second.
    assert [one._layer(number, settings, previous) for number in (2, 3)] == [6, 9]
    assert one._layer(2, IterationSettings(features="layer", clusters=20, layer=0), previous) == 0
    assert one._layer(2, settings, {"train": stage(tmp_path / "trained", done=False)}) is None


@pytest.mark.parametrize("name", ["dev", "test", "dev_clean", "test_clean"])
def test_audio_of_the_training_set_is_refused_in_every_held_out_set(shards: dict[str, Path], tmp_path: Path, name: str) -> None:
    stages = {one: stage(shards[one]) for one in NAMES}
    iterate._check_disjoint(stages)
    # The first of its utterances is one of training's, under other names.
    corpus = make_corpus(tmp_path / "corpus", speakers=1, utterances=1, seconds=(1.0, 1.2), seed=99)
    training = sorted(shards["train"].parent.glob("corpus/*/*.flac"))
    (corpus / "spk00" / "other.flac").write_bytes(training[0].read_bytes())
    mixed = make_shard_set(tmp_path, corpus=corpus, source="mixed")
    with pytest.raises(ValueError, match=rf"but 1 of 2 rows of {name} are in the training corpus"):
        iterate._check_disjoint(stages | {name: stage(mixed)})
    iterate._check_disjoint(stages | {name: stage(mixed, done=False)})


@pytest.mark.parametrize(
    ("number", "values", "expected"),
    [
        (1, {"clusters": 100}, {"features": "mfcc", "clusters": 100, "layer": None, "start": "scratch", "codebook": {}}),
        (2, {"clusters": 500}, {"features": "layer", "layer": None}),
        (2, {"clusters": 500, "layer": "auto", "start": "warm"}, {"features": "layer", "layer": None, "start": "warm"}),
        (2, {"clusters": 500, "layer": 0, "updates": 7}, {"features": "layer", "layer": 0, "updates": 7}),
        (2, {"clusters": 500, "features": "mfcc"}, {"features": "mfcc"}),
        (1, {"clusters": 9, "teacher": "t", "layer": 6}, {"features": "layer", "teacher": "t", "layer": 6}),
        (2, {"clusters": 9, "overrides": ["a=1"], "n_init": 3}, {"overrides": ("a=1",), "codebook": {"n_init": 3}}),
    ],
)
def test_an_iteration_is_read_with_its_defaults(number: int, values: dict, expected: dict) -> None:
    found = vars(iteration_settings(number, values))
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("number", "values", "message"),
    [
        (1, {"clusters": 9, "layer": 1}, r"iterations\[0\] is the first iteration and has no model before it"),
        (1, {"clusters": 9, "start": "warm"}, r"first iteration and has no model before it to start from"),
        (2, {}, r"iterations\[1\] must name clusters"),
        (2, {"clusters": 0}, "clusters must be positive"),
        (2, {"clusters": 9, "updates": 0}, "updates must be positive"),
        (2, {"clusters": 9, "layer": -1}, "must be a layer's number or auto"),
        (2, {"clusters": 9, "features": "mfcc", "layer": 1}, "clusters mfcc but names the layer 1"),
        (2, {"clusters": 9, "teacher": "t"}, "must name one of its layers by number"),
        (2, {"clusters": 9, "engine": "full"}, "engine must be one of"),
        (2, {"clusters": 9, "seed": 1}, "unknown key seed"),
        (2, {"clusters": 9, "validation_share": 0.5}, "unknown key validation_share"),
    ],
)
def test_an_iteration_that_cannot_be_is_refused(number: int, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        iteration_settings(number, values)
