"""What every law keeps for any schedule and any replay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from law_examples import EVERY_LAW, REFERENCE_LR, coefficients_of, cpt_run, pretrain_run, steps_of, values_of
from slow_laws import slow_loss

from cptplan.laws.cpt import CptForm, CptLaw
from cptplan.laws.history import RunHistory
from cptplan.laws.pretraining import AnnealingLaw, MultiPowerLaw

rates = st.lists(st.one_of(st.just(0.0), st.floats(1e-7, 2 * REFERENCE_LR)), min_size=1, max_size=40).map(np.array)
ratios = st.floats(0.0, 1.0)


@st.composite
def runs(draw: st.DrawFn) -> RunHistory:
    """A run of either phase, after a pre-training that is known or not."""
    lr = draw(rates)
    if draw(st.booleans()):
        return pretrain_run(lr, draw(st.none() | rates))
    replay = draw(st.lists(ratios, min_size=len(lr), max_size=len(lr)).map(np.array))
    passes = np.cumsum(1.0 - replay) * draw(st.floats(0.01, 3.0)) if draw(st.booleans()) else None
    return cpt_run(lr, replay, draw(st.none() | rates), passes)


laws = st.sampled_from(list(EVERY_LAW.values()))
few = settings(max_examples=100)


@few
@given(law=laws, run=runs(), seed=st.integers(0, 99))
def test_columns_and_slopes_are_finite(law, run, seed) -> None:
    found = law.evaluate(values_of(law, seed), run, steps_of(run))
    assert np.isfinite(found.values).all()
    assert np.isfinite(found.slopes).all()


@few
@given(law=laws, run=runs(), seed=st.integers(0, 99))
def test_law_is_its_slow_twin(law, run, seed) -> None:
    steps, values, coefficients = steps_of(run)[::9], values_of(law, seed), coefficients_of(law)
    if run.domain_passes is not None:
        steps = steps[steps < len(run.lr)]
    slow = [slow_loss(law, values, coefficients, run, int(step)) for step in steps]
    # gains of rises and falls may cancel to a part in a million of themselves
    np.testing.assert_allclose(law.columns(values, run, steps) @ coefficients, slow, rtol=1e-8, atol=1e-8)


@few
@given(law=laws, run=runs(), seed=st.integers(0, 99))
def test_base_never_rises(law, run, seed) -> None:
    base = law.columns(values_of(law, seed), run, steps_of(run))[:, 1]
    assert np.all(np.diff(base) <= 1e-12)
    assert np.all((base > 0) & (base <= 1))


@few
@given(run=runs(), seed=st.integers(0, 99), side=st.sampled_from(["general", "domain"]))
def test_shift_lies_between_nothing_and_all_and_more_replay_weakens_it(run, seed, side) -> None:
    for form in (CptForm(), CptForm(amplitude="exponential"), CptForm(amplitude="none")):
        law = CptLaw(side, REFERENCE_LR, replace(form, open_start=True, transient=True, sizes=True))
        more = replace(run, replay_ratio=0.5 * (1.0 + run.replay_ratio))
        values = values_of(law, seed)
        shift, weaker = (law.columns(values, r, steps_of(r))[:, 4] for r in (run, more))
        assert shift[0] == 0.0
        assert np.all((shift >= 0.0) & (shift <= 1.0 + 1e-12))
        assert np.all(weaker <= shift + 1e-12)


@few
@given(before=rates, lr=rates, seed=st.integers(0, 99))
def test_annealing_is_kept_when_a_schedule_is_split_by_phase(before, lr, seed) -> None:
    before = np.append(before, 2 * REFERENCE_LR)  # the highest rate, where the warm-up ends, lies in pre-training
    run = cpt_run(lr, 0.5, before)
    one, both = AnnealingLaw(REFERENCE_LR), CptLaw("general", REFERENCE_LR)
    values = values_of(both, seed)
    time = values[[p.name for p in both.parameters].index("forgetting_time")]
    split = both.columns(values, run, steps_of(run))[:, 2:4].sum(axis=1)
    np.testing.assert_allclose(split, one.columns(np.array([0.5, time]), run, steps_of(run))[:, 2], atol=1e-12)


@few
@given(lr=rates, steps=st.integers(1, 50), seed=st.integers(0, 99))
def test_steps_at_rate_0_do_not_train_a_saturating_law(lr, steps, seed) -> None:
    law = MultiPowerLaw(REFERENCE_LR)
    padded = pretrain_run(np.concatenate([lr, np.zeros(steps)]))
    loss = law.columns(values_of(law, seed), padded, np.arange(len(lr), len(lr) + steps + 1)) @ coefficients_of(law)
    np.testing.assert_allclose(loss, loss[0], rtol=1e-9)


@few
@given(law=laws, run=runs(), seed=st.integers(0, 99), share=st.floats(0.1, 1.0))
def test_what_comes_later_changes_nothing(law, run, seed, share) -> None:
    steps = max(int(share * len(run.lr)), 1)
    peak = int(np.argmax(np.concatenate([run.pretrain_lr, run.lr])))
    if peak >= len(run.pretrain_lr) + steps or run.domain_passes is not None:
        return  # a warm-up ends at the highest rate of the whole, which has to be there
    cut = replace(run, lr=run.lr[:steps], replay_ratio=run.replay_ratio[:steps])
    values, at = values_of(law, seed), np.arange(steps + 1)
    np.testing.assert_allclose(law.columns(values, cut, at), law.columns(values, run, at), rtol=1e-12, atol=1e-14)
