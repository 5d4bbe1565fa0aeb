"""How fast a campaign is fitted, and how time and memory grow: python experiments/benchmarks/fit_speed.py.

The campaign: 20 pilots of 4,000 steps after 40,000 of pre-training, 200 points each, two validation sets, a published
law as the truth. A point fit is the search for the best parameters of the law that is tried first, without intervals.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import time
import tracemalloc
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: seconds of one thread

import numpy as np
from record import LOG, Goal, start, write_record

from cptplan.curves import LossCurve
from cptplan.fitting.select import candidate_laws, settled_step
from cptplan.fitting.separable import Solution, solve
from cptplan.laws.cpt import Side
from cptplan.laws.history import observations
from cptplan.run_spec import default_eval_steps
from cptplan.simulation.simulation import Noise, add_noise, simulate_curves
from cptplan.simulation.virtual_lab import BASE, Lab, run_lab

SIDES: tuple[Side, Side] = ("general", "domain")
CURVES, POINTS, STEPS = 20, 200, 4000
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
FEW_CURVES, FEW_POINTS = 8, 40  # for the growth with length
REPEATS = 5
TARGET_SECONDS = 0.5
LINEAR = 1.1  # exponent of the growth up to which it counts as linear


def main() -> None:
    """Measure and write."""
    start()
    curves = campaign(CURVES, POINTS, STEPS)
    sets = {side: seconds(curves, side) for side in SIDES}
    both = sum(found["median"] for found in sets.values())
    LOG.info("both sets %.2f s: %s", both, sets)
    lengths = [length_row(steps) for steps in LENGTHS]
    results = {
        "campaign": {"curves": CURVES, "points": POINTS, "steps": STEPS},
        "point_fit_seconds": {**sets, "both": both},
        "profile": {side: profile(curves, side) for side in SIDES},
        "by_steps": lengths,
        "by_points": [growth_row(CURVES, points, STEPS) for points in (50, 100, 200, 400)],
        "by_curves": [growth_row(number, POINTS, STEPS) for number in (6, 12, 20, 40)],
    }
    write_record("fit_speed", goals(both, lengths), results)


def campaign(num_curves: int, points: int, steps: int) -> dict[str, LossCurve]:
    """Noisy curves of a virtual campaign: pre-training and pilots of one length, evaluated at so many points."""
    noise = Noise(sd_nats=0.004, autocorrelation=0.5, seed=1)
    lab = Lab(
        law="knowledge-pile", num_pilots=num_curves, final_steps=steps, pilot_share=1.0, num_finals=0, noise=noise
    )
    drawn = run_lab(lab)
    records = {name: curve.record for name, curve in drawn.seen.items()}
    grid = np.array(default_eval_steps(steps, points), dtype=np.int64)
    exact = simulate_curves(drawn.truth, records, steps={name: grid for name in records if name != BASE})
    return add_noise(exact, noise)


def point_fit(curves: dict[str, LossCurve], side: Side) -> Solution:
    """One validation set, from curves to parameters."""
    data = observations(curves, side, skip_steps=settled_step(curves))
    return solve(candidate_laws(data, side, "auto", side, "the benchmark")[0], data)


def seconds(curves: dict[str, LossCurve], side: Side) -> dict[str, float]:
    """Wall-clock seconds of a point fit: median and least of several, the schedules' sums made anew each time."""
    found = []
    for _ in range(REPEATS):
        before = time.perf_counter()
        point_fit(curves, side)
        found.append(time.perf_counter() - before)
    return {"median": float(np.median(found)), "least": float(min(found))}


def profile(curves: dict[str, LossCurve], side: Side) -> list[dict[str, Any]]:
    """The functions that a point fit spends its time in, the profiler's own cost included."""
    profiler = cProfile.Profile()
    profiler.runcall(point_fit, curves, side)
    entries = pstats.Stats(profiler).get_stats_profile().func_profiles.items()
    largest = sorted(entries, key=lambda entry: entry[1].tottime, reverse=True)[:12]
    return [
        {"function": name, "file": Path(p.file_name).name, "calls": p.ncalls, "seconds": p.tottime}
        for name, p in largest
    ]


def growth_row(num_curves: int, points: int, steps: int) -> dict[str, float]:
    """Seconds of a point fit of the general set."""
    found = seconds(campaign(num_curves, points, steps), "general")["median"]
    return {"curves": num_curves, "points": points, "steps": steps, "seconds": found}


def length_row(steps: int) -> dict[str, float]:
    """Seconds and peak memory of a point fit of the general set on pilots of a length."""
    curves = campaign(FEW_CURVES, FEW_POINTS, steps)
    found = seconds(curves, "general")["median"]
    tracemalloc.start()
    point_fit(curves, "general")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    row = {"steps": steps, "curves": FEW_CURVES, "points": FEW_POINTS, "seconds": found, "peak_bytes": float(peak)}
    LOG.info("%s", row)
    return {**row, "bytes_per_step": peak / (steps * FEW_CURVES)}


def exponent(rows: list[dict[str, float]], key: str) -> float:
    """The power of the length by which a quantity grows between the two longest, 1 when it is linear."""
    long, longest = rows[-2], rows[-1]
    return float(np.log(longest[key] / long[key]) / np.log(longest["steps"] / long["steps"]))


def goals(both: float, lengths: list[dict[str, float]]) -> list[Goal]:
    """The rows of the table."""
    time_power, memory_power = exponent(lengths, "seconds"), exponent(lengths, "peak_bytes")
    longest = lengths[-1]
    rows = (
        (
            f"point fit of {CURVES} curves x {POINTS} points x 2 sets",
            f"<= {TARGET_SECONDS} s",
            f"{both:.2f} s",
            both <= TARGET_SECONDS,
            f"{both - TARGET_SECONDS:.2f} s too slow",
        ),
        (
            "growth of time and memory with the length of the curves, as a power",
            f"<= {LINEAR}",
            f"{time_power:.2f} and {memory_power:.2f}",
            max(time_power, memory_power) <= LINEAR,
            "more than linear",
        ),
        (
            f"{FEW_CURVES} curves of 1,000,000 steps are fitted",
            "works",
            f"{longest['seconds']:.1f} s, {longest['peak_bytes'] / 1e6:.0f} MB",
            True,
            "",
        ),
    )
    return [Goal(what=w, target=t, reached=r, met=bool(m), miss="" if m else miss) for w, t, r, m, miss in rows]


if __name__ == "__main__":
    main()
