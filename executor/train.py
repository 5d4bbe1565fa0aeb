"""Train one run: python -m executor.train --run-dir runs/<id>, also under accelerate launch and torchrun.

The directory holds spec.json; the run adds metrics.jsonl, curve.csv, curve.json, progress.json, checkpoints/,
export/step-N/ and, last, result.json. A complete run ends at once; a stopped one goes on where it was; one that is
still running elsewhere is waited for.
Exit codes: 0 complete; 2 bad input; 5 failed; 130, 138 and 143 stopped by SIGINT, SIGUSR1 and SIGTERM (a cluster
that takes the machine back) with a checkpoint saved: start it again and it goes on.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cptplan.errors import CptplanError, RunFailedError
from cptplan.files import remove_leftovers, storage_error
from cptplan.run_spec import RunSpec, read_run_spec
from executor.run_dir import is_complete
from executor.run_lock import only_one

SIGNAL_EXIT = 128  # a process ended by a signal exits with 128 + its number
# assumed: torchrun looks after its processes ten times a second; rank 0 may speak first
FIRST_RANK_WAIT_SECONDS = 1.0
OTHER_RANKS_WAIT_SECONDS = 5.0
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


# What holds DDP: taken down, it waits, with the GIL, for a thread of gloo that may be waiting for the GIL to drop the
# last tensor of a collective. Measured: 2 of 58 short runs never ended. So it stays until the process ends at once.
_kept: list[object] = []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and say what went wrong, if anything, in one line and a hint."""
    started = time.perf_counter()
    options = _parse(arguments)
    level = logging.WARNING if _rank() else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        return train(Path(options.run_dir), threads=options.threads, started=started)
    except CptplanError as error:
        return _report(error)
    except OSError as error:
        return _report(storage_error(error, Path(error.filename or options.run_dir)))
    except KeyboardInterrupt:
        return SIGNAL_EXIT + signal.SIGINT
    except Exception:
        _wait_for_the_launcher()  # what broke may only be the exchange with a process that has ended and says why
        raise


def train(run_dir: Path, *, threads: int | None, started: float) -> int:
    """Bring a run directory to completion.

    Returns:   the exit code: 0 when complete, 128 + signal when stopped.
    Raises:    CptplanError of the kind whose exit code says what is wrong.
    """
    spec = read_run_spec(run_dir / "spec.json")
    if _said_complete(run_dir, spec):
        return 0
    # every rank waits for its own forerunner, so that all find the same when they go on
    with only_one(run_dir / f".lock-{_rank()}"):
        return 0 if _said_complete(run_dir, spec) else _train(run_dir, spec, threads, started)


def _said_complete(run_dir: Path, spec: RunSpec) -> bool:
    complete = is_complete(run_dir, spec)
    if complete:
        logging.info("%s is complete", run_dir)
    return complete


def _train(run_dir: Path, spec: RunSpec, threads: int | None, started: float) -> int:
    if _rank() == 0:
        remove_leftovers(run_dir)
    # imported here: torch and transformers take seconds that a complete run or a wrong spec need not wait for
    _keep_freed_memory()
    _quiet_libraries()
    gc.disable()  # nothing of an import is garbage; looking for it takes a quarter of their time (measured, 3.5 s)
    import torch

    from executor.loop import Trainer
    from executor.requests import Stopped

    gc.freeze()
    gc.enable()

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        trainer = Trainer(run_dir, spec, started)
        _kept.append(trainer)
        trainer.run()
    except Stopped as stopped:
        return SIGNAL_EXIT + stopped.signal_number
    except torch.OutOfMemoryError as error:
        raise RunFailedError(
            f"device memory must hold one forward pass; got {str(error).splitlines()[0]}",
            hint="lower micro_batch_tokens, or turn on activation_checkpointing",
        ) from error
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m executor.train", description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", required=True, help="directory with spec.json")
    parser.add_argument("--threads", type=int, help="CPU threads; default OMP_NUM_THREADS or all cores")
    return parser.parse_args(arguments)


def _keep_freed_memory() -> None:
    """Tell glibc to keep large buffers for the next step instead of giving them back to the system after each.

    Otherwise the logits are mapped and unmapped, page by page, in every step: a quarter of the CPU time of a model of
    1M parameters with 4096 tokens a step (measured 2026-11: 0.69 s against 0.53 s, for 12 % more memory at the peak).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # no other C library has it
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def _quiet_libraries() -> None:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # said at every checkpoint of a run with one process, where it is what we mean
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
    # its new name is not in all of transformers 5
    warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated", category=FutureWarning)


def _report(error: CptplanError) -> int:
    """Print the error once. Another rank speaks only if it still lives after a while: then rank 0 did not fail."""
    if _rank():
        _wait_for_the_launcher()
    _kept.append(error)
    sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
    return error.exit_code


def _wait_for_the_launcher() -> None:
    """Give the launcher the time to end this process, which it does when another one has failed."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(OTHER_RANKS_WAIT_SECONDS if _rank() else FIRST_RANK_WAIT_SECONDS)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _leave(code: int) -> NoReturn:
    """End the process without the interpreter's teardown.

    A worker thread of the process group may still drop the last tensor of a collective; if it asks for the GIL while
    the interpreter is going down, the whole process aborts (pytorch pull request 179291): after a complete run, too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
