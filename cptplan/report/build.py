"""From the files of a campaign to the data of its report. What is not there yet is left out."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptplan import __version__, decide
from cptplan.config import Project
from cptplan.curves import LossCurve, read_curve, read_curve_directory
from cptplan.files import read_json
from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.store import read_fit
from cptplan.laws.history import RunHistory, history_of
from cptplan.planning.forecast import Forecaster
from cptplan.planning.plan import Expected, Plan, read_plan
from cptplan.price.cost import training_flops
from cptplan.price.model_shape import read_model_shape
from cptplan.price.pricing import price_plan
from cptplan.report.data import (
    ComputeShare,
    CostRow,
    Fact,
    Headline,
    OutcomeRow,
    ReportData,
    Role,
    RunView,
    SetCurve,
    thin_lr,
)
from cptplan.report.explain import (
    account_of,
    decay_sentence,
    fit_row,
    pareto_of,
    percent,
    replay_sentence,
    surface_of,
    tried_forms,
)
from cptplan.report.findings import decimal, format_lr, quantity_label
from cptplan.report.plan_data import PlanRow
from cptplan.run_spec import RunSpec, read_run_spec
from cptplan.tables import knobs_in_words, verdict_lines
from cptplan.workspace import Workspace

FINAL_LABELS = (("final", "chosen", "chosen plan"), ("rule-of-thumb", "rule_of_thumb", "rule of thumb"))
NEXT_BEFORE_PROOF = (
    "cptplan pilot --next --dry-run",
    "cptplan optimize --pareto",
    "cptplan launch --target accelerate",
)
NEXT_AFTER_PROOF = ("cptplan init", "cptplan pilot --dry-run", "cptplan optimize --weights general=0.4")


def build_report(project: Project, workspace: Workspace) -> ReportData:
    """The report of a campaign: of its plan when nothing was proved yet, with the proof once the final runs are there.

    Raises:    ConfigError if there is no plan yet.
    """
    plan = read_plan(workspace.latest("plans") / "plan.json")
    fit_dir = workspace.fits / plan.fit
    laws, tried = read_fit(fit_dir), tried_forms(fit_dir)
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
        account=account_of(plan),
        surface=surface_of(plan, workspace, laws),
        pareto=pareto_of(plan, workspace.latest("plans"), project, workspace),
        costs=tuple(
            CostRow(what=row.what, value=row.text, unit=row.unit, provenance=row.basis)
            for row in price_plan(project, workspace)
        ),
        compute=compute,
        fits=tuple(fit_row(name, law, tried[name], plan.chosen.losses[name].mean) for name, law in laws.items()),
        fit_notes=tuple(verdict_lines(fit_dir)),
        warnings=plan.warnings,
        facts=tuple(_facts(project, workspace, plan)),
        next_commands=NEXT_AFTER_PROOF if held is not None else NEXT_BEFORE_PROOF,
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
        if np.array_equal(curve.lr(), run.schedule.lr()) and np.allclose(
            curve.replay_ratios(), run.mixture.replay_ratios(run.total_steps)
        ):
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
    curves = []
    for set_name, law in ready.laws.items():
        steps = _predicted_steps(history, law, curve)
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
        total_steps=len(history.lr),
        batch_tokens=batch_tokens,
        replay_ratio=_ratios_in_words(history.replay_ratio),
        lr_steps=lr_steps,
        lr=rates,
        curves=tuple(curves),
    )


def _predicted_steps(history: RunHistory, law: FittedLaw, curve: LossCurve | None) -> NDArray[np.int64]:
    """Steps to predict: about 200 and the measured ones, from where the law is fitted.

    Before that stands the first jump of CPT, or the warm-up of pre-training, of which the law claims nothing.
    """
    total = len(history.lr)
    first = 2 * int(history.lr.argmax()) + 1 if history.phase == "pretrain" else law.settled_step
    steps = np.union1d(np.arange(0, total, max(total // 200, 1)), [min(first, total), total])
    if curve is not None:
        steps = np.union1d(steps, curve.steps)
    return np.asarray(steps[steps >= min(first, total)], dtype=np.int64)


def _ratios_in_words(ratios: Any) -> str:
    first, last = float(ratios[0]), float(ratios[-1])
    return percent(first) if np.ptp(ratios) == 0 else f"{percent(first)} to {percent(last)}"


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
        f"{format_lr(chosen.peak_lr)} with {replay_sentence(chosen)}, {decay_sentence(chosen)}."
    )
    rows = {(row.run, row.quantity): row for row in outcomes}
    if held is None:
        expected = (row for row in outcomes if row.run == "final" and row.quantity.startswith("loss_"))
        words = ", ".join(
            f"{quantity_label(r.quantity).lower()} {r.predicted:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in expected
        )
        yield f"Expected at its end: {words} ({plan.level:.0%} intervals). It has not been trained yet."
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
    thumb = f"{replay_sentence(rule)}, peak {format_lr(rule.peak_lr)}, same tokens"
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
    yield from _how_sure(plan)


def _how_sure(plan: Plan) -> Iterable[str]:
    """What the intervals do not say: the chance of the limits, the regret, and where the plan leaves the pilots."""
    if plan.chance is not None:
        yield f"Its limits on general loss hold with a probability of {plan.chance:.0%}."
    yield (
        f"Were the law known perfectly, the best plan is expected to be {plan.regret:.4f} nats better; one more pilot "
        f"could remove {plan.next_pilot.value:.4f} of that."
    )
    if plan.extrapolations:
        yield f"Extrapolated beyond the pilots: {'; '.join(plan.extrapolations)}."


def _headlines(plan: Plan, outcomes: tuple[OutcomeRow, ...], compute: tuple[ComputeShare, ...]) -> Iterable[Headline]:
    for row in (r for r in outcomes if r.run == "final"):
        label = quantity_label(row.quantity)
        interval = f"[{decimal(row.low)}, {decimal(row.high)}]"
        if row.measured is None:
            yield Headline(label=label, value=decimal(row.predicted), note=f"{interval} predicted")
        else:
            yield Headline(
                label=label, value=decimal(row.measured), note=f"predicted {decimal(row.predicted)} {interval}"
            )
    if plan.chance is not None:
        yield Headline(label="Limits hold", value=f"{plan.chance:.0%}", note="of the draws, on general loss")
    total = sum(share.flops for share in compute)
    pilots = sum(share.flops for share in compute if share.stage == "pilots")
    if total:
        yield Headline(label="Pilots' share of all compute", value=f"{pilots / total:.0%}", note="in FLOPs, all runs")


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
