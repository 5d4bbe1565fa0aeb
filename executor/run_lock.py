"""One process at a time for a directory: a planner that was killed leaves trainers behind, which go on.

The lock is flock's, so the system drops it when a process ends, however it ends; the file is only its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from cptplan.files import storage_error

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock of a file, waiting for the process that has it. What it did meanwhile must be looked at after.

    Raises:    StorageError if the place cannot be written; RunFailedError if the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _lock(path)
    except OSError as error:
        raise storage_error(error, path.parent) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that works in %s", path.parent)
            fcntl.flock(handle, fcntl.LOCK_EX)
        # the one that had it removes the file, and a third process may have made a new one by now
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)
