"""What is held out and what is trained on: the split by hand, validation that no run's seed moves, shares, counts and keys."""

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from openwavlm.batches.collate import Draws
from openwavlm.batches.settings import Batching, Data, Mixing, SpanMasking
from openwavlm.batches.sources import OpenData
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.label_packs import write_labels_meta
from openwavlm.model.config import WavLMConfig
from openwavlm.shards.index import Index
from openwavlm.shards.splits import settled_share, split_hash, split_names
from openwavlm.training.build import make_builder
from synthetic import make_corpus, make_shard_set
from synthetic_labels import write_pack

CLASSES, SHARE = 10, 0.4
BATCHING = Batching(seconds=16.0, micro_seconds=4.0, max_seconds=2.0, min_seconds=0.5)


def write_labels(folder: Path, shards: Path, *, shift: float = 0.0, codebook: Codebook | None = None) -> Path:
    """Random labels of every row, by a codebook that is moved by `shift`."""
    index, chance = Index.open(shards), np.random.default_rng(7)
    codebook = codebook or Codebook(torch.arange(3.0 * CLASSES).reshape(CLASSES, 3) + shift, {"name": "test"})
    codebook.save_array(folder)

    def label_row(row: int) -> np.ndarray:
        return chance.integers(CLASSES, size=1 + (int(index.num_samples[row]) - 400) // 320)

    result = write_pack(folder, "pack-00000", index, range(len(index.shards)), label_row, CLASSES)
    write_labels_meta(folder, codebook, [result.record], result.label_counts)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, dict[str, str]]:
    """Two labelled shard sets, of which the second knows no speakers."""
    found = {}
    for number, (name, speaker_folder) in enumerate((("known", 1), ("unknown", 0))):
        folder = tmp_path_factory.mktemp(name)
        corpus = make_corpus(folder / "corpus", speakers=8, utterances=3, seconds=(0.6, 2.6), seed=number)
        shards = make_shard_set(folder, corpus=corpus, source=name, speaker_folder=speaker_folder)
        found[name] = {"shards": str(shards), "labels": str(write_labels(folder / "labels", shards))}
    return found


def opened(sets: dict, seed: int = 3, batching: Batching = BATCHING, noise: str | None = None, **settings: object) -> OpenData:
    return OpenData(Data(sets, noise=noise, **{"validation_share": SHARE, **settings}), batching, seed)


def held_out(source: dict[str, str], split_seed: int = 0, share: float = SHARE) -> np.ndarray:
    """Rows whose speaker, or recording where no speaker is known, has a hash below the share."""
    index = Index.open(source["shards"])
    speakers = [
        index.speakers[speaker] or index.recordings[recording]
        for speaker, recording in zip(index.speaker, index.recording, strict=True)
    ]
    digests = [hashlib.blake2b(f"{split_seed}/split/{name}".encode(), digest_size=8).digest() for name in speakers]
    return np.array([int.from_bytes(digest, "little") / 2**64 < share for digest in digests])


def rows_of(specs: list) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for spec in specs:
        found.setdefault(spec.id.source, set()).update(spec.rows.tolist())
    return found


def training_rows(data: OpenData, steps: int = 40) -> dict[str, set[int]]:
    schedule = data.schedule()
    return rows_of([spec for step in range(steps) for spec in schedule.step(step).specs])


def test_held_out_rows_are_validated_and_the_others_are_trained_on(sets):
    data = opened(sets)
    training, validation = training_rows(data), rows_of(data.validation_specs())
    for name, source in sets.items():
        expected = held_out(source)
        assert 0 < expected.sum() < len(expected)
        assert validation[name] == set(np.flatnonzero(expected).tolist())
        assert training[name] == set(np.flatnonzero(~expected).tolist())


def test_another_split_seed_holds_out_others_and_no_share_holds_out_none(sets):
    assert not np.array_equal(held_out(sets["known"]), held_out(sets["known"], 1))
    assert rows_of(opened(sets, split_seed=1).validation_specs())["known"] == set(np.flatnonzero(held_out(sets["known"], 1)))
    everything = opened(sets, validation_share=0.0)
    assert everything.validation_specs() == [] and len(training_rows(everything)["known"]) == 24


def config(seed: int) -> Any:
    model = WavLMConfig(layers=6, layer_drop=0.5)
    return SimpleNamespace(seed=seed, masking=SpanMasking(), mixing=Mixing(prob=1.0), model=model)


