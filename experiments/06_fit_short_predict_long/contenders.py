"""Every law of the comparison, fitted to base and pilots only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cptplan.curves import LossCurve
from cptplan.fitting.final_losses import fit_final_losses
from cptplan.fitting.final_table import FinalLosses
from cptplan.fitting.fitted import FittedLaw, in_sample_error, leave_one_out
from cptplan.fitting.out_of_domain import fit_out_of_domain
from cptplan.fitting.select import candidate_laws, select_law, settled_step, side_of
from cptplan.fitting.separable import Solution, solve
from cptplan.laws.cpt import CptForm, CptLaw, Side
from cptplan.laws.final.protocol import Runs, make_runs
from cptplan.laws.history import Observations, RunHistory, history_of, observations
from cptplan.laws.protocol import Columns, Law

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CHOSEN = "cptplan fit"
BY_NAME = ("cpt-published", "multi_power_late", "annealing", "power")
WITHOUT_PAST = ("multi_power_late", "annealing")  # fitted to CPT alone too, where they need not span two data sets
LEVEL = 0.9
DRAWS = 100  # of a law of final losses


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """What a law says of a run: mean and, where the law has one, the interval of a measured value."""

    mean: FloatArray
    low: FloatArray | None = None
    high: FloatArray | None = None


Predict = Callable[[LossCurve, IntArray], Band]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One validation set of one lab: what a fit may see, and what it is asked for."""

    lab: str
    set_name: str
    curves: Mapping[str, LossCurve]
    """All of the lab."""
    seen: Mapping[str, LossCurve]
    """Base and pilots."""

    @property
    def side(self) -> Side:
        """By what the pilots did to the set."""
        return side_of(self.set_name, self.seen)

    def data(self, more: Sequence[LossCurve] = ()) -> tuple[Observations, ...]:
        """The points that a fit sees, with further runs if asked."""
        return observations(
            {**self.seen, **{c.name: c for c in more}}, self.set_name, skip_steps=settled_step(self.seen)
        )

    def law(self, form: CptForm) -> CptLaw:
        """A CPT law as the fit makes it: its reference rate and the prior of its memory."""
        first = candidate_laws(self.data(), self.side, "auto", self.set_name, self.lab)[0]
        assert isinstance(first, CptLaw)
        return CptLaw(self.side, first.reference_lr, form, first.memory_steps)


def of_fitted(fitted: FittedLaw, task: Task) -> Predict:
    """Predictions as `cptplan predict` makes them beside measured losses."""

    def predict(curve: LossCurve, steps: IntArray) -> Band:
        band = fitted.predict(history_of(curve, task.curves), steps, LEVEL, measured=True)
        return Band(mean=band.mean, low=band.low, high=band.high)

    return predict


def alone(law: Law, task: Task, like: FittedLaw) -> FittedLaw:
    """One form by itself, with the intervals that a fit would give it."""
    data = task.data()
    best = solve(law, data)
    without = leave_one_out(law, data, best)
    return replace(
        like,
        law=law,
        best=best,
        left_out=without.solutions,
        rivals=(),
        held_out=without.held_out,
        in_sample_error=in_sample_error(law, best, data),
    )


def contenders(task: Task, chosen: FittedLaw, *, fast: bool) -> dict[str, Predict]:
    """All laws by name: the average that is chosen, its forms one by one, published laws, and laws of final losses."""
    found = {CHOSEN: of_fitted(chosen, task)}
    names = BY_NAME[-1:] if fast else BY_NAME
    for law in candidate_laws(task.data(), task.side, "auto", task.set_name, task.lab)[: 1 if fast else None]:
        if law.name != "published":  # comes by name
            found[f"form {law.name}"] = of_fitted(alone(law, task, chosen), task)
    for name in names:
        fitted = select_law(task.seen, task.set_name, task.side, law=name, where=task.lab).fitted
        found[name] = of_fitted(fitted, task)
    for name in () if fast else WITHOUT_PAST:
        found[f"{name}, CPT alone"] = without_past(task, name)
    for name, kind, ends in FINAL_LAWS[: 1 if fast else None]:
        found[name] = final_law(task, kind, ends_only=ends, draws=5 if fast else DRAWS)
    return found


