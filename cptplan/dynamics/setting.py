"""Which run the dynamics are asked about: of a campaign's fit, or of a published law or any fit directory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cptplan.config import Project, parse_weights
from cptplan.curves import LossCurve
from cptplan.decide import forecaster, goal_weights
from cptplan.dynamics.dynamics import Setting
from cptplan.errors import ConfigError
from cptplan.fitting.store import read_fit
from cptplan.laws.history import RunHistory, history_of
from cptplan.mixture import ConstantMixture
from cptplan.pilots.design import run_schedule
from cptplan.planning.knobs import Knobs
from cptplan.planning.plan import read_plan
from cptplan.simulation.published import find_published, read_published
from cptplan.simulation.what_if import LONGER_THAN_PILOTS, PUBLISHED_STEPS, plan_what_if
from cptplan.workspace import Workspace

POTENTIALS = ("0", "0.1", "0.5", "1")  # of a published set: annealed, the common floor, half, never annealed
BATCH_TOKENS = 4_194_304  # published: of all sets of arXiv:2505.07796, table 1
DECAY_SHARE = 0.2  # published: 10 to 20 % of the steps is the best share (arXiv:2408.11029)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a person says of the run; None is left to the plan, or to the law."""

    peak_lr: float | None = None
    replay_ratio: float | None = None
    decay_share: float | None = None
    start: str | None = None
    horizon_tokens: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A setting with what a reader must know of it."""

    setting: Setting
    title: str
    directory: Path
    """Where the figure belongs."""
    horizon_steps: int
    tokens: float | None
    """Of the horizon; None where the batch is not known."""


def campaign_question(
    project: Project, workspace: Workspace, weights: str | None, asked: Asked, level: float = 0.9
) -> Question:
    """The newest plan's run on the newest fit, with what is asked for changed; without a plan the middle of the pilots.

    Raises:    ConfigError without a fit, for a start that is not the project's, or a number out of its range.
    """
    fit_dir = workspace.latest("fits")
    laws = read_fit(fit_dir)
    ready = forecaster(project, workspace, laws, goal_weights(project, weights))
    knobs, directory = _planned(project, workspace)
    batch = project.pilot.batch_tokens
    changes: dict[str, Any] = {
        "peak_lr": asked.peak_lr,
        "replay_ratio": asked.replay_ratio,
        "decay_share": asked.decay_share,
        "start": asked.start,
        "total_steps": None if asked.horizon_tokens is None else max(round(asked.horizon_tokens / batch), 1),
    }
    given = {key: value for key, value in changes.items() if value is not None}
    if asked.decay_share is not None:
        given["kind"] = "wsd"
    if asked.replay_ratio is not None:
        given["end_replay"] = None
    knobs = replace(knobs, **given)
    _check_numbers(knobs.peak_lr, knobs.replay_ratio, knobs.decay_share)

    def history(start: str, replay_ratio: float) -> RunHistory:
        mixed: dict[str, Any] = (
            {} if replay_ratio == knobs.replay_ratio else {"replay_ratio": replay_ratio, "end_replay": None}
        )
        return ready.history(replace(knobs, start=start, **mixed))

    history(knobs.start, knobs.replay_ratio)  # a start that is not there is refused before the work
    supports = [law.support.replay_ratio for law in laws.values()]
    return Question(
        setting=Setting(
            laws=ready.laws,
            weights=ready.weights,
            history=history,
            start=knobs.start,
            others=tuple(name for name in ready.starts if name != knobs.start),
            replay_ratio=knobs.replay_ratio,
            replay_range=(min(low for low, _ in supports), max(high for _, high in supports)),
            level=level,
        ),
        title=f"{project.name}: peak {knobs.peak_lr:.3g}, {knobs.mean_replay:.0%} replay, from {knobs.start}",
        directory=directory,
        horizon_steps=knobs.total_steps,
        tokens=float(knobs.total_steps * batch),
    )


def _planned(project: Project, workspace: Workspace) -> tuple[Knobs, Path]:
    """The newest plan's knobs and directory; else a run three times as long as a pilot in the middle of the ranges."""
    if (workspace.plans / "latest.json").exists():
        directory = workspace.latest("plans")
        return read_plan(directory / "plan.json").chosen.knobs(), directory
    low, high = project.peak_lr_range
    middle = Knobs(
        peak_lr=float(np.sqrt(low * high)),
        replay_ratio=float(np.mean(project.pilot.replay_range)),
        total_steps=LONGER_THAN_PILOTS * project.pilot.total_steps,
        decay_share=DECAY_SHARE,
        start=project.model.starts[-1].name,
    )
    return middle, workspace.root


