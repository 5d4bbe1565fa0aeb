"""Does a run leave its band: a test that may be asked after every point and still keeps its rate of false alarms.

Against the plan stand rivals: the same law with another rate, replay or start, and curves that leave the plan at some
point in a way that no law knows. Evidence is how much more probable the rivals make the points than the plan does, as
a mixture with weights given beforehand. Under the plan it is a martingale that begins at 1, so it ever reaches
1 / FALSE_ALARMS in at most FALSE_ALARMS of the healthy runs, however often it is looked at (Ville 1939; Ramdas et al.
2023, arXiv:2210.01948), as far as the model of watch_model is right. The rival that has most of it is the likely cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import norm

from cptplan.laws.history import RunHistory
from cptplan.watch.model import CurveModel, Evidence, Points

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FALSE_ALARMS = 0.05
"""Share of healthy runs in which an alarm may ever be raised; measured: 0 of 44 virtual ones, 2 of 28 real ones."""
LR_FACTORS = (0.125, 0.25, 0.5, 0.7, 1.4, 2.0, 4.0, 8.0)
REPLAY_GRID = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
GAINS = (0.5, 0.7, 0.8, 0.9, 1.1, 1.25, 1.5)  # of what a set changes
OTHER_REPLAY = 0.04  # nearer ratios are the same plan
SHIFTS = (-1.0, 1.0)  # standard deviations that innovations move by
SPREADS = (3.0, 10.0)  # times that innovations grow by


@dataclass(frozen=True, kw_only=True, slots=True)
class Rival:
    """Another run that might be going on instead of the planned one."""

    kind: str
    """lr, replay, start, or data of a set."""
    value: float
    """Factor of the rate; replay ratio; factor of what a set changes; 0 for a start."""
    text: str
    history: RunHistory
    gains: Mapping[str, float] = field(default_factory=dict)
    """Factor of what the run changes, by validation set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """One explanation of the measured curve."""

    kind: str
    """lr, replay, start, data of <set>, <set> alone, or unknown."""
    text: str
    share: float
    """Of all rivals' evidence, in [0, 1]."""
    rival: Rival | None
    """What the run does then; None where no law says it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Where the test stands."""

    steps: IntArray
    """Steps at which something was measured, shape (points,)."""
    log_evidence: FloatArray
    """Natural logarithm of the evidence against the plan after each of them, shape (points,)."""
    innovations: Mapping[str, FloatArray]
    """By set: each point against its prediction from those before it, standard deviations."""
    causes: tuple[Cause, ...]
    """What explains the curve, best first."""

    @property
    def alarm_step(self) -> int | None:
        """The first step at which the evidence was enough; None when it never was."""
        over = np.flatnonzero(self.log_evidence >= -np.log(FALSE_ALARMS))
        return int(self.steps[over[0]]) if len(over) else None


def rivals_of(
    planned: RunHistory, starts: Mapping[str, RunHistory], sets: Sequence[str] = ("general", "domain")
) -> tuple[Rival, ...]:
    """The same run with another rate or replay ratio throughout, from another start, or on other data.

    Args:      starts: the planned run begun elsewhere, by name of the start. sets: validation sets.
    """
    replay = float(planned.replay_ratio.mean())
    found = [
        Rival(
            kind="lr",
            value=factor,
            text=f"the learning rate is about {factor:g} times the planned one",
            history=replace(planned, lr=planned.lr * factor),
        )
        for factor in LR_FACTORS
    ]
    found += [
        Rival(
            kind="replay",
            value=ratio,
            text=f"the replay ratio is about {ratio:.0%}, not {replay:.0%}",
            history=replace(planned, replay_ratio=np.full_like(planned.replay_ratio, ratio)),
        )
        for ratio in REPLAY_GRID
        if abs(ratio - replay) >= OTHER_REPLAY
    ]
    found += [
        Rival(kind="start", value=0.0, text=f"the run began from {name}, not from the planned start", history=history)
        for name, history in starts.items()
    ]
    found += [
        Rival(
            kind=f"data of {name}",
            value=gain,
            text=f"loss_{name} changes about {abs(gain - 1.0):.0%} {'more' if gain > 1.0 else 'less'} than the pilots' "
            "did: other data?",
            history=planned,
            gains={name: gain},
        )
        for name in sets
        for gain in GAINS
    ]
    return tuple(found)