def names_and_masks(data: OpenData, run_seed: int, *, training: bool) -> list[tuple]:
    builder = make_builder(config(run_seed), data, training=training)
    specs = data.schedule().step(0).specs if training else data.validation_specs()
    batches = [builder[spec] for spec in specs]
    assert any(len(batch.mix) for batch in batches) == training
    return [
        (batch.id, batch.rows.tolist(), batch.start_frame.tolist(), batch.mask.tolist(), batch.layer_keep.tolist())
        for batch in batches
    ]


def test_validation_is_the_same_at_every_seed_of_the_run_and_training_is_not(sets):
    first, second = (names_and_masks(opened(sets, seed), seed, training=False) for seed in (3, 4))
    assert first == second and len(first) > 2 and all(all(keep) for *_, keep in first)
    other_split = names_and_masks(opened(sets, 3, split_seed=5), 3, training=False)
    assert first != other_split
    for column in (1, 3, 4):  # rows, masks, layers
        one, other = (names_and_masks(opened(sets, seed), seed, training=True) for seed in (3, 4))
        assert [entry[column] for entry in one] != [entry[column] for entry in other]


def test_training_alone_reads_noise_and_a_source_reads_its_own_folders(sets):
    data = opened(sets, noise=sets["unknown"]["shards"])
    training, validation = (make_builder(config(3), data, training=value) for value in (True, False))
    assert (training.noise, validation.noise) == (Path(sets["unknown"]["shards"]), None)
    assert training.shards == validation.shards == {name: Path(source["shards"]) for name, source in sets.items()}
    assert {name: [store.path for store in stores] for name, stores in training.labels.items()} == {
        name: [Path(source["labels"])] for name, source in sets.items()
    }
    assert training.draws == Draws(3, SpanMasking(), Mixing(prob=1.0), 6, layer_drop=0.5, noise_seconds=30.0)
    assert validation.draws == Draws(0, SpanMasking(), None, 6, layer_drop=0.0, noise_seconds=30.0)
    assert Draws(0, SpanMasking(), None, 6) == validation.draws


def test_validation_reads_at_most_its_seconds_shared_out_by_hours(sets):
    short = replace(BATCHING, micro_seconds=2.0, max_seconds=1.0)
    everything = opened(sets, batching=short).validation_specs()
    seconds = {name: Index.open(source["shards"]).num_samples[held_out(source)].sum() / 16_000 for name, source in sets.items()}
    limit = sum(seconds.values()) * 2 / 3
    found = opened(sets, batching=short, validation_seconds=limit).validation_specs()
    for name in sets:
        mine, all_of_it = ([spec for spec in specs if spec.id.source == name] for specs in (found, everything))
        sizes = [spec.num_frames.sum() / 50 for spec in all_of_it]
        budget = limit * seconds[name] / sum(seconds.values())
        number = sum(np.cumsum(sizes) <= budget)
        assert [spec.id for spec in mine] == [spec.id for spec in all_of_it[:number]] and 1 < number < len(all_of_it)
    least = opened(sets, validation_seconds=0.1).validation_specs()
    assert [(spec.id.source, spec.id.index) for spec in least] == [("known", 0), ("unknown", 0)]


def shares(data: OpenData, steps: int = 400) -> float:
    """Share of the first source in the slots."""
    counts = data.schedule().counts(np.arange(steps))
    return counts[:, 0].sum() / counts.sum()


def test_sources_share_the_slots_by_their_training_hours_weights_or_shares(sets):
    hours = [Index.open(source["shards"]).num_samples[~held_out(source)].sum() for source in sets.values()]
    exact = lambda one, other: pytest.approx(one / (one + other), abs=2e-3)  # noqa: E731
    assert shares(opened(sets)) == exact(hours[0], hours[1])
    known, unknown = sets.values()
    assert shares(opened({"known": {**known, "weight": 3.0}, "unknown": unknown})) == exact(3 * hours[0], hours[1])
    fixed = {"known": {**known, "share": 0.25, "weight": 9.0}, "unknown": {**unknown, "share": 1.0}}
    assert shares(opened(fixed)) == exact(0.25, 1.0)


def test_labels_are_counted_over_the_training_rows(sets):
    data = opened(sets)
    for name, source in sets.items():
        assert data.training_rows()[list(sets).index(name)][1].tolist() == (~held_out(source)).tolist()
    expected = np.zeros(CLASSES, dtype=int)
    for name, source in sets.items():
        store = data.label_sets[name][0]
        for row in np.flatnonzero(~held_out(source)):
            expected += np.bincount(store.read(int(row)), minlength=CLASSES)
    assert data.label_counts().tolist() == expected.tolist() and expected.min() > 0


