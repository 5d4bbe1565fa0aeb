"""Weighted sums of models, the choice among them, and what the command line refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cptplan.errors import ConfigError, ModelError
from executor import soup
from executor.soup import Candidate, choose
from executor.weights import interpolate


def state(seed, dtype=torch.float32, **changes):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 4), "b": (5,), **changes}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def test_interpolate_is_the_weighted_sum_in_float32():
    states, weights = [state(seed, torch.bfloat16) for seed in range(3)], [0.2, 0.3, 0.5]
    found = dict(interpolate(states, weights))
    for name in ("a", "b"):
        wanted = sum(w * s[name].double().numpy() for w, s in zip(weights, states, strict=True))
        assert found[name].dtype == torch.float32
        # three products and sums of numbers of size 1 in fp32
        np.testing.assert_allclose(found[name].numpy(), wanted, atol=5e-7)


@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.0, 1.0]])
def test_interpolate_at_an_end_is_that_model_exactly(weights):
    states = [state(0), state(1)]
    found = dict(interpolate(states, weights))
    assert all(torch.equal(found[name], states[weights.index(1.0)][name]) for name in ("a", "b"))


def test_interpolate_reads_one_tensor_of_each_state_at_a_time():
    read = []

    class Lazy(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    found = interpolate([Lazy(state(0)), Lazy(state(1))], [0.5, 0.5])
    assert next(found)[0] == "a"
    assert read == ["a", "a"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (state(1, c=(2,)), "got c in only one of models 1 and 2"),
        ({"a": torch.zeros(3, 4)}, "got b in only one of models 1 and 2"),
        (state(1, b=(6,)), r"got \(5,\), \(6,\) for b"),
        (state(1, a=(4, 3)), r"got \(3, 4\), \(4, 3\) for a"),
    ],
)
def test_interpolate_refuses_models_that_differ(other, message):
    with pytest.raises(ModelError, match=message):
        list(interpolate([state(0), other], [0.5, 0.5]))


def candidates(*scores):
    return [Candidate(coefficient=place / 4, losses={}, score=score) for place, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "coefficient"),
    [((0.0, -1.0, -2.0, -1.0, 3.0), 0.5), ((0.0, 1.0, 2.0), 0.0), ((0.0, -1.0, -2.0), 0.5), ((0.0, -1.0, -1.0), 0.25)],
)
def test_choose_takes_the_lowest_score_and_of_equal_ones_the_nearest_to_the_base(scores, coefficient):
    assert choose(candidates(*scores)).coefficient == coefficient
    assert choose(reversed(candidates(*scores))).coefficient == coefficient


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("general=0.4", {"general": 0.4, "code": 0.3, "law": 0.3}),
        ("general=1,code=2,law=1", {"general": 0.25, "code": 0.5, "law": 0.25}),
        (" general=0.5 , law=0.5", {"general": 0.5, "code": 0.0, "law": 0.5}),
    ],
)
def test_weights_sum_to_one_and_unnamed_sets_share_the_rest(text, weights):
    assert soup._weights(text, ["general", "code", "law"]) == pytest.approx(weights, abs=1e-15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("genral=0.4", "must name a validation set; got genral=0.4. hint: did you mean 'general'"),
        ("general=much", "must be numbers >= 0; got general=much"),
        ("general", "must be numbers >= 0; got general"),
        ("general=-1", "must be numbers >= 0; got general=-1"),
        ("general=nan", "must be numbers >= 0; got general=nan"),
        ("general=0,domain=0", "must not all be zero"),
    ],
)
def test_weights_that_cannot_be_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        soup._weights(text, ["general", "domain"])


def test_coefficients_rise_from_the_base_without_repeats():
    assert soup._coefficients("1,0.5,0.5") == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("text", ["0,1.5", "-0.1", "half", "", "nan"])
def test_coefficients_outside_are_refused(text):
    with pytest.raises(ConfigError, match=r"coefficients must be numbers in \[0, 1\]"):
        soup._coefficients(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--base", "x"],
        ["--average", "x"],
        ["--average", "x", "y", "--adapted", "z"],
        ["--average", "x", "y", "--base", "z"],
        ["--average", "x", "y", "--seq-len", "0"],
    ],
)
def test_command_line_refuses_a_half_request(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        soup.main([*arguments, "--out", "unused"])
    assert "error:" in capsys.readouterr().err