def judge_run(
    models: Mapping[str, CurveModel],
    planned: RunHistory,
    points: Mapping[str, Points],
    rivals: Sequence[Rival],
) -> Verdict:
    """The evidence against the plan after every point, and what explains the curve best.

    Args:      models, points: by validation set; points must be usable.
    """
    sets = [name for name in models if name in points and len(points[name].steps)]
    steps = np.unique(np.concatenate([points[name].steps for name in sets])) if sets else np.zeros(0, dtype=np.int64)
    if not len(steps):
        return Verdict(steps=steps, log_evidence=np.zeros(0), innovations={}, causes=())
    plain = {name: models[name].evidence(planned, points[name]) for name in sets}
    named = [_against(rival, models, points, plain, steps) for rival in rivals]
    alone = {name: _on(steps, points[name].steps, _leaving(plain[name].innovations)) for name in sets}
    lost = {f"{name} alone": path for name, path in alone.items()}
    if len(sets) > 1:
        lost["unknown"] = np.sum(list(alone.values()), axis=0)
    paths = [*([_average(named)] if named else []), _average(list(lost.values()))]
    return Verdict(
        steps=steps,
        log_evidence=_average(paths),
        innovations={name: plain[name].innovations for name in sets},
        causes=_causes(rivals, named, lost),
    )


def _against(
    rival: Rival,
    models: Mapping[str, CurveModel],
    points: Mapping[str, Points],
    plain: Mapping[str, Evidence],
    steps: IntArray,
) -> FloatArray:
    """log p(points | rival) - log p(points | plan) after each step."""
    total = np.zeros(len(steps))
    for name, one in plain.items():
        gain = rival.gains.get(name, 1.0)
        if gain == 1.0 and rival.gains:
            continue  # as planned
        other = replace(models[name], gain=gain).evidence(rival.history, points[name])
        total += _on(steps, points[name].steps, other.log_density - one.log_density)
    return total


def _on(steps: IntArray, own: IntArray, values: FloatArray) -> FloatArray:
    """The latest of a set's values at each step; 0, which is no evidence, before its first."""
    at = np.searchsorted(own, steps, side="right")
    return np.concatenate([[0.0], values])[at]


def _leaving(innovations: FloatArray) -> FloatArray:
    """log evidence that the curve left its model at some point: innovations that moved or grew from there on.

    sum_tau w_tau prod_{k >= tau} q(e_k) / n(e_k) + what of the weights is still to come, w_tau = 1 / (tau (tau + 1)).
    """
    number = np.arange(1, len(innovations) + 1)
    log_weight = -np.log(number * (number + 1.0))
    to_come = -np.log(number + 1.0)
    found = []
    for shift, spread in [*((s, 1.0) for s in SHIFTS), *((0.0, s) for s in SPREADS)]:
        ratio = norm.logpdf(innovations, shift, spread) - norm.logpdf(innovations)
        total = np.cumsum(ratio)
        started = np.logaddexp.accumulate(log_weight - total + ratio) + total
        found.append(np.logaddexp(started, to_come))
    return _average(found)


def _average(paths: Sequence[FloatArray]) -> FloatArray:
    """Logarithm of the mean of evidences given as logarithms."""
    return np.asarray(logsumexp(np.stack(paths), axis=0) - np.log(len(paths)))


def _causes(rivals: Sequence[Rival], named: Sequence[FloatArray], lost: Mapping[str, FloatArray]) -> tuple[Cause, ...]:
    """Explanations by what they have of the evidence at the last step, the best rival of each kind alone."""
    weights: list[tuple[float, str, str, Rival | None]] = []
    for kind in dict.fromkeys(rival.kind for rival in rivals):
        mine = [n for n, rival in enumerate(rivals) if rival.kind == kind]
        best = max(mine, key=lambda n: float(named[n][-1]))
        total = float(logsumexp([named[n][-1] for n in mine]) - np.log(len(rivals)))
        weights.append((total, kind, rivals[best].text, rivals[best]))
    for kind, path in lost.items():
        text = "losses move as no rate, replay or start explains" if kind == "unknown" else f"loss_{kind} has moved"
        weights.append((float(path[-1] - np.log(len(lost))), kind, text, None))
    whole = logsumexp([weight for weight, *_ in weights])
    found = [
        Cause(kind=kind, text=text, share=float(np.exp(weight - whole)), rival=rival)
        for weight, kind, text, rival in weights
    ]
    return tuple(sorted(found, key=lambda cause: -cause.share))
