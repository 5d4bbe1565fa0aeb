"""Logs of runs that nobody trained: power laws with noise, and what goes wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from cptplan.advice.run_log import RunLog, Series
from cptplan.curves import CurveRecord, LossCurve, write_curve
from cptplan.mixture import ConstantMixture
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet, default_eval_steps, write_run_spec
from cptplan.schedule import WsdSchedule

STEPS, PEAK, REPLAY, WARMUP = 1000, 1e-3, 0.3, 20
SCHEDULE = WsdSchedule(kind="wsd", peak_lr=PEAK, total_steps=STEPS, warmup_steps=WARMUP, decay_steps=200)
GENERAL, DOMAIN = 3.0, 4.0


def domain_loss(steps):
    """A power law of the shift and a gain from the decay: 4.0 to about 3.2."""
    annealed = np.clip((np.asarray(steps) - 800) / 200, 0, 1)
    return DOMAIN - 0.8 * (1 - (1 + 0.2 * np.asarray(steps)) ** -0.3) - 0.05 * annealed


def general_loss(steps):
    """A small rise that the decay mostly takes back."""
    annealed = np.clip((np.asarray(steps) - 800) / 200, 0, 1)
    return GENERAL + 0.06 * (1 - np.exp(-np.asarray(steps) / 50)) - 0.04 * annealed


def series(steps, values) -> Series:
    return Series(steps=np.asarray(steps, dtype=np.int64), values=np.asarray(values, dtype=np.float64))


def healthy(seed: int = 0, **changes) -> RunLog:
    """A run as it should be, with the noise of batches and of evaluations."""
    rng = np.random.default_rng(seed)
    every = np.arange(1, STEPS + 1)
    evaluated = np.array(default_eval_steps(STEPS))
    mixed = REPLAY * general_loss(every) + (1 - REPLAY) * domain_loss(every)
    log = RunLog(
        name="run",
        directory=Path("run"),
        losses={
            "general": series(evaluated, general_loss(evaluated) + 0.003 * rng.standard_normal(len(evaluated))),
            "domain": series(evaluated, domain_loss(evaluated) + 0.003 * rng.standard_normal(len(evaluated))),
        },
        train_loss=series(every, mixed + 0.05 * rng.standard_normal(STEPS)),
        grad_norm=series(every, 1.0 + 0.1 * rng.standard_normal(STEPS)),
        lr=SCHEDULE.lr(),
        replay_ratios=np.full(STEPS, REPLAY),
        tokens_by_source={"general": 300_000, "domain": 700_000},
        unique_tokens={"general": 10**7, "domain": 10**6},
    )
    return replace(log, **changes)


def with_losses(log: RunLog, **losses) -> RunLog:
    """The log with other validation losses, functions of the step."""
    given = {name: series(log.losses["domain"].steps, law(log.losses["domain"].steps)) for name, law in losses.items()}
    return replace(log, losses={**log.losses, **given})


def write_log(directory: Path, log: RunLog, *, broken_end: bool = False) -> Path:
    """The log as a run directory."""
    spec = RunSpec(
        name=directory.name,
        phase="cpt",
        model=ModelSource(path="org/base"),
        sources=(Source(name="general", role="general", path="g"), Source(name="domain", role="domain", path="d")),
        validation=tuple(ValidationSet(name=name, path=name, num_tokens=16) for name in ("general", "domain")),
        schedule=SCHEDULE,
        mixture=ConstantMixture(replay_ratio=REPLAY),
        seq_len=10,
        batch_tokens=1000,
    )
    directory.mkdir(parents=True)
    write_run_spec(directory / "spec.json", spec)
    evaluated = log.losses["general"].steps
    losses = {name: values.values for name, values in log.losses.items()}
    curve = LossCurve(
        name="curve",
        record=CurveRecord(
            phase="cpt",
            lr=SCHEDULE,
            replay_ratio=ConstantMixture(replay_ratio=REPLAY),
            batch_tokens=1000,
            unique_tokens=dict(log.unique_tokens),
        ),
        steps=evaluated,
        losses=losses,
    )
    write_curve(directory, curve)
    lines = []
    for row, step in enumerate(log.train_loss.steps.tolist()):
        loss = float(log.train_loss.values[row])
        lines.append(
            {
                "step": step,
                "lr": float(log.lr[step - 1]),
                "train_loss": loss if np.isfinite(loss) else None,
                "grad_norm": float(log.grad_norm.values[row]),
                "tokens_by_source": {name: count * step // STEPS for name, count in log.tokens_by_source.items()},
            }
        )
    lines += [
        {"step": int(step), **{f"loss_{name}": float(values[row]) for name, values in losses.items()}}
        for row, step in enumerate(evaluated)
    ]
    lines += [{"step": step, "event": kind, "text": text} for step, kind, text in log.events]
    text = "".join(json.dumps(line) + "\n" for line in sorted(lines, key=lambda line: line["step"]))
    (directory / "metrics.jsonl").write_text(text + ('{"step": 10' if broken_end else ""))
    return directory
