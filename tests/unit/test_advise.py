"""Which method for which situation, and the default recipe; every claim names a source or is a rule of thumb."""

from __future__ import annotations

import re

import pytest

from cptplan.advice import advise as module
from cptplan.advice.advise import USES, Fact, Situation, advise, recipe


def fact(value: float) -> Fact:
    return Fact(value=value, basis="measured", source="test")


def situation(tokens=1e9, gap=1.5, **changes) -> Situation:
    values = {
        "corpus_tokens": None if tokens is None else fact(tokens),
        "gap": None if gap is None else fact(gap),
        "num_params": 8e9,
        "full_fits": True,
        "lora_fits": True,
    }
    return Situation(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({}, "cpt"),
        ({"tokens": 50e6}, "cpt"),
        ({"tokens": 1e6}, "rag"),
        ({"gap": 1.02}, "nothing"),
        ({"budget_tokens": fact(1e6)}, "rag"),
        ({"full_fits": False}, "lora"),
        ({"full_fits": False, "lora_fits": False}, "cpt"),
        ({"use": "facts-that-change"}, "rag"),
        ({"use": "style"}, "lora"),
        ({"use": "task"}, "fine-tuning"),
        ({"use": "task", "tokens": 1e3}, "fine-tuning"),
    ],
)
def test_method(changes, method):
    assert advise(situation(**changes)).method == method


@pytest.mark.parametrize(("tokens", "gap", "beside"), [(1e9, 1.5, 1), (1e9, 1.0, 0), (1e6, 1.5, 0)])
def test_a_task_is_trained_on_the_domain_first_when_there_is_text_for_it(tokens, gap, beside):
    assert len(advise(situation(tokens, gap, use="task")).beside) == beside


def test_what_is_not_known_is_said_and_makes_the_advice_unsure():
    found = advise(situation(tokens=None, gap=None))
    assert (found.method, found.sure, len(found.unknown)) == ("cpt", False, 2)
    assert "--corpus-tokens" in found.unknown[0]
    assert "--domain-perplexity" in found.unknown[1]
    assert advise(situation()).sure
    assert advise(situation(gap=None, use="style")).sure  # the gap does not decide there


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("tokens", [None, 1e6, 50e6, 1e9])
@pytest.mark.parametrize("gap", [None, 1.0, 1.2, 1.5])
def test_every_reason_stands_on_something(use, tokens, gap):
    found = advise(situation(tokens, gap, use=use))
    assert found.reasons
    for reason in found.reasons:
        assert reason.text
        if reason.basis == "published":
            assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", reason.source)
    for setting in recipe(situation(tokens, gap, use=use)):
        assert setting.source
        if setting.basis == "published":
            assert re.search(r"arXiv:\d{4}\.\d{5}", setting.source)


@pytest.mark.parametrize(
    ("gap", "replay", "basis"),
    [(1.0, 0.05, "published"), (1.2, 0.1, "rule of thumb"), (1.5, 0.25, "published"), (None, 0.1, "rule of thumb")],
)
def test_replay_by_shift(gap, replay, basis):
    (setting,) = (s for s in recipe(situation(gap=gap)) if s.name == "replay_ratio")
    assert (setting.value, setting.basis) == (replay, basis)


@pytest.mark.parametrize(
    ("size", "peak", "rate"),
    [
        (4e8, 3e-4, 3e-4),  # small: its own peak
        (4e8, None, 2e-4),
        (1e9, 3e-4, 2e-5),
        (1e9, 1e-4, 1e-5),  # a tenth of the peak is less
        (3e9, None, 3e-5),
        (8e9, None, 5e-6),
        (70e9, 1.5e-4, 5e-6),
        (None, 3e-4, 3e-5),
        (None, None, "unknown"),
    ],
)
def test_rate_by_size(size, peak, rate):
    (setting,) = (s for s in recipe(situation(num_params=size, pretrain_peak_lr=peak)) if s.name == "peak_lr")
    assert setting.value == (rate if isinstance(rate, str) else pytest.approx(rate))


def test_length_is_four_epochs_or_the_budget():
    def length(**changes):
        return next(s.value for s in recipe(situation(**changes)) if s.name == "total_tokens")

    assert length() == pytest.approx(4e9 / 0.75)
    assert length(budget_tokens=fact(1e9)) == 1e9
    assert not [s for s in recipe(situation(tokens=None)) if s.name == "total_tokens"]


def test_thresholds_rise():
    assert module.TOO_FEW_TOKENS < module.ENOUGH_TOKENS
    assert module.WEAK_GAP < module.STRONG_GAP
    assert [limit for limit, _, _ in module.LR_BY_SIZE] == sorted(limit for limit, _, _ in module.LR_BY_SIZE)
