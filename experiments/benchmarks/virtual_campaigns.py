"""Virtual campaigns with a known truth: python experiments/benchmarks/virtual_campaigns.py --campaigns 500.

Each campaign draws a published CPT law as the truth, 6 to 12 pilots of 10 to 25 % of the final length and noise of
0.002 to 0.01 nats (cptplan.simulation.virtual_lab), fits both validation sets and predicts three final runs. Errors and
coverage are against the loss without noise, after the first steps that the fit leaves out; against measured values too.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: one thread for each process

import numpy as np
from record import LOG, Goal, start, write_record

from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.select import select_law
from cptplan.laws.cpt import Side
from cptplan.laws.history import history_of
from cptplan.simulation.virtual_lab import VirtualCampaign, draw_lab, run_lab

SIDES: tuple[Side, Side] = ("general", "domain")
FIRST_SEED = 1000  # campaigns before it were looked at while the intervals were made
NOISE_BANDS = (0.002, 0.0035, 0.006, 0.01)
PILOT_BANDS = (6, 8, 10, 12)
WORST = 10  # ends that are listed one by one
END_ERROR, COVERAGE = 0.003, (0.85, 0.95)


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """One final run, predicted on one validation set."""

    seed: int
    run: str
    set_name: str
    truth: str
    replay: str
    noise_nats: float
    num_pilots: int
    form: str
    error: float
    """Relative error of the predicted mean at the end."""
    half_width: float
    """Half the 90 % interval at the end over the loss."""
    inside: bool
    along: float
    """Share of the curve inside the interval of the mean."""
    measured_inside: bool
    measured_along: float
    """The same of measured values and their interval."""
    fit_seconds: float


def main() -> None:
    """Draw, fit, predict, count."""
    start()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaigns", type=int, default=500)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.campaigns)
    before, ends = time.perf_counter(), []
    with ProcessPoolExecutor(options.processes) as pool:
        for number, found in enumerate(pool.map(campaign_ends, seeds), start=1):
            ends += found
            if number % 20 == 0:
                LOG.info("%d campaigns, %.0f s: %s", number, time.perf_counter() - before, summary(ends))
    results = {
        "seeds": [seeds.start, seeds.stop - 1],
        "processes": options.processes,
        "seconds": time.perf_counter() - before,
        "groups": {title: grouped(ends, key) for title, key in GROUPS.items()},
        "worst": [asdict(end) for end in sorted(ends, key=lambda e: abs(e.error), reverse=True)[:WORST]],
    }
    write_record("virtual_campaigns", goals(ends), results)


def campaign_ends(seed: int) -> list[End]:
    """All ends of one campaign, on both sets."""
    campaign = run_lab(draw_lab(seed))
    return [end for side in SIDES for end in set_ends(campaign, side)]


def set_ends(campaign: VirtualCampaign, side: Side) -> list[End]:
    """Fit one validation set to the seen curves and judge it on the final runs."""
    before = time.perf_counter()
    fitted = select_law(campaign.seen, side, side).fitted
    seconds = time.perf_counter() - before
    return [judged(campaign, fitted, name, seconds) for name in campaign.finals]


def judged(campaign: VirtualCampaign, fitted: FittedLaw, name: str, seconds: float) -> End:
    """One final run against its truth."""
    lab, curve = campaign.lab, campaign.finals[name]
    history = history_of(curve, {**campaign.seen, name: curve})
    steps = curve.steps[curve.steps >= fitted.settled_step]
    exact = campaign.exact[name][fitted.set_name][-len(steps) :]
    noisy = curve.losses[fitted.set_name][-len(steps) :]
    mean, value = fitted.predict(history, steps), fitted.predict(history, steps, measured=True)
    inside = (mean.low <= exact) & (exact <= mean.high)
    measured = (value.low <= noisy) & (noisy <= value.high)
    return End(
        seed=lab.seed,
        run=name,
        set_name=fitted.set_name,
        truth=lab.law,
        replay=lab.replay,
        noise_nats=lab.noise.sd_nats,
        num_pilots=lab.num_pilots,
        form=fitted.law.name,
        error=float(mean.mean[-1] / exact[-1] - 1.0),
        half_width=float((mean.high[-1] - mean.low[-1]) / 2.0 / exact[-1]),
        inside=bool(inside[-1]),
        along=float(inside.mean()),
        measured_inside=bool(measured[-1]),
        measured_along=float(measured.mean()),
        fit_seconds=seconds,
    )


def _band(value: float, edges: Sequence[float]) -> str:
    at = min(int(np.searchsorted(edges, value, side="right")), len(edges) - 1)
    return f"{edges[at - 1]:g} to {edges[at]:g}"


GROUPS: dict[str, Callable[[End], str]] = {
    "set": lambda e: e.set_name,
    "replay": lambda e: f"{e.set_name}, {e.replay} replay",
    "truth": lambda e: f"{e.set_name}, {e.truth}",
    "noise": lambda e: f"{e.set_name}, noise {_band(e.noise_nats, NOISE_BANDS)} nats",
    "pilots": lambda e: f"{e.set_name}, {_band(e.num_pilots, PILOT_BANDS)} pilots",
    "form": lambda e: f"{e.set_name}, {e.replay} replay, chosen {e.form}",
}


def grouped(ends: Sequence[End], key: Callable[[End], str]) -> dict[str, dict[str, float]]:
    """The summary of every group of ends."""
    return {name: summary([e for e in ends if key(e) == name]) for name in sorted({key(e) for e in ends})}


def summary(ends: Sequence[End]) -> dict[str, float]:
    """Errors and coverage of some ends."""
    errors = np.abs([e.error for e in ends])
    return {
        "ends": len(ends),
        "median_end_error": round(float(np.median(errors)), 6),
        "rms_end_error": round(float(np.sqrt(np.mean(errors**2))), 6),
        "worst_end_error": round(float(errors.max()), 6),
        "median_half_width": round(float(np.median([e.half_width for e in ends])), 6),
        "coverage_end": round(float(np.mean([e.inside for e in ends])), 4),
        "coverage_along": round(float(np.mean([e.along for e in ends])), 4),
        "coverage_end_measured": round(float(np.mean([e.measured_inside for e in ends])), 4),
        "coverage_along_measured": round(float(np.mean([e.measured_along for e in ends])), 4),
        "median_fit_seconds": round(float(np.median([e.fit_seconds for e in ends])), 3),
    }


def goals(ends: Sequence[End]) -> list[Goal]:
    """The rows of the table: both sets, each under both forms of replay."""
    found = []
    for name, row in {**grouped(ends, GROUPS["set"]), **grouped(ends, GROUPS["replay"])}.items():
        error, at_end, along = row["median_end_error"], row["coverage_end"], row["coverage_along"]
        found.append(
            Goal(
                what=f"virtual campaigns, {name} (n = {row['ends']:.0f}): median error at the end",
                target=f"<= {END_ERROR:.1%}",
                reached=f"{error:.2%}",
                met=error <= END_ERROR,
                miss="" if error <= END_ERROR else f"{error - END_ERROR:.2%}",
            )
        )
        for what, share in (("at the end", at_end), ("along the curve", along)):
            low, high = COVERAGE
            miss = max(low - share, share - high)
            found.append(
                Goal(
                    what=f"virtual campaigns, {name}: inside the 90 % interval {what}",
                    target=f"{low:.0%} to {high:.0%}",
                    reached=f"{share:.1%}",
                    met=miss <= 0,
                    miss="" if miss <= 0 else f"{miss:.1%} too {'few' if share < low else 'many'}",
                )
            )
    return found


if __name__ == "__main__":
    main()
