"""Simulated curves: they are the law's, their noise is what was asked for, and a directory of them is read back."""

from __future__ import annotations

import numpy as np
import pytest

from cptplan.curves import CurveRecord, LossCurve, read_curve_directory, write_curve
from cptplan.errors import ConfigError, CurveError
from cptplan.laws.history import history_of
from cptplan.mixture import ConstantMixture, RampMixture
from cptplan.schedule import ConstantSchedule, CosineSchedule, WsdSchedule
from cptplan.simulation.published import find_published
from cptplan.simulation.simulation import Noise, add_noise, eval_steps, simulate_curves

LAWS = find_published("knowledge-pile").laws()
BASE = CurveRecord(
    phase="pretrain",
    lr=WsdSchedule(kind="wsd", peak_lr=2e-4, total_steps=4000, warmup_steps=100, decay_steps=800),
)


def cpt(replay: float = 0.1, parent: str = "base", parent_step: int | None = None, steps: int = 1000) -> CurveRecord:
    return CurveRecord(
        phase="cpt",
        lr=CosineSchedule(kind="cosine", peak_lr=2e-4, total_steps=steps, warmup_steps=50),
        replay_ratio=ConstantMixture(replay_ratio=replay),
        parent=parent,
        parent_step=parent_step,
    )


def test_curves_are_the_laws_own_for_any_schedule_and_mixture():
    ramp = RampMixture(kind="ramp", start_ratio=0.5, end_ratio=0.1, end_step=500)
    records = {"run": cpt().model_copy(update={"replay_ratio": ramp}), "base": BASE}
    curves = simulate_curves(LAWS, records)
    assert list(curves) == ["run", "base"]
    for curve in curves.values():
        assert set(curve.losses) == {"general", "domain"}
        for name, law in LAWS.items():
            np.testing.assert_array_equal(curve.losses[name], law.mean(history_of(curve, curves), curve.steps))


def test_run_begins_where_its_parent_ended_with_noise_too():
    records = {"late": cpt(), "early": cpt(parent_step=2000), "base": BASE}
    curves = simulate_curves(LAWS, records, noise=Noise(sd_nats=0.01, autocorrelation=0.5, seed=3))
    for name, step in (("late", 4000), ("early", 2000)):
        for set_name in LAWS:
            at_parent = curves["base"].losses[set_name][curves["base"].steps == step]
            assert curves[name].losses[set_name][0] == pytest.approx(at_parent[0], abs=1e-12)


def test_noise_has_the_asked_size_and_autocorrelation():
    flat = {
        f"run-{number}": LossCurve(
            name=f"run-{number}",
            record=cpt().model_copy(update={"parent": None}),
            steps=np.arange(1000),
            losses={"general": np.full(1000, 3.0)},
        )
        for number in range(40)
    }
    noisy = add_noise(flat, Noise(sd_nats=0.02, autocorrelation=0.7, seed=1))
    noise = np.stack([curve.losses["general"] - 3.0 for curve in noisy.values()])
    # 40,000 values worth about 7,000 independent ones: standard errors of 0.9 % and 0.008
    assert np.std(noise) == pytest.approx(0.02, rel=0.04)
    assert np.mean(noise[:, 1:] * noise[:, :-1]) / np.var(noise) == pytest.approx(0.7, abs=0.03)
    assert np.std(noise[:, 0]) == pytest.approx(0.02, rel=0.4)  # the process starts in its stationary state
    assert np.abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 0.3


def test_noise_depends_on_the_seed_and_not_on_other_runs():
    noise = Noise(sd_nats=0.01, seed=4)
    alone = simulate_curves(LAWS, {"base": BASE, "a": cpt()}, noise=noise)
    beside = simulate_curves(LAWS, {"b": cpt(0.3), "base": BASE, "a": cpt()}, noise=noise)
    other = simulate_curves(LAWS, {"base": BASE, "a": cpt()}, noise=Noise(sd_nats=0.01, seed=5))
    np.testing.assert_array_equal(alone["a"].losses["domain"], beside["a"].losses["domain"])
    assert np.all(alone["a"].losses["domain"] != other["a"].losses["domain"])


def test_evaluations_are_dense_early_and_where_other_runs_begin():
    records = {"base": BASE, "a": cpt(parent_step=1234), "b": cpt()}
    steps = eval_steps("a", records)
    assert (steps[0], steps[-1]) == (0, 1000)
    assert np.all(np.diff(np.diff(steps)) >= -1)
    pretraining = eval_steps("base", records)
    assert {1234, 4000} <= set(pretraining.tolist())
    assert pretraining[0] >= 200  # twice the warm-up


def test_given_steps_are_kept():
    curves = simulate_curves(LAWS, {"base": BASE, "a": cpt()}, steps={"a": np.array([0, 10, 999])})
    assert curves["a"].steps.tolist() == [0, 10, 999]


def test_directory_of_simulated_curves_is_read_back(tmp_path):
    curves = simulate_curves(LAWS, {"base": BASE, "a": cpt()}, noise=Noise(sd_nats=0.003))
    for curve in curves.values():
        write_curve(tmp_path, curve)
    back = read_curve_directory(tmp_path)
    assert {name: curve.record for name, curve in back.items()} == {n: c.record for n, c in curves.items()}
    np.testing.assert_array_equal(back["a"].losses["general"], curves["a"].losses["general"])


def test_missing_parent_is_refused():
    with pytest.raises(CurveError, match=r"parent must be one of the simulated runs; got 'bose' for a\."):
        simulate_curves(LAWS, {"base": BASE, "a": cpt(parent="bose")})


def test_circle_of_parents_is_refused():
    first, second = cpt(parent="b"), cpt(parent="a")
    with pytest.raises(CurveError, match="parent must be a pre-training run"):
        simulate_curves(LAWS, {"a": first, "b": second})


def test_run_of_unknown_pretraining_is_refused_by_name():
    alone = cpt().model_copy(update={"parent": None})
    with pytest.raises(ConfigError, match=r"pre-training must be known .*; got none for alone\."):
        simulate_curves(LAWS, {"alone": alone})
    open_law = find_published("fineweb-as-unknown").laws()
    assert simulate_curves(open_law, {"alone": alone})["alone"].losses["general"][0] > 2.7


@pytest.mark.parametrize(("sd", "autocorrelation"), [(-0.1, 0.0), (float("nan"), 0.0), (0.1, 1.0), (0.1, -0.2)])
def test_noise_out_of_range_is_refused(sd, autocorrelation):
    with pytest.raises(ConfigError, match="noise must be >= 0 nats and its autocorrelation in"):
        Noise(sd_nats=sd, autocorrelation=autocorrelation)


def test_long_schedule_is_simulated():
    long = {"base": BASE, "a": cpt(steps=1_000_000)}
    constant = ConstantSchedule(kind="constant", peak_lr=2e-5, total_steps=1_000_000)
    long["a"] = long["a"].model_copy(update={"lr": constant})
    loss = simulate_curves(LAWS, long)["a"].losses["domain"]
    assert np.all(np.diff(loss[1:]) < 0.05)
    assert loss[-1] < loss[0]
