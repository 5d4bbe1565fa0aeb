"""Which forms of a law to trust, and how much each: by how well they predict left-out curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cptplan.curve_checks import check_curves
from cptplan.curves import LossCurve
from cptplan.errors import ConfigError, CurveError, suggest
from cptplan.fitting.fitted import (
    MANY_CURVES,
    FittedLaw,
    Form,
    HeldOut,
    LeaveOneOut,
    in_sample_error,
    leave_one_out,
    leave_stretches_out,
    point_noise,
    reach_of,
    rms,
    targets,
)
from cptplan.fitting.separable import Solution, solve
from cptplan.fitting.support import passes_of, support_of
from cptplan.fitting.verdict import Verdict, judge
from cptplan.laws.cpt import PUBLISHED, CptForm, CptLaw, Side, memory_prior
from cptplan.laws.history import Observations, observations, transient_points
from cptplan.laws.pretraining import AnnealingLaw, FslLaw, MultiPowerLaw, PowerLaw
from cptplan.laws.protocol import Law
from cptplan.laws.registry import LAWS

SETTLED_WARMUPS = 2  # measured: with the transient in the law two warm-ups do as well as four, reports/decisions/0002
MIN_PILOTS = 3  # assumed: fewer leave nothing to hold out
FEWEST_TO_COMPARE = 4  # curves: of three, the left-out errors say more of which three they are than of the law
# Share of the left-out curves' evidence that counts: they share most of their fits, and are as short as the others,
# while the plan is about longer runs. Measured with LEAST_WEIGHT on 40 virtual and four real campaigns
# (reports/decisions/0006).
TEMPER = 0.5
LEAST_WEIGHT = 0.05  # forms below it are dropped: they cost time and move nothing
RESAMPLES = 400  # of the curves, in the Bayesian bootstrap of the evidence
REPEATED = 1.2  # passes over the domain from which on a law without repetition would be wrong

# The first is the one that has proved itself on real campaigns and is taken alone when curves are few
# (reports/decisions/0002); with more, all count as much as they predict left-out curves (reports/decisions/0006).
FORMS: Mapping[Side, tuple[CptForm, ...]] = {
    "general": (
        CptForm(clock=False, free_power=False, undo=True, transient=True),
        CptForm(undo=True, transient=True),
        CptForm(clock=False, free_power=False, undo=True),
        CptForm(amplitude="exponential", clock=False, free_power=False, transient=True),
    ),
    "domain": (
        CptForm(amplitude="none"),
        CptForm(amplitude="none", free_power=False),
        CptForm(amplitude="exponential"),
        PUBLISHED,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One form that was tried, and how far it missed pilots it had not seen."""

    form: str
    discrepancy: float
    in_sample_error: float
    weight: float
    """What it counts in predictions; all sum to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The fitted law of one validation set, the forms that were tried, what counts most first, and what to think."""

    fitted: FittedLaw
    candidates: tuple[Candidate, ...]
    verdict: Verdict
    reason: str
    """Why this law, in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tried:
    law: Law
    best: Solution
    without: LeaveOneOut
    in_sample_error: float

    @property
    def held_out(self) -> tuple[HeldOut, ...]:
        return self.without.held_out

    @property
    def discrepancy(self) -> float:
        return rms([h.late_error for h in self.held_out]) if self.held_out else self.in_sample_error


def settled_step(curves: Mapping[str, LossCurve]) -> int:
    """First CPT step that the laws are fitted from: two warm-ups in, but not past a third of the shortest curve."""
    pilots = [curve for curve in curves.values() if curve.record.phase == "cpt"]
    warm = max((int(curve.lr().argmax()) + 1 for curve in pilots), default=0)
    shortest = min((int(curve.steps[-1]) for curve in pilots), default=0)
    return max(min(SETTLED_WARMUPS * warm, shortest // 3), 1)


def select_law(
    curves: Mapping[str, LossCurve],
    set_name: str,
    side: Side,
    *,
    law: str = "auto",
    seed: int = 0,
    where: str = "the curves given",
) -> Selection:
    """Fit the candidates to the curves, weigh them by left-out curves, and keep the fits without them.

    Args:      curves: pilots and the pre-training runs they continue. set_name: validation set. side: whether the shift
               is forgetting ("general") or learning ("domain"). law: auto, or a name of registry.LAWS.
               where: place of the curves, for the message.
    Raises:    CurveError if the curves are too few for the law, or break a rule; ConfigError for an unknown law.
    """
    odd = check_curves(curves, [set_name], where)
    settled = settled_step(curves)
    data = observations(curves, set_name, skip_steps=settled)
    laws = candidate_laws(data, side, law, set_name, where)
    _check_points(data, laws[0], set_name, where)
    tried = [_try(candidate, data, seed) for candidate in laws]
    weights, reason = _weigh(tried)
    order = sorted(zip(tried, weights, strict=True), key=lambda pair: (-pair[1], pair[0].discrepancy))
    first = order[0][0]
    support = support_of(targets(data), first.law.reference_lr)
    transient = transient_points(observations(curves, set_name), settled)
    enough = len(first.without.solutions) >= MANY_CURVES
    fitted = FittedLaw(
        set_name=set_name,
        law=first.law,
        best=first.best,
        left_out=first.without.solutions if enough else leave_stretches_out(first.law, data, first.best),
        rivals=tuple(
            Form(law=t.law, best=t.best, left_out=t.without.solutions, weight=weight)
            for t, weight in order[1:]
            if weight > 0.0
        ),
        held_out=first.held_out,
        in_sample_error=first.in_sample_error,
        transient_error=in_sample_error(first.law, first.best, transient) if transient else 0.0,
        settled_step=settled,
        support=support,
        noise=point_noise(first.law, first.best, data),
    )
    fitted = replace(fitted, reach=reach_of(fitted.forms, data, fitted.discrepancy))
    return Selection(
        fitted=fitted,
        candidates=tuple(
            Candidate(form=t.law.name, discrepancy=t.discrepancy, in_sample_error=t.in_sample_error, weight=weight)
            for t, weight in order
        ),
        verdict=judge(first.law, first.best, data, support, [warning.message for warning in odd]),
        reason=reason,
    )


def sets_of(curves: Mapping[str, LossCurve]) -> list[str]:
    """The validation sets to fit: those of the CPT curves, or of all when there is none."""
    judges = [curve for curve in curves.values() if curve.record.phase == "cpt"] or list(curves.values())
    return list(dict.fromkeys(name for curve in judges for name in curve.losses))


def side_of(set_name: str, curves: Mapping[str, LossCurve]) -> Side:
    """Whether CPT makes a validation set worse (general) or better (domain).

    By its name when it is general or domain; else by what most CPT curves did to it from first to last point.
    """
    if set_name in ("general", "domain"):
        return "general" if set_name == "general" else "domain"
    changes = []
    for curve in curves.values():
        if curve.record.phase == "cpt" and set_name in curve.losses:
            known = curve.losses[set_name][np.isfinite(curve.losses[set_name])]
            changes.append(known[-1] > known[0])
    return "general" if changes and 2 * sum(changes) > len(changes) else "domain"


def candidate_laws(data: Sequence[Observations], side: Side, law: str, set_name: str, where: str | Path) -> list[Law]:
    """The laws to try: the trusted one first.

    Raises:    ConfigError for an unknown law; CurveError if the CPT law has fewer than three CPT curves.
    """
    pilots = [d for d in data if d.history.phase == "cpt"]
    rate = max(float(max(d.history.lr.max(), d.history.pretrain_lr.max(initial=0.0))) for d in data)
    memory = memory_prior(max(len(d.history.pretrain_lr) + len(d.history.lr) for d in data))
    schedule_laws: dict[str, Law] = {
        "multi_power_late": MultiPowerLaw(rate, late=True),
        "multi_power": MultiPowerLaw(rate),
        "annealing": AnnealingLaw(rate, memory),
        "fsl": FslLaw(rate),
        "power": PowerLaw(rate),
    }
    if law in schedule_laws:
        return [schedule_laws[law]]
    if law not in ("auto", *LAWS):
        raise ConfigError(
            f"law must be auto or one of {', '.join(LAWS)}; got {law!r}.", hint=suggest(law, ["auto", *LAWS])
        )
    if law == "auto" and not pilots:
        return [schedule_laws[name] for name in ("multi_power_late", "multi_power", "annealing", "fsl")]
    if len(pilots) < MIN_PILOTS:
        raise CurveError(
            f"a fit must have at least {MIN_PILOTS} CPT curves with loss_{set_name}; got {len(pilots)} in {where}.",
            hint="run more pilots" if pilots else "choose --law multi_power_late or annealing for pre-training curves",
        )
    forms = (PUBLISHED,) if law == "cpt-published" else FORMS[side]
    return [CptLaw(side, rate, _complete(form, data, pilots), memory) for form in forms]


def _complete(form: CptForm, data: Sequence[Observations], pilots: Sequence[Observations]) -> CptForm:
    """The form with what these curves call for: an unknown pre-training, repeated tokens, several sizes."""
    return replace(
        form,
        open_start=any(not d.history.pretrain_known and d.history.known_area is None for d in pilots),
        repetition=max(passes_of(d.history) for d in pilots) > REPEATED,
        sizes=len({d.history.num_params for d in data if d.history.num_params}) > 1,
    )


def _check_points(data: Sequence[Observations], law: Law, set_name: str, where: str) -> None:
    unknown, points = len(law.parameters) + len(law.terms), sum(len(d.loss) for d in data)
    if points < unknown + 2:
        raise CurveError(
            f"the {law.name} law must have at least {unknown + 2} points of loss_{set_name}; got {points} in {where}.",
            hint="evaluate more often, or choose a smaller law with --law",
        )


def _try(law: Law, data: Sequence[Observations], seed: int) -> _Tried:
    best = solve(law, data, seed=seed)
    return _Tried(
        law=law,
        best=best,
        without=leave_one_out(law, data, best),
        in_sample_error=in_sample_error(law, best, data),
    )


def _weigh(tried: Sequence[_Tried]) -> tuple[list[float], str]:
    """What each law counts, summing to 1, and why.

    With left-out errors e of n curves and a normal density of their own size, the evidence for a law is
    -n/2 ln(mean e^2). Averaged over weights that a Bayesian bootstrap gives the curves, it makes weights that no single
    curve decides (pseudo-BMA+, Yao et al. 2018, arXiv:1704.02030).
    """
    if len(tried) == 1:
        return [1.0], "the only law asked for"
    curves = len(tried[0].held_out)
    if curves < FEWEST_TO_COMPARE:
        return [1.0] + [0.0] * (len(tried) - 1), (
            f"the law that has held elsewhere: {curves} curves are too few to choose by"
        )
    errors = np.array([[h.late_error for h in t.held_out] for t in tried])
    shares = np.random.default_rng(0).dirichlet(np.ones(curves), RESAMPLES)
    # 1e-12: a law that is exact on simulated curves without noise
    evidence = -0.5 * TEMPER * curves * np.log(shares @ errors.T**2 + 1e-12)
    evidence = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    weights = (evidence / evidence.sum(axis=1, keepdims=True)).mean(axis=0)
    weights = np.where(weights < LEAST_WEIGHT, 0.0, weights)
    weights = weights / weights.sum()
    if np.count_nonzero(weights) == 1:
        return weights.tolist(), "predicts left-out curves far better than the other forms"
    return weights.tolist(), "forms that predict left-out curves about as well are averaged"
