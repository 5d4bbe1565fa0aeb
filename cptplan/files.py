"""Writing files so that a good one is never replaced by half of another, and naming content by its hash."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cptplan.errors import ConfigError, RunFailedError, StorageError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or leave the old one: temporary name, fsync, rename.

    Raises:    StorageError if the place cannot be written; RunFailedError if the disk is full.
    """
    _replace(path, content, durable=True)


def _replace(path: Path, content: bytes, *, durable: bool) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise storage_error(error, path) from error


def remove_leftovers(*directories: Path) -> None:
    """Remove what a process that was killed in the middle of a write left in these directories.

    Only for who holds the directories alone: another's write may be under way.
    """
    for directory in directories:
        for leftover in directory.glob(".*.tmp"):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file or leave the old one."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented, keys in the order given. NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:    ConfigError if it is missing, cannot be read, or is not JSON, with the line and column.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"file must exist; got no {path}.", hint="check the path") from error
    except OSError as error:
        raise ConfigError(f"file must be readable; got {error.strerror} for {path}.", hint="check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"file must be JSON; got {error} in {path}.", hint="mend or remove the file") from error


def storage_error(error: OSError, path: Path) -> StorageError | RunFailedError:
    """The user's words for a failed write: a full disk (exit 5) or a place that cannot be written (exit 2)."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFailedError(
            f"disk must have room; got {error.strerror} writing {path}.",
            hint="free space, then run the same command again",
        )
    return StorageError(
        f"path must be writable; got {error.strerror or error} for {path}.", hint="choose another --out"
    )


def canonical_json(value: Any) -> str:
    """JSON text that does not depend on key order: sorted keys, no spaces, shortest float form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def hash_json(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of the canonical JSON: the name of a spec, fit or plan."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()[:12]


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_progress(
    path: Path, *, done: int, total: int, unit: str, message: str = "", extra: Mapping[str, Any] | None = None
) -> None:
    """Say how far a process is, for the one that waits for it. Whole at any time, but lost if the machine stops."""
    record = {
        "done": done,
        "total": total,
        "unit": unit,
        "message": message,
        "pid": os.getpid(),
        "time": time.time(),
    }
    _replace(path, json.dumps({**record, **(extra or {})}).encode("utf-8"), durable=False)
