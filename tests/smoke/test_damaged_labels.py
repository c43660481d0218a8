"""Labels that are not those that were written are refused at start, resume and replay, by a sentence that names the file."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.store import LabelStore
from openwavlm.runs.launch import train
from openwavlm.runs.replay import rebuild_update
from openwavlm.shards.index import Index
from runs import TINY_MODEL, compose, launch, table, weights
from synthetic import make_shard_set

SETTINGS = [
    "experiment=wavlm_nano",
    "name=test",
    *TINY_MODEL,
    "batch.seconds=8",
    "batch.micro_seconds=4",
    "batch.max_seconds=2",
    "optim.updates=20",
    "optim.warmup_updates=0",
    "callbacks.checkpoint_every=2",
    "callbacks.validate_every=0",
    "data.validation_share=0.3",
    "loader.workers=0",
]
PACKS = 4


class Place:
    """`labels` (of the run) and `labels-2` (by another codebook) of one shard set, `others-labels` of another one by the first
    codebook: all of equal shape, in packs of equal size; `labels-wide`: all shards in one pack; `run`: two updates."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.labels, self.run = folder, folder / "labels", folder / "run"
        for name, seed in (("shards", 0), ("others", 5)):
            settings = {"speakers": 8, "utterances": 2, "seconds": (1.5, 1.5), "utterances_per_shard": 4}
            make_shard_set(folder / "work" / name, **settings, seed=seed).rename(folder / name)
        for number in (1, 2):
            settings = {"clusters": 10, "engine": "minibatch", "min_frames_per_cluster": 20, "validation_share": 0.3}
            fit_codebook([folder / "shards"], folder / f"codebook-{number}", **settings, seed=number)
        for name, shards, number in (
            ("labels", "shards", 1),
            ("labels-2", "shards", 2),
            ("others-labels", "others", 1),
            ("labels-wide", "shards", 1),
        ):
            assign_labels(
                folder / shards, folder / f"codebook-{number}", folder / name, packs=1 if name == "labels-wide" else PACKS
            )
        assert launch([*SETTINGS, *self.data(), "stop_after=2"], self.run) == [0]

    def data(self, labels: str = "labels") -> list[str]:
        return [
            f"data.sources.speech.shards={self.folder / 'shards'}",
            f"data.sources.speech.labels={self.folder / labels}",
        ]

    def replace(self, pattern: str, source: str) -> None:
        """Files of another labelling in the place of the run's."""
        found = list((self.folder / source).glob(pattern))
        assert found
        for file in found:
            assert file.stat().st_size == (self.labels / file.name).stat().st_size or file.name == "meta.json"
            shutil.copy(file, self.labels / file.name)

    def swap(self, first: str, second: str) -> None:
        one, other = self.labels / first, self.labels / second
        content = one.read_bytes()
        assert len(content) == other.stat().st_size and content != other.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)

    def flip(self, file: str, place: int) -> None:
        """Changes the lowest bit of a byte; of a label, which stays one of the ten."""
        content = bytearray((self.labels / file).read_bytes())
        content[place] ^= 1
        (self.labels / file).write_bytes(content)

    def edit(self, change: Callable[[dict], object]) -> None:
        meta = json.loads((self.labels / "meta.json").read_text())
        change(meta)
        (self.labels / "meta.json").write_text(json.dumps(meta))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("made"))


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Iterator[Place]:
    """The place; what a test does to the labels is undone."""
    names = ("labels", "labels-wide")
    for name in names:
        shutil.copytree(made.folder / name, tmp_path / "kept" / name)
    yield made
    for name in names:
        shutil.rmtree(made.folder / name)
        shutil.copytree(tmp_path / "kept" / name, made.folder / name)


def start(place: Place, tmp_path: Path) -> None:
    train(compose([*SETTINGS, *place.data()]), tmp_path / "run")


def resume(place: Place, tmp_path: Path) -> None:
    run = shutil.copytree(place.run, tmp_path / "run")
    train(compose([*SETTINGS, *place.data()]), run)


def replay(place: Place, tmp_path: Path) -> None:
    rebuild_update(place.run, 2)


