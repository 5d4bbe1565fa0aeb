"""Virtual campaigns of a project: pilots, fit and plan against a known truth, before any GPU is paid for.

The truth is a published law or the project's own fit. Each campaign trains the designed pilots in it, with the noise of
a log, fits and plans as the verbs do, and is judged by what the truth says of the chosen run: its regret against the
best run of the same space, whether it lies in its interval, and what rivals would have chosen at equal compute.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cptplan.config import Project
from cptplan.curves import CurveRecord, LossCurve, PretrainSummary
from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.select import select_law, side_of
from cptplan.laws.history import history_of
from cptplan.mixture import ConstantMixture
from cptplan.pilots.design import PilotCell, design_pilots, run_schedule
from cptplan.pilots.next_pilot import candidate_pilots, decision_draws, next_pilot, plan_pool
from cptplan.planning.forecast import Forecaster, StartState
from cptplan.planning.knobs import Knobs, Space
from cptplan.planning.planner import affordable, plan_space
from cptplan.planning.recipes import COMMON
from cptplan.planning.search import Evaluated, Score, grid, polish, quick_search, rank
from cptplan.rehearsal.rivals import rival_plans
from cptplan.run_spec import default_eval_steps
from cptplan.simulation.known_law import LossModel
from cptplan.simulation.simulation import Noise, add_noise, simulate_curves

FloatArray = NDArray[np.float64]

OURS = "cptplan"
POLISHED = 3
MOST_PROCESSES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """All that the virtual campaigns of one rehearsal share."""

    project: Project
    """In the truth's unit of the learning rate."""
    truth: Mapping[str, LossModel]
    """By validation set."""
    weights: Mapping[str, float]
    pretraining: Mapping[str, CurveRecord]
    """Pre-training runs that the starts continue."""
    starts: Mapping[str, CurveRecord]
    """What a CPT run from each start has in its record; rates and replay are replaced."""
    told: Mapping[str, PretrainSummary] | None = None
    """All that a fit may know of each start's pre-training; None: its whole curve."""
    noise_nats: float
    """Standard deviation of one evaluation."""
    autocorrelation: float = 0.5
    num_next: int = 0
    """Pilots of cptplan pilot --next after the designed ones."""
    lr_unit: float = 1.0
    """The user's rate for a rate of 1 in the truth."""
    title: str = ""
    """What the truth is."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Campaign:
    """The outcome of one virtual campaign; objectives are the truth's, nats of the weighted change of loss."""

    number: int
    plans: Mapping[str, Knobs]
    """What each contender would run, cptplan among them."""
    objectives: Mapping[str, float]
    violations: Mapping[str, float]
    """By how much each breaks the goal's limits in truth; <= 0 when it keeps them."""
    space: Space
    inside: Mapping[str, bool]
    """Whether objective and losses of our plan lie in their intervals."""
    predicted: float
    """Objective of our plan as it was predicted."""
    half_width: float
    """Of its interval."""
    pilot_tokens: int
    seconds: float

    def keeps(self, name: str) -> bool:
        """Whether a contender's plan keeps the goal's limits in truth."""
        return self.violations[name] <= 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """All campaigns, and the best that the truth allows."""

    campaigns: tuple[Campaign, ...]
    optimum: tuple[float, ...]
    """Objective of the best run of each campaign's space."""
    best: Knobs
    """That run, of the first campaign's space."""
    seconds: float

    @property
    def contenders(self) -> tuple[str, ...]:
        """Names, ours first."""
        return tuple(self.campaigns[0].objectives)

    def regrets(self, name: str) -> FloatArray:
        """Objective of a contender's plan less the optimum, by campaign, nats, shape (campaigns,)."""
        return np.array([one.objectives[name] - best for one, best in zip(self.campaigns, self.optimum, strict=True)])

    def coverage(self, of: str) -> float:
        """Share of the campaigns whose interval held."""
        return float(np.mean([one.inside[of] for one in self.campaigns]))


Note = Callable[[int, int, str], None]


def rehearse(setting: Setting, num_campaigns: int, seed: int, note: Note, processes: int | None = None) -> Rehearsal:
    """Run the campaigns; the same for the same seed, on any number of processes.

    Args:      processes: at the same time; as many as there are cores when None.
    """
    began = time.perf_counter()
    workers = min(processes or min(os.cpu_count() or 1, MOST_PROCESSES), num_campaigns)
    seeds = [seed * num_campaigns + number for number in range(num_campaigns)]
    found: list[Campaign] = []
    note(0, num_campaigns, "")
    if workers == 1:
        for one in seeds:
            found.append(run_campaign(setting, one, len(found)))
            note(len(found), num_campaigns, "")
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for campaign in pool.map(run_campaign, [setting] * num_campaigns, seeds, range(num_campaigns)):
                found.append(campaign)
                note(len(found), num_campaigns, "")
    spaces = {campaign.space: _optimum(setting, campaign.space) for campaign in found}
    return Rehearsal(
        campaigns=tuple(found),
        optimum=tuple(_least(spaces[one.space], one) for one in found),
        best=spaces[found[0].space].knobs,
        seconds=time.perf_counter() - began,
    )


