"""What a fit is worth, as data: did it converge, what decides it besides the data, what do the residuals still hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cptplan.contract import Contract
from cptplan.fitting.separable import Solution, posterior_width, predict
from cptplan.fitting.support import Support
from cptplan.laws.history import Observations
from cptplan.laws.protocol import Law

FloatArray = NDArray[np.float64]

AT_BOUND = 0.01  # of the range between the bounds, in the search coordinate
PRIOR_DECIDES = 0.9  # a parameter whose width shrinks by less than a tenth is the prior's
STRUCTURED = 0.5  # assumed: above this, neighbouring residuals share most of their size
NEGLIGIBLE = 2e-4  # assumed: relative residuals of this size are no shape to speak of (simulated curves without noise)


class Verdict(Contract):
    """The judgement of one fit."""

    converged: bool
    at_bound: tuple[str, ...]
    """Nonlinear parameters at a bound, and terms whose coefficient is 0."""
    prior_decides: tuple[str, ...]
    """Parameters that the curves say next to nothing of: they stay where the prior has them."""
    residual_correlation: float
    """Mean correlation of neighbouring residuals within a curve: near 0 for noise, near 1 for a law that is wrong."""
    unidentified: tuple[str, ...]
    """What these curves cannot tell, in words."""
    warnings: tuple[str, ...] = ()
    """What was found odd about the curves."""

    def lines(self) -> tuple[str, ...]:
        """The verdict for people, worst first; empty when there is nothing to say."""
        found = [] if self.converged else ["the search did not converge"]
        found += list(self.unidentified)
        if self.residual_correlation > STRUCTURED:
            found.append(
                f"residuals are structured (correlation {self.residual_correlation:.2f}): the law misses a shape"
            )
        if self.at_bound:
            found.append(f"at a bound: {', '.join(self.at_bound)}")
        if self.prior_decides:
            found.append(f"decided by priors, not by these curves: {', '.join(self.prior_decides)}")
        return (*found, *self.warnings)


def judge(
    law: Law, solution: Solution, data: Sequence[Observations], support: Support, warnings: Sequence[str] = ()
) -> Verdict:
    """The verdict on a fit.

    Args:      data: the fitted points. support: of the curves that judge. warnings: of the curves themselves.
    """
    residuals = [predict(law, solution, d.history, d.steps) / d.loss - 1.0 for d in data]
    visible = np.sqrt(np.mean(np.concatenate(residuals) ** 2)) > NEGLIGIBLE
    return Verdict(
        converged=solution.converged,
        at_bound=_at_bound(law, solution, data),
        prior_decides=_prior_decides(law, solution, data),
        residual_correlation=neighbour_correlation(residuals) if visible else 0.0,
        unidentified=_unidentified(data, support),
        warnings=tuple(warnings),
    )


def neighbour_correlation(residuals: Sequence[FloatArray]) -> float:
    """Correlation of neighbouring values over all curves, in [-1, 1]; 0 when there are too few."""
    centred = [r - r.mean() for r in residuals if len(r) > 2]
    above = sum(float(r[1:] @ r[:-1]) for r in centred)
    below = sum(float(r @ r) for r in centred)
    return float(np.clip(above / below, -1.0, 1.0)) if below > 0 else 0.0


def _at_bound(law: Law, solution: Solution, data: Sequence[Observations]) -> tuple[str, ...]:
    found = []
    for parameter, value in zip(law.parameters, solution.values.tolist(), strict=True):
        low, high, at = (parameter.to_z(v) for v in (parameter.low, parameter.high, value))
        if min(at - low, high - at) < AT_BOUND * (high - low):
            found.append(f"{parameter.name} = {value:.3g}")
    columns = np.concatenate([law.columns(solution.values, d.history, d.steps) for d in data])
    used = np.any(columns != 0.0, axis=0)
    found += [
        f"{term.name} = 0"
        for term, coefficient, there in zip(law.terms, solution.coefficients, used, strict=True)
        if there and coefficient == 0.0
    ]
    return tuple(found)


def _prior_decides(law: Law, solution: Solution, data: Sequence[Observations]) -> tuple[str, ...]:
    width = posterior_width(law, data, solution)
    return tuple(
        p.name for p, sd in zip(law.parameters, width.tolist(), strict=True) if sd > PRIOR_DECIDES * p.prior_sd
    )


def _unidentified(data: Sequence[Observations], support: Support) -> tuple[str, ...]:
    """What was never tried, in words."""
    found = []
    histories = [d.history for d in data if d.history.phase == "cpt"]
    if support.peak_lr[1] < 1.2 * support.peak_lr[0]:
        found.append(f"only one peak rate was tried ({support.peak_lr[0]:.3g}): what the rate does is not known")
    if not any(_decays(d) for d in data):
        found.append("no curve's rate falls: what annealing gains is not known")
    if not histories:
        return tuple(found)
    low, high = support.replay_ratio
    if high - low < 0.02:
        found.append(f"only one replay ratio was tried ({low:.0%}): what replay does is not known")
    elif low > 0.1:
        found.append(f"replay below {low:.0%} was never tried")
    elif sum(0.0 < float(h.replay_ratio.mean()) <= 0.1 for h in histories) == 0:
        found.append("replay between 0 and 10 % was never tried, where forgetting changes most")
    unknown = [h for h in histories if not h.pretrain_known]
    if any(h.known_area is None for h in unknown):
        found.append("pre-training is unknown: its area S_pt is fitted and means nothing")
    if any(h.last_lr is None for h in unknown):
        found.append("the last rate of pre-training is unknown: the start is taken as annealed")
    return tuple(found)


def _decays(points: Observations) -> bool:
    """The rate falls to less than half its peak while the curve is logged."""
    seen = points.history.lr[: points.steps[-1]]
    return bool(len(seen)) and float(seen[int(seen.argmax()) :].min()) < 0.5 * float(seen.max())
