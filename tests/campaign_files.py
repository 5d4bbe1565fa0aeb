"""Files of a campaign without a run: corpora as they are recorded, curves of one shape."""

from __future__ import annotations

import numpy as np

from cptplan.curves import CurveRecord, LossCurve, write_curve
from cptplan.pilots.design import pilot_specs


def make_corpora(**tokens):
    sources = [{"name": name, "train": {"num_tokens": number}} for name, number in tokens.items()]
    return {"schema_version": 1, "sources": sources}


def make_curve(name, *, phase="cpt", sets=("general", "domain"), peak_lr=1e-3, batch_tokens=256, **record):
    lr = {"kind": "constant", "peak_lr": peak_lr, "total_steps": 8}
    values = {"phase": phase, "lr": lr, "batch_tokens": batch_tokens, **record}
    steps = np.array([0, 2, 4, 8])
    losses = {set_name: 4.0 - 0.01 * steps - 0.1 * number for number, set_name in enumerate(sets)}
    return LossCurve(name=name, record=CurveRecord.parse(values, "test"), steps=steps, losses=losses)


def write_pilots(project, workspace):
    """Curves of the designed pilots, all of one shape."""
    for spec in pilot_specs(project, "data"):
        write_curve(workspace.curves, make_curve(spec.name))
