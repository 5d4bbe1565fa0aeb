"""Plans of virtual campaigns, judged by the truth: python experiments/benchmarks/virtual_plans.py --campaigns 80.

Each campaign draws a published CPT law as the truth, how replay acts, the weights, 6 to 12 pilots that cost 5 to 25 %
of the final run together, and noise of 0.002 to 0.01 nats (cptplan.rehearsal). It is planned for the whole budget,
24 to 240 times as long as a pilot, and for a run as long as intervals were checked on real runs. The chosen plan is
compared with the best of its space, with what rivals choose at equal compute, and with random plans of the same fit and
length: a plan is chosen where the fit is most hopeful, so an interval that holds anywhere else may still fail there
(winner's curse).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: one process, one thread

import numpy as np
from record import LOG, Goal, start, write_record

from cptplan.config import Project
from cptplan.pilots.design import design_pilots
from cptplan.planning.forecast import Forecaster
from cptplan.planning.knobs import Knobs, Space
from cptplan.planning.planner import CHECKED_LENGTH, affordable, plan_space
from cptplan.planning.recipes import COMMON
from cptplan.planning.search import Evaluated, grid, polish, quick_search, rank
from cptplan.rehearsal.rehearse import (
    OURS,
    POLISHED,
    Setting,
    fitted_forecaster,
    full_space,
    measured,
    pilot_records,
    true_forecaster,
)
from cptplan.rehearsal.rivals import rival_plans
from cptplan.rehearsal.setting import default_project, published_setting, with_pilot_share
from cptplan.simulation.published import ReplayForm, find_published
from cptplan.simulation.virtual_lab import SIZES, TRUTHS

FIRST_SEED = 6000  # campaigns before it were looked at while the fit was made
WEIGHTS = (0.2, 0.4, 0.6, 0.8)  # of general loss
REPLAYS: tuple[ReplayForm, ReplayForm] = ("exponential", "logarithmic")
WHOLE, CHECKED = LENGTHS = ("whole budget", f"{CHECKED_LENGTH:g} times a pilot")
RANDOM_PLANS = 16
NEARLY_ALL = 0.95  # of the most replay that pilots had
RESAMPLES = 2000
COVERAGE, CURSE = (0.85, 0.95), 0.003
Z = 1.645  # of a 90 % interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One campaign, planned for one length; nats of the weighted change of loss."""

    seed: int
    length: str
    """What the plan was made for, of LENGTHS."""
    times_pilot: float
    """Steps of the plan over those of a pilot."""
    truth: str
    replay: str
    general: float
    """Weight of general loss."""
    num_pilots: int
    pilot_share: float
    noise_nats: float
    plan: list[Any]
    """Peak rate, replay ratio, decay share, start."""
    most_replay: bool
    """Whether the plan asks for nearly all the replay that pilots had."""
    regrets: dict[str, float]
    """By contender."""
    inside: dict[str, bool]
    """Of the chosen plan: whether truth lies in the interval of the objective and of each validation loss."""
    biases: dict[str, float]
    """Of the chosen plan: predicted less true."""
    half_width: float
    random_inside: float
    """Share of the random plans whose objective lies in its interval."""
    random_bias: float
    random_half_width: float


def main() -> None:
    """Draw, rehearse, count."""
    start()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaigns", type=int, default=80)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--rows", type=Path, help="File of rows: campaigns that are in it are not run again.")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.campaigns)
    there = [row for row in read_rows(options.rows) if row.seed in seeds]
    rows, before = list(there), time.process_time()
    for seed in sorted(set(seeds) - {row.seed for row in there}):
        campaign = run_pilots(seed)
        found = [plan_row(campaign, length, space) for length, space in campaign.spaces().items()]
        rows += found
        if options.rows is not None:
            with options.rows.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(row)) + "\n" for row in found)
        LOG.info("campaign %d, %.0f s of CPU", seed, time.process_time() - before)
    rows.sort(key=lambda row: row.seed)
    by_length = {length: [row for row in rows if row.length == length] for length in LENGTHS}
    results = {
        "seeds": [seeds.start, seeds.stop - 1],
        "groups": {
            length: {title: grouped(some, key) for title, key in GROUPS.items()} for length, some in by_length.items()
        },
        "regrets": {length: regrets(some) for length, some in by_length.items()},
        "rows": [asdict(row) for row in rows],
    }
    write_record("virtual_plans", goals(by_length), results)


