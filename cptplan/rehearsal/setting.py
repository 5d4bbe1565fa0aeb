"""What is rehearsed: a project, or one like the demo's, in a published truth or in the project's own fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cptplan.config import Project, Start, parse_weights, read_project
from cptplan.curves import CurveRecord, PretrainSummary, read_curve_directory
from cptplan.errors import ConfigError
from cptplan.fitting.store import read_fit
from cptplan.pilots.cost import LEAST_STEPS
from cptplan.planning.budget import budget_tokens
from cptplan.rehearsal.rehearse import Setting
from cptplan.schedule import ConstantSchedule
from cptplan.simulation.published import PublishedSet, ReplayForm, find_published
from cptplan.simulation.what_if import read_replay_form

BASE = "base"
DEFAULT_LAW, DEFAULT_SHARE = "knowledge-pile", 0.05
STABLE_SHARE = 0.8  # the stable start of a published truth is the last step before its pre-training decays
DEFAULT_NOISE = 0.004  # measured: nats, the middle of what the pilots of four small campaigns scatter by
FINAL_STEPS, NUM_PILOTS = 20_000, 8  # assumed, where there is no project: the longest runs of the paper, our design


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a user asks to rehearse; None takes the default."""

    config: Path | None = None
    """Project file; None: one like the demo's."""
    overrides: tuple[str, ...] = ()
    law: str | None = None
    fit: Path | None = None
    replay_form: str = "exponential"
    num_params: int | None = None
    weights: str | None = None
    pilot_share: float | None = None
    num_next: int = 0
    noise_nats: float | None = None


def setting_of(asked: Asked) -> Setting:
    """What is asked, ready to run.

    Raises:    ConfigError for what does not go together or cannot be read.
    """
    if asked.law is not None and asked.fit is not None:
        raise ConfigError("truth must be one of --law and --fit; got both.", hint="leave one out")
    if asked.fit is not None and asked.config is None:
        raise ConfigError(
            f"--fit must come with its project; got no cptplan.yaml for {asked.fit}.", hint="name it: --config"
        )
    law = asked.law or DEFAULT_LAW
    if asked.config is not None:
        project = read_project(asked.config, asked.overrides)
    elif asked.overrides:
        raise ConfigError(
            f"--set must come with a project; got {asked.overrides[0]} without one.", hint="cptplan init writes one"
        )
    else:
        project = with_pilot_share(default_project(find_published(law)), DEFAULT_SHARE)
    if asked.pilot_share is not None:
        project = with_pilot_share(project, asked.pilot_share)
    if asked.fit is not None:
        return fitted_setting(asked.fit, project, asked.weights, noise_nats=asked.noise_nats, num_next=asked.num_next)
    return published_setting(
        law,
        project,
        _weights(project, asked.weights),
        noise_nats=DEFAULT_NOISE if asked.noise_nats is None else asked.noise_nats,
        num_next=asked.num_next,
        replay_form=read_replay_form(asked.replay_form),
        num_params=asked.num_params,
    )


def _weights(project: Project, text: str | None, others: Sequence[str] = ()) -> dict[str, float]:
    """Normalised weights: those asked for, or the goal's."""
    given = text or ",".join(f"{name}={weight}" for name, weight in project.goal.weights.items())
    domains = [domain.name for domain in project.data.domains]
    return parse_weights(given, domains, [name for name in others if name not in ("general", *domains)])


