"""Which one more pilot would help the decision most, and how much a perfect knowledge of the law would.

The value of a pilot is how much regret of the decision it is expected to remove: for each draw of the fit, what the
pilot would show, what that says of every plan in question (a linear regression over the draws), and the plan that one
would then take. Regret removed per GPU-hour ranks the pilots.

Doubt: the draws know one form of the law, and a new pilot may change which form is chosen; then regret may rise. On 44
virtual campaigns of two published truths (6 or 8 pilots, 5 or 20 % of the final run; measured 2026-11) the advised
pilot changed the regret by +0.003 nats on average (standard error 0.003), a random one of the same cost by +0.008
(0.002); -0.005 was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cptplan.planning.forecast import Forecaster
from cptplan.planning.knobs import Knobs, Space
from cptplan.planning.search import SearchResult, rank

FloatArray = NDArray[np.float64]

POOL_BEST, POOL_REST = 40, 24
PILOT_DECAYS = (0.0, 0.5)
SMALL_REPLAY = 0.05  # of the range: forgetting is steepest there
READINGS = (0.5, 1.0)  # of a pilot's length, after which its losses are read


@dataclass(frozen=True, kw_only=True, slots=True)
class PilotValue:
    """One pilot that could be run."""

    knobs: Knobs
    value: float
    """Expected reduction of the decision's regret, nats of the weighted objective."""
    tokens: int
    gpu_hours: float | None
    """None where speed or model are not known."""

    @property
    def value_per_cost(self) -> float:
        """Nats per GPU-hour, or per token where hours are not known."""
        return self.value / (self.tokens if self.gpu_hours is None else self.gpu_hours)


def plan_pool(found: SearchResult) -> tuple[Knobs, ...]:
    """Plans that could turn out best: the first of a search, and some of the rest."""
    allowed = [e for e in sorted(found.evaluated, key=rank) if e.score.violation <= 0]
    ordered = list(dict.fromkeys(e.knobs for e in (found.best, *allowed)))
    rest = ordered[POOL_BEST:]
    some = rest[:: max(len(rest) // POOL_REST, 1)][:POOL_REST]
    return (*ordered[:POOL_BEST], *some)


def decision_draws(forecaster: Forecaster, plans: Sequence[Knobs]) -> FloatArray:
    """Objective of every plan in every draw of the fit, centred on the best fit, shape (draws, plans)."""
    columns = []
    for knobs in plans:
        draws = forecaster.fit_draws(knobs)
        columns.append(forecaster.weigh(forecaster.mean(knobs)) + draws - draws.mean())
    return np.column_stack(columns)


def decision_regret(draws: FloatArray) -> float:
    """What the plan of the best mean is expected to lose against the plan that is best in truth, nats.

    min_k mean_s D_sk - mean_s min_k D_sk over draws s and plans k: the expected value of perfect information.
    """
    return max(float(draws.mean(axis=0).min() - draws.min(axis=1).mean()), 0.0)


def pilot_value(draws: FloatArray, shown: FloatArray, noise: FloatArray) -> float:
    """Expected reduction of regret by a pilot, nats.

    E[D | Y] = mean + cov(D, Y) (cov(Y) + noise)^-1 (Y - mean), over the draws
    Args:      draws: of decision_draws. shown: what the pilot would show in each draw, shape (draws, readings). noise:
               covariance of what it shows beyond the fit, shape (readings, readings).
    Reference: Strong, Oakley & Brennan 2014, Medical Decision Making 34:311 (value of sample information by
               regression); here linear, and with the noise's covariance known.
    """
    plans, centred = draws - draws.mean(axis=0), shown - shown.mean(axis=0)
    spread = centred.T @ centred / len(draws)
    across = plans.T @ centred / len(draws)
    known = across @ np.linalg.pinv(spread + noise, hermitian=True)
    # what is seen is the pilot's own draw with noise on it: noise from a fixed seed, independent of all draws
    errors = np.random.default_rng(len(draws)).standard_normal(centred.shape) @ _root(noise)
    expected = draws.mean(axis=0) + (centred + errors - errors.mean(axis=0)) @ known.T
    return max(float(draws.mean(axis=0).min() - expected.min(axis=1).mean()), 0.0)


def _root(matrix: FloatArray) -> FloatArray:
    """Symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def candidate_pilots(space: Space, pilot_steps: int, warmup_steps: int) -> tuple[Knobs, ...]:
    """Pilots worth asking about: three rates, four ratios, with and without decay, every start."""
    low, high = space.replay_ratio
    ratios = sorted({low + share * (high - low) for share in (0.0, SMALL_REPLAY, 0.4, 1.0)})
    return tuple(
        Knobs(
            peak_lr=float(f"{rate:.3g}"),
            replay_ratio=round(ratio, 4),
            total_steps=pilot_steps,
            decay_share=decay,
            start=start,
            warmup_steps=warmup_steps,
        )
        for start in space.starts
        for decay in PILOT_DECAYS
        for rate in np.geomspace(*space.peak_lr, 3)
        for ratio in ratios
    )


def next_pilot(
    forecaster: Forecaster,
    draws: FloatArray,
    pilots: Sequence[Knobs],
    *,
    gpu_hours_per_token: float | None = None,
) -> tuple[PilotValue, ...]:
    """The pilots by the regret that they are expected to remove for their cost, best first.

    Args:      draws: decision_draws of the plans that could turn out best (plan_pool). pilots: that could be run, see
               candidate_pilots.
               gpu_hours_per_token: of training, evaluation included.
    """
    found = []
    for knobs in pilots:
        history = forecaster.history(knobs)
        steps = np.array([max(round(share * knobs.total_steps), 1) for share in READINGS])
        losses = forecaster.loss_draws(history, steps)
        noise = np.diag(
            np.concatenate([(forecaster.reading_error(name) * v.mean(axis=0)) ** 2 for name, v in losses.items()])
        )
        tokens = knobs.total_steps * forecaster.batch_tokens
        found.append(
            PilotValue(
                knobs=knobs,
                value=pilot_value(draws, np.column_stack(list(losses.values())), noise),
                tokens=tokens,
                gpu_hours=None if gpu_hours_per_token is None else tokens * gpu_hours_per_token,
            )
        )
    return tuple(sorted(found, key=lambda one: -one.value_per_cost))
