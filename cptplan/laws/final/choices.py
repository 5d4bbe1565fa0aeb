"""What a fitted law of final losses is for: how much domain data, under a limit on general loss or a small corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cptplan.errors import ConfigError
from cptplan.laws.final.fitted import LEVEL, FinalFit
from cptplan.laws.final.protocol import FloatArray, Runs, make_runs

SHARES = np.linspace(0.0, 1.0, 1001)  # shares that are looked at: a tenth of a percent apart


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareChoice:
    """A domain share with the final losses that are expected there."""

    share: float
    """Best estimate, in [0, 1]."""
    low: float
    high: float
    """Central interval of the share over the draws of the fit."""
    level: float
    tokens: float
    """CPT tokens at this share, general and domain together."""
    loss: float
    """Expected final loss of the fitted set there, nats per token."""
    loss_low: float
    loss_high: float
    outside: tuple[str, ...]
    """In words, where this leaves the table."""


def largest_domain_share(
    fit: FinalFit, *, limit: float, tokens: float, num_params: float | None = None, level: float = LEVEL
) -> ShareChoice:
    """The largest domain share up to which a final loss stays within a limit: max R with L(R') <= limit for R' <= R.

    With limit = start + 0.05 nat this is the critical mixture ratio of the CMR law, with start (1 + T) the first use of
    the D-CPT law. low is the share to take for more confidence: (1 + level) / 2 of the draws allow it.
    Args:      fit: of general loss, with a law that sees domain_share. limit: nats per token. tokens: CPT tokens.
               num_params: of the model, when the law sees it. level: such as 0.9.
    Raises:    ConfigError if the law does not see domain_share, or no share keeps the limit.
    Reference: arXiv:2406.01375, section on usages; arXiv:2407.17467, definition of the critical mixture ratio.
    """
    _require(fit, "domain_share")
    shares = SHARES[1:] if fit.law.name == "cmr_ratio" else SHARES
    runs = make_runs(shares, tokens, num_params)
    best = _last_below(shares, fit.mean(runs), limit)
    if best is None:
        raise ConfigError(
            f"limit must be one that some domain share keeps; got {limit:g}, but loss_{fit.set_name} is "
            f"{float(fit.mean(runs)[0]):.4g} at a share of {shares[0]:g}.",
            hint="allow a larger rise, or plan fewer tokens",
        )
    drawn = [_last_below(shares, row, limit) or 0.0 for row in fit.sample(runs)]
    return _choice(fit, best, np.array(drawn), lambda share: tokens, num_params, level)


def best_share_of_domain_tokens(
    fit: FinalFit, *, domain_tokens: float, num_params: float | None = None, level: float = LEVEL
) -> ShareChoice:
    """The domain share with the lowest domain loss when a corpus is used once: min over r of L(N, D_d / r, r).

    A smaller share stretches the corpus over more steps, a larger one learns more from each.
    Args:      fit: of domain loss, with a law that sees domain_share and tokens. domain_tokens: of the corpus.
    Raises:    ConfigError if the law does not see one of them.
    Reference: arXiv:2406.01375, section on usages (limited domain data).
    """
    _require(fit, "domain_share", "tokens")
    shares = SHARES[10:]  # below 1 % the run would be a hundred times the corpus
    runs = make_runs(shares, domain_tokens / shares, num_params)
    best = float(shares[np.argmin(fit.mean(runs))])
    drawn = shares[np.argmin(fit.sample(runs), axis=1)]
    return _choice(fit, best, drawn, lambda share: domain_tokens / share, num_params, level)


def _require(fit: FinalFit, *variables: str) -> None:
    seen = ", ".join(fit.law.variables)
    for name in variables:
        if name not in fit.law.variables:
            raise ConfigError(
                f"law must see {name} to choose a share; got {fit.law.name}, which sees {seen}.",
                hint=f"fit a table where {name} varies, with d_cpt",
            )


def _last_below(shares: FloatArray, losses: FloatArray, limit: float) -> float | None:
    """The share where the losses first pass the limit, between grid points by a straight line; None if at once."""
    above = np.flatnonzero(~(losses <= limit))
    if not len(above):
        return float(shares[-1])
    first = int(above[0])
    if first == 0:
        return None
    before, after = losses[first - 1], losses[first]
    within = (limit - before) / (after - before) if np.isfinite(after) else 0.0
    return float(shares[first - 1] + within * (shares[first] - shares[first - 1]))


def _choice(
    fit: FinalFit,
    share: float,
    drawn: FloatArray,
    tokens_at: Callable[[float], float],
    num_params: float | None,
    level: float,
) -> ShareChoice:
    low, high = np.percentile(drawn, [50.0 * (1.0 - level), 50.0 * (1.0 + level)])
    runs: Runs = make_runs(share, tokens_at(share), num_params)
    there = fit.predict(runs, level)
    return ShareChoice(
        share=share,
        low=min(float(low), share),
        high=max(float(high), share),
        level=level,
        tokens=tokens_at(share),
        loss=float(there.mean[0]),
        loss_low=float(there.low[0]),
        loss_high=float(there.high[0]),
        outside=there.outside,
    )
