"""From curves to a plan: fit the laws, judge the fit, search. Reads files, writes files, prints nothing.

A fit is named by the curves it was made from and a plan by its fit and goal, so what is there is not made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cptplan.config import Project, Start, parse_weights
from cptplan.curves import LossCurve, read_curve_directory
from cptplan.design import pilot_specs
from cptplan.errors import ConfigError, CurveError, PoorFitError
from cptplan.files import hash_file, hash_json, read_json, write_json
from cptplan.fit.fitted import FittedLaw
from cptplan.fit.select import select_law
from cptplan.fit.store import read_fit, write_fit
from cptplan.forecast import Forecaster, StartState
from cptplan.laws.cpt import Side
from cptplan.laws.history import history_of
from cptplan.plan import Plan, make_plan, read_plan, write_plan
from cptplan.run_spec import RunSpec
from cptplan.stages import Note, quiet
from cptplan.workspace import Workspace

POOR_FIT = 0.1  # assumed: a law that misses unseen pilots by a tenth cannot rank plans


def fit(
    curves_dir: Path, fits_dir: Path, names: Sequence[str] | None = None, note: Note = quiet, seed: int = 0
) -> Path:
    """Fit the law of every validation set to the curves of a directory.

    Args:      names: curves to fit to, with their parents; all when None.
    Returns:   the directory of the fit, named by the hash of the curves.
    Raises:    CurveError if the curves break the contract or are too few.
    """
    curves = read_curve_directory(curves_dir, names)
    pilots = [curve for curve in curves.values() if curve.record.phase == "cpt"]
    check_same_batch(pilots, curves_dir)
    sets = list(dict.fromkeys(name for curve in pilots for name in curve.losses))
    digests = {
        f"{name}.{suffix}": hash_file(curves_dir / f"{name}.{suffix}") for name in curves for suffix in ("csv", "json")
    }
    curves_hash = hash_json({"curves": digests, "seed": seed})
    directory = fits_dir / curves_hash
    if not (directory / "law.json").exists():
        directory.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is found before the work
        selections = {}
        for number, name in enumerate(sets):
            note(number, len(sets), f"loss_{name}")
            side: Side = "general" if name == "general" else "domain"
            selections[name] = select_law(curves, name, side, seed=seed, where=str(curves_dir))
        write_fit(directory, curves_hash, selections)
        note(len(sets), len(sets), "")
    write_json(fits_dir / "latest.json", {"schema_version": 1, "hash": curves_hash})
    return directory


def check_same_batch(curves: Sequence[LossCurve], where: Path) -> None:
    """Raise CurveError unless all curves have one batch size: the laws count time in steps of one batch."""
    sizes = {curve.record.batch_tokens for curve in curves if curve.record.batch_tokens is not None}
    if len(sizes) > 1:
        raise CurveError(
            f"curves must have one batch_tokens; got {sorted(sizes)} in {where}.",
            hint="fit the batch sizes apart, with --train",
        )


def forecaster(
    project: Project, workspace: Workspace, laws: Mapping[str, FittedLaw], weights: Mapping[str, float]
) -> Forecaster:
    """The fitted laws with the project's starts and goal; changes are measured against the last start, the base."""
    curves = read_curve_directory(workspace.curves)
    specs = pilot_specs(project, str(workspace.data.resolve()))
    starts = {start.name: _start_state(start, specs, curves, laws) for start in project.model.starts}
    return Forecaster(
        laws=laws,
        starts=starts,
        base=project.model.starts[-1].name,
        weights=dict(weights),
        warmup_steps=project.pilot.warmup_steps,
        max_general_increase=project.goal.max_general_increase,
        confidence=project.goal.confidence,
        batch_tokens=project.pilot.batch_tokens,
        **_tokens_there(project, workspace),
    )


def _tokens_there(project: Project, workspace: Workspace) -> dict[str, float]:
    """Training tokens that a plan may use; no limit when the corpora are not packed here."""
    marker = workspace.data / "corpora.json"
    if not marker.exists():
        return {}
    there = {source["name"]: source["train"]["num_tokens"] for source in read_json(marker)["sources"]}
    whole = sum(domain.weight for domain in project.data.domains)
    domains = [there[d.name] * whole / d.weight for d in project.data.domains if d.weight > 0]
    return {"general_tokens": float(there[project.data.general.name]), "domain_tokens": float(min(domains))}


def _start_state(
    start: Start, specs: Sequence[RunSpec], curves: Mapping[str, LossCurve], laws: Mapping[str, FittedLaw]
) -> StartState:
    """Losses of a checkpoint before CPT, from step 0 of a pilot that began there."""
    for curve in (curves[spec.name] for spec in specs if spec.model.path == start.path and spec.name in curves):
        if curve.steps[0] == 0 and all(name in curve.losses for name in laws):
            losses = {name: float(curve.losses[name][0]) for name in laws}
            return StartState(name=start.name, pretrain_lr=history_of(curve, curves).pretrain_lr, losses=losses)
    raise ConfigError(
        f"start {start.name!r} must have a pilot that began there and was evaluated at step 0; got none.",
        hint="run cptplan pilot",
    )


def optimize(
    project: Project, workspace: Workspace, weights: Mapping[str, float], fit_dir: Path | None = None, trials: int = 120
) -> tuple[Path, Plan]:
    """Search for the best run under the project's budget.

    Returns:   the directory of the plan (plan.json, study.journal) and the plan.
    Raises:    ConfigError without a fit; InfeasiblePlanError if nothing keeps the constraints.
    """
    fit_dir = fit_dir or workspace.latest("fits")
    goal = {
        "fit": fit_dir.name,
        "weights": dict(weights),
        "goal": project.goal.model_copy(update={"weights": {}}).to_json(),
        "budget": project.budget.to_json(),
        "trials": trials,
    }
    name = hash_json(goal)
    directory = workspace.plans / name
    if not (directory / "plan.json").exists():
        ready = forecaster(project, workspace, read_fit(fit_dir), weights)
        plan = make_plan(project, ready, fit_dir.name, directory / "study.journal", trials=trials, seed=project.seed)
        write_plan(directory / "plan.json", plan)
    workspace.set_latest("plans", name)
    return directory, read_plan(directory / "plan.json")


def goal_weights(project: Project, text: str | None) -> dict[str, float]:
    """Normalised weights: of --weights when given, else of the project."""
    domains = [domain.name for domain in project.data.domains]
    given = text if text is not None else ",".join(f"{name}={weight}" for name, weight in project.goal.weights.items())
    return parse_weights(given, domains)


def fit_summary(fit_dir: Path) -> dict[str, Any]:
    """law.json and report.json of a fit."""
    return {"fit": fit_dir.name, "law": read_json(fit_dir / "law.json"), "report": read_json(fit_dir / "report.json")}


def check_fit(fit_dir: Path, *, allow_poor: bool) -> None:
    """Raise PoorFitError if a law misses unseen pilots by more than it may, unless that is allowed."""
    for name, law in read_fit(fit_dir).items():
        if law.discrepancy > POOR_FIT and not allow_poor:
            raise PoorFitError(
                f"a law must predict unseen pilots within {POOR_FIT:.0%}; got {law.discrepancy:.1%} for loss_{name} "
                f"in {fit_dir}.",
                hint="look at the pilots' curves, run more pilots, or give --allow-poor-fit",
            )
