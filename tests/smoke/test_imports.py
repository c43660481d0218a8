"""Codebooks and labels that others made: imported whole and bound to the audio, or refused in a sentence (PEERS §3 B)."""

import contextlib
import json
import os
import pickle
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans

from openwavlm.audio.frames import num_frames
from openwavlm.audio.mfcc import mfcc_features
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.labels import import_labels as import_module
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.import_codebook import import_codebook
from openwavlm.labels.import_labels import import_labels
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.labelling import LabelPacks
from openwavlm.labels.store import LabelStore
from openwavlm.labels.teacher import layer_chunks, open_teacher
from openwavlm.labels.verify import verify_labels
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.runs.launch import train
from openwavlm.runtime.sealed import sealed
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader
from programs import run_program
from runs import SETTINGS, compose
from synthetic import make_corpus, make_shard_set

CLASSES = 7


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "speech", speakers=4, utterances=4, seconds=(0.8, 2.0))


@pytest.fixture(scope="module")
def shards(corpus, tmp_path_factory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("shards"), corpus=corpus, join_short=False)


def names_of(index: Index) -> list[str]:
    return [index.recordings[int(recording)].partition("/")[2] for recording in index.recording]


def labels_of(row: int, length: int) -> list[int]:
    return ((np.arange(length) // 3 + row) % CLASSES).tolist()


class Fairseq:
    """The files of a labelling as fairseq's scripts leave them, in two splits."""

    def __init__(self, folder: Path, corpus: Path, index: Index, *, rate: int = 50) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.dictionary = folder / "dict.km.txt"
        self.dictionary.write_text("".join(f"{cluster} 1\n" for cluster in range(CLASSES)))
        self.tsv, self.km = [folder / "train.tsv", folder / "valid.tsv"], [folder / "train.km", folder / "valid.km"]
        names, samples = names_of(index), index.num_samples.tolist()
        for part, (tsv, km) in enumerate(zip(self.tsv, self.km, strict=True)):
            rows = [row for row in reversed(range(len(index))) if (row % 4 == 0) == bool(part)]
            tsv.write_text(f"{corpus}\n" + "".join(f"{names[row]}.flac\t{samples[row]}\n" for row in rows))
            lengths = [num_frames(samples[row]) if rate == 50 else 1 + (samples[row] - 400) // 160 for row in rows]
            lines = [" ".join(map(str, labels_of(row, length))) for row, length in zip(rows, lengths, strict=True)]
            km.write_text("\n".join(lines) + "\n")

    @property
    def arguments(self) -> dict:
        return {"tsv": self.tsv, "km": self.km, "dictionary": self.dictionary}


@pytest.fixture
def files(corpus, shards, tmp_path) -> Fairseq:
    return Fairseq(tmp_path / "fairseq", corpus, Index.open(shards))


# --- labels -------------------------------------------------------------------------------------------------------------


def test_labels_of_both_splits_reach_the_row_of_their_utterance(shards, files, tmp_path):
    index = Index.open(shards)
    meta = import_labels(shards, tmp_path / "labels", **files.arguments)
    store = LabelStore.open(tmp_path / "labels", index)
    for row in range(len(index)):
        assert store.read(row).tolist() == labels_of(row, num_frames(int(index.num_samples[row])))
    assert meta["num_classes"] == CLASSES and meta["unreadable_rows"] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "labels").iterdir()}
    import_labels(shards, tmp_path / "labels", **files.arguments)
    import_labels(shards, tmp_path / "again", **files.arguments)
    assert {path.name: path.read_bytes() for path in (tmp_path / "labels").iterdir()} == before
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == before


def test_labels_at_100_a_second_are_those_of_every_second_frame_and_only_on_demand(corpus, shards, tmp_path):
    index = Index.open(shards)
    files = Fairseq(tmp_path, corpus, index, rate=100)
    with pytest.raises(ValueError, match=r"but .*km has \d+: these are 100 a second, set label_rate=100 decimate=true"):
        import_labels(shards, tmp_path / "labels", **files.arguments)
    with pytest.raises(
        ValueError, match="every second one must be dropped by decimate=true, but label_rate=100 and decimate=false"
    ):
        import_labels(shards, tmp_path / "labels", **files.arguments, label_rate=100)
    import_labels(shards, tmp_path / "labels", **files.arguments, label_rate=100, decimate=True)
    store = LabelStore.open(tmp_path / "labels", index)
    for row in range(len(index)):
        assert store.read(row).tolist() == labels_of(row, 1 + (int(index.num_samples[row]) - 400) // 160)[::2]


def test_labels_without_centroids_say_so_and_can_be_trained_on_but_not_made_again(shards, files, tmp_path):
    meta = import_labels(shards, tmp_path / "labels", **files.arguments)
    assert meta["centroids"] == "unknown" and meta["format_version"] == 3 and not (tmp_path / "labels" / "codebook.npy").exists()
    packs = LabelPacks.open(tmp_path / "labels")
    assert len(packs.codebook) == CLASSES and packs.codebook.hash == meta["codebook_hash"]
    with pytest.raises(ValueError, match="no centroids, so nothing can be computed"):
        packs.codebook.assign(np.zeros((2, 39), dtype=np.float32))
    carried = assign_labels(shards, None, tmp_path / "carried", mode="rebind", carry_from=tmp_path / "labels")
    assert carried is not None and carried["codebook_hash"] == meta["codebook_hash"] and carried["centroids"] == "unknown"
    place = [f"data.sources.speech.shards={shards}", f"data.sources.speech.labels={tmp_path / 'labels'}"]
    settings = [value for value in SETTINGS if not value.startswith("mixing.noise")]
    summary = train(compose([*settings, *place, "optim.updates=2", "health.enabled=false"]), tmp_path / "run")
    assert summary["complete"]


def test_labels_without_centroids_are_verified_by_their_files_and_lengths(shards, files, tmp_path):
    index, labels = Index.open(shards), tmp_path / "labels"
    import_labels(shards, labels, **files.arguments)
    report = verify_labels(labels, index)
    assert report.passed and (report.rows, report.all_rows, report.frames) == (0, 16, 0)
    assert "16 rows have labels" in report.sentence() and "imported without their codebook" in report.sentence()
    with pytest.raises(ValueError, match=r"cannot be computed again, but teacher was given for .*: leave teacher out"):
        verify_labels(labels, index, teacher=Path("teacher"))
    made = run_program(tmp_path, "data_prep/verify.py", f"shards={shards}", "labels=labels")
    assert made.status == 0 and "nothing was computed again" in made.stdout, made
    pack = sorted(labels.glob("*.u16"))[0]
    content = bytearray(pack.read_bytes())
    content[0] ^= 1
    pack.write_bytes(content)
    report = verify_labels(labels, index)
    assert report.damaged_files == [pack] and f"1 files are damaged, first {pack}" in report.sentence()
    assert verify_labels(labels, index, checksums=False).passed
    made = run_program(tmp_path, "data_prep/verify.py", f"shards={shards}", "labels=labels")
    assert "1 problem in" in made.error()
    table = sorted(labels.glob("*.npy"))[0]
    rows = np.load(table)
    rows["frames"][0] -= 1
    np.save(table, rows)
    with pytest.raises(ValueError, match="exactly one entry a model frame"):
        verify_labels(labels, index)


def test_a_codebook_of_ours_is_not_taken_for_an_unknown_one(shards, tmp_path):
    centroids = np.random.default_rng(0).normal(size=(CLASSES, 39)).astype(np.float32)
    np.save(tmp_path / "centroids.npy", centroids)
    import_codebook(tmp_path / "centroids.npy", tmp_path / "km", features="mfcc")
    meta = assign_labels(shards, tmp_path / "km", tmp_path / "labels")
    assert meta is not None and meta["format_version"] == 3 and "centroids" not in meta
    path = tmp_path / "labels" / "meta.json"
    unknown = meta | {"centroids": "unknown"}
    path.write_text(json.dumps(sealed(unknown)))
    (tmp_path / "labels" / "codebook.npy").unlink()
    with pytest.raises(ValueError, match=r"codebook\.npy is missing"):
        LabelPacks.open(tmp_path / "labels")


def test_labels_of_the_same_files_share_their_codebook_and_those_of_others_do_not(corpus, shards, files, tmp_path):
    first = import_labels(shards, tmp_path / "labels", **files.arguments)
    others = make_shard_set(tmp_path / "others", corpus=corpus, join_short=False, source="other")
    assert import_labels(others, tmp_path / "same", **files.arguments)["codebook_hash"] == first["codebook_hash"]
    second = Fairseq(tmp_path / "second", corpus, Index.open(others))
    second.km[0].write_text(second.km[0].read_text().replace("6", "5"))
    import_labels(others, tmp_path / "other-labels", **second.arguments)
    place = [
        f"data.sources.speech.shards={shards}",
        f"data.sources.speech.labels={tmp_path / 'labels'}",
        f"+data.sources.other={{shards: {others}, labels: {tmp_path / 'other-labels'}}}",
    ]
    with pytest.raises(ValueError, match="come from different codebooks"):
        train(compose([*SETTINGS, "mixing=speech", *place]), tmp_path / "run")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: f.dictionary.write_text(""), "must list every cluster 0 … K − 1 once, but .* is empty"),
        (lambda f: f.dictionary.write_text("0 1\n1 1\n3 1\n"), "has 3 lines and lacks 2"),
        (lambda f: f.dictionary.write_text("0 1\n1 1\n"), r"in the dictionary of 2 clusters, but line 1 of .*train\.km has 6"),
        (lambda f: f.dictionary.unlink(), r"the dictionary .* does not exist"),
        (lambda f: f.km[0].write_text("1 2 3\n" + f.km[0].read_text()), r"must have \d+ labels at 50 a second, but .* has 3"),
        (lambda f: f.km[0].write_text(f.km[0].read_text() + "1 2\n"), "but has more: give matching files"),
        (lambda f: f.km[1].write_text("".join(f.km[1].read_text().splitlines(True)[:-1])), "but ends after 3: give matching files"),
        (lambda f: f.km[0].write_text(f.km[0].read_text().replace("5", "five")), "must be numbers separated by blanks"),
        (lambda f: f.km[0].write_text(f.km[0].read_text() + "\n1 2\n"), "but has more: give matching files"),
        (lambda f: f.km[0].write_text("9" * 20 + "\n" + f.km[0].read_text()), r"line 1 of .* must be numbers separated by blanks"),
        (lambda f: f.tsv[0].write_bytes(f.tsv[0].read_bytes() + b"\xe9.flac\t5\n"), r"\.tsv must be text in UTF-8, but is not"),
        (lambda f: f.dictionary.write_bytes(b"\xff\xfe0 1"), r"dict\.km\.txt must be text in UTF-8, but is not"),
        (lambda f: f.dictionary.write_text("<unk> 1\n"), r"must list clusters by number, but .* has '<unk>'"),
        (lambda f: f.tsv[0].write_text(f.tsv[0].read_text().split("\n", 1)[1]), "first line of .* must be the folder of its paths"),
        (lambda f: f.km.reverse(), r"must have \d+ labels at 50 a second|ends after 4"),
        (lambda f: f.tsv[0].write_text(f.tsv[0].read_text().replace("\t", " ")), "must be a path, a tab and a number of samples"),
        (lambda f: f.tsv[0].write_text(f.tsv[0].read_text().replace("\t1", "\t9")), "must be the same audio in manifest"),
        (lambda f: (f.tsv.pop(), f.km.pop()), "4 of 16 are in no manifest .*join_short=false from the same files"),
        (lambda f: (f.tsv.append(f.tsv[0]), f.km.append(f.km[0])), "an utterance must be labelled once"),
        (lambda f: f.km.pop(), "must name the same splits in the same order, but are 2 and 1 files"),
    ],
)  # fmt: skip
def test_label_files_that_do_not_fit_are_refused_before_anything_is_written(shards, files, tmp_path, damage, sentence):
    damage(files)
    with pytest.raises(ValueError, match=f"(?s){sentence}"):
        import_labels(shards, tmp_path / "labels", **files.arguments)
    assert not (tmp_path / "labels" / "meta.json").exists()