def huge_header(place: Place) -> None:
    file = place.labels / "pack-00002.rows.npy"
    content = file.read_bytes()
    claimed = content.replace(b"'shape': (4,), }            ", b"'shape': (1000000000000,), }")
    assert len(claimed) == len(content) and claimed != content
    file.write_bytes(claimed)


def object_table(place: Place) -> None:
    np.save(place.labels / "pack-00002.rows.npy", np.array([{}, 1], dtype=object), allow_pickle=True)


def copy_of_format_1(meta: dict) -> None:
    """As older versions wrote it, without a checksum of its own, and with another split."""
    del meta["seal"]
    meta["format_version"] = 1
    meta["packs"][1]["labels_checksum"] = "0" * 32


DAMAGES: dict[str, tuple[Callable[[Place], object], str]] = {
    "a byte of a pack": (lambda place: place.flip("pack-00003.u16", 100), r"pack-00003\.u16 must hold the labels"),
    "the last byte of a pack": (lambda place: place.flip("pack-00000.u16", -2), r"pack-00000\.u16 must hold the labels"),
    "two packs swapped": (lambda place: place.swap("pack-00001.u16", "pack-00002.u16"), r"pack-00001\.u16 must hold the labels"),
    "two tables swapped": (
        lambda place: place.swap("pack-00001.rows.npy", "pack-00002.rows.npy"),
        r"pack-00001\.rows\.npy must list the audio of .*, by key and content",
    ),
    "a pack of another labelling": (
        lambda place: place.replace("pack-00001.u16", "labels-2"),
        r"pack-00001\.u16 must hold the labels",
    ),
    "tables of other audio": (
        lambda place: place.replace("pack-*.rows.npy", "others-labels"),
        r"pack-00000\.rows\.npy must list the audio",
    ),
    "packs and tables of other audio": (
        lambda place: place.replace("pack-*", "others-labels"),
        r"pack-00000\.rows\.npy must list the audio",
    ),
    "meta.json of other audio": (lambda place: place.replace("meta.json", "others-labels"), r"every shard of .*shards must have"),
    "meta.json of another codebook": (
        lambda place: place.replace("meta.json", "labels-2"),
        r"labels/codebook\.npy must have the hash",
    ),
    "meta.json and codebook of another": (
        lambda place: [place.replace(name, "labels-2") for name in ("meta.json", "codebook.npy")],
        r"pack-0000\d\.u16 must hold the labels",
    ),
    "all but the codebook of another": (
        lambda place: [place.replace(name, "labels-2") for name in ("meta.json", "pack-*")],
        r"labels/codebook\.npy must have the hash",
    ),
    "another codebook": (
        lambda place: place.replace("codebook.npy", "labels-2"),
        r"labels/codebook\.npy must have the hash",
    ),
    "a split in meta.json": (
        lambda place: place.edit(lambda meta: meta["codebook_fitted"].update(validation_share=0.4)),
        r"labels/meta\.json is damaged \(its own checksum",
    ),
    "a checksum in an old meta.json": (
        lambda place: place.edit(copy_of_format_1),
        r"pack-00001\.u16 must have the checksum 000000000000 that meta\.json names",
    ),
    "no packs in meta.json": (lambda place: place.edit(lambda meta: meta.pop("packs")), r"labels/meta\.json: the field packs is"),
    "a path in meta.json": (
        lambda place: place.edit(lambda meta: meta["packs"][0].update(name="../labels-2/pack-00000")),
        r"labels/meta\.json, packs\[0\]: name must be a name as pack-00000",
    ),
    "half a meta.json": (
        lambda place: (place.labels / "meta.json").write_text('{"format_version": 3,'),
        r"labels/meta\.json is damaged",
    ),
    "a header of 10^12 rows": (huge_header, r"pack-00002\.rows\.npy must be a table of 4 rows"),
    "a table of objects": (object_table, r"pack-00002\.rows\.npy must have \d+ bytes, but has"),
    "a cut pack": (
        lambda place: (place.labels / "pack-00002.u16").write_bytes(b"12"),
        r"pack-00002\.u16 must have \d+ bytes, but has 2",
    ),
    "no table": (lambda place: (place.labels / "pack-00002.rows.npy").unlink(), r"pack-00002\.rows\.npy must have .*is absent"),
    "an empty codebook": (lambda place: (place.labels / "codebook.npy").write_bytes(b""), r"labels/codebook\.npy"),
}


