"""What holds for every mixture, and for the sequences that follow it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from contract_strategies import mixtures
from hypothesis import given
from hypothesis import strategies as st

from cptplan.mixture import cumulative_counts, read_mixture, source_of_sequences

STEPS = st.integers(1, 60)
SEQUENCES = st.integers(1, 9)
WEIGHTS = st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any)
ROUNDING = 1e-6  # of a sequence: some hundred additions, and the nudge of cumulative_counts


@given(mixtures(), STEPS)
def test_one_ratio_for_each_step(values: dict[str, Any], steps: int) -> None:
    ratios = read_mixture(values, "x").replay_ratios(steps)
    assert ratios.shape == (steps,)
    assert np.all((ratios >= 0) & (ratios <= 1))


@given(mixtures(), STEPS, STEPS)
def test_ratio_of_a_step_does_not_depend_on_the_length_of_the_run(
    values: dict[str, Any], steps: int, more: int
) -> None:
    mixture = read_mixture(values, "x")
    np.testing.assert_array_equal(mixture.replay_ratios(steps + more)[:steps], mixture.replay_ratios(steps))


@given(mixtures())
def test_reading_what_was_written_is_the_identity(values: dict[str, Any]) -> None:
    mixture = read_mixture(values, "x")
    assert read_mixture(json.loads(json.dumps(mixture.to_json())), "x") == mixture


@given(mixtures(), STEPS, SEQUENCES)
def test_count_is_within_half_a_sequence_at_every_prefix(values: dict[str, Any], steps: int, sequences: int) -> None:
    ratios = read_mixture(values, "x").replay_ratios(steps)
    counts = cumulative_counts(ratios, sequences)
    exact = np.concatenate([[0.0], np.cumsum(np.repeat(ratios, sequences))])
    assert np.abs(counts - exact).max() <= 0.5 + ROUNDING
    assert set(np.diff(counts).tolist()) <= {0, 1}


@given(mixtures(), STEPS, SEQUENCES, WEIGHTS)
def test_every_source_keeps_its_share_at_every_prefix(
    values: dict[str, Any], steps: int, sequences: int, weights: list[int]
) -> None:
    ratios, shares = read_mixture(values, "x").replay_ratios(steps), np.array(weights, dtype=np.float64)
    source, _ = source_of_sequences(ratios, shares, sequences)
    general = np.repeat(ratios, sequences)
    for number in range(len(weights) + 1):
        share = general if number == 0 else (1 - general) * shares[number - 1] / shares.sum()
        error = np.abs(np.cumsum(source == number) - np.cumsum(share)).max()
        assert error <= (1 + number) / 2 + ROUNDING
        if not share.any():
            assert number not in source


@given(mixtures(), STEPS, SEQUENCES, WEIGHTS)
def test_every_sequence_of_a_source_is_read_once_and_in_order(
    values: dict[str, Any], steps: int, sequences: int, weights: list[int]
) -> None:
    ratios = read_mixture(values, "x").replay_ratios(steps)
    source, ordinal = source_of_sequences(ratios, np.array(weights, dtype=np.float64), sequences)
    assert len(source) == steps * sequences
    for number in np.unique(source):
        mine = ordinal[source == number]
        np.testing.assert_array_equal(mine, np.arange(len(mine)))
