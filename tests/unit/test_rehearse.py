"""Virtual campaigns of a project: same for a seed, honest about rivals, and judged by the truth alone."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from command_line import PROJECT

from cptplan.errors import ConfigError
from cptplan.planning.knobs import Knobs, Space
from cptplan.planning.recipes import COMMON
from cptplan.planning.search import Score
from cptplan.rehearsal import rehearse
from cptplan.rehearsal import tables as rehearse_tables
from cptplan.rehearsal.rehearse import OURS, Campaign, Rehearsal
from cptplan.rehearsal.rivals import FIRST_RUNG, HALVING, RANDOM, TPE, rival_plans
from cptplan.rehearsal.setting import Asked, default_project, published_setting, setting_of, with_pilot_share
from cptplan.simulation.published import find_published

SPACE = Space(
    peak_lr=(1e-5, 1e-3), replay_ratio=(0.0, 0.6), total_steps=(250, 1000), decay_share=(0.0, 0.8), starts=("base",)
)


@pytest.fixture(scope="module")
def setting():
    project = with_pilot_share(default_project(find_published("knowledge-pile")), 0.05)
    small = project.model_copy(update={"pilot": project.pilot.model_copy(update={"num_runs": 6, "eval_points": 12})})
    return published_setting("knowledge-pile", small, {"general": 0.4, "domain": 0.6})


@pytest.fixture(scope="module")
def found(setting):
    return rehearse.rehearse(setting, 2, 3, lambda *_: None, processes=1)


def write_project(directory, *lines):
    path = directory / "cptplan.yaml"
    path.write_text(PROJECT + "".join(f"{line}\n" for line in lines))
    return path


def test_same_seed_same_campaigns_on_any_number_of_processes(setting, found):
    again = rehearse.run_campaign(setting, seed=7, number=1)  # the second campaign of seed 3
    assert again.plans == found.campaigns[1].plans
    assert again.objectives == found.campaigns[1].objectives
    assert found.campaigns[0].plans[OURS] != again.plans[OURS]


def test_no_plan_beats_the_optimum_of_its_space(found):
    assert found.contenders == (OURS, COMMON.name, RANDOM, TPE, HALVING)
    for name in set(found.contenders) - {COMMON.name}:
        assert (found.regrets(name) >= 0.0).all()
    # eight hundred runs and three polishes of the truth find nothing that ours misses by much
    assert np.median(found.regrets(OURS)) < np.median(found.regrets(COMMON.name))


def test_every_contender_runs_the_whole_budget_and_is_judged_by_the_truth(setting, found):
    truth = rehearse.true_forecaster(setting)
    for campaign in found.campaigns:
        for name, knobs in campaign.plans.items():
            assert campaign.objectives[name] == pytest.approx(truth.rough(knobs).objective, abs=1e-12)
            assert name == OURS or knobs.total_steps == 20_000
        assert campaign.pilot_tokens == 6 * 125 * 4194304


def test_truth_says_what_the_law_says_at_the_start(setting):
    truth = rehearse.true_forecaster(setting)
    assert set(truth.starts) == {"stable", "annealed"}
    assert truth.starts["stable"].losses["general"] > truth.starts["annealed"].losses["general"]
    assert truth.starts["annealed"].pretrain_lr.shape == (40_000,)


def test_advised_pilots_are_trained_and_paid_for_by_rivals_too(setting, found, monkeypatch):
    asked = []
    monkeypatch.setattr(rehearse, "rival_plans", lambda *given: asked.append(given) or {})
    more = rehearse.run_campaign(replace(setting, num_next=1), seed=6)
    assert more.pilot_tokens == 7 * 125 * 4194304
    assert asked[0][2] == 7 * 125
    assert more.plans[OURS] != found.campaigns[0].plans[OURS]


def test_team_without_the_pretraining_curve_fits_without_it(tmp_path):
    path = write_project(tmp_path)
    setting = setting_of(Asked(config=path, overrides=("budget.tokens=204800", "pilot.total_steps=100")))
    assert setting.told is not None
    forecaster = rehearse.fitted_forecaster(
        setting, rehearse.pilot_records(setting, rehearse.design_pilots(setting.project)), seed=0
    )
    assert len(forecaster.starts["base"].pretrain_lr) == 0
    assert forecaster.starts["base"].last_lr == 0.0


def test_rates_of_the_project_are_shares_of_the_pretraining_peak(tmp_path):
    setting = setting_of(Asked(config=write_project(tmp_path), overrides=("pilot.peak_lr_range=[3e-4, 3e-3]",)))
    assert setting.lr_unit == pytest.approx(15.0)  # 3e-3 against 2e-4
    assert setting.project.peak_lr_range == pytest.approx((2e-5, 2e-4))


def test_start_between_is_where_the_rate_was_what_it_says(tmp_path):
    starts = "model.starts=[{name: a, path: a, final_lr: 1.5e-3}, {name: b, path: b}]"
    setting = setting_of(Asked(config=write_project(tmp_path), overrides=(starts,)))
    rates = setting.pretraining["base"].lr.lr()
    step = setting.starts["a"].parent_step
    assert rates[step - 1] >= 1e-4 > rates[step]  # half of the peak of 2e-4
    assert setting.starts["b"].parent_step == 40_000


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"law": "knowledge-pile-replay-50"}, "--law must hold for any replay ratio; got knowledge-pile-replay-50"),
        ({"law": "knowledge"}, "law must be a published set"),
        ({"pilot_share": 1e-4}, "--pilot-share must give each of 8 pilots 20 steps; got 0.0001"),
        ({"overrides": ("seed=1",)}, "--set must come with a project"),
        ({"fit": "fits/abc"}, "--fit must come with its project"),
        ({"fit": "fits/abc", "law": "knowledge-pile"}, "truth must be one of --law and --fit"),
        ({"weights": "poetry=1"}, "poetry"),
        ({"replay_form": "none"}, "--replay-form must be"),
        ({"law": "llama-3.2-1b-pile-of-law"}, "unknown|known"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        setting_of(Asked(**changes))


def bowl(knobs: Knobs) -> Score:
    """Best at a rate of 1e-4 and 30 % replay, for any length."""
    off = np.log(knobs.peak_lr / 1e-4) ** 2 + (knobs.replay_ratio - 0.3) ** 2
    return Score(objective=float(off), losses={}, violations={"cap": knobs.replay_ratio - 0.4})


def test_rivals_spend_no_more_than_they_have_and_take_their_best():
    asked = []

    def measure(knobs):
        asked.append(knobs)
        return bowl(knobs)

    plans = rival_plans(measure, SPACE, total_steps=2700, trial_steps=270, seed=0)
    halving = [knobs for knobs in asked if knobs.total_steps != 270]
    assert sum(k.total_steps for k in asked[:10]) == 2700
    assert len(asked) == 10 + 10 + FIRST_RUNG + 3
    # the third rung's only run is trained, and paid for, but there is nothing left to compare it with
    assert sum(k.total_steps for k in halving) + 9 * 100 == 2700
    for name, sampled in ((RANDOM, asked[:10]), (TPE, asked[10:20])):
        allowed = [knobs for knobs in sampled if knobs.replay_ratio <= 0.4]
        best = min(allowed, key=lambda knobs: bowl(knobs).objective)
        assert plans[name] == replace(best, total_steps=1000)
    assert plans[HALVING].total_steps == 1000


def test_rows_csv_and_json_agree(setting):
    knobs = Knobs(peak_lr=1e-4, replay_ratio=0.3, total_steps=1000, decay_share=0.5, start="annealed")
    names = (OURS, COMMON.name)
    campaigns = tuple(
        Campaign(
            number=number,
            plans=dict.fromkeys(names, knobs),
            objectives={OURS: -0.3 + 0.01 * number, COMMON.name: -0.25},
            violations={OURS: -1.0, COMMON.name: 0.5},
            space=SPACE,
            inside={"objective": number > 0},
            predicted=-0.3,
            half_width=0.02,
            pilot_tokens=50 * setting.project.pilot.batch_tokens,
            seconds=1.0,
        )
        for number in range(4)
    )
    found = Rehearsal(campaigns=campaigns, optimum=(-0.31,) * 4, best=knobs, seconds=4.0)
    (ours, thumb) = rehearse_tables.rows(setting, found)
    assert ours == (OURS, "0.0250", "0.0370", "0.0400", "-")  # 0.01, 0.02, 0.03, 0.04
    assert thumb == (COMMON.name, "0.0600", "0.0600", "0.0600", "0%")
    assert len(rehearse_tables.columns(setting)) == len(ours)
    read = list(csv.DictReader(io.StringIO(rehearse_tables.csv_text(setting, found))))
    assert [float(row["regret"]) for row in read[:4]] == pytest.approx([0.01, 0.02, 0.03, 0.04])
    told = json.loads(json.dumps(rehearse_tables.to_json(setting, found, 0), allow_nan=False))
    assert told["regret"][OURS]["median"] == pytest.approx(0.025)
    assert told["coverage"] == {"objective": 0.75}
    assert told["pilots"]["share"] == pytest.approx(0.05)
    assert any("5.0%" in line for line in rehearse_tables.lines(setting, found))
    assert rehearse_tables.draw_regrets(setting, found).startswith(b"\x89PNG")
    limited = setting.project.model_copy(
        update={"goal": setting.project.goal.model_copy(update={"max_general_increase": 0.1})}
    )
    assert rehearse_tables.rows(replace(setting, project=limited), found)[1][-1] == "0%"


def test_verb_writes_what_it_shows(cptplan, tmp_path, monkeypatch, found):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rehearse, "rehearse", lambda *_: found)
    said = cptplan("rehearse", "--campaigns", 2, "--json")
    assert said.code == 0
    assert json.loads(said.out) == json.loads((tmp_path / "rehearsal" / "rehearsal.json").read_text())
    assert {path.name for path in (tmp_path / "rehearsal").iterdir()} == {
        "rehearsal.json",
        "regrets.csv",
        "regrets.png",
    }
    assert "rule of thumb" in said.err
    cptplan.assert_refused("rehearse", "--law", "nothing", says="law must be a published set; got 'nothing'")
