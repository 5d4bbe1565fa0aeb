"""A CPT law after endless training: the base term is gone, the shift is whole, annealing is paid in full."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from cptplan.laws.cpt import CptLaw
from cptplan.laws.grid import before_first_fall
from cptplan.laws.history import RunHistory
from cptplan.simulation.known_law import LossModel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SATURATED = {"E": 1e12, "beta": 1e3}  # 1 - (1 + E X)^-beta is 1 then for any X that a run has
GONE = ("A", "D")  # terms that endless training removes: the base's and the first jump's


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitLaw:
    """The columns of a law where they go: 0, 1 or the whole fall of the rate.

    The harm of repeated tokens has no limit; it stays as it is at the end of the run.
    """

    law: CptLaw
    annealed: bool
    """Whether annealing counts; without it the limit is the asymptote L0 + B h(r) of arXiv:2505.07796, 4.4."""

    def columns(self, values: FloatArray, history: RunHistory, steps: IntArray) -> FloatArray:
        """Columns of the law's terms, the same at all steps, shape (points, terms).

        S2(inf) (1 - lambda) = first rate - last rate, of pre-training from its peak on and of CPT from the rate before;
        where re-warming undoes annealing, the way to the run's first peak belongs to pre-training.
        """
        names = [parameter.name for parameter in self.law.parameters]
        whole = np.array([SATURATED.get(name, value) for name, value in zip(names, values, strict=True)])
        found = self.law.columns(whole, history, np.full(len(steps), len(history.lr)))
        falls = {
            "C1": float(history.pretrain_lr.max(initial=0.0)) - float(history.previous_lr)
            if len(history.pretrain_lr)
            else 0.0,
            "C2": history.previous_lr - float(history.lr[-1]),
        }
        if self.law.form.undo:
            rewarm = history.previous_lr - float(history.lr[before_first_fall(history.lr)][-1])
            falls = {"C1": falls["C1"] + rewarm, "C2": falls["C2"] - rewarm}
        size = history.num_params / 1e6 if self.law.form.sizes and history.num_params else 1.0
        given = dict(zip(names, values.tolist(), strict=True))
        for column, term in enumerate(self.law.terms):
            if term.name in GONE:
                found[:, column] = 0.0
            elif term.name in falls:
                paid = falls[term.name] / self.law.reference_lr * size ** given.get(term.name.replace("C", "g"), 0.0)
                found[:, column] = -paid if self.annealed else 0.0
        return found


def at_limit(model: LossModel, *, annealed: bool) -> Any:
    """The same model, known or fitted, with all its forms at the limit; its draws are those of the model.

    Args:      model: of a CptLaw.
    """
    found: Any = model
    changes: dict[str, Any] = {"law": LimitLaw(law=cast(CptLaw, found.law), annealed=annealed)}
    if getattr(found, "rivals", ()):
        limits = (LimitLaw(law=form.law, annealed=annealed) for form in found.rivals)
        changes["rivals"] = tuple(replace(form, law=law) for form, law in zip(found.rivals, limits, strict=True))
    return replace(found, **changes)
