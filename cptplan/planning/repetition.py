"""A law of fresh tokens that may judge runs which repeat theirs, on an assumption from published work.

A law knows repetition when pilots repeated. Where none did, its clock of the domain takes the published worth of a
repeated token, exp(-passes / R*) with R* = 15.39 (Muennighoff et al. 2023, arXiv:2305.16264), and no harm beyond that.
The closed form of arXiv:2605.09189 has to be fitted to runs of several numbers of different tokens (cptplan fit --law
repetition); it has no published constants to assume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.separable import Solution
from cptplan.laws.cpt import CptLaw
from cptplan.laws.final.repetition import HALF_LIFE

ASSUMED = (
    f"A repeated domain token counts exp(-passes / {HALF_LIFE:.2f}) of a fresh one: assumed (arXiv:2305.16264), "
    "because no pilot repeated its tokens. On real runs that was right up to four passes, and said losses 5 % too low "
    "at eight and 15 % at sixteen (experiments/06)."
)


def knows_repetition(fitted: FittedLaw) -> bool:
    """Whether a law judges repeated tokens by what its own pilots showed; general text is never one to repeat."""
    return not isinstance(fitted.law, CptLaw) or fitted.law.side == "general" or fitted.law.repeats


def with_assumed_repetition(fitted: FittedLaw) -> FittedLaw:
    """The law with the published worth of repeated tokens in all its fits; the same where it knows repetition."""
    if knows_repetition(fitted) or not isinstance(fitted.law, CptLaw):
        return fitted
    law, best, left_out = _extended(fitted.law, fitted.best, fitted.left_out)
    rivals = []
    for form in fitted.rivals:
        assert isinstance(form.law, CptLaw)
        rival = _extended(form.law, form.best, form.left_out)
        rivals.append(replace(form, law=rival[0], best=rival[1], left_out=rival[2]))
    return replace(fitted, law=law, best=best, left_out=left_out, rivals=tuple(rivals))


def _extended(
    old: CptLaw, best: Solution, left_out: Sequence[Solution]
) -> tuple[CptLaw, Solution, tuple[Solution, ...]]:
    """A law and its fits with the published half-life, and no harm."""
    law = CptLaw(old.side, old.reference_lr, replace(old.form, repetition=True), old.memory_steps)
    values = [p.name for p in law.parameters].index("R")
    terms = [t.name for t in law.terms].index("O")

    def extended(solution: Solution) -> Solution:
        return replace(
            solution,
            values=np.insert(solution.values, values, HALF_LIFE),
            coefficients=np.insert(solution.coefficients, terms, 0.0),
        )

    return law, extended(best), tuple(extended(one) for one in left_out)
