"""From a shard set to labels: fit, assign, verify, grow, carry over, and survive being killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from openwavlm.audio.mfcc import mfcc_features
from openwavlm.evaluation.unseen import unseen_rows
from openwavlm.labels import assign
from openwavlm.labels import fit as fitting
from openwavlm.labels import sample as sampled_frames
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.sample import draw_sample, thinned_places
from openwavlm.labels.store import LabelStore
from openwavlm.labels.verify import verify_labels
from openwavlm.runtime.sealed import sealed
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader
from openwavlm.shards.splits import settled_share, split_hash, validation_rows
from patience import HANG_S
from synthetic import make_corpus, make_shard_set, write_speech_like

ROOT = Path(__file__).parents[2]
SPLIT = {"validation_share": 0.3, "split_seed": 0}
FIT = SPLIT | {"min_frames_per_cluster": 20}
CLUSTERS = 12


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run_script(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "data_prep" / name), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), speakers=6, utterances=5, seconds=(0.8, 2.0))


@pytest.fixture(scope="module")
def shards(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("shards"), corpus=corpus, utterances_per_shard=5)


@pytest.fixture(scope="module")
def codebook(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("codebook") / "mfcc"
    fit_codebook([shards], output, clusters=CLUSTERS, **FIT)
    return output


@pytest.fixture(scope="module")
def labels(shards: Path, codebook: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("labels") / "mfcc"
    assert assign_labels(shards, codebook, output) is not None
    return output


def test_labels_are_the_nearest_centroids_of_each_stored_utterance(shards: Path, codebook: Path, labels: Path) -> None:
    index = Index.open(shards)
    store, reader, book = LabelStore.open(labels, index), ShardReader(index), Codebook.load(codebook)
    for row in range(len(index)):
        features = mfcc_features(reader.read(row)).double().numpy()
        distances = np.square(features[:, None] - book.centroids.double().numpy()).sum(axis=2)
        assert (store.read(row) == distances.argmin(axis=1)).mean() > 0.99
    stats = json.loads((labels / "stats.json").read_text())
    assert stats["rows"] == len(index) == 30
    assert stats["used_clusters"] == CLUSTERS
    assert sorted(path.suffix for path in labels.glob("pack-*")) == [".npy"] * stats["packs"] + [".u16"] * stats["packs"]


def test_recomputed_labels_are_equal_and_a_flipped_one_is_found(shards: Path, codebook: Path, tmp_path: Path) -> None:
    assign_labels(shards, codebook, tmp_path / "labels")
    index = Index.open(shards)
    report = verify_labels(tmp_path / "labels", index, share=1.0)
    assert report.passed
    assert report.rows == 30
    assert report.frames == sum(len(LabelStore.open(tmp_path / "labels", index).read(row)) for row in range(30))
    file = tmp_path / "labels" / "pack-00000.u16"
    values = np.fromfile(file, dtype="<u2")
    values[5] = (values[5] + 1) % CLUSTERS
    values.tofile(file)
    report = verify_labels(tmp_path / "labels", index, share=1.0)
    assert not report.passed
    assert (report.differing_rows, report.differing_frames, report.damaged_files) == ([0], 1, [file])
    assert "1 rows (1 frames) differ, first row 0; 1 files are damaged" in report.sentence()


def test_a_sample_is_recomputed_by_several_processes_with_the_same_verdict(
    shards: Path, codebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assign_labels(shards, codebook, tmp_path / "labels")
    index, file = Index.open(shards), tmp_path / "labels" / "pack-00005.u16"
    (np.fromfile(file, dtype="<u2") ^ 1).tofile(file)
    alone = verify_labels(tmp_path / "labels", index, share=1.0)
    assert alone.differing_rows == list(range(25, 30))
    with monkeypatch.context() as patch:
        patch.setattr(ShardReader, "read", lambda *_: pytest.fail("the audio is read by other processes"))
        assert verify_labels(tmp_path / "labels", index, share=1.0, workers=2) == alone


def test_the_scripts_give_the_same_bytes_with_two_workers(shards: Path, codebook: Path, labels: Path, tmp_path: Path) -> None:
    split = [f"{name}={value}" for name, value in FIT.items()]
    done = run_script("fit_kmeans.py", f"shards=[{shards}]", "output=km", f"clusters={CLUSTERS}", *split, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "km") == files_of(codebook)
    done = run_script("assign_labels.py", f"shards={shards}", "codebook=km", "output=out", "workers=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out") == files_of(labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["km", "out"]


def test_unknown_features_are_refused_by_name(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="features must be one of mfcc, layer, but is 'hubert'"):
        fit_codebook([shards], tmp_path / "km", features="hubert")


KILLED = """
import os, signal, sys
from pathlib import Path
from openwavlm.labels import assign
from openwavlm.labels import pack_tasks

