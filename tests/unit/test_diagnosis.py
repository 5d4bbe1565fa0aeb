"""Failure modes in synthetic logs, and healthy ones that must be diagnosed with nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from logged_runs import REPLAY, STEPS, domain_loss, general_loss, healthy, series, with_losses

from cptplan.advice.diagnosis import Remedy, diagnose
from cptplan.advice.run_log import EMPTY, RunLog
from cptplan.schedule import ConstantSchedule
from cptplan.simulation.published import find_published


def modes(log: RunLog) -> list[str]:
    return [finding.mode for finding in diagnose(log)]


def find(log: RunLog, mode: str):
    (found,) = (finding for finding in diagnose(log) if finding.mode == mode)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_healthy_run_is_diagnosed_with_nothing(seed):
    assert modes(healthy(seed)) == []


@pytest.mark.parametrize("seed", range(5))
def test_healthy_run_without_training_log_or_spec(seed):
    log = healthy(seed)
    assert modes(replace(log, train_loss=EMPTY, grad_norm=EMPTY, tokens_by_source={}, unique_tokens={})) == []


@pytest.mark.parametrize("name", ["knowledge-pile-replay-33", "knowledge-pile-replay-50", "knowledge-pile-replay-67"])
def test_published_curves_with_replay_are_healthy(name):
    from cptplan.laws.history import RunHistory

    published = find_published(name)
    lr = np.full(10_000, 2e-4)
    history = RunHistory(
        phase="cpt",
        pretrain_lr=published.pretrain_record(1.0).lr.lr(),
        pretrain_known=True,
        lr=lr,
        replay_ratio=np.full(len(lr), published.replay_ratio),
    )
    steps = np.unique(np.round(np.linspace(0, 1, 40) ** 2 * len(lr))).astype(np.int64)
    losses = {side: series(steps, law.mean(history, steps)) for side, law in published.laws().items()}
    log = replace(
        healthy(), losses=losses, train_loss=EMPTY, grad_norm=EMPTY, tokens_by_source={}, lr=lr, replay_ratios=lr * 0
    )
    assert modes(log) == []


def test_pretraining_is_not_judged():
    assert modes(replace(with_losses(healthy(), general=lambda s: 3.0 + s / 100), phase="pretrain")) == []


@pytest.mark.parametrize(("replay", "advised"), [(0.0, 0.1), (0.3, 0.6), (0.8, 0.9)])
def test_forgetting(replay, advised):
    log = with_losses(healthy(), general=lambda s: general_loss(s) + 0.5 * (1 - np.exp(-s / 100)))
    log = replace(log, replay_ratios=np.full(STEPS, replay), tokens_by_source={})
    found = find(log, "forgetting")
    assert found.remedy == Remedy(knob="replay_ratio", value=advised)
    assert "0.5" in found.evidence


def test_rise_below_the_limit_is_no_forgetting():
    assert modes(with_losses(healthy(), general=lambda s: general_loss(s) + 0.06 * (s > 0))) == []


@pytest.mark.parametrize("kind", ["train", "gradient", "domain"])
def test_lr_too_high(kind):
    log, every = healthy(), np.arange(1, STEPS + 1)
    climb = 0.8 * np.clip((every - 400) / 600, 0, 1)
    if kind == "train":
        log = replace(log, train_loss=series(every, log.train_loss.values + climb))
    if kind == "gradient":
        log = replace(log, grad_norm=series(every, log.grad_norm.values * (1 + 5 * climb)))
    if kind == "domain":
        log = with_losses(log, domain=lambda s: domain_loss(s) + 0.5 * np.clip((s - 400) / 600, 0, 1))
    assert find(log, "lr_too_high").remedy == Remedy(knob="peak_lr", factor=1 / 3)


def test_lr_too_low():
    log = with_losses(healthy(), domain=lambda s: 4.0 - 0.2 * s / STEPS)
    assert find(replace(log, train_loss=EMPTY), "lr_too_low").remedy == Remedy(knob="peak_lr", factor=3.0)


def test_too_short():
    log = with_losses(healthy(), domain=lambda s: 4.0 - 0.4 * np.log1p(s / 300))
    assert find(replace(log, train_loss=EMPTY), "too_short").remedy == Remedy(knob="total_steps", factor=2.0)


@pytest.mark.parametrize("real", [0.1, 0.5])
def test_tokens_off_the_plan_are_mix_imbalance(real):
    tokens = {"general": round(1e6 * real), "domain": round(1e6 * (1 - real))}
    found = find(healthy(tokens_by_source=tokens), "mix_imbalance")
    assert f"{real:.1%} of the tokens were general, {REPLAY:.1%} were planned" in found.evidence


def test_domain_read_too_often_is_mix_imbalance():
    log = with_losses(healthy(), domain=lambda s: domain_loss(s) + 0.3 * np.clip((s - 500) / 500, 0, 1))
    log = replace(log, unique_tokens={"domain": 50_000}, train_loss=EMPTY, grad_norm=EMPTY)
    found = find(log, "mix_imbalance")
    assert "14.0 passes" in found.evidence
    assert "lr_too_high" not in modes(log)


def test_memorised_text_is_mix_imbalance():
    log = healthy()
    late = np.clip(np.arange(STEPS) / STEPS, 0, 1)
    log = replace(log, train_loss=series(log.train_loss.steps, log.train_loss.values - 0.9 * late))
    assert "read too often" in find(log, "mix_imbalance").evidence


def test_domain_that_suffers_is_mix_imbalance():
    log = healthy()
    rows = log.losses["domain"].steps
    log = replace(log, losses={**log.losses, "law": series(rows, 3.0 + 0.1 * rows / STEPS)}, train_loss=EMPTY)
    assert "loss_law rises" in find(log, "mix_imbalance").evidence


def test_tokenizer_mismatch():
    found = find(with_losses(healthy(), general=lambda s: 11.0 - 0.5 * (s > 0)), "tokenizer_mismatch")
    assert "11.00 before any training" in found.evidence


def test_contamination():
    log = healthy()
    assert modes(log) == []
    log = replace(log, train_loss=series(log.train_loss.steps, log.train_loss.values + 0.6))
    assert "easier" in find(log, "contamination").evidence


@pytest.mark.parametrize("kind", ["losses", "events", "not finite"])
def test_spikes(kind):
    log = healthy()
    values = log.train_loss.values.copy()
    if kind == "losses":
        values[[300, 450, 600]] += 3.0
    if kind == "not finite":
        values[500] = np.nan
    events = ((400, "skip", "step 400 not applied"), (500, "warn", "forgetting_ratio")) if kind == "events" else ()
    log = replace(log, train_loss=series(log.train_loss.steps, values), events=events)
    assert modes(log) == ["spikes"]


def test_two_leaps_are_no_spikes():
    log = healthy()
    values = log.train_loss.values.copy()
    values[[300, 600]] += 3.0
    assert modes(replace(log, train_loss=series(log.train_loss.steps, values))) == []


def test_plateau_only_at_a_high_rate():
    flat = with_losses(healthy(), domain=lambda s: 4.0 - 0.5 * (1 - np.exp(-s / 60)))
    assert modes(flat) == []  # its rate has fallen to 0: it is annealed
    constant = ConstantSchedule(kind="constant", peak_lr=1e-3, total_steps=STEPS).lr()
    found = find(replace(flat, lr=constant, train_loss=EMPTY), "plateau")
    assert found.remedy == Remedy(knob="decay_share", value=0.3)


def test_every_finding_says_what_to_do():
    worst = with_losses(healthy(), general=lambda s: 11.0 + s / 1000, domain=lambda s: 4.0 - 0.2 * s / STEPS)
    found = diagnose(replace(worst, tokens_by_source={"general": 1, "domain": 1}))
    assert len(found) >= 3
    assert len({finding.mode for finding in found}) == len(found)
    for finding in found:
        assert finding.run == "run"
        assert finding.evidence
        assert finding.advice
