"""`openwavlm upgrade`: what version 1 wrote becomes what the present version would have written, and nothing else is touched."""

import hashlib
import json
import os
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from format_one import meta_of_format_one, shards_of_format_one
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.store import LabelStore
from openwavlm.runs.upgrade import upgrade
from openwavlm.shards.index import COLUMNS, TABLES, Index
from openwavlm.shards.index_writer import build_index, write_index
from openwavlm.shards.prepare import make_shards
from openwavlm.shards.upgrade import upgrade_shards
from openwavlm.shards.verify import verify_shards
from synthetic import make_shard_set

SETTINGS = {"speakers": 3, "utterances": 4, "seconds": (0.5, 0.9), "utterances_per_shard": 4}


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", ".turn"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set, a codebook of it and labels."""
    folder = tmp_path_factory.mktemp("work")
    shards = make_shard_set(folder, **SETTINGS)
    fit_codebook([shards], folder / "codebook", clusters=4, engine="minibatch", min_frames_per_cluster=5, validation_share=0.3)
    assign_labels(shards, folder / "codebook", folder / "labels")
    return folder


@pytest.fixture
def old(work: Path, tmp_path: Path) -> Path:
    """The same as version 1 writes it."""
    folder = Path(shutil.copytree(work, tmp_path / "old"))
    shards_of_format_one(folder / "shard-set")
    for name in ("labels", "codebook"):
        meta_of_format_one(folder / name)
    return folder


@pytest.fixture
def written_by_one(tmp_path: Path) -> Path:
    """A set of 32 rows that the program itself wrote at version 1, without its tars."""
    with tarfile.open(Path(__file__).parents[1] / "format_one.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "fx" / "shards"


def test_a_set_of_version_1_is_refused_with_the_line_that_upgrades_it(written_by_one: Path, tmp_path: Path) -> None:
    line = f"by `openwavlm upgrade {written_by_one}`"
    settings = {"source": "synthetic", "speaker_folder": 1, "utterances_per_shard": 8, "min_seconds": 0.5}
    for use in (
        lambda: Index.open(written_by_one),
        lambda: verify_shards(written_by_one),
        lambda: build_index(written_by_one),
        lambda: make_shards(input=tmp_path, output=written_by_one, **settings),
    ):
        with pytest.raises(
            ValueError, match=r"has format 1, .*upgrade it to format 2, which does not change the audio, "
        ) as found:
            use()
        assert str(found.value).endswith(line)


def test_a_set_that_version_1_wrote_keeps_its_audio_identity_and_gets_one_of_its_names(written_by_one: Path) -> None:
    before = tree(written_by_one)
    assert upgrade([written_by_one]) == {written_by_one: True}
    index = Index.open(written_by_one)
    assert index.fingerprint == json.loads(before["index/shards.json"])["fingerprint"]
    assert len(index) == 32
    done = [json.loads(before[f"shards/000/000000-{n:03d}.json"])["columns"] for n in range(4)]
    speakers = dict.fromkeys(name for columns in done for name in columns["speaker"])
    assert index.speakers == ["", *speakers] and len(speakers) == 8
    for info, columns in zip(index.shards, done, strict=True):
        rows = zip(*(columns[name] for name in ("speaker", "recording", "source", "language")), strict=True)
        text = "".join(f"{name}\n" for row in rows for name in row)
        assert info.metadata == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    after = tree(written_by_one)
    same = {name for name in before if before[name] == after[name]}
    assert set(before) - same == {
        "settings.json",
        "done/000/000000.json",
        *(f"shards/000/000000-{n:03d}.json" for n in range(4)),
        "index/shards.json",
    }
    assert upgrade([written_by_one]) == {written_by_one: False} and tree(written_by_one) == after


def test_upgraded_files_are_those_that_this_version_writes_and_tars_and_labels_are_not_touched(work: Path, old: Path) -> None:
    times = {path: path.stat().st_mtime_ns for pattern in ("*.tar", "pack-*", "codebook.npy") for path in old.rglob(pattern)}
    assert len(times) == 3 + 2 * 3 + 2
    folders = [old / name for name in ("labels", "codebook", "shard-set")]
    assert set(upgrade(folders)) == set(folders)
    assert tree(old) == tree(work)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not any(upgrade(folders).values())
    LabelStore.open(old / "labels", Index.open(old / "shard-set"))


def test_labels_and_codebooks_are_upgraded_only_beside_the_shards_that_they_are_of(work: Path, old: Path, tmp_path: Path) -> None:
    other = make_shard_set(tmp_path / "other", **SETTINGS, seed=5)
    before = tree(old)
    for name in ("labels", "codebook"):
        for given in ([old / name], [other, old / name]):
            with pytest.raises(ValueError, match=rf"{old / name} was made from a shard set that was not given: .*upgrade SHARDS"):
                upgrade(given)
    assert tree(old) == before
    with pytest.raises(ValueError, match=rf"lacks the speakers .* by `openwavlm upgrade {work / 'shard-set'} {old / 'labels'}`"):
        LabelStore.open(old / "labels", Index.open(work / "shard-set"))
    upgrade([work / "shard-set", old / "labels", old / "codebook"])
    LabelStore.open(old / "labels", Index.open(work / "shard-set"))
    assert Codebook.load(old / "codebook").fitted == Codebook.load(work / "codebook").fitted


def test_labels_of_a_shard_set_with_other_names_are_refused(work: Path, tmp_path: Path) -> None:
    index = Index.open(work / "shard-set")
    columns = {name: getattr(index, name) for name in COLUMNS}
    tables = {name: getattr(index, name) for name in TABLES}
    renamed = tables | {"speakers": [name.replace("spk00", "someone") for name in index.speakers]}
    for names, numbers in ((renamed, index.speaker), (tables, index.speaker[::-1])):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_index(folder, columns=columns | {"speaker": numbers}, tables=names, shards=index.shards)
        with pytest.raises(ValueError, match=rf"of {folder}/shards/.* when it was labelled for {work / 'labels'}: restore"):
            LabelStore.open(work / "labels", Index.open(folder))


@pytest.mark.parametrize("name", ["speaker.npy", "recordings.txt", "keys.txt", "offset.npy"])
def test_an_index_that_was_changed_since_it_was_built_is_refused_and_not_replaced(old: Path, name: str) -> None:
    file = old / "shard-set" / "index" / name
    if file.suffix == ".npy":
        np.save(file, np.load(file)[::-1])
    else:
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join([*lines[:-2], lines[-1], lines[-2]]))
    index = tree(old / "shard-set" / "index")
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"does not agree with the done-files .*\({name}\).*delete it and run the same"):
            upgrade_shards(old / "shard-set")
        assert tree(old / "shard-set" / "index") == index
    shutil.rmtree(old / "shard-set" / "index")
    upgrade_shards(old / "shard-set")
    assert not verify_shards(old / "shard-set").problems


