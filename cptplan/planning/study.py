"""An Optuna study on disk: a journal file, or any database that SQLAlchemy has an url for (sqlite:///plans.db)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from cptplan.errors import StorageError


def write_study(storage: str, study_name: str, trials: Sequence[optuna.trial.FrozenTrial]) -> None:
    """Write finished trials as a study, in the place of one of the same name.

    Args:      storage: journal file or database url. Other studies that are there stay.
    Raises:    StorageError if the place cannot be written or holds something else.
    """
    try:
        place = open_storage(storage)
        if study_name in {study.study_name for study in optuna.get_all_study_summaries(place)}:
            optuna.delete_study(study_name=study_name, storage=place)
        optuna.create_study(study_name=study_name, storage=place).add_trials(trials)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, optuna.exceptions.OptunaError) as error:
        raise _refused(storage, error) from error
    except Exception as error:  # SQLAlchemy's own errors, whose package is only there with a database
        if type(error).__module__.partition(".")[0] != "sqlalchemy":
            raise
        raise _refused(storage, error) from error


def open_storage(storage: str) -> BaseStorage:
    """The storage of a journal file or a database url."""
    if "://" in storage:
        return RDBStorage(storage)
    path = Path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _refused(storage: str, error: Exception) -> StorageError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return StorageError(
        f"storage must be a journal file of Optuna or a database url; got {reason} for {storage}.",
        hint="give a new path, or sqlite:///study.db",
    )
