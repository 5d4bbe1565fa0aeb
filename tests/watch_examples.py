"""A campaign whose law is known, and runs under it as they would lie on disk while they are trained."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from command_line import model_config

from cptplan import decide
from cptplan.config import read_project
from cptplan.curves import CurveRecord, LossCurve, write_curve
from cptplan.fitting.fitted import FittedLaw, HeldOut
from cptplan.fitting.select import Selection
from cptplan.fitting.separable import Solution
from cptplan.fitting.store import write_fit
from cptplan.fitting.support import Support
from cptplan.fitting.verdict import Verdict
from cptplan.laws.history import RunHistory, history_of
from cptplan.mixture import ConstantMixture
from cptplan.run_spec import default_eval_steps
from cptplan.schedule import read_schedule
from cptplan.simulation.known_law import KnownLaw
from cptplan.simulation.published import find_published
from cptplan.simulation.simulation import simulate_curves
from cptplan.watch.model import CurveModel, Points
from cptplan.watch.run import WatchedRun, find_run, read_watched
from cptplan.watch.watch import Watcher, open_watcher
from cptplan.workspace import Workspace

PUBLISHED = find_published("knowledge-pile")
BASE = PUBLISHED.pretrain_record()
BATCH = BASE.batch_tokens or 1
END = int(BASE.lr.total_steps)
STABLE = round(0.8 * END)
NOISE = 0.002
FIT = "0123456789ab"
STEPS = 2000
LR = {"kind": "wsd", "peak_lr": 1e-4, "total_steps": STEPS, "warmup_steps": 20, "decay_steps": 400}
PROJECT = f"""
schema_version: 1
name: watched
model:
  starts:
    - {{name: stable, path: stable, parent: base, parent_step: {STABLE}}}
    - {{name: annealed, path: annealed, parent: base, parent_step: {END}}}
  pretrain_peak_lr: {PUBLISHED.peak_lr}
data:
  general: {{name: general, path: general.jsonl}}
  domains:
    - {{name: domain, path: domain.jsonl}}
  seq_len: 4096
budget: {{tokens: {STEPS * BATCH}, num_devices: 8}}
pilot:
  total_steps: 400
  batch_tokens: {BATCH}
  num_runs: 6
  warmup_steps: 20
"""


@cache
def truth() -> dict[str, KnownLaw]:
    return PUBLISHED.laws(replay="logarithmic")


def fitted(name: str) -> FittedLaw:
    """The truth, with six fits that differ from it by two thousandths in their linear parameters."""
    known, rng = truth()[name], np.random.default_rng(3)

    def solution(factors: Any) -> Solution:
        return Solution(
            values=known.values,
            coefficients=known.coefficients * factors,
            scale=NOISE,
            objective=0.0,
            converged=True,
        )

    count = len(known.coefficients)
    return FittedLaw(
        set_name=name,
        law=known.law,
        best=solution(np.ones(count)),
        left_out=tuple(solution(1 + 0.002 * rng.standard_normal(count)) for _ in range(6)),
        held_out=(HeldOut(curve="pilot-01", peak_lr=1e-4, late_error=0.002, end_error=0.002, late_bias=0.001),) * 2,
        in_sample_error=0.002,
        transient_error=0.002,
        settled_step=40,
        support=Support(
            peak_lr=(1e-5, 3e-4),
            replay_ratio=(0.0, 0.6),
            longest_steps=400,
            longest_area=400.0,
            loss_potential=(0.0, 1.0),
            most_passes=1.0,
            num_params=(1e8, 1e8),
            batch_tokens=BATCH,
        ),
        noise=NOISE,
    )


def models() -> dict[str, CurveModel]:
    return {name: CurveModel(law=fitted(name)) for name in truth()}


def record(replay: float = 0.2, parent_step: int = END, lr_factor: float = 1.0, **changes: Any) -> CurveRecord:
    """The planned run of the tests of the model, or another."""
    lr = read_schedule({**LR, "peak_lr": LR["peak_lr"] * lr_factor}, "test")
    mixture = ConstantMixture(replay_ratio=replay)
    started = {"phase": "cpt", "parent": "base", "parent_step": parent_step, "num_params": 100_000_000}
    return BASE.model_copy(update={**started, "lr": lr, "replay_ratio": mixture, **changes})


def history(made: CurveRecord) -> RunHistory:
    bare = {
        name: LossCurve(name=name, record=one, steps=np.zeros(1, dtype=np.int64), losses={})
        for name, one in (("base", BASE), ("run", made))
    }
    return history_of(bare["run"], bare)


def evaluated(total: int = STEPS) -> np.ndarray:
    steps = np.array(default_eval_steps(total), dtype=np.int64)
    return steps[(steps == 0) | (steps >= 40)]


def losses(made: CurveRecord, steps: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """What a run gives at some steps, with the noise of an evaluation."""
    curves = simulate_curves(truth(), {"base": BASE, "run": made}, steps={"run": steps})
    rng = np.random.default_rng(seed)
    return {name: loss * (1 + NOISE * rng.standard_normal(len(loss))) for name, loss in curves["run"].losses.items()}


def points(made: CurveRecord, seed: int = 0) -> dict[str, Points]:
    steps = evaluated(int(made.lr.total_steps))
    return {name: Points(steps=steps, loss=loss) for name, loss in losses(made, steps, seed).items()}


@dataclass(frozen=True)
class Campaign:
    """A campaign directory with a fit and a plan."""

    config: Path
    root: Path

    def watcher(self) -> Watcher:
        return open_watcher(read_project(self.config), Workspace(root=self.root))

    def look(self, run: Path):
        return self.watcher().look(self.read(run))

    def read(self, run: Path) -> WatchedRun:
        return read_watched(find_run(str(run), self.root))

    def planned_record(self, **changes: Any) -> CurveRecord:
        """The curve's record of a run that follows the plan, or one that does not."""
        chosen = self.watcher().plan.chosen
        start = {"stable": STABLE, "annealed": END}[chosen.start]
        return record(parent_step=start).model_copy(
            update={"lr": chosen.schedule, "replay_ratio": chosen.mixture, **changes}
        )

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("-c", str(self.config), "-o", str(self.root))


