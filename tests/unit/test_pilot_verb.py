"""cptplan pilot: the designed runs with their price, and one more pilot when it is worth it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from campaign_files import make_corpora
from command_line import write_project
from simple_laws import make_project

from cptplan.files import write_json
from cptplan.pilots import next_stage
from cptplan.pilots.next_pilot import PilotValue
from cptplan.pilots.next_stage import Advice
from cptplan.planning.knobs import Knobs
from cptplan.run_spec import read_run_spec, write_run_spec
from cptplan.workspace import Workspace

KNOBS = Knobs(peak_lr=1e-3, replay_ratio=0.24, total_steps=8, decay_share=0.5, start="annealed", warmup_steps=2)


def make_advice(value=0.01, longer=0.0, gpu_hours: float | None = 0.5) -> Advice:
    best = PilotValue(knobs=KNOBS, value=value, tokens=2048, gpu_hours=gpu_hours)
    return Advice(
        fit_dir=Path("fits/abc"),
        regret=0.02,
        candidates=(best, replace(best, value=value / 2)),
        share=0.01,
        longer=longer,
    )


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "campaign" / "data" / "corpora.json", make_corpora(general=10**5, domain=10**5))
    return Workspace(root=Path("campaign"))


def test_dry_run_prices_the_design(cptplan, campaign):
    said = cptplan("pilot", "--dry-run", "--json")
    told = json.loads(said.out)
    assert [pilot["name"] for pilot in told["pilots"]] == [f"pilot-0{number}" for number in range(1, 7)]
    assert told["share"] == pytest.approx(sum(pilot["share"] for pilot in told["pilots"]))
    assert told["max_share"] == 0.05
    assert "the shift alone at the highest rate" in said.err
    assert "pilot.max_share is 5.0%" in said.err
    assert not campaign.runs.exists()


def test_dry_run_says_which_pilots_repeat(cptplan, campaign):
    write_json(campaign.data / "corpora.json", make_corpora(general=10**5, domain=4096))
    told = json.loads(cptplan("pilot", "--dry-run", "--json", "--set", "budget.max_epochs=4").out)
    assert {pilot["name"]: pilot["passes"] for pilot in told["pilots"] if pilot["passes"]} == {
        "pilot-03": {"domain": 2.0},
        "pilot-04": {"domain": 2.0},
    }
    (campaign.data / "corpora.json").unlink()
    said = cptplan("pilot", "--dry-run", "--set", "budget.max_epochs=4")
    assert "which pilots repeat their text is known when the corpora are packed" in said.err


@pytest.mark.parametrize(
    ("value", "longer", "worth"), [(0.01, 0.002, True), (0.01, 0.02, False), (0.0009, 0.0, False), (0.001, 0.0, True)]
)
def test_pilot_is_worth_more_than_its_tokens_in_the_final_run(value, longer, worth):
    advice = make_advice(value, longer)
    assert advice.worth is worth
    assert ("No pilot is worth its price" in advice.line()) is not worth


def test_next_that_is_not_worth_it_says_so_and_ends_well(cptplan, campaign, monkeypatch):
    monkeypatch.setattr(next_stage, "advise_next", lambda *_: make_advice(0.0001))
    monkeypatch.setattr(next_stage, "run_next", lambda *_: pytest.fail("nothing is to be trained"))
    said = cptplan("pilot", "--next", "--json")
    assert said.code == 0
    assert json.loads(said.out)["worth"] is False
    assert "No pilot is worth its price" in said.err
    assert said.err.splitlines()[-1] == "next: cptplan optimize -o campaign"


def test_next_trains_the_best_and_fits_again(cptplan, campaign, monkeypatch):
    advices, trained = iter([make_advice(0.01), make_advice(0.0002, gpu_hours=None)]), []
    monkeypatch.setattr(next_stage, "advise_next", lambda *_: next(advices))
    monkeypatch.setattr(next_stage, "run_next", lambda *given: trained.append(given[3]) or [{"name": "done"}])
    said = cptplan("pilot", "--next", "--json", "--set", "model.starts=[{name: annealed, path: base}]")
    (job,) = trained[0]
    assert (job.spec.name, job.spec.total_steps, float(job.spec.lr().max())) == ("pilot-next-01", 8, 1e-3)
    assert job.spec.replay_ratios()[0] == 0.24
    told = json.loads(said.out)
    assert (told["worth"], told["after"]["worth"], told["runs"]) == (True, False, [{"name": "done"}])
    assert "Regret that is left" in said.err


def test_dry_run_of_next_trains_nothing(cptplan, campaign, monkeypatch):
    monkeypatch.setattr(next_stage, "advise_next", lambda *_: make_advice(0.01))
    said = cptplan("pilot", "--next", "--dry-run")
    assert said.code == 0
    assert said.err.splitlines()[-1].endswith("--next")
    assert not campaign.runs.exists()


def test_stopped_advised_pilot_goes_on_before_another_is_advised(cptplan, campaign, tmp_path, monkeypatch):
    project = make_project(tmp_path, "seed=0")
    job = next_stage.next_job(project, campaign, make_advice())
    write_run_spec(job.run_dir / "spec.json", job.spec)
    assert next_stage.next_job(project, campaign, make_advice()).spec.name == "pilot-next-02"
    trained = []
    monkeypatch.setattr(next_stage, "run_next", lambda *given: trained.append(given[3]) or [])
    monkeypatch.setattr(next_stage, "advise_next", lambda *_: pytest.fail("the old one comes first"))
    assert cptplan("pilot", "--next").code == 0
    assert trained[0][0].spec == read_run_spec(job.run_dir / "spec.json")
    write_json(job.run_dir / "result.json", {})
    assert next_stage.unfinished(campaign, project) == []


def test_next_needs_curves(cptplan, campaign):
    cptplan.assert_refused("pilot", "--next", says="curve")
    cptplan.assert_refused("pilot", "--weights", "general=0.4", says="--weights must come with --next")