def without_past(task: Task, law: str) -> Predict:
    """A law of one data set that takes the pilots for runs from scratch, so that it spans no change of data."""
    pilots = {name: _from_scratch(curve) for name, curve in task.seen.items() if curve.record.phase == "cpt"}
    fitted = select_law(pilots, task.set_name, task.side, law=law, where=task.lab).fitted

    def predict(curve: LossCurve, steps: IntArray) -> Band:
        band = fitted.predict(history_of(_from_scratch(curve), {}), steps, LEVEL, measured=True)
        return Band(mean=band.mean, low=band.low, high=band.high)

    return predict


def _from_scratch(curve: LossCurve) -> LossCurve:
    changes = {"phase": "pretrain", "parent": None, "parent_step": None}
    return replace(curve, record=curve.record.model_copy(update=changes))


# D-CPT is a law of final losses of runs of several lengths. Pilots have one length, so every settled point of a pilot
# stands in for the end of a run that stopped there; where its rate had not decayed, the stand-in is too high.
FINAL_LAWS = (
    ("D-CPT, points of the pilots", "d_cpt", False),
    ("D-CPT, ends of the pilots", "d_cpt", True),  # one length: no term of the tokens
    ("tokens alone, points of the pilots", "chinchilla", False),
)


def final_law(task: Task, kind: str, *, ends_only: bool, draws: int) -> Predict:
    """A law of final losses on the pilots' points or ends."""
    points = [d for d in task.data() if d.history.phase == "cpt"]
    kept = [d.steps >= (d.steps[-1] if ends_only else 1) for d in points]
    names = [f"{d.name} {step}" for d, keep in zip(points, kept, strict=True) for step in d.steps[keep]]
    parts = [_amounts(task.seen[d.name], d.steps[keep]) for d, keep in zip(points, kept, strict=True)]
    table = FinalLosses(
        names=tuple(names),
        runs=make_runs(np.concatenate([p.domain_share for p in parts]), np.concatenate([p.tokens for p in parts])),
        losses={task.set_name: np.concatenate([d.loss[keep] for d, keep in zip(points, kept, strict=True)])},
        where=task.lab,
    )
    fit = fit_final_losses(table, kind, task.set_name, side=task.side, num_draws=draws)

    def predict(curve: LossCurve, steps: IntArray) -> Band:
        band = fit.predict(_amounts(curve, steps), LEVEL)
        return Band(mean=band.mean, low=band.low, high=band.high)

    return predict


def _amounts(curve: LossCurve, steps: IntArray) -> Runs:
    """Domain share and tokens after each of the steps (> 0)."""
    assert curve.record.batch_tokens is not None
    share = np.cumsum(1.0 - curve.replay_ratios()) / np.arange(1, curve.total_steps + 1)
    return make_runs(share[np.maximum(steps, 1) - 1], np.maximum(steps, 1) * float(curve.record.batch_tokens))


def combination(task: Task, laws: Mapping[str, FittedLaw]) -> Predict:
    """A third set as a combination of what the laws say of general and domain loss; the interval is not built here."""
    fit = fit_out_of_domain(task.seen, task.set_name)

    def predict(curve: LossCurve, steps: IntArray) -> Band:
        history = history_of(curve, task.curves)
        return Band(mean=fit.predict(*(laws[name].mean(history, steps) for name in ("general", "domain"))).mean)

    return predict


def pinned(law: CptLaw, **values: float) -> CptLaw:
    """The law with some nonlinear parameters held at a value (within a thousandth)."""
    law.parameters = tuple(
        replace(p, start=values[p.name], low=values[p.name] * 0.999, high=values[p.name] * 1.001, prior_sd=1e-3)
        if p.name in values
        else p
        for p in law.parameters
    )
    return law


class WithoutHarm(CptLaw):
    """Repeated tokens teach less, and do no harm: the column of the last term, O, is 0."""

    def evaluate(self, values: FloatArray, history: RunHistory, steps: IntArray) -> Columns:
        """See CptLaw."""
        found = super().evaluate(values, history, steps)
        found.values[:, -1] = 0.0
        found.slopes[:, -1] = 0.0
        return found


def fitted_value(law: Law, solution: Solution, name: str) -> float:
    """A nonlinear parameter by name; NaN when the law has none."""
    names = [p.name for p in law.parameters]
    return float(solution.values[names.index(name)]) if name in names else float("nan")
