"""Errors a user can meet. Every message says the rule, the value, the place; the hint says the next step.

The command line prints them as one line and ends with the class's exit code; no traceback reaches the user.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CptplanError(Exception):
    """Base of all errors that are the user's to mend. exit_code is what the command line ends with."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} hint: {self.hint}"


class ConfigError(CptplanError):
    """A project file, run spec or option that breaks a rule."""


class ScheduleError(ConfigError):
    """A learning-rate schedule that cannot be followed."""


class MixtureError(ConfigError):
    """A replay ratio or a set of data shares that cannot be followed."""


class CurveError(CptplanError):
    """A loss curve that cannot be read or breaks the curve-directory contract."""


class DataError(CptplanError):
    """A corpus, shard or tokenizer that is missing, empty, too small or inconsistent."""


class ModelError(CptplanError):
    """A base model directory that is incomplete or does not match its tokenizer."""


class StorageError(CptplanError):
    """A path that cannot be written, is full, or already belongs to something else."""


class InfeasiblePlanError(CptplanError):
    """No plan meets the constraints."""

    exit_code = 3


class PoorFitError(CptplanError):
    """The law does not describe the pilots well enough to be trusted."""

    exit_code = 4


class RunFailedError(CptplanError):
    """A training process ended without a result, or the storage failed under it."""

    exit_code = 5


def suggest(word: str, known: Iterable[str]) -> str | None:
    """The closest known word, as a hint for a misspelt one, or None when nothing is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {matches[0]!r}?" if matches else None
