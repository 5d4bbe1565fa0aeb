"""The verb cost: prices without a project, files of one's own, mistakes in one line, and a fast start."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest


def rows(said):
    return {row["what"]: row for row in json.loads(said.out)["rows"]}


def test_model_and_tokens_are_priced_without_a_project(cptplan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--gpu", "h100-sxm", "--num-devices", "32", "--tflops", "300", "--usd-per-hour", "2", "--json"]
    said = cptplan("cost", "--model", "8B", "--tokens", "50B", *arguments)
    assert said.code == 0
    found = rows(said)
    assert round(found["device hours by 6ND at that MFU"]["value"]) == 2222
    assert set(found["price"]) == {"what", "value", "unit", "basis", "source", "date"}
    assert "next: cptplan init" in said.err


def test_every_option_reaches_the_price(cptplan):
    base = ["cost", "--model", "1B", "--tokens", "1B", "--json"]
    plain = rows(cptplan(*base))
    for options, what in [
        (["--seq-len", "8192"], "FLOPs, exact"), (["--micro-batch", "2"], "memory: activations"),
        (["--lora", "8"], "device hours"), (["--strategy", "ddp"], "memory: weights"),
        (["--activation-checkpointing"], "memory: activations"), (["--eval-tokens", "10M"], "device hours"),
        (["--synthetic-tokens", "10M"], "device hours"), (["--mfu", "0.1"], "device hours"),
        (["--tflops", "100"], "wall clock"), (["--tokens-per-second", "5"], "wall clock"),
        (["--usd-per-hour", "0"], "price"), (["--co2-per-kwh", "0.02"], "CO2"), (["--num-devices", "2"], "wall clock"),
        (["--gpu", "l4"], "energy"),
    ]:  # fmt: skip
        assert rows(cptplan(*base, *options))[what]["value"] != plain[what]["value"], options
    kept = rows(cptplan(*base, "--checkpoints", "1", "--exports", "20"))
    assert kept["resume checkpoints, 1 kept"]["value"] * 2 == plain["resume checkpoints, 2 kept"]["value"]
    assert kept["exported models, 20 kept"]["value"] == pytest.approx(20 * plain["exported models, 1 kept"]["value"])


@pytest.mark.parametrize(
    ("arguments", "said_so"),
    [
        (["--tokens", "1B"], "--tokens must come with --model"),
        (["--model", "8B"], "--tokens must be a number of tokens; got None"),
        (["--model", "8B", "--tokens", "1G"], "--tokens must be a number of tokens; got '1G'"),
        (["--model", "8B", "--tokens", "1B", "--eval-tokens", "x"], "--eval-tokens must be a number of tokens"),
        (["--model", "8B", "--tokens", "1B", "--gpu", "h100"], "did you mean 'h100-sxm' or 'h100-pcie'?"),
        (["--model", "no/model", "--tokens", "1B"], "hf download no/model config.json"),
        (["--model", "no such", "--tokens", "1B"], "model must be a size, a directory"),
        (["--model", "8B", "--tokens", "1B", "--mfu", "0.4", "--tflops", "9"], "speed must be given once"),
        (["--model", "8B", "--tokens", "1B", "--mfu", "1.4"], "mfu must be in (0, 1]"),
        (["--model", "8B", "--tokens", "1B", "--tflops", "9999"], "mfu must be in (0, 1]"),
        (["--model", "8B", "--tokens", "1B", "--hardware", "none.yaml"], "hardware file must be readable"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_mistake_is_one_line_and_a_hint(cptplan, tmp_path, monkeypatch, arguments, said_so):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    said = cptplan("cost", *arguments)
    assert (said.code, said.out) == (2, "")
    assert said_so in " ".join(said.err.split())
    assert "Traceback" not in said.err


def test_refreshed_prices_are_used_from_then_on(cptplan, tmp_path, monkeypatch):
    offer = SimpleNamespace(provider="one", price=8.0, gpu_name="H100", gpu_memory=80.0, gpu_count=8)
    monkeypatch.setitem(sys.modules, "gpuhunt", SimpleNamespace(query=lambda **_: [offer]))
    monkeypatch.chdir(tmp_path)
    said = cptplan("cost", "--refresh-prices", "--json")
    assert said.code == 0
    assert json.loads(said.out)["file"] == "cptplan.hardware.yaml"
    found = rows(cptplan("cost", "--model", "1B", "--tokens", "1B", "--json"))
    assert found["price"]["value"] == pytest.approx(found["device hours"]["value"])  # 1 USD an hour


def test_price_without_a_plan_imports_nothing_heavy():
    code = (
        "import sys\nfrom cptplan.cli import main\nsys.argv = ['cptplan', 'cost', '--model', '8B', '--tokens', '50B']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'scipy', 'optuna', 'pandas', 'numpy', 'gpuhunt'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