def read_rows(path: Path | None) -> list[Row]:
    """Rows of a run that was stopped."""
    if path is None or not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def draw(seed: int) -> tuple[Setting, dict[str, Any]]:
    """A setting drawn at random, weights and forms of replay in turn, and what was drawn."""
    rng = np.random.default_rng([seed, 10])
    law = TRUTHS[rng.integers(len(TRUTHS))]
    size = float(np.exp(rng.uniform(*np.log(SIZES))))
    general, replay = WEIGHTS[seed % len(WEIGHTS)], REPLAYS[seed // len(WEIGHTS) % 2]
    num_pilots, share = int(rng.integers(6, 13)), float(rng.uniform(0.05, 0.25))
    noise = float(np.exp(rng.uniform(*np.log((0.002, 0.01)))))
    project = default_project(find_published(law))
    pilot = project.pilot.model_copy(update={"num_runs": num_pilots})
    setting = published_setting(
        law,
        with_pilot_share(project.model_copy(update={"pilot": pilot}), share),
        {"general": general, "domain": 1.0 - general},
        noise_nats=noise,
        replay_form=replay,
        num_params=round(size) if law == "knowledge-pile-sizes" else None,
    )
    return setting, {
        "truth": law,
        "replay": replay,
        "general": general,
        "num_pilots": num_pilots,
        "pilot_share": round(share, 4),
        "noise_nats": round(noise, 5),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Campaign:
    """A campaign whose pilots are fitted, as a rehearsal does it; the fit is kept to be asked about any plan."""

    seed: int
    setting: Setting
    drawn: Mapping[str, Any]
    project: Project
    fitted: Forecaster
    truth: Forecaster
    pilot_steps: int
    """Of all pilots together."""

    def spaces(self) -> dict[str, Space]:
        """What a plan may choose, for each length."""
        steps = round(CHECKED_LENGTH * self.project.pilot.total_steps)
        checked = replace(affordable(self.project, self.fitted), supported_steps=steps)
        return {
            WHOLE: full_space(self.project, self.fitted),
            CHECKED: plan_space(self.project, self.fitted, checked),
        }


def run_pilots(seed: int) -> Campaign:
    """Draw a campaign, train its pilots in the truth, fit."""
    setting, drawn = draw(seed)
    project = setting.project.model_copy(update={"seed": seed})
    records = pilot_records(setting, design_pilots(project))
    return Campaign(
        seed=seed,
        setting=setting,
        drawn=drawn,
        project=project,
        fitted=fitted_forecaster(setting, records, seed),
        truth=true_forecaster(setting),
        pilot_steps=sum(int(record.lr.total_steps) for record in records.values()),
    )


def plan_row(campaign: Campaign, length: str, space: Space) -> Row:
    """Plan for one length; rivals beside it; and the truth about all of them."""
    fitted, truth, seed, pilot = campaign.fitted, campaign.truth, campaign.seed, campaign.project.pilot
    plan = quick_search(fitted.score, space).best.knobs
    measure = measured(campaign.setting, truth, seed)
    plans = {
        OURS: plan,
        COMMON.name: COMMON.knobs(campaign.project.model.pretrain_peak_lr, space.total_steps[1], truth.base),
        **rival_plans(measure, space, campaign.pilot_steps, pilot.total_steps, seed),
    }
    objectives = {name: truth.rough(knobs).objective for name, knobs in plans.items()}
    best = min(best_objective(truth, space), *(value for name, value in objectives.items() if name != COMMON.name))
    return Row(
        seed=seed,
        length=length,
        times_pilot=round(plan.total_steps / pilot.total_steps, 1),
        **campaign.drawn,
        plan=[float(f"{plan.peak_lr:.4g}"), round(plan.replay_ratio, 4), round(plan.decay_share, 3), plan.start],
        most_replay=plan.mean_replay >= NEARLY_ALL * space.replay_ratio[1],
        regrets={name: round(value - best, 6) for name, value in objectives.items()},
        **judged(fitted, truth, plan, random_plans(space, seed)),
    )


def judged(fitted: Forecaster, truth: Forecaster, plan: Knobs, others: Sequence[Knobs]) -> dict[str, Any]:
    """What the fit says of the plan and of others, against the truth; the last fields of a row."""
    outlook, exact = fitted.outlook(plan), truth.rough(plan)
    said = {"objective": (outlook.objective, exact.objective)}
    said |= {name: (outlook.losses[name], loss) for name, loss in exact.losses.items()}
    beside = [(fitted.outlook(other).objective, truth.rough(other).objective) for other in others]
    return {
        "inside": {name: bool(one.low <= true <= one.high) for name, (one, true) in said.items()},
        "biases": {name: round(one.mean - true, 6) for name, (one, true) in said.items()},
        "half_width": round((outlook.objective.high - outlook.objective.low) / 2.0, 6),
        "random_inside": float(np.mean([one.low <= true <= one.high for one, true in beside])),
        "random_bias": round(float(np.mean([one.mean - true for one, true in beside])), 6),
        "random_half_width": round(float(np.mean([(one.high - one.low) / 2.0 for one, _ in beside])), 6),
    }


def best_objective(truth: Forecaster, space: Space) -> float:
    """What the best run of a space gives in truth, at the full length, which all contenders have."""
    tried = [Evaluated(knobs=knobs, score=truth.rough(knobs)) for knobs in grid(space, shares=(1.0,))]
    return min(polish(truth.rough, space, one).score.objective for one in sorted(tried, key=rank)[:POLISHED])


def random_plans(space: Space, seed: int) -> list[Knobs]:
    """Plans anywhere in a space, as long as the chosen one may be."""
    rng = np.random.default_rng([seed, 11])
    return [
        Knobs(
            peak_lr=float(np.exp(rng.uniform(*np.log(space.peak_lr)))),
            replay_ratio=float(rng.uniform(*space.replay_ratio)),
            total_steps=space.total_steps[1],
            decay_share=float(rng.uniform(*space.decay_share)),
            start=space.starts[rng.integers(len(space.starts))],
        )
        for _ in range(RANDOM_PLANS)
    ]


def _band(value: float, edges: Sequence[float]) -> str:
    at = min(max(int(np.searchsorted(edges, value, side="right")), 1), len(edges) - 1)
    return f"{edges[at - 1]:g} to {edges[at]:g}"


GROUPS: dict[str, Callable[[Row], str]] = {
    "all": lambda r: "all",
    "length": lambda r: f"{_band(r.times_pilot, (8, 9, 40, 55, 70, 250))} times as long as the pilots",
    "truth": lambda r: r.truth,
    "replay": lambda r: f"{r.replay} replay",
    "weight": lambda r: f"general = {r.general:g}",
    "chosen replay": lambda r: "the most that pilots had" if r.most_replay else "less than the most",
    "noise": lambda r: f"noise {_band(r.noise_nats, (0.002, 0.0035, 0.006, 0.01))} nats",
    "pilots": lambda r: f"{_band(r.num_pilots, (6, 8, 10, 13))} pilots",
    "share": lambda r: f"pilots {_band(r.pilot_share, (0.05, 0.1, 0.15, 0.25))} of the final run",
}


def grouped(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, dict[str, Any]]:
    """The summary of every group of campaigns."""
    return {name: summary([r for r in rows if key(r) == name]) for name in sorted({key(r) for r in rows})}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Regret, coverage and bias of some campaigns."""
    regret = np.array([row.regrets[OURS] for row in rows])
    return {
        "campaigns": len(rows),
        "regret": spread(regret),
        "coverage_chosen": round(float(np.mean([row.inside["objective"] for row in rows])), 4),
        "coverage_random": round(float(np.mean([row.random_inside for row in rows])), 4),
        "coverage_chosen_losses": {
            name: round(float(np.mean([row.inside[name] for row in rows])), 4) for name in ("general", "domain")
        },
        "bias_chosen": round(float(np.mean([row.biases["objective"] for row in rows])), 5),
        "bias_chosen_losses": {
            name: round(float(np.mean([row.biases[name] for row in rows])), 5) for name in ("general", "domain")
        },
        "bias_random": round(float(np.mean([row.random_bias for row in rows])), 5),
        "half_width_chosen": round(float(np.median([row.half_width for row in rows])), 5),
        "half_width_random": round(float(np.median([row.random_half_width for row in rows])), 5),
    }


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean with its 90 % bootstrap interval, median and 90th percentile."""
    low, high = bootstrap(values)
    return {
        "mean": round(float(values.mean()), 5),
        "mean_low": round(low, 5),
        "mean_high": round(high, 5),
        "median": round(float(np.median(values)), 5),
        "p90": round(float(np.percentile(values, 90)), 5),
    }


def regrets(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Regret of every contender, and by how much more than ours it is, campaign by campaign."""
    table = {name: np.array([row.regrets[name] for row in rows]) for name in rows[0].regrets}
    return {
        name: {
            **spread(values),
            **({} if name == OURS else {"beyond_ours": spread(values - table[OURS])}),
            "better_than_ours": round(float(np.mean(values < table[OURS])), 4),
        }
        for name, values in table.items()
    }


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """90 % interval of a mean, by resampling campaigns."""
    means = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.percentile(means, [5, 95])
    return float(low), float(high)


def wilson(share: float, number: int) -> str:
    """90 % interval of a share of independent campaigns (Wilson 1927)."""
    middle = (share + Z**2 / (2 * number)) / (1 + Z**2 / number)
    half = Z / (1 + Z**2 / number) * np.sqrt(share * (1 - share) / number + Z**2 / (4 * number**2))
    return f"{middle - half:.0%} to {middle + half:.0%}"


def goals(by_length: Mapping[str, Sequence[Row]]) -> list[Goal]:
    """The rows of the table: all campaigns, and each form of replay, for each length; rivals at the whole budget."""
    found = []
    for length, rows in by_length.items():
        groups = {"all": list(rows)} | {f"{one} replay": [r for r in rows if r.replay == one] for one in REPLAYS}
        for name, some in groups.items():
            found += [covered(f"{length}, {name}", some), cursed(f"{length}, {name}", some)] if some else []
        found.append(random_covered(length, rows))
    return [*found, *(ahead(name, by_length[WHOLE]) for name in by_length[WHOLE][0].regrets if name != OURS)]


def _held(what: str, share: float, reached: str) -> Goal:
    low, high = COVERAGE
    miss = max(low - share, share - high)
    short = "" if miss <= 0 else f"{miss:.1%} too {'few' if share < low else 'many'}"
    return Goal(what=what, target=f"{low:.0%} to {high:.0%}", reached=reached, met=miss <= 0, miss=short)


def covered(name: str, rows: Sequence[Row]) -> Goal:
    """Objectives of chosen plans inside their 90 % interval."""
    share = float(np.mean([row.inside["objective"] for row in rows]))
    return _held(
        f"virtual plans, {name} (n = {len(rows)}): the chosen plan's objective inside its 90 % interval",
        share,
        f"{share:.1%} ({wilson(share, len(rows))})",
    )


def random_covered(length: str, rows: Sequence[Row]) -> Goal:
    """The same of plans that nobody chose."""
    shares = np.array([row.random_inside for row in rows])
    low, high = bootstrap(shares)
    return _held(
        f"virtual plans, {length}: a random plan's objective inside ({RANDOM_PLANS} of each campaign)",
        float(shares.mean()),
        f"{shares.mean():.1%} ({low:.0%} to {high:.0%})",
    )


def cursed(name: str, rows: Sequence[Row]) -> Goal:
    """How much more hopeful the fit is of the plan that it chose than of others."""
    extra = np.array([row.biases["objective"] - row.random_bias for row in rows])
    low, high = bootstrap(extra)
    mean = float(extra.mean())
    return Goal(
        what=f"virtual plans, {name}: predicted less true objective, chosen less random plans",
        target=f"within {CURSE} nats",
        reached=f"{mean:+.4f} ({low:+.4f} to {high:+.4f})",
        met=abs(mean) <= CURSE,
        miss="" if abs(mean) <= CURSE else f"{abs(mean) - CURSE:.4f} nats",
    )


def ahead(name: str, rows: Sequence[Row]) -> Goal:
    """Mean regret against that of a rival."""
    ours, theirs = (np.array([row.regrets[one] for row in rows]) for one in (OURS, name))
    low, high = bootstrap(theirs - ours)
    return Goal(
        what=f"virtual plans, {WHOLE} (n = {len(rows)}): mean regret, nats, against {name}",
        target=f"< {theirs.mean():.4f}",
        reached=f"{ours.mean():.4f} (less by {low:.4f} to {high:.4f})",
        met=low > 0,
        miss="" if low > 0 else "the interval of the difference holds 0",
    )


if __name__ == "__main__":
    main()
