"""From curves to a plan: fit the laws, judge the fit, search. Reads files, writes files, prints nothing.

A fit is named by the curves it was made from and a plan by its fit and goal, so what is there is not made again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cptplan.config import Project, Start, parse_weights
from cptplan.curve_checks import check_curves
from cptplan.curves import LossCurve, curve_names, read_curve_directory, select_names
from cptplan.errors import ConfigError, CurveError, PoorFitError
from cptplan.files import hash_file, hash_json, read_json, write_json
from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.out_of_domain import OutOfDomainFit, fit_out_of_domain
from cptplan.fitting.select import select_law, sets_of, side_of
from cptplan.fitting.store import read_fit, write_fit
from cptplan.laws.history import history_of
from cptplan.pilots.design import pilot_specs
from cptplan.planning.forecast import Forecaster, StartState
from cptplan.planning.pareto import Front, pareto_front, write_front
from cptplan.planning.plan import VERSION, Plan, read_plan, write_plan
from cptplan.planning.planner import affordable, make_plan, plan_space
from cptplan.planning.repetition import ASSUMED, knows_repetition, with_assumed_repetition
from cptplan.planning.search import SamplerName
from cptplan.price.model_shape import read_model_shape
from cptplan.run_spec import RunSpec
from cptplan.stages import Note, quiet
from cptplan.workspace import Workspace

FEWEST_THIRD = 4  # curves: a combination is judged on curves left out
SAME_SIZE = 1.02  # assumed: counts of one model's parameters differ by what each calls an embedding
POOR_FIT = 0.1  # assumed: a law that misses unseen pilots by a tenth cannot rank plans
METHOD = 3  # of the fit: raised when the same curves give another law, so that fits of an older cptplan are made anew


def fit(
    curves_dir: Path,
    fits_dir: Path,
    names: Sequence[str] | None = None,
    note: Note = quiet,
    seed: int = 0,
    law: str = "auto",
) -> Path:
    """Fit the law of every validation set to the curves of a directory.

    Args:      names: curves to fit to, by name or pattern, with their parents; all when None. law: see select_law.
    Returns:   the directory of the fit, named by the hash of the curves and the law.
    Raises:    CurveError if the curves break the contract or are too few.
    """
    curves = read_curve_directory(curves_dir, names)
    sets = sets_of(curves)
    files = [path for name in curves for path in _files_of(curves_dir, name)]
    made_of = {"curves": {path.name: hash_file(path) for path in files}, "seed": seed, "law": law, "method": METHOD}
    curves_hash = hash_json(made_of)
    directory = fits_dir / curves_hash
    if not (directory / "law.json").exists():
        check_curves(curves, sets, curves_dir)  # what cannot be fitted leaves nothing behind
        directory.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is found before the work
        selections = {}
        for number, name in enumerate(sets):
            note(number, len(sets), f"loss_{name}")
            side = side_of(name, curves)
            selections[name] = select_law(curves, name, side, law=law, seed=seed, where=str(curves_dir))
        write_fit(directory, curves_hash, selections, out_of_domain(curves, selections, seed))
        note(len(sets), len(sets), "")
    write_json(fits_dir / "latest.json", {"schema_version": 1, "hash": curves_hash})
    return directory


def out_of_domain(curves: Mapping[str, LossCurve], sets: Iterable[str], seed: int) -> dict[str, OutOfDomainFit]:
    """Third sets as a combination of general and domain loss, where enough CPT curves have all three."""
    names = list(sets)
    if not {"general", "domain"} <= set(names):
        return {}
    found = {}
    for name in (name for name in names if name not in ("general", "domain")):
        have = [c for c in curves.values() if c.record.phase == "cpt" and {"general", "domain", name} <= set(c.losses)]
        if len(have) >= FEWEST_THIRD:
            found[name] = fit_out_of_domain(curves, name, seed=seed)
    return found


def _files_of(directory: Path, name: str) -> list[Path]:
    """The files of a curve: table, record, and the rates of every step where they stand beside."""
    found = [directory / f"{name}.csv", directory / f"{name}.json", directory / f"{name}.lr.npy"]
    return [path for path in found if path.exists()]


def forecaster(
    project: Project, workspace: Workspace, laws: Mapping[str, FittedLaw], weights: Mapping[str, float]
) -> Forecaster:
    """The fitted laws with the project's starts and goal; changes are measured against the last start, the base."""
    curves = read_curve_directory(workspace.curves)
    specs = pilot_specs(project, str(workspace.data.resolve()))
    alone = len(project.model.starts) == 1
    starts = {s.name: _start_state(s, specs, curves, laws, alone=alone) for s in project.model.starts}
    goal, repeats = project.goal, project.budget.max_epochs > 1.0
    return Forecaster(
        laws={name: with_assumed_repetition(law) for name, law in laws.items()} if repeats else laws,
        starts=starts,
        base=project.model.starts[-1].name,
        weights=dict(weights),
        warmup_steps=project.pilot.warmup_steps,
        max_general_increase=goal.max_general_increase,
        max_forgetting_ratio=goal.max_forgetting_ratio,
        max_general_loss=goal.max_general_loss,
        confidence=goal.confidence,
        cvar=goal.cvar,
        batch_tokens=project.pilot.batch_tokens,
        max_epochs=project.budget.max_epochs,
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
    start: Start,
    specs: Sequence[RunSpec],
    curves: Mapping[str, LossCurve],
    laws: Mapping[str, FittedLaw],
    *,
    alone: bool,
) -> StartState:
    """Losses of a checkpoint before CPT, from step 0 of a run that began there: a pilot, or a curve of its parent.

    Args:      alone: there is no other start, so that curves without a parent began here.
    """
    own = [curves[spec.name] for spec in specs if spec.model.path == start.path and spec.name in curves]
    brought = [
        curve
        for curve in curves.values()
        if curve.record.phase == "cpt"
        and (curve.record.parent, curve.record.parent_step) == (start.parent, start.parent_step)
        and (start.parent is not None or alone)
    ]
    for curve in own or brought:
        if curve.steps[0] == 0 and all(name in curve.losses for name in laws):
            losses = {name: float(curve.losses[name][0]) for name in laws}
            history = history_of(curve, curves)
            return StartState(
                name=start.name,
                pretrain_lr=history.pretrain_lr,
                losses=losses,
                last_lr=history.last_lr,
                known_area=history.known_area,
            )
    raise ConfigError(
        f"start {start.name!r} must have a pilot that began there and was evaluated at step 0; got none.",
        hint="run cptplan pilot",
    )


