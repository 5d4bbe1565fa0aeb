"""Virtual campaigns at many pilot budgets: python simulate.py. Adds what is missing to campaigns.json.

Every seed draws a truth, a form of replay, weights and a noise, and is rehearsed at every budget: the same campaign
with another share of compute, another number of pilots, or some of them advised instead of designed.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: one process, one thread

import numpy as np

from cptplan.decide import METHOD
from cptplan.files import read_json, write_json
from cptplan.planning.knobs import Space
from cptplan.planning.search import Evaluated, grid, polish, rank
from cptplan.rehearsal.rehearse import OURS, POLISHED, Setting, run_campaign, true_forecaster
from cptplan.rehearsal.setting import default_project, published_setting, with_pilot_share
from cptplan.simulation.published import ReplayForm, find_published
from cptplan.simulation.virtual_lab import SIZES, TRUTHS

HERE = Path(__file__).resolve().parent
LOG = logging.getLogger("pilot_budget")
FIRST_SEED, SEEDS = 7000, 24
WEIGHTS = (0.2, 0.4, 0.6, 0.8)  # of general loss
REPLAYS: tuple[ReplayForm, ReplayForm] = ("exponential", "logarithmic")
ADVISED = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What is spent on pilots."""

    designed: int
    share: float
    """Tokens of all pilots, advised ones too, over those of the final run."""
    advised: int = 0

    @property
    def name(self) -> str:
        """Unique."""
        return f"{self.designed}" + (f"+{self.advised}" if self.advised else "") + f"@{self.share:.3g}"


SHARES = tuple(Budget(designed=8, share=share) for share in (0.02, 0.05, 0.1, 0.2, 0.4))
NUMBERS = tuple(Budget(designed=number, share=0.1) for number in (6, 8, 12, 16))
FEWER = Budget(designed=8, share=0.1 * 8 / 12)  # pilots as long as those of 12 that cost a tenth
NEXT = Budget(designed=8, advised=ADVISED, share=0.1)
ROUNDS = (tuple(dict.fromkeys((*SHARES, *NUMBERS))), (FEWER, NEXT))


def main() -> None:
    """Rehearse what is not there yet."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--out", type=Path, default=HERE / "campaigns.json")
    options = parser.parse_args()
    kept = read_json(options.out) if options.out.exists() else {}
    if kept.get("method") != METHOD:
        kept = {"rows": [], "best": {}}  # an older cptplan made other laws of the same curves
    rows: list[dict[str, Any]] = kept["rows"]
    best: dict[str, dict[str, float]] = kept["best"]
    there = {(row["seed"], row["budget"]) for row in rows}
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for seed, budget in ((seed, budget) for budgets in ROUNDS for seed in seeds for budget in budgets):
        if (seed, budget.name) not in there:
            row, space = campaign_row(seed, budget)
            rows.append(row)
            if str(seed) not in best:
                best[str(seed)] = best_run(setting_of(seed, budget)[0], space)
            write_json(options.out, {"schema_version": 1, "method": METHOD, "best": best, "rows": rows})
            LOG.info("%d %s %.0f s", seed, budget.name, row["cpu_seconds"])


def setting_of(seed: int, budget: Budget) -> tuple[Setting, dict[str, Any]]:
    """A setting drawn at random, weights and forms of replay in turn, at a budget; and what was drawn."""
    rng = np.random.default_rng([seed, 12])
    law = TRUTHS[rng.integers(len(TRUTHS))]
    size = float(np.exp(rng.uniform(*np.log(SIZES))))
    noise = float(np.exp(rng.uniform(*np.log((0.002, 0.01)))))
    general, replay = WEIGHTS[seed % len(WEIGHTS)], REPLAYS[seed // len(WEIGHTS) % 2]
    project = default_project(find_published(law))
    pilot = project.pilot.model_copy(update={"num_runs": budget.designed})
    own = budget.share * budget.designed / (budget.designed + budget.advised)
    setting = published_setting(
        law,
        with_pilot_share(project.model_copy(update={"pilot": pilot}), own),
        {"general": general, "domain": 1.0 - general},
        noise_nats=noise,
        num_next=budget.advised,
        replay_form=replay,
        num_params=round(size) if law == "knowledge-pile-sizes" else None,
    )
    return setting, {"truth": law, "replay": replay, "general": general, "noise_nats": round(noise, 5)}


def campaign_row(seed: int, budget: Budget) -> tuple[dict[str, Any], Space]:
    """One campaign at one budget, and the space of its plan."""
    before = time.process_time()
    setting, drawn = setting_of(seed, budget)
    found = run_campaign(setting, seed)
    plan = found.plans[OURS]
    row = {
        "seed": seed,
        "budget": budget.name,
        **drawn,
        "pilot_steps": setting.project.pilot.total_steps,
        "objectives": {name: round(value, 6) for name, value in found.objectives.items()},
        "plan": [float(f"{plan.peak_lr:.4g}"), round(plan.replay_ratio, 4), round(plan.decay_share, 3), plan.start],
        "predicted": round(found.predicted, 6),
        "half_width": round(found.half_width, 6),
        "inside": found.inside["objective"],
        "cpu_seconds": round(time.process_time() - before, 2),
    }
    return row, found.space


def best_run(setting: Setting, space: Space) -> dict[str, float]:
    """Objective and weighted loss that the best run of a space has in truth, at the full length, as all contenders."""
    truth = true_forecaster(setting)
    tried = [Evaluated(knobs=knobs, score=truth.rough(knobs)) for knobs in grid(space, shares=(1.0,))]
    found = min((polish(truth.rough, space, one) for one in sorted(tried, key=rank)[:POLISHED]), key=rank).score
    loss = sum(weight * found.losses[name] for name, weight in setting.weights.items())
    return {"objective": round(found.objective, 6), "loss": round(loss, 5)}


if __name__ == "__main__":
    main()