@pytest.mark.parametrize("entry", [start, resume, replay])
@pytest.mark.parametrize("damage", DAMAGES)
def test_labels_that_are_not_those_that_were_written_are_refused_with_the_files_name(
    place: Place, tmp_path: Path, damage: str, entry: Callable[[Place, Path], None]
) -> None:
    apply, sentence = DAMAGES[damage]
    apply(place)
    with pytest.raises(ValueError, match=sentence) as refusal:
        entry(place, tmp_path)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run" / "checkpoints").exists() or [*(tmp_path / "run" / "checkpoints").glob("*.ckpt")] == [
        tmp_path / "run" / "checkpoints" / "step-00000002.ckpt"
    ], "no update is made"


@pytest.mark.parametrize("entry", [resume, replay])
def test_a_run_goes_on_with_no_other_labelling_though_it_is_whole(
    place: Place, tmp_path: Path, entry: Callable[[Place, Path], None]
) -> None:
    shutil.rmtree(place.labels)
    shutil.copytree(place.folder / "labels-2", place.labels)
    with pytest.raises(ValueError, match=rf"labels\.speech.*{place.labels}"):
        entry(place, tmp_path)


# --- large labellings: a sample at the start, the rest beside the training ----------------------------------------------


def unsampled(place: Place) -> int:
    """Byte of the wide pack in a shard that is not read at the start."""
    index, file = Index.open(place.folder / "shards"), place.folder / "labels-wide" / "pack-00000.u16"
    store = LabelStore.open(file.parent, index, at_once_bytes=0)
    shard = store._checked.index(False)
    assert store._checked.count(True) == 1
    return 2 * sum(len(store.read(row)) for row in range(int(index.first_row[shard])))


def write_error(path: Path) -> None:
    """Writes what a launch raises into a file."""
    from openwavlm.runs import launch as module

    real = module.train

    def train(*arguments: object) -> object:
        try:
            return real(*arguments)
        except ValueError as error:
            path.write_text(str(error))
            raise SystemExit(2) from None

    module.train = train


@pytest.mark.parametrize("world_size", [1, 2])
def test_damage_outside_the_sample_stops_the_run_before_its_first_checkpoint(
    place: Place, tmp_path: Path, world_size: int
) -> None:
    wide, place_of_byte = place.folder / "labels-wide", unsampled(place)
    content = bytearray((wide / "pack-00000.u16").read_bytes())
    content[place_of_byte] ^= 1
    (wide / "pack-00000.u16").write_bytes(content)
    overrides = [*SETTINGS, *place.data("labels-wide"), "loader.label_check_mib=0", "stop_after=4"]
    codes = launch(overrides, tmp_path / "run", patch=partial(write_error, tmp_path / "error"), world_size=world_size)
    assert codes == [2] * world_size
    found = (tmp_path / "error").read_text().removeprefix("rank 0: ")
    assert found.startswith(f"{wide / 'pack-00000.u16'} must hold the labels that meta.json names")
    assert not list((tmp_path / "run").rglob("*.ckpt*"))


def test_a_run_with_a_sample_is_the_run_with_all(place: Place, tmp_path: Path) -> None:
    overrides = [*SETTINGS, *place.data("labels-wide"), "stop_after=4"]
    for name, more in (("whole", []), ("sample", ["loader.label_check_mib=0"])):
        assert launch([*overrides, *more], tmp_path / name) == [0]
    one, other = (weights(tmp_path / name, 4) for name in ("whole", "sample"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    kept = [[(row["loss"], row["masked_frames"]) for row in table(tmp_path / name)] for name in ("whole", "sample")]
    assert kept[0] == kept[1]
    before = weights(place.run, 2)
    assert all(torch.equal(value, weights(tmp_path / "sample", 2)[name]) for name, value in before.items())
