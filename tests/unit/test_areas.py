"""Areas: closed forms, edges and errors. The double loop is in tests/reference, invariants are in tests/properties."""

from __future__ import annotations

import numpy as np
import pytest

from cptplan.areas import annealing_area, check_lr, forward_area, loss_potential, relaxed_area
from cptplan.errors import CurveError

ROUNDING = 1e-12  # relative; some hundred additions of float64


def test_forward_area_by_hand() -> None:
    np.testing.assert_allclose(forward_area(np.array([1.0, 2.0, 4.0])), [0, 1, 3, 7])


def test_forward_area_of_power_zero_counts_steps() -> None:
    np.testing.assert_array_equal(forward_area(np.array([1e-3, 0.0, 2e-3]), power=0.0), [0, 1, 2, 3])


def test_forward_area_of_power_half() -> None:
    np.testing.assert_allclose(forward_area(np.array([4.0, 9.0]), power=0.5), [0, 2, 5])


def test_annealing_area_by_hand() -> None:
    # one drop of 1 at the second step, lambda 1/2: momentum 0, 1, 1/2, 1/4
    found = annealing_area(np.array([3.0, 2.0, 2.0, 2.0]), decay=0.5)
    np.testing.assert_allclose(found.area, [0, 0, 1, 1.5, 1.75])
    assert found.momentum == 0.25


def test_annealing_area_of_a_full_decay_saturates() -> None:
    # closed form: a drop d is worth at most d / (1 - lambda); 20 000 steps of lambda = 0.999 leave 2e-9 of it
    found = annealing_area(np.concatenate([[2e-4], np.zeros(20_000)]))
    assert found.area[-1] == pytest.approx(0.2, rel=1e-8)


def test_annealing_area_of_a_rise_is_negative() -> None:
    assert annealing_area(np.array([1.0, 2.0]), decay=0.5).area[-1] == -1.0


def test_previous_lr_counts_the_change_into_the_first_step() -> None:
    assert annealing_area(np.array([1.0]), previous_lr=3.0, decay=0.5).area.tolist() == [0.0, 2.0]
    assert annealing_area(np.array([1.0]), decay=0.5).area.tolist() == [0.0, 0.0]


def test_first_step_leaves_the_warmup_out() -> None:
    warm = np.array([1.0, 2.0, 3.0, 3.0, 1.0])
    found = annealing_area(warm, decay=0.5, first_step=3)
    np.testing.assert_allclose(found.area, [0, 0, 0, 0, 0, 2])


def test_relaxed_area_by_hand() -> None:
    end = annealing_area(np.array([3.0, 2.0]), decay=0.5)  # area 1, momentum 1
    np.testing.assert_allclose(relaxed_area(end, np.array([0, 1, 2, 3]), decay=0.5), [1, 1.5, 1.75, 1.875])


def test_inputs_are_left_alone() -> None:
    lr = np.array([3.0, 2.0, 1.0])
    annealing_area(lr, first_step=2)
    forward_area(lr)
    assert lr.tolist() == [3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("lr", "expected"),
    [([1e-4, 3e-4, 3e-4], 1.0), ([3e-4, 3e-5], 0.1), ([3e-4, 0.0], 0.0), ([0.0, 0.0], 0.0)],
)
def test_loss_potential_is_last_over_peak(lr: list[float], expected: float) -> None:
    assert loss_potential(np.array(lr)) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("lr", [[], [[1.0]], [1.0, np.nan], [np.inf], [1.0, -1e-9]], ids=str)
@pytest.mark.parametrize("area", [forward_area, annealing_area, loss_potential, check_lr])
def test_rates_that_are_none_are_refused(lr: list[float], area: object) -> None:
    with pytest.raises(CurveError, match="lr must hold one finite rate >= 0 for each step"):
        area(np.array(lr))  # type: ignore[operator]