def test_the_summary_counts_hours_rows_and_speakers_of_both_parts(sets):
    expected = {"training_hours": 0.0, "validation_hours": 0.0, "validation_rows": 0}
    for source in sets.values():
        samples, held = Index.open(source["shards"]).num_samples, held_out(source)
        expected["training_hours"] += samples[~held].sum() / 16_000 / 3600
        expected["validation_hours"] += samples[held].sum() / 16_000 / 3600
        expected["validation_rows"] += int(held.sum())
    found = opened(sets).summary()
    index = Index.open(sets["known"]["shards"])
    names = [{int(speaker) for speaker in index.speaker[held_out(sets["known"]) == part]} for part in (False, True)]
    assert [found["training_speakers"], found["validation_speakers"]] == [len(part) for part in names] and sum(
        map(len, names)
    ) == 8
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=6e-4)
    assert opened(sets).source_names() == {"", "known", "unknown"}


def test_a_validation_set_of_its_own_is_validated_whole_and_never_trained_on(sets):
    known, unknown = sets.values()
    data = opened({"known": known}, validation={"unknown": unknown}, validation_share=0.0)
    assert set(training_rows(data)) == {"known"} and rows_of(data.validation_specs()) == {"unknown": set(range(24))}
    assert [len(rows) for _, rows in data.training_rows()] == [24]
    assert data.summary()["validation_rows"] == 24


def test_a_source_of_rows_of_exactly_the_shortest_length_is_usable(sets):
    longest = max(int(Index.open(source["shards"]).num_samples.max()) for source in sets.values())
    frames = 1 + (longest - 400) // 320
    seconds = (320 * (frames - 1) + 400) / 16_000
    name, source = max(sets.items(), key=lambda entry: int(Index.open(entry[1]["shards"]).num_samples.max()))
    exactly = Batching(seconds=16.0, micro_seconds=4.0, max_seconds=4.0, min_seconds=seconds)
    data = opened({name: source}, batching=exactly, validation_share=0.0)
    assert len(training_rows(data, 2)[name]) == 1
    with pytest.raises(ValueError, match=rf"source {name} has no usable audio"):
        opened({name: source}, batching=replace(exactly, min_seconds=seconds + 0.02), validation_share=0.0)


def test_the_plan_key_names_all_that_the_plan_depends_on_and_nothing_else(sets, tmp_path):
    known, unknown = sets.values()
    both = {"known": known, "unknown": unknown}
    same = [
        opened(both).plan_key(),
        opened(both, validation_seconds=5.0, max_skip_rate=0.5, noise=known["shards"]).plan_key(),
        opened({"known": {**known, "labels": str(write_labels(tmp_path, Path(known["shards"])))}, "unknown": unknown}).plan_key(),
    ]
    assert len(set(same)) == 1
    others = [
        opened(both, 4).plan_key(),
        opened(both, split_seed=1).plan_key(),
        opened(both, validation_share=0.3).plan_key(),
        opened(both, streams=2).plan_key(),
        opened({"known": known}).plan_key(),
        opened({"known": unknown, "unknown": known}).plan_key(),
        opened({"known": {**known, "weight": 2.0}, "unknown": unknown}).plan_key(),
        opened({name: {**source, "share": 1.0} for name, source in both.items()}).plan_key(),
        *(
            opened(both, batching=replace(BATCHING, **{name: value})).plan_key()
            for name, value in (
                ("seconds", 32.0), ("micro_seconds", 8.0), ("max_seconds", 1.0), ("min_seconds", 0.6), ("policy", "pad"),
                ("shards_per_block", 3), ("group", 2),
            )
        ),
    ]  # fmt: skip
    assert len({*same, *others}) == 1 + len(others)


def test_a_run_is_bound_to_its_shards_its_labels_its_codebooks_and_its_noise(sets, tmp_path):
    unknown = sets["unknown"]
    second = {name: str(write_labels(tmp_path / name, Path(source["shards"]), shift=1.0)) for name, source in sets.items()}
    listed = {name: {**source, "labels": [source["labels"], second[name]]} for name, source in sets.items()}
    data = opened(listed, noise=unknown["shards"])
    found = data.fingerprints()
    index = Index.open(unknown["shards"])
    assert found["noise"] == found["shards.unknown"] == index.fingerprint
    assert set(found) == {
        "noise", "codebook", "codebook.2", *(f"{kind}.{name}" for kind in ("shards", "metadata", "labels") for name in sets),
        *(f"labels.{name}.2" for name in sets),
    }  # fmt: skip
    assert len(set(found.values())) == len(found) - 1
    assert found["codebook.2"] == data.label_sets["known"][1].codebook_hash != found["codebook"]
    assert "noise" not in opened(sets).fingerprints()


