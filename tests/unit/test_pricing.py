"""Rows of a price: tokens as people write them, what is measured here, what is assumed there."""

from __future__ import annotations

import datetime

import pytest
from command_line import PROJECT, write_model

from cptplan.config import read_project
from cptplan.errors import ConfigError
from cptplan.files import write_json
from cptplan.price.pricing import PriceRow, Terms, parse_tokens, price_model, price_plan, source_lines
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
        ("1b", 1e9),
    ],
)
def test_tokens(text, tokens):
    assert parse_tokens(text) == pytest.approx(tokens, rel=1e-15)


@pytest.mark.parametrize("text", [None, "", "x", "B", "-1B", "0", "0B", "1G", "1 B", "1e-9", "nan", "inf"])
def test_tokens_that_are_no_number(text):
    with pytest.raises(ConfigError, match="--tokens must be a number of tokens; got"):
        parse_tokens(text)


def priced(model, tokens=1e9, gpu="a100-80gb", **terms):
    """Rows of a price by name."""
    return {row.what: row for row in price_model(str(model), tokens, gpu, Terms(**{"seq_len": 128, **terms}))}


def test_model_of_a_directory(tmp_path):
    write_model(tmp_path / "base")
    rows = priced(tmp_path / "base", gpu="h100-sxm", num_devices=2)
    flops = rows["FLOPs, 6ND"]
    # two layers of attention, MLP and two norms; the last norm; the head, which is a matrix product, tied or not
    num_params = 2 * (4 * 32**2 + 3 * 32 * 64 + 2 * 32) + 32 + 512 * 32
    assert flops.value == pytest.approx(6 * num_params * 1e9)
    assert rows["FLOPs, exact"].value > flops.value
    assert rows["fewest devices that fit"].value == 1
    assert rows["device hours"].value == pytest.approx(2 * rows["wall clock"].value)
    assert rows["accelerators"].text == "2 x h100-sxm"
    assert all(row.source for row in rows.values())
    assert all(len(row.cells()) == 4 for row in rows.values())


def test_twice_the_tokens_cost_twice(tmp_path):
    write_model(tmp_path / "base")
    once, twice = (priced(tmp_path / "base", tokens) for tokens in (1e9, 2e9))
    for what in ("FLOPs, 6ND", "device hours", "price", "energy", "CO2"):
        assert twice[what].value == pytest.approx(2 * once[what].value)
    assert twice["memory of one device"].value == once["memory of one device"].value


def test_the_field_s_numbers_of_an_8b():
    rows = priced("8B", 50e9, "h100-sxm", flops_per_second=300e12, usd_per_hour=2.0, num_devices=32, seq_len=4096)
    assert rows["device hours by 6ND at that MFU"].value == pytest.approx(2222.2, rel=1e-3)
    assert rows["MFU"].value == pytest.approx(300 / 989)
    assert rows["price"].value == pytest.approx(2.0 * rows["device hours"].value)


def test_memory_parts_sum_to_the_whole():
    rows = priced("1B", num_devices=4, strategy="hsdp")
    parts = [row.value for what, row in rows.items() if what.startswith("memory: ")]
    assert sum(parts) == pytest.approx(rows["memory of one device"].value)


@pytest.mark.parametrize(
    ("terms", "fits"),
    [({"num_devices": 1}, False), ({"num_devices": 8}, True), ({"num_devices": 8, "strategy": "ddp"}, False),
     ({"num_devices": 1, "lora_rank": 16, "activation_checkpointing": True}, True)],
    ids=str,
)  # fmt: skip
def test_an_8b_fits_or_not(terms, fits):
    row = priced("8B", seq_len=1024, **terms)["memory of one device"]
    assert row.unit == f"GB of 80, {'fits' if fits else 'does not fit'}"


def test_hsdp_within_a_node_shards_no_further():
    wide, node = (priced("8B", num_devices=n, strategy="hsdp")["memory: weights"].value for n in (64, 8))
    assert wide == node == 8 * priced("8B", num_devices=64)["memory: weights"].value


def test_no_number_of_devices_is_enough():
    rows = priced("405B", gpu="rtx4090", seq_len=32768)
    assert rows["fewest devices that fit"].value is None
    assert rows["fewest that fit, checkpointing"].text == "none"


