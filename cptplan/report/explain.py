"""From a plan and its fit to the report's account of them: limits, knobs, other runs, maps, forms of the law."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from cptplan.config import Project
from cptplan.files import read_json
from cptplan.fitting.fitted import FittedLaw
from cptplan.planning.budget import known_rates, price
from cptplan.planning.pareto import in_words
from cptplan.planning.plan import Alternative, Expected, FrontPoint, Plan, PlannedRun
from cptplan.planning.tables import limit_rows
from cptplan.report.data import FitParameter, FitRow, FormRow
from cptplan.report.findings import format_lr
from cptplan.report.plan_data import (
    Account,
    InsteadRow,
    KnobRow,
    LimitRow,
    NextPilot,
    ParetoFront,
    ParetoLine,
    ParetoPoint,
    PlanRow,
    Surface,
    SurfacePoint,
)
from cptplan.run_spec import read_run_spec
from cptplan.workspace import Workspace

KNOBS = {
    "peak_lr": "peak learning rate",
    "replay_ratio": "replay ratio",
    "end_replay": "replay ratio at the end",
    "total_steps": "steps",
    "decay_share": "share that decays",
    "warmup_steps": "warm-up steps",
}
PARETO_CSV = "pareto.csv"


def account_of(plan: Plan) -> Account:
    """What the plan says of itself."""
    return Account(
        binding=plan.binding,
        limits=tuple(_limits(plan)),
        chance=plan.chance,
        knobs=tuple(
            KnobRow(knob=KNOBS[one.knob], value=_knob_value(plan.chosen, one.knob), lower=one.lower, higher=one.higher)
            for one in plan.sensitivities
        ),
        instead=tuple(_instead(plan)),
        regret=plan.regret,
        next_pilot=_next_pilot(plan),
        extrapolations=plan.extrapolations,
        assumptions=plan.assumptions,
    )


def _limits(plan: Plan) -> Iterable[LimitRow]:
    for limit, (name, used, allowed, unit, _, basis) in zip(plan.limits, limit_rows(plan), strict=True):
        yield LimitRow(
            name=name,
            used=used,
            allowed=allowed,
            unit=unit,
            share=limit.used / limit.allowed if limit.allowed > 0 else 1.0,
            binding=limit.binding,
            known_by="" if limit.basis is None else basis,
        )


def _knob_value(run: PlannedRun, knob: str) -> str:
    value = getattr(run, knob)
    if knob == "peak_lr":
        return format_lr(value)
    return f"{value:,}" if knob in ("total_steps", "warmup_steps") else percent(value)


def _instead(plan: Plan) -> Iterable[InsteadRow]:
    """Other budgets and recipes; the rule of thumb once, also where it is the nearest recipe."""
    rule = Alternative(name="rule of thumb", source="", run=plan.rule_of_thumb, difference=plan.gain)
    nearest = plan.nearest_recipe
    recipes = (nearest,) if nearest.run == rule.run else (nearest, rule)
    for one in (*plan.budgets, *recipes):
        name = f"{one.name} (nearest recipe)" if one is nearest else one.name
        yield InsteadRow(
            name=name,
            source=one.source if one is nearest else "",
            peak_lr=one.run.peak_lr,
            replay_ratio=replay_words(one.run),
            steps=one.run.total_steps,
            decay=_decay(one.run.kind, one.run.decay_share),
            start=one.run.start,
            difference=one.difference.mean,
            low=one.difference.low,
            high=one.difference.high,
        )


def _next_pilot(plan: Plan) -> NextPilot:
    pilot = plan.next_pilot
    hours = "" if pilot.gpu_hours is None else f", {pilot.gpu_hours:.3g} GPU-hours"
    words = {
        "peak learning rate": format_lr(pilot.peak_lr),
        "replay ratio": percent(pilot.replay_ratio),
        "steps": f"{pilot.total_steps:,}",
        "decay": f"last {pilot.decay_share:.0%}" if pilot.decay_share else "none",
        "start checkpoint": pilot.start,
        "price": f"{in_words(pilot.tokens)} tokens{hours}",
    }
    choices = tuple(PlanRow(label=label, chosen=value) for label, value in words.items())
    return NextPilot(choices=choices, value=pilot.value)


def percent(share: float) -> str:
    """A share with as many digits as it needs: 0%, 0.5%, 37.3%."""
    return f"{100.0 * share:.3g}%"


def replay_words(run: PlannedRun | FrontPoint) -> str:
    """The replay ratio, or where it starts and ends."""
    return percent(run.replay_ratio) + ("" if run.end_replay is None else f" to {percent(run.end_replay)}")


def replay_sentence(run: PlannedRun) -> str:
    """The replay ratio, in a sentence."""
    if run.end_replay is None:
        return f"{percent(run.replay_ratio)} replay"
    word = "falling" if run.end_replay < run.replay_ratio else "rising"
    return f"replay {word} from {percent(run.replay_ratio)} to {percent(run.end_replay)}"


def decay_sentence(run: PlannedRun) -> str:
    """How the rate falls, to end a sentence with."""
    if run.kind in ("cosine", "linear"):
        return f"with a {run.kind} schedule"
    return f"decaying over the last {run.decay_share:.0%}" if run.decay_share else "without decay"


def surface_of(plan: Plan, workspace: Workspace, laws: Mapping[str, FittedLaw]) -> Surface:
    """The objective over rate and replay; a run whose replay changes stands at its mean."""
    chosen, table = plan.chosen, plan.surface
    pilots = [read_run_spec(path) for path in sorted(workspace.runs.glob("pilot-*/spec.json"))]

    def place(label: str, run: PlannedRun) -> SurfacePoint:
        return SurfacePoint(label=label, peak_lr=run.peak_lr, replay_ratio=run.knobs().mean_replay)

    note = f"Held fixed: {chosen.total_steps:,} steps from {chosen.start}, {decay_sentence(chosen)}."
    if chosen.end_replay is not None:
        note += (
            f" The map is of constant replay; the chosen plan goes from {percent(chosen.replay_ratio)} to "
            f"{percent(chosen.end_replay)} and stands at its mean."
        )
    return Surface(
        peak_lrs=table.peak_lrs,
        replay_ratios=table.replay_ratios,
        objective=table.objective,
        chosen=place("chosen plan", chosen),
        rule_of_thumb=place("rule of thumb", plan.rule_of_thumb),
        pilots=tuple(
            SurfacePoint(
                label=spec.name, peak_lr=float(spec.lr().max()), replay_ratio=float(spec.replay_ratios().mean())
            )
            for spec in pilots
        ),
        note=note,
        supported=_supported(plan, laws),
    )


def _supported(plan: Plan, laws: Mapping[str, FittedLaw]) -> tuple[float, float, float, float] | None:
    """What the pilots of all sets span in rate and replay; None where the surface does not leave it."""
    spans = [law.support for law in laws.values()]
    rates = max(s.peak_lr[0] for s in spans), min(s.peak_lr[1] for s in spans)
    replays = max(s.replay_ratio[0] for s in spans), min(s.replay_ratio[1] for s in spans)
    shown = *_ends(plan.surface.peak_lrs), *_ends(plan.surface.replay_ratios)
    return None if np.allclose(shown, (*rates, *replays), rtol=1e-3, atol=1e-6) else (*rates, *replays)


def _ends(values: tuple[float, ...]) -> tuple[float, float]:
    return min(values), max(values)


def pareto_of(plan: Plan, directory: Path, project: Project, workspace: Workspace) -> ParetoFront:
    """A line for each length from pareto.csv beside the plan; without it, the plan's own front within the budget."""
    rates = known_rates(project, workspace.runs)

    def cost(steps: int) -> str:
        tokens = steps * plan.batch_tokens
        usd = None if rates is None else price(project, rates, tokens).price_usd
        return f"{in_words(tokens)} tokens" + ("" if usd is None else f", {usd:,.3g} USD")

    def point(run: PlannedRun | FrontPoint, general: Expected, domain: Expected) -> ParetoPoint:
        return ParetoPoint(
            peak_lr=run.peak_lr,
            replay_ratio=replay_words(run),
            total_steps=run.total_steps,
            decay=_decay(run.kind, run.decay_share),
            start=run.start,
            cost=cost(run.total_steps),
            general=general.mean,
            general_low=general.low,
            general_high=general.high,
            domain=domain.mean,
            domain_low=domain.low,
            domain_high=domain.high,
        )

    domain = next(name for name in plan.chosen.losses if name != "general")

    def planned(run: PlannedRun) -> ParetoPoint:
        return point(run, run.losses["general"], run.losses[domain])

    lines = _lines_of_csv(directory / PARETO_CSV)
    if not lines:
        own = tuple(point(p, p.general, p.domain) for p in plan.pareto)
        lines = (ParetoLine(label=f"Up to {cost(plan.budget_tokens // plan.batch_tokens)}", points=own),)
    return ParetoFront(lines=lines, chosen=planned(plan.chosen), rule_of_thumb=planned(plan.rule_of_thumb))


