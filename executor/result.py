"""What a run says of itself: its readings at an evaluation, its result, its model card."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import accelerate
import torch
import transformers

from cptplan.run_spec import RunSpec
from executor.checkpoint import Position
from executor.curve_log import CurveLog
from executor.export import GENERAL, ModelCard
from executor.parts import Parts
from executor.watching import Watchers


def about(spec: RunSpec) -> dict[str, str | float]:
    """What a tracker shows beside the curves of a run."""
    return {
        "spec_hash": spec.hash,
        "schedule": spec.schedule.kind,
        "peak_lr": float(spec.lr().max()),
        "replay_ratio": float(spec.replay_ratios().mean()),
        "total_steps": spec.total_steps,
        "batch_tokens": spec.batch_tokens,
        "seed": spec.seed,
    }


def readings(
    losses: Mapping[str, float], first: Mapping[str, float] | None, bytes_per_token: Mapping[str, float]
) -> dict[str, Any]:
    """What losses mean: perplexity, bits per byte (which models of other tokenizers share), forgetting_ratio.

    Args:      losses: now, by set, nats per token. first: before the first step; None where there was nothing to
               forget. bytes_per_token: by set.
    """
    found: dict[str, Any] = {
        "perplexity": {name: _exp(loss) for name, loss in losses.items()},
        "bits_per_byte": {name: loss / math.log(2) / bytes_per_token[name] for name, loss in losses.items()},
    }
    if first is not None and GENERAL in losses:
        found["forgetting_ratio"] = _exp(losses[GENERAL] - first[GENERAL])
    return found


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # beyond, float64 has no number


def run_result(spec: RunSpec, parts: Parts, position: Position, log: CurveLog, watchers: Watchers) -> dict[str, Any]:
    """The content of result.json."""
    device, steps = parts.accelerator.device, position.step
    tokens = steps * spec.batch_tokens
    learnt = watchers.weights
    return {
        "schema_version": 1,
        "spec_hash": spec.hash,
        "name": spec.name,
        "losses": log.final_losses,
        "eval_tokens": {data.name: data.num_tokens for data in parts.validation},
        "steps": steps,
        "stopped_early": steps < spec.total_steps,
        "interventions": [asdict(done) for done in watchers.interventions],
        **({"domain_weights": {"average": learnt.average, "last": learnt.weights}} if learnt is not None else {}),
        "tokens": tokens,
        "tokens_by_source": parts.data.tokens_by_source(steps),
        "num_params": parts.num_params,
        "num_params_total": parts.num_params_total,
        "train_seconds": round(position.train_seconds, 3),
        "eval_seconds": round(position.eval_seconds, 3),
        "wall_seconds": round(position.wall_seconds, 3),
        "tokens_per_second": round(tokens / position.train_seconds, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_processes": parts.accelerator.num_processes,
        "num_threads": torch.get_num_threads(),
        "exports": [f"export/step-{step}" for step in sorted({*(s for s in spec.keep_steps if s < steps), steps})],
        "versions": versions(),
    }


def model_card(spec: RunSpec, parts: Parts, step: int, log: CurveLog) -> ModelCard:
    """The card of the weights after a step."""
    return ModelCard(
        spec=spec,
        step=step,
        tokens_by_source=parts.data.tokens_by_source(step),
        losses_start=log.losses(0),
        losses_now=log.losses(step),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """What the run was computed with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }
