"""Reading of stored files: what does not have its type, shape, range or size ends in one sentence that names the file."""

import errno
import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest

from openwavlm.runtime.files import read_array, read_json, read_lines
from openwavlm.runtime.sealed import read_sealed

WAY_OUT = "restore it from a copy"
RECORD = np.dtype([("row", "<u4"), ("pcm", "<u8")])


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    body = text.encode() + b" " * (118 - len(text)) + b"\n" if len(text) < 118 else text.encode() + b"\n"
    return b"\x93NUMPY" + version + len(body).to_bytes(2, "little") + body


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("array", [np.arange(5, dtype="<u4"), np.zeros(0, "<u4"), np.ones((3, 2), "<f4"), np.zeros(4, RECORD)])
def test_an_array_reads_back_as_it_was_saved(tmp_path: Path, array: np.ndarray, memory_map: bool) -> None:
    np.save(tmp_path / "a.npy", array)
    for shape in (array.shape, (None,) * array.ndim):
        found = read_array(tmp_path / "a.npy", array.dtype, shape=shape, remedy=WAY_OUT, memory_map=memory_map)
        assert found.dtype == array.dtype and found.shape == array.shape
        np.testing.assert_array_equal(found, array)
        assert type(found) is np.ndarray and (not memory_map or not array.size or not found.flags.writeable)


DAMAGED = {
    "empty": b"",
    "text": b"hello",
    "cut": header("{'descr': '<u4', 'fortran_order': False, 'shape': (5,), }") + bytes(19),
    "long": header("{'descr': '<u4', 'fortran_order': False, 'shape': (5,), }") + bytes(21),
    "10^12 rows": header("{'descr': '<u4', 'fortran_order': False, 'shape': (1000000000000,), }") + bytes(20),
    "10^30 rows": header("{'descr': '<u4', 'fortran_order': False, 'shape': (10" + "0" * 29 + ",), }") + bytes(20),
    "negative": header("{'descr': '<u4', 'fortran_order': False, 'shape': (-5,), }") + bytes(20),
    "fractional": header("{'descr': '<u4', 'fortran_order': False, 'shape': (5.0,), }") + bytes(20),
    "object": header("{'descr': '|O', 'fortran_order': False, 'shape': (5,), }") + bytes(40),
    "other type": header("{'descr': '<i4', 'fortran_order': False, 'shape': (5,), }") + bytes(20),
    "other byte order": header("{'descr': '>u4', 'fortran_order': False, 'shape': (5,), }") + bytes(20),
    "other shape": header("{'descr': '<u4', 'fortran_order': False, 'shape': (5, 1), }") + bytes(20),
    "other length": header("{'descr': '<u4', 'fortran_order': False, 'shape': (6,), }") + bytes(24),
    "no literal": header("{'descr': '<u4', 'fortran_order': False, 'shape': (5,), ") + bytes(20),
    "nested": header("(" * 5000) + bytes(20),
    "missing key": header("{'descr': '<u4', 'shape': (5,), }") + bytes(20),
    "not a type": header("{'descr': 'hello', 'fortran_order': False, 'shape': (5,), }") + bytes(20),
    "no mapping": header("[1, 2]") + bytes(20),
    "another version": header("{'descr': '<u4', 'fortran_order': False, 'shape': (5,), }", b"\x09\x00") + bytes(20),
    "a zip": b"PK\x03\x04" + bytes(60),
    "a pickle": b"\x80\x04K\x05." + bytes(60),
}


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_not_the_array_is_refused_with_the_files_name_and_the_way_out(
    tmp_path: Path, kind: str, memory_map: bool
) -> None:
    (tmp_path / "a.npy").write_bytes(DAMAGED[kind])
    with pytest.raises(ValueError, match=rf"{tmp_path}/a\.npy .*: {WAY_OUT}$") as found:
        read_array(tmp_path / "a.npy", "<u4", shape=(5,), remedy=WAY_OUT, memory_map=memory_map)
    assert type(found.value) is ValueError


def test_an_array_mutated_at_random_is_refused_in_a_sentence_or_has_its_type_and_shape(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(40, dtype=np.uint32))
    original, generator = (tmp_path / "a.npy").read_bytes(), random.Random(3)
    for _ in range(400):
        content = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(128)] = generator.randrange(256)
        (tmp_path / "a.npy").write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = read_array(tmp_path / "a.npy", "<u4", shape=(40,), remedy=WAY_OUT)
        except ValueError as error:
            assert type(error) is ValueError and f"{tmp_path}/a.npy" in str(error) and str(error).endswith(WAY_OUT)
        else:
            assert found.dtype == np.uint32 and found.shape == (40,)


NO_OBJECT = {
    "empty": b"",
    "cut": b'{"a": 1',
    "list": b"[1, 2]",
    "number": b"7",
    "null": b"null",
    "not UTF-8": b'{"a": "\xff\xfe\xfd"}',
    "nested": b"[" * 100_000,
    "a number of 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "zeros": bytes(50),
}