def test_sources_of_two_codebooks_are_refused_in_each_label_set(sets, tmp_path):
    known, unknown = sets.values()
    other = str(write_labels(tmp_path / "other", Path(unknown["shards"]), shift=1.0))
    with pytest.raises(ValueError, match="labels of the sources known, unknown come from different codebooks, so equal numbers"):
        opened({"known": known, "unknown": {**unknown, "labels": other}})
    mine = str(write_labels(tmp_path / "mine", Path(known["shards"]), shift=2.0))
    listed = {"known": {**known, "labels": [known["labels"], mine]}, "unknown": {**unknown, "labels": [unknown["labels"], other]}}
    with pytest.raises(ValueError, match=r"different codebooks \(label set 2\)"):
        opened(listed)
    with pytest.raises(ValueError, match="known has 2, unknown has 1: give each the same codebooks"):
        opened({"known": listed["known"], "unknown": unknown})


@pytest.mark.parametrize(
    ("fitted", "refused"),
    [
        ({"validation_share": SHARE, "split_seed": 0}, False),
        (
            {"validation_share": 0.5, "split_seed": 0},
            False,
        ),  # more speakers were held out from the codebook than the run holds out
        ({"validation_share": 0.3, "split_seed": 0}, True),
        ({"validation_share": SHARE, "split_seed": 1}, True),
        ({}, False),
    ],
)
def test_a_codebook_fitted_on_speakers_that_the_run_holds_out_is_refused(sets, tmp_path, fitted, refused):
    index = Index.open(sets["known"]["shards"])
    codebook = Codebook(torch.arange(3.0 * CLASSES).reshape(CLASSES, 3), {"name": "test"}, fitted)
    codebook.save_array(tmp_path)
    label_row = lambda row: np.arange(1 + (int(index.num_samples[row]) - 400) // 320) % CLASSES  # noqa: E731
    result = write_pack(tmp_path, "pack-00000", index, range(len(index.shards)), label_row, CLASSES)
    write_labels_meta(tmp_path, codebook, [result.record], result.label_counts)
    source = {"known": {"shards": sets["known"]["shards"], "labels": str(tmp_path)}}
    if not refused:
        opened(source)
        return
    with pytest.raises(ValueError, match=r"set data\.validation_share and data\.split_seed to the codebook's"):
        opened(source)


# --- the settled share --------------------------------------------------------------------------------------------------


def labelled(folder: Path, shards: str, fitted: dict[str, Any]) -> dict[str, str]:
    """A source whose labels are of a codebook with this record of its fit."""
    codebook = Codebook(torch.arange(3.0 * CLASSES).reshape(CLASSES, 3), {"name": "test"}, fitted)
    return {"shards": shards, "labels": str(write_labels(folder, Path(shards), codebook=codebook))}


def test_a_share_that_holds_out_nobody_is_raised_to_the_speaker_with_the_smallest_hash_of_all_sources(sets):
    data = opened(sets, validation_share=1e-9)
    held = {name: held_out(source, share=data.data.validation_share) for name, source in sets.items()}
    assert rows_of(data.validation_specs()) == {name: set(np.flatnonzero(rows)) for name, rows in held.items() if rows.any()}
    names = [name for source in sets.values() for name in split_names(Index.open(source["shards"]))]
    smallest = min(map(split_hash, names))
    assert (
        "data.validation_share=1e-09" in data.settlement
        and smallest / 2**64 < data.data.validation_share <= (smallest + 2**12) / 2**64
    )
    samples = sum(int(Index.open(source["shards"]).num_samples[held[name]].sum()) for name, source in sets.items())
    assert data.summary()["validation_seconds"] == round(samples / 16_000, 1)
    assert data.plan_key() != opened(sets, validation_share=2e-9 + data.data.validation_share).plan_key()


def test_a_share_that_an_earlier_launch_settled_is_kept_even_if_it_holds_out_nobody(sets):
    data = OpenData(Data(sets, validation_share=1e-9), BATCHING, 3, validation_share=1e-9)
    assert data.data.validation_share == 1e-9 and data.validation_specs() == [] and data.summary()["validation_rows"] == 0
    assert [rows.sum() for _, rows in data.training_rows()] == [24, 24]
    known = OpenData(Data(sets, validation_share=1e-9), BATCHING, 3, validation_share=SHARE)
    assert known.plan_key() == opened(sets).plan_key(), "a share as the config's own gives the plan of before"


def test_one_speaker_is_refused_with_a_share_and_trained_on_without(tmp_path):
    shards = make_shard_set(tmp_path, speakers=1, utterances=6, seconds=(0.8, 1.5))
    source = {"speech": {"shards": str(shards), "labels": str(write_labels(tmp_path / "labels", shards))}}
    with pytest.raises(
        ValueError, match=r"needs at least two speakers .* has 1 and data\.validation_share is 0\.4: set data\.valid"
    ):
        opened(source)
    assert len(training_rows(opened(source, validation_share=0), 2)["speech"]) == 6


def test_a_codebook_is_refused_exactly_if_the_speaker_that_the_rule_holds_out_may_be_in_its_fit(sets, tmp_path):
    shards = sets["known"]["shards"]
    index = Index.open(shards)
    share = settled_share([index], share=1e-9, split_seed=0, key="validation_share")
    fits = {"settled": share, "other": 0.9, "before": 1e-9}
    labels = {name: labelled(tmp_path / name, shards, {"validation_share": of, "split_seed": 0}) for name, of in fits.items()}
    for name in ("settled", "other"):
        assert opened({"known": labels[name]}, validation_share=1e-9).data.validation_share == share
    with pytest.raises(
        ValueError,
        match=r"is held out.*perhaps fitted on speakers that are held out: fit it again on these shard sets, or set data\.val",
    ):
        opened({"known": labels["before"]}, validation_share=1e-9)
    OpenData(Data({"known": labels["before"]}, validation_share=1e-9), BATCHING, 3, validation_share=1e-9)
    lowered = settled_share([index], share=0.9999999, split_seed=0, key="validation_share")
    same = labelled(tmp_path / "lowered", shards, {"validation_share": lowered, "split_seed": 0})
    assert opened({"known": same}, validation_share=0.9999999).data.validation_share == lowered


def test_a_codebook_fitted_on_rows_of_a_validation_set_is_refused(sets, tmp_path):
    known, unknown = sets.values()
    index = Index.open(unknown["shards"])

    def run(fitted: dict[str, object], name: str) -> OpenData:
        codebook = Codebook(torch.arange(3.0 * CLASSES).reshape(CLASSES, 3), {"name": "test"}, fitted)
        listed = {}
        for which, source in sets.items():
            listed[which] = {
                **source,
                "labels": str(write_labels(tmp_path / name / which, Path(source["shards"]), codebook=codebook)),
            }
        return opened({"known": listed["known"]}, validation={"unknown": listed["unknown"]}, validation_share=0.0)

    fitted = {"validation_share": 0.4, "split_seed": 0, "indexes": [index.fingerprint]}
    heard = int((~held_out(unknown)).sum())
    assert 0 < heard < 24
    with pytest.raises(ValueError, match=rf"that of validation set unknown was fitted on {heard} of its 24 rows"):
        run(fitted, "fitted")
    run({**fitted, "indexes": [Index.open(known["shards"]).fingerprint]}, "elsewhere")
    other = {**fitted, "metadata": {index.fingerprint: "of other speakers"}}
    with pytest.raises(
        ValueError, match=r"have changed since the codebook of .* was fitted on it, so speakers that are held out now"
    ):
        run(other, "renamed")


def test_a_validation_set_with_audio_that_is_trained_on_is_refused(sets):
    known = sets["known"]
    with pytest.raises(ValueError, match=r"24 of the 24 rows of data\.validation\.dev .* have audio of data\.sources\.known"):
        opened({"known": known}, validation={"dev": known}, validation_share=0.0)


def test_figures_of_one_label_set_are_of_the_first(sets, tmp_path):
    known = sets["known"]
    second = str(write_labels(tmp_path / "second", Path(known["shards"]), shift=1.0))
    data = opened({"known": {**known, "labels": [known["labels"], second]}})
    assert (
        data.label_sets["known"][0].path == Path(known["labels"])
        and data.num_classes == CLASSES
        and data.classes == (CLASSES, CLASSES)
    )


def test_labels_of_many_rows_are_counted_in_a_regular_sample(sets, monkeypatch):
    monkeypatch.setattr("openwavlm.batches.sources._UNIGRAM_ROWS", 5)
    data = opened({"known": sets["known"]})
    rows = np.flatnonzero(~held_out(sets["known"]))
    expected = sum(np.bincount(data.label_sets["known"][0].read(int(row)), minlength=CLASSES) for row in rows[:: len(rows) // 5])
    assert data.label_counts().tolist() == expected.tolist()


def test_the_settings_of_the_data_have_their_defaults_and_ranges(sets):
    data = Data(sets)
    assert (data.validation_share, data.split_seed, data.validation_seconds, data.streams, data.max_skip_rate) == (
        0.02,
        0,
        3600.0,
        1,
        1e-3,
    )
    shards = len(Index.open(sets["known"]["shards"]).shards)
    opened(sets, batching=replace(BATCHING, seconds=4.0 * shards), streams=shards).schedule()
    with pytest.raises(ValueError, match=rf"has {shards} shards, fewer than data\.streams={shards + 1}"):
        opened(sets, batching=replace(BATCHING, seconds=4.0 * (shards + 1)), streams=shards + 1).schedule()
    for settings in (
        {"validation_share": 1.0}, {"validation_share": -0.1}, {"streams": 0}, {"max_skip_rate": 1.0}, {"validation_seconds": 0.0},
        {"validation": {"dev": {"shards": "a", "labels": "b"}}},  # with a share of the speakers held out as well
        {"validation": {"known": {"shards": "a", "labels": "b"}}, "validation_share": 0.0},
        {"validation": {"dev": {"shards": "a"}}, "validation_share": 0.0},
        {"validation": {"dev": {"shards": "a", "labels": ""}}, "validation_share": 0.0},
        {"validation": {"dev": {"shards": "a", "labels": ["b", "b"]}}, "validation_share": 0.0},
        {"validation": {"dev": {"shards": "a", "labels": "b", "weight": 1}}, "validation_share": 0.0},
        {"max_skip_rate": -0.1}, {"validation_seconds": -1.0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"data\."):
            Data(sets, **settings)
    for source in (
        {"weight": 0},
        {"share": -1.0},
        {"weight": float("inf")},
        {"speed": 1},
        {"labels": None},
        {"labels": ["a", "a"]},
        {"labels": ["a", ""]},
        {"labels": ["a", None]},
        {"labels": []},
        {"labels": 3},
        {"labels": ""},
        {"shards": ""},
        {"shards": None},
        {"weight": "2"},
        {"weight": -1},
        {"share": 0.0},
        {"share": float("nan")},
    ):
        with pytest.raises(ValueError, match=r"data\.sources\.known"):
            Data({"known": {**sets["known"], **source}})
    for settings in (
        {"validation_share": 0.0}, {"validation_share": 0.99}, {"max_skip_rate": 0.0}, {"max_skip_rate": 0.99},
        {"validation_seconds": 1e-3},
        {"validation": {"dev": {"shards": "a", "labels": ["b", "c"]}}, "validation_share": 0.0},
    ):  # fmt: skip
        Data({"known": {**sets["known"], "weight": 1e-9, "share": 1e9, "labels": ["a", "b"]}}, **settings)
    with pytest.raises(ValueError, match=r"data\.sources is empty"):
        Data({})
    with pytest.raises(ValueError, match="but only known has one: set it for all"):
        Data({"known": {**sets["known"], "share": 1.0}, "unknown": sets["unknown"]})


def test_labels_that_use_one_cluster_are_refused_and_two_are_enough(sets, tmp_path):
    index = Index.open(sets["known"]["shards"])
    codebook = Codebook(torch.arange(3.0 * CLASSES).reshape(CLASSES, 3), {"name": "test"})
    for used in (1, 2):
        codebook.save_array(tmp_path / str(used))
        label_row = lambda row, used=used: np.arange(1 + (int(index.num_samples[row]) - 400) // 320) % used  # noqa: E731
        result = write_pack(tmp_path / str(used), "pack-00000", index, range(len(index.shards)), label_row, CLASSES)
        write_labels_meta(tmp_path / str(used), codebook, [result.record], result.label_counts)
    source = {"shards": sets["known"]["shards"]}
    opened({"known": {**source, "labels": str(tmp_path / "2")}})
    with pytest.raises(ValueError, match="uses 1 of its 10 clusters"):
        opened({"known": {**source, "labels": str(tmp_path / "1")}})
