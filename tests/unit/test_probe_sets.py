"""Probe sets from shards and a table of phone times: whose times a recording gets, and how phones are folded."""

from pathlib import Path

import numpy as np
import pytest

from openwavlm.evaluation.shard_sets import inventory, probe_set, read_phone_times
from openwavlm.shards.index import Index
from synthetic import make_shard_set

HEADER = "path\tstart\tend\tphone\n"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("probe"), speakers=2, utterances=2, seconds=(0.6, 1.0), utterances_per_shard=4)


def recordings(shards: Path) -> list[str]:
    index = Index.open(shards)
    return [index.recordings[int(number)].split("/", 1)[-1] for number in index.recording]


def test_stress_digits_capitals_and_short_pauses_fold_into_one_inventory(tmp_path: Path):
    table = tmp_path / "phones.tsv"
    table.write_text(HEADER + "a.wav\t0\t1\tAH0\na.wav\t1\t2\tah\na.wav\t2\t3\tAH1\na.wav\t3\t4\tsp\nb.wav\t0\t1\tsil\n")
    assert inventory(read_phone_times(table, fold_stress=True)) == ("ah", "sil")
    assert len(inventory(read_phone_times(table))) == 5


def test_a_recording_finds_its_times_by_the_end_of_the_tables_path(shards: Path, tmp_path: Path):
    table = tmp_path / "phones.tsv"
    names = recordings(shards)
    table.write_text(HEADER + "".join(f"deep/below/{name}.flac\t0\t9\tp{place}\n" for place, name in enumerate(names)))
    times = read_phone_times(table)
    found = probe_set(shards, times, inventory(times))
    assert [set(np.unique(utterance.phones)) for utterance in found.utterances] == [{place} for place in range(len(names))]


def test_an_ending_that_two_paths_share_belongs_to_neither(shards: Path, tmp_path: Path):
    table = tmp_path / "phones.tsv"
    names = recordings(shards)
    rows = [f"one/{names[0]}.flac\t0\t9\ta\n", f"two/{names[0]}.flac\t0\t9\tb\n", f"{names[1]}.flac\t0\t9\tc\n"]
    table.write_text(HEADER + "".join(rows))
    times = read_phone_times(table)
    assert [utterance.name for utterance in probe_set(shards, times, inventory(times)).utterances] == [names[1]]


def test_shards_that_the_table_does_not_know_are_refused(shards: Path, tmp_path: Path):
    table = tmp_path / "phones.tsv"
    table.write_text(HEADER + "elsewhere.flac\t0\t9\ta\n")
    times = read_phone_times(table)
    with pytest.raises(ValueError, match="has phone times"):
        probe_set(shards, times, inventory(times))
