"""What pilots cost beside the final run, and what to change when they cost too much."""

from __future__ import annotations

import pytest
from command_line import write_project

from cptplan.config import read_project
from cptplan.errors import ModelError
from cptplan.pilots.cost import bill_lines, pilot_bill, run_cost


@pytest.fixture
def project_of(tmp_path, monkeypatch):
    path = write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: read_project(path, overrides)


def test_price_is_that_of_the_hardware_and_shares_are_of_the_final_run(project_of):
    project = project_of("budget.tokens=25600000", "pilot.total_steps=1000", "data.validation_tokens=64")
    bill = pilot_bill(project)
    assert bill.each.tokens == 256_000
    # a hundredth of the final run's tokens; its evaluation, as long as the final run's, is a hair on top
    assert bill.each.share == pytest.approx(0.01, rel=0.01)
    assert bill.share == pytest.approx(6 * bill.each.share)
    assert bill.each.usd / bill.each.gpu_hours > 0
    dear = pilot_bill(project_of("budget.tokens=25600000", "pilot.total_steps=1000", "budget.hardware=a100-80gb"))
    assert dear.each.gpu_hours > bill.each.gpu_hours
    assert "h100-sxm" in bill.line()


def test_without_the_model_tokens_are_the_price(project_of):
    starts = "model.starts=[{name: base, path: nowhere}]"
    project = project_of(starts, "budget.tokens=25600000", "pilot.total_steps=1000", "data.validation_tokens=64")
    bill = pilot_bill(project)
    assert bill.each.gpu_hours is None
    # 5 points x 2 sets x 64 tokens at a third: 213 on 256,000
    assert bill.each.share == pytest.approx((256_000 + 213) / (25_600_000 + 213), rel=1e-4)
    with pytest.raises(ModelError):
        pilot_bill(project_of(starts, "budget={gpu_hours: 1}"))


def test_too_dear_pilots_say_which_length_keeps_the_share(project_of):
    asked = ("budget.tokens=25600000", "pilot.total_steps=2000", "data.validation_tokens=64")
    project = project_of(*asked)
    (line, longer) = bill_lines(project, pilot_bill(project))
    steps = int(line.split("pilot.total_steps=")[1].split(";")[0])
    assert 6 * run_cost(project, steps)[0].share <= 0.05 < 6 * run_cost(project, steps + 2)[0].share
    assert longer.startswith("The budget pays for 100,000 steps, 50 times a pilot: intervals")
    short = project_of(*asked, "pilot.total_steps=500", "pilot.max_share=1")
    (beyond,) = bill_lines(short, pilot_bill(short))
    assert "pays for 100,000 steps; pilots of 500 support a plan of 80,000" in beyond
    accepted = line.split("--set ")[1].rstrip(".")
    assert len(bill_lines(project_of(*asked, accepted), pilot_bill(project))) == 1


def test_no_length_is_short_enough_for_a_small_budget(project_of):
    project = project_of()
    (line,) = bill_lines(project, pilot_bill(project))
    assert "a larger budget (no pilot is short enough)" in line


def test_share_may_be_given_in_percent(project_of):
    assert project_of("pilot.max_share=12%").pilot.max_share == pytest.approx(0.12)
