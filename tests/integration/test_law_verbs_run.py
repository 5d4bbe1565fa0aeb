"""The verbs one after another, as a user types them: simulate a campaign, fit it, predict a run it has not seen."""

from __future__ import annotations

import json

import pytest

SCHEDULE = '{{"kind": "{kind}", "peak_lr": {peak}, "total_steps": {steps}, "warmup_steps": 20{more}}}'


def test_simulated_campaign_is_fitted_and_predicts_a_longer_run(cptplan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pilots = [
        ("--lr", SCHEDULE.format(kind=kind, peak=peak, steps=1000, more=more))
        for peak in (2e-4, 6e-5)
        for kind, more in (("constant", ""), ("wsd", ', "decay_steps": 400'))
    ]
    ratios = [("--replay", ratio) for ratio in (0, 0.02, 0.3)]
    noise = ("--noise", 0.002, "--replay-form", "logarithmic", "--out", "curves")
    said = cptplan("simulate", *(word for pair in (*pilots, *ratios) for word in pair), *noise)
    assert said.code == 0, said.err
    said = cptplan("fit", "curves", "--out", "campaign")
    assert said.code == 0, said.err

    longer = ("--lr", SCHEDULE.format(kind="cosine", peak=1e-4, steps=4000, more=""), "--replay", 0.1)
    assert cptplan("simulate", *longer, "--replay-form", "logarithmic", "--out", "longer").code == 0
    said = cptplan("predict", "--curves", "longer", "--json")
    assert said.code == 0, said.err
    (run,) = json.loads(said.out)["runs"].values()
    for end in run["sets"].values():
        # measured: 0.02 to 0.2 %; the point is that the verbs fit together, experiments/benchmarks measures how well
        assert end["predicted"] == pytest.approx(end["measured"], rel=0.01)
        assert end["low"] < end["predicted"] < end["high"]
