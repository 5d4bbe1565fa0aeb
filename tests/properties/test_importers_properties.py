"""Whatever schedule a run had and however it was logged: its rates are found, or the import says that they are not."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cptplan.errors import CurveError
from cptplan.importers.families import by_time
from cptplan.importers.rates import SAME_AREA, LoggedRates, work_out
from cptplan.importers.training_log import Series
from cptplan.schedule import read_schedule

SHAPES = ("linear", "cosine", "sqrt", "exponential")


@st.composite
def schedules(draw: st.DrawFn) -> dict:
    total = draw(st.integers(20, 400))
    warmup = draw(st.integers(0, total // 4))
    peak = draw(st.floats(1e-6, 1e-2))
    values = {"peak_lr": peak, "warmup_steps": warmup, "total_steps": total}
    kind = draw(st.sampled_from(["constant", "linear", "cosine", "wsd", "two_stage", "inverse_sqrt", "infinite"]))
    if kind == "constant":
        return {"kind": kind, **values}
    values["min_lr"] = peak * draw(st.sampled_from([0.0, 0.01, 0.1]))
    if kind == "wsd":
        return {
            "kind": kind,
            **values,
            "decay_steps": draw(st.integers(0, total - warmup)),
            "decay_shape": draw(st.sampled_from(SHAPES)),
        }
    if kind == "two_stage":
        return {"kind": kind, **values, "switch_step": draw(st.integers(max(warmup, 1), total))}
    if kind == "infinite":
        cool = draw(st.integers(10, total - warmup))  # a cool-down that no log shows cannot be found
        return {"kind": kind, **values, "const_lr": peak / 4, "cooldown_steps": cool}
    return (
        {"kind": kind, **values, "warmup_steps": max(warmup, 1)} if kind == "inverse_sqrt" else {"kind": kind, **values}
    )


@given(schedules(), st.integers(1, 19), st.sampled_from(["used", "next"]), st.booleans())
def test_rates_are_found_or_refused_but_never_silently_wrong(
    values: dict, every: int, holds: str, single: bool
) -> None:
    schedule = read_schedule(values, "test")
    total = schedule.total_steps
    rates = by_time(schedule)  # as a run with torch's clock has them: step i at time i
    steps = np.arange(every, total + 1, every)
    shown = rates[steps - (1 if holds == "used" else 0)]
    shown = shown.astype(np.float32).astype(np.float64) if single else shown
    series = Series(steps=steps, values=shown)
    log = LoggedRates(series=series, where="log", by_trainer=True, lr_at=holds, num_steps=total)  # type: ignore[arg-type]
    try:
        found = work_out(log, total)
    except CurveError:
        assert every > 1  # what is logged at every step is never refused
        return
    area, true_area = found.schedule.lr().sum(), rates[:-1].sum()
    said = {warning.code: warning.message for warning in found.warnings}
    if "lr_interpolated" in said:
        return  # said so
    # where several schedules give the log, the one in the middle is taken: off by no more than they are apart
    open_end = "others do too" in said.get("lr_worked_out", "")
    assert abs(area / true_area - 1) <= (
        SAME_AREA if open_end else 1e-5
    )  # 2^-22 of the peak at every step, and to spare
