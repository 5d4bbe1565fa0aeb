"""What each figure of a report says, in one sentence, worked out from the same data that it is drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cptplan.report.data import OutcomeRow, ReportData, RunView
from cptplan.report.plan_data import Account, Surface

QUANTITIES = {
    "loss_general": "General loss",
    "loss_domain": "Domain loss",
    "forgetting_ratio": "Forgetting ratio",
    "objective": "Weighted objective",
}
ROLES = {"chosen": "chosen plan", "rule_of_thumb": "rule of thumb", "pilot": "pilot", "base": "base model"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FigureText:
    """Words of one figure: the finding as its title, and how to read it."""

    title: str
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How many measured losses fall inside the predicted band, and the mean size of the error, nats per token."""

    inside: int
    measured: int
    mean_error: float


def coverage(runs: Iterable[RunView]) -> Coverage:
    """Count over all curves that are both measured and predicted; step 0 is left out, it is known beforehand."""
    inside, errors = 0, []
    for curve in (curve for run in runs for curve in run.curves if curve.predicted_steps):
        steps, losses = np.array(curve.measured_steps), np.array(curve.measured_losses)
        within = (steps > 0) & (steps >= curve.predicted_steps[0]) & (steps <= curve.predicted_steps[-1])
        mean, low, high = curve.predicted_at(steps[within])
        inside += int(np.sum((losses[within] >= low) & (losses[within] <= high)))
        errors.extend(np.abs(losses[within] - mean).tolist())
    return Coverage(inside=inside, measured=len(errors), mean_error=float(np.mean(errors)) if errors else 0.0)


def figure_texts(data: ReportData) -> dict[str, FigureText]:
    """The words of every figure that drawable data can fill, by figure name, in the order of the page."""
    texts: dict[str, FigureText] = {}
    if any(run.curves for run in data.runs_of("chosen", "rule_of_thumb")):
        texts["curves"] = _curves_text(data)
    if final_losses(data):
        texts["parity"] = _parity_text(data)
    if data.surface is not None:
        texts["surface"] = _surface_text(data, data.surface)
    if data.pareto is not None and any(line.points for line in data.pareto.lines):
        texts["pareto"] = _pareto_text(data)
    if any(run.lr for run in data.runs_of("chosen", "rule_of_thumb", "pilot")):
        texts["schedules"] = _schedules_text(data)
    if any(run.curves for run in data.runs_of("pilot")):
        texts["pilots"] = _pilots_text(data)
    if sum(share.flops for share in data.compute) > 0:
        texts["compute"] = _compute_text(data)
    return texts


def final_losses(data: ReportData) -> tuple[OutcomeRow, ...]:
    """Outcomes that are losses and have been measured: the points of the figure of predicted against measured."""
    return tuple(row for row in data.outcomes if row.measured is not None and row.quantity.startswith("loss_"))


def quantity_label(quantity: str) -> str:
    """A quantity in words: loss_general is General loss."""
    return QUANTITIES.get(quantity, quantity.replace("_", " ").capitalize())


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountTexts:
    """Titles of the plan's account of itself: the finding of each part."""

    limits: str
    knobs: str
    worst: float
    """Largest change that a fifth of any choice makes, > 0; nats."""
    instead: str
    next_pilot: str
    forms: str


def account_texts(data: ReportData) -> AccountTexts:
    """The words of the parts of the account and of the table of forms."""
    account = data.account or Account()
    binding = [row.name for row in account.limits if row.binding]
    costs = {row.knob: max(row.lower or 0.0, row.higher or 0.0) for row in account.knobs}
    sizes = [abs(value) for row in account.knobs for value in (row.lower, row.higher) if value]
    dearest = max(costs, key=lambda knob: costs[knob], default="")
    known = all(value is not None for row in account.knobs for value in (row.lower, row.higher))
    knobs = f"A choice that is off by a fifth costs at most {max(costs.values(), default=0.0):.3f} nats ({dearest})"
    pilot = account.next_pilot
    averaged = any(sum(form.weight > 0 for form in fit.forms) > 1 for fit in data.fits)
    return AccountTexts(
        limits=f"The plan is bound by {' and '.join(binding)}" if binding else "No limit binds",
        knobs=knobs if known else f"{knobs}, within what was searched",
        worst=max(sizes, default=1.0),
        instead=_instead_text(account),
        next_pilot=f"One more pilot would remove {pilot.value:.4f} of {account.regret or 0.0:.4f} nats of regret"
        if pilot
        else "",
        forms="Forms of the law are averaged by how well they predict curves they have not seen"
        if averaged
        else "One form of the law counts for each set",
    )


