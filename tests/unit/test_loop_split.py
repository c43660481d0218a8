"""One folder of recordings becomes train, dev and test: every speaker in one set, the same one after the folder has grown."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from openwavlm.pipeline import corpora
from openwavlm.pipeline.corpora import shard_sets, speaker_ranges
from openwavlm.pipeline.stages import Chain
from openwavlm.shards.index import Index
from openwavlm.shards.splits import validation_rows
from synthetic import make_corpus, make_shard_set

LIMIT = 2**64


def hash_of(speaker: str) -> int:
    """The keyed hash of `data.validation_share` with `data.split_seed=0`, written out."""
    return int.from_bytes(hashlib.blake2b(f"0/split/{speaker}".encode(), digest_size=8).digest(), "little")


def names_of_files(folder: Path, speakers: int) -> dict[str, Any]:
    """A corpus of empty files, which is enough to list it."""
    for number in range(speakers):
        (folder / f"s{number}").mkdir(parents=True)
        (folder / f"s{number}" / "a.flac").touch()
    return {"input": str(folder), "layout": "folder", "speaker_folder": 1, "source": "here"}


def members(corpus: dict[str, Any], speakers: int) -> dict[str, set[str]]:
    ranges = speaker_ranges(corpus)
    hashes = {f"s{number}": hash_of(f"here/s{number}") for number in range(speakers)}
    return {name: {of for of, value in hashes.items() if first <= value < end} for name, (first, end) in ranges.items()}


def test_five_percent_of_the_hashes_are_dev_and_the_next_five_percent_test(tmp_path: Path) -> None:
    corpus = names_of_files(tmp_path / "many", 400)
    five, ten = int(0.05 * LIMIT), int(0.1 * LIMIT)
    assert speaker_ranges(corpus) == {"train": (ten, LIMIT), "dev": (0, five), "test": (five, ten)}
    assert list(speaker_ranges(corpus)) == ["train", "dev", "test"]
    sets = members(corpus, 400)
    assert 8 < len(sets["dev"]) < 35 and 8 < len(sets["test"]) < 35 and sum(map(len, sets.values())) == 400


@pytest.mark.parametrize("speakers", [3, 4, 9])
def test_of_few_speakers_one_is_dev_one_is_test_and_the_others_are_train(tmp_path: Path, speakers: int) -> None:
    corpus = names_of_files(tmp_path / "few", speakers)
    ordered = sorted((f"s{number}" for number in range(speakers)), key=lambda name: hash_of(f"here/{name}"))
    assert members(corpus, speakers) == {"train": set(ordered[2:]), "dev": {ordered[0]}, "test": {ordered[1]}}


@pytest.mark.parametrize("speakers", [3, 5, 16])
@pytest.mark.parametrize("seed", range(5))
def test_no_set_is_empty_with_three_speakers_or_more_and_the_numbers_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, speakers: int, seed: int
) -> None:
    corpus = names_of_files(tmp_path / "few", speakers) | {"source": f"corpus{seed}"}
    with caplog.at_level("INFO"):
        ranges = speaker_ranges(corpus)
    hashes = [hash_of(f"corpus{seed}/s{number}") for number in range(speakers)]
    sizes = {name: sum(first <= one < end for one in hashes) for name, (first, end) in ranges.items()}
    assert min(sizes.values()) >= 1 and sum(sizes.values()) == speakers
    assert caplog.messages[-1].endswith(f"is split by speaker: {sizes['train']} train, {sizes['dev']} dev, {sizes['test']} test")


def test_a_corpus_that_cannot_be_split_by_speaker_is_refused(tmp_path: Path) -> None:
    two = names_of_files(tmp_path / "two", 2)
    with pytest.raises(ValueError, match=r"takes 3 speakers, but \S+two has 2: set corpora\.speaker_folder") as refusal:
        speaker_ranges(two)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"2 of 2 recordings of \S+two have no speaker"):
        speaker_ranges(two | {"speaker_folder": 0})
    table = tmp_path / "table.tsv"
    table.write_text("path\tspeaker\na.flac\tx\nb.flac\ty\nc.flac\tz\nd.flac\t\n")
    with pytest.raises(ValueError, match=r"1 of 4 recordings of \S+table\.tsv have no speaker"):
        speaker_ranges({"input": str(table), "layout": "manifest"})
    table.write_text("path\twho\na.flac\tx\nb.flac\ty\nc.flac\tz\n")
    ranges = speaker_ranges({"input": str(table), "layout": "manifest", "columns": {"speaker": "who", "text": None}})
    assert set(ranges) == {"train", "dev", "test"}


def config(folder: Path, **more: Any) -> dict[str, Any]:
    one = {"input": None, "layout": "folder", "speaker_folder": 1}
    sets = {name: dict(one) for name in ("train", "dev", "test")}
    given = {"corpora": one | {"input": str(folder), "min_seconds": 0.5} | sets | more}
    return {"synthesis": None, "alignments": None, "workers": 1} | given


def speakers_of(shards: dict[str, Any]) -> dict[str, set[str]]:
    found = {}
    for name in ("train", "dev", "test"):
        index = Index.open(shards[name].folder)
        found[name] = {index.speakers[int(one)] for one in index.speaker[:]}
    return found


def test_every_speaker_is_in_one_set_as_validation_rows_has_them_and_stays_there_when_the_corpus_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "mine", speakers=6, utterances=2, seconds=(0.6, 0.9))
    # The shares at which these six speakers give dev and test one each and two.
    hashes = sorted(hash_of(f"mine/spk{number:02d}") for number in range(6))
    monkeypatch.setattr(corpora, "_HELD_OUT_SHARE", (hashes[1] + 1) / LIMIT)
    chain = Chain(tmp_path / "stages")
    shards, _ = shard_sets(chain, config(corpus))
    sets = speakers_of(shards)
    everyone = {f"mine/spk{number:02d}" for number in range(6)}
    assert set().union(*sets.values()) == everyone and sum(map(len, sets.values())) == 6 and all(sets.values())
    assert shards["dev_clean"] is shards["dev"] and [stage.result["utterances"] for stage in chain.stages] == [
        2 * len(sets[name]) for name in ("train", "dev", "test")
    ]
    whole = Index.open(make_shard_set(tmp_path / "whole", corpus=corpus, source="mine"))
    held_out = validation_rows(whole, share=(hashes[1] + 1) / LIMIT, split_seed=0)
    assert {whole.speakers[int(one)] for one in whole.speaker[:][held_out]} == sets["dev"]

    more = make_corpus(tmp_path / "more", speakers=6, utterances=1, seconds=(0.6, 0.9), seed=5)
    for place in sorted(more.iterdir()):
        shutil.copy(place / "utt000.flac", corpus / place.name / "new.flac")
    shutil.copytree(more / "spk00", corpus / "somebody")
    grown, _ = shard_sets(Chain(tmp_path / "stages"), config(corpus))
    assert {name: stage.folder for name, stage in grown.items()} == {name: stage.folder for name, stage in shards.items()}
    assert sum(len(Index.open(grown[name].folder)) for name in ("train", "dev", "test")) == 19
    after = speakers_of(grown)
    assert all(sets[name] <= after[name] <= sets[name] | {"mine/somebody"} for name in sets)
    assert sum(map(len, after.values())) == 7


def test_one_folder_and_sets_of_their_own_are_not_mixed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "make_shards", lambda **asked: {"of": {**asked, "output": str(asked["output"])}})
    monkeypatch.setattr(corpora, "sentences", lambda stats: [])
    names_of_files(tmp_path / "mine", 5)
    clean = {"input": str(tmp_path / "mine" / "s0"), "source": "clean"}
    shards, _ = shard_sets(Chain(tmp_path / "stages"), config(tmp_path / "mine", test_clean=clean))
    assert {name: "speakers" in stage.result["of"] for name, stage in shards.items()} == {
        **dict.fromkeys(("train", "dev", "test", "train_clean", "dev_clean"), True),
        "test_clean": False,
    }
    of = shards["train"].result["of"]
    assert (of["input"], of["speaker_folder"], of["min_seconds"]) == (str(tmp_path / "mine"), 1, 0.5)
    with pytest.raises(
        ValueError, match=r"corpora\.input is split into train, dev and test, but corpora\.dev\.input is given too"
    ):
        shard_sets(Chain(tmp_path / "stages"), config(tmp_path / "mine", dev={"input": str(tmp_path)}))
    with pytest.raises(ValueError, match=r"corpora\.input must be a folder or a file, but /nowhere does not exist"):
        shard_sets(Chain(tmp_path / "stages"), config(Path("/nowhere")))
    with pytest.raises(ValueError, match=r"corpora\.train\.input is not given: give corpora\.input=DIR"):
        shard_sets(Chain(tmp_path / "stages"), config(tmp_path) | {"corpora": {"input": None, "train": {"input": None}}})
