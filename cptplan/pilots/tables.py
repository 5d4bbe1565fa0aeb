"""Rows of cptplan pilot: the designed runs with their price, and candidates for one more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cptplan.config import Project
from cptplan.pilots.cost import PilotBill, RunCost
from cptplan.pilots.design import PilotCell
from cptplan.pilots.next_pilot import PilotValue
from cptplan.pilots.next_stage import Advice

Row = tuple[str, ...]

PILOT_COLUMNS = ("pilot", "peak_lr", "replay", "decay", "start", "cost", "what it is for")
SHOWN = 5  # candidates


def pilot_rows(cells: tuple[PilotCell, ...], bill: PilotBill) -> list[Row]:
    """The designed pilots with their price, a row for each."""
    return [
        (
            f"pilot-{number:02d}",
            f"{cell.peak_lr:.3g}",
            f"{cell.replay_ratio:.1%}",
            decay_words(cell.decay_share),
            cell.start.name,
            f"{bill.each.share:.2%}",
            cell.purpose,
        )
        for number, cell in enumerate(cells, start=1)
    ]


def decay_words(share: float) -> str:
    """How the rate falls."""
    return f"last {share:.0%}" if share else "none"


def pilots_json(project: Project, cells: tuple[PilotCell, ...], bill: PilotBill) -> dict[str, Any]:
    """The same as data."""
    return {
        "pilots": [
            {
                "name": f"pilot-{number:02d}",
                "peak_lr": cell.peak_lr,
                "replay_ratio": cell.replay_ratio,
                "decay_share": cell.decay_share,
                "start": cell.start.name,
                "total_steps": project.pilot.total_steps,
                "passes": dict(cell.passes),
                "purpose": cell.purpose,
                **_cost_json(bill.each),
            }
            for number, cell in enumerate(cells, start=1)
        ],
        "share": bill.share,
        "max_share": project.pilot.max_share,
    }


def _cost_json(cost: RunCost) -> Mapping[str, float | None]:
    return {"tokens": cost.tokens, "gpu_hours": cost.gpu_hours, "price_usd": cost.usd, "share": cost.share}


def candidate_columns(advice: Advice) -> Row:
    """Columns of candidate_rows."""
    unit = "G token" if advice.best.gpu_hours is None else "GPU-hour"
    return ("peak_lr", "replay", "decay", "start", "steps", "less regret, nats", f"per {unit}")


def candidate_rows(advice: Advice) -> list[Row]:
    """The best candidates, a row for each."""
    return [
        (
            f"{one.knobs.peak_lr:.3g}",
            f"{one.knobs.replay_ratio:.1%}",
            decay_words(one.knobs.decay_share),
            one.knobs.start,
            f"{one.knobs.total_steps:,}",
            f"{one.value:.4f}",
            f"{_per_cost(one):.3g}",
        )
        for one in advice.candidates[:SHOWN]
    ]


def _per_cost(one: PilotValue) -> float:
    return one.value_per_cost * (1e9 if one.gpu_hours is None else 1.0)


def advice_json(advice: Advice) -> dict[str, Any]:
    """The advice as data."""
    return {
        "fit": str(advice.fit_dir),
        "regret": advice.regret,
        "worth": advice.worth,
        "threshold": advice.threshold,
        "share": advice.share,
        "candidates": [
            {
                "peak_lr": one.knobs.peak_lr,
                "replay_ratio": one.knobs.replay_ratio,
                "decay_share": one.knobs.decay_share,
                "start": one.knobs.start,
                "total_steps": one.knobs.total_steps,
                "value": one.value,
                "tokens": one.tokens,
                "gpu_hours": one.gpu_hours,
            }
            for one in advice.candidates[:SHOWN]
        ],
    }