@pytest.mark.parametrize("kind", NO_OBJECT)
def test_what_is_no_json_object_is_refused_with_the_files_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.json").write_bytes(NO_OBJECT[kind])
    with pytest.raises(ValueError, match=rf"{tmp_path}/a\.json .*: {WAY_OUT}$") as found:
        read_json(tmp_path / "a.json", remedy=WAY_OUT)
    assert type(found.value) is ValueError


def test_a_field_of_another_type_or_range_is_refused_by_name(tmp_path: Path) -> None:
    content = {"n": 3, "t": "x", "o": {}, "l": [{}, 1], "f": 0.5, "b": True, "big": 2**70, "i": [1, 2], "nan": float("nan")}
    (tmp_path / "a.json").write_text(json.dumps(content))
    fields = read_json(tmp_path / "a.json", remedy=WAY_OUT)
    assert (fields.integer("n"), fields.text("t"), fields.mapping("o"), fields.number("f")) == (3, "x", {}, 0.5)
    assert fields.integers("i", np.uint8).tolist() == [1, 2] and fields.integers("i", np.uint8).dtype == np.uint8
    refused = [
        lambda: fields.integer("t"),
        lambda: fields.integer("f"),
        lambda: fields.integer("b"),
        lambda: fields.integer("big"),
        lambda: fields.integer("n", 4),
        lambda: fields.integer("n", 0, 2),
        lambda: fields.integer("absent"),
        lambda: fields.number("nan"),
        lambda: fields.number("b"),
        lambda: fields.text("n"),
        lambda: fields.mapping("i"),
        lambda: fields.objects("l"),
        lambda: fields.objects("o"),
        lambda: fields.texts("i"),
        lambda: fields.integers("i", np.uint8, 3),
        lambda: fields.integers("i", np.uint8, 1),
        lambda: fields.integers("l", np.uint8),
        lambda: fields.lists("n"),
    ]
    for read in refused:
        with pytest.raises(ValueError, match=rf"{tmp_path}/a\.json: .*: {WAY_OUT}$"):
            read()


@pytest.mark.parametrize("memory_map", [False, True])
def test_an_array_that_is_stored_column_by_column_is_refused(tmp_path: Path, memory_map: bool) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(np.arange(12, dtype=np.uint32).reshape(4, 3)))
    with pytest.raises(
        ValueError, match=rf"{tmp_path}/a\.npy must be stored row by row, but is stored column by column: {WAY_OUT}"
    ):
        read_array(tmp_path / "a.npy", "<u4", shape=(None, 3), remedy=WAY_OUT, memory_map=memory_map)


@pytest.mark.parametrize("seal", ["", None, 0, False, "0" * 32])
def test_a_checksum_that_is_empty_or_of_other_content_is_refused(tmp_path: Path, seal: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"format_version": 1, "a": 1, "seal": seal}))
    with pytest.raises(ValueError, match=rf"{tmp_path}/a\.json is damaged \(its checksum differs\): {WAY_OUT}$"):
        read_sealed(tmp_path / "a.json", remedy=WAY_OUT)


@pytest.mark.parametrize(("version", "damaged"), [(1, False), (2, True), (3, True)])
def test_a_checksum_must_be_there_from_the_version_on_that_has_one(tmp_path: Path, version: int, damaged: bool) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"format_version": version, "a": 1}))
    if damaged:
        with pytest.raises(ValueError, match=rf"{tmp_path}/a\.json is damaged \(it has no checksum\): {WAY_OUT}$"):
            read_sealed(tmp_path / "a.json", remedy=WAY_OUT, sealed_since=2)
    else:
        assert read_sealed(tmp_path / "a.json", remedy=WAY_OUT, sealed_since=2) == {"format_version": version, "a": 1}


@pytest.mark.parametrize("content", [b"a\xff\n", b"a\nb"])
def test_a_table_that_is_not_utf8_or_is_cut_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/a\.txt is damaged .*: {WAY_OUT}$"):
        read_lines(tmp_path / "a.txt", remedy=WAY_OUT)


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\nä\u2028b\r\nc\x0bd\n".encode())
    assert read_lines(tmp_path / "a.txt", remedy=WAY_OUT) == ["", "ä\u2028b\r", "c\x0bd"]


def read_any(path: Path) -> None:
    read_array(path, "<u4", remedy=WAY_OUT)


@pytest.mark.parametrize(
    "read", [read_any, lambda path: read_json(path, remedy=WAY_OUT), lambda path: read_lines(path, remedy=WAY_OUT)]
)
def test_a_missing_file_and_a_folder_are_refused_and_an_error_of_the_machine_stays_one(tmp_path: Path, monkeypatch, read) -> None:
    for path, what in ((tmp_path / "absent", "is missing"), (tmp_path, "is a folder")):
        with pytest.raises(ValueError, match=rf"{path} {what}: {WAY_OUT}"):
            read(path)

    def fail(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", str(self))

    monkeypatch.setattr(Path, "open", fail)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="x") as found:
        read(tmp_path / "x")
    assert found.value.errno == errno.EMFILE and found.value.filename == str(tmp_path / "x")
