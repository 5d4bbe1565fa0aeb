"""Adapted models as points on the gain/forgetting plane, and which of them are better than which."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOAL = 0.4  # the weight of general in the lab's project; the rest is the domain's
REPLAY = ("replay5", "replay30", "ramp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One adapted model, measured on every validation window."""

    name: str
    method: str
    setting: str
    seed: int
    rise: float
    """loss_general minus that of the base, nats per token; its exponential is the forgetting_ratio."""
    gain: float
    """loss_domain of the base minus that of the model, nats per token."""
    num_trained: int | None = None
    step_seconds: float | None = None
    on_front: bool = False

    @property
    def forgetting_ratio(self) -> float:
        """General perplexity over that of the base."""
        return math.exp(self.rise)

    @property
    def domain_drop(self) -> float:
        """Share by which the domain's perplexity fell."""
        return 1.0 - math.exp(-self.gain)

    def change(self, general: float) -> float:
        """Change of the weighted loss against the base; less is better."""
        return general * self.rise - (1.0 - general) * self.gain

    def dominates(self, other: Point) -> bool:
        """Whether it gains as much and forgets as little as the other, and is better in one."""
        return self != other and self.gain >= other.gain and self.rise <= other.rise


def soup_name(run: str, share: float) -> str:
    """Of a soup with the base that holds this share of a run's end."""
    return f"soup-{run}-{share:g}"


def points_of(measured: dict[str, Any], windows: dict[str, NDArray[np.float64]]) -> list[Point]:
    """Every run and every soup."""
    base = {name: float(windows[f"base/{name}"].mean()) for name in ("general", "domain")}
    found, runs = [], {run["name"]: run for run in measured["runs"]}
    for name, run in runs.items():
        losses = {each: float(windows[f"{name}/{each}"].mean()) for each in base}
        strength = f", strength {run['strength']:g}" if run["strength"] is not None else ""
        found.append(
            Point(
                name=name,
                method=run["method"],
                setting=f"lr {run['peak_lr']:g}{strength}",
                seed=run["seed"],
                rise=losses["general"] - base["general"],
                gain=base["domain"] - losses["domain"],
                num_trained=run["num_trained"],
                step_seconds=run["step_seconds"],
            )
        )
    for soup in measured["soups"]:
        run = runs[soup["run"]]
        found += [
            Point(
                name=soup_name(soup["run"], row["coefficient"]),
                method=f"soup-{run['method']}",
                setting=f"lr {run['peak_lr']:g}, share {row['coefficient']:g}",
                seed=run["seed"],
                rise=row["losses"]["general"] - base["general"],
                gain=base["domain"] - row["losses"]["domain"],
            )
            for row in soup["table"]
            if row["coefficient"] > 0
        ]
    first = [point for point in found if point.seed == 0]
    return [replace(p, on_front=p.seed == 0 and not any(q.dominates(p) for q in first)) for p in found]


def seed_noise(points: list[Point]) -> dict[str, float]:
    """Standard deviation between runs that differ in the seed alone, pooled, and its degrees of freedom."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.method, point.setting), []).append(point)
    several = [group for group in groups.values() if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)

    def pooled(values: list[list[float]]) -> float:
        return math.sqrt(sum(np.var(each, ddof=1) * (len(each) - 1) for each in values) / freedom)

    return {
        "rise": pooled([[p.rise for p in group] for group in several]),
        "gain": pooled([[p.gain for p in group] for group in several]),
        "change": pooled([[p.change(GOAL) for p in group] for group in several]),
        "degrees_of_freedom": freedom,
    }


def best_by_method(points: list[Point], general: float) -> dict[str, Point]:
    """The point of each method's own sweep with the lowest weighted loss, best method first."""
    best: dict[str, Point] = {}
    for point in sorted((p for p in points if p.seed == 0), key=lambda p: p.change(general)):
        best.setdefault(point.method, point)
    return best


def dominance(points: list[Point]) -> list[dict[str, Any]]:
    """For every method: how many of its points some point with replay dominates, and the other way round."""
    first = [p for p in points if p.seed == 0]
    replays = [p for p in first if p.method in REPLAY]
    rows = []
    for method in dict.fromkeys(p.method for p in first if p.method not in REPLAY):
        mine = [p for p in first if p.method == method]
        rows.append(
            {
                "method": method,
                "points": len(mine),
                "dominated_by_replay": sum(any(r.dominates(p) for r in replays) for p in mine),
                "replay_points": len(replays),
                "dominating_replay": sum(any(p.dominates(r) for p in mine) for r in replays),
            }
        )
    return rows
