"""A run beside its plan: what was expected, what is measured, where it will end now, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptplan.budget import Rates, known_rates, price
from cptplan.config import Project
from cptplan.curves import read_curve_directory
from cptplan.decide import forecaster
from cptplan.errors import ConfigError, CptplanError, CurveError
from cptplan.fitting.store import read_fit
from cptplan.forecast import Forecaster, Interval
from cptplan.laws.history import RunHistory, history_of
from cptplan.plan import Plan, PlannedRun, read_plan
from cptplan.watch_alarm import FALSE_ALARMS, Cause, Verdict, judge_run, rivals_of
from cptplan.watch_facts import Alarm, Planned, as_it_runs, told_alarms
from cptplan.watch_model import CurveModel, Points
from cptplan.watch_options import DEFAULT_DECAY, ways_on
from cptplan.watch_view import Option, SetView, Watched
from cptplan.watched_run import WatchedRun
from cptplan.workspace import Workspace

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GRID = 120  # points of a drawn band
MOST_POINTS = 200  # of a curve: the model's work grows with their cube
SAME_SIZE = 1.02  # assumed: counts of one model's parameters differ by what each calls an embedding
NONE = Points(steps=np.zeros(0, dtype=np.int64), loss=np.zeros(0))
DIVERGED_NATS = 1.0  # assumed: above the band by so much nothing is learnt any more
LIKELY = 0.5  # share of the evidence from which on a cause is taken for true


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
        verdict = judge_run(self.models, actual, points, rivals_of(actual, starts))
        alarms = [*told_alarms(run, planned), *self._losses_alarm(verdict)]
        actual = _believed(actual, verdict)
        now = {name: self._draws(name, actual, points, actual) for name in self.models}
        views = {
            name: self._view(name, planned.history, actual, points.get(name, NONE), chosen, now[name])
            for name in self.models
        }
        broken = [*self._broken(run, views)]
        alarms = [*broken, *alarms]
        complete = run.state == "complete" and run.done >= len(actual.lr)
        return Watched(
            title=run.place.title,
            directory=str(run.place.directory),
            plan=str(self.plan_dir),
            fit=self.plan.fit,
            state="failed" if broken and run.state != "complete" else run.state,
            done=run.done,
            total=len(actual.lr),
            level=self.plan.level,
            views=views,
            planned_objective=_as_interval(chosen.objective),
            now_objective=self._objective(now),
            verdict=verdict,
            alarms=tuple(alarms),
            options=() if complete else tuple(self._options(run, actual, points, chosen)),
            failed=bool(broken),
            notes=tuple(dict.fromkeys(notes)),
        )

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
        """The measured points of the plan's sets that the laws are asked about.

        Raises:    CurveError if the run has none of the sets.
        """
        found = {}
        for name, model in self.models.items():
            if name not in run.curve.losses:
                notes.append(f"the run does not measure loss_{name}: its end is the plan's guess")
                continue
            known = np.isfinite(run.curve.losses[name])
            points = Points(steps=run.curve.steps[known], loss=run.curve.losses[name][known])
            found[name] = model.usable(thinned(points))
        if not found:
            raise CurveError(
                f"run must measure a set of the plan, {', '.join(self.models)}; got {', '.join(run.curve.losses)} in "
                f"{run.place.directory}.",
                hint="name its columns as the pilots' are",
            )
        return found

    def _losses_alarm(self, verdict: Verdict) -> Iterable[Alarm]:
        if verdict.alarm_step is None:
            return
        yield Alarm(
            kind="losses",
            step=verdict.alarm_step,
            text=f"the losses left the band of what the run does; {FALSE_ALARMS:.0%} of healthy runs ever do",
            causes=tuple((cause.text, cause.share) for cause in verdict.causes[:3] if cause.share >= 0.01),
        )

    def _broken(self, run: WatchedRun, views: Mapping[str, SetView]) -> Iterable[Alarm]:
        """Reasons to call the run failed."""
        if run.failure is not None:
            yield Alarm(kind="failed", step=run.done, text=f"the run ended without a result: {run.failure}")
        if run.not_finite_step is not None and run.state != "complete" and run.not_finite_step >= run.done:
            yield Alarm(kind="diverged", step=run.done, text="the last training loss is not finite")
        for name, view in views.items():
            if not len(view.measured.steps):
                continue
            step, loss = int(view.measured.steps[-1]), float(view.measured.loss[-1])
            high = float(np.interp(step, view.steps, view.high))
            if loss > high + DIVERGED_NATS:
                text = f"loss_{name} is {loss:.2f}, {loss - high:.2f} nats above its band: the run has diverged"
                yield Alarm(kind="diverged", step=step, text=text)

    def _view(
        self,
        name: str,
        planned: RunHistory,
        actual: RunHistory,
        points: Points,
        chosen: PlannedRun,
        end: FloatArray,
    ) -> SetView:
        model, total = self.models[name], len(actual.lr)
        settled, last_step = min(model.law.settled_step, len(planned.lr)), len(planned.lr)
        steps = np.unique(np.concatenate([np.linspace(settled, last_step, GRID).astype(np.int64), [last_step]]))
        band = model.sample(planned, NONE, planned, steps, seed=self._seed(name), measured=True)
        low, high = _tails(band, self.plan.level)
        last = int(points.steps[-1]) if len(points.steps) else 0
        ahead = np.unique(np.linspace(max(last, settled), total, GRID // 2).astype(np.int64))
        coming = model.sample(actual, points, actual, ahead, seed=self._seed(name))
        ahead_low, ahead_high = _tails(coming, self.plan.level)
        return SetView(
            steps=steps,
            mean=model.law.mean(planned, steps),
            low=low,
            high=high,
            measured=points,
            ahead=ahead,
            ahead_mean=coming.mean(axis=0),
            ahead_low=ahead_low,
            ahead_high=ahead_high,
            planned_end=_as_interval(chosen.losses[name]),
            now_end=_interval(end, self.plan.level),
        )

    def _draws(self, name: str, actual: RunHistory, points: Mapping[str, Points], coming: RunHistory) -> FloatArray:
        """Last losses of one set if the run goes on in some way, shape (draws,); the measured one if it is there."""
        seen, end = points.get(name, NONE), len(coming.lr)
        if coming is actual and end in seen.steps:
            return np.full(1, float(seen.loss[-1]))
        return self.models[name].sample(actual, seen, coming, np.array([end]), seed=self._seed(name))[:, 0]

    def _options(
        self, run: WatchedRun, actual: RunHistory, points: Mapping[str, Points], chosen: PlannedRun
    ) -> Iterable[Option]:
        """Going on, annealing now, more replay, a lower rate, stopping."""
        for name, coming in ways_on(actual, run.done, chosen.decay_share or DEFAULT_DECAY).items():
            total = len(coming.lr)
            draws = {one: self._draws(one, actual, points, coming) for one in self.models}
            left = (total - run.done) * self.plan.batch_tokens
            cost = price(self.project, self.rates, float(left)) if self.rates is not None and left else None
            yield Option(
                name=name,
                total_steps=total,
                losses={one: _interval(values, self.plan.level) for one, values in draws.items()},
                objective=self._objective(draws),
                tokens_left=left,
                tokens_saved=(len(actual.lr) - total) * self.plan.batch_tokens,
                gpu_hours_left=0.0 if not left else cost.gpu_hours if cost is not None else None,
                usd_left=0.0 if not left else cost.price_usd if cost is not None else None,
            )

    def _objective(self, draws: Mapping[str, FloatArray]) -> Interval:
        """Weighted change of loss against the base model, nats per token."""
        base, weights = self.plan.base_losses, self.plan.weights
        size = max(len(values) for values in draws.values())
        rng = np.random.default_rng(7)
        # draws come sorted by the scale of their spread: sets are independent of each other, so their orders must be
        mixed = {name: rng.permutation(np.resize(values, size)) for name, values in draws.items()}
        total = sum(weight * (mixed[name] - base[name]) for name, weight in weights.items() if weight > 0)
        return _interval(np.asarray(total), self.plan.level)

    def _seed(self, name: str) -> int:
        return list(self.models).index(name)


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


def _believed(actual: RunHistory, verdict: Verdict) -> RunHistory:
    """What the run is taken to do: as it says, or as the likely cause of an alarm."""
    best: Cause | None = verdict.causes[0] if verdict.causes else None
    if verdict.alarm_step is None or best is None or best.history is None or best.share < LIKELY:
        return actual
    return best.history


def _tails(draws: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    low, high = np.percentile(draws, [50.0 * (1.0 - level), 50.0 * (1.0 + level)], axis=0)
    return low, high


def _interval(draws: FloatArray, level: float) -> Interval:
    low, high = _tails(draws, level)
    return Interval(mean=float(draws.mean()), low=float(low), high=float(high))


def _as_interval(expected: Any) -> Interval:
    return Interval(mean=expected.mean, low=expected.low, high=expected.high)
