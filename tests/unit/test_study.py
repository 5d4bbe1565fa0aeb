"""The study on disk: a journal or a database, replaced by its own name only, refused in one line."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution

from cptplan.errors import StorageError
from cptplan.planning.study import open_storage, write_study


def trials(*values):
    return [
        optuna.trial.create_trial(
            params={"x": value}, distributions={"x": FloatDistribution(0.0, 9.0)}, value=value, constraints={"c": -1.0}
        )
        for value in values
    ]


@pytest.fixture(params=["journal", "sqlite"])
def storage(request, tmp_path):
    return {"journal": str(tmp_path / "new" / "a.journal"), "sqlite": f"sqlite:///{tmp_path / 'a.db'}"}[request.param]


def test_study_is_read_back_by_optuna_itself(storage):
    write_study(storage, "mine", trials(3.0, 1.0, 2.0))
    study = optuna.load_study(study_name="mine", storage=open_storage(storage))
    assert [trial.value for trial in study.trials] == [3.0, 1.0, 2.0]
    assert study.best_params == {"x": 1.0}
    assert study.trials[0].constraints == {"c": -1.0}


def test_study_of_the_same_name_is_replaced_and_others_stay(storage):
    write_study(storage, "mine", trials(1.0, 2.0))
    write_study(storage, "other", trials(5.0))
    write_study(storage, "mine", trials(4.0))
    place = open_storage(storage)
    assert [t.value for t in optuna.load_study(study_name="mine", storage=place).trials] == [4.0]
    assert [t.value for t in optuna.load_study(study_name="other", storage=place).trials] == [5.0]


@pytest.mark.parametrize("text", ["not a journal\n", '{"op_code": 0, "wor', "[]\n"])
def test_file_that_is_no_journal_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "notes.txt"
    path.write_text(text + "\nmore\n")
    with pytest.raises(
        StorageError, match=r"storage must be a journal file of Optuna or a database url; got .*notes\.txt"
    ):
        write_study(str(path), "mine", trials(1.0))
    assert path.read_text().startswith(text)


@pytest.mark.parametrize("url", ["nosuch://host/db", "sqlite:////nonexistent/directory/a.db"])
def test_database_that_cannot_be_opened(url):
    with pytest.raises(StorageError, match="storage must be"):
        write_study(url, "mine", trials(1.0))