def test_adapters_show_what_is_trained():
    rows = priced("8B", lora_rank=8, num_devices=8)
    assert 15e6 < rows["trained parameters, LoRA rank 8"].value < 30e6
    assert "device hours by 6ND at that MFU" not in rows  # the rule is of full training
    assert rows["device hours"].value < priced("8B", num_devices=8)["device hours"].value


def test_evaluation_and_synthetic_replay_are_priced():
    plain = priced("1B")
    evaluated, written = priced("1B", eval_tokens=1e8), priced("1B", synthetic_tokens=1e8)
    assert evaluated["device hours"].value > plain["device hours"].value
    more = written["device hours"].value - plain["device hours"].value
    assert written["of these, writing synthetic replay"].value == pytest.approx(more, rel=1e-6)


def test_measured_speed_as_given_is_measured():
    rows = priced("1B", 1e6, tokens_per_second=1000.0, num_devices=2)
    assert rows["wall clock"].value == pytest.approx(1000 / 3600)
    assert rows["wall clock"].basis == "measured"


def test_hardware_file_is_used(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("accelerators:\n  a100-80gb:\n    usd_per_hour: {value: 1, basis: assumed, source: our contract}\n")
    rows = priced("1B", hardware_file=path)
    assert rows["price"].value == pytest.approx(rows["device hours"].value)
    assert "our contract" in rows["price"].source


def test_sources_are_said_once_with_what_they_enter():
    def row(what, source, date=None):
        return PriceRow(what=what, value=1.0, text="1", unit="", basis="assumed", source=source, date=date)

    day = datetime.date(2026, 1, 31)
    rows = [row("a", "s", day), row("b", "s + t", day), row("c", "u"), *(row(f"d{n}", "v") for n in range(4))]
    assert source_lines(rows) == ["a, b: s (2026-01-31)", "b: t", "c: u", "d0 to d3: v"]


def test_unknown_accelerator_gets_a_suggestion():
    with pytest.raises(ConfigError) as caught:
        priced("8B", gpu="a100-80g")
    assert "a100-80gb" in caught.value.hint


def test_plan_is_timed_by_the_pilots_that_ran_here(tmp_path, monkeypatch, example_plan):
    from cptplan.planning.plan import write_plan

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
        result = {"tokens": 1000 * number, "train_seconds": 2.0, "eval_seconds": 1.0, "device": "cpu"}
        write_json(workspace.runs / f"pilot-0{number}" / "result.json", result)
    rows = {row.what: row for row in price_plan(project, workspace)}
    assert rows["speed here, one run"].value == 750.0  # 3000 tokens in 4 s
    tokens = example_plan.chosen.total_steps * example_plan.batch_tokens
    assert rows["time here, with evaluation"].value == pytest.approx(tokens / 750.0 * 1.5)
    assert rows["time here, with evaluation"].basis == "measured"
    assert rows["accelerators"].text == "1 x h100-sxm"
    elsewhere = {r.what: r for r in price_plan(project, workspace, gpu="a100-80gb", num_devices=4)}
    assert elsewhere["accelerators"].text == "4 x a100-80gb"


def test_plan_is_priced_by_what_runs_measured_on_its_accelerator(tmp_path, monkeypatch, example_plan):
    from cptplan.planning.plan import write_plan

    (tmp_path / "cptplan.yaml").write_text(PROJECT)
    write_model(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    example_plan = example_plan.model_copy(update={"chosen": example_plan.chosen.model_copy(update={"start": "base"})})
    workspace = Workspace(root=tmp_path / "campaign")
    project = read_project(tmp_path / "cptplan.yaml")
    write_plan(workspace.plans / "abc" / "plan.json", example_plan)
    workspace.set_latest("plans", "abc")
    num_params = round({r.what: r for r in price_plan(project, workspace)}["parameters"].value)
    result = {"tokens": 3000, "train_seconds": 2.0, "eval_seconds": 0.0, "device": "NVIDIA H100 80GB HBM3",
              "num_processes": 1, "num_params_total": num_params}  # fmt: skip
    write_json(workspace.runs / "pilot-01" / "result.json", result)
    rows = {row.what: row for row in price_plan(project, workspace)}
    assert (rows["speed"].value, rows["speed"].basis) == (1500.0, "measured")
    two = {row.what: row for row in price_plan(project, workspace, num_devices=2)}
    assert (two["speed"].value, two["speed"].basis) == (3000.0, "assumed")  # in proportion
    told = {row.what: row for row in price_plan(project, workspace, terms=Terms(mfu=0.1))}
    assert told["MFU"].value == pytest.approx(0.1)
