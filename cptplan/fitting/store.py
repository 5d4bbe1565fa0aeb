"""Fits on disk: fits/<hash>/law.json (what was fitted), draws.npz (its uncertainty), report.json (how well it fits)."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from cptplan.contract import Contract
from cptplan.errors import ConfigError
from cptplan.files import read_json, write_bytes, write_json
from cptplan.fitting.fitted import FittedLaw, HeldOut
from cptplan.fitting.select import Selection
from cptplan.fitting.separable import Solution
from cptplan.fitting.support import Support
from cptplan.fitting.verdict import Verdict
from cptplan.laws.registry import law_from_spec
from cptplan.out_of_domain import OutOfDomainFit


class StoredLaw(Contract):
    """One validation set's law as JSON."""

    law: dict[str, Any]
    """What registry.law_from_spec reads."""
    form: str
    parameters: dict[str, float]
    coefficients: dict[str, float]
    scale: float
    objective: float
    converged: bool
    held_out: tuple[tuple[str, float, float, float, float], ...]
    """Curve, peak rate, late error, end error and late bias of each pilot when it was left out; relative."""
    in_sample_error: float
    transient_error: float
    settled_step: int
    support: Support
    noise: float
    verdict: Verdict
    reason: str


class StoredFit(Contract):
    """law.json: the laws of all validation sets of a campaign."""

    schema_version: Literal[1] = 1
    curves_hash: str
    laws: dict[str, StoredLaw]


def write_fit(
    directory: Path, curves_hash: str, selections: Mapping[str, Selection], third: Mapping[str, OutOfDomainFit]
) -> None:
    """Write a fit; law.json last, so that a fit that is there is whole.

    Args:      third: third sets as combinations of general and domain loss.
    """
    arrays: dict[str, Any] = {}
    for name, selection in selections.items():
        arrays[f"{name}.values"] = np.stack([d.values for d in selection.fitted.left_out])
        arrays[f"{name}.coefficients"] = np.stack([d.coefficients for d in selection.fitted.left_out])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(directory / "draws.npz", buffer.getvalue())
    write_json(
        directory / "report.json",
        {
            "schema_version": 1,
            "sets": {
                name: [
                    {"form": c.form, "discrepancy": c.discrepancy, "in_sample_error": c.in_sample_error}
                    for c in selection.candidates
                ]
                for name, selection in selections.items()
            },
            "out_of_domain": {name: found.to_json() for name, found in third.items()},
        },
    )
    stored = StoredFit(curves_hash=curves_hash, laws={name: _store(s) for name, s in selections.items()})
    write_json(directory / "law.json", stored.to_json())


def _store(selection: Selection) -> StoredLaw:
    fitted = selection.fitted
    law, best = fitted.law, fitted.best
    return StoredLaw(
        law=law.spec(),
        form=law.name,
        parameters={p.name: float(v) for p, v in zip(law.parameters, best.values, strict=True)},
        coefficients={t.name: float(v) for t, v in zip(law.terms, best.coefficients, strict=True)},
        scale=best.scale,
        objective=best.objective,
        converged=best.converged,
        held_out=tuple((h.curve, h.peak_lr, h.late_error, h.end_error, h.late_bias) for h in fitted.held_out),
        in_sample_error=fitted.in_sample_error,
        transient_error=fitted.transient_error,
        settled_step=fitted.settled_step,
        support=fitted.support,
        noise=fitted.noise,
        verdict=selection.verdict,
        reason=selection.reason,
    )


def read_fit(directory: Path) -> dict[str, FittedLaw]:
    """The fitted laws of a fit directory, by validation set.

    Raises:    ConfigError if law.json or draws.npz is missing or does not fit the other.
    """
    stored = StoredFit.parse(read_json(directory / "law.json"), str(directory / "law.json"))
    try:
        with (directory / "draws.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            left_out = {key: np.asarray(arrays[key], dtype=np.float64) for key in arrays.files}
        return {
            name: _load(name, law, left_out[f"{name}.values"], left_out[f"{name}.coefficients"])
            for name, law in stored.laws.items()
        }
    except (OSError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise ConfigError(
            f"draws.npz must hold the left-out fits of law.json; got {error} in {directory}.",
            hint="run cptplan fit again",
        ) from error


def _load(name: str, stored: StoredLaw, values: Any, coefficients: Any) -> FittedLaw:
    law = law_from_spec(stored.law, f"law.json, set {name}")

    def solution(parameters: Any, linear: Any) -> Solution:
        return Solution(
            values=np.asarray(parameters, dtype=np.float64),
            coefficients=np.asarray(linear, dtype=np.float64),
            scale=stored.scale,
            objective=stored.objective,
            converged=stored.converged,
        )

    return FittedLaw(
        set_name=name,
        law=law,
        best=solution(
            [stored.parameters[p.name] for p in law.parameters], [stored.coefficients[t.name] for t in law.terms]
        ),
        left_out=tuple(solution(v, c) for v, c in zip(values, coefficients, strict=True)),
        held_out=tuple(
            HeldOut(curve=curve, peak_lr=peak_lr, late_error=late, end_error=end, late_bias=bias)
            for curve, peak_lr, late, end, bias in stored.held_out
        ),
        in_sample_error=stored.in_sample_error,
        transient_error=stored.transient_error,
        settled_step=stored.settled_step,
        support=stored.support,
        noise=stored.noise,
    )