def test_what_editors_and_fairseq_add_to_the_files_changes_nothing(shards, files, tmp_path):
    expected = import_labels(shards, tmp_path / "plain", **files.arguments)["label_counts"]
    for path in (*files.tsv, *files.km):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    files.tsv[0].write_bytes(b"\xef\xbb\xbf" + files.tsv[0].read_bytes())
    files.dictionary.write_bytes(b"\xef\xbb\xbf" + files.dictionary.read_bytes() + b"madeupword0000 0\nmadeupword0001 0\n\n")
    assert import_labels(shards, tmp_path / "edited", **files.arguments)["label_counts"] == expected


def test_an_import_that_was_killed_begins_anew_and_gives_the_same_bytes(shards, files, tmp_path, monkeypatch):
    import_labels(shards, tmp_path / "whole", **files.arguments)
    for count in range(1, 5):
        real, calls = import_module.write_packs, []

        def deadly(*arguments, real=real, calls=calls, count=count):
            calls.append(1)
            if len(calls) == count:
                (tmp_path / "labels" / "pack-00009.u16.17.tmp").write_bytes(b"half")
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(import_module, "write_packs", deadly)
        with contextlib.suppress(KeyboardInterrupt):
            import_labels(shards, tmp_path / "labels", **files.arguments)
        monkeypatch.setattr(import_module, "write_packs", real)
    import_labels(shards, tmp_path / "labels", **files.arguments)
    found, whole = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("labels", "whole"))
    assert found == whole


