"""What holds for the areas of every schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contract_strategies import schedules
from hypothesis import given
from hypothesis import strategies as st

from cptplan.areas import annealing_area, forward_area, loss_potential, relaxed_area
from cptplan.schedule import read_schedule

DECAYS = st.floats(0.5, 0.9999)


def rates(values: dict[str, Any]) -> np.ndarray:
    return read_schedule(values, "x").lr()


def size(*lr: np.ndarray, decay: float) -> float:
    """Scale of the sums, to state a tolerance by: every change of the rate, at its largest worth."""
    joined = np.concatenate(lr)
    return float(np.abs(np.diff(joined, prepend=joined[0])).sum() / (1 - decay) + joined.max())


@given(schedules, st.floats(0.0, 1.0))
def test_forward_area_starts_at_zero_and_never_falls(values: dict[str, Any], power: float) -> None:
    area = forward_area(rates(values), power=power)
    assert area[0] == 0.0
    assert np.all(np.diff(area) >= 0)


@given(st.floats(0.0, 1e-2), st.integers(1, 200), DECAYS)
def test_annealing_area_of_a_constant_rate_is_zero(rate: float, steps: int, decay: float) -> None:
    found = annealing_area(np.full(steps, rate), decay=decay)
    assert np.all(found.area == 0.0)
    assert found.momentum == 0.0


@given(schedules, DECAYS)
def test_recursion_equals_the_double_loop(values: dict[str, Any], decay: float) -> None:
    lr = rates(values)[:60]  # the loop is slow
    slow = sum(
        (lr[k - 1] - lr[k]) * decay ** (i - k) for i in range(len(lr)) for k in range(1, i + 1)
    )  # arXiv:2505.07796, eq. 1, as printed
    found = annealing_area(lr, decay=decay).area[-1]
    assert found == pytest.approx(slow, rel=1e-9, abs=1e-12 * size(lr, decay=decay))  # another order of additions


@given(schedules, schedules, DECAYS)
def test_areas_add_over_phases(first: dict[str, Any], second: dict[str, Any], decay: float) -> None:
    before, after = rates(first), rates(second)
    joined = np.concatenate([before, after])
    tolerance = 1e-12 * size(joined, decay=decay) * len(joined)

    forward = np.concatenate([forward_area(before), forward_area(before)[-1] + forward_area(after)[1:]])
    np.testing.assert_allclose(forward, forward_area(joined), rtol=1e-12)

    end = annealing_area(before, decay=decay)
    own = annealing_area(after, decay=decay, previous_lr=float(before[-1])).area
    relaxed = relaxed_area(end, np.arange(len(after) + 1), decay=decay)
    whole = annealing_area(joined, decay=decay)
    np.testing.assert_allclose(relaxed + own, whole.area[len(before) :], rtol=1e-9, atol=tolerance)


@given(schedules, DECAYS, st.floats(1e-3, 1e3))
def test_areas_are_linear_in_the_rate(values: dict[str, Any], decay: float, factor: float) -> None:
    lr = rates(values)
    np.testing.assert_allclose(forward_area(factor * lr), factor * forward_area(lr), rtol=1e-12)
    found = annealing_area(factor * lr, decay=decay).area
    expected = factor * annealing_area(lr, decay=decay).area
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * factor * size(lr, decay=decay))


@given(schedules, DECAYS)
def test_area_after_some_steps_does_not_depend_on_later_ones(values: dict[str, Any], decay: float) -> None:
    lr = rates(values)
    half = max(len(lr) // 2, 1)
    np.testing.assert_array_equal(forward_area(lr)[: half + 1], forward_area(lr[:half]))
    np.testing.assert_array_equal(
        annealing_area(lr, decay=decay).area[: half + 1], annealing_area(lr[:half], decay=decay).area
    )


@given(schedules)
def test_loss_potential_is_a_share(values: dict[str, Any]) -> None:
    assert 0.0 <= loss_potential(rates(values)) <= 1.0
