"""Hypothesis strategies for schedules and mixtures of every kind, as the values that a file would hold."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

RATES = st.floats(1e-7, 1e-2)


@st.composite
def peak_schedules(draw: st.DrawFn) -> dict[str, Any]:
    """Any schedule with a peak: lengths fit each other, the floor lies below the peak."""
    kind = draw(st.sampled_from(["constant", "linear", "cosine", "wsd", "infinite", "two_stage", "inverse_sqrt"]))
    warmup, middle, decay = draw(st.integers(0, 20)), draw(st.integers(0, 40)), draw(st.integers(0, 20))
    total = warmup + middle + decay + draw(st.integers(1, 20))
    peak = draw(RATES)
    floor = draw(st.floats(0.0, 1.0)) * peak
    values: dict[str, Any] = {"kind": kind, "peak_lr": peak, "total_steps": total, "warmup_steps": warmup}
    values["init_lr"] = draw(st.floats(0.0, 1.0)) * peak
    if kind != "constant":
        values["min_lr"] = floor
    if kind == "wsd":
        shape = draw(st.sampled_from(["linear", "cosine", "sqrt", "exponential"]))
        values |= {"decay_steps": decay, "decay_shape": shape}
    if kind == "infinite":
        const = max(floor + draw(st.floats(0.0, 1.0)) * (peak - floor), 1e-12)
        values |= {"const_lr": min(const, peak), "cooldown_steps": middle, "decay_steps": decay}
        values["min_lr"] = min(floor, values["const_lr"])
    if kind == "two_stage":
        values["switch_step"] = max(warmup + middle, 1)
    if kind == "inverse_sqrt":
        values["warmup_steps"] = max(warmup, 1)
    return values


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Rates as logged."""
    rates = st.one_of(st.just(0.0), RATES)
    return {"kind": "table", "values": draw(st.lists(rates, min_size=1, max_size=60))}


@st.composite
def polygons(draw: st.DrawFn) -> dict[str, Any]:
    """Straight lines between points."""
    steps = sorted(draw(st.sets(st.integers(0, 100), min_size=1, max_size=6)))
    points = [[step, draw(st.one_of(st.just(0.0), RATES))] for step in steps]
    return {"kind": "piecewise", "points": points, "total_steps": draw(st.integers(1, 100))}


simple_schedules = st.one_of(peak_schedules(), tables(), polygons())
schedules = st.recursive(
    simple_schedules,
    lambda inner: st.builds(
        lambda segments: {"kind": "segments", "segments": segments}, st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=4,
)

RATIOS = st.floats(0.0, 1.0)


@st.composite
def mixtures(draw: st.DrawFn) -> dict[str, Any]:
    """Any mixture."""
    kind = draw(st.sampled_from(["constant", "ramp", "table"]))
    if kind == "constant":
        return {"kind": kind, "replay_ratio": draw(RATIOS)}
    if kind == "ramp":
        begin = draw(st.integers(0, 30))
        end = begin + draw(st.integers(1, 30))
        return {
            "kind": kind,
            "start_ratio": draw(RATIOS),
            "end_ratio": draw(RATIOS),
            "begin_step": begin,
            "end_step": end,
        }
    steps = [0, *sorted(draw(st.sets(st.integers(1, 40), max_size=5)))]
    return {"kind": kind, "steps": steps, "ratios": [draw(RATIOS) for _ in steps]}
