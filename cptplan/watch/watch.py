"""A run beside its plan: what was expected, what is measured, where it will end now, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cptplan.config import Project
from cptplan.curves import read_curve_directory
from cptplan.decide import forecaster
from cptplan.errors import ConfigError, CptplanError, CurveError
from cptplan.fitting.store import read_fit
from cptplan.laws.history import RunHistory, history_of
from cptplan.planning.budget import Rates, known_rates, price
from cptplan.planning.forecast import Forecaster
from cptplan.planning.plan import Plan, PlannedRun, read_plan
from cptplan.watch.ahead import NONE, as_interval, look_ahead
from cptplan.watch.alarm import FALSE_ALARMS, Verdict, judge_run, rivals_of
from cptplan.watch.facts import Alarm, Planned, as_it_runs, told_alarms
from cptplan.watch.model import CurveModel, Points
from cptplan.watch.options import DEFAULT_DECAY
from cptplan.watch.run import WatchedRun
from cptplan.watch.view import SetView, Watched
from cptplan.workspace import Workspace

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOST_POINTS = 200  # of a curve: the model's work grows with their cube
SAME_SIZE = 1.02  # assumed: counts of one model's parameters differ by what each calls an embedding
DIVERGED_NATS = 1.0  # assumed: above the band by so much nothing is learnt any more
LEAST_SHARE = 0.01  # of the evidence, for a cause to be named


@dataclass(frozen=True, kw_only=True, slots=True)
class Watcher:
    """A plan with all that a run is held against; made once, asked after every point."""

    project: Project
    workspace: Workspace
    plan_dir: Path
    plan: Plan
    ready: Forecaster
    models: Mapping[str, CurveModel]
    rates: Rates | None
    notes: tuple[str, ...]

    def look(self, run: WatchedRun) -> Watched:
        """The run beside the plan as it is now.

        Raises:    CurveError, ConfigError if the run is not of the plan's model, batch or validation sets.
        """
        notes = [*self.notes, *run.notes]
        chosen = self._planned_run(run, notes)
        planned = self._planned(chosen)
        actual = self._history(run, planned.history, notes)
        points = self._points(run, notes)
        starts = {
            name: replace(actual, pretrain_lr=start.pretrain_lr, last_lr=start.last_lr, known_area=start.known_area)
            for name, start in self.ready.starts.items()
            if name != chosen.start
        }
        usable = {name: self.models[name].usable(thinned(one)) for name, one in points.items()}
        verdict = judge_run(self.models, actual, usable, rivals_of(actual, starts, tuple(self.models)))
        alarms = [*told_alarms(run, planned), *_losses_alarm(verdict)]
        ahead = look_ahead(self.plan, self.models, actual, usable, verdict, self._price)
        views = {
            name: ahead.view(model, planned.history, points.get(name, NONE), chosen.losses[name])
            for name, model in self.models.items()
        }
        broken = [*_broken(run, views)]
        complete = run.state == "complete" and run.done >= len(ahead.history.lr)
        return Watched(
            title=run.place.title,
            directory=str(run.place.directory),
            plan=str(self.plan_dir),
            fit=self.plan.fit,
            state="failed" if broken and run.state != "complete" else run.state,
            done=run.done,
            total=len(ahead.history.lr),
            level=self.plan.level,
            views=views,
            planned_objective=as_interval(chosen.objective),
            now_objective=ahead.objective(),
            verdict=verdict,
            alarms=(*broken, *alarms),
            options=() if complete else tuple(ahead.options(run.done, chosen.decay_share or DEFAULT_DECAY)),
            failed=bool(broken),
            notes=tuple(dict.fromkeys(notes)),
        )

    def _price(self, tokens: int) -> tuple[float | None, float | None]:
        """Device hours and money of so many training tokens; None where they are not known."""
        if self.rates is None:
            return None, None
        cost = price(self.project, self.rates, float(tokens))
        return cost.gpu_hours, cost.price_usd

    def _planned_run(self, run: WatchedRun, notes: list[str]) -> PlannedRun:
        """The chosen run, or the rule of thumb beside it when that is what was trained."""
        chosen, rule = self.plan.chosen, self.plan.rule_of_thumb
        rates = run.curve.lr()
        if np.array_equal(rates, rule.schedule.lr()) and not np.array_equal(rates, chosen.schedule.lr()):
            notes.append("the run has the schedule of the plan's rule of thumb, and is held against that")
            return rule
        return chosen

    def _planned(self, chosen: PlannedRun) -> Planned:
        start = self.ready.starts[chosen.start]
        known = next(one for one in self.project.model.starts if one.name == chosen.start)
        return Planned(
            history=self.ready.history(chosen.knobs()),
            start=chosen.start,
            start_losses=start.losses,
            parent=(known.parent, known.parent_step),
            noise={name: model.law.noise * start.losses[name] for name, model in self.models.items()},
        )

    def _history(self, run: WatchedRun, planned: RunHistory, notes: list[str]) -> RunHistory:
        """What the run does, its pre-training followed; that of the planned start where the curve does not tell it."""
        record, name = run.curve.record, str(run.place.directory / run.place.name)
        if record.phase != "cpt":
            raise CurveError(f"phase must be cpt; got {record.phase} in {name}.json.", hint="watch a CPT run")
        own = replace(run.curve, name=f"{run.curve.name}, watched")
        curves = {**read_curve_directory(self.workspace.curves), own.name: own}
        if record.parent is not None and record.parent in curves:
            history = history_of(own, curves)
        else:
            alone = replace(own, record=record.model_copy(update={"parent": None}))
            history = history_of(alone, {})
            if not history.pretrain_known and history.known_area is None:
                notes.append("the curve does not tell its pre-training: taken as that of the planned start")
                history = replace(
                    history,
                    pretrain_lr=planned.pretrain_lr,
                    pretrain_known=planned.pretrain_known,
                    last_lr=planned.last_lr,
                    known_area=planned.known_area,
                )
        self._check_model(history, name)
        return as_it_runs(run, history)

    def _check_model(self, history: RunHistory, name: str) -> None:
        for model in self.models.values():
            support = model.law.support
            support.check_batch(history, f"{name}.json")
            if support.num_params is None or history.num_params is None:
                continue
            low, high = support.num_params
            if not low / SAME_SIZE <= history.num_params <= high * SAME_SIZE:
                raise ConfigError(
                    f"num_params must be that of the plan's fit, {low:,.0f}; got {history.num_params:,.0f} in "
                    f"{name}.json.",
                    hint="give the plan of this model with --plan",
                )

    def _points(self, run: WatchedRun, notes: list[str]) -> dict[str, Points]:
        """The measured points of the plan's sets.

        Raises:    CurveError if the run has none of the sets.
        """
        found = {}
        for name in self.models:
            if name not in run.curve.losses:
                notes.append(f"the run does not measure loss_{name}: its end is the plan's guess")
                continue
            known = np.isfinite(run.curve.losses[name])
            found[name] = Points(steps=run.curve.steps[known], loss=run.curve.losses[name][known])
        if not found:
            raise CurveError(
                f"run must measure a set of the plan, {', '.join(self.models)}; got {', '.join(run.curve.losses)} in "
                f"{run.place.directory}.",
                hint="name its columns as the pilots' are",
            )
        return found


def open_watcher(project: Project, workspace: Workspace, plan: Path | None = None) -> Watcher:
    """The plan that a run is held against.

    Args:      plan: plan.json or its directory; the newest of the campaign when None.
    Raises:    ConfigError without a plan or the fit that it was made from.
    """
    directory = plan or workspace.latest("plans")
    directory = directory.parent if directory.suffix == ".json" else directory
    read = read_plan(directory / "plan.json")
    fit_dir = workspace.fits / read.fit
    if not (fit_dir / "law.json").exists():
        raise ConfigError(
            f"plan must have its fit beside it; got no {fit_dir / 'law.json'} for {directory}.",
            hint="run cptplan fit and cptplan optimize, or give the campaign of this plan with --out",
        )
    notes = []
    if (workspace.fits / "latest.json").exists() and workspace.latest("fits").name != read.fit:
        notes.append(f"the plan was made from the fit {read.fit}, which is not the newest")
    ready = forecaster(project, workspace, read_fit(fit_dir), read.weights)
    try:
        rates = known_rates(project, workspace.runs)
    except CptplanError as error:  # a run is watched without its price rather than not at all
        rates = None
        notes.append(f"no prices: {error.message}")
    return Watcher(
        project=project,
        workspace=workspace,
        plan_dir=directory,
        plan=read,
        ready=ready,
        models={name: CurveModel(law=law) for name, law in ready.laws.items()},
        rates=rates,
        notes=tuple(notes),
    )


def thinned(points: Points) -> Points:
    """At most MOST_POINTS of the points, spread evenly, the last among them."""
    if len(points.steps) <= MOST_POINTS:
        return points
    kept = np.unique(np.linspace(0, len(points.steps) - 1, MOST_POINTS).round().astype(np.int64))
    return Points(steps=points.steps[kept], loss=points.loss[kept])


def _losses_alarm(verdict: Verdict) -> Iterable[Alarm]:
    """That the losses left their band, with what explains them best."""
    if verdict.alarm_step is None:
        return
    yield Alarm(
        kind="losses",
        step=verdict.alarm_step,
        text=f"the losses left the band of what the run does; at most {FALSE_ALARMS:.0%} of healthy runs ever do",
        causes=tuple((cause.text, cause.share) for cause in verdict.causes[:3] if cause.share >= LEAST_SHARE),
    )


def _broken(run: WatchedRun, views: Mapping[str, SetView]) -> Iterable[Alarm]:
    """Reasons to call the run failed."""
    if run.failure is not None:
        yield Alarm(kind="failed", step=run.done, text=f"the run ended without a result: {run.failure}")
    if run.not_finite_step is not None and run.state != "complete" and run.not_finite_step >= run.done:
        yield Alarm(kind="diverged", step=run.done, text="the last training loss is not finite")
    for name, view in views.items():
        if not len(view.measured.steps):
            continue
        step, loss = int(view.measured.steps[-1]), float(view.measured.loss[-1])
        # before the law speaks, the loss of the start is what a run must not leave upwards
        before = float(view.measured.loss[0])
        high = float(np.interp(step, view.steps, view.high)) if step >= view.steps[0] else before
        if loss > high + DIVERGED_NATS:
            text = f"loss_{name} is {loss:.2f}, {loss - high:.2f} nats above its band: the run has diverged"
            yield Alarm(kind="diverged", step=step, text=text)
