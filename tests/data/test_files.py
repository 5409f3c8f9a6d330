from __future__ import annotations

import gzip
import os
import stat
from pathlib import Path

import pytest

from nearfar.data.files import content_lines, read_lines, replacing, writing_text
from nearfar.errors import DataFileError


def test_lines_keep_their_numbers_across_blank_lines_and_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n  \nfour\nfive")
    found = [(place.number, line) for place, line in content_lines(path)]
    assert found == [(1, "one"), (4, "four"), (5, "five")]


def test_only_line_feeds_end_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("a\u2028b\x0bc\rd\ne".encode())
    assert [line for _, line in read_lines(path)] == ["a\u2028b\x0bc\rd\n", "e"]


def test_bytes_that_are_not_utf8_name_their_line(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"fine\nk\xf6hler\n")
    with pytest.raises(DataFileError, match=r"line 2: not UTF-8 text .* at byte 2 of the line") as caught:
        list(read_lines(path))
    assert caught.value.line == 2
    assert caught.value.path == path


def test_missing_file_folder_and_permission_become_data_file_errors(tmp_path, monkeypatch):
    with pytest.raises(DataFileError, match="no such file"):
        list(read_lines(tmp_path / "none"))
    with pytest.raises(DataFileError, match="this is a folder"):
        list(read_lines(tmp_path))

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root, as in many containers, may read everything
    with pytest.raises(DataFileError, match="permission denied"):
        list(read_lines(tmp_path / "locked"))
    with pytest.raises(DataFileError, match="permission denied"), writing_text(tmp_path / "locked"):
        pass


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_real_permissions(tmp_path):
    path = tmp_path / "locked"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(DataFileError, match="permission denied"):
        list(read_lines(path))


def test_gzip_is_read_and_a_torn_one_refused(tmp_path):
    path = tmp_path / "a.txt.gz"
    whole = gzip.compress(b"one\ntwo\n" * 1000)
    path.write_bytes(whole)
    assert sum(1 for _ in read_lines(path)) == 2000
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataFileError, match="not a whole gzip file"):
        list(read_lines(path))
    path.write_bytes(b"plain text")
    with pytest.raises(DataFileError, match="not a whole gzip file"):
        list(read_lines(path))
    path.write_bytes(whole[:10] + b"\xff" * 50)
    with pytest.raises(DataFileError, match="not a whole gzip file"):
        list(read_lines(path))


def test_reading_does_not_run_ahead(tmp_path):
    path = tmp_path / "large.txt"
    path.write_bytes(b"x" * 99 + b"\n" + b"good\n" * 200_000 + b"\xff\n")
    lines = read_lines(path)
    assert [next(lines)[1][:3], next(lines)[1]] == ["xxx", "good\n"]  # the bad last line is not reached


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail_half_way() -> None:
        with writing_text(path) as stream:
            stream.write("new" * 10_000)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_rename_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataFileError, match="No space left"), writing_text(tmp_path / "a.txt") as stream:
        stream.write("new")
    assert not list(tmp_path.iterdir())


def test_writing_makes_folders_keeps_the_usual_mode_and_repeats_bytes(tmp_path):
    plain, packed = tmp_path / "deep" / "er" / "a.txt", tmp_path / "b.txt.gz"
    for _ in range(2):
        with writing_text(plain) as stream:
            stream.write("é\n")
    (tmp_path / "usual").touch()
    assert stat.S_IMODE(plain.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    with writing_text(packed) as stream:
        stream.write("é\n")
    assert packed.read_bytes()[3:8] == bytes(5)  # no name and no time in the header
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes() == "é\n".encode()


def test_a_folder_that_is_a_file_and_half_a_character_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataFileError), writing_text(tmp_path / "file" / "a.txt"):
        pass
    with pytest.raises(DataFileError, match="half a character"), writing_text(tmp_path / "a.txt") as stream:
        stream.write("a\ud800b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_replacing_without_writing_is_an_error(tmp_path):
    with pytest.raises(DataFileError, match="no such file"), replacing(tmp_path / "a.bin"):
        pass