def _instead_text(account: Account) -> str:
    """How the plan stands among other runs at the same or less cost, and what more budget is worth."""
    worse = sum(row.verdict == "worse" for row in account.instead)
    better = [row for row in account.instead if row.verdict == "better"]
    title = f"{worse} of {len(account.instead)} other runs are worse beyond the interval"
    gains = ", ".join(f"{row.name} gains {abs(row.difference):.3f} nats" for row in better)
    return f"{title}; {gains}" if gains else title


def _curves_text(data: ReportData) -> FigureText:
    runs = data.runs_of("chosen", "rule_of_thumb")
    found = coverage(runs)
    level = next((curve.level for run in runs for curve in run.curves), 0.9)
    if found.measured:
        measured = [run for run in runs if any(curve.measured_steps for curve in run.curves)]
        whose = f" of the {measured[0].label}" if len(measured) < len(runs) else ""
        title = (
            f"{found.inside} of {found.measured} measured losses{whose} lie inside the {level:.0%} band predicted "
            "beforehand"
        )
        lower = " The strip below each panel magnifies the difference of measured and predicted."
    else:
        title = f"Predicted losses of the two plans, with {level:.0%} bands; neither run is measured yet"
        lower = ""
    return FigureText(
        title=title,
        caption="Validation loss over the run. Lines and bands: the law's prediction from the pilots alone"
        f"{_first_predicted(runs)}. Marks: measured afterwards.{_beyond(data)}{lower}",
    )


def longest_pilot(data: ReportData) -> int | None:
    """Steps of the longest pilot where a final run goes beyond it: what lies after it, no pilot showed."""
    pilots = [run.total_steps for run in data.runs_of("pilot")]
    final = [run.total_steps for run in data.runs_of("chosen", "rule_of_thumb")]
    return max(pilots) if pilots and final and max(final) > max(pilots) else None


def _beyond(data: ReportData) -> str:
    steps = longest_pilot(data)
    return "" if steps is None else f" Dotted upright line: no pilot is longer than {steps:,} steps."


def _first_predicted(runs: Iterable[RunView]) -> str:
    """From where on the law says anything: it is not fitted to the jump at the start."""
    first = max((curve.predicted_steps[0] for run in runs for curve in run.curves if curve.predicted_steps), default=0)
    return f", from step {first:,.0f} on, where the law is fitted" if first > 0 else ""


def _parity_text(data: ReportData) -> FigureText:
    rows = final_losses(data)
    fitted = {run.name for run in data.runs_of("pilot")}
    proof = [row for row in rows if row.run not in fitted]
    judged = proof or rows
    inside = sum(bool(row.inside) for row in judged)
    error = float(np.mean([abs(row.predicted - row.measured) for row in judged if row.measured is not None]))
    what = "Final losses of runs the law never saw" if proof else "Final losses of the fitted pilots"
    return FigureText(
        title=f"{what} are predicted to {error:.3f} nats on average; {inside} of {len(judged)} lie in their interval",
        caption="Final validation loss of each run. On the diagonal the prediction is exact; bars are the intervals. "
        "The law was fitted to the pilots, not to the other runs.",
    )


