"""The command line: help, version, what it imports, JSON on stdout and nothing else there, interruptions."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from command_line import write_project

from cptplan import __version__, cli
from cptplan.errors import ConfigError, InfeasiblePlanError, PoorFitError, RunFailedError, StorageError

VERBS = ["demo", "init", "validate", "advise", "rehearse", "pilot", "fit", "predict", "simulate", "laws", "optimize"]
VERBS += ["dynamics", "cost", "launch", "watch", "select", "report", "status"]
GROUPS = {"data": "pack", "curves": "import"}
HEAVY = ["torch", "transformers", "scipy", "optuna", "pandas", "matplotlib", "numpy"]


@pytest.mark.parametrize("verb", [(), *((v,) for v in (*VERBS, *GROUPS)), *GROUPS.items()], ids=" ".join)
def test_help_of_every_verb(cptplan, verb):
    said = cptplan(*verb, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Usage: {' '.join(['cptplan', *verb])} ")


def test_verbs_are_listed_in_pipeline_order(cptplan):
    listed = [line.split()[0] for line in cptplan("--help").out.partition("Commands:")[2].splitlines() if line.strip()]
    assert [verb for verb in listed if verb not in GROUPS] == VERBS


def test_version(cptplan):
    said = cptplan("--version")
    assert (said.code, said.out) == (0, f"{__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["optimize", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom cptplan.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_json_is_alone_on_stdout(cptplan, tmp_path, monkeypatch):
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    said = cptplan("validate", "--json")
    assert said.code == 0
    assert json.loads(said.out)["corpus domain"] == "domain.jsonl"
    said = cptplan("cost", "--model", "base", "--tokens", "1B", "--json")
    rows = {row["what"]: row for row in json.loads(said.out)["rows"]}
    assert rows["FLOPs, 6ND"]["value"] > 0
    assert rows["FLOPs, 6ND"]["source"]


def test_without_json_stdout_is_empty(cptplan, tmp_path, monkeypatch):
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    for verb in ("validate", "pilot"):
        said = cptplan(verb, *(["--dry-run"] if verb == "pilot" else []))
        assert (said.code, said.out) == (0, "")
        assert said.err.splitlines()[-1].startswith("next: cptplan ")


def test_init_writes_a_project_that_is_read(cptplan, tmp_path, monkeypatch):
    from cptplan.config import read_project

    monkeypatch.chdir(tmp_path)
    said = cptplan("init", "mine.yaml")
    assert said.code == 0
    assert "next: cptplan validate -c mine.yaml" in said.err
    assert read_project(tmp_path / "mine.yaml").pilot.num_runs == 8
    (tmp_path / "mine.yaml").write_text("old")
    cptplan.assert_refused("init", "mine.yaml", says="project file must be new; got one in mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "old"
    assert cptplan("init", "mine.yaml", "--force").code == 0
    assert (tmp_path / "mine.yaml").read_text() != "old"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a must b; got c in d.", hint="e"), 2),
        (StorageError("a must b; got c in d.", hint="e"), 2),
        (InfeasiblePlanError("a must b; got c in d.", hint="e"), 3),
        (PoorFitError("a must b; got c in d.", hint="e"), 4),
        (RunFailedError("a must\n b; got c\tin d.", hint="e\nf"), 5),
        (PermissionError(13, "Permission denied", "/there"), 2),
        (OSError(28, "No space left on device", "/there"), 5),
    ],
)
def test_error_is_one_line_and_its_exit_code(cptplan, monkeypatch, error, code):
    def fails(**_):
        raise error

    monkeypatch.setattr(cli, "app", fails)
    says = "/there" if isinstance(error, OSError) else "^error: a must b; got c in d.$"
    said = cptplan.assert_refused(says=says, code=code)
    assert len(said.err.splitlines()) == 2


def test_markup_in_an_error_is_shown_as_it_is(cptplan, monkeypatch):
    def fails(**_):
        raise ConfigError("a must be in [0, 1]; got [bold] in [/x].", hint="[red]")

    monkeypatch.setattr(cli, "app", fails)
    said = cptplan.assert_refused(says=r"\[0, 1\]; got \[bold\] in \[/x\]\.")
    assert said.err.endswith("hint: [red]\n")


def test_ctrl_c_says_how_to_go_on(cptplan, monkeypatch, tmp_path):
    from cptplan import checks

    def interrupted(_project):
        raise KeyboardInterrupt

    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "check_project", interrupted)
    said = cptplan("validate")
    assert (said.code, said.out) == (130, "")
    assert said.err == "stopped; the same command goes on where it was\n"


def test_poor_fit_ends_with_4_unless_allowed(cptplan, monkeypatch, tmp_path):
    from cptplan import decide, tables

    def poor(_fit_dir, *, allow_poor):
        if not allow_poor:
            raise PoorFitError("a law must predict unseen pilots within 10%; got 20% in x.", hint="run more pilots")

    monkeypatch.setattr(decide, "train_names", lambda *_: None)
    monkeypatch.setattr(decide, "fit", lambda *_, **__: tmp_path)
    monkeypatch.setattr(decide, "fit_summary", lambda *_, **__: {})
    monkeypatch.setattr(tables, "fit_rows", lambda _: [])
    monkeypatch.setattr(tables, "verdict_lines", lambda _: ["loss_general: odd"])
    monkeypatch.setattr(decide, "check_fit", poor)
    said = cptplan.assert_refused("fit", says="must predict unseen pilots within 10%", code=4)
    assert "note: loss_general: odd" in said.err  # why it is poor is said before it is refused
    assert cptplan("fit", "--allow-poor-fit").code == 0
