"""Known failure modes in curves and logs, each with its evidence and what to change.

Every threshold is a rule of thumb unless a source is named; each is written so that an ordinary run, whose loss follows
a power law with the usual noise, is diagnosed with nothing (tests hold that).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cptplan.advice.curve_symptoms import HIGH_FOR_CPT, jumps
from cptplan.advice.run_log import RunLog
from cptplan.advice.series import SMOOTH, after, climb, fall, leaps, roughness, smoothed
from cptplan.advice.shards import read_shard
from cptplan.errors import DataError

Mode = Literal[
    "forgetting",
    "lr_too_high",
    "lr_too_low",
    "too_short",
    "mix_imbalance",
    "tokenizer_mismatch",
    "contamination",
    "spikes",
    "plateau",
]
Knob = Literal["peak_lr", "replay_ratio", "total_steps", "decay_share"]

LEAST_REPLAY = 0.1  # that is advised against forgetting
FORGOTTEN = 0.1  # nats: general perplexity 10 % up; CMR's own limit is 0.05 (arXiv:2407.17467)
RISE = 0.1  # nats that a smoothed training loss may rise again after its lowest
WORSE = 0.05  # nats that a learnt set may end above its own lowest
GRADIENT_GROWTH = 3.0  # times, late over settled gradient norm
EARLY, LATE = 0.5, 0.3  # last third's fall over the first third's: of a straight line 1, of a power law under 0.25
LITTLE = 0.01  # share of the first loss: a fall below says nothing about its shape
FLAT = 0.002  # share of the first loss that a set must fall in the second half, else it stands still
HOT = 0.5  # share of the peak rate: above, a run that stands still is not merely annealed
OFF_PLAN = 0.02  # share of tokens
TOO_EASY, MEMORISED = 0.3, 0.5  # nats between training loss and what validation says of the same mixture
BLIND = 0.75  # share of ln(vocabulary) that a readable text never costs a pre-trained model
SPIKE, SPIKE_NOISE = 0.5, 10.0  # nats above the running median, and times the median deviation
MANY_SPIKES = 3
NOT_APPLIED = ("skip", "rollback")  # events of the executor that say so
READ_LESS = "read the domain fewer times: a shorter run, more replay or more text (arXiv:2305.16264: up to 4 epochs)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Remedy:
    """One change of a run, as a factor of what it has or a new value."""

    knob: Knob
    factor: float | None = None
    value: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A failure mode that a run shows."""

    mode: Mode
    run: str
    evidence: str
    advice: str
    remedy: Remedy | None = None
    """The change that a law can judge; None where it cannot."""


def diagnose(log: RunLog) -> tuple[Finding, ...]:
    """What is wrong with a run, the gravest first; nothing for a healthy one, or a run of pre-training."""
    if log.phase != "cpt":
        return ()
    checks: tuple[Callable[[RunLog], Iterator[Finding]], ...] = (
        _tokenizer,
        _lr_too_high,
        _spikes,
        _forgetting,
        _contamination,
        _mix,
        _slow,
        _plateau,
    )
    found: list[Finding] = []
    for check in checks:
        for finding in check(log):
            if finding.mode not in {one.mode for one in found}:
                found.append(finding)
    return tuple(found)


def _finding(log: RunLog, mode: Mode, evidence: str, advice: str, remedy: Remedy | None = None) -> Finding:
    return Finding(mode=mode, run=log.name, evidence=evidence, advice=advice, remedy=remedy)


def _tokenizer(log: RunLog) -> Iterator[Finding]:
    """General text that the base cannot read, or a domain that its tokenizer shreds."""
    general = log.losses.get("general")
    if general is not None and len(general) and general.steps[0] == 0:
        first, size = float(general.values[0]), _vocabulary(log)
        limit = HIGH_FOR_CPT if size is None else min(BLIND * math.log(size), HIGH_FOR_CPT)
        if first > limit:
            yield _finding(
                log,
                "tokenizer_mismatch",
                f"loss_general is {first:.2f} before any training, where guessing blindly costs {math.log(size):.2f}"
                if size is not None
                else f"loss_general is {first:.2f} before any training",
                "pack the corpora with the tokenizer of this very model, and check that its weights were loaded",
            )


def _vocabulary(log: RunLog) -> int | None:
    """Ids of the tokenizer, from the packed training source."""
    for source in log.spec.sources if log.spec is not None else ():
        try:
            return read_shard(Path(source.path), "train").vocab_size
        except DataError:
            continue
    return None