computer = pack_tasks._computer
def deadly(*arguments):
    labels_of_row = computer(*arguments)
    def until_row_17(row):
        if row == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return labels_of_row(row)
    return until_row_17
pack_tasks._computer = deadly
assign.assign_labels(*map(Path, sys.argv[1:4]), packs=int(sys.argv[4]) or None)
"""


def test_killed_in_the_middle_of_a_pack_it_goes_on_to_the_same_bytes(
    shards: Path, codebook: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "labels"
    command = [sys.executable, "-c", KILLED, str(shards), str(codebook), str(output), "0"]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = sorted(path.name for path in (output / "tasks").glob("*.json"))
    assert done == ["pack-00000.json", "pack-00001.json", "pack-00002.json"]
    with pytest.raises(ValueError, match="finished mark"):
        LabelStore.open(output, Index.open(shards))
    read: list[int] = []
    original = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, row, *rest: read.append(row) or original(self, row, *rest))
    assign_labels(shards, codebook, output)
    assert read == list(range(15, 30))
    assert files_of(output) == files_of(labels)


def test_killed_in_a_pack_of_several_shards_it_goes_on_behind_the_last_whole_one(
    shards: Path, codebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assign_labels(shards, codebook, tmp_path / "whole", packs=1)
    output = tmp_path / "labels"
    command = [sys.executable, "-c", KILLED, str(shards), str(codebook), str(output), "1"]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    read: list[int] = []
    original = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, row, *rest: read.append(row) or original(self, row, *rest))
    assign_labels(shards, codebook, output, packs=1)
    assert read == list(range(15, 30))
    assert files_of(output) == files_of(tmp_path / "whole")


def test_shards_of_a_killed_pack_are_not_taken_for_another_codebook(shards: Path, codebook: Path, tmp_path: Path) -> None:
    fit_codebook([shards], tmp_path / "km", clusters=CLUSTERS, seed=1, **FIT)
    output = tmp_path / "labels"
    command = [sys.executable, "-c", KILLED, str(shards), str(tmp_path / "km"), str(output), "1"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert len(list((output / "tasks" / "shards").glob("*.json"))) == 3
    assign_labels(shards, codebook, output, packs=1)
    assign_labels(shards, codebook, tmp_path / "whole", packs=1)
    assert files_of(output) == files_of(tmp_path / "whole")


def test_a_job_array_deals_the_packs_and_its_last_job_finishes(
    shards: Path, codebook: Path, labels: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels"
    assert assign_labels(shards, codebook, output, num_tasks=2, task_index=1) is None
    assert len(list(output.glob("pack-*.u16"))) == 3
    assert assign_labels(shards, codebook, output, num_tasks=2, task_index=0) is not None
    assert files_of(output) == files_of(labels)


def test_two_last_jobs_of_an_array_finish_one_after_the_other(
    shards: Path, codebook: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "labels"
    assert assign_labels(shards, codebook, output, num_tasks=2, task_index=1) is None
    found: list[dict | None] = []
    other = threading.Thread(
        target=lambda: found.append(assign_labels(shards, codebook, output, num_tasks=2, task_index=1)), daemon=True
    )
    original = assign.write_labels_meta

    def while_the_other_arrives(*arguments):
        monkeypatch.setattr(assign, "write_labels_meta", original)
        other.start()
        other.join(2)
        assert other.is_alive(), "the other job finished the labelling that this one is writing"
        return original(*arguments)

    monkeypatch.setattr(assign, "write_labels_meta", while_the_other_arrives)
    meta = assign_labels(shards, codebook, output, num_tasks=2, task_index=0)
    other.join(HANG_S)
    assert found == [meta] and meta is not None
    assert files_of(output) == files_of(labels)


def test_packs_of_an_unfinished_call_with_another_codebook_or_of_other_shards_are_not_written_over(
    shards: Path, codebook: Path, labels: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels"
    fit_codebook([shards], tmp_path / "km", clusters=CLUSTERS, seed=1, **FIT)
    other = make_shard_set(tmp_path / "other", speakers=2, utterances=6, seconds=(0.6, 0.9), seed=7, utterances_per_shard=2)
    for task_index in (0, 1):
        for first, book, what in ((shards, tmp_path / "km", "another codebook"), (other, codebook, "other shards")):
            assert assign_labels(first, book, output, num_tasks=2, task_index=task_index) is None
            before = files_of(output)
            with pytest.raises(ValueError, match=rf"tasks/pack-0000\d\.json is a finished pack of a call that labels {what} and"):
                assign_labels(shards, codebook, output)
            assert files_of(output) == before
            shutil.rmtree(output / "tasks")
    assign_labels(shards, codebook, output)
    assert files_of(output) == files_of(labels)


def test_growth_labels_the_new_shards_alone(
    shards: Path, codebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "corpus", speakers=3, utterances=3, seconds=(0.8, 1.2), seed=5)
    grown = make_shard_set(tmp_path, corpus=corpus, utterances_per_shard=4)
    output = tmp_path / "labels"
    assign_labels(grown, codebook, output)
    before = files_of(output)
    for number in range(5):
        write_speech_like(corpus / "spk09" / f"utt{number}.flac", seconds=1.0, seed=number, speaker="new")
    extra = make_shard_set(tmp_path, corpus=corpus, utterances_per_shard=4)
    index = Index.open(extra)
    with pytest.raises(ValueError, match="have none"):
        LabelStore.open(output, index)
    read: list[int] = []
    original = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, row, *rest: read.append(row) or original(self, row, *rest))
    meta = assign_labels(extra, codebook, output)
    assert meta is not None
    old_packs = {name: content for name, content in before.items() if name.startswith("pack-")}
    assert len(read) == 5
    assert len(index) == 14
    after = files_of(output)
    assert {name: after[name] for name in old_packs} == old_packs
    assert verify_labels(output, index, share=1.0).passed
    unchanged = files_of(output)
    assign_labels(extra, codebook, output)
    assert files_of(output) == unchanged


def test_labels_are_carried_to_the_same_audio_in_other_shards(
    corpus: Path, shards: Path, codebook: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_shard_set(tmp_path, corpus=corpus, utterances_per_shard=7, seed=9, source="renamed")
    index = Index.open(other)
    assert not {shard.identity for shard in index.shards} & {shard.identity for shard in Index.open(shards).shards}
    with pytest.raises(ValueError, match=r"have none.*mode=rebind"):
        LabelStore.open(labels, index)
    with monkeypatch.context() as patch:
        patch.setattr(ShardReader, "read", lambda *_: pytest.fail("carrying labels over reads no audio"))
        assign_labels(other, None, tmp_path / "carried", mode="rebind", carry_from=labels)
    assert verify_labels(tmp_path / "carried", index, share=1.0).passed
    assign_labels(other, codebook, tmp_path / "computed")
    assert files_of(tmp_path / "carried") == files_of(tmp_path / "computed")


def test_other_audio_has_no_labels_to_carry(labels: Path, tmp_path: Path) -> None:
    other = make_shard_set(tmp_path, speakers=1, utterances=2, seconds=(0.8, 1.0), seed=77)
    with pytest.raises(ValueError, match=r"2 of 2 rows .* have none in"):
        assign_labels(other, None, tmp_path / "carried", mode="rebind", carry_from=labels)


def test_labels_of_known_audio_are_carried_over_and_the_rest_computed(
    corpus: Path, shards: Path, codebook: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = tmp_path / "corpus"
    shutil.copytree(corpus, mixed)
    for number in range(4):
        write_speech_like(mixed / "spk09" / f"utt{number}.flac", seconds=1.0, seed=number, speaker="new")
    grown = make_shard_set(tmp_path, corpus=mixed, utterances_per_shard=7, seed=9, source="renamed")
    assign_labels(grown, codebook, tmp_path / "computed")
    read: list[int] = []
    original = ShardReader.read
    with monkeypatch.context() as patch:
        patch.setattr(ShardReader, "read", lambda self, row, *rest: read.append(row) or original(self, row, *rest))
        assign_labels(grown, codebook, tmp_path / "carried", carry_from=labels)
    assert len(read) == 4
    assert files_of(tmp_path / "carried") == files_of(tmp_path / "computed")
    on_gpu = tmp_path / "on-gpu"
    shutil.copytree(labels, on_gpu)
    meta = json.loads((on_gpu / "meta.json").read_text())
    meta["packs"][0]["computed_on"] = "GPU A, GPU B"
    meta = sealed(meta)
    (on_gpu / "meta.json").write_text(json.dumps(meta))
    noted = assign_labels(grown, codebook, tmp_path / "noted", carry_from=on_gpu)
    assert noted is not None and {pack["computed_on"] for pack in noted["packs"]} == {"GPU A, GPU B"}, (
        "carried labels may be a GPU's"
    )
    fit_codebook([shards], tmp_path / "km", clusters=4, seed=1, **FIT)
    with pytest.raises(ValueError, match="carried over only from the same codebook"):
        assign_labels(grown, tmp_path / "km", tmp_path / "other", carry_from=labels)
    with pytest.raises(ValueError, match=r"labels have a folder of their own, but .* holds shards"):
        assign_labels(shards, codebook, shards)
    assert not (shards / "meta.json").exists() and not list(shards.glob("pack-*"))
    with pytest.raises(ValueError, match="carry_from and output are both"):
        assign_labels(grown, codebook, labels, carry_from=labels)


def damage(shards: Path) -> tuple[Index, int]:
    """Overwrites one utterance with zeros, in a shard that keeps its size and its first utterance."""
    index = Index.open(shards)
    row = int(index.first_row[0]) + 1
    with (shards / index.shards[0].name).open("r+b") as file:
        file.seek(int(index.offset[row]))
        file.write(bytes(int(index.nbytes[row])))
    return index, row


def test_unreadable_audio_is_counted_and_past_the_rate_refused(codebook: Path, tmp_path: Path) -> None:
    shards = make_shard_set(tmp_path, speakers=2, utterances=4, seconds=(0.8, 1.2), seed=3)
    index, row = damage(shards)
    output = tmp_path / "labels"
    with pytest.raises(ValueError, match=r"a share of 0\.001 .* but 1 of 8 are: repair the shards, or raise max_skip_rate"):
        assign_labels(shards, codebook, output)
    assert not (output / "meta.json").exists()
    assign_labels(shards, codebook, output, max_skip_rate=0.2)
    store = LabelStore.open(output, index)
    assert [len(store.read(other)) > 0 for other in range(8)] == [other != row for other in range(8)]
    assert json.loads((output / "stats.json").read_text())["unreadable_rows"] == 1
    assert verify_labels(output, index, share=1.0).passed
    with pytest.raises(ValueError, match="1 of 8 are"):
        fit_codebook([shards], tmp_path / "km", clusters=4, min_frames_per_cluster=20, validation_share=0.0)
    fit_codebook([shards], tmp_path / "km", clusters=4, min_frames_per_cluster=20, validation_share=0.0, max_skip_rate=0.2)
    assert Codebook.load(tmp_path / "km").fitted["unreadable_utterances"] == 1


def test_a_codebook_is_fitted_on_training_speakers_alone(shards: Path, codebook: Path) -> None:
    index = Index.open(shards)
    held_out = validation_rows(index, share=0.3, split_seed=0)
    assert 0 < held_out.sum() < len(index)
    sample = draw_sample([index], sample_hours=100.0, seed=0, **SPLIT)
    assert sorted(sample.row.tolist()) == np.flatnonzero(~held_out).tolist()
    fitted = Codebook.load(codebook).fitted
    assert fitted["utterances"] == (~held_out).sum()
    assert fitted["seconds"] == pytest.approx(index.num_samples[~held_out].sum() / 16_000, abs=1e-3)


def test_a_sample_depends_on_the_audio_and_the_seed_and_not_on_shards(corpus: Path, shards: Path, tmp_path: Path) -> None:
    indexes = [Index.open(shards), Index.open(make_shard_set(tmp_path, corpus=corpus, utterances_per_shard=11, seed=4))]

    def sampled(number: int, seed: int) -> list[int]:
        sample = draw_sample([indexes[number]], sample_hours=12 / 3600, seed=seed, **SPLIT)
        assert 12 <= sample.num_samples.sum() / 16_000 < 14
        return indexes[number].pcm[sample.row].tolist()

    assert sampled(0, 0) == sampled(1, 0) != sampled(0, 1)


def test_a_bound_on_frames_thins_them_out_evenly_in_blocks_of_any_size(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert np.flatnonzero(np.diff(thinned_places(0, 10, total=10, keep=4))).tolist() == [2, 4, 7, 9]
    whole = fit_codebook([shards], tmp_path / "whole", clusters=4, max_frames=500, **FIT)
    monkeypatch.setattr(sampled_frames, "_UTTERANCES_A_TASK", {"mfcc": 3})
    blocks = fit_codebook([shards], tmp_path / "blocks", clusters=4, max_frames=500, **FIT)
    assert whole.fitted["frames"] == 500
    assert whole.hash == blocks.hash


def test_a_codebook_folder_is_never_overwritten_by_another_request(shards: Path, codebook: Path) -> None:
    before = files_of(codebook)
    fit_codebook([shards], codebook, clusters=CLUSTERS, **FIT)
    with pytest.raises(ValueError, match="already has one of another request"):
        fit_codebook([shards], codebook, clusters=CLUSTERS, seed=1, **FIT)
    assert files_of(codebook) == before


def test_a_labelling_has_one_codebook(shards: Path, labels: Path, tmp_path: Path) -> None:
    fit_codebook([shards], tmp_path / "km", clusters=4, seed=1, **FIT)
    with pytest.raises(ValueError, match="one labelling has one codebook"):
        assign_labels(shards, tmp_path / "km", labels)


def test_a_codebook_of_other_features_is_refused(shards: Path, codebook: Path, tmp_path: Path) -> None:
    book = Codebook.load(codebook)
    Codebook(book.centroids, book.features | {"kept_frames": "odd"}).save(tmp_path / "km")
    with pytest.raises(ValueError, match="differ in kept_frames"):
        assign_labels(shards, tmp_path / "km", tmp_path / "labels")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "guess"}, "one of assign, rebind"),
        ({"mode": "rebind"}, "needs carry_from"),
        ({"num_tasks": 2, "task_index": 2}, r"task_index must lie in \[0, num_tasks\)"),
        ({"packs": 0}, "at least one for new shards"),
        ({"packs": 257}, None),
    ],
)
def test_wrong_arguments_are_refused(shards: Path, codebook: Path, tmp_path: Path, arguments: dict, message: str | None) -> None:
    if message is None:
        assert assign_labels(shards, codebook, tmp_path / "labels", **arguments) is not None
        return
    with pytest.raises(ValueError, match=message):
        assign_labels(shards, codebook, tmp_path / "labels", **arguments)


def test_a_share_that_leaves_no_training_speaker_leaves_the_one_with_the_largest_hash(shards: Path, tmp_path: Path) -> None:
    book = fit_codebook([shards], tmp_path / "km", clusters=4, min_frames_per_cluster=20, validation_share=0.9999999)
    index = Index.open(shards)
    last = max(range(1, len(index.speakers)), key=lambda number: split_hash(index.speakers[number]))
    assert book.fitted["utterances"] == (index.speaker[:] == last).sum() > 0
    with pytest.raises(ValueError, match="leaves no utterance"):
        draw_sample([index], sample_hours=1.0, seed=0, validation_share=0.9999999, split_seed=0)


def test_a_codebook_records_the_share_that_its_fit_left_out_and_one_of_before_the_rule_is_of_another_request(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.open(shards)
    fit = partial(fit_codebook, [shards], clusters=4, min_frames_per_cluster=20, validation_share=1e-9)
    share = fit(tmp_path / "km").fitted["validation_share"]
    assert share == settled_share([index], share=1e-9, split_seed=0, key="validation_share") > 1e-9
    assert (~unseen_rows(index, {"validation_share": share, "split_seed": 0})).sum() == fit(tmp_path / "km").fitted["utterances"]
    monkeypatch.setattr(fitting, "settled_share", lambda indexes, *, share, split_seed, key: share)
    assert fit(tmp_path / "before").fitted["utterances"] == len(index)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="already has one of another request"):
        fit(tmp_path / "before")


def test_a_codebook_of_one_speaker_is_fitted_on_it_without_a_held_out_share_alone(tmp_path: Path) -> None:
    alone = make_shard_set(tmp_path, speakers=1, utterances=4, seconds=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"at least two speakers .* has 1 and validation_share is 0\.1: set validation_share=0"):
        fit_codebook([alone], tmp_path / "km", clusters=4, min_frames_per_cluster=20)
    assert len(fit_codebook([alone], tmp_path / "km", clusters=4, min_frames_per_cluster=20, validation_share=0)) == 4
