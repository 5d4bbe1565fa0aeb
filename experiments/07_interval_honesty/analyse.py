"""Answer the question from kept curves and virtual campaigns: python analyse.py [--curves DIR] [--out DIR] [--fast].

Writes results.json, results.md and figure.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from drawing import draw
from numpy.typing import NDArray
from summaries import LEVELS, markdown, summaries

from cptplan.curves import LossCurve, read_curve_directory
from cptplan.files import write_json, write_text
from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.select import select_law, sets_of, side_of
from cptplan.laws.history import RunHistory, history_of
from cptplan.simulation.virtual_lab import draw_lab, run_lab

FloatArray = NDArray[np.float64]

HERE = Path(__file__).resolve().parent
EXPERIMENTS = HERE.parent
CURVES = EXPERIMENTS / "04_curve_set" / "curves"
LABS = ("prose_code", "wiki_medicine")
EARLIER = {
    "first": EXPERIMENTS / "03_forms_of_the_law" / "campaigns" / "first",
    "second": EXPERIMENTS / "01_predict_longer" / "curves",
    "third": EXPERIMENTS / "03_forms_of_the_law" / "campaigns" / "third",
    "fourth": EXPERIMENTS / "03_forms_of_the_law" / "campaigns" / "fourth",
}
VIRTUAL, FIRST_SEED = 30, 7000  # seeds that nothing was chosen on
UNTRAINED = {"novels"}  # sets that no run trains on: their tokens are not the domain's
QUANTILES = (0.8, 0.6, 0.4, 0.2)  # levels whose ends cut the predicted distribution into tenths, with its mean
FLAGS = {
    "peak rate": "peak rate",
    "replay ratio": "replay ratio",
    "steps are": "length",
    "forward area": "forward area",
    "loss potential": "start",
    "are read": "repetition",
    "rate 0": "steps at rate 0",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Campaign:
    """Curves of one lab: a fit sees base and pilots."""

    origin: str
    name: str
    curves: Mapping[str, LossCurve]
    fast: bool = False

    @property
    def seen(self) -> dict[str, LossCurve]:
        """Base and pilots."""
        return {name: curve for name, curve in self.curves.items() if is_seen(name)}

    @property
    def unseen(self) -> list[LossCurve]:
        """All others at the pilots' batch; the tool refuses another."""
        batch = next(c.record.batch_tokens for c in self.seen.values())
        found = [c for name, c in self.curves.items() if not is_seen(name) and c.record.batch_tokens == batch]
        return found[: 3 if self.fast else None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One run on one validation set: where the measured values fell in what was predicted."""

    origin: str
    campaign: str
    set_name: str
    run: str
    kind: str
    length: float
    """Steps over those of the longest pilot."""
    flags: tuple[str, ...]
    end_error: float
    """Relative error of the mean."""
    half_width: float
    """Half the 90 % interval at the end over the loss."""
    end_inside: tuple[bool, ...]
    """By level."""
    points_inside: tuple[float, ...]
    """Share of the points from the first fitted step on, by level."""
    end_tenth: int
    """Tenth of the predicted distribution that the end fell in."""
    point_tenths: tuple[float, ...]
    """Share of the points in each tenth."""


def is_seen(name: str) -> bool:
    """Base and pilots (p1 ... in the first campaign)."""
    return name == "base" or name.startswith("p")


def main(curves_dir: Path = CURVES, out: Path = HERE, *, fast: bool = False) -> None:
    """Predict every unseen run with intervals of several levels, and count."""
    found = [verdict for campaign in campaigns(curves_dir, fast=fast) for verdict in judge(campaign)]
    summary = summaries(found)
    rows = [
        {key: compact(value) for key, value in asdict(v).items() if key != "point_tenths"}
        for v in found
        if v.origin != "virtual"
    ]
    write_json(out / "results.json", {"schema_version": 1, "levels": LEVELS, **summary, "runs": rows})
    write_text(out / "results.md", markdown(summary))
    draw(found, summary, out / "figure.png")


def campaigns(curves_dir: Path, *, fast: bool) -> Iterable[Campaign]:
    """The curve set, the earlier campaigns, and virtual ones."""
    labs = [lab for lab in LABS if (curves_dir / lab).is_dir()]
    for lab in labs[: 1 if fast else None]:
        yield Campaign(origin="curve set", name=lab, curves=read(curves_dir / lab), fast=fast)
    for name, directory in list(EARLIER.items())[: 1 if fast else None]:
        yield Campaign(origin="earlier", name=name, curves=read(directory), fast=fast)
    for seed in range(FIRST_SEED, FIRST_SEED + (1 if fast else VIRTUAL)):
        lab = run_lab(draw_lab(seed))
        yield Campaign(origin="virtual", name=str(seed), curves={**lab.seen, **lab.finals}, fast=fast)


def read(directory: Path) -> dict[str, LossCurve]:
    """The curves of a directory, each with the unique tokens of what it may draw from."""
    found = {}
    for name, curve in read_curve_directory(directory).items():
        unique = {key: n for key, n in (curve.record.unique_tokens or {}).items() if key not in UNTRAINED}
        found[name] = replace(curve, record=curve.record.model_copy(update={"unique_tokens": unique or None}))
    return found


def judge(campaign: Campaign) -> list[Verdict]:
    """Every unseen run on every validation set."""
    seen, found = campaign.seen, []
    for set_name in sets_of(seen)[: 1 if campaign.fast else None]:
        fitted = select_law(seen, set_name, side_of(set_name, seen), where=campaign.name).fitted
        found += [verdict(campaign, fitted, run) for run in campaign.unseen if set_name in run.losses]
    return found


def verdict(campaign: Campaign, fitted: FittedLaw, run: LossCurve) -> Verdict:
    """One run against the intervals that `cptplan predict` gives beside measured losses."""
    history = history_of(run, campaign.curves)
    steps = run.steps[run.steps >= fitted.settled_step]
    loss = run.losses[fitted.set_name][-len(steps) :]

    @lru_cache
    def band(level: float) -> tuple[FloatArray, FloatArray]:
        found = fitted.predict(history, steps, level, measured=True)
        return found.low, found.high

    inside = [(band(level)[0] <= loss) & (loss <= band(level)[1]) for level in LEVELS]
    mean = fitted.mean(history, steps)
    edges = [*(band(q)[0] for q in QUANTILES), mean, *(band(q)[1] for q in reversed(QUANTILES))]
    tenth = np.sum(np.stack(edges) < loss, axis=0)
    low, high = band(0.9)
    return Verdict(
        origin=campaign.origin,
        campaign=campaign.name,
        set_name=fitted.set_name,
        run=run.name,
        kind=kind_of(campaign.origin, run),
        length=run.total_steps / max(fitted.support.longest_steps, 1),
        flags=flag_names(fitted, history),
        end_error=float(mean[-1] / loss[-1] - 1.0),
        half_width=float((high[-1] - low[-1]) / 2.0 / loss[-1]),
        end_inside=tuple(bool(i[-1]) for i in inside),
        points_inside=tuple(float(i.mean()) for i in inside),
        end_tenth=int(tenth[-1]),
        point_tenths=tuple((np.bincount(tenth, minlength=10) / len(tenth)).tolist()),
    )


def kind_of(origin: str, run: LossCurve) -> str:
    """The group of cells.py in the curve set, else the kind of schedule."""
    return run.name.split("-")[0] if origin == "curve set" else f"{origin}, {run.record.lr.kind}"


def flag_names(fitted: FittedLaw, history: RunHistory) -> tuple[str, ...]:
    """What the support flags are about, a word or two each."""
    said = fitted.support.flags(history, fitted.law.reference_lr)
    return tuple(word for part, word in FLAGS.items() if any(part in sentence for sentence in said))


def compact(value: object) -> object:
    """Six digits."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args()
    main(options.curves, options.out, fast=options.fast)