def _decay(kind: str, share: float) -> str:
    """How the rate falls; a front's point has a kind and a share and is no run yet."""
    if kind in ("cosine", "linear"):
        return kind
    return f"last {share:.0%}" if share else "none"


def _lines_of_csv(path: Path) -> tuple[ParetoLine, ...]:
    """The front that cptplan optimize --pareto wrote; nothing when it is not there."""
    if not path.exists():
        return ()
    lines: dict[str, list[ParetoPoint]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            usd = f", {float(row['usd']):,.3g} USD" if row["usd"] else ""
            cost = f"{in_words(int(row['tokens']))} tokens{usd}"
            replay = percent(float(row["replay_ratio"]))
            names = ("general", "general_low", "general_high", "domain", "domain_low", "domain_high")
            lines.setdefault(cost, []).append(
                ParetoPoint(
                    peak_lr=float(row["peak_lr"]),
                    replay_ratio=replay + (f" to {percent(float(row['end_replay']))}" if row["end_replay"] else ""),
                    total_steps=int(row["total_steps"]),
                    decay=_decay(row["schedule"], float(row["decay_share"])),
                    start=row["start"],
                    cost=cost,
                    **{name: float(row[name]) for name in names},
                )
            )
    return tuple(ParetoLine(label=cost, points=tuple(points)) for cost, points in lines.items())


def fit_row(name: str, law: FittedLaw, tried: Iterable[Mapping[str, float | str]], typical_loss: float) -> FitRow:
    """The forms that were tried, and the parameters of the first with 90 % intervals of the jackknife.

    Args:      tried: report.json's, of this set. typical_loss: by which relative errors become nats.
    """
    names = [*(p.name for p in law.law.parameters), *(t.name for t in law.law.terms)]
    best = np.concatenate([law.best.values, law.best.coefficients])
    half = student_t.ppf(0.95, law.freedom) * np.concatenate(law.parameter_spread())
    weights = {form.law.name: form.weight for form in law.forms}
    return FitRow(
        set_name=name,
        law=law.law.name,
        parameters=tuple(
            FitParameter(name=n, value=float(v), low=float(v - h), high=float(v + h))
            for n, v, h in zip(names, best, half, strict=True)
        ),
        forms=tuple(
            FormRow(
                form=str(one["form"]),
                weight=weights.get(str(one["form"]), 0.0),
                in_sample_error=float(one["in_sample_error"]) * typical_loss,
                held_out_error=float(one["discrepancy"]) * typical_loss,
            )
            for one in tried
        ),
    )


def tried_forms(fit_dir: Path) -> dict[str, list[dict[str, float | str]]]:
    """The forms of report.json by validation set."""
    found: dict[str, list[dict[str, float | str]]] = read_json(fit_dir / "report.json")["sets"]
    return found