def test_rows_without_labels_may_be_allowed_and_are_counted(shards, files, tmp_path):
    files.tsv.pop(), files.km.pop()
    meta = import_labels(shards, tmp_path / "labels", **files.arguments, max_missing_rate=0.25)
    assert meta["unreadable_rows"] == 4


# --- codebooks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    sizes = {"conv_dims": (8,) * 7, "dim": 16, "ffn_dim": 32, "heads": 2, "layers": 2}
    save_huggingface(WavLM(WavLMConfig(**sizes, positional_kernel=8, positional_groups=2)), folder)
    return folder


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"rm {self.victim}",)


def test_a_published_pickle_becomes_a_codebook_that_labels_as_it_does(shards, teacher, tmp_path):
    index = Index.open(shards)
    reader, model = ShardReader(index), open_teacher(teacher).model
    parts = [layer_chunks(model, [1], reader.read(row)) for row in range(6)]
    frames = np.concatenate([states[0].numpy() for row in parts for _, states in row])
    fitted = MiniBatchKMeans(CLASSES, n_init=1, random_state=0).fit(frames)
    joblib.dump(fitted, tmp_path / "km.bin")
    with pytest.raises(ValueError, match=r"only with trust=true. Or convert it .*numpy\.save\('centroids\.npy'"):
        import_codebook(tmp_path / "km.bin", tmp_path / "km", teacher=teacher, layer=1)
    book = import_codebook(tmp_path / "km.bin", tmp_path / "km", trust=True, teacher=teacher, layer=1)
    assert (book.assign(frames) == fitted.predict(frames)).mean() > 0.999
    assert Codebook.load(tmp_path / "km").features["feature_norm"] == "none"
    np.save(tmp_path / "km.npy", fitted.cluster_centers_)
    same = import_codebook(tmp_path / "km.npy", tmp_path / "again", teacher=teacher, layer=1)
    assert same.hash == book.hash
    assert assign_labels(shards, tmp_path / "km", tmp_path / "labels", teacher=teacher) is not None
    with pytest.raises(ValueError, match="holds another codebook already"):
        import_codebook(tmp_path / "km.npy", tmp_path / "km", teacher=teacher, layer=2)


