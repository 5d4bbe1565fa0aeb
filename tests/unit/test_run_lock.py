"""One process at a time: waiting, going on after a kill, and a lock file that is made anew meanwhile."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time

import pytest

from cptplan.errors import StorageError
from executor.run_lock import only_one

HOLD = (
    "import sys, time; from pathlib import Path; from executor.run_lock import only_one\n"
    "with only_one(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
)


def hold_elsewhere(path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_lock_leaves_nothing_behind(tmp_path):
    path = tmp_path / "new" / ".lock"
    with only_one(path):
        assert path.exists()
    assert not path.exists()
    with only_one(path):
        pass


def test_second_process_waits_until_the_first_is_killed(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / ".lock"
    first = hold_elsewhere(path)
    killer = threading.Timer(0.5, first.kill)
    killer.start()
    began = time.monotonic()
    with only_one(path):
        assert time.monotonic() - began > 0.4
        assert first.wait(timeout=10) != 0
    first.stdout.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for another process that works in {tmp_path}"
    ]


def test_only_one_of_many_at_a_time(tmp_path):
    """Each thread opens the file for itself, as processes do; the file comes and goes all the while."""
    path, inside, most = tmp_path / ".lock", [], []

    def work():
        for _ in range(20):
            with only_one(path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 120
    assert max(most) == 1


def test_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(KeyError), only_one(tmp_path / ".lock"):
        raise KeyError
    with only_one(tmp_path / ".lock"):
        pass


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="path must be writable"), only_one(tmp_path / "file" / ".lock"):
        pass
