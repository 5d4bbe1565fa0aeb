"""What the executor leaves behind is what watch reads: rates, tokens, state and losses of a real run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from executor_runs import make_spec, train, write_corpora, write_run

from cptplan.laws.history import history_of
from cptplan.run_options import Monitor, Rule
from cptplan.watch.facts import Planned, told_alarms
from cptplan.watch.run import find_run, read_watched


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora")
    write_corpora(root)
    return root


def planned(run):
    return Planned(
        history=history_of(run.curve, {}), start="base", start_losses={}, parent=(None, None), noise={"general": 1.0}
    )


def test_a_real_run_is_read_as_it_was_trained(corpora, tmp_path):
    spec = make_spec(corpora)
    directory = write_run(tmp_path / "run", spec)
    assert train(directory) == 0
    found = read_watched(find_run(str(directory), tmp_path))
    assert (found.state, found.done, found.events, found.notes) == ("complete", 24, (), ())
    np.testing.assert_allclose(found.lr, spec.lr(), rtol=1e-9)
    assert found.general_share == pytest.approx(0.3, abs=0.01)
    assert found.curve.steps.tolist() == [0, 3, 9, 10, 17, 24]
    assert told_alarms(found, planned(found)) == ()
    (directory / "result.json").unlink()
    assert read_watched(find_run(str(directory), tmp_path)).state == "running"


def test_what_the_monitor_did_to_a_real_run_is_told(corpora, tmp_path):
    rule = Rule(when="domain_plateau", threshold=100.0, action="lower_lr", times=1)  # always
    spec = make_spec(corpora, monitor=Monitor(rules=(rule,)))
    directory = write_run(tmp_path / "run", spec)
    assert train(directory) == 0
    found = read_watched(find_run(str(directory), tmp_path))
    as_planned = replace(found.curve, record=found.curve.record.model_copy(update={"lr": spec.schedule}))
    wanted = replace(planned(found), history=history_of(as_planned, {}))
    told = {alarm.kind: alarm.text for alarm in told_alarms(found, wanted)}
    assert set(told) == {"lr", "event"}
    assert "0.5 times the planned one" in told["lr"]
    assert "lr x 0.5 from here on" in told["event"]
