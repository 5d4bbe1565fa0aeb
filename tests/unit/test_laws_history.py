"""What a law may know of a run: rates through the parents, shares, passes, and the points that are fitted."""

from __future__ import annotations

import numpy as np
import pytest

from cptplan.curves import CurveRecord, LossCurve
from cptplan.errors import CurveError
from cptplan.laws.history import history_of, observations, transient_points

WARM = {"kind": "wsd", "peak_lr": 2e-3, "total_steps": 100, "warmup_steps": 10, "decay_steps": 20}
CONSTANT = {"kind": "constant", "peak_lr": 1e-3, "total_steps": 20}


def curve(
    name: str, phase: str = "cpt", lr: dict | None = None, steps=(0, 5, 10, 20), loss=None, **record
) -> LossCurve:
    lr = lr or (WARM if phase == "pretrain" else CONSTANT)
    if "replay_ratio" in record:
        record["replay_ratio"] = {"kind": "constant", "replay_ratio": record["replay_ratio"]}
    values = np.linspace(3.0, 2.5, len(steps)) if loss is None else np.array(loss, dtype=float)
    return LossCurve(
        name=name,
        record=CurveRecord.parse({"phase": phase, "lr": lr, **record}, "test"),
        steps=np.array(steps),
        losses={"general": values},
    )


def directory(*curves: LossCurve) -> dict[str, LossCurve]:
    return {c.name: c for c in curves}


def test_pretraining_from_scratch_has_no_past_and_no_domain() -> None:
    base = curve("base", "pretrain", num_params=1000)
    history = history_of(base, directory(base))
    assert (history.phase, history.pretrain_known, len(history.pretrain_lr)) == ("pretrain", True, 0)
    np.testing.assert_array_equal(history.lr, base.lr())
    assert (history.replay_ratio == 1.0).all()
    assert (history.domain_passes, history.num_params, history.previous_lr) == (None, 1000.0, 0.0)


@pytest.mark.parametrize(("parent_step", "steps"), [(None, 100), (80, 80), (0, 0)])
def test_pretraining_is_followed_up_to_the_parent_step(parent_step, steps) -> None:
    base = curve("base", "pretrain")
    run = curve("run", parent="base", parent_step=parent_step, replay_ratio=0.25)
    history = history_of(run, directory(base, run))
    np.testing.assert_array_equal(history.pretrain_lr, base.lr()[:steps])
    assert history.pretrain_known
    assert history.previous_lr == (base.lr()[steps - 1] if steps else 0.0)
    assert (history.replay_ratio == 0.25).all()


def test_pretraining_in_pieces_is_put_together() -> None:
    first = curve("first", "pretrain")
    second = curve("second", "pretrain", CONSTANT, parent="first", parent_step=80)
    run = curve("run", parent="second", parent_step=15)
    curves = directory(first, second, run)
    expected = np.concatenate([first.lr()[:80], second.lr()[:15]])
    np.testing.assert_array_equal(history_of(run, curves).pretrain_lr, expected)
    continued = history_of(second, curves)
    assert continued.phase == "pretrain"
    np.testing.assert_array_equal(continued.pretrain_lr, first.lr()[:80])
    assert (continued.replay_ratio == 1.0).all()


def test_unknown_pretraining_may_be_summed_up() -> None:
    run = curve("run")
    open_start = history_of(run, directory(run))
    assert (open_start.pretrain_known, open_start.previous_lr, open_start.known_area) == (False, 0.0, None)
    told = curve("told", pretrain={"forward_area": 0.5, "final_lr": 3e-4})
    history = history_of(told, directory(told))
    assert (history.pretrain_known, history.previous_lr, history.known_area) == (False, 3e-4, 0.5)
    base = curve("base", "pretrain")
    both = curve("both", parent="base", pretrain={"forward_area": 0.5, "final_lr": 3e-4})
    history = history_of(both, directory(base, both))  # the parent knows better
    assert (history.pretrain_known, history.previous_lr, history.known_area) == (True, base.lr()[-1], None)


def test_parents_that_no_law_describes_are_refused() -> None:
    base, one = curve("base", "pretrain"), curve("one", parent="base")
    two = curve("two", parent="one")
    with pytest.raises(CurveError, match="parent must be a pre-training run; got 'one' for 'two'"):
        history_of(two, directory(base, one, two))
    a, b = (curve(name, "pretrain", parent=parent) for name, parent in (("a", "b"), ("b", "a")))
    with pytest.raises(CurveError, match="parent must be a pre-training run"):
        history_of(a, directory(a, b))


@pytest.mark.parametrize(
    ("record", "passes"),
    [
        ({"batch_tokens": 100, "unique_tokens": {"code": 500}}, np.arange(20) / 5),
        ({"batch_tokens": 100, "unique_tokens": {"code": 300, "law": 200, "general": 9}}, np.arange(20) / 5),
        ({"batch_tokens": 100, "unique_tokens": {"code": 500}, "replay_ratio": 0.5}, np.arange(20) / 10),
        ({"batch_tokens": 100, "unique_tokens": {"general": 500}}, None),
        ({"unique_tokens": {"code": 500}}, None),
        ({"batch_tokens": 100}, None),
    ],
    ids=["one", "two domains", "replay", "general only", "no batch", "no unique tokens"],
)
def test_passes_over_the_domain_are_its_tokens_over_the_unique_ones(record, passes) -> None:
    run = curve("run", **record)
    found = history_of(run, directory(run)).domain_passes
    assert (found is None) == (passes is None)
    if passes is not None:
        np.testing.assert_allclose(found, passes, atol=1e-12)


def test_points_without_a_value_and_those_skipped_are_left_out() -> None:
    base = curve("base", "pretrain", steps=(0, 10, 11, 20, 22, 23, 100))
    run = curve("run", parent="base", loss=[3.0, 3.1, np.nan, 2.9])
    other = LossCurve(name="other", record=run.record, steps=run.steps, losses={"books": run.losses["general"]})
    found = {d.name: d for d in observations(directory(base, run, other), "general", skip_steps=6)}
    assert set(found) == {"base", "run"}
    # beside CPT curves twice the warm-up of 10 steps is left out of pre-training, else once
    assert found["base"].steps.tolist() == [22, 23, 100]
    assert found["run"].steps.tolist() == [0, 20]
    assert found["run"].loss.tolist() == [3.0, 2.9]
    alone = observations(directory(base), "general")
    assert alone[0].steps.tolist() == [11, 20, 22, 23, 100]


def test_curve_without_a_point_to_fit_is_left_out() -> None:
    base = curve("base", "pretrain", steps=(0, 5, 10))
    run = curve("run", parent="base")
    assert [d.name for d in observations(directory(base, run), "general")] == ["run"]


def test_set_that_no_curve_has_is_named() -> None:
    with pytest.raises(CurveError, match="curves must have loss_books; got general"):
        observations(directory(curve("run")), "books")


def test_transient_is_what_comes_before_the_curves_settle() -> None:
    base, run = curve("base", "pretrain", steps=(50, 100)), curve("run", parent="base", steps=(0, 3, 5, 10, 20))
    data = observations(directory(base, run), "general")
    (early,) = transient_points(data, 8)
    assert (early.name, early.steps.tolist()) == ("run", [3, 5])
    assert not transient_points(data, 3)
