"""From the files of a campaign to the data of its report. What is not there yet is left out."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from cptplan import __version__, decide
from cptplan.config import Project
from cptplan.curves import LossCurve, read_curve, read_curve_directory
from cptplan.files import read_json
from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.store import read_fit
from cptplan.laws.history import RunHistory, history_of
from cptplan.planning.forecast import Forecaster
from cptplan.planning.plan import Expected, Plan, PlannedRun, read_plan
from cptplan.price.cost import training_flops
from cptplan.price.model_shape import read_model_shape
from cptplan.price.pricing import price_plan
from cptplan.report.data import (
    ComputeShare,
    CostRow,
    Fact,
    FitParameter,
    FitRow,
    Headline,
    OutcomeRow,
    ParetoFront,
    ParetoPoint,
    PlanRow,
    ReportData,
    Role,
    RunView,
    SetCurve,
    Surface,
    SurfacePoint,
    thin_lr,
)
from cptplan.report.findings import format_lr, quantity_label
from cptplan.run_spec import RunSpec, read_run_spec
from cptplan.tables import knobs_in_words
from cptplan.workspace import Workspace

FINAL_LABELS = (("final", "chosen", "chosen plan"), ("rule-of-thumb", "rule_of_thumb", "rule of thumb"))


def build_report(project: Project, workspace: Workspace) -> ReportData:
    """The report of a campaign: of its plan when nothing was proved yet, with the proof once the final runs are there.

    Raises:    ConfigError if there is no plan yet.
    """
    plan = read_plan(workspace.latest("plans") / "plan.json")
    laws = read_fit(workspace.fits / plan.fit)
    ready = decide.forecaster(project, workspace, laws, plan.weights)
    measured = _measured_curves(workspace, plan)
    runs = (*_final_views(plan, ready, measured), *_trained_views(workspace, ready))
    outcomes = tuple(_outcomes(plan, measured))
    held = _held(outcomes)
    compute = tuple(_compute(workspace))
    return ReportData(
        title=project.name,
        verdict=tuple(_verdict(plan, outcomes, measured, held)),
        held=held,
        objective=" + ".join(f"{weight:.2g} x {name}" for name, weight in plan.weights.items()) + ", change of loss",
        headlines=tuple(_headlines(plan, outcomes, compute)),
        plan=tuple(PlanRow(label=k, chosen=a, rule_of_thumb=b) for k, (a, b) in knobs_in_words(plan).items()),
        runs=runs,
        outcomes=outcomes,
        surface=_surface(plan, workspace),
        pareto=_pareto(plan),
        costs=tuple(
            CostRow(what=row.what, value=row.text, unit=row.unit, provenance=row.basis)
            for row in price_plan(project, workspace)
        ),
        compute=compute,
        fits=tuple(_fit_row(name, law, plan.chosen.losses[name].mean) for name, law in laws.items()),
        warnings=(*plan.binding, *plan.warnings),
        facts=tuple(_facts(project, workspace, plan)),
        next_commands=("cptplan init", "cptplan pilot --dry-run", "cptplan optimize --weights general=0.4"),
    )


def _measured_curves(workspace: Workspace, plan: Plan) -> dict[str, LossCurve]:
    """Curves of the final runs that are there and were trained as this plan says, by run name."""
    found = {}
    final_dirs = [path.parent for path in sorted(workspace.launch.glob("*/run/result.json"))]
    planned = [("final", plan.chosen, directory) for directory in final_dirs]
    planned.append(("rule-of-thumb", plan.rule_of_thumb, workspace.runs / "rule-of-thumb"))
    for name, run, directory in planned:
        if not (directory / "result.json").exists():
            continue
        curve = read_curve(directory, "curve")
        if np.array_equal(curve.lr(), run.schedule.lr()) and np.allclose(curve.replay_ratios(), run.replay_ratio):
            found[name] = curve
    return found


def _final_views(plan: Plan, ready: Forecaster, measured: Mapping[str, LossCurve]) -> Iterable[RunView]:
    for (name, role, label), run in zip(FINAL_LABELS, (plan.chosen, plan.rule_of_thumb), strict=True):
        history = ready.history(run.knobs())
        yield _view(name, role, label, history, plan.batch_tokens, ready, measured.get(name))


def _trained_views(workspace: Workspace, ready: Forecaster) -> Iterable[RunView]:
    """Views of the pre-training and pilot runs, with the law's fit over them."""
    curves = read_curve_directory(workspace.curves)
    for name, curve in curves.items():
        role: Role = "base" if curve.record.phase == "pretrain" else "pilot"
        history = history_of(curve, curves)
        yield _view(name, role, name, history, curve.record.batch_tokens or 0, ready, curve)


