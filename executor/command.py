"""How a command of the executor ends: an exit code, and one line and a hint for what the user can mend."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from cptplan.errors import CptplanError, RunFailedError
from cptplan.files import storage_error


def run_command(work: Callable[[], None], out: Path) -> int:
    """Do the work of a command; logging goes to stderr.

    Args:      out: where it writes, for messages of the storage.
    Returns:   the exit code: 0, that of the error, or 130 after Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        work()
    except CptplanError as error:
        return _report(error)
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        return _report(
            RunFailedError(f"device memory must hold the model and a batch; got {reason}", hint="lower --batch-size")
        )
    except OSError as error:
        return _report(storage_error(error, Path(error.filename or out)))
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted.\nhint: run the same command again\n")
        return 130
    return 0


def _report(error: CptplanError) -> int:
    sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
    return error.exit_code
