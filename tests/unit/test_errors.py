"""Errors: exit codes, the one-line form, and suggestions."""

from __future__ import annotations

import pytest

from cptplan import errors


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (errors.ConfigError, 2),
        (errors.ScheduleError, 2),
        (errors.MixtureError, 2),
        (errors.CurveError, 2),
        (errors.DataError, 2),
        (errors.ModelError, 2),
        (errors.StorageError, 2),
        (errors.InfeasiblePlanError, 3),
        (errors.PoorFitError, 4),
        (errors.RunFailedError, 5),
    ],
)
def test_exit_code_of_each_kind(kind: type[errors.CptplanError], exit_code: int) -> None:
    assert kind("x must y; got z.").exit_code == exit_code
    assert issubclass(kind, errors.CptplanError)


def test_text_joins_message_and_hint() -> None:
    error = errors.ConfigError("x must y; got z.", hint="do w")
    assert str(error) == "x must y; got z. hint: do w"
    assert (error.message, error.hint) == ("x must y; got z.", "do w")


def test_text_without_hint_is_the_message() -> None:
    assert str(errors.ConfigError("x must y; got z.")) == "x must y; got z."


def test_suggest_names_the_closest_word() -> None:
    assert errors.suggest("warmup_step", ["total_steps", "warmup_steps"]) == "did you mean 'warmup_steps'?"


def test_suggest_is_silent_when_nothing_is_close() -> None:
    assert errors.suggest("banana", ["total_steps", "warmup_steps"]) is None
