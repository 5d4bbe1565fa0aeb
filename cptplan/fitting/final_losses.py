"""Fit a law of final losses to a table of finished runs, and say the result in rows and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cptplan.errors import ConfigError, CurveError, suggest
from cptplan.fitting.final_table import FinalLosses
from cptplan.laws.cpt import Side
from cptplan.laws.final.chinchilla import ChinchillaLaw
from cptplan.laws.final.choices import largest_domain_share
from cptplan.laws.final.cmr import TOLERANCE, CriticalRatioLaw, fit_critical_ratio_law, ratio_law, tokens_law
from cptplan.laws.final.d_cpt import DCptLaw
from cptplan.laws.final.fitted import NUM_DRAWS, FinalFit, fit_law
from cptplan.laws.final.protocol import FinalLaw, FloatArray, Runs
from cptplan.laws.final.repetition import RepetitionLaw

FEWEST_SHARES = 4  # a power law of one variable has three parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class LawKind:
    """A law that can be asked for by name, and what it asks of the table."""

    meaning: str
    must_vary: tuple[str, ...]
    must_not_vary: tuple[str, ...]
    make: Callable[[Runs, Side], FinalLaw]


def _reference(values: FloatArray) -> float:
    """Geometric mean, 1 when not known."""
    return float(np.exp(np.mean(np.log(values)))) if np.all(np.isfinite(values)) else 1.0


LAWS: Mapping[str, LawKind] = {
    "d_cpt": LawKind(
        meaning="domain share, tokens and model size: which share, under a limit or a small corpus",
        must_vary=("domain_share",),
        must_not_vary=(),
        make=lambda runs, side: DCptLaw(
            side, with_params=runs.levels("num_params") > 1, with_tokens=runs.levels("tokens") > 1
        ),
    ),
    "cmr_ratio": LawKind(
        meaning="domain share alone, at one number of tokens and one size",
        must_vary=("domain_share",),
        must_not_vary=("tokens", "num_params"),
        make=lambda runs, side: ratio_law(),
    ),
    "cmr_tokens": LawKind(
        meaning="tokens alone, at one domain share and one size; general loss may rise, then fall",
        must_vary=("tokens",),
        must_not_vary=("domain_share", "num_params"),
        make=lambda runs, side: tokens_law(general=side == "general"),
    ),
    "repetition": LawKind(
        meaning="tokens, different tokens and model size: what repeating a small corpus costs",
        must_vary=("tokens", "unique_tokens"),
        must_not_vary=(),
        make=lambda runs, side: RepetitionLaw(
            with_params=runs.levels("num_params") > 1,
            reference_params=_reference(runs.num_params),
            reference_tokens=_reference(runs.tokens),
            reference_unique=_reference(runs.unique_tokens),
        ),
    ),
    "chinchilla": LawKind(
        meaning="tokens and model size alone: the baseline to beat",
        must_vary=("tokens",),
        must_not_vary=(),
        make=lambda runs, side: ChinchillaLaw(with_params=runs.levels("num_params") > 1),
    ),
}


def fit_final_losses(
    table: FinalLosses,
    law_name: str = "d_cpt",
    set_name: str = "general",
    *,
    side: Side | None = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> FinalFit:
    """Fit a law to the final losses of one validation set.

    Args:      law_name: a key of LAWS. side: whether the set is of the general or of the domain corpus; by its name
               when None. num_draws, seed: of the bootstrap over rows.
    Raises:    ConfigError for an unknown law; CurveError if the table lacks the set, has too few rows, or a variable
               that must change does not.
    """
    if law_name not in LAWS:
        hint = suggest(law_name, LAWS) or f"known laws: {', '.join(LAWS)}"
        raise ConfigError(f"law must be one of final losses; got {law_name!r}.", hint=hint)
    side = side or ("general" if set_name == "general" else "domain")
    kept = table.take(table.rows_of(set_name))
    runs, losses = kept.runs, kept.losses[set_name]
    _check_variation(LAWS[law_name], law_name, runs, table.where)
    law = LAWS[law_name].make(runs, side)
    needed = len(law.parameters) + len(law.terms) + 1
    if len(runs) < needed:
        raise CurveError(
            f"table must have {needed} rows for {law_name} with {needed - 1} parameters; got {len(runs)} with "
            f"loss_{set_name} in {table.where}.",
            hint="add runs, or take a law with fewer parameters, such as cmr_ratio",
        )
    fit = fit_law(law, runs, losses, kept.names, set_name=set_name, side=side, num_draws=num_draws, seed=seed)
    return replace(fit, warnings=(*table.notes, *fit.warnings))


def _check_variation(kind: LawKind, law_name: str, runs: Runs, where: str) -> None:
    for name in kind.must_vary:
        levels = runs.levels(name)
        if levels < 2:
            got = "one value" if levels else "no values"
            raise CurveError(
                f"{name} must vary for {law_name}; got {got} in {where}.", hint="add runs, or take another law"
            )
    for name in kind.must_not_vary:
        if runs.levels(name) > 1:
            raise CurveError(
                f"{name} must be one value for {law_name}; got {runs.levels(name)} in {where}.",
                hint="keep the rows of one value, or take d_cpt",
            )
    if law_name == "cmr_ratio" and np.any(runs.domain_share == 0.0):
        raise CurveError(
            f"domain_share must be greater than 0 for cmr_ratio; got 0 in {where}.",
            hint="leave runs without domain data out, or take d_cpt",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticalRatios:
    """Largest domain shares that keep general loss near its start, by CPT tokens; arrays of shape (points,)."""

    tokens: FloatArray
    ratios: FloatArray
    low: FloatArray
    high: FloatArray
    """90 % intervals of the ratios."""
    law: CriticalRatioLaw | None
    """R_CMR(T) through them; None when there are fewer than four."""


def critical_ratios(
    table: FinalLosses, *, tolerance: float = TOLERANCE, start_loss: float | None = None, set_name: str = "general"
) -> CriticalRatios:
    """The critical mixture ratio at every number of tokens in a table of one model size, and its law.

    Args:      tolerance: rise of general loss that is allowed, nats per token. start_loss: before CPT; of the table's
               rows with tokens 0 when None.
    Raises:    CurveError if no number of tokens has enough rows, or a fit's own; ConfigError if no share is allowed.
    Reference: arXiv:2407.17467.
    """
    start = table.start_loss(set_name) if start_loss is None else start_loss
    rows = table.rows_of(set_name)
    choices = []
    for tokens in np.unique(table.runs.tokens[rows]):
        at = rows & (table.runs.tokens == tokens)
        if table.runs.take(at).levels("domain_share") < FEWEST_SHARES:
            continue
        fit = fit_final_losses(table.take(at), "cmr_ratio", set_name, side="general")
        choices.append(largest_domain_share(fit, limit=start + tolerance, tokens=float(tokens)))
    if not choices:
        raise CurveError(
            f"table must have {FEWEST_SHARES} domain shares at one number of tokens; got fewer in {table.where}.",
            hint="add runs of other shares, or fit d_cpt, which learns from all tokens together",
        )
    tokens, ratios = np.array([c.tokens for c in choices]), np.array([c.share for c in choices])
    return CriticalRatios(
        tokens=tokens,
        ratios=ratios,
        low=np.array([c.low for c in choices]),
        high=np.array([c.high for c in choices]),
        law=fit_critical_ratio_law(tokens, ratios) if len(choices) >= FEWEST_SHARES else None,
    )


FIT_COLUMNS = ("validation set", "law", "rows", "in sample", "rows left out", "left out at the edge", "plain mean")
PARAMETER_COLUMNS = ("parameter", "value", "90 % interval", "meaning")


def fit_rows(fits: Sequence[FinalFit]) -> list[tuple[str, ...]]:
    """A row for each fit: how far it misses rows it knew, rows left out, and what the plain mean would miss."""
    return [
        (
            f"loss_{fit.set_name}",
            fit.law.name,
            str(len(fit.runs)),
            f"{fit.in_sample_error:.2%}",
            f"{fit.held_out_error:.2%}",
            "none" if math.isnan(fit.edge_error) else f"{fit.edge_error:.2%}",
            f"{fit.baseline_error:.2%}",
        )
        for fit in fits
    ]


def parameter_rows(fit: FinalFit) -> list[tuple[str, ...]]:
    """A row for each parameter of a fit."""
    intervals = fit.parameter_intervals()
    meanings = {term.name: term.meaning for term in fit.law.terms} | {p.name: p.meaning for p in fit.law.parameters}
    return [
        (name, f"{value:.4g}", f"{intervals[name][0]:.4g} to {intervals[name][1]:.4g}", meanings[name])
        for name, value in fit.parameters.items()
    ]


def summary(fits: Sequence[FinalFit]) -> dict[str, Any]:
    """The fits as JSON values, by validation set."""
    return {"schema_version": 1, "sets": {fit.set_name: _to_json(fit) for fit in fits}}


def _to_json(fit: FinalFit) -> dict[str, Any]:
    return {
        "law": fit.law.name,
        "reference": fit.law.reference,
        "side": fit.side,
        "rows": len(fit.runs),
        "parameters": fit.parameters,
        "intervals90": {name: list(ends) for name, ends in fit.parameter_intervals(0.9).items()},
        "in_sample_error": fit.in_sample_error,
        "held_out_error": fit.held_out_error,
        "edge_error": None if math.isnan(fit.edge_error) else fit.edge_error,
        "baseline_error": fit.baseline_error,
        "held_out": {row.name: {"measured": row.measured, "predicted": row.predicted} for row in fit.held_out},
        "unidentified": list(fit.unidentified),
        "warnings": list(fit.warnings),
    }
