"""How well a fit predicts curves: errors and coverage, curve by curve and on average. Reads files, prints nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from cptplan.curves import LossCurve, read_curve_directory, select_names
from cptplan.errors import CurveError
from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.store import read_fit
from cptplan.laws.history import RunHistory, history_of
from cptplan.simulation.known_law import check_start


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """How one predicted curve, or the mean of several, agrees with the measured one."""

    mape: float
    """Mean absolute relative error."""
    rmse: float
    """Root mean square error, nats per token."""
    worst: float
    """Largest absolute relative error."""
    r2: float | None
    """Share of the variance of the loss along the curve that is predicted; below 0: worse than the curve's own mean.
    None for a curve of one value."""
    coverage90: float
    """Share of measured points inside the 90 % interval of a measured value."""
    end_error: float
    """Absolute relative error at the last point."""


def score_curve(law: FittedLaw, curve: LossCurve, curves: Mapping[str, LossCurve]) -> Metrics:
    """Compare a fitted law with a measured curve at every logged point; of pre-training, after its warm-up.

    Raises:    CurveError if the curve has no such point; ConfigError if its start or its batch size is not what the law
               was fitted with.
    """
    history, loss = history_of(curve, curves), curve.losses[law.set_name]
    check_start(law.law, history, curve.name)
    law.support.check_batch(history, curve.name)
    keep = np.isfinite(loss) & (curve.steps > warmup_steps(history))
    if not keep.any():
        raise CurveError(
            f"a curve must have a point of loss_{law.set_name} after its warm-up; got none in {curve.name}.",
            hint="leave it out of --test",
        )
    steps, measured = curve.steps[keep], loss[keep]
    band = law.predict(history, steps, measured=True)
    error = band.mean - measured
    relative = np.abs(error / measured)
    spread = float(np.sum((measured - measured.mean()) ** 2))
    return Metrics(
        mape=float(relative.mean()),
        rmse=float(np.sqrt(np.mean(error**2))),
        worst=float(relative.max()),
        r2=1.0 - float(np.sum(error**2)) / spread if spread > 0 else None,
        coverage90=float(np.mean((measured >= band.low) & (measured <= band.high))),
        end_error=float(relative[-1]),
    )


def warmup_steps(history: RunHistory) -> int:
    """Steps of a pre-training run that no law describes; -1 for CPT, whose first loss is measured before any step."""
    if history.phase == "pretrain" and not len(history.pretrain_lr):
        return int(np.argmax(history.lr)) + 1
    return -1


def mean_of(metrics: Iterable[Metrics]) -> Metrics:
    """Mean over curves, r2 over those that have one; of `worst` the largest."""
    rows = list(metrics)
    known = [row.r2 for row in rows if row.r2 is not None]
    names = [field.name for field in fields(Metrics) if field.name != "r2"]
    means = {name: float(np.mean([getattr(row, name) for row in rows])) for name in names}
    means["worst"] = max(row.worst for row in rows)
    return Metrics(**means, r2=float(np.mean(known)) if known else None)


def score_fit(fit_dir: Path, curves_dir: Path, names: Sequence[str]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Metrics of the named curves by validation set and curve, and their mean under "mean".

    Args:      names: curves by name or pattern.
    Raises:    CurveError if none of them has a set that was fitted.
    """
    curves = read_curve_directory(curves_dir, names)
    wanted = set(select_names(curves_dir, names))
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for set_name, law in read_fit(fit_dir).items():
        rows = {
            name: score_curve(law, curve, curves)
            for name, curve in curves.items()
            if name in wanted and set_name in curve.losses
        }
        if rows:
            found[set_name] = {"mean": asdict(mean_of(rows.values())), **{n: asdict(m) for n, m in rows.items()}}
    if not found:
        raise CurveError(
            f"test curves must have a set that was fitted; got none in {curves_dir}.", hint="name other curves"
        )
    return found
