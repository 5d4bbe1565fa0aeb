"""How the commands of the executor end."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from cptplan.errors import ModelError
from executor.command import run_command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ModelError("model must be there.", hint="look"), 2, "error: model must be there.\nhint: look\n"),
        (ModelError("model must be there."), 2, "error: model must be there.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "disk must have room; got No space left on device"),
        (OSError(errno.EACCES, "Permission denied", "there"), 2, "must be writable; got Permission denied for there"),
        (torch.OutOfMemoryError("CUDA out of memory.\nMore"), 5, "must hold the model and a batch; got CUDA out of"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_said_in_a_line_and_a_hint(error, code, message, capsys):
    def work():
        raise error

    assert run_command(work, Path("out")) == code
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) <= 2


def test_work_that_ends_well_gives_0(capsys):
    assert run_command(lambda: None, Path("out")) == 0
    assert capsys.readouterr().err == ""