def _surface_text(data: ReportData, surface: Surface) -> FigureText:
    cells = [
        (value, peak_lr, replay_ratio)
        for peak_lr, row in zip(surface.peak_lrs, surface.objective, strict=True)
        for replay_ratio, value in zip(surface.replay_ratios, row, strict=True)
        if value is not None
    ]
    note = f" {surface.note}" if surface.note else ""
    span = " Outside the dashed box no pilot was tried." if surface.supported is not None else ""
    caption = (
        f"Predicted objective ({data.objective}); the stronger the colour the better, lines join plans equally far "
        f"from the best.{note}{span}"
    )
    best, peak_lr, replay_ratio = min(cells)
    title = f"The objective is lowest, {decimal(best)}, near a peak learning rate of {format_lr(peak_lr)} "
    title += f"and {replay_ratio:.0%} replay"
    if surface.chosen is not None:
        point = surface.chosen
        row = int(np.argmin(np.abs(np.log(np.array(surface.peak_lrs) / point.peak_lr))))
        column = int(np.argmin(np.abs(np.array(surface.replay_ratios) - point.replay_ratio)))
        chosen = surface.objective[row][column]
        if chosen is not None:
            gap = chosen - best
            title += "; the chosen plan is there" if gap < 0.001 else f"; the chosen plan is {gap:.3f} above that"
    return FigureText(title=title, caption=caption)


def _pareto_text(data: ReportData) -> FigureText:
    front = data.pareto
    lines = 0 if front is None else len(front.lines)
    title = "Every nat gained on the domain is paid for on general text"
    if front is not None and front.chosen and front.rule_of_thumb:
        domain = front.chosen.domain - front.rule_of_thumb.domain
        general = front.chosen.general - front.rule_of_thumb.general
        title = (
            f"Against the rule of thumb, the chosen plan is predicted to be {abs(domain):.3f} nats "
            f"{_better(domain)} on the domain and {abs(general):.3f} {_better(general)} on general text"
        )
    return FigureText(
        title=title,
        caption=f"Predicted final losses. On a line, neither loss can fall without raising the other at that cost"
        f"{'; the darker the line, the more it costs' if lines > 1 else ''}. Grey crosses: the intervals along the "
        f"{'dearest line' if lines > 1 else 'line'}. Lower left is better.",
    )


def _better(difference: float) -> str:
    return "better" if difference < 0 else "worse"


def _schedules_text(data: ReportData) -> FigureText:
    chosen, rule = data.runs_of("chosen"), data.runs_of("rule_of_thumb")
    title = "Learning rate of every run"
    if chosen and rule and rule[0].peak_lr > 0:
        times = chosen[0].peak_lr / rule[0].peak_lr
        compared = f"{times:.2g} times" if times >= 1.05 or times <= 0.95 else "about"
        title = f"The chosen plan peaks at {format_lr(chosen[0].peak_lr)}, {compared} that of the rule of thumb"
    return FigureText(title=title, caption="Learning rate of every optimiser step. Pilots are thin grey lines.")


def _pilots_text(data: ReportData) -> FigureText:
    runs = data.runs_of("pilot")
    found = coverage(runs)
    title = f"{len(runs)} pilots, before the fit"
    if found.measured:
        title = f"One law fits all {len(runs)} pilots with a mean error of {found.mean_error:.3f} nats"
    return FigureText(
        title=title,
        caption="Change of validation loss since the start of each pilot. Lines: the fitted law"
        f"{_first_predicted(runs)}. Marks: measured. All panels "
        "share the vertical scale; peak learning rate and replay are above each.",
    )


def _compute_text(data: ReportData) -> FigureText:
    total = sum(share.flops for share in data.compute)
    pilots = sum(share.flops for share in data.compute if share.stage.lower().startswith("pilot"))
    largest = max(data.compute, key=lambda share: share.flops)
    title = f"{largest.stage} took {largest.flops / total:.0%} of all compute"
    if pilots:
        title = f"The pilots took {pilots / total:.0%} of all compute of this campaign"
    return FigureText(title=title, caption="Share of all floating-point operations by stage.")


def decimal(value: float, sign: str = "-", digits: int = 3) -> str:
    """A number with so many decimals and a true minus sign; sign "+" shows the plus too."""
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def format_lr(value: float) -> str:
    """A learning rate as people write it: 1.2e-3."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