def _lr_too_high(log: RunLog) -> Iterator[Finding]:
    """Training that diverges or climbs: a jump, a training loss that rises again, gradients that grow."""
    advice = "lower peak_lr to a third, or lengthen the warm-up"
    remedy = Remedy(knob="peak_lr", factor=1.0 / 3.0)
    evidence = []
    if log.curve is not None:
        evidence += [warning.message for warning in jumps([log.curve], log.domains)][:1]
    warm = int(np.argmax(log.lr)) + 1 if len(log.lr) else 0
    smooth = smoothed(after(log.train_loss, warm))
    if len(smooth) >= 3 * SMOOTH and climb(smooth) > max(RISE, 4.0 * roughness(log.train_loss)):
        evidence.append(f"training loss ends {climb(smooth):.2f} nats above its lowest")
    gradient = after(log.grad_norm, warm)
    if len(gradient) >= 30:
        third = len(gradient) // 3
        growth = float(np.median(gradient.values[-third:]) / max(np.median(gradient.values[:third]), 1e-12))
        if growth > GRADIENT_GROWTH:
            evidence.append(f"gradient norm grows to {growth:.1f} times what it was after the warm-up")
    for name in log.domains:
        if not evidence and _passes(log, name) <= 1.0 and _worse(log, name):
            evidence.append(f"loss_{name} ends {climb(log.losses[name]):.2f} nats above its lowest, on fresh text")
    if evidence:
        yield _finding(log, "lr_too_high", "; ".join(evidence), advice, remedy)


def _spikes(log: RunLog) -> Iterator[Finding]:
    """Single steps far above their neighbours, and steps that the executor did not apply."""
    skipped = [step for step, kind, _ in log.events if kind in NOT_APPLIED]
    series = log.train_loss
    broken = int(np.sum(~np.isfinite(series.values)))
    high = leaps(series, least=SPIKE, noises=SPIKE_NOISE)
    if len(high) >= MANY_SPIKES or skipped or broken:
        told = [f"{len(high)} steps leap above the running median (first at step {high[0]})"] if len(high) else []
        told += [f"{len(skipped)} steps were not applied (first at step {skipped[0]})"] if skipped else []
        told += [f"{broken} losses are not finite"] if broken else []
        yield _finding(
            log,
            "spikes",
            "; ".join(told),
            "look at the text of those steps for broken documents; lower peak_lr or beta2; set spikes.policy to skip",
            Remedy(knob="peak_lr", factor=0.5),
        )


def _forgetting(log: RunLog) -> Iterator[Finding]:
    """General loss well above where it began."""
    general = log.losses.get("general")
    if general is None or len(general) < 2 or general.steps[0] != 0:
        return
    rise = -fall(general)
    if rise > FORGOTTEN:
        replay = float(log.replay_ratios.mean()) if len(log.replay_ratios) else None
        more = None if replay is None else round(min(max(2.0 * replay, LEAST_REPLAY), 0.9), 3)
        yield _finding(
            log,
            "forgetting",
            f"loss_general ends {rise:.2f} nats above the base: its perplexity is {math.exp(rise):.2f} times as high",
            ("replay more general text" if more is None else f"raise replay_ratio from {replay:.0%} to {more:.0%}")
            + "; the first per cents remove most of it (arXiv:2403.08763: 5 % removes 0.7 of it on a strong shift)",
            None if more is None else Remedy(knob="replay_ratio", value=more),
        )


