"""Rows of a price: tokens as people write them, what is measured here, what is assumed there."""

from __future__ import annotations

import pytest
from command_line import PROJECT, write_model

from cptplan.config import read_project
from cptplan.errors import ConfigError
from cptplan.files import write_json
from cptplan.pricing import parse_tokens, price_model, price_plan
from cptplan.workspace import Workspace


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("50B", 5e10),
        ("1.5T", 1.5e12),
        ("2e9", 2e9),
        ("2E+9", 2e9),
        (" 300M ", 3e8),
        ("7K", 7e3),
        ("1", 1),
        ("0.5B", 5e8),
    ],
)
def test_tokens(text, tokens):
    assert parse_tokens(text) == pytest.approx(tokens, rel=1e-15)


@pytest.mark.parametrize("text", [None, "", "x", "B", "-1B", "0", "0B", "1G", "1 B", "1e-9", "nan", "inf", "1b"])
def test_tokens_that_are_no_number(text):
    with pytest.raises(ConfigError, match="--tokens must be a number of tokens; got"):
        parse_tokens(text)


def test_model_of_a_directory(tmp_path):
    write_model(tmp_path / "base")
    rows = {row.what: row for row in price_model(tmp_path / "base", 1e9, "h100-sxm", 2, 128)}
    flops = rows["FLOPs, 6ND"]
    # two layers of attention, MLP and two norms; the last norm; the head, which is a matrix product, tied or not
    num_params = 2 * (4 * 32**2 + 3 * 32 * 64 + 2 * 32) + 32 + 512 * 32
    assert flops.value == pytest.approx(6 * num_params * 1e9)
    assert rows["FLOPs, exact with attention, head and evaluation"].value > flops.value
    assert rows["fewest h100-sxm that fit"].value == 1
    hours, wall = rows["device hours on 2 x h100-sxm"], rows["wall clock on 2 x h100-sxm"]
    assert hours.value * 3600 == pytest.approx(2 * wall.value)
    assert all(row.source for row in rows.values())
    assert all(len(row.cells()) == 4 for row in rows.values())


def test_twice_the_tokens_cost_twice(tmp_path):
    write_model(tmp_path / "base")
    once, twice = (
        {row.what: row.value for row in price_model(tmp_path / "base", tokens, "a100-80gb", 8, 128)}
        for tokens in (1e9, 2e9)
    )
    for what in ("FLOPs, 6ND", "device hours on 8 x a100-80gb", "price on 8 x a100-80gb", "energy on 8 x a100-80gb"):
        assert twice[what] == pytest.approx(2 * once[what])
    assert twice["memory of one device"] == once["memory of one device"]


def test_unknown_accelerator_gets_a_suggestion(tmp_path):
    write_model(tmp_path / "base")
    with pytest.raises(ConfigError) as caught:
        price_model(tmp_path / "base", 1e9, "a100-80g", 8, 128)
    assert "a100-80gb" in caught.value.hint


def test_plan_is_timed_by_the_pilots_that_ran_here(tmp_path, monkeypatch, example_plan):
    from cptplan.plan import write_plan

    (tmp_path / "cptplan.yaml").write_text(PROJECT)
    write_model(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    example_plan = example_plan.model_copy(update={"chosen": example_plan.chosen.model_copy(update={"start": "base"})})
    workspace = Workspace(root=tmp_path / "campaign")
    project = read_project(tmp_path / "cptplan.yaml")
    write_plan(workspace.plans / "abc" / "plan.json", example_plan)
    workspace.set_latest("plans", "abc")
    assert "speed here, one run" not in {row.what for row in price_plan(project, workspace)}
    for number in (1, 2):
        result = {"tokens": 1000 * number, "train_seconds": 2.0, "eval_seconds": 1.0}
        write_json(workspace.runs / f"pilot-0{number}" / "result.json", result)
    rows = {row.what: row for row in price_plan(project, workspace)}
    assert rows["speed here, one run"].value == 750.0  # 3000 tokens in 4 s
    tokens = example_plan.chosen.total_steps * example_plan.batch_tokens
    assert rows["time here, with evaluation"].value == pytest.approx(tokens / 750.0 * 1.5)
    assert rows["time here, with evaluation"].basis == "measured"
    assert "price on 1 x h100-sxm" in rows
    assert "price on 4 x a100-80gb" in {r.what for r in price_plan(project, workspace, gpu="a100-80gb", num_devices=4)}
