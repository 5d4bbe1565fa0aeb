"""What-if runs: from schedules, replay ratios and a start to records that can be simulated, with useful defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from cptplan.api import is_fit, read_source
from cptplan.curves import CurveRecord, LossCurve, read_curve_directory
from cptplan.errors import ConfigError, CurveError, suggest
from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.store import read_fit
from cptplan.laws.cpt import CptLaw
from cptplan.mixture import ConstantMixture, read_mixture
from cptplan.report.findings import format_lr
from cptplan.schedule import CosineSchedule, read_schedule
from cptplan.simulation.known_law import KnownLaw, needs_pretraining
from cptplan.simulation.published import PublishedSet, ReplayForm, find_published

REPLAYS = (0.0, 0.05, 0.3)  # none, little, and the rule of thumb
PUBLISHED_STEPS = 10_000  # of CPT, as in the loss-potential and peak-rate studies of arXiv:2505.07796
LONGER_THAN_PILOTS = 3  # measured: as far as predictions were checked (experiments/01_predict_longer)
WARMUP_SHARE = 0.05  # assumed
BASE = "base"

Line = dict[str, CurveRecord]
"""A run and all that it continues, itself last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WhatIf:
    """Runs to simulate, and the law to do it with."""

    source: Mapping[str, KnownLaw] | Mapping[str, FittedLaw]
    fitted: Mapping[str, FittedLaw] | None
    """The same laws when they were fitted, so that they have intervals."""
    records: Mapping[str, CurveRecord]
    """The runs and those that they continue."""
    chosen: tuple[str, ...]
    """The runs that were asked for."""
    title: str
    """What the law is."""
    notes: tuple[str, ...]
    """What is to be known of the law."""


def plan_what_if(
    law: str,
    *,
    lrs: Sequence[Any] = (),
    replays: Sequence[Any] = (),
    start: str | None = None,
    replay_form: ReplayForm = "exponential",
    num_params: int | None = None,
) -> WhatIf:
    """Every schedule with every replay ratio, from one start.

    Args:      law: name of a published set, or directory of a fit. lrs: schedule objects; a cosine at the law's peak
               rate when there are none. replays: ratios or mixture objects; 0, 5 and 30 % when there are none, as far
               as the law holds for them. start: a loss potential for a published set (0 annealed, 1 never annealed), or
               DIR/NAME[@STEP], a run of a curve directory.
    Raises:    ConfigError or CurveError for what cannot be read or does not go together.
    """
    fitted = read_fit(Path(law)) if is_fit(law) else None
    source = fitted or read_source(law, replay=replay_form, num_params=num_params)
    published = None if fitted else find_published(law)
    line, parent_step = _start(law, start, published, any(needs_pretraining(model.law) for model in source.values()))
    schedules = [read_schedule(lr, "--lr") for lr in lrs] or [_default_schedule(published, fitted)]
    mixtures: Sequence[Any] = [read_mixture(replay, "--replay") for replay in replays]
    if all(isinstance(model.law, CptLaw) for model in source.values()):
        mixtures = mixtures or _default_mixtures(published, fitted)
    elif mixtures or line:
        raise ConfigError(
            f"--replay and --start must be left out for a law of pre-training; got one with {law}.",
            hint="fit a law of CPT for them",
        )
    runs: Line = {}
    for schedule in schedules:
        for mixture in mixtures or [None]:
            runs[_new_name(schedule, mixture, {**line, **runs})] = _record(schedule, mixture, line, parent_step)
    forms = ", ".join(f"{name}: {model.law.name}" for name, model in source.items())
    return WhatIf(
        source=source,
        fitted=fitted,
        records={**line, **runs},
        chosen=tuple(runs),
        title=f"{published.title} (arXiv:2505.07796, {published.figure})" if published else f"{law} ({forms})",
        notes=_notes(published, replay_form, mixtures) if published else (),
    )


def _notes(published: PublishedSet, form: ReplayForm, mixtures: Sequence[Any]) -> tuple[str, ...]:
    """What is to be known of a published set, and of how replay acts in it when there is any."""
    replayed = any(getattr(mixture, "replay_ratio", 1.0) > 0 for mixture in mixtures)
    if published.replay_ratio is not None or not replayed:
        return published.notes
    replay = published.replay[form]
    return (*published.notes, f"replay acts by {replay.source}: {replay.note}")


def read_replay_form(text: str) -> ReplayForm:
    """A replay form by its name.

    Raises:    ConfigError if there is none of that name.
    """
    known = get_args(ReplayForm)
    if text not in known:
        raise ConfigError(
            f"--replay-form must be {' or '.join(known)}; got {text!r}.", hint=suggest(text, known) or "choose one"
        )
    return "exponential" if text == "exponential" else "logarithmic"


