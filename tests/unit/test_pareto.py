"""The front of general loss, domain loss and cost: nothing on it is beaten; its CSV; its figure."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from command_line import model_config
from simple_laws import LAWS, BowlLaw, make_forecaster, make_project

from cptplan.files import write_json
from cptplan.planning.pareto import COLUMNS, by_length, draw_front, front_csv, in_words, pareto_front, spread_out
from cptplan.planning.planner import affordable, plan_space

OPPOSED = {
    "general": BowlLaw(bottom=3.0, best_lr=1e-4, best_replay=0.6, per_step=1e-4),
    "domain": BowlLaw(bottom=3.2, best_lr=3e-3, best_replay=0.0, per_step=1e-3),
}


def front_with(tmp_path, *overrides, **changes):
    project, forecaster = make_project(tmp_path, *overrides), make_forecaster(**{"laws": OPPOSED, **changes})
    space = plan_space(project, forecaster, affordable(project, forecaster))
    return pareto_front(project, forecaster, space), forecaster


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    return front_with(tmp_path_factory.mktemp("front"))[0]


def numbers(run):
    return np.array([run.outlook.losses["general"].mean, run.outlook.losses["domain"].mean, run.tokens])


def test_nothing_on_the_front_is_beaten(front):
    table = [numbers(run) for run in front.runs]
    for point in table:
        assert not any(np.all(other <= point) and np.any(other < point) for other in table)


def test_front_has_cheap_and_dear_runs(front):
    lengths = [run.knobs.total_steps for run in front.runs]
    assert sorted(set(lengths)) == [8, 16, 24, 32]
    assert lengths == sorted(lengths)
    labels = [label for label, _ in by_length(front)]
    assert labels[0] == "2.05 K tokens"


def test_longer_run_that_helps_nobody_is_not_on_it(tmp_path):
    laws = {name: replace(law, per_step=0.0) for name, law in OPPOSED.items()}
    assert {run.knobs.total_steps for run in front_with(tmp_path, laws=laws)[0].runs} == {8}


def test_limits_hold_on_the_front(tmp_path):
    found, forecaster = front_with(tmp_path, max_general_increase=0.04)
    assert found.runs
    assert all(forecaster.score(run.knobs).violation <= 0 for run in found.runs)
    free, _ = front_with(tmp_path)
    assert any(forecaster.score(run.knobs).violation > 0 for run in free.runs)


def test_csv_reads_back(front):
    rows = list(csv.DictReader(io.StringIO(front_csv(front))))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(front.runs)
    for row, run in zip(rows, front.runs, strict=True):
        assert float(row["general"]) == pytest.approx(run.outlook.losses["general"].mean, rel=1e-5)
        assert float(row["domain_low"]) <= float(row["domain"]) <= float(row["domain_high"])
        assert row["usd"] == ""  # the model is not on this machine
        assert row["end_replay"] == ""


def test_cost_is_there_when_the_model_is(tmp_path):
    (tmp_path / "b").mkdir()
    write_json(tmp_path / "b" / "config.json", model_config(512))
    starts = f"model.starts=[{{name: stable, path: a}}, {{name: annealed, path: '{tmp_path / 'b'}'}}]"
    found, _ = front_with(tmp_path, starts)
    prices = [run.price_usd for run in found.runs]
    assert all(price is not None and price > 0 for price in prices)
    assert prices == sorted(prices)
    assert all("USD" in label for label, _ in by_length(found))


def test_figure_is_the_same_picture_each_time(front, example_plan):
    picture = draw_front(front, example_plan)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture == draw_front(front, example_plan)


def test_terminal_shows_some_of_each_length(front):
    runs = list(front.runs)
    assert spread_out(runs, 3) == [runs[0], runs[round((len(runs) - 1) / 2)], runs[-1]]
    assert spread_out(runs[:2], 5) == runs[:2]


@pytest.mark.parametrize(("tokens", "words"), [(512, "512"), (2048, "2.05 K"), (3e9, "3 B"), (1.25e12, "1.25 T")])
def test_tokens_in_words(tokens, words):
    assert in_words(tokens) == words


def test_laws_of_the_plan_are_not_needed_for_the_axis_names(front):
    assert front.domain == next(name for name in LAWS if name != "general")