def law_question(law: str, weights: str | None, asked: Asked, out: Path, level: float = 0.9) -> Question:
    """A run under a published law, or under a fit whose curves lie beside it.

    Args:      law: name of a published set, or directory of a fit. asked: start is a loss potential of a published set,
               or a run DIR/NAME[@STEP].
    Raises:    ConfigError, CurveError: see what_if.plan_what_if.
    """
    published = find_published(law) if law in read_published() else None
    plan = plan_what_if(law, start=asked.start, num_params=_size_of(law))
    fitted = list((plan.fitted or {}).values())
    batch = fitted[0].support.batch_tokens if fitted else BATCH_TOKENS
    if asked.horizon_tokens is not None and batch is None:
        raise ConfigError(
            f"batch_tokens must be known for a horizon in tokens; got none in {law}.", hint="add it to the curves"
        )
    low, high = fitted[0].support.replay_ratio if fitted else (0.0, 1.0)
    if published is not None and published.replay_ratio is not None:
        low = high = published.replay_ratio
    replay = asked.replay_ratio if asked.replay_ratio is not None else low
    steps = LONGER_THAN_PILOTS * fitted[0].support.longest_steps if fitted else PUBLISHED_STEPS
    if asked.horizon_tokens is not None:
        steps = max(round(asked.horizon_tokens / (batch or 1)), 1)
    peak_lr = fitted[0].support.peak_lr[1] if fitted else find_published(law).peak_lr
    peak_lr = peak_lr if asked.peak_lr is None else asked.peak_lr
    decay = DECAY_SHARE if asked.decay_share is None else asked.decay_share
    _check_numbers(peak_lr, replay, decay)
    schedule = run_schedule(peak_lr=peak_lr, total_steps=steps, warmup_steps=0, decay_share=decay)
    start = asked.start or ("0" if published is not None and published.pretrain is not None else "as it was")
    sources = {start: plan}

    def history(begin: str, replay_ratio: float) -> RunHistory:
        if begin not in sources:
            sources[begin] = plan_what_if(law, start=begin, num_params=_size_of(law))
        source = sources[begin]
        mixture = ConstantMixture(replay_ratio=replay_ratio)
        records = dict(source.records)
        (name, *_) = source.chosen
        records[name] = records[name].model_copy(update={"lr": schedule, "replay_ratio": mixture})
        runs = {
            one: LossCurve(name=one, record=record, steps=np.zeros(0, dtype=np.int64), losses={})
            for one, record in records.items()
        }
        return history_of(runs[name], runs)

    return Question(
        setting=Setting(
            laws=plan.source,
            weights=_weights(weights, list(plan.source)),
            history=history,
            start=start,
            others=_other_potentials(start),
            replay_ratio=replay,
            replay_range=(low, high),
            level=level,
        ),
        title=f"{plan.title}: peak {peak_lr:.3g}, {replay:.0%} replay",
        directory=out,
        horizon_steps=steps,
        tokens=None if batch is None else float(steps * batch),
    )


def _other_potentials(start: str) -> tuple[str, ...]:
    """The loss potentials to compare a start with; none when it is no potential itself."""
    try:
        return tuple(potential for potential in POTENTIALS if float(potential) != float(start))
    except ValueError:
        return ()


def _size_of(law: str) -> int | None:
    """The size that the published set of several sizes is asked at: the smallest, which the other sets have."""
    return 106_000_000 if law == "knowledge-pile-sizes" else None


def _weights(text: str | None, sets: list[str]) -> dict[str, float]:
    return parse_weights(text or "general=0.4", [name for name in sets if name != "general"])


def _check_numbers(peak_lr: float, replay_ratio: float, decay_share: float) -> None:
    if peak_lr <= 0.0:
        raise ConfigError(f"--peak-lr must be greater than 0; got {peak_lr:g}.", hint="such as 2e-4")
    for option, share in {"--replay": replay_ratio, "--decay-share": decay_share}.items():
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"{option} must be in [0, 1]; got {share:g}.", hint="such as 0.2")