def optimize(
    project: Project,
    workspace: Workspace,
    weights: Mapping[str, float],
    fit_dir: Path | None = None,
    *,
    trials: int = 120,
    sampler: SamplerName = "tpe",
    storage: str | None = None,
) -> tuple[Path, Plan]:
    """Search for the best run under the project's budget.

    Args:      fit_dir: of the laws; the newest when None. storage: journal file or database url of the Optuna study;
               study.journal beside the plan when None.
    Returns:   the directory of the plan (plan.json, study.journal) and the plan.
    Raises:    ConfigError without a fit, or with one of another model, tokenizer or batch; InfeasiblePlanError if
               nothing keeps the constraints.
    """
    fit_dir = fit_dir or workspace.latest("fits")
    goal = {
        "version": VERSION,
        "fit": fit_dir.name,
        "weights": dict(weights),
        "goal": project.goal.model_copy(update={"weights": {}}).to_json(),
        "budget": project.budget.to_json(),
        "search": project.search.to_json(),
        "trials": trials,
        "sampler": sampler,
        "storage": storage,
    }
    name = hash_json(goal)
    directory = workspace.plans / name
    if not (directory / "plan.json").exists():
        laws = read_fit(fit_dir)
        ready = forecaster(project, workspace, laws, weights)
        check_fit_belongs(project, workspace, laws, fit_dir)
        journal = directory / "study.journal"
        if storage is None:
            journal.unlink(missing_ok=True)  # one that was stopped half-written
        plan = make_plan(
            project,
            ready,
            fit_dir.name,
            storage or str(journal),
            trials=trials,
            sampler=sampler,
            study_name=f"plan-{name}",
            runs_dir=workspace.runs,
            assumptions=[] if all(knows_repetition(law) for law in laws.values()) else [ASSUMED],
        )
        write_plan(directory / "plan.json", plan)
    workspace.set_latest("plans", name)
    return directory, read_plan(directory / "plan.json")


def pareto(project: Project, workspace: Workspace, directory: Path, plan: Plan) -> Front:
    """The front of general loss, domain loss and cost of a plan's problem, as pareto.csv and pareto.png beside it."""
    ready = forecaster(project, workspace, read_fit(workspace.fits / plan.fit), plan.weights)
    afford = affordable(project, ready, workspace.runs)
    front = pareto_front(project, ready, plan_space(project, ready, afford), workspace.runs)
    write_front(directory, front, plan)
    return front


