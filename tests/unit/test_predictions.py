"""Predicted runs: their steps, bands, measured points and notes."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from known_fits import exact_fits

from cptplan.curves import CurveRecord
from cptplan.errors import ConfigError, CurveError
from cptplan.fitting.predictions import band_text, choose, predict_runs, run_of_spec
from cptplan.mixture import ConstantMixture
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet
from cptplan.schedule import ConstantSchedule, WsdSchedule
from cptplan.simulation.simulation import simulate_curves

FITS = exact_fits()
BASE = CurveRecord(phase="pretrain", lr=WsdSchedule(kind="wsd", peak_lr=2e-4, total_steps=2000, decay_steps=400))


def cpt(peak_lr: float = 1e-4, steps: int = 300, replay: float = 0.1) -> CurveRecord:
    return CurveRecord(
        phase="cpt",
        lr=ConstantSchedule(kind="constant", peak_lr=peak_lr, total_steps=steps),
        replay_ratio=ConstantMixture(replay_ratio=replay),
        parent="base",
    )


@pytest.fixture(scope="module")
def runs():
    """A pre-training run and two CPT runs, evaluated at a few steps, without noise."""
    records = {"base": BASE, "near": cpt(), "far": cpt(peak_lr=4e-4, replay=0.5)}
    steps = {"near": np.array([0, 77, 300]), "far": np.array([0, 300])}
    return simulate_curves(exact_fits(), records, steps=steps)


def run_like(curve, name):
    return replace(curve, name=name, losses={}, steps=np.zeros(0, dtype=np.int64))


def test_only_cpt_runs_are_predicted_unless_asked(runs):
    assert list(predict_runs(FITS, runs)) == ["near", "far"]
    assert list(predict_runs(FITS, runs, ["ba*", "far"])) == ["base", "far"]
    assert choose({"base": runs["base"]}, None) == ["base"]


def test_curve_is_whole_and_holds_the_measured_points(runs):
    run = predict_runs(FITS, runs, ["near"])["near"]
    assert (run.steps[0], run.steps[-1]) == (0, 300)
    assert len(run.steps) > 60
    for name in FITS:
        known = np.isfinite(run.measured[name])
        assert run.steps[known].tolist() == [0, 77, 300]
        np.testing.assert_allclose(run.measured[name][known], run.bands[name].mean[known], rtol=0, atol=1e-12)


def test_interval_is_wider_where_it_is_held_against_measured_losses(runs):
    untrained = {**runs, "plan": run_like(runs["near"], "plan")}
    found = predict_runs(FITS, untrained, ["near", "plan"], level=0.45)
    width = {name: run.bands["domain"].high[-1] - run.bands["domain"].low[-1] for name, run in found.items()}
    assert width == {"near": pytest.approx(0.06), "plan": pytest.approx(0.05)}
    assert found["plan"].measured == {}


def test_notes_say_where_a_run_is_outside(runs):
    found = predict_runs(FITS, runs)
    assert found["near"].notes == ()
    assert [note.split(" is outside")[0] for note in found["far"].notes] == ["peak rate 0.0004", "replay ratio 50.0%"]


def test_band_text_is_a_table_of_every_step(runs):
    run = predict_runs(FITS, runs, ["near"])["near"]
    rows = list(csv.DictReader(io.StringIO(band_text(run))))
    assert list(rows[0]) == [
        "step", "loss_general", "low_general", "high_general", "loss_domain", "low_domain", "high_domain",
    ]  # fmt: skip
    assert [int(row["step"]) for row in rows] == run.steps.tolist()
    assert float(rows[-1]["low_domain"]) == run.bands["domain"].low[-1]


def test_spec_is_predicted_like_a_curve_of_the_same_run(runs):
    spec = RunSpec(
        name="plan",
        phase="cpt",
        model=ModelSource(path="model"),
        sources=(Source(name="general", role="general", path="g"), Source(name="domain", role="domain", path="d")),
        validation=(ValidationSet(name="general", path="g", num_tokens=10),),
        schedule=runs["near"].record.lr,
        mixture=ConstantMixture(replay_ratio=0.1),
        seq_len=8,
        batch_tokens=16,
        parent="base",
    )
    found = predict_runs(FITS, {**runs, "plan": run_of_spec(spec)}, ["near", "plan"])
    assert found["plan"].bands["general"].mean[-1] == found["near"].bands["general"].mean[-1]


def test_name_that_matches_nothing_is_refused(runs):
    with pytest.raises(CurveError, match=r"name must be a run.*; got 'neat'\. hint: did you mean 'near'\?"):
        predict_runs(FITS, runs, ["neat"])


def test_run_of_unknown_pretraining_is_refused(runs):
    alone = {"alone": run_like(runs["near"], "alone")}
    record = alone["alone"].record.model_copy(update={"parent": None})
    with pytest.raises(ConfigError, match=r"pre-training must be known .*; got none for alone\."):
        predict_runs(FITS, {"alone": replace(alone["alone"], record=record)})
