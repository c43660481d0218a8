"""Targets of fine-tuning: symbols, tables, splits, and what is refused."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.batches.settings import Batching
from openwavlm.downstream.data import OpenTask
from openwavlm.downstream.settings import Task, TaskData
from openwavlm.downstream.split import TEST, TRAINING, UNUSED, VALIDATION, split_parts
from openwavlm.downstream.targets import read_table
from openwavlm.downstream.vocabulary import Vocabulary, frames_needed, prepared
from openwavlm.shards.index import Index
from tasks import make_task_shards, text_of

BATCH = Batching(seconds=8.0, micro_seconds=4.0, max_seconds=4.0, min_seconds=0.1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_task_shards(tmp_path_factory.mktemp("corpus"))


def opened(shards: Path, task: Task | None = None, batch: Batching = BATCH, **data) -> OpenTask:
    data = {"sources": {"speech": {"shards": str(shards)}}, "validation_share": 0.0, **data}
    return OpenTask(task or Task(), TaskData(**data), batch, seed=1)


def test_characters_have_the_order_of_published_vocabularies_and_come_back_as_text():
    vocabulary = Vocabulary.of(["b a", "ca"], phones=False)
    assert vocabulary.symbols == ("<pad>", "<s>", "</s>", "<unk>", "|", "a", "b", "c")
    assert vocabulary.encode("b a") == [6, 4, 5]
    assert vocabulary.decode([6, 4, 5]) == "b a"
    assert vocabulary.greedy([0, 6, 6, 0, 6, 4, 4, 5, 0]) == "bb a", "a blank separates two equal letters"
    assert vocabulary.greedy([4, 4, 6, 4, 0, 4]) == "b", "spaces at the ends are left out"
    assert vocabulary.greedy([]) == ""


def test_phones_are_the_symbols_between_spaces():
    vocabulary = Vocabulary.of(["AA B AA", "SH"], phones=True)
    assert vocabulary.symbols[4:] == ("AA", "B", "SH")
    assert vocabulary.decode(vocabulary.encode("SH AA")) == "SH AA" and vocabulary.unknown("B X B X") == ["X"]
    with pytest.raises(ValueError, match="X is not in the vocabulary"):
        vocabulary.encode("B X")


def test_a_special_symbol_in_a_target_is_refused():
    with pytest.raises(ValueError, match=r"<s> is a special symbol of CTC"):
        Vocabulary.of(["AA <s>"], phones=True)


@pytest.mark.parametrize("seed", range(20))
def test_ctc_can_emit_a_target_exactly_where_there_are_as_many_frames_as_it_needs(seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(1, 4, (1 + seed % 6,), generator=generator).tolist()
    needed = frames_needed(numbers)
    for frames in (needed - 1, needed, needed + 1):
        log_probs = torch.randn(max(1, frames), 1, 4, generator=generator).log_softmax(-1)
        loss = torch.nn.functional.ctc_loss(
            log_probs, torch.tensor([numbers]), torch.tensor([frames]), torch.tensor([len(numbers)]), reduction="sum"
        )
        assert bool(torch.isfinite(loss)) == (frames >= needed), (numbers, frames)


def test_replacements_come_before_case_and_single_spaces_last():
    task = Task(letters="upper", replace=["-= ", "é=e", "!="])
    assert prepared("a-bé  c! ", task) == "A BE C"
    assert prepared("a-b", Task()) == "a-b"


def test_every_row_has_its_own_target(shards):
    task = opened(shards)
    index = task.indexes["speech"]
    for row, key in enumerate(index.keys):
        speaker, number = (int(part) for part in key[1:].split("-")[:2])
        assert task.targets["speech"][row] == text_of(speaker, number)
        assert task.vocabulary is not None and task.vocabulary.decode(task.numbers["speech"][row] or []) == text_of(
            speaker, number
        )


def test_a_table_names_the_rows_that_are_used_by_key_or_recording(shards, tmp_path):
    index = Index.open(shards)
    recording = index.recordings[int(index.recording[1])].partition("/")[2]
    table = tmp_path / "targets.tsv"
    table.write_text(f'key\tmood\tother\n{index.keys[0]}\t"good\t1\n{recording}\tbad\t2\n')
    task = opened(shards, Task(name="sid", field="mood", table=str(table)))
    assert task.targets["speech"][:3] == ['"good', "bad", None] and task.classes == ('"good', "bad")
    assert (task.parts["speech"][2:] == UNUSED).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("key\ttext\na\t1\na\t2\n", "line 3: a has another target before"),
        ("key\tword\na\t1\n", "must have the columns key and text"),
        ("key\ttext\na\n", "line 2: it must have 2 fields, but has 1"),
        ("", "but has none"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path, content, message):
    (tmp_path / "t.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.tsv", Task())


@pytest.mark.filterwarnings("ignore")  # dill's own, in datasets
@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_a_column_of_a_hugging_face_dataset_is_a_table_with_classes_by_their_names(shards, tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    keys = Index.open(shards).keys[:3]
    features = {
        "mood": datasets.ClassLabel(names=["bad", "good"]),
        "score": datasets.Value("int32"),
        "key": datasets.Value("string"),
    }
    columns = {"key": keys, "mood": [1, 0, 1], "score": [7, 8, 7]}
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    path = tmp_path / ("moods.parquet" if kind == "parquet" else "moods")
    if kind == "parquet":
        data.to_parquet(path)
    else:
        data.save_to_disk(path, num_shards=2)
    (tmp_path / "moods.tsv").write_text(
        "key\tmood\n" + "".join(f"{key}\t{mood}\n" for key, mood in zip(keys, ["good", "bad", "good"], strict=True))
    )
    moods, lines = (opened(shards, Task(name="sid", field="mood", table=str(one))) for one in (path, tmp_path / "moods.tsv"))
    assert moods.classes == ("bad", "good") and moods.fingerprints() == lines.fingerprints()
    assert read_table(path, Task(name="sid", field="score")) == dict(zip(keys, ["7", "8", "7"], strict=True))


def write_parquet(path: Path, columns: dict[str, list], names: list[str] | None = None) -> Path:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table(columns)
    if names is not None:
        features = {"text": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=2)
    return path


def test_a_parquet_file_may_hold_texts_and_numbers_and_other_columns(tmp_path):
    columns = {"audio": [b"", b"", b""], "text": ["it's", '"b', ""], "key": ["x", "y", "z"], "age": [3.5, 1.0, 2.0]}
    path = write_parquet(tmp_path / "t.parquet", columns)
    assert read_table(path, Task()) == {"x": "it's", "y": '"b', "z": ""}
    assert read_table(path, Task(name="sid", field="age")) == {"x": "3.5", "y": "1.0", "z": "2.0"}


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ({"key": ["x", "y"], "text": ["a", None]}, None, r"t.parquet, row 1: text must be a text or number, but is None"),
        ({"key": ["x", None], "text": ["a", "b"]}, None, r"row 1: key must be a text or number, but is None"),
        ({"key": ["x"], "text": [["a", "b"]]}, None, r"row 0: text must be a text or number, but is \['a', 'b'\]"),
        ({"key": ["x", "y", "z"], "text": [0, 1, -1]}, ["no", "yes"], "row 2: text is the class -1, but there are 2 names"),
        ({"key": ["x"], "text": [2]}, ["no", "yes"], "row 0: text is the class 2, but there are 2 names"),
        ({"key": ["x", "y", "x"], "text": ["a", "b", "c"]}, None, "row 2: x has another target before"),
        ({"id": ["x"], "text": ["a"]}, None, "must have the columns key and text .* but has id, text"),
    ],
)
def test_a_wrong_parquet_file_is_refused_with_its_row(tmp_path, columns, names, message):
    path = write_parquet(tmp_path / "t.parquet", columns, names)
    with pytest.raises(ValueError, match=message):
        read_table(path, Task())


def test_a_damaged_parquet_file_or_folder_is_refused_by_name(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1, and then nothing of it")
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    with pytest.raises(ValueError, match=r"t\.parquet cannot be read"):
        read_table(tmp_path / "t.parquet", Task())
    with pytest.raises(ValueError, match=r"data\.arrow cannot be read"):
        read_table(tmp_path, Task())
    (tmp_path / "data.arrow").write_bytes(b"no arrow")
    with pytest.raises(ValueError, match=r"data\.arrow cannot be read"):
        read_table(tmp_path, Task())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "but has no state.json: write one by Dataset.save_to_disk"),
        ({"test/state.json": "{}", "train/state.json": "{}"}, "has no state.json: name one of its parts, test, train"),
        ({"state.json": "{}"}, "state.json does not list the data files"),
        ({"state.json": "["}, "state.json does not list the data files"),
        ({"state.json": '{"_data_files": []}'}, "is read by pyarrow, which is not installed: pip install pyarrow"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused_and_so_is_one_where_pyarrow_is_missing(tmp_path, files, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path, Task())


def test_a_missing_field_is_refused_with_those_that_there_are(shards):
    with pytest.raises(ValueError, match=r"task.field=emotion must be a text or number .* its fields are .*word"):
        opened(shards, Task(name="sid", field="emotion"))


def test_empty_targets_are_counted_and_refused(tmp_path):
    shards = make_task_shards(tmp_path, speakers=2, utterances=2, text={(1, 1): ""})
    with pytest.raises(ValueError, match=r"1 of 4 rows of .* have none \(s1-1-"):
        opened(shards)
    with pytest.raises(ValueError, match="4 of 4 rows"):
        opened(shards, Task(replace=["a=", "b=", "c="]))


def test_letters_that_only_held_out_rows_have_are_listed_and_can_be_mapped(tmp_path):
    shards = make_task_shards(tmp_path, speakers=3, utterances=2, text={(0, 0): "zé b", (0, 1): "é"})
    with pytest.raises(ValueError, match=r"2 letters of held-out rows .* \('é' in 2, 'z' in 1 rows\)"):
        opened(shards, test_speakers=["s0"])
    task = opened(shards, Task(replace=["é=a", "z="]), test_speakers=["s0"])
    assert sorted(target for target in task.targets["speech"] if target)[0] == "a"


def test_one_class_alone_and_a_class_that_is_only_held_out_are_refused(tmp_path):
    one = make_task_shards(
        tmp_path / "one", speakers=2, utterances=2, word=dict.fromkeys(itertools.product(range(2), range(2)), "x")
    )
    with pytest.raises(ValueError, match=r"needs at least two classes, but all 4 training rows have task.field=word = 'x'"):
        opened(one, Task(name="sid", field="word"))
    new = make_task_shards(tmp_path / "new", speakers=3, utterances=2, word={(0, 0): "new"})
    with pytest.raises(ValueError, match=r"1 classes of held-out rows .*'new' in 1"):
        opened(new, Task(name="sid", field="word"), test_speakers=["s0"])


def test_rows_that_cannot_be_trained_on_are_counted_by_reason(tmp_path):
    shards = make_task_shards(tmp_path, speakers=2, utterances=3, text={(0, 0): "ab" * 40})
    task = opened(shards, batch=dataclasses.replace(BATCH, max_seconds=1.1))
    assert {reason: len(keys) for reason, keys in task.left_out.items()} == {"too long": 2, "with fewer frames than symbols": 1}
    assert task.left_out["with fewer frames than symbols"][0].startswith("s0-0-")
    assert int((task.parts["speech"] == TRAINING).sum()) == 3
    with pytest.raises(ValueError, match=r"no training row can be used \(6 too short\)"):
        opened(shards, batch=dataclasses.replace(BATCH, min_seconds=3.9))


# --- the split ----------------------------------------------------------------------------------------------------------


def test_named_speakers_are_held_out_and_the_others_are_trained_on(shards):
    task = opened(shards, validation_speakers=["s1"], test_speakers=["s3"])
    index = task.indexes["speech"]
    for key, part in zip(index.keys, task.parts["speech"].tolist(), strict=True):
        assert part == {"s1": VALIDATION, "s3": TEST}.get(key[:2], TRAINING)


@pytest.mark.parametrize("seed", range(6))
def test_shares_hold_out_whole_speakers_and_leave_one_in_each_part(shards, seed):
    task = opened(shards, validation_share=0.05, test_share=0.05, split_seed=seed)
    of_speaker: dict[int, set[int]] = {}
    for speaker, part in zip(task.indexes["speech"].speaker.tolist(), task.parts["speech"].tolist(), strict=True):
        of_speaker.setdefault(speaker, set()).add(part)
    assert all(len(parts) == 1 for parts in of_speaker.values())
    assert set.union(*of_speaker.values()) == {TRAINING, VALIDATION, TEST}


def test_where_the_speaker_is_the_target_utterances_are_split(shards):
    task = opened(shards, Task(name="sid"), validation_share=0.3)
    assert task.split == "utterance" and task.classes == ("s0", "s1", "s2", "s3", "s4")
    assert {VALIDATION, TRAINING} == set(task.parts["speech"].tolist())
    assert task.numbers["speech"] == [[task.classes.index(target)] for target in task.targets["speech"]]


def test_added_rows_move_no_speaker(shards, tmp_path):
    more = make_task_shards(tmp_path, speakers=7, utterances=1)
    few, many = Index.open(shards), Index.open(more)
    data = TaskData(sources={"a": {"shards": str(shards)}}, validation_share=0.4, test_share=0.3, split_seed=4)
    both = TaskData(sources={"a": {"shards": str(more)}}, validation_share=0.4, test_share=0.3, split_seed=4)

    def parts(index: Index, of: TaskData) -> dict[str, int]:
        found = split_parts({"a": index}, {"a": np.ones(len(index), dtype=bool)}, of, "speaker")["a"]
        return {index.speakers[s]: part for s, part in zip(index.speaker.tolist(), found.tolist(), strict=True)}

    before, after = parts(few, data), parts(many, both)
    assert all(after[speaker] == part for speaker, part in before.items())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"test_speakers": ["s9"]}, "s9 is not: there are s0, s1"),
        ({"test_speakers": ["s1"], "validation_speakers": ["s1"]}, "s1 is in data.validation_speakers and data.test_speakers"),
        ({"validation_speakers": ["s0", "s1", "s2", "s3", "s4"]}, "no row is left to train on"),
        ({"validation_share": 0.2, "test_share": 0.2, "test": {"other": {"shards": "x"}}}, "data.test_share must be 0"),
        ({"validation_share": 0.7, "test_share": 0.5}, "their sum too"),
        ({"validation": {"speech": {"shards": "x"}}}, "speech is there twice"),
        ({"validation": {"dev": {"labels": "x"}}}, "data.validation.dev.labels is not a known key"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(shards, data, message):
    with pytest.raises(ValueError, match=message):
        opened(shards, **data)


def test_training_and_test_may_not_share_speakers_or_audio_unless_allowed(shards, tmp_path, caplog):
    same = {"test": {"again": {"shards": str(shards)}}}
    with pytest.raises(ValueError, match="5 speakers of the training part are in the validation or test part"):
        opened(shards, **same)
    with pytest.raises(ValueError, match="20 rows of the test part have audio of the training part"):
        opened(shards, **same, split="utterance")
    opened(shards, **same, allow_overlap=True)
    assert "20 rows of the test part" in caplog.text


def test_held_out_rows_are_planned_once_each_and_whole(shards):
    task = opened(shards, test_speakers=["s1", "s4"], batch=dataclasses.replace(BATCH, max_seconds=1.0))
    rows = [row for spec in task.specs(TEST) for row in spec.rows.tolist()]
    assert sorted(rows) == np.flatnonzero(task.parts["speech"] == TEST).tolist() and len(rows) == 8
    index = task.indexes["speech"]
    for spec in task.specs(TEST):
        whole = 1 + (index.num_samples[spec.rows].astype(np.int64) - 400) // 320
        assert (spec.num_frames == whole).all() and not spec.start_frame.any()
    assert len([row for spec in task.specs(TEST, 1.0) for row in spec.rows]) < 8


def test_the_identity_of_the_data_depends_on_targets_and_symbols(shards, tmp_path):
    first, again = opened(shards).fingerprints(), opened(shards).fingerprints()
    assert first == again
    upper = opened(shards, Task(letters="upper")).fingerprints()
    assert {name for name in first if first[name] != upper[name]} == {"targets.speech", "symbols"}
    assert opened(shards, test_speakers=["s1"]).plan_key() != opened(shards).plan_key()
