"""Dynamics of the published parameter sets against the figures of the paper and what follows from its formulas.

Parameters: arXiv:2505.07796, figures 3, 11 and 12 (cptplan/simulation/published.yaml). Critical points L0 + B, starts
and the loss-potential table were worked out by hand from the printed numbers, outside of this package.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from cptplan.dynamics.dynamics import Setting, critical_point, replay_by_weight, start_effect, study
from cptplan.dynamics.setting import Asked, law_question
from cptplan.laws.history import RunHistory
from cptplan.schedule import read_schedule
from cptplan.simulation.published import find_published

PEAK = 2e-4


def question(name: str, lr: np.ndarray, **changes) -> Setting:
    source = find_published(name)
    replay = source.replay_ratio or 0.0

    def history(start: str, ratio: float) -> RunHistory:
        return RunHistory(
            phase="cpt",
            pretrain_lr=source.pretrain_record(float(start)).lr.lr(),
            pretrain_known=True,
            lr=lr,
            replay_ratio=np.full(len(lr), ratio),
        )

    values = {
        "laws": source.laws(),
        "weights": {"general": 0.4, "domain": 0.6},
        "history": history,
        "start": "0",
        "replay_ratio": replay,
        "replay_range": (replay, replay) if source.replay_ratio is not None else (0.0, 1.0),
    }
    return Setting(**{**values, **changes})


@pytest.mark.parametrize(
    ("name", "asymptote", "start", "post"),
    [("knowledge-pile", 3.423, 3.188, 1.0), ("knowledge-pile-replay-67", 3.174, 3.189, 0.0)],
)
def test_critical_point_of_knowledge_pile(name, asymptote, start, post):
    asked = question(name, np.full(10_000, PEAK))
    point = critical_point(asked, "general", asked.history("0", asked.replay_ratio))
    assert point.asymptote.mean == pytest.approx(asymptote, abs=5e-4)
    # the pre-training's decay of 8,000 steps has paid a little more than the hand-worked areas say
    assert point.start.mean == pytest.approx(start, abs=2e-3)
    assert point.post_critical == post


def test_turning_length_with_67_percent_replay_is_finite_and_the_root_of_the_printed_formula():
    source = find_published("knowledge-pile-replay-67")
    p, never_annealed = source.general, "1"
    # constant before and after: no annealing, so A (S^-a - (S + x)^-a) = B (1 - (1 + E x)^-b), x in lr x steps
    area = 40_000 * PEAK

    def gap(x: float) -> float:
        return p.A * (area**-p.alpha - (area + x) ** -p.alpha) - p.B * (1.0 - (1.0 + p.E * x) ** -p.beta)

    expected = brentq(gap, 0.01, 500.0) / PEAK
    asked = question("knowledge-pile-replay-67", np.full(round(1.2 * expected), PEAK), start=never_annealed)
    turning = study(asked).turning["general"]
    assert turning.state == "returns"
    # schedules this long are summed in blocks; the grid has 240 points
    assert turning.steps.mean == pytest.approx(expected, rel=5e-3)


def test_turning_length_of_knowledge_pile_is_infinite():
    turning = study(question("knowledge-pile", np.full(40_000, PEAK))).turning
    assert (turning["general"].state, turning["general"].steps.mean) == ("never", np.inf)
    assert turning["weighted"].state == "below"


def test_large_weight_of_general_loss_never_pays():
    """Figure 13: small weights are below their start throughout, large ones never come back."""
    asked = question("knowledge-pile", np.full(20_000, PEAK))
    states = {}
    for weight in (0.1, 0.95):
        heavy = Setting(**{**_fields(asked), "weights": {"general": weight, "domain": 1.0 - weight}})
        states[weight] = study(heavy).turning["weighted"].state
    assert states == {0.1: "below", 0.95: "never"}


@pytest.mark.parametrize(
    ("potential", "general", "domain"),
    [("0.1", 3.288, 2.646), ("0.3", 3.326, 2.604), ("0.5", 3.339, 2.584), ("1", 3.352, 2.554)],
)
def test_loss_potential_without_rewarming(potential, general, domain):
    """Figure 5c: 20,000 steps that begin at the last rate of pre-training and fall to 0."""
    lr = read_schedule({"kind": "linear", "peak_lr": float(potential) * PEAK, "total_steps": 20_000}, "test").lr()
    found = study(question("knowledge-pile", lr, start=potential, replay_range=(0.0, 0.0)))
    for name, expected in (("general", general), ("domain", domain)):
        end = found.critical[name].start.mean + found.changes[name].mean[-1]
        assert end == pytest.approx(expected, abs=0.001)  # three digits were written down


def test_loss_potential_is_worth_little_with_rewarming():
    """Figure 5f: 0.016 nat on the domain, 0.009 on general data, when the rate warms up to a tenth of the peak."""
    lr = read_schedule(
        {"kind": "linear", "peak_lr": 0.1 * PEAK, "total_steps": 20_000, "warmup_steps": 1000}, "test"
    ).lr()
    effect = start_effect(question("knowledge-pile", lr), "1")
    assert effect.losses["domain"].mean == pytest.approx(-0.0165, abs=1e-3)
    assert effect.losses["general"].mean == pytest.approx(-0.009, abs=1e-3)


def test_best_replay_lies_around_the_weight():
    """Figure 8c: from scratch the optimum is the weight; from a checkpoint it is a wave around that line."""
    chosen = {c.general_weight: c.replay_ratio.mean for c in replay_by_weight(question("knowledge-pile", _cosine()))}
    assert list(chosen.values()) == sorted(chosen.values())
    above = [weight for weight, ratio in chosen.items() if ratio > weight]
    # above the line at small weights, below it at large ones, one crossing
    assert above == [weight for weight in chosen if weight <= max(above)]
    assert 0.2 < max(above) < 0.7


def test_question_of_a_published_law_has_the_papers_defaults(tmp_path):
    asked = law_question("knowledge-pile", None, Asked(horizon_tokens=4_194_304 * 500.0), tmp_path)
    assert (asked.horizon_steps, asked.setting.start, asked.setting.others) == (500, "0", ("0.1", "0.5", "1"))
    assert asked.setting.weights == {"general": 0.4, "domain": 0.6}
    history = asked.setting.history("1", 0.25)
    assert history.lr.max() == PEAK
    assert history.pretrain_lr[-1] == PEAK
    np.testing.assert_array_equal(history.replay_ratio, 0.25)
    fixed = law_question("knowledge-pile-replay-50", "general=0.7", Asked(), tmp_path)
    assert (fixed.setting.replay_ratio, fixed.setting.replay_range) == (0.5, (0.5, 0.5))


def _cosine() -> np.ndarray:
    return read_schedule({"kind": "cosine", "peak_lr": PEAK, "total_steps": 20_000, "warmup_steps": 500}, "test").lr()


def _fields(asked: Setting) -> dict:
    return {name: getattr(asked, name) for name in asked.__slots__}
