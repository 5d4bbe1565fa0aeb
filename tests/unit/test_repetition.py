"""Runs that repeat their tokens: judged by the law where pilots did, else by what is published."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fit_examples import DOMAIN, GENERAL, coefficients, truth
from simple_laws import LAWS, make_forecaster

from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.separable import Solution
from cptplan.laws.cpt import CptForm, CptLaw
from cptplan.laws.final.repetition import HALF_LIFE
from cptplan.planning.knobs import Knobs
from cptplan.planning.repetition import knows_repetition, with_assumed_repetition

KNOBS = Knobs(peak_lr=1e-3, replay_ratio=0.2, total_steps=200, decay_share=0.3, start="stable", warmup_steps=2)


def fitted(law):
    best = Solution(values=truth(law), coefficients=coefficients(law), scale=0.01, objective=0.0, converged=True)
    return FittedLaw(
        set_name="domain",
        law=law,
        best=best,
        left_out=(best, replace(best, coefficients=1.01 * best.coefficients)),
        held_out=(),
        in_sample_error=0.01,
        transient_error=0.0,
        settled_step=5,
        support=LAWS["domain"].support,
        noise=0.01,
    )


def loss(law, domain_tokens):
    forecaster = make_forecaster(laws={"general": LAWS["general"], "domain": law}, domain_tokens=domain_tokens)
    return forecaster.mean(KNOBS)["domain"]


def test_first_pass_is_judged_as_before():
    plain = fitted(DOMAIN)
    assumed = with_assumed_repetition(plain)
    assert loss(assumed, np.inf) == loss(plain, np.inf)
    assert loss(assumed, 0.8 * 200 * 256) == pytest.approx(loss(plain, np.inf), rel=1e-12)  # each token once
    assert len(assumed.left_out) == 2


def test_repeated_tokens_teach_less_and_the_less_the_more_often():
    """Without the assumption a law of fresh tokens would not see them at all."""
    plain, tokens = fitted(DOMAIN), 0.8 * 200 * 256
    assumed = with_assumed_repetition(plain)
    found = [loss(assumed, tokens / passes) for passes in (1, 4, 16, 64)]
    assert all(later > earlier for earlier, later in zip(found, found[1:], strict=False))
    assert loss(plain, tokens / 64) == loss(plain, np.inf)
    # a few passes are nearly fresh: 4 are worth 3.73 (arXiv:2305.16264), 2 nats of shift at most are in play
    assert found[1] - found[0] < 0.02


def test_worth_is_the_published_one():
    law = with_assumed_repetition(fitted(DOMAIN)).law
    values = with_assumed_repetition(fitted(DOMAIN)).best.values
    assert dict(zip([p.name for p in law.parameters], values, strict=True))["R"] == HALF_LIFE


def test_law_that_knows_repetition_or_need_not_stays():
    knowing = fitted(CptLaw("domain", 2e-3, CptForm(repetition=True)))
    for law in (knowing, fitted(GENERAL), LAWS["domain"]):
        assert knows_repetition(law)
        assert with_assumed_repetition(law) is law
    assert not knows_repetition(fitted(DOMAIN))
