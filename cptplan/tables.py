"""Rows that the command line shows: words and rounded numbers, nothing computed that a stage did not write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cptplan.config import Project
from cptplan.files import read_json
from cptplan.fitting.verdict import Verdict
from cptplan.pilots.design import design_pilots
from cptplan.planning.plan import Expected, Plan, PlannedRun
from cptplan.report.data import OutcomeRow
from cptplan.report.findings import quantity_label

Row = tuple[str, ...]

PILOT_COLUMNS = ("pilot", "peak_lr", "replay", "decay", "start", "what it is for")
FIT_COLUMNS = ("validation set", "form", "unseen curves", "in sample", "weight")
SCORE_COLUMNS = ("loss on curve", "mape", "rmse", "worst", "r2", "in 90 %", "end error")
OUTCOME_COLUMNS = ("run", "at the end", "predicted", "90 % interval", "measured", "inside")
CORPORA_COLUMNS = ("source", "train tokens", "validation tokens", "documents", "bytes per token")


def corpora_rows(corpora: Mapping[str, Any]) -> list[Row]:
    """What was packed, a row for each source."""
    return [
        (
            source["name"],
            f"{source['train']['num_tokens']:,}",
            f"{source['validation']['num_tokens']:,}",
            f"{source['train']['num_documents'] + source['validation']['num_documents']:,}",
            f"{source['train']['num_bytes'] / source['train']['num_tokens']:.2f}",
        )
        for source in corpora["sources"]
    ]


def pilot_rows(project: Project) -> list[Row]:
    """The designed pilots, a row for each."""
    return [
        (
            f"pilot-{number:02d}",
            f"{cell.peak_lr:.3g}",
            f"{cell.replay_ratio:.1%}",
            f"last {cell.decay_share:.0%}" if cell.decay_share else "none",
            cell.start.name,
            cell.purpose,
        )
        for number, cell in enumerate(design_pilots(project), start=1)
    ]


def fit_rows(fit_dir: Path) -> list[Row]:
    """The forms that were tried for each validation set, what counts most first."""
    sets = read_json(fit_dir / "report.json")["sets"]
    return [
        (
            f"loss_{name}" if number == 0 else "",
            form["form"],
            f"{form['discrepancy']:.2%}",
            f"{form['in_sample_error']:.2%}",
            f"{weight:.0%}" if (weight := form.get("weight", float(number == 0))) else "-",
        )
        for name, forms in sets.items()
        for number, form in enumerate(forms)
    ]


def verdict_lines(fit_dir: Path) -> list[str]:
    """What to know of a fit, set by set: why this law, and the verdict."""
    laws, third = read_json(fit_dir / "law.json")["laws"], read_json(fit_dir / "report.json")["out_of_domain"]
    said: dict[str, list[str]] = {}
    for name, law in laws.items():
        for line in (f"{law['form']}: {law['reason']}", *Verdict.parse(law["verdict"], str(fit_dir)).lines()):
            said.setdefault(line, []).append(f"loss_{name}")
    found = [f"{', '.join(sets) if len(sets) < len(laws) else 'all'}: {line}" for line, sets in said.items()]
    words = {True: "is a combination of general and domain loss", False: "is not to be combined of the two"}
    return [*found, *(f"loss_{name} {words[fit['valid']]}: {fit['reason']}" for name, fit in third.items())]


def score_rows(scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> list[Row]:
    """One row for each test curve and their mean first, by validation set."""
    return [
        (
            f"{set_name}: mean" if curve == "mean" else f"  {curve}",
            f"{row['mape']:.3%}",
            f"{row['rmse']:.4f}",
            f"{row['worst']:.2%}",
            "-" if row["r2"] is None else f"{row['r2']:.4f}",
            f"{row['coverage90']:.0%}",
            f"{row['end_error']:.3%}",
        )
        for set_name, curves in scores.items()
        for curve, row in curves.items()
    ]


def plan_rows(plan: Plan) -> list[Row]:
    """Choices and expectations of the chosen run beside the rule of thumb."""
    pairs = {**knobs_in_words(plan), **expectations_in_words(plan)}
    return [(label, chosen, thumb) for label, (chosen, thumb) in pairs.items()]


def knobs_in_words(plan: Plan) -> dict[str, tuple[str, str]]:
    """The choices of both runs: chosen, rule of thumb."""

    def words(run: PlannedRun) -> dict[str, str]:
        return {
            "peak learning rate": f"{run.peak_lr:.3g}",
            "replay ratio": f"{run.replay_ratio:.1%}" + ("" if run.end_replay is None else f" to {run.end_replay:.1%}"),
            "steps": f"{run.total_steps:,}",
            "tokens": f"{run.total_steps * plan.batch_tokens / 1e6:,.2f} M",
            "warm-up": f"{run.warmup_steps:,} steps",
            "decay": _decay_words(run),
            "start checkpoint": run.start,
        }

    chosen, thumb = words(plan.chosen), words(plan.rule_of_thumb)
    return {label: (chosen[label], thumb[label]) for label in chosen}


def _decay_words(run: PlannedRun) -> str:
    """How the rate falls."""
    if run.kind in ("cosine", "linear"):
        return {"cosine": "cosine to a tenth", "linear": "straight to 0"}[run.kind]
    return f"last {run.decay_share:.0%}, linear" if run.kind == "wsd" and run.decay_share else "none"


def expectations_in_words(plan: Plan) -> dict[str, tuple[str, str]]:
    """What is expected of both runs, with intervals: chosen, rule of thumb."""

    def words(run: PlannedRun) -> dict[str, str]:
        losses = {f"loss_{name}": interval(value) for name, value in run.losses.items()}
        return {
            **losses,
            "forgetting_ratio": interval(run.forgetting_ratio),
            "weighted change of loss": interval(run.objective, signed=True),
        }

    chosen, thumb = words(plan.chosen), words(plan.rule_of_thumb)
    return {label: (chosen[label], thumb[label]) for label in chosen}


def interval(value: Expected, *, signed: bool = False) -> str:
    """A number with its interval: 3.412 [3.38, 3.46]."""
    sign = "+" if signed else ""
    return f"{value.mean:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def outcome_rows(outcomes: Iterable[OutcomeRow]) -> list[Row]:
    """Predicted and measured final numbers of both runs."""
    return [
        (
            row.run,
            quantity_label(row.quantity).lower(),
            f"{row.predicted:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            "-" if row.measured is None else f"{row.measured:.3f}",
            {True: "yes", False: "NO", None: "-"}[row.inside],
        )
        for row in outcomes
    ]