def test_a_done_file_of_version_1_that_contradicts_itself_is_refused_by_name(old: Path) -> None:
    file = old / "shard-set" / "shards" / "000" / "000000-001.json"
    content = json.loads(file.read_text())
    content["columns"]["num_samples"][1] += 1
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{file} is damaged \(it contradicts itself\)"):
        upgrade_shards(old / "shard-set")


def killed(folder: Path, *, at_fsync: int = 0, at_rename: int = 0) -> bool:
    """Upgrades in a process that dies at that call; returns whether it died."""
    child = os.fork()
    if child == 0:
        left, sync, rename = [at_fsync, at_rename], os.fsync, Path.rename

        def count(which: int) -> None:
            left[which] -= 1
            if left[which] == 0:
                os._exit(9)

        os.fsync = lambda descriptor: (count(0), sync(descriptor))[1]
        Path.rename = lambda self, target: (count(1), rename(self, target))[1]
        try:
            upgrade_shards(folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_an_upgrade_that_is_killed_anywhere_goes_on_to_the_same_bytes(work: Path, old: Path, tmp_path: Path) -> None:
    died = 0
    moments = [{"at_rename": 1}, {"at_rename": 2}, *({"at_fsync": number} for number in range(1, 60, 8))]
    for number, moment in enumerate(moments):
        folder = Path(shutil.copytree(old / "shard-set", tmp_path / str(number)))
        died += killed(folder, **moment)
        upgrade_shards(folder)
        assert {n: c for n, c in tree(folder).items() if not n.endswith(".tmp")} == tree(work / "shard-set"), moment
    assert died > 5


def test_a_set_that_is_not_finished_is_upgraded_and_finished_by_make_shards(work: Path, old: Path) -> None:
    folder = old / "shard-set"
    shutil.rmtree(folder / "index")
    (folder / "shards" / "000" / "000000-002.tar").unlink()
    assert upgrade_shards(folder) and not (folder / "index").exists()
    settings = {"source": "synthetic", "speaker_folder": 1, "utterances_per_shard": 4, "min_seconds": 0.5}
    make_shards(input=work / "corpus", output=folder, **settings)
    assert tree(folder) == tree(work / "shard-set")


def test_all_below_a_folder_are_upgraded_as_they_are_one_by_one(work: Path, old: Path) -> None:
    (old / "link").symlink_to(work)
    for name in ("of another program/index/page.html", "of another program/meta.json"):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text("{}")
    found = upgrade([old])
    assert found == {old / name: True for name in ("shard-set", "codebook", "labels")}
    (old / "link").unlink()
    shutil.rmtree(old / "of another program")
    assert tree(old) == tree(work)
    assert not any(upgrade([old]).values())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"data": {"sources": {"a": {"shards": "s", "labels": 3}}}}, r"sources\.a: labels must be a folder or a list of folders"),
        ({"data": {"sources": {"a": {"shards": "s", "labels": ["l", 3]}}}}, r"sources\.a: labels must be a folder or a list"),
        ({"data": {"sources": {"a": {"shards": 3, "labels": "l"}}}}, r"sources\.a: shards must be a text"),
        ({"data": {"sources": {}, "noise": 3}}, r"config\.yaml, data: noise must be a text"),
        ({"data": {"sources": {}}, "probes": "x"}, r"config\.yaml: probes must be an object"),
        ({"data": {"sources": {}}, "probes": {"dev": [1]}}, r"config\.yaml, probes: dev must be a text"),
    ],
)
def test_a_run_whose_config_names_no_folders_is_refused_by_its_file_and_field(tmp_path: Path, config: dict, said: str) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "run.json").write_text(json.dumps({"format_version": 1, "segments": []}))
    with pytest.raises(ValueError, match=said):
        upgrade([tmp_path])


