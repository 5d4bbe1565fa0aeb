"""The front of general loss, domain loss and cost: its points, its CSV and its figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cptplan.config import Project
from cptplan.files import write_bytes, write_text
from cptplan.planning.budget import known_rates, price
from cptplan.planning.forecast import Forecaster, Outlook
from cptplan.planning.knobs import Knobs, Space
from cptplan.planning.plan import Plan
from cptplan.planning.reasons import supported
from cptplan.planning.search import grid, pareto

LENGTHS = 4  # shares of the longest run: a quarter, a half, three quarters, all
POINTS = 10  # of each length
LAYERS = 4  # fronts that are asked for their draws: behind a run that breaks a limit stands one that keeps it
COLUMNS = (
    *("tokens", "gpu_hours", "usd", "peak_lr", "replay_ratio", "end_replay", "total_steps", "warmup_steps", "schedule"),
    *("decay_share", "start", "set", "general", "general_low", "general_high", "domain", "domain_low", "domain_high"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontRun:
    """A run that no other beats on general loss, domain loss and tokens together."""

    knobs: Knobs
    outlook: Outlook
    tokens: int
    gpu_hours: float | None
    price_usd: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """The front, cheapest first, then by rising general loss."""

    runs: tuple[FrontRun, ...]
    domain: str
    """The set that stands for the domain."""


def pareto_front(project: Project, forecaster: Forecaster, space: Space, runs_dir: Path | None = None) -> Front:
    """Runs of several lengths that no other beats on general loss, domain loss and cost.

    Args:      runs_dir: training runs, of which pilots tell the speed.
    """
    domain = next(name for name in forecaster.laws if name != "general")
    numbers: dict[Knobs, tuple[float, float, float]] = {}
    for steps in sorted({max(round(space.total_steps[1] * n / LENGTHS), 1) for n in range(1, LENGTHS + 1)}):
        numbers |= _of_length(forecaster, replace(space, total_steps=(steps, steps)), domain)
    rates = known_rates(project, runs_dir)
    found = []
    for knobs in pareto(numbers):
        tokens = knobs.total_steps * forecaster.batch_tokens
        cost = None if rates is None else price(project, rates, tokens)
        found.append(
            FrontRun(
                knobs=knobs,
                outlook=forecaster.outlook(knobs),
                tokens=tokens,
                gpu_hours=None if cost is None else cost.gpu_hours,
                price_usd=None if cost is None else cost.price_usd,
            )
        )
    found.sort(key=lambda run: (run.tokens, run.outlook.losses["general"].mean))
    return Front(runs=tuple(found), domain=domain)


def _of_length(forecaster: Forecaster, space: Space, domain: str) -> dict[Knobs, tuple[float, float, float]]:
    """Losses and tokens of the runs of one length that some weight would choose and that keep the constraints."""
    rough = {knobs: forecaster.rough(knobs) for knobs in grid(space, shares=(1.0,))}
    losses = {k: (s.losses["general"], s.losses[domain]) for k, s in rough.items() if s.violation <= 0}
    if forecaster.needs_draws:
        losses = _allowed(forecaster, losses)
    if not losses:
        return {}
    front = pareto(losses)
    kept = [front[i] for i in supported([losses[knobs] for knobs in front], POINTS)]
    return {k: (*losses[k], float(k.total_steps)) for k in kept}


def _allowed(forecaster: Forecaster, losses: Mapping[Knobs, tuple[float, float]]) -> dict[Knobs, tuple[float, float]]:
    """The runs of the first fronts, one behind the other, that keep the limits in the asked share of the draws."""
    left = dict(losses)
    found: dict[Knobs, tuple[float, float]] = {}
    for _ in range(LAYERS):
        layer = pareto(left)
        found |= {knobs: left[knobs] for knobs in layer if forecaster.score(knobs).violation <= 0}
        left = {knobs: numbers for knobs, numbers in left.items() if knobs not in layer}
    return found


def write_front(directory: Path, front: Front, plan: Plan) -> None:
    """Write pareto.csv and pareto.png."""
    write_text(directory / "pareto.csv", front_csv(front))
    write_bytes(directory / "pareto.png", draw_front(front, plan))


def front_csv(front: Front) -> str:
    """One row for each run; amounts that are not known are empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in front.runs:
        knobs, losses = run.knobs, run.outlook.losses
        values: list[object] = [run.tokens, run.gpu_hours, run.price_usd, knobs.peak_lr, knobs.replay_ratio]
        values += [knobs.end_replay, knobs.total_steps, knobs.warmup_steps, knobs.kind, knobs.decay_share, knobs.start]
        values.append(front.domain)
        for name in ("general", front.domain):
            values += [losses[name].mean, losses[name].low, losses[name].high]
        writer.writerow(["" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in values])
    return stream.getvalue()


def draw_front(front: Front, plan: Plan) -> bytes:
    """PNG of the front: general against domain loss, a line for each length, with the chosen run and the base."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from cptplan.report.figures import COLOURS, DPI, STYLE

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.0), layout="constrained")
        axes = figure.subplots()
        axes.set_title("What each budget can reach: general against domain loss", loc="left", fontsize=11)
        shades = mpl.colormaps["viridis_r"](np.linspace(0.15, 0.85, LENGTHS))
        for shade, (label, runs) in zip(shades, by_length(front), strict=False):
            points = [(r.outlook.losses["general"].mean, r.outlook.losses[front.domain].mean) for r in runs]
            axes.plot(*np.array(points).T, marker="o", markersize=4, color=shade, label=label)
        for run, name, marker in ((plan.chosen, "chosen", "*"), (plan.rule_of_thumb, "rule_of_thumb", "s")):
            general, domain = run.losses["general"], run.losses[front.domain]
            axes.errorbar(
                general.mean,
                domain.mean,
                xerr=[[general.mean - general.low], [general.high - general.mean]],
                yerr=[[domain.mean - domain.low], [domain.high - domain.mean]],
                fmt=marker,
                markersize=12 if marker == "*" else 7,
                color=COLOURS[name],
                elinewidth=1,
                label=f"{name.replace('_', ' ')}, {plan.level:.0%} interval",
                zorder=3,
            )
        axes.axvline(
            plan.base_losses["general"], color=COLOURS["base"], linestyle=":", label="general loss of the base"
        )
        axes.set(xlabel="general loss, nats per token", ylabel=f"{front.domain} loss, nats per token")
        axes.legend(fontsize=8)
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def by_length(front: Front) -> Iterable[tuple[str, list[FrontRun]]]:
    """The runs of each length with what that length costs, shortest first."""
    for tokens in sorted({run.tokens for run in front.runs}):
        runs = [run for run in front.runs if run.tokens == tokens]
        money = "" if runs[0].price_usd is None else f", {runs[0].price_usd:,.3g} USD"
        yield f"{in_words(tokens)} tokens{money}", runs


def spread_out(runs: Sequence[FrontRun], most: int) -> list[FrontRun]:
    """At most so many of the runs, evenly from the first to the last."""
    places = np.unique(np.round(np.linspace(0, len(runs) - 1, most)).astype(int))
    return [runs[place] for place in places]


def in_words(tokens: float) -> str:
    """A number of tokens: 786 K, 3.2 M, 5 B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if tokens >= unit:
            return f"{tokens / unit:.3g} {name}"
    return f"{tokens:.0f}"
