"""The rate of every step from what a log holds: worked out, checked, between the lines, or asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cptplan.errors import CurveError
from cptplan.importers.families import matching_schedules
from cptplan.importers.rates import Clock, LoggedRates, LrAt, check_schedule, work_out
from cptplan.importers.training_log import Series
from cptplan.schedule import TableSchedule, read_schedule

PEAK, WARMUP, TOTAL = 3e-4, 20, 200


# One rate at a time, written from the definitions of torch-style schedules and not from cptplan.schedule: what a run
# with such a scheduler does at schedule time t, 0 for its first step.


def linear(t: int) -> float:
    return PEAK * t / WARMUP if t < WARMUP else PEAK * (TOTAL - t) / (TOTAL - WARMUP)


def cosine(t: int) -> float:
    return PEAK * t / WARMUP if t < WARMUP else PEAK * (1 + math.cos(math.pi * (t - WARMUP) / (TOTAL - WARMUP))) / 2


def cosine_floor(t: int) -> float:
    if t < WARMUP:
        return PEAK * t / WARMUP
    return 3e-5 + (PEAK - 3e-5) * (1 + math.cos(math.pi * (t - WARMUP) / (TOTAL - WARMUP))) / 2


def constant(t: int) -> float:
    return PEAK * min(t / WARMUP, 1)


def inverse_sqrt(t: int) -> float:
    return PEAK * t / WARMUP if t < WARMUP else PEAK * math.sqrt(WARMUP / t)


def wsd(t: int) -> float:
    return PEAK * min(t / WARMUP, 1) if t < 150 else PEAK * (200 - t) / 50


def wsd_from_floor(t: int) -> float:
    if t < WARMUP:
        return 3e-5 + (PEAK - 3e-5) * t / WARMUP
    return PEAK if t < 150 else 3e-5 + (PEAK - 3e-5) * (1 + math.cos(math.pi * (t - 150) / 50)) / 2


def wsd_sqrt(t: int) -> float:
    return PEAK * min(t / WARMUP, 1) if t < 150 else PEAK * (1 - math.sqrt((t - 150) / 50))


def two_stage(t: int) -> float:
    return PEAK * min(t / WARMUP, 1) if t <= 120 else 3e-5


ALL = (linear, cosine, cosine_floor, constant, inverse_sqrt, wsd, wsd_from_floor, wsd_sqrt)


def logged(
    rate: Callable[[int], float],
    every: int = 5,
    *,
    holds: LrAt = "used",
    by_trainer: bool = True,
    lr_at: LrAt | None = None,
    num_steps: int = TOTAL,
    kind: type = np.float64,
    first: int | None = None,
) -> LoggedRates:
    """What a torch-style run logs: the row of step g holds the rate at time g - 1 (used) or g (next)."""
    steps = np.arange(first or every, num_steps + 1, every)
    values = np.array([rate(int(step) - (holds == "used")) for step in steps]).astype(kind).astype(np.float64)
    series = Series(steps=steps, values=values)
    return LoggedRates(series=series, where="log", by_trainer=by_trainer, lr_at=lr_at, num_steps=num_steps)


def truth(rate: Callable[[int], float]) -> np.ndarray:
    return np.array([rate(step) for step in range(TOTAL)])


@pytest.mark.parametrize("rate", ALL)
@pytest.mark.parametrize("holds", ["used", "next"])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_schedule_of_a_trainer_is_worked_out(rate: Callable[[int], float], holds: LrAt, kind: type) -> None:
    found = work_out(logged(rate, holds=holds, kind=kind), TOTAL)
    assert [warning.code for warning in found.warnings] == ["lr_worked_out"]
    # the tolerance within which a schedule must give the log, 2^-22 of the peak, on every step and not only logged ones
    np.testing.assert_allclose(found.schedule.lr(), truth(rate), rtol=0, atol=PEAK * 2.0**-22)


@pytest.mark.parametrize("rate", [linear, cosine, wsd, constant])
@pytest.mark.parametrize("holds", ["used", "next"])
def test_length_that_is_not_said_is_that_of_the_log(rate: Callable[[int], float], holds: LrAt) -> None:
    found = work_out(logged(rate, holds=holds), None)
    np.testing.assert_allclose(found.schedule.lr()[:TOTAL], truth(rate), rtol=0, atol=1e-12)


def test_step_down_is_worked_out() -> None:
    found = work_out(logged(two_stage, every=1, first=1), TOTAL)
    np.testing.assert_allclose(found.schedule.lr(), truth(two_stage), rtol=0, atol=1e-12)
    assert '{"kind": "two_stage", ' in found.warnings[0].message


def test_run_that_was_cut_short_needs_the_length_of_its_schedule() -> None:
    short = logged(cosine, num_steps=100)
    np.testing.assert_allclose(work_out(short, TOTAL).schedule.lr(), truth(cosine), rtol=0, atol=1e-12)
    with pytest.raises(CurveError, match="got it at 20 of 100 steps in log, and no known schedule gives them"):
        work_out(short, None)


def test_message_says_the_schedule() -> None:
    (warning,) = work_out(logged(cosine), TOTAL).warnings
    assert '"peak_lr": 0.0003, "warmup_steps": 20}, with the first step at time 0' in warning.message
    assert "gives all 40 rates in log" in warning.message


def test_step_of_a_logged_rate_that_cannot_be_told_is_named() -> None:
    # the row of step g holds the rate at time g: of the step to come (torch), or of the step just done (ours)
    found = work_out(logged(cosine, holds="next", by_trainer=False), TOTAL)
    assert [warning.code for warning in found.warnings] == ["lr_worked_out", "lr_step"]
    assert "taken as that of the step to come" in found.warnings[1].message
    np.testing.assert_allclose(found.schedule.lr(), truth(cosine), rtol=0, atol=1e-12)
    told = work_out(logged(cosine, holds="next", by_trainer=False, lr_at="used"), TOTAL)
    assert [warning.code for warning in told.warnings] == ["lr_worked_out"]
    np.testing.assert_allclose(told.schedule.lr(), [cosine(step + 1) for step in range(TOTAL)], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "wsd", "constant"])
def test_warmup_that_was_never_logged_is_not_guessed(kind: str) -> None:
    rate = {"linear": linear, "wsd": wsd, "constant": constant}[kind]
    log = logged(rate, every=25, first=25)
    with pytest.raises(CurveError, match=r"several schedules give them, with forward areas \d+% apart") as caught:
        work_out(log, TOTAL)
    # what the hint proposes is one of them, and can be pasted
    proposed = json.loads(str(caught.value).split("--lr '")[1].split("'")[0])
    check_schedule(read_schedule(proposed, "--lr"), log)


def test_warmup_that_hardly_matters_may_be_open() -> None:
    found = work_out(logged(lambda t: PEAK, every=2), TOTAL)  # no warm-up, or up to two steps of it
    assert found.schedule.lr()[2:].tolist() == [PEAK] * (TOTAL - 2)
    assert "; others do too, with forward areas within 0.75%" in found.warnings[0].message


def restarts(t: int) -> float:
    return PEAK * (1 + math.cos(math.pi * (t % 50) / 50)) / 2


@pytest.mark.parametrize("holds", ["used", "next"])
def test_rate_of_every_step_is_taken_as_it_is(holds: LrAt) -> None:
    steps = np.arange(1, TOTAL + 1) if holds == "used" else np.arange(TOTAL)
    series = Series(steps=steps, values=truth(restarts))
    found = work_out(LoggedRates(series=series, where="log", by_trainer=False, lr_at=holds, num_steps=TOTAL), TOTAL)
    assert found.schedule.lr().tolist() == truth(restarts).tolist()
    assert found.warnings == ()


def test_rate_of_every_step_needs_a_word_on_which_step() -> None:
    found = work_out(logged(restarts, every=1, first=1), TOTAL)
    assert [warning.code for warning in found.warnings] == ["lr_step"]
    assert "taken as that of the step just done" in found.warnings[0].message


def test_dense_log_is_joined_by_straight_lines_and_says_so() -> None:
    found = work_out(logged(lambda t: PEAK * (1 + math.sin(t / 30)) / 2, every=4, lr_at="used"), TOTAL)
    (warning,) = found.warnings
    assert warning.code == "lr_interpolated"
    assert "no known schedule gives them: 50 of 200 rates are in log, and the largest gap is 4 steps at the" in (
        warning.message
    )
    expected = np.array([PEAK * (1 + math.sin(t / 30)) / 2 for t in range(TOTAL)])
    # a straight line over 4 steps misses a sine of angular rate 1/30 by at most (4/30)^2 / 8 of its amplitude
    np.testing.assert_allclose(found.schedule.lr(), expected, rtol=0, atol=PEAK / 2 * (4 / 30) ** 2 / 8 * 1.01)


def test_gap_is_placed() -> None:
    dense = logged(lambda t: PEAK * (1 + math.sin(t / 30)) / 2, every=1, first=1, lr_at="used")
    kept = np.delete(np.arange(TOTAL), [100, 101])
    series = Series(steps=dense.series.steps[kept], values=dense.series.values[kept])
    thinned = LoggedRates(series=series, where="log", by_trainer=True, lr_at="used", num_steps=TOTAL)
    assert "the largest gap is 3 steps after step 100" in work_out(thinned, TOTAL).warnings[0].message


def test_line_before_the_first_logged_rate_does_not_fall_below_zero() -> None:
    steps = np.arange(3, TOTAL + 1)
    values = 1e-4 * (1 - np.cos((steps - 2.5) / 20))
    log = LoggedRates(
        series=Series(steps=steps, values=values), where="log", by_trainer=True, lr_at="used", num_steps=TOTAL
    )
    found = work_out(log, TOTAL)
    assert found.schedule.lr().min() >= 0


@pytest.mark.parametrize(("every", "expected"), [(5, "got it at 40 of 200 steps"), (199, "got it at 1 of 200 steps")])
def test_sparse_log_of_no_known_schedule_is_refused(every: int, expected: str) -> None:
    with pytest.raises(CurveError, match=expected) as caught:
        work_out(logged(restarts, every=every), TOTAL)
    assert '--lr \'{"kind":' in str(caught.value)


GIVEN: dict[str, Any] = {"kind": "cosine", "peak_lr": PEAK, "warmup_steps": WARMUP, "total_steps": TOTAL}


@pytest.mark.parametrize("holds", ["used", "next"])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_given_schedule_that_agrees_is_taken_as_the_trainer_ran_it(holds: LrAt, kind: type) -> None:
    found = check_schedule(read_schedule(GIVEN, "--lr"), logged(cosine, holds=holds, kind=kind))
    np.testing.assert_allclose(found.schedule.lr(), truth(cosine), rtol=0, atol=1e-15)
    assert found.warnings == ()


def test_given_schedule_of_our_own_runs_is_kept_as_it_is() -> None:
    given = read_schedule(GIVEN, "--lr")
    steps = np.arange(10, TOTAL + 1, 10)
    for shown, lr_at in ((steps - 1, "used"), (np.minimum(steps, TOTAL - 1), "next")):
        series = Series(steps=steps[:-1], values=given.lr()[shown][:-1])
        log = LoggedRates(series=series, where="log", by_trainer=False, lr_at=lr_at, num_steps=TOTAL)
        assert check_schedule(given, log).schedule is given


def test_given_schedule_may_be_off_by_the_clock_of_torch_only() -> None:
    found = check_schedule(read_schedule(GIVEN, "--lr"), logged(cosine, by_trainer=False))
    np.testing.assert_allclose(found.schedule.lr(), truth(cosine), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peak_lr": 3.001e-4}, "got 6.002e-05 from --lr at step 5, where log has 6e-05."),
        ({"warmup_steps": 21}, "got 5.714286e-05 from --lr at step 5, where log has 6e-05."),
        ({"min_lr": 1e-6}, "from --lr at step 25, where log has 0.0002996"),
        ({"total_steps": 201}, "from --lr at step 25, where log has 0.0002996"),
        ({"kind": "linear"}, "from --lr at step 25, where log has 0.0002996"),
    ],
)
def test_given_schedule_that_disagrees_is_refused_with_the_step(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CurveError) as caught:
        check_schedule(read_schedule({**GIVEN, **change}, "--lr"), logged(cosine, lr_at="used"))
    assert "lr must agree with the logged rates; got" in str(caught.value)
    assert words in str(caught.value)


def test_given_schedule_that_ends_before_the_log_is_refused() -> None:
    with pytest.raises(CurveError, match=r"from --lr at step 105, where log has 0\.0003\."):
        check_schedule(read_schedule({**GIVEN, "kind": "constant", "total_steps": 100}, "--lr"), logged(constant))


def test_given_table_is_the_rate_of_every_step_whatever_the_clock() -> None:
    table = TableSchedule(kind="table", values=tuple(truth(restarts).tolist()))
    for holds in ("used", "next"):
        log = logged(restarts, holds=holds, num_steps=TOTAL - 1)  # the rate after the last step is in no table
        assert check_schedule(table, log).schedule is table


@pytest.mark.parametrize(
    ("digits", "peak", "agrees"),
    [
        (4, 3.1418e-4, True),
        (4, 3.144e-4, False),
        (6, 3.14159e-4, True),
        (6, 3.1418e-4, False),
        (3, 3.138e-4, True),
        (3, 3.16e-4, False),
    ],
)
def test_log_of_few_digits_is_rounded_that_much(digits: int, peak: float, agrees: bool) -> None:
    log = logged(lambda t: float(f"{3.14159265e-4 * min(t / WARMUP, 1):.{digits - 1}e}"), every=7)
    given = read_schedule({**GIVEN, "kind": "constant", "peak_lr": peak}, "--lr")
    if agrees:
        check_schedule(given, log)
        return
    with pytest.raises(CurveError):
        check_schedule(given, log)


@pytest.mark.parametrize(
    ("by_trainer", "lr_at", "expected"),
    [
        (True, None, [("used", 0), ("next", 0)]),
        (True, "next", [("next", 0)]),
        (False, None, [("used", 0), ("next", 0), ("next", 1)]),  # ("used", 1) has the shift of ("next", 0)
        (False, "used", [("used", 0), ("used", 1)]),
    ],
)
def test_clocks_that_may_hold(by_trainer: bool, lr_at: LrAt | None, expected: list[tuple[LrAt, int]]) -> None:
    clocks = logged(cosine, by_trainer=by_trainer, lr_at=lr_at).clocks(0, 1)
    assert [(clock.lr_at, clock.first_time) for clock in clocks] == expected


@pytest.mark.parametrize(("lr_at", "first_time", "shift"), [("used", 0, -1), ("used", 1, 0), ("next", 1, 1)])
def test_shift_of_a_clock(lr_at: LrAt, first_time: Any, shift: int) -> None:
    assert Clock(lr_at=lr_at, first_time=first_time).shift == shift


@pytest.mark.parametrize("rates", [[], [1e-4], [1e-4] * 4, [0.0] * 9])
def test_too_little_to_match(rates: list[float]) -> None:
    times = np.arange(len(rates), dtype=np.float64)
    assert matching_schedules(times, np.array(rates), 10, 1e-12) == []


def test_noise_matches_no_schedule() -> None:
    noisy = np.random.default_rng(0).uniform(1e-5, 3e-4, 50)
    assert matching_schedules(np.arange(50.0), noisy, 50, 1e-10) == []


def test_long_run_is_matched_in_time() -> None:
    # a million steps, logged every 1,000: the break is bracketed, so few of the million are tried
    given = read_schedule({**GIVEN, "warmup_steps": 2_345, "total_steps": 1_000_000}, "--lr")
    times = np.arange(0.0, 1_000_001, 1_000)
    rates = np.concatenate([[0.0], given.lr()])[times.astype(int)]
    (found,) = matching_schedules(times, rates, 1_000_000, PEAK * 2.0**-22)
    assert (found.kind, found.warmup_steps, found.peak_lr) == ("cosine", 2_345, PEAK)
