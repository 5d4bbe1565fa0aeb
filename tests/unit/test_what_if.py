"""What-if runs: every schedule with every ratio from one start, sensible defaults, and what is refused."""

from __future__ import annotations

import pytest
from known_fits import exact_fits

from cptplan.curves import CurveRecord, write_curve
from cptplan.errors import ConfigError, CurveError
from cptplan.schedule import WsdSchedule
from cptplan.simulation import what_if
from cptplan.simulation.published import find_published
from cptplan.simulation.simulation import simulate_curves
from cptplan.simulation.what_if import plan_what_if, read_replay_form

COSINE = {"kind": "cosine", "peak_lr": 1e-4, "total_steps": 500}
WSD = {"kind": "wsd", "peak_lr": 2.5e-4, "total_steps": 500, "decay_steps": 100}


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """A directory with curves and a fit that is exact."""
    record = CurveRecord(phase="pretrain", lr=WsdSchedule(kind="wsd", peak_lr=2e-4, total_steps=1000, decay_steps=200))
    for curve in simulate_curves(exact_fits(), {"base": record}).values():
        write_curve(tmp_path / "curves", curve)
    fit = tmp_path / "fits" / "abc"
    fit.mkdir(parents=True)
    (fit / "law.json").write_text("{}")
    monkeypatch.setattr(what_if, "read_fit", lambda _: exact_fits())
    return tmp_path


def test_published_law_alone_gives_the_usual_ratios_from_an_annealed_start():
    plan = plan_what_if("knowledge-pile")
    assert plan.chosen == ("cosine-2e-4-replay-0", "cosine-2e-4-replay-5", "cosine-2e-4-replay-30")
    assert list(plan.records) == ["base", *plan.chosen]
    assert plan.records["base"].lr.lr()[-1] == 0.0
    for name in plan.chosen:
        record = plan.records[name]
        assert (record.phase, record.parent, record.parent_step, record.lr.total_steps) == ("cpt", "base", None, 10_000)
    assert plan.fitted is None
    assert "figure 3" in plan.title
    assert any("replay acts by arXiv:2505.07796" in note for note in plan.notes)


def test_every_schedule_meets_every_ratio():
    ramp = {"kind": "ramp", "start_ratio": 0.5, "end_ratio": 0.1, "end_step": 100}
    plan = plan_what_if("pile-of-law", lrs=[COSINE, WSD, COSINE], replays=[0.015, ramp], start="0.5")
    assert plan.chosen == (
        "cosine-1e-4-replay-1.5",
        "cosine-1e-4-replay-ramp",
        "wsd-2.5e-4-replay-1.5",
        "wsd-2.5e-4-replay-ramp",
        "cosine-1e-4-replay-1.5-2",
        "cosine-1e-4-replay-ramp-2",
    )
    assert plan.records["base"].lr.lr()[-1] == pytest.approx(1e-4)
    simulate_curves(plan.source, plan.records)


def test_set_of_one_ratio_is_simulated_at_it():
    plan = plan_what_if("knowledge-pile-replay-33")
    assert plan.chosen == ("cosine-2e-4-replay-33",)
    assert plan.notes == find_published("knowledge-pile-replay-33").notes


def test_open_set_has_no_start():
    plan = plan_what_if("llama-3.2-1b-pile-of-law", lrs=[COSINE], replays=[0])
    assert list(plan.records) == ["cosine-1e-4-replay-0"]
    simulate_curves(plan.source, plan.records)
    with pytest.raises(ConfigError, match=r"--start must be left out where pre-training is unknown; got 0\.5"):
        plan_what_if("llama-3.2-1b-pile-of-law", start="0.5")


def test_fit_is_asked_three_times_as_far_as_its_pilots(campaign):
    plan = plan_what_if(str(campaign / "fits" / "abc"))
    assert plan.chosen == ("cosine-2e-4-replay-0", "cosine-2e-4-replay-5")  # 30 % was never tried
    assert plan.records[plan.chosen[0]].lr.total_steps == 1200
    assert plan.records["base"].lr.total_steps == 1000
    assert set(plan.fitted) == {"general", "domain"}


def test_start_is_a_run_at_a_step(campaign):
    plan = plan_what_if(str(campaign / "fits" / "abc"), start=f"{campaign}/curves/base@800")
    assert plan.records[plan.chosen[0]].parent_step == 800
    assert plan_what_if("knowledge-pile", start=f"{campaign}/curves/base").records["base"].lr.total_steps == 1000


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("1.5", r"--start must be a loss potential in \[0, 1\]; got 1\.5"),
        ("{campaign}/curves/base@1001", r"--start must name a step in \[1, 1000\]; got '1001'"),
        ("{campaign}/curves/base@x", r"--start must name a step in \[1, 1000\]; got 'x'"),
        ("{campaign}/curves/b*", r"--start must name one run; got the pattern 'b\*'"),
        ("{campaign}/curves/bose", "name must be a curve"),
    ],
)
def test_wrong_start_is_refused(campaign, start, says):
    with pytest.raises((ConfigError, CurveError), match=says):
        plan_what_if("knowledge-pile", start=start.format(campaign=campaign))


def test_fit_without_a_single_pretraining_run_asks_for_the_start(campaign):
    (campaign / "curves" / "base.csv").rename(campaign / "curves" / "one.csv")
    (campaign / "curves" / "base.json").rename(campaign / "curves" / "one.json")
    assert next(iter(plan_what_if(str(campaign / "fits" / "abc")).records)) == "one"
    for suffix in ("csv", "json"):
        (campaign / "curves" / f"two.{suffix}").write_bytes((campaign / "curves" / f"one.{suffix}").read_bytes())
    with pytest.raises(
        ConfigError, match="--start must name the run that CPT continues; got none, with 2 pre-training"
    ):
        plan_what_if(str(campaign / "fits" / "abc"))


def test_potential_is_no_start_for_a_fit(campaign):
    with pytest.raises(ConfigError, match=r"--start must be a run for a fitted law, .*; got '0\.5'\."):
        plan_what_if(str(campaign / "fits" / "abc"), start="0.5")


def test_directory_without_a_fit_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"law must be a fit or a published set; got no law\.json in"):
        plan_what_if(str(tmp_path))


def test_replay_form_is_read_by_name():
    assert read_replay_form("logarithmic") == "logarithmic"
    with pytest.raises(ConfigError, match=r"--replay-form must be exponential or logarithmic; got 'log'\."):
        read_replay_form("log")