def check_fit_belongs(project: Project, workspace: Workspace, laws: Mapping[str, FittedLaw], fit_dir: Path) -> None:
    """Raise ConfigError if a fit was made of runs of another batch size, model or tokenizer than the project's."""
    again = "fit the curves of this campaign: cptplan fit"
    for law in laws.values():
        batch, sizes = law.support.batch_tokens, law.support.num_params
        if batch is not None and batch != project.pilot.batch_tokens:
            raise ConfigError(
                f"fit must be of the project's batch, {project.pilot.batch_tokens:,} tokens; got {batch:,} in "
                f"{fit_dir}.",
                hint=again,
            )
        path = Path(project.model.starts[-1].path)
        if sizes is None or not (path / "config.json").exists():
            continue
        size = float(read_model_shape(path).non_embedding_params)
        if not sizes[0] / SAME_SIZE <= size <= sizes[1] * SAME_SIZE:
            raise ConfigError(
                f"fit must be of the project's model, {size:,.0f} parameters; got {sizes[0]:,.0f} in {fit_dir}.",
                hint=again,
            )
    packed = _packed_tokenizer(workspace)
    for name, curve in read_curve_directory(workspace.curves).items() if packed else ():
        told = curve.record.tokenizer
        hashed = told is not None and re.fullmatch(r"[0-9a-f]{12,64}", told)  # else the place it was read from
        if curve.record.phase == "cpt" and hashed and told != packed:
            raise ConfigError(
                f"curves must be of the corpora's tokenizer, {packed}; got {told} for {name}.",
                hint="pack the corpora with the runs' tokenizer, or train pilots on these corpora",
            )


def _packed_tokenizer(workspace: Workspace) -> str | None:
    """Hash of the tokenizer that the corpora were packed with; None when they are not packed here."""
    marker = workspace.data / "corpora.json"
    found = read_json(marker).get("tokenizer", {}).get("hash") if marker.exists() else None
    return found if isinstance(found, str) else None


def fitted_sets(fit_dir: Path) -> tuple[str, ...]:
    """Validation sets of a fit."""
    return tuple(read_fit(fit_dir))


def goal_weights(project: Project, text: str | None, sets: Sequence[str] = ()) -> dict[str, float]:
    """Normalised weights: of --weights when given, else of the project.

    Args:      sets: validation sets of the fit; out-of-domain ones may have weights too.
    """
    domains = [domain.name for domain in project.data.domains]
    given = text if text is not None else ",".join(f"{name}={weight}" for name, weight in project.goal.weights.items())
    return parse_weights(given, domains, [name for name in sets if name not in ("general", *domains)])


def train_names(curves_dir: Path, train: str | None, test: str | None) -> list[str] | None:
    """The curves to fit to, from --train and --test; None for all. Without --train: all that are not tested.

    Raises:    CurveError if a curve is in both, or nothing is left to fit to.
    """
    if test is None:
        return train.split(",") if train else None
    tested = set(select_names(curves_dir, test.split(",")))
    fitted = select_names(curves_dir, train.split(",")) if train else curve_names(curves_dir)
    both = sorted(tested.intersection(fitted))
    if train and both:
        raise CurveError(
            f"--train and --test must not share a curve; got {', '.join(both)} in both.", hint="leave it out of one"
        )
    left = [name for name in fitted if name not in tested]
    if not left:
        raise CurveError(f"--test must leave curves to fit to; got all of {curves_dir}.", hint="name fewer curves")
    return left


def fit_summary(fit_dir: Path, *, law: str, seconds: float, test: Mapping[str, Any]) -> dict[str, Any]:
    """What a fit found, as JSON: law.json and report.json by validation set, and the scores on test curves.

    Args:      law: what was asked for. seconds: of the fit with its left-out fits; near 0 when it was there already.
               test: scoring.score_fit's.
    """
    stored, report = read_json(fit_dir / "law.json"), read_json(fit_dir / "report.json")
    return {
        "fit": str(fit_dir),
        "law": law,
        "seconds": round(seconds, 4),
        "sets": {
            name: {**values, "candidates": report["sets"][name], **({"test": test[name]} if name in test else {})}
            for name, values in stored["laws"].items()
        },
        "out_of_domain": report["out_of_domain"],
    }


def check_fit(fit_dir: Path, *, allow_poor: bool) -> None:
    """Raise PoorFitError if a law misses unseen pilots by more than it may, unless that is allowed."""
    for name, law in read_fit(fit_dir).items():
        if law.discrepancy > POOR_FIT and not allow_poor:
            raise PoorFitError(
                f"a law must predict unseen pilots within {POOR_FIT:.0%}; got {law.discrepancy:.1%} for loss_{name} "
                f"in {fit_dir}.",
                hint="look at the pilots' curves, run more pilots, or give --allow-poor-fit",
            )
