"""The Python door: short names for what the verbs do, and nothing heavy until it is used."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from known_fits import exact_fits

import cptplan
from cptplan import predict, read_curves, simulate
from cptplan.curves import CurveRecord, write_curve
from cptplan.mixture import ConstantMixture
from cptplan.schedule import CosineSchedule
from cptplan.simulation.published import find_published

RUN = CurveRecord(
    phase="cpt",
    lr=CosineSchedule(kind="cosine", peak_lr=2e-4, total_steps=400),
    replay_ratio=ConstantMixture(replay_ratio=0.1),
    parent="base",
)
RUNS = {"base": find_published("knowledge-pile").pretrain_record(), "plan": RUN}


def test_simulated_curves_are_written_read_and_predicted(tmp_path):
    curves = simulate("knowledge-pile", RUNS, noise_nats=0.003, seed=2)
    for curve in curves.values():
        write_curve(tmp_path, curve)
    back = read_curves(tmp_path, ["plan"])
    assert list(back) == ["base", "plan"]
    run = predict(exact_fits(), back)["plan"]
    assert run.measured["domain"][-1] == curves["plan"].losses["domain"][-1]
    assert run.bands["domain"].mean[-1] == pytest.approx(run.measured["domain"][-1], abs=0.02)


def test_records_are_predicted_without_a_curve():
    run = predict(exact_fits(), RUNS, ["plan"])["plan"]
    curve = simulate(exact_fits(), RUNS)["plan"]
    assert run.bands["general"].mean[-1] == curve.losses["general"][-1]
    assert run.measured == {}


def test_replay_form_and_size_reach_the_law():
    steps = {"plan": np.array([0, 400])}
    plain = simulate("knowledge-pile", RUNS, steps=steps)["plan"].losses["general"]
    small = simulate("knowledge-pile", RUNS, steps=steps, replay="logarithmic")["plan"].losses["general"]
    large = simulate("knowledge-pile-sizes", RUNS, steps=steps, num_params=1720_000_000)["plan"].losses["general"]
    assert small[-1] < plain[-1]
    assert large[-1] < plain[-1] - 0.3


def test_importing_the_package_stays_light():
    code = "import sys, cptplan; print('numpy' in sys.modules); cptplan.simulate; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'predcit'"):
        cptplan.predcit  # noqa: B018
    assert {"read_curves", "predict", "simulate"} <= set(dir(cptplan))
