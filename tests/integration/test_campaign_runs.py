"""A user's own project through the verbs, with real runs: Ctrl-C on the way, JSON for scripts, second runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import model_config, no_leftovers, write_project

from cptplan.curves import read_curve_directory
from cptplan.files import read_json
from cptplan.run_spec import read_run_spec
from executor.run_lock import only_one

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from cptplan.cli import main; main()", *map(str, arguments)]


def start(directory: Path, *arguments: object) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*arguments), cwd=directory, env=ENVIRONMENT, start_new_session=True, **pipes)


def run(directory: Path, *arguments: object, code: int = 0) -> dict[str, object]:
    """Run a verb with --json; its data."""
    process = start(directory, *arguments, "--json")
    out, err = process.communicate(timeout=180)
    assert process.returncode == code, err
    return json.loads(out)


def wait_for(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def trained_steps(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("train_loss") if path.exists() else 0


def trainers(directory: Path) -> list[int]:
    """Processes that work below a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"executor.train" in words and any(str(directory).encode() in word for word in words):
            found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    """A model directory with real weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    root = tmp_path_factory.mktemp("base")
    write_project(root)
    config = model_config(512)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    model.save_pretrained(root / "base")
    return root / "base"


@pytest.fixture(scope="module")
def campaign_dir(tmp_path_factory, base_model):
    """A project whose pilots were stopped by Ctrl-C and then finished."""
    directory = tmp_path_factory.mktemp("project")
    write_project(directory)
    for path in base_model.iterdir():
        (directory / "base" / path.name).write_bytes(path.read_bytes())
    return directory


@pytest.fixture(scope="module")
def stopped(campaign_dir):
    """What the planner said when Ctrl-C met it amid the first pilots."""
    process = start(campaign_dir, "pilot", "--set", "pilot.total_steps=24", "--set", "pilot.parallel=2")
    wait_for(lambda: trained_steps(campaign_dir / "campaign" / "runs" / "pilot-01") >= 2)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


SETTINGS = ("--set", "pilot.total_steps=24", "--set", "pilot.parallel=2")


@pytest.fixture(scope="module")
def finished(campaign_dir, stopped):
    """The data of the pilot verb, run again after Ctrl-C."""
    return run(campaign_dir, "pilot", *SETTINGS)


def test_ctrl_c_stops_the_runs_and_says_how_to_go_on(campaign_dir, stopped):
    code, out, err = stopped
    assert code == 130
    assert err.splitlines()[-1] == "stopped; the same command goes on where it was"
    assert "Traceback" not in err
    assert out == ""
    assert trainers(campaign_dir) == []
    assert no_leftovers(campaign_dir)


def test_pilots_are_finished_by_the_same_command(campaign_dir, finished):
    assert [result["name"] for result in finished["runs"]] == [f"pilot-0{n}" for n in range(1, 7)]
    runs = campaign_dir / "campaign" / "runs"
    assert all((runs / result["name"] / "result.json").exists() for result in finished["runs"])
    curves = read_curve_directory(campaign_dir / "campaign" / "curves")
    assert sorted(curves) == [result["name"] for result in finished["runs"]]
    for result in finished["runs"]:
        curve = curves[result["name"]]
        assert {name: curve.final_loss(name) for name in curve.losses} == result["losses"]
        assert curve.steps[-1] == 24


def test_stopped_run_is_the_run_that_was_not_stopped(campaign_dir, finished, tmp_path):
    """Ctrl-C and going on changes not a bit of what was measured."""
    from cptplan import campaign

    spec = read_run_spec(campaign_dir / "campaign" / "runs" / "pilot-01" / "spec.json")
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"path": str(campaign_dir / "base")})})
    campaign.run_all(campaign.jobs_of([spec], tmp_path), threads=1)
    stopped_run = campaign_dir / "campaign" / "runs" / "pilot-01"
    assert (tmp_path / "pilot-01" / "curve.csv").read_bytes() == (stopped_run / "curve.csv").read_bytes()


def test_second_run_starts_nothing(campaign_dir, finished):
    runs = campaign_dir / "campaign" / "runs"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert run(campaign_dir, "pilot", *SETTINGS) == finished
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_run_that_outlived_its_planner_is_waited_for(campaign_dir, finished, tmp_path):
    """A second start waits for the trainer that a killed planner left behind, and finds its result."""
    from cptplan import campaign

    spec = read_run_spec(campaign_dir / "campaign" / "runs" / "pilot-02" / "spec.json")
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"path": str(campaign_dir / "base")})})
    (job,) = campaign.jobs_of([spec], tmp_path)
    with only_one(job.run_dir / ".lock-0"):
        planner = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; from cptplan import campaign; "
                "from cptplan.run_spec import read_run_spec; "
                "spec = read_run_spec(Path(sys.argv[1])); "
                "campaign.run_all(campaign.jobs_of([spec], Path(sys.argv[2])), threads=1)",
                str(write_spec(tmp_path / "given.json", spec)),
                str(tmp_path),
            ],
            env=ENVIRONMENT,
        )
        log = job.run_dir / "log.txt"
        wait_for(lambda: log.exists() and "waiting for another process" in log.read_text())
        assert not (job.run_dir / "metrics.jsonl").exists()
        assert planner.poll() is None
    assert planner.wait(timeout=120) == 0
    assert (job.run_dir / "result.json").exists()


def write_spec(path, spec):
    from cptplan.run_spec import write_run_spec

    write_run_spec(path, spec)
    return path


def test_status_counts_the_runs(campaign_dir, finished):
    statuses = run(campaign_dir, "status")["runs"]
    assert {(s["state"], s["done"], s["total"]) for s in statuses if s["name"].startswith("pilot")} == {
        ("complete", 24, 24)
    }


def test_rest_of_the_path_gives_json(campaign_dir, finished):
    """fit, optimize, cost, launch --run and report: data on stdout and nothing else, files where they say."""
    root = campaign_dir / "campaign"
    more = ("--set", "budget.tokens=16384", *SETTINGS)
    fit = run(campaign_dir, "fit", "--allow-poor-fit")
    assert set(fit["sets"]) == {"general", "domain"}
    plan = run(campaign_dir, "optimize", "--trials", "3", "--weights", "general=0.3", *more)
    assert plan["weights"] == {"general": 0.3, "domain": 0.7}
    assert plan["chosen"]["total_steps"] <= 64
    rows = run(campaign_dir, "cost", *more)["rows"]
    assert {"FLOPs, 6ND", "speed here, one run"} <= {row["what"] for row in rows}
    result = run(campaign_dir, "launch", "--target", "local", "--run", *more)
    assert result == read_json(root / "launch" / "local" / "run" / "result.json")
    assert result["steps"] == plan["chosen"]["total_steps"]
    pages = run(campaign_dir, "report", *more)
    assert (campaign_dir / pages["page"]).read_text().startswith("<!doctype html>")
    measured = {row["quantity"]: row["measured"] for row in read_json(root / "report" / "report.json")["outcomes"][:2]}
    assert measured == {f"loss_{name}": loss for name, loss in result["losses"].items()}
    assert no_leftovers(campaign_dir)


def test_dry_run_writes_nothing(campaign_dir, tmp_path):
    process = start(campaign_dir, "pilot", "--dry-run", "-o", tmp_path / "out")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert "pilot-06" in err
    assert not (tmp_path / "out").exists()
