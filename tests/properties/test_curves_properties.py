"""What holds for every curve: reading what was written is the identity, to the last bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from contract_strategies import mixtures, simple_schedules
from hypothesis import given, settings
from hypothesis import strategies as st

from cptplan.curves import CurveRecord, LossCurve, check_curve, read_curve, write_curve

LOSSES = st.one_of(st.just(np.nan), st.floats(1e-6, 50.0))


@st.composite
def curves(draw: st.DrawFn) -> LossCurve:
    """Any curve that keeps the contract, with gaps where it was not evaluated."""
    values: dict[str, Any] = {
        "phase": draw(st.sampled_from(["pretrain", "cpt"])),
        "lr": draw(simple_schedules),
        "replay_ratio": draw(st.one_of(st.none(), mixtures())),
        "seed": draw(st.one_of(st.none(), st.integers(0, 9))),
        "batch_tokens": draw(st.one_of(st.none(), st.integers(1, 10**7))),
        "pretrain": draw(st.one_of(st.none(), st.just({"forward_area": 8.0, "loss_potential": None}))),
    }
    record = CurveRecord.parse(values, "x")
    steps = sorted(draw(st.sets(st.integers(0, record.lr.total_steps), min_size=1, max_size=12)))
    losses = {}
    for name in draw(st.sets(st.sampled_from(["general", "domain", "ood, web", 'quo"ted']), min_size=1)):
        column = [draw(LOSSES) for _ in steps[1:]]
        losses[name] = np.array([draw(st.floats(1e-6, 50.0)), *column])
    return LossCurve(name="run", record=record, steps=np.array(steps), losses=losses)


@settings(max_examples=40)  # each writes four files down to the disk
@given(curves())
def test_reading_what_was_written_is_the_identity(curve: LossCurve) -> None:
    check_curve(curve, "x")
    with tempfile.TemporaryDirectory() as folder:  # Hypothesis shares tmp_path between examples
        write_curve(Path(folder), curve)
        again = read_curve(Path(folder), "run")
        first = (Path(folder) / "run.csv").read_bytes(), (Path(folder) / "run.json").read_bytes()
        write_curve(Path(folder), again)
        second = (Path(folder) / "run.csv").read_bytes(), (Path(folder) / "run.json").read_bytes()
    assert again.record == curve.record
    np.testing.assert_array_equal(again.steps, curve.steps)
    assert set(again.losses) == set(curve.losses)
    for name, losses in curve.losses.items():
        np.testing.assert_array_equal(again.losses[name], losses)
    assert first == second