def test_labels_with_their_codebook_are_bound_to_it_and_can_be_made_again(shards, files, corpus, tmp_path):
    index = Index.open(shards)
    centroids = np.random.default_rng(0).normal(scale=20, size=(CLASSES, 39)).astype(np.float32)
    np.save(tmp_path / "centroids.npy", centroids)
    book = import_codebook(tmp_path / "centroids.npy", tmp_path / "km", features="mfcc")
    reader, names = ShardReader(index), names_of(index)
    for tsv, km in zip(files.tsv, files.km, strict=True):
        paths = [line.split("\t")[0].removesuffix(".flac") for line in tsv.read_text().splitlines()[1:]]
        rows = [names.index(path) for path in paths]
        km.write_text("".join(" ".join(map(str, book.assign(mfcc_features(reader.read(row))))) + "\n" for row in rows))
    meta = import_labels(shards, tmp_path / "labels", **files.arguments, codebook=tmp_path / "km")
    assert meta["codebook_hash"] == book.hash and meta["format_version"] == 3
    assert verify_labels(tmp_path / "labels", index, share=1.0).passed
    np.save(tmp_path / "centroids.npy", centroids[:5])
    import_codebook(tmp_path / "centroids.npy", tmp_path / "small", features="mfcc")
    with pytest.raises(ValueError, match=r"lists 7 clusters, but the codebook .* has 5"):
        import_labels(shards, tmp_path / "other", **files.arguments, codebook=tmp_path / "small")


