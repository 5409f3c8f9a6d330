"""Files written part by part: whole or not at all, and only what belongs together."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nearfar.data import parts as module
from nearfar.data.parts import PartFolder, finished_summary
from nearfar.errors import DataFileError, InputError

SCHEMA = pa.schema([("n", pa.int64())])


def table(*numbers):
    return pa.table({"n": list(numbers)}, schema=SCHEMA)


def test_parts_are_joined_in_the_order_of_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ROW_GROUP", 3)
    path = tmp_path / "new" / "rows.parquet"
    with PartFolder(path, "key") as parts:
        for number in (2, 0, 11, 1):
            parts.write(number, table(number, number), {"rows": 2})
        assert sorted(parts.finished()) == [0, 1, 2, 11]
        assert not path.exists()
        parts.join(SCHEMA, {"rows": 8})
    assert pq.read_table(path)["n"].to_pylist() == [0, 0, 1, 1, 2, 2, 11, 11]
    assert pq.ParquetFile(path).num_row_groups == 3  # the last is empty
    assert [p.name for p in path.parent.iterdir()] == ["rows.parquet"]
    assert finished_summary(path, "key") == {"rows": 8}
    assert finished_summary(path, "other") is None


def test_parts_stay_for_the_same_key_and_layout_only(tmp_path):
    path = tmp_path / "rows.parquet"
    with PartFolder(path, "key", "a") as parts:
        parts.write(0, table(1), {"rows": 1})
    with PartFolder(path, "key", "a") as parts:
        assert parts.finished() == {0: {"rows": 1}}
    for key, layout in (("key", "b"), ("other", "b")):
        with PartFolder(path, key, layout) as parts:
            assert parts.finished() == {}
            parts.write(0, table(1), {"rows": 1})


def test_a_part_that_fails_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"

    def fails(written, target, **_):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with PartFolder(path, "key") as parts:
        with monkeypatch.context() as patched:
            patched.setattr(pq, "write_table", fails)
            with pytest.raises(DataFileError, match="No space left"):
                parts.write(0, table(1), {"rows": 1})
        assert parts.finished() == {}
        assert sorted(p.name for p in parts.folder.iterdir()) == ["lock", "parts.json"]


def test_a_join_that_is_interrupted_keeps_the_parts_and_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    with PartFolder(path, "old") as parts:
        parts.write(0, table(1), {})
        parts.join(SCHEMA, {})

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with PartFolder(path, "new") as parts:
        parts.write(0, table(2), {})
        with monkeypatch.context() as patched:
            patched.setattr(pq.ParquetWriter, "write_table", interrupted)
            with pytest.raises(KeyboardInterrupt):
                parts.join(SCHEMA, {})
    assert pq.read_table(path)["n"].to_pylist() == [1]
    with PartFolder(path, "new") as parts:
        assert list(parts.finished()) == [0]
        parts.join(SCHEMA, {})
    assert pq.read_table(path)["n"].to_pylist() == [2]


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "rows.parquet"
    with PartFolder(path, "key"), pytest.raises(InputError, match="another process"), PartFolder(path, "key"):
        pass


@pytest.mark.parametrize(("name", "message"), [("rows.csv", "use .parquet"), ("folder.parquet", "this is a folder")])
def test_outputs_of_another_kind(tmp_path, name, message):
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(DataFileError, match=message):
        PartFolder(tmp_path / name, "key")


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(table(1), path)
    with pytest.raises(DataFileError, match="choose another name"):
        PartFolder(path, "key")
    assert pq.read_table(path)["n"].to_pylist() == [1]


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataFileError), PartFolder(tmp_path / "file" / "rows.parquet", "key"):
        pass