def _view(
    name: str,
    role: Any,
    label: str,
    history: RunHistory,
    batch_tokens: int,
    ready: Forecaster,
    curve: LossCurve | None,
) -> RunView:
    total = len(history.lr)
    steps = np.unique(np.concatenate([np.arange(0, total + 1, max(total // 200, 1)), [total]]))
    if role == "base":
        steps = steps[steps > 2 * int(history.lr.argmax())]
    if curve is not None:
        steps = np.union1d(steps, curve.steps[curve.steps >= steps[0]])
    curves = []
    for set_name in ready.laws:
        band = ready.curve(set_name, history, steps)
        measured = (curve.steps, curve.losses[set_name]) if curve is not None and set_name in curve.losses else None
        curves.append(
            SetCurve.of(
                set_name, measured=measured, predicted=(steps, band.mean, band.low, band.high), level=ready.level
            )
        )
    lr_steps, rates = thin_lr(history.lr)
    return RunView(
        name=name,
        label=label,
        role=role,
        peak_lr=float(history.lr.max()),
        total_steps=total,
        batch_tokens=batch_tokens,
        replay_ratio=_replay_words(history.replay_ratio),
        lr_steps=lr_steps,
        lr=rates,
        curves=tuple(curves),
    )


def _replay_words(ratios: Any) -> str:
    first, last = float(ratios[0]), float(ratios[-1])
    return _percent(first) if np.ptp(ratios) == 0 else f"{_percent(first)} to {_percent(last)}"


def _percent(share: float) -> str:
    """A share with as many digits as it needs: 0%, 0.5%, 37.3%."""
    return f"{100.0 * share:.3g}%"


def _decay_words(run: PlannedRun) -> str:
    return f"decaying over the last {run.decay_share:.0%}" if run.decay_share else "without decay"


def _outcomes(plan: Plan, measured: Mapping[str, LossCurve]) -> Iterable[OutcomeRow]:
    for name, run in (("final", plan.chosen), ("rule-of-thumb", plan.rule_of_thumb)):
        finals = _final_losses(plan, measured.get(name))
        for set_name, expected in run.losses.items():
            yield _outcome(name, f"loss_{set_name}", expected, finals.get(set_name))
        forgetting = float(np.exp(finals["general"] - plan.base_losses["general"])) if finals else None
        yield _outcome(name, "forgetting_ratio", run.forgetting_ratio, forgetting)
        yield _outcome(name, "objective", run.objective, _objective(plan, finals))


def _final_losses(plan: Plan, curve: LossCurve | None) -> dict[str, float]:
    return {} if curve is None else {name: curve.final_loss(name) for name in plan.chosen.losses}


def _objective(plan: Plan, finals: Mapping[str, float]) -> float | None:
    if not finals:
        return None
    return sum(weight * (finals[name] - plan.base_losses[name]) for name, weight in plan.weights.items())


def _outcome(run: str, quantity: str, expected: Expected, measured: float | None) -> OutcomeRow:
    return OutcomeRow(
        run=run, quantity=quantity, predicted=expected.mean, low=expected.low, high=expected.high, measured=measured
    )


def _held(outcomes: Iterable[OutcomeRow]) -> bool | None:
    """Whether every final loss of the chosen run lies in its interval; None before it was trained."""
    inside = [row.inside for row in outcomes if row.run == "final" and row.quantity.startswith("loss_")]
    return None if None in inside else all(inside)


def _verdict(
    plan: Plan, outcomes: tuple[OutcomeRow, ...], measured: Mapping[str, LossCurve], held: bool | None
) -> Iterable[str]:
    chosen, rule = plan.chosen, plan.rule_of_thumb
    yield (
        f"Train {chosen.total_steps:,} steps from the {chosen.start} checkpoint at peak learning rate "
        f"{format_lr(chosen.peak_lr)} with {_percent(chosen.replay_ratio)} replay, {_decay_words(chosen)}."
    )
    rows = {(row.run, row.quantity): row for row in outcomes}
    if held is None:
        yield "The final run has not been trained yet: the numbers below are predictions."
    else:
        losses = [row for row in outcomes if row.run == "final" and row.quantity.startswith("loss_")]
        words = "; ".join(
            f"{quantity_label(r.quantity).lower()} {r.predicted:.3f} predicted [{r.low:.3f}, {r.high:.3f}], "
            f"{r.measured:.3f} measured"
            for r in losses
        )
        missed = [quantity_label(r.quantity).lower() for r in losses if not r.inside]
        said = "The prediction held" if held else f"The prediction missed on {' and '.join(missed)}"
        yield f"{said}: {words} ({plan.level:.0%} intervals)."
    ours, theirs = rows["final", "objective"], rows["rule-of-thumb", "objective"]
    thumb = f"{_percent(rule.replay_ratio)} replay, peak {format_lr(rule.peak_lr)}, same tokens"
    if ours.measured is not None and theirs.measured is not None:
        better = theirs.measured - ours.measured
        yield (
            f"Against the rule of thumb ({thumb}) the "
            f"weighted loss measured {abs(better):.3f} nats per token {'lower' if better > 0 else 'HIGHER'}; "
            f"{plan.gain.mean:+.3f} [{plan.gain.low:+.3f}, {plan.gain.high:+.3f}] was predicted."
        )
    else:
        yield (
            f"Against the rule of thumb ({thumb}) the "
            f"weighted loss is expected {plan.gain.mean:.3f} [{plan.gain.low:.3f}, {plan.gain.high:.3f}] nats per "
            "token lower."
        )


def _headlines(plan: Plan, outcomes: tuple[OutcomeRow, ...], compute: tuple[ComputeShare, ...]) -> Iterable[Headline]:
    for row in (r for r in outcomes if r.run == "final"):
        interval = f"predicted {row.predicted:.3f} [{row.low:.3f}, {row.high:.3f}]"
        label = quantity_label(row.quantity)
        if row.measured is None:
            yield Headline(label=label, value=f"{row.predicted:.3f}", note=f"[{row.low:.3f}, {row.high:.3f}] predicted")
        else:
            yield Headline(label=label, value=f"{row.measured:.3f}", note=interval)
    total = sum(share.flops for share in compute)
    pilots = sum(share.flops for share in compute if share.stage == "pilots")
    if total:
        yield Headline(label="Pilots' share of all compute", value=f"{pilots / total:.0%}", note="in FLOPs, all runs")


def _surface(plan: Plan, workspace: Workspace) -> Surface:
    chosen, rule, table = plan.chosen, plan.rule_of_thumb, plan.surface
    pilots = [read_run_spec(path) for path in sorted(workspace.runs.glob("pilot-*/spec.json"))]
    return Surface(
        peak_lrs=table.peak_lrs,
        replay_ratios=table.replay_ratios,
        objective=table.objective,
        chosen=SurfacePoint(label="chosen plan", peak_lr=chosen.peak_lr, replay_ratio=chosen.replay_ratio),
        rule_of_thumb=SurfacePoint(label="rule of thumb", peak_lr=rule.peak_lr, replay_ratio=rule.replay_ratio),
        pilots=tuple(
            SurfacePoint(
                label=spec.name, peak_lr=float(spec.lr().max()), replay_ratio=float(spec.replay_ratios().mean())
            )
            for spec in pilots
        ),
        note=f"{chosen.total_steps:,} steps from {chosen.start}, {_decay_words(chosen)}",
    )


def _pareto(plan: Plan) -> ParetoFront:
    domain = next(name for name in plan.chosen.losses if name != "general")

    def point(run: Any, general: Expected, other: Expected) -> ParetoPoint:
        return ParetoPoint(
            peak_lr=run.peak_lr,
            replay_ratio=run.replay_ratio,
            total_steps=run.total_steps,
            general=general.mean,
            general_low=general.low,
            general_high=general.high,
            domain=other.mean,
            domain_low=other.low,
            domain_high=other.high,
        )

    def planned(run: PlannedRun) -> ParetoPoint:
        return point(run, run.losses["general"], run.losses[domain])

    return ParetoFront(
        points=tuple(point(p, p.general, p.domain) for p in plan.pareto),
        chosen=planned(plan.chosen),
        rule_of_thumb=planned(plan.rule_of_thumb),
    )


def _compute(workspace: Workspace) -> Iterable[ComputeShare]:
    """What the runs of the campaign used, by stage, evaluation apart."""
    stages_of_runs: dict[str, list[tuple[RunSpec, dict[str, Any]]]] = {}
    for path in [*sorted(workspace.runs.glob("*/result.json")), *sorted(workspace.launch.glob("*/run/result.json"))]:
        spec = read_run_spec(path.parent / "spec.json")
        stage = {"final": "chosen run", "rule-of-thumb": "rule of thumb"}.get(spec.name, "base model")
        stage = "pilots" if spec.name.startswith("pilot-") else stage
        stages_of_runs.setdefault(stage, []).append((spec, {**read_json(path), "dir": path.parent}))
    evaluated, seconds, flops = 0.0, 0.0, 0.0
    for stage in ("base model", "pilots", "chosen run", "rule of thumb"):
        runs = stages_of_runs.get(stage, [])
        if not runs:
            continue
        used = 0.0
        for spec, result in runs:
            shape = read_model_shape(_export(result))
            used += training_flops(shape, spec.total_tokens, spec.seq_len)
            tokens = len(spec.steps_to_evaluate()) * sum(v.num_tokens for v in spec.validation)
            evaluated += tokens
            flops += training_flops(shape, tokens, spec.seq_len) / 3.0  # forward only
            seconds += result["eval_seconds"]
        yield ComputeShare(
            stage=stage,
            seconds=sum(result["train_seconds"] for _, result in runs),
            tokens=float(sum(spec.total_tokens for spec, _ in runs)),
            flops=used,
        )
    if evaluated:
        yield ComputeShare(stage="evaluation of all runs", seconds=seconds, tokens=evaluated, flops=flops)


def _export(result: Mapping[str, Any]) -> Path:
    exports = sorted((Path(result["dir"]) / "export").glob("step-*"))
    return exports[-1]


def _fit_row(name: str, law: FittedLaw, typical_loss: float) -> FitRow:
    """Parameters with 90 % intervals of the jackknife, and relative errors turned into nats at a typical loss."""
    names = [*(p.name for p in law.law.parameters), *(t.name for t in law.law.terms)]
    best = np.concatenate([law.best.values, law.best.coefficients])
    half = student_t.ppf(0.95, max(len(law.left_out) - 1, 2)) * np.concatenate(law.parameter_spread())
    low, high = best - half, best + half
    return FitRow(
        set_name=name,
        law=law.law.name,
        parameters=tuple(
            FitParameter(name=n, value=float(v), low=float(a), high=float(b))
            for n, v, a, b in zip(names, best, low, high, strict=True)
        ),
        in_sample_error=law.in_sample_error * typical_loss,
        held_out_error=law.discrepancy * typical_loss,
    )


def _facts(project: Project, workspace: Workspace, plan: Plan) -> Iterable[Fact]:
    yield Fact(label="cptplan", value=__version__)
    yield Fact(label="fit", value=plan.fit)
    yield Fact(label="seed", value=str(project.seed))
    results = sorted(workspace.runs.glob("*/result.json"))
    if results:
        versions = read_json(results[0]).get("versions", {})
        for name, version in versions.items():
            yield Fact(label=name, value=str(version))
    yield Fact(label="machine", value=f"{platform.machine()} {platform.system()}")
    marker = workspace.data / "corpora.json"
    if marker.exists():
        for source in read_json(marker)["sources"]:
            yield Fact(label=f"corpus {source['name']}", value=str(source["corpus_hash"])[:12])