def run_campaign(setting: Setting, seed: int, number: int = 0) -> Campaign:
    """One campaign: pilots, fit, plan; rivals beside it; and the truth about all of them."""
    began = time.perf_counter()
    project = setting.project.model_copy(update={"seed": seed})
    records = pilot_records(setting, design_pilots(project))
    forecaster = fitted_forecaster(setting, records, seed)
    for _ in range(setting.num_next):
        knobs = advised(setting, forecaster)
        records[f"pilot-next-{len(records) + 1:02d}"] = knobs_record(setting, knobs)
        forecaster = fitted_forecaster(setting, records, seed)
    space = full_space(project, forecaster)
    score, rough = forecaster.score, forecaster.rough if forecaster.needs_draws else None
    chosen = quick_search(score, space, rough).best.knobs
    outlook = forecaster.outlook(chosen)
    steps = sum(int(record.lr.total_steps) for record in records.values())
    truth = true_forecaster(setting)
    plans = {
        OURS: chosen,
        COMMON.name: COMMON.knobs(project.model.pretrain_peak_lr, space.total_steps[1], truth.base),
        **rival_plans(measured(setting, truth, seed), space, steps, project.pilot.total_steps, seed),
    }
    scores = {name: truth.rough(knobs) for name, knobs in plans.items()}
    said = {"objective": (outlook.objective, scores[OURS].objective)}
    said |= {f"loss_{name}": (outlook.losses[name], loss) for name, loss in scores[OURS].losses.items()}
    return Campaign(
        number=number,
        plans=plans,
        objectives={name: found.objective for name, found in scores.items()},
        violations={name: found.violation for name, found in scores.items()},
        space=space,
        inside={name: bool(interval.low <= true <= interval.high) for name, (interval, true) in said.items()},
        predicted=outlook.objective.mean,
        half_width=(outlook.objective.high - outlook.objective.low) / 2.0,
        pilot_tokens=steps * project.pilot.batch_tokens,
        seconds=time.perf_counter() - began,
    )


def pilot_records(setting: Setting, cells: Iterable[PilotCell]) -> dict[str, CurveRecord]:
    """The designed pilots as runs in the truth."""
    pilot = setting.project.pilot
    return {
        f"pilot-{number:02d}": _record(
            setting,
            cell.start.name,
            run_schedule(
                peak_lr=cell.peak_lr,
                total_steps=pilot.total_steps,
                warmup_steps=pilot.warmup_steps,
                decay_share=cell.decay_share,
            ),
            cell.replay_ratio,
        )
        for number, cell in enumerate(cells, start=1)
    }


def knobs_record(setting: Setting, knobs: Knobs) -> CurveRecord:
    """A run of some knobs in the truth."""
    return _record(setting, knobs.start, knobs.schedule(setting.project.pilot.warmup_steps), knobs.replay_ratio)


def _record(setting: Setting, start: str, schedule: object, replay_ratio: float) -> CurveRecord:
    changes = {"lr": schedule, "replay_ratio": ConstantMixture(replay_ratio=replay_ratio)}
    return setting.starts[start].model_copy(update=changes)


def fitted_forecaster(setting: Setting, records: Mapping[str, CurveRecord], seed: int) -> Forecaster:
    """Measure the pilots, with noise, and fit the laws to what was measured."""
    points = setting.project.pilot.eval_points
    steps = {
        name: np.unique(np.append(default_eval_steps(int(r.lr.total_steps), points), [0, int(r.lr.total_steps)]))
        for name, r in records.items()
    }
    exact = simulate_curves(setting.truth, {**setting.pretraining, **records}, steps=steps)
    noise = Noise(sd_nats=setting.noise_nats, autocorrelation=setting.autocorrelation, seed=seed)
    seen = add_noise(exact, noise)
    runs = {name: next(r for r in records if _starts_at(records[r], one)) for name, one in setting.starts.items()}
    if setting.told is not None:
        seen = {name: _without_past(setting, seen[name]) for name in records}
    laws = {name: select_law(seen, name, side_of(name, seen), seed=seed).fitted for name in setting.truth}
    return _forecaster(setting, laws, {name: _state(name, seen[run], seen) for name, run in runs.items()})


