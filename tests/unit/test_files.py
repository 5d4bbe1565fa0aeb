"""Files: written whole or not at all, read with one-line errors, named by their content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from cptplan.errors import ConfigError, RunFailedError, StorageError
from cptplan.files import (
    canonical_json,
    hash_file,
    hash_json,
    read_json,
    remove_leftovers,
    write_bytes,
    write_json,
    write_progress,
    write_text,
)


def fail_with(code: int):
    def raise_error(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return raise_error


def test_write_creates_missing_directories(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "file.txt", "é\n")
    assert (tmp_path / "a" / "b" / "file.txt").read_bytes() == "é\n".encode()


def test_write_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "good")
    target = os if step == "fsync" else Path
    monkeypatch.setattr(target, step, fail_with(errno.EIO))
    with pytest.raises(StorageError):
        write_text(path, "half")
    monkeypatch.undo()
    assert path.read_text() == "good"
    assert list(tmp_path.iterdir()) == [path]


def test_write_progress_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "progress.json"
    write_progress(path, done=1, total=9, unit="steps")
    monkeypatch.setattr(Path, "replace", fail_with(errno.ENOSPC))
    with pytest.raises(RunFailedError):
        write_progress(path, done=2, total=9, unit="steps")
    assert read_json(path)["done"] == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_write_to_a_full_disk_ends_with_exit_code_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(code))
    with pytest.raises(RunFailedError) as caught:
        write_bytes(tmp_path / "file", b"x")
    assert caught.value.exit_code == 5
    assert str(tmp_path / "file") in str(caught.value)
    assert "free space" in str(caught.value)


def test_write_below_a_regular_file_ends_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a directory")
    with pytest.raises(StorageError) as caught:
        write_text(tmp_path / "taken" / "out" / "file.txt", "x")
    assert caught.value.exit_code == 2
    assert "taken" in str(caught.value)
    assert "choose another --out" in str(caught.value)


def test_write_without_permission_ends_with_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # permission bits do not stop root, and tests may run as root: so the system's answer is played
    monkeypatch.setattr(Path, "open", fail_with(errno.EACCES))
    with pytest.raises(StorageError, match="path must be writable; got Permission denied"):
        write_text(tmp_path / "file.txt", "x")


def test_write_json_refuses_nan_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}


def test_read_json_missing_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"file must exist; got no .*nothing\.json"):
        read_json(tmp_path / "nothing.json")


def test_read_json_broken_names_line_and_file(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"a": 1,\n "b": }')
    with pytest.raises(ConfigError, match=r"file must be JSON; got .*line 2 column 7.*bad\.json"):
        read_json(tmp_path / "bad.json")


def test_read_json_not_text_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"file must be JSON.*bad\.json"):
        read_json(tmp_path / "bad.json")


def test_read_json_of_a_directory_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="file must be readable; got Is a directory"):
        read_json(tmp_path)


def test_progress_holds_what_was_said_and_who_said_it(tmp_path: Path) -> None:
    write_progress(tmp_path / "p.json", done=3, total=9, unit="steps", message="loss 2.5", extra={"tokens": 12})
    record = json.loads((tmp_path / "p.json").read_text())
    assert record["pid"] == os.getpid()
    assert record["time"] > 0
    del record["time"], record["pid"]
    assert record == {"done": 3, "total": 9, "unit": "steps", "message": "loss 2.5", "tokens": 12}


def test_hash_json_of_a_known_value() -> None:
    # sha256 of {"a":1,"b":[0.1,null]}, made with sha256sum
    assert canonical_json({"b": [0.1, None], "a": 1}) == '{"a":1,"b":[0.1,null]}'
    assert hash_json({"b": [0.1, None], "a": 1}) == "e4a9ad4b9681"


def test_hash_file_of_the_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    # published: SHA-256 of the empty message (FIPS 180-4 examples)
    assert hash_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_hash_file_does_not_depend_on_block_size(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one block of 1 MiB
    (tmp_path / "large").write_bytes(content)
    assert hash_file(tmp_path / "large") == hashlib.sha256(content).hexdigest()


def test_leftovers_of_a_killed_write_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".curve.json.17.tmp", "curve.json", ".lock-0"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    (tmp_path / ".step-8.tmp").mkdir()
    remove_leftovers(tmp_path, tmp_path / "missing")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock-0", ".step-8.tmp", "curve.json"]
