"""Mixtures: the replay ratio of every step, and whole sequences that hold it exactly at every prefix."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cptplan.errors import ConfigError, MixtureError
from cptplan.mixture import ConstantMixture, cumulative_counts, read_mixture, source_of_sequences

ONE_OF_EACH: list[dict[str, Any]] = [
    {"kind": "constant", "replay_ratio": 0.25},
    {"kind": "ramp", "start_ratio": 0.5, "end_ratio": 0.2, "begin_step": 1, "end_step": 4},
    {"kind": "table", "steps": [0, 2], "ratios": [0.5, 0.2]},
]


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        ({"kind": "constant", "replay_ratio": 0.25}, [0.25, 0.25, 0.25]),
        (0.25, [0.25, 0.25]),
        (0, [0, 0]),
        (1, [1, 1]),
        (ONE_OF_EACH[1], [0.5, 0.5, 0.4, 0.3, 0.2, 0.2]),
        ({"kind": "ramp", "start_ratio": 0.0, "end_ratio": 1.0, "end_step": 2}, [0, 0.5, 1, 1]),
        ({"kind": "ramp", "start_ratio": 0.0, "end_ratio": 1.0, "end_step": 20}, [0, 0.05]),  # the run ends on the way
        ({"kind": "table", "steps": [0, 2], "ratios": [0.5, 0.2]}, [0.5, 0.5, 0.2, 0.2]),
        ({"kind": "table", "steps": [0], "ratios": [0.5]}, [0.5, 0.5]),
        ({"kind": "table", "steps": [0, 9], "ratios": [0.5, 0.2]}, [0.5, 0.5]),
    ],
)  # fmt: skip
def test_ratio_of_every_step(mixture: object, expected: list[float]) -> None:
    found = read_mixture(mixture, "run.json").replay_ratios(len(expected))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-16)  # a few roundings


@pytest.mark.parametrize("values", ONE_OF_EACH, ids=lambda values: values["kind"])
def test_json_round_trip(values: dict[str, Any]) -> None:
    mixture = read_mixture(values, "run.json")
    again = read_mixture(json.loads(json.dumps(mixture.to_json())), "run.json")
    assert again == mixture
    assert again.hash == mixture.hash


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (1.2, MixtureError, "replay_ratio must be in [0, 1]; got 1.2 in run.json"),
        (-0.1, MixtureError, "replay_ratio must be in [0, 1]; got -0.1 in run.json"),
        (30, MixtureError, "replay_ratio must be in [0, 1]; got 30 in run.json"),
        (float("nan"), ConfigError, "replay_ratio must be finite; got nan in run.json"),
        (True, ConfigError, "content must be an object of keys and values; got True in run.json"),
        ("30%", ConfigError, "content must be an object of keys and values; got '30%' in run.json"),
        (
            {"kind": "ramp", "start_ratio": 2, "end_ratio": 0.5, "end_step": 3},
            MixtureError,
            "start_ratio must be in [0, 1]; got 2 in run.json",
        ),
        (
            {"kind": "ramp", "start_ratio": 0.5, "end_ratio": -2, "end_step": 3},
            MixtureError,
            "end_ratio must be in [0, 1]; got -2 in run.json",
        ),
        (
            {"kind": "ramp", "start_ratio": 0.5, "end_ratio": 0.2, "begin_step": 3, "end_step": 3},
            MixtureError,
            "end_step must be greater than begin_step; got 3 and 3 in run.json",
        ),
        ({"kind": "table", "steps": [1], "ratios": [0.5]}, MixtureError, "steps must start at 0"),
        ({"kind": "table", "steps": [0, 5, 5], "ratios": [0.5, 0.2, 0.1]}, MixtureError, "got steps [0, 5, 5]"),
        ({"kind": "table", "steps": [0, 5], "ratios": [0.5]}, MixtureError, "got steps [0, 5] and ratios [0.5]"),
        ({"kind": "table", "steps": [0], "ratios": [1.5]}, MixtureError, "ratios must be in [0, 1]; got 1.5"),
        ({"replay_ratio": 0.5}, ConfigError, "kind must be given; it is missing in run.json"),
        ({"kind": "rampe"}, ConfigError, "hint: did you mean 'ramp'?"),
    ],
)
def test_mixture_that_cannot_be_followed(values: object, kind: type[ConfigError], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_mixture(values, "run.json")
    assert type(caught.value) is kind
    assert expected in str(caught.value)


def test_constructor_names_the_rule_too() -> None:
    with pytest.raises(MixtureError, match=r"replay_ratio must be in \[0, 1\]; got 1\.2"):
        ConstantMixture(replay_ratio=1.2)


@pytest.mark.parametrize(
    ("shares", "sequences_per_step", "expected"),
    [
        ([0.5, 0.5], 2, [0, 1, 1, 2, 2]),  # 0.5 is rounded up, 1.0, 1.5 up, 2.0
        ([0.25, 0.25], 4, [0, 0, 1, 1, 1, 1, 2, 2, 2]),
        ([0.1] * 10, 1, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]),  # half a sequence is reached after five steps
        ([0.0, 1.0], 3, [0, 0, 0, 0, 1, 2, 3]),
        ([1.0], 1, [0, 1]),
    ],
)
def test_counts_by_hand(shares: list[float], sequences_per_step: int, expected: list[int]) -> None:
    assert cumulative_counts(np.array(shares), sequences_per_step).tolist() == expected


def test_small_ratio_is_exact_over_a_long_run() -> None:
    counts = cumulative_counts(np.full(20_000, 0.02), 64)
    exact = 0.02 * np.arange(20_000 * 64 + 1)
    assert counts[-1] == 25_600
    # half a sequence by the rule, and the rounding of a running sum of 20 000 float64
    assert np.abs(counts - exact).max() <= 0.5 + 1e-6


def test_ramp_is_exact_at_every_step() -> None:
    ratios = read_mixture({"kind": "ramp", "start_ratio": 0.7, "end_ratio": 0.1, "end_step": 90}, "x").replay_ratios(
        100
    )
    counts = cumulative_counts(ratios, 8)
    assert np.abs(counts[::8] - np.concatenate([[0], 8 * np.cumsum(ratios)])).max() <= 0.5 + 1e-6


def test_sources_by_hand() -> None:
    source, ordinal = source_of_sequences(np.full(2, 0.5), np.array([1.0]), 4)
    assert source.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert ordinal.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_sources_of_several_domains_hold_their_weights() -> None:
    weights = np.array([3.0, 2.0, 1.0])
    source, _ = source_of_sequences(np.full(100, 0.4), weights, 30)
    # 3000 sequences: 1200 general, 1800 in the ratio 3 : 2 : 1
    assert np.bincount(source).tolist() == [1200, 900, 600, 300]


@pytest.mark.parametrize(("replay", "weights"), [(1.0, []), (1.0, [1.0]), (0.0, [1.0]), (0.0, [0.0, 1.0, 0.0])])
def test_source_without_a_share_is_never_read(replay: float, weights: list[float]) -> None:
    source, ordinal = source_of_sequences(np.full(5, replay), np.array(weights), 3)
    shares = np.array([replay, *((1 - replay) * np.array(weights))])
    assert set(source.tolist()) == set(np.flatnonzero(shares).tolist())
    assert ordinal.tolist() == list(range(15))


def test_source_of_a_sequence_does_not_depend_on_how_long_the_run_is() -> None:
    ratios, weights = np.linspace(0.6, 0.1, 50), np.array([1.0, 2.0])
    long_source, long_ordinal = source_of_sequences(ratios, weights, 7)
    source, ordinal = source_of_sequences(ratios[:20], weights, 7)
    np.testing.assert_array_equal(long_source[: 20 * 7], source)
    np.testing.assert_array_equal(long_ordinal[: 20 * 7], ordinal)