def _record(schedule: Any, mixture: Any, line: Line, parent_step: int | None) -> CurveRecord:
    """A run that continues the last one of the line; without a mixture it is a pre-training run."""
    if not line:
        return CurveRecord(phase="pretrain" if mixture is None else "cpt", lr=schedule, replay_ratio=mixture)
    changes = {"phase": "cpt", "lr": schedule, "replay_ratio": mixture, "parent_step": parent_step, "seed": None}
    parent = list(line)[-1]
    return line[parent].model_copy(update={**changes, "parent": parent, "pretrain": None})


def _start(law: str, start: str | None, published: PublishedSet | None, needed: bool) -> tuple[Line, int | None]:
    """The run that CPT continues, behind all that it continues itself, and the step to continue it from (None: end)."""
    potential = _number(start)
    if start is not None and potential is None:
        return _named_start(start)
    if published is None and potential is not None:
        raise ConfigError(
            f"--start must be a run for a fitted law, DIR/NAME or DIR/NAME@STEP; got {start!r}.",
            hint="such as campaign/curves/base",
        )
    if not needed:
        if potential is not None:
            raise ConfigError(
                f"--start must be left out where pre-training is unknown; got {start} with {law}.",
                hint="choose another law",
            )
        return {}, None
    if published is None:
        return _only_pretraining(Path(law)), None
    share = potential or 0.0
    if not 0.0 <= share <= 1.0:
        raise ConfigError(
            f"--start must be a loss potential in [0, 1]; got {start}.", hint="0 is annealed, 1 is never annealed"
        )
    return {BASE: published.pretrain_record(share)}, None


def _named_start(start: str) -> tuple[Line, int | None]:
    place, _, step = start.partition("@")
    directory, name = Path(place).parent, Path(place).name
    curves = read_curve_directory(directory, [name])
    if name not in curves:
        raise CurveError(
            f"--start must name one run; got the pattern {name!r} for {directory}.",
            hint=f"such as {directory / next(iter(curves))}",
        )
    line, total = _line(curves, name), curves[name].total_steps
    if step and not (step.isdecimal() and 0 < int(step) <= total):
        raise CurveError(f"--start must name a step in [1, {total}]; got {step!r}.", hint=f"such as {place}@{total}")
    return line, int(step) if step else None


def _only_pretraining(fit_dir: Path) -> Line:
    """The pre-training run of the campaign that a fit lies in."""
    directory = fit_dir.resolve().parent.parent / "curves"
    curves = read_curve_directory(directory) if directory.is_dir() else {}
    found = [name for name, curve in curves.items() if curve.record.phase == "pretrain"]
    if len(found) != 1:
        raise ConfigError(
            f"--start must name the run that CPT continues; got none, with {len(found)} pre-training runs in "
            f"{directory}.",
            hint="give DIR/NAME or DIR/NAME@STEP",
        )
    return _line(curves, found[0])


def _line(curves: Mapping[str, LossCurve], name: str) -> Line:
    line = [name]
    while (parent := curves[line[0]].record.parent) is not None:
        line.insert(0, parent)
    return {one: curves[one].record for one in line}


def _default_schedule(published: PublishedSet | None, fitted: Mapping[str, FittedLaw] | None) -> CosineSchedule:
    """A cosine to 0: as long as the paper's runs, or three times the pilots at the highest rate that they tried."""
    peak_lr, steps = (published.peak_lr, PUBLISHED_STEPS) if published else (0.0, 0)
    for law in (fitted or {}).values():
        peak_lr, steps = law.support.peak_lr[1], LONGER_THAN_PILOTS * law.support.longest_steps
    return CosineSchedule(kind="cosine", peak_lr=peak_lr, total_steps=steps, warmup_steps=round(WARMUP_SHARE * steps))


def _default_mixtures(published: PublishedSet | None, fitted: Mapping[str, FittedLaw] | None) -> list[ConstantMixture]:
    """The usual ratios, as far as the law was fitted to them."""
    low, high = 0.0, 1.0
    if published is not None and published.replay_ratio is not None:
        low = high = published.replay_ratio
    for law in (fitted or {}).values():
        low, high = law.support.replay_ratio
    inside = [ratio for ratio in REPLAYS if low <= ratio <= high] or sorted({low, high})
    return [ConstantMixture(replay_ratio=ratio) for ratio in inside]


def _new_name(schedule: Any, mixture: Any, taken: Mapping[str, object]) -> str:
    """Such as cosine-2e-4-replay-5, with a number behind it when it is taken."""
    plain = f"{schedule.kind}-{format_lr(float(schedule.lr().max()))}"
    if isinstance(mixture, ConstantMixture):
        plain += f"-replay-{100 * mixture.replay_ratio:g}"
    elif mixture is not None:
        plain += f"-replay-{mixture.kind}"
    name, number = plain, 1
    while name in taken:
        number += 1
        name = f"{plain}-{number}"
    return name


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
