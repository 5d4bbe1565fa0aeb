"""Worth of repeated tokens: limits, monotony, and that the value of the next token is the derivative."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cptplan.errors import DataError
from cptplan.laws.final.protocol import make_runs
from cptplan.laws.final.repetition import HALF_LIFE, RepetitionLaw, effective_tokens, value_of_next_token


def test_first_epoch_is_worth_exactly_its_tokens() -> None:
    tokens = np.array([0.0, 1.0, 12345.0, 3e9 / 7, 1e9])
    np.testing.assert_array_equal(effective_tokens(tokens, 1e9), tokens)
    np.testing.assert_array_equal(value_of_next_token(tokens, 1e9), 1.0)


def test_endless_corpus_is_never_repeated() -> None:
    np.testing.assert_array_equal(effective_tokens([1e9, 5e12], np.inf), [1e9, 5e12])
    np.testing.assert_array_equal(value_of_next_token([1e9, 5e12], np.inf), 1.0)


@given(
    unique=st.floats(1e3, 1e13),
    epochs=st.lists(st.floats(0, 1e4), min_size=2, max_size=20),
    half_life=st.floats(0.1, 100),
)
def test_worth_rises_up_to_its_limit_and_never_passes_the_tokens(
    unique: float, epochs: list[float], half_life: float
) -> None:
    tokens = np.sort(epochs) * unique
    worth = effective_tokens(tokens, unique, half_life)
    rounding = 1e-12 * unique * (1 + half_life)
    assert np.all(np.diff(worth) >= -rounding)
    assert np.all(worth <= tokens + rounding)
    assert np.all(worth <= unique * (1 + half_life) + rounding)
    value = value_of_next_token(tokens, unique, half_life)
    assert np.all((value >= 0) & (value <= 1))
    assert np.all(np.diff(value) <= 0)


def test_value_of_next_token_is_the_derivative_and_sums_up_to_the_worth() -> None:
    tokens = np.linspace(0, 30e6, 300_001)
    value = value_of_next_token(tokens, 2e6)
    slow = np.gradient(effective_tokens(tokens, 2e6), tokens)
    np.testing.assert_allclose(value[1:-1], slow[1:-1], atol=1e-5)  # differences over steps of 100 tokens
    summed = np.sum((value[:-1] + value[1:]) / 2) * 100
    assert summed == pytest.approx(float(effective_tokens(30e6, 2e6)), rel=1e-8)  # trapezoids of a smooth curve


def test_arrays_are_broadcast_and_float64() -> None:
    worth = effective_tokens(np.arange(4)[:, None] * 10, np.array([5, 50]))
    assert worth.shape == (4, 2)
    assert worth.dtype == np.float64
    assert effective_tokens(7, 5).shape == ()


@pytest.mark.parametrize(
    ("tokens", "unique", "half_life", "message"),
    [
        (1.0, 0.0, 15.0, "unique_tokens must be greater than 0; got 0"),
        (1.0, np.nan, 15.0, "unique_tokens must be greater than 0"),
        (-1.0, 1.0, 15.0, "tokens must be finite and at least 0; got -1"),
        (np.inf, 1.0, 15.0, "tokens must be finite"),
        (1.0, 1.0, 0.0, "half_life must be greater than 0"),
    ],
)
def test_impossible_amounts_are_refused(tokens: float, unique: float, half_life: float, message: str) -> None:
    for function in (effective_tokens, value_of_next_token):
        with pytest.raises(DataError, match=message):
            function(tokens, unique, half_life)


def test_half_life_is_the_published_one() -> None:
    assert round(HALF_LIFE, 2) == 15.39


def test_closed_form_is_bounded_by_the_uninformed_loss_and_becomes_chinchilla() -> None:
    law = RepetitionLaw()
    a, alpha, b, beta, c, gamma, delta = 100.0, 0.34, 100.0, 0.28, 1e-3, 0.3, 0.5
    values, coefficients = np.array([a, alpha, b, beta, c, gamma, delta]), np.array([1.7, 9.0])
    nothing = make_runs(0.5, 1.0, 1.0, 1.0)
    assert float((law.columns(values, nothing) @ coefficients)[0]) == pytest.approx(10.7, rel=0.01)
    plenty = make_runs(0.5, 1e13, 1e12, 1e40)
    lack = a * 1e12**-alpha + b * 1e13**-beta
    # with much data h is small and h / (1 + h) is h to its own relative size
    assert float((law.columns(values, plenty) @ coefficients)[0]) == pytest.approx(1.7 + 9.0 * lack, rel=lack)


def test_closed_form_overfits_with_size_at_little_data() -> None:
    law = RepetitionLaw()
    values, coefficients = np.array([100.0, 0.34, 100.0, 0.28, 1e-3, 0.3, 0.5]), np.array([1.7, 9.0])
    losses = law.columns(values, make_runs(0.5, 1e10, np.geomspace(1e6, 1e14, 50), 1e4)) @ coefficients
    assert 0 < losses.argmin() < 49