def renamed(work: Path, folder: Path) -> Path:
    """The audio of `work` under another name of its speakers."""
    index = Index.open(work / "shard-set")
    shutil.copytree(work / "shard-set", folder)
    columns = {name: getattr(index, name) for name in COLUMNS} | {"speaker": index.speaker[::-1]}
    tables = {name: getattr(index, name) for name in TABLES}
    write_index(folder, columns=columns, tables=tables, shards=index.shards, keys=index.keys, members=index.members)
    return folder


def test_names_of_labels_are_taken_from_one_set_and_never_exchanged(work: Path, old: Path, tmp_path: Path) -> None:
    other = renamed(work, tmp_path / "other")
    with pytest.raises(
        ValueError, match=rf"{old / 'labels'} was made from audio that several of the given shard sets hold under"
    ):
        upgrade([old / "shard-set", other, old / "labels"])
    copy = Path(shutil.copytree(work / "labels", tmp_path / "labels"))
    before = tree(copy)
    assert upgrade([other, copy])[copy] is False
    assert tree(copy) == before


def old_run(folder: Path, data: Path, fingerprint: str) -> Path:
    """A run of version 1 of two launches on `data`."""
    folder.mkdir()
    source = {"shards": str(data / "shard-set"), "labels": str(data / "labels")}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"sources": {"a": source}, "validation": None}}))
    prints = {"shards.a": fingerprint, "labels.a": "0"}
    heard = {"indexes": [fingerprint], "validation_indexes": [], "split_seed": 0, "validation_share": 0.1}
    record = {"format_version": 1, "fingerprints": prints, "heard": [heard]}
    record["segments"] = [{"from_step": step, "fingerprints": prints} for step in (0, 3, 6)]
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_every_launch_of_a_run_is_bound_to_the_names(work: Path, old: Path, tmp_path: Path) -> None:
    index, threads = Index.open(work / "shard-set"), threading.active_count()
    run = old_run(tmp_path / "run", old, index.fingerprint)
    assert upgrade([run]) == {old / "shard-set": True, old / "labels": True, run: True}
    record = json.loads((run / "run.json").read_text())
    for holder in (record, *record["segments"]):
        assert holder["fingerprints"] == {"shards.a": index.fingerprint, "labels.a": "0", "metadata.a": index.metadata}
    assert record["trained_on"][0]["metadata"] == {index.fingerprint: index.metadata}
    assert threading.active_count() == threads, "the lock's thread has ended"


def test_a_run_of_other_audio_than_its_set_holds_now_is_refused(old: Path, tmp_path: Path) -> None:
    run, threads = old_run(tmp_path / "run", old, "0" * 32), threading.active_count()
    before = (run / "run.json").read_bytes()
    with pytest.raises(
        ValueError, match=rf"{run / 'run.json'} records other audio than .*shard-set holds now \(shards\.a\): put"
    ):
        upgrade([run])
    assert (run / "run.json").read_bytes() == before and threading.active_count() == threads


def test_what_is_none_of_the_formats_or_newer_is_refused(old: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a shard set .* but has none of these files"):
        upgrade([tmp_path / "nothing"])
    settings = old / "shard-set" / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"format_version": 3}))
    with pytest.raises(ValueError, match=rf"{settings} has format 3, but .* update OpenWavLM"):
        upgrade([old / "shard-set"])
