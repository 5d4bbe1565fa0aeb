"""The Python door: what the verbs do, as functions of files or of objects.

from cptplan import read_curves, fit, predict, simulate
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cptplan.curves import CurveRecord, LossCurve, read_curve_directory
from cptplan.errors import ConfigError
from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.predictions import PredictedRun, predict_runs, run_of_spec
from cptplan.fitting.select import Selection, select_law, sets_of, side_of
from cptplan.fitting.store import read_fit
from cptplan.run_spec import RunSpec
from cptplan.simulation.known_law import KnownLaw, LossModel
from cptplan.simulation.published import ReplayForm, find_published, read_published
from cptplan.simulation.simulation import IntArray, Noise, simulate_curves


def read_curves(directory: Path | str, names: Iterable[str] | None = None) -> dict[str, LossCurve]:
    """The curves of a directory, or those named (patterns such as pilot-* too) with the runs that they continue.

    Raises:    CurveError for what breaks the contract of a curve directory.
    """
    return read_curve_directory(Path(directory), names)


def fit(
    curves: Mapping[str, LossCurve] | Path | str,
    sets: Iterable[str] | None = None,
    *,
    law: str = "auto",
    seed: int = 0,
) -> dict[str, Selection]:
    """The fitted law of every validation set, with the laws it was chosen from and the verdict.

    Args:      curves: with the runs that they continue, by name, or their directory. sets: validation sets; all of the
               CPT curves when None. law: auto, or a name of laws.registry.LAWS.
    Raises:    CurveError if the curves are too few for the law or break a rule; ConfigError for an unknown law.
    """
    found = curves if isinstance(curves, Mapping) else read_curves(curves)
    where = "the curves given" if isinstance(curves, Mapping) else str(curves)
    names = sets_of(found) if sets is None else sets
    return {name: select_law(found, name, side_of(name, found), law=law, seed=seed, where=where) for name in names}


def predict(
    fit: Path | str | Mapping[str, FittedLaw | Selection],
    runs: Mapping[str, LossCurve | CurveRecord | RunSpec],
    names: Iterable[str] | None = None,
    *,
    level: float = 0.9,
    seed: int = 0,
) -> dict[str, PredictedRun]:
    """Whole curves with intervals.

    Args:      fit: a directory that cptplan fit wrote, or what fit() returned. runs: what to predict and what it
               continues, by name: curves, or runs that were never trained. names: which to predict; the CPT runs when
               None.
    Raises:    CurveError, ConfigError: see predict_runs.
    """
    given = read_fit(Path(fit)) if isinstance(fit, str | Path) else fit
    laws = {name: law.fitted if isinstance(law, Selection) else law for name, law in given.items()}
    return predict_runs(laws, {name: _as_curve(name, run) for name, run in runs.items()}, names, level=level, seed=seed)


def simulate(
    law: Path | str | Mapping[str, LossModel],
    runs: Mapping[str, CurveRecord],
    *,
    steps: Mapping[str, IntArray] | None = None,
    noise_nats: float = 0.0,
    autocorrelation: float = 0.5,
    seed: int = 0,
    replay: ReplayForm = "exponential",
    num_params: int | None = None,
) -> dict[str, LossCurve]:
    """What-if curves: what runs would give if a law were the truth.

    Args:      law: name of a published set, directory of a fit, or a law for each validation set. runs: with those that
               they continue, by name. noise_nats, autocorrelation, seed: noise of the evaluations; none at 0.
               replay, num_params: see PublishedSet.laws.
    """
    source = law if isinstance(law, Mapping) else read_source(law, replay=replay, num_params=num_params)
    noise = Noise(sd_nats=noise_nats, autocorrelation=autocorrelation, seed=seed) if noise_nats else None
    return simulate_curves(source, runs, steps=steps, noise=noise)


def read_source(
    law: Path | str, *, replay: ReplayForm = "exponential", num_params: int | None = None
) -> Mapping[str, KnownLaw] | Mapping[str, FittedLaw]:
    """The laws of a published set by its name, or of a fit by its directory.

    Raises:    ConfigError if it is neither.
    """
    if is_fit(law):
        return read_fit(Path(law))
    if str(law) not in read_published() and Path(law).exists():
        raise ConfigError(f"law must be a fit or a published set; got no law.json in {law}.", hint="run cptplan fit")
    return find_published(str(law)).laws(replay=replay, num_params=num_params)


def is_fit(law: Path | str) -> bool:
    """Whether a law is named by the directory of a fit."""
    return (Path(law) / "law.json").is_file()


def _as_curve(name: str, run: LossCurve | CurveRecord | RunSpec) -> LossCurve:
    if isinstance(run, LossCurve):
        return run
    if isinstance(run, RunSpec):
        return replace(run_of_spec(run), name=name)
    return LossCurve(name=name, record=run, steps=np.zeros(0, dtype=np.int64), losses={})