def default_project(published: PublishedSet) -> Project:
    """The demo's project in the truth's own size: a start before and one after the decay, eight pilots."""
    base = published.pretrain_record()
    starts = [{"name": name, "path": name, "parent": BASE} for name in ("stable", "annealed")]
    batch = base.batch_tokens or 1
    return Project.parse(
        {
            "name": "rehearsal",
            "model": {"starts": starts, "pretrain_peak_lr": published.peak_lr},
            "data": {
                "general": {"name": "general", "path": "general"},
                "domains": [{"name": "domain", "path": "domain"}],
                "seq_len": base.seq_len,
            },
            "budget": {"tokens": FINAL_STEPS * batch},
            "pilot": {"total_steps": FINAL_STEPS // 10, "batch_tokens": batch, "num_runs": NUM_PILOTS},
        },
        "the rehearsal",
    )


def published_setting(
    law: str,
    project: Project,
    weights: Mapping[str, float],
    *,
    noise_nats: float = DEFAULT_NOISE,
    num_next: int = 0,
    replay_form: ReplayForm = "exponential",
    num_params: int | None = None,
) -> Setting:
    """A project in a published truth: its rates are taken as shares of the pre-training peak, its steps as they are.

    Args:      weights: of goal; all domains together weigh on the truth's one domain.
    Raises:    ConfigError for a law that is unknown, of an unknown pre-training, or for one replay ratio alone.
    """
    published = find_published(law)
    truth, base = published.laws(replay=replay_form, num_params=num_params), published.pretrain_record()
    if published.replay_ratio is not None:
        raise ConfigError(
            f"--law must hold for any replay ratio; got {law}, which holds for {published.replay_ratio:g}.",
            hint="such as knowledge-pile",
        )
    unit = project.model.pretrain_peak_lr / published.peak_lr
    base = base.model_copy(update={"batch_tokens": project.pilot.batch_tokens})
    rates = base.lr.lr()
    potentials = {start.name: _potential(project, start) for start in project.model.starts}
    # the last step at no less than the start's share of the peak rate
    steps = {
        name: int(np.flatnonzero(rates >= share * rates.max() * (1.0 - 1e-9))[-1]) + 1 if share else len(rates)
        for name, share in potentials.items()
    }
    low, high = project.peak_lr_range
    brought = project.model.pretrain_curves is not None or project.model.starts[-1].parent is not None
    told = {name: PretrainSummary(peak_lr=published.peak_lr, loss_potential=s) for name, s in potentials.items()}
    model = project.model.model_copy(update={"pretrain_peak_lr": published.peak_lr})
    pilot = project.pilot.model_copy(update={"peak_lr_range": (low / unit, high / unit)})
    return Setting(
        project=project.model_copy(update={"model": model, "pilot": pilot}),
        truth=truth,
        weights={"general": weights["general"], "domain": 1.0 - weights["general"]},
        pretraining={BASE: base},
        starts={name: _start_record(project, parent=BASE, parent_step=step) for name, step in steps.items()},
        told=None if brought else told,
        noise_nats=noise_nats,
        num_next=num_next,
        lr_unit=unit,
        title=f"{published.title} (arXiv:2505.07796, {published.figure}), {replay_form} replay",
        notes=(f"replay acts by {published.replay[replay_form].source}: {published.replay[replay_form].note}",),
    )


def _potential(project: Project, start: Start) -> float:
    """Last rate of a start over the peak of its pre-training; what is not told: only the last start is annealed."""
    if start.final_lr is not None:
        return min(start.final_lr / project.model.pretrain_peak_lr, 1.0)
    return 0.0 if start is project.model.starts[-1] else 1.0


def fitted_setting(
    fit_dir: Path,
    project: Project,
    weights_text: str | None = None,
    *,
    noise_nats: float | None = None,
    num_next: int = 0,
) -> Setting:
    """A project whose truth is its own fit, with the noise that its pilots showed.

    Args:      weights_text: such as general=0.4; the goal's when None. noise_nats: another noise.
    """
    fitted = read_fit(fit_dir)
    weights = _weights(project, weights_text, tuple(fitted))
    laws = {name: law for name, law in fitted.items() if name == "general" or weights.get(name, 0.0) > 0.0}
    directory = fit_dir.resolve().parent.parent / "curves"
    curves = read_curve_directory(directory) if directory.is_dir() else {}
    starts = {start.name: _fitted_start(project, start) for start in project.model.starts}
    missing = [record.parent for record in starts.values() if record.parent and record.parent not in curves]
    if missing:
        raise ConfigError(
            f"curves must hold the pre-training of every start; got none of {missing[0]} in {directory}.",
            hint="rehearse in a published truth: --law knowledge-pile",
        )
    pilots = [curve for curve in curves.values() if curve.record.phase == "cpt"]
    scatter = [law.noise * np.nanmean([np.nanmean(c.losses[name]) for c in pilots]) for name, law in laws.items()]
    return Setting(
        project=project,
        truth=laws,
        weights={name: weights.get(name, 0.0) for name in laws},
        pretraining={name: curve.record for name, curve in curves.items() if curve.record.phase == "pretrain"},
        starts=starts,
        noise_nats=float(np.mean(scatter)) if noise_nats is None else noise_nats,
        num_next=num_next,
        title=f"{fit_dir} ({', '.join(f'{name}: {law.law.name}' for name, law in laws.items())})",
        notes=("The truth has a form that the fit may choose: a real one may not, so real regret is larger.",),
    )


def with_pilot_share(project: Project, share: float) -> Project:
    """The project with pilots of another length, so that all of them together cost this share of the budget's tokens.

    Raises:    ConfigError if that leaves a pilot too few steps.
    """
    longest = budget_tokens(project) // project.pilot.batch_tokens
    steps = round(share * longest / project.pilot.num_runs)
    if steps < LEAST_STEPS:
        raise ConfigError(
            f"--pilot-share must give each of {project.pilot.num_runs} pilots {LEAST_STEPS} steps; got {share:g}, "
            f"which gives {steps}.",
            hint=f"{project.pilot.num_runs * LEAST_STEPS / longest:.2g} is the least",
        )
    changed = {"total_steps": steps, "warmup_steps": min(project.pilot.warmup_steps, max(steps // 10, 1))}
    return project.model_copy(update={"pilot": project.pilot.model_copy(update=changed)})


def _start_record(project: Project, **start: object) -> CurveRecord:
    """The record of a run from a start; its rates and its replay are to be replaced."""
    return CurveRecord.parse(
        {
            "phase": "cpt",
            "lr": ConstantSchedule(kind="constant", peak_lr=project.model.pretrain_peak_lr, total_steps=1),
            "batch_tokens": project.pilot.batch_tokens,
            "seq_len": project.data.seq_len,
            **start,
        },
        "the rehearsal",
    )


def _fitted_start(project: Project, start: Start) -> CurveRecord:
    """A start as the project's own pilots have it in their records."""
    if start.parent is not None:
        return _start_record(project, parent=start.parent, parent_step=start.parent_step)
    if start.final_lr is None:
        return _start_record(project)
    return _start_record(
        project, pretrain=PretrainSummary(peak_lr=project.model.pretrain_peak_lr, final_lr=start.final_lr)
    )