def test_a_pickle_is_not_opened_without_trust(teacher, tmp_path):
    (tmp_path / "victim").touch()
    (tmp_path / "km.bin").write_bytes(pickle.dumps(Attack(tmp_path / "victim")))
    with pytest.raises(ValueError, match="is a pickle, which can run any code"):
        import_codebook(tmp_path / "km.bin", tmp_path / "km", teacher=teacher, layer=1)
    assert (tmp_path / "victim").exists()


def test_what_is_no_codebook_is_refused(teacher, tmp_path):
    def refused(sentence: str, name: str = "km.npy", **arguments: object) -> None:
        with pytest.raises(ValueError, match=sentence):
            import_codebook(tmp_path / name, tmp_path / "km", teacher=teacher, layer=1, **arguments)

    refused(r"does not exist \(key input\)")
    np.save(tmp_path / "km.npy", np.zeros((5, 8)))
    refused(r"of the shape \(clusters, 16\) for these features, but those of .* are \(5, 8\)")
    np.save(tmp_path / "km.npy", np.full((5, 16), 1e60))
    refused("must be finite in float32, but some of")
    for kind in (str, complex, bool, int):
        np.save(tmp_path / "km.npy", np.ones((5, 16)).astype(kind))
        refused("centroids must be floating-point numbers, but those of")
    np.savez(tmp_path / "km.npz", centroids=np.ones((5, 16)))
    for trust in (False, True):
        refused("is an archive, not an array or a joblib file: save the centroids alone", "km.npz", trust=trust)
    (tmp_path / "km.npy").write_bytes(b"text")
    refused("must be an array of centroids, but cannot be read")
    (tmp_path / "km.bin").write_bytes(b"text")
    refused("must be a joblib file, but cannot be read", "km.bin", trust=True)
    joblib.dump({"a": 1}, tmp_path / "km.bin")
    refused("must hold a fitted k-means, but holds dict", "km.bin", trust=True)


def test_the_scripts_take_what_the_functions_take(shards, files, tmp_path):
    np.save(tmp_path / "centroids.npy", np.random.default_rng(0).normal(size=(CLASSES, 39)).astype(np.float32))
    made = run_program(tmp_path, "data_prep/import_codebook.py", "input=centroids.npy", "output=km", "features=mfcc")
    assert made.status == 0 and "7 clusters of 39 dimensions -> km" in made.stderr, made
    lists = [f"{name}=[{','.join(map(str, paths))}]" for name, paths in (("tsv", files.tsv), ("km", files.km))]
    command = ["data_prep/import_labels.py", f"shards={shards}", *lists, f"dictionary={files.dictionary}", "output=labels"]
    made = run_program(tmp_path, *command)
    assert made.status == 0 and "16 rows" in made.stderr, made
    stats = json.loads((tmp_path / "labels" / "stats.json").read_text())
    assert stats["command"] == "import_labels" and stats["used_clusters"] == CLASSES