@cache
def make_campaign(directory: Path) -> Campaign:
    """Curves of a base and the designed pilots; a fit that knows the truth; a plan from it. Once for a directory."""
    directory.mkdir()
    (directory / "cptplan.yaml").write_text(PROJECT)
    for name in ("stable", "annealed"):
        (directory / name).mkdir()
        (directory / name / "config.json").write_text(json.dumps(model_config(512)))
    project = read_project(directory / "cptplan.yaml")
    starts = [start.model_copy(update={"path": str(directory / start.name)}) for start in project.model.starts]
    text = PROJECT
    for start in starts:
        text = text.replace(f"path: {start.name}", f"path: {start.path}")
    (directory / "cptplan.yaml").write_text(text)
    workspace = Workspace(root=directory / "campaign")
    made = {"base": BASE, **_pilots(directory / "cptplan.yaml")}
    for curve in simulate_curves(truth(), made).values():
        write_curve(workspace.curves, curve)
    verdict = Verdict(converged=True, at_bound=(), prior_decides=(), residual_correlation=0.0, unidentified=())
    laws = {name: unsized(fitted(name)) for name in truth()}
    selections = {
        name: Selection(fitted=law, candidates=(), verdict=verdict, reason="known") for name, law in laws.items()
    }
    write_fit(workspace.fits / FIT, FIT, selections, {})
    workspace.set_latest("fits", FIT)
    project = read_project(directory / "cptplan.yaml")
    decide.optimize(project, workspace, {"general": 0.4, "domain": 0.6}, trials=2)
    return Campaign(config=directory / "cptplan.yaml", root=workspace.root)


def unsized(law: FittedLaw) -> FittedLaw:
    """The law without a model size, because the project's model is a toy's."""
    return replace(law, support=law.support.model_copy(update={"num_params": None}))


def _pilots(config: Path) -> dict[str, CurveRecord]:
    from cptplan.pilots.design import pilot_specs

    return {
        spec.name: record(
            parent_step=spec.parent_step, lr=spec.schedule, replay_ratio=spec.mixture, num_params=100_000_000
        )
        for spec in pilot_specs(read_project(config), "data")
    }


def write_run(
    directory: Path,
    told: CurveRecord,
    real: CurveRecord | None = None,
    *,
    share: float = 1.0,
    bump: dict[str, np.ndarray] | None = None,
    seed: int = 0,
) -> Path:
    """A run directory as the executor leaves it: its record says `told`, its losses and its log are those of `real`.

    Args:      share: of the run that is done. bump: nats added to the losses, by set.
    """
    real = real or told
    total = int(told.lr.total_steps)
    steps = np.array(default_eval_steps(total), dtype=np.int64)
    found = losses(real, steps, seed)
    done = round(share * total)
    keep = steps <= done
    kept = {name: (loss + (bump or {}).get(name, 0.0))[keep] for name, loss in found.items()}
    write_curve(directory, LossCurve(name="curve", record=told, steps=steps[keep], losses=kept))
    rates, replay = real.lr.lr(), real.replay_ratio.replay_ratios(total)
    lines = []
    for step in range(1, done + 1, 10):
        general = float(replay[:step].sum()) * BATCH
        tokens = {"general": round(general), "domain": round(step * BATCH - general)}
        lines.append({"step": step, "lr": float(rates[step - 1]), "train_loss": 3.0, "tokens_by_source": tokens})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_progress(directory, done, total)
    if share == 1.0:
        (directory / "result.json").write_text("{}")
    return directory


def write_progress(directory: Path, done: int, total: int, age: float = 0.0) -> None:
    path = directory / "progress.json"
    path.write_text(json.dumps({"done": done, "total": total, "unit": "steps", "message": "training"}))
    os.utime(path, (time.time() - age,) * 2)
