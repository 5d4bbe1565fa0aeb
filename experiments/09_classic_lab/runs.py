"""The runs of the classic lab: one base, one length, seven ways of adapting it.

Every method has its own small sweep: two or three peak rates (LoRA's three to ten times higher, at two ranks), for EWC
two strengths and two rates. L2, the frozen embedding and the ramp were tried once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cptplan.mixture import ConstantMixture, Mixture, RampMixture
from cptplan.run_options import Anchor, Lora
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet, default_eval_steps
from cptplan.schedule import CosineSchedule

STEPS, WARMUP, SEQ_LEN, BATCH_TOKENS = 150, 10, 256, 2048
VALIDATION_TOKENS = 8192  # what the base run was evaluated on
BASE = Path("runs/base/export/step-1200")
NO_REPLAY = ConstantMixture(replay_ratio=0.0)
EMBEDDING = "model.embed_tokens.*"  # the output layer too, which is tied to it


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run: a method and its settings."""

    method: str
    peak_lr: float
    mixture: Mixture = NO_REPLAY
    lora_rank: int | None = None
    anchor: Anchor | None = None
    freeze: tuple[str, ...] = ()
    seed: int = 0

    @property
    def name(self) -> str:
        """The settings, spelt out."""
        parts = [self.method, f"lr{self.peak_lr:.0e}".replace("e-0", "e-")]
        parts += [f"s{self.anchor.strength:g}"] if self.anchor is not None else []
        parts += [f"seed{self.seed}"] if self.seed else []
        return "-".join(parts)


def _pure(peak_lr: float, seed: int = 0) -> Run:
    return Run(method="pure", peak_lr=peak_lr, seed=seed)


def _replay(percent: int, peak_lr: float, seed: int = 0) -> Run:
    mixture = ConstantMixture(replay_ratio=percent / 100)
    return Run(method=f"replay{percent}", peak_lr=peak_lr, mixture=mixture, seed=seed)


def _lora(rank: int, peak_lr: float) -> Run:
    return Run(method=f"lora{rank}", peak_lr=peak_lr, lora_rank=rank)


def _pulled(kind: str, strength: float, peak_lr: float) -> Run:
    return Run(method=kind, peak_lr=peak_lr, anchor=Anchor.parse({"kind": kind, "strength": strength}, kind))


RUNS = (
    *(_pure(rate) for rate in (1e-3, 3e-3, 3e-4)),
    *(_replay(30, rate) for rate in (1e-3, 3e-3, 1e-2)),
    _replay(5, 1e-3),
    _lora(8, 1e-2),
    _pulled("ewc", 3.0, 1e-3),
    Run(method="ramp", peak_lr=3e-3, mixture=RampMixture(kind="ramp", start_ratio=0.5, end_ratio=0.1, end_step=STEPS)),
    _lora(8, 3e-3),
    _replay(30, 3e-3, seed=1),
    _pure(1e-3, seed=1),
    Run(method="freeze", peak_lr=1e-3, freeze=(EMBEDDING,)),
    _pulled("l2", 0.1, 1e-3),
    _replay(5, 3e-3),
    _lora(8, 3e-2),
    _lora(64, 3e-3),
    _lora(64, 1e-2),
    _pulled("ewc", 30.0, 1e-3),
    _replay(30, 3e-3, seed=2),
    _pure(1e-3, seed=2),
    _pulled("ewc", 30.0, 3e-3),
)
"""In the order in which they are trained."""
SOUPS = ("pure-lr1e-3", "pure-lr3e-3", "replay30-lr3e-3")
"""Runs whose ends are averaged with the base."""


def spec_of(run: Run, lab: Path) -> RunSpec:
    """The spec of a run on the corpora and the base of a lab of experiments/04_curve_set."""
    data = lab / "data"
    sets = {"general": data / "general", "domain": data / "domain"}
    return RunSpec(
        name=run.name,
        phase="cpt",
        model=ModelSource(path=str(lab / BASE)),
        sources=tuple(
            Source(name=name, role="general" if name == "general" else "domain", path=str(path))
            for name, path in sets.items()
        ),
        validation=tuple(
            ValidationSet(name=name, path=str(path), num_tokens=VALIDATION_TOKENS) for name, path in sets.items()
        ),
        schedule=CosineSchedule(kind="cosine", peak_lr=run.peak_lr, total_steps=STEPS, warmup_steps=WARMUP),
        mixture=run.mixture,
        seq_len=SEQ_LEN,
        batch_tokens=BATCH_TOKENS,
        precision="bf16",
        seed=run.seed,
        eval_steps=default_eval_steps(STEPS, 12),
        freeze=run.freeze,
        lora=Lora(rank=run.lora_rank, alpha=2.0 * run.lora_rank) if run.lora_rank is not None else None,
        anchor=run.anchor,
        parent="base",
        parent_step=1200,
    )