def true_forecaster(setting: Setting) -> Forecaster:
    """What the truth says of any run; it has no draws, so it may be asked for means alone."""
    lr = run_schedule(peak_lr=1.0, total_steps=1, warmup_steps=0, decay_share=0.0)
    bare = {name: _record(setting, name, lr, 0.0) for name in setting.starts}
    steps = {name: np.array([0]) for name in bare}
    at_start = simulate_curves(setting.truth, {**setting.pretraining, **bare}, steps=steps)
    states = {name: _state(name, at_start[name], at_start) for name in bare}
    return _forecaster(setting, cast(Mapping[str, FittedLaw], setting.truth), states)


def _without_past(setting: Setting, curve: LossCurve) -> LossCurve:
    """A pilot's curve as a team has it that knows no more of the pre-training than it was told."""
    start = next(name for name, one in setting.starts.items() if _starts_at(curve.record, one))
    changes = {"parent": None, "parent_step": None, "pretrain": (setting.told or {})[start]}
    return replace(curve, record=curve.record.model_copy(update=changes))


def _starts_at(record: CurveRecord, start: CurveRecord) -> bool:
    return (record.parent, record.parent_step, record.pretrain) == (start.parent, start.parent_step, start.pretrain)


def _state(name: str, curve: LossCurve, curves: Mapping[str, LossCurve]) -> StartState:
    """A start as a run that began there shows it at its step 0."""
    history = history_of(curve, curves)
    return StartState(
        name=name,
        pretrain_lr=history.pretrain_lr,
        losses={set_name: float(loss[0]) for set_name, loss in curve.losses.items()},
        last_lr=history.last_lr,
        known_area=history.known_area,
    )


def _forecaster(setting: Setting, laws: Mapping[str, FittedLaw], starts: Mapping[str, StartState]) -> Forecaster:
    goal, pilot = setting.project.goal, setting.project.pilot
    return Forecaster(
        laws=laws,
        starts=starts,
        base=setting.project.model.starts[-1].name,
        weights=setting.weights,
        warmup_steps=pilot.warmup_steps,
        max_general_increase=goal.max_general_increase,
        max_forgetting_ratio=goal.max_forgetting_ratio,
        max_general_loss=goal.max_general_loss,
        confidence=goal.confidence,
        cvar=goal.cvar,
        batch_tokens=pilot.batch_tokens,
    )


def full_space(project: Project, forecaster: Forecaster) -> Space:
    """What a plan may choose: rates and ratios of the pilots, and lengths up to the whole budget."""
    return plan_space(project, forecaster, replace(affordable(project, forecaster), supported_steps=None))


def advised(setting: Setting, forecaster: Forecaster) -> Knobs:
    """The pilot that cptplan pilot --next would run."""
    project = setting.project
    space = full_space(project, forecaster)
    rough = forecaster.rough if forecaster.needs_draws else None
    found = quick_search(forecaster.score, space, rough)
    draws = decision_draws(forecaster, plan_pool(found))
    pilot = project.pilot
    candidates = candidate_pilots(space, pilot.total_steps, pilot.warmup_steps)
    return next_pilot(forecaster, draws, candidates)[0].knobs


def measured(setting: Setting, truth: Forecaster, seed: int) -> Callable[[Knobs], Score]:
    """What the end of a real run shows: the truth, with the noise of one evaluation on every set."""
    rng = np.random.default_rng([seed, 1])
    caps = truth.general_caps()

    def measure(knobs: Knobs) -> Score:
        exact = truth.rough(knobs)
        noise = {name: setting.noise_nats * float(rng.standard_normal()) for name in exact.losses}
        return Score(
            objective=exact.objective + sum(setting.weights[name] * noise[name] for name in setting.weights),
            losses={name: loss + noise[name] for name, loss in exact.losses.items()},
            violations={n: v + (noise["general"] if n in caps else 0.0) for n, v in exact.violations.items()},
        )

    return measure


def _optimum(setting: Setting, space: Space) -> Evaluated:
    """The best run of a space in truth."""
    score = true_forecaster(setting).rough
    tried = sorted((Evaluated(knobs=knobs, score=score(knobs)) for knobs in grid(space)), key=rank)
    return min((polish(score, space, one) for one in tried[:POLISHED]), key=rank)


def _least(optimum: Evaluated, campaign: Campaign) -> float:
    """The best objective known of a campaign's space: the search's, or that of a contender that did better."""
    found = [value for name, value in campaign.objectives.items() if name != COMMON.name and campaign.keeps(name)]
    return min([optimum.score.objective, *found])
