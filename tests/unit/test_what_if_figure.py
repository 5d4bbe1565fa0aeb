"""The what-if picture: it is a picture, and its headline is right."""

from __future__ import annotations

import numpy as np
import pytest
from known_fits import exact_fits

from cptplan.fitting.law_tables import End, ends
from cptplan.fitting.predictions import predict_runs
from cptplan.simulation.simulation import simulate_curves
from cptplan.simulation.what_if import plan_what_if
from cptplan.simulation.what_if_figure import draw_what_if, headline


@pytest.mark.parametrize("with_bands", [False, True])
def test_picture_is_drawn(with_bands):
    plan = plan_what_if("knowledge-pile", lrs=[{"kind": "cosine", "peak_lr": 1e-4, "total_steps": 300}] * 2)
    curves = simulate_curves(plan.source, plan.records)
    predicted = predict_runs(exact_fits(), curves, plan.chosen) if with_bands else None
    chosen = {name: curves[name] for name in plan.chosen}
    png = draw_what_if(chosen, ends(chosen, predicted), plan.title, predicted)
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000


def test_headline_names_the_best_runs():
    found = [
        End(run="a", set_name="general", start=3.0, end=3.2),
        End(run="b", set_name="general", start=3.0, end=3.1),
        End(run="a", set_name="domain", start=3.0, end=2.0),
        End(run="b", set_name="domain", start=3.0, end=2.5),
    ]
    assert headline(found) == "Least general loss: b (+0.100 nats); most learnt: a (-1.000 nats)"
    pretraining = [End(run=name, set_name="general", start=None, end=end) for name, end in (("x", 3.0), ("y", 2.9))]
    assert headline(pretraining) == "Lowest loss: y (2.900 nats)"


def test_ends_are_those_of_the_curves():
    plan = plan_what_if("knowledge-pile", lrs=[{"kind": "cosine", "peak_lr": 1e-4, "total_steps": 300}])
    curves = simulate_curves(plan.source, plan.records)
    for end in ends({name: curves[name] for name in plan.chosen}):
        loss = curves[end.run].losses[end.set_name]
        assert (end.start, end.end) == (loss[0], loss[-1])
        assert end.change == pytest.approx(float(np.diff(loss).sum()))
