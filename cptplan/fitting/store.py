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
from cptplan.fitting.fitted import FittedLaw, Form, HeldOut, Reach
from cptplan.fitting.out_of_domain import OutOfDomainFit
from cptplan.fitting.select import Selection
from cptplan.fitting.separable import Solution
from cptplan.fitting.support import Support
from cptplan.fitting.verdict import Verdict
from cptplan.laws.registry import law_from_spec


class StoredForm(Contract):
    """One fitted form as JSON."""

    law: dict[str, Any]
    """What registry.law_from_spec reads."""
    form: str
    parameters: dict[str, float]
    coefficients: dict[str, float]
    scale: float
    objective: float
    converged: bool
    weight: float = 1.0
    """What it counts in predictions."""


class StoredLaw(StoredForm):
    """One validation set's law as JSON: the form that counts most, and its rivals."""

    rivals: tuple[StoredForm, ...] = ()
    held_out: tuple[tuple[str, float, float, float, float], ...]
    """Curve, peak rate, late error, end error and late bias of each pilot when it was left out; relative."""
    in_sample_error: float
    transient_error: float
    settled_step: int
    support: Support
    noise: float
    reach: Reach | None = None
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
        for number, form in enumerate(selection.fitted.forms):
            arrays[_array(name, number, "values")] = np.stack([d.values for d in form.left_out])
            arrays[_array(name, number, "coefficients")] = np.stack([d.coefficients for d in form.left_out])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(directory / "draws.npz", buffer.getvalue())
    write_json(
        directory / "report.json",
        {
            "schema_version": 1,
            "sets": {
                name: [
                    {
                        "form": c.form,
                        "weight": c.weight,
                        "discrepancy": c.discrepancy,
                        "in_sample_error": c.in_sample_error,
                    }
                    for c in selection.candidates
                ]
                for name, selection in selections.items()
            },
            "out_of_domain": {name: found.to_json() for name, found in third.items()},
        },
    )
    stored = StoredFit(curves_hash=curves_hash, laws={name: _store(s) for name, s in selections.items()})
    write_json(directory / "law.json", stored.to_json())


def _array(set_name: str, number: int, part: str) -> str:
    """Name in draws.npz of what a form of a set has left out; the first form of a set has no number."""
    return f"{set_name}.{part}" if number == 0 else f"{set_name}.rival-{number}.{part}"


def _store(selection: Selection) -> StoredLaw:
    fitted = selection.fitted
    first, *rivals = (_form(form) for form in fitted.forms)
    return StoredLaw(
        **first,
        rivals=tuple(StoredForm(**rival) for rival in rivals),
        held_out=tuple((h.curve, h.peak_lr, h.late_error, h.end_error, h.late_bias) for h in fitted.held_out),
        in_sample_error=fitted.in_sample_error,
        transient_error=fitted.transient_error,
        settled_step=fitted.settled_step,
        support=fitted.support,
        noise=fitted.noise,
        reach=fitted.reach,
        verdict=selection.verdict,
        reason=selection.reason,
    )


def _form(form: Form) -> dict[str, Any]:
    law, best = form.law, form.best
    return {
        "law": law.spec(),
        "form": law.name,
        "parameters": {p.name: float(v) for p, v in zip(law.parameters, best.values, strict=True)},
        "coefficients": {t.name: float(v) for t, v in zip(law.terms, best.coefficients, strict=True)},
        "scale": best.scale,
        "objective": best.objective,
        "converged": best.converged,
        "weight": form.weight,
    }


def read_fit(directory: Path) -> dict[str, FittedLaw]:
    """The fitted laws of a fit directory, by validation set.

    Raises:    ConfigError if law.json or draws.npz is missing or does not fit the other.
    """
    stored = StoredFit.parse(read_json(directory / "law.json"), str(directory / "law.json"))
    try:
        with (directory / "draws.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            left_out = {key: np.asarray(arrays[key], dtype=np.float64) for key in arrays.files}
        return {name: _load(name, law, left_out) for name, law in stored.laws.items()}
    except (OSError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise ConfigError(
            f"draws.npz must hold the left-out fits of law.json; got {error} in {directory}.",
            hint="run cptplan fit again",
        ) from error


def _load(name: str, stored: StoredLaw, arrays: Mapping[str, Any]) -> FittedLaw:
    first, *rivals = (
        _load_form(name, form, arrays[_array(name, number, "values")], arrays[_array(name, number, "coefficients")])
        for number, form in enumerate((stored, *stored.rivals))
    )
    return FittedLaw(
        set_name=name,
        law=first.law,
        best=first.best,
        left_out=first.left_out,
        rivals=tuple(rivals),
        held_out=tuple(
            HeldOut(curve=curve, peak_lr=peak_lr, late_error=late, end_error=end, late_bias=bias)
            for curve, peak_lr, late, end, bias in stored.held_out
        ),
        in_sample_error=stored.in_sample_error,
        transient_error=stored.transient_error,
        settled_step=stored.settled_step,
        support=stored.support,
        noise=stored.noise,
        reach=stored.reach,
    )


def _load_form(name: str, stored: StoredForm, values: Any, coefficients: Any) -> Form:
    law = law_from_spec(stored.law, f"law.json, set {name}")

    def solution(parameters: Any, linear: Any) -> Solution:
        return Solution(
            values=np.asarray(parameters, dtype=np.float64),
            coefficients=np.asarray(linear, dtype=np.float64),
            scale=stored.scale,
            objective=stored.objective,
            converged=stored.converged,
        )

    return Form(
        law=law,
        best=solution(
            [stored.parameters[p.name] for p in law.parameters], [stored.coefficients[t.name] for t in law.terms]
        ),
        left_out=tuple(solution(v, c) for v, c in zip(values, coefficients, strict=True)),
        weight=stored.weight,
    )