def _contamination(log: RunLog) -> Iterator[Finding]:
    """Validation that is easier than what is trained on, or training text that is known by heart."""
    series = after(log.train_loss, log.total_steps * 9 // 10)
    if len(series) < 5 or not log.tokens_by_source or "general" not in log.losses:
        return
    replay = float(log.replay_ratios[-1]) if len(log.replay_ratios) else 0.0
    ends = {name: float(values.values[-1]) for name, values in log.losses.items() if len(values)}
    domains = [ends[name] for name in log.domains if name in ends]
    if not domains or max(domains) - min(domains) > TOO_EASY:
        return  # the shares of several unlike domains are not known here
    expected = replay * ends["general"] + (1.0 - replay) * float(np.mean(domains))
    gap = float(np.median(series.values)) - expected
    if gap > TOO_EASY:
        yield _finding(
            log,
            "contamination",
            f"validation is {gap:.2f} nats easier than the text trained on: part of that, or of an easier kind?",
            "cptplan advise looks for validation text in the training shards; split by document, remove duplicates",
        )
    elif gap < -MEMORISED:
        yield _finding(
            log,
            "mix_imbalance",
            f"training loss is {-gap:.2f} nats below what validation says of the same mixture: text is read too often",
            READ_LESS,
            Remedy(knob="total_steps", factor=0.5),
        )


def _mix(log: RunLog) -> Iterator[Finding]:
    """Tokens that are not in the planned proportion, a domain that suffers, a domain read too often."""
    total = sum(log.tokens_by_source.values())
    if total and len(log.replay_ratios):
        done = int(log.train_loss.steps[-1]) if len(log.train_loss) else log.total_steps
        planned = float(log.replay_ratios[: max(done, 1)].mean())
        real = log.tokens_by_source.get("general", 0) / total
        if abs(real - planned) > OFF_PLAN:
            yield _finding(
                log,
                "mix_imbalance",
                f"{real:.1%} of the tokens were general, {planned:.1%} were planned",
                "count the ratio in tokens, not in documents; check the sources' weights",
            )
    for name in log.domains:
        passes = _passes(log, name)
        if passes > 1.0 and _worse(log, name):
            yield _finding(
                log,
                "mix_imbalance",
                f"loss_{name} ends {climb(log.losses[name]):.2f} nats above its lowest after {passes:.1f} passes over "
                "its text",
                READ_LESS,
                Remedy(knob="total_steps", factor=0.5),
            )
    falls = {name: fall(log.losses[name]) for name in log.domains if len(log.losses[name]) > 1}
    if len(falls) > 1 and min(falls.values()) < -0.02 and max(falls.values()) > 0.02:
        worst = min(falls, key=lambda name: falls[name])
        yield _finding(
            log,
            "mix_imbalance",
            f"loss_{worst} rises by {-falls[worst]:.2f} nats while other domains fall",
            f"give {worst} a larger weight",
        )


def _slow(log: RunLog) -> Iterator[Finding]:
    """Loss that falls in a straight line to the end: steps too small, or too few."""
    for name in log.domains:
        series = log.losses[name]
        if len(series) < 6 or series.steps[0] != 0 or fall(series) < LITTLE * series.values[0]:
            continue
        at = np.interp(np.array([1.0, 2.0, 3.0]) * series.steps[-1] / 3.0, series.steps, series.values)
        first, last = float(series.values[0] - at[0]), float(at[1] - at[2])
        shape = last / max(first, 1e-12)
        words = f"loss_{name} falls by {last:.3f} nats in the last third and by {first:.3f} in the first"
        if shape > EARLY:
            yield _finding(
                log,
                "lr_too_low",
                f"{words}: it goes down in a straight line",
                "raise peak_lr threefold, if the pilots support it; else train longer",
                Remedy(knob="peak_lr", factor=3.0),
            )
        elif shape > LATE:
            yield _finding(
                log,
                "too_short",
                f"{words}: it is still falling fast",
                "train twice as long",
                Remedy(knob="total_steps", factor=2.0),
            )


def _plateau(log: RunLog) -> Iterator[Finding]:
    """Loss that stands still while the rate is high."""
    rates = log.lr[log.lr > 0]
    if len(rates) and rates[-1] < HOT * rates.max():
        return
    for name in log.domains:
        series = log.losses[name]
        if len(series) < 6 or fall(series) < LITTLE * series.values[0]:
            continue
        middle = float(np.interp(series.steps[-1] / 2.0, series.steps, series.values))
        rest = middle - float(np.median(series.values[-2:]))
        if abs(rest) < FLAT * series.values[0]:
            yield _finding(
                log,
                "plateau",
                f"loss_{name} moves by {rest:+.3f} nats in the second half, at a high rate",
                "let the rate fall now (the last fifth of the steps is usual, arXiv:2408.11029), or stop",
                Remedy(knob="decay_share", value=0.3),
            )


def _worse(log: RunLog, name: str) -> bool:
    """Whether a learnt set ends clearly above its own lowest."""
    series = log.losses[name]
    return len(series) >= 5 and climb(series) > max(WORSE, 4.0 * roughness(series))


def _passes(log: RunLog, name: str) -> float:
    """Passes over the training text of a domain so far; 1 when it is not known."""
    there, read = log.unique_tokens.get(name, 0), log.tokens_by_source.get(name, 0)
    return read / there if there and read else 1.0
