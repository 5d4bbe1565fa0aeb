"""What bad input gets: one line with the rule, the value and the place, a hint, an exit code, nothing half-written.

Each test gives the command line one mistake that a person makes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil

import numpy as np
import pytest
from command_line import no_leftovers, write_model, write_project

from cptplan import campaign, stages
from cptplan.config import read_project
from cptplan.files import read_json, write_json
from cptplan.workspace import Workspace


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A project whose corpora are packed, so that the tests that come after packing need not do it again."""
    root = tmp_path_factory.mktemp("packed")
    write_project(root)
    here = os.getcwd()
    os.chdir(root)
    try:
        stages.pack_data(read_project(root / "cptplan.yaml"), Workspace(root=root / "campaign"))
    finally:
        os.chdir(here)
    return root


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project as a user has it, in the current directory."""
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ready(packed, tmp_path, monkeypatch):
    """The project with packed corpora, no run started; a run that starts all the same fails the test."""
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def no_start(job, _environment):
        raise AssertionError(f"{job.spec.name} was started")

    monkeypatch.setattr(campaign, "_start", no_start)
    return tmp_path


# ---- the project file


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("pilot.num_run=9", r"keys must be known; got pilot.num_run in cptplan.yaml"),
        ("pilot.replay_range=[0, 1.2]", r"replay_range.1 must be at most 1; got 1.2 in cptplan.yaml"),
        ("pilot.replay_range=[-0.1, 0.5]", r"replay_range.0 must be at least 0; got -0.1 in cptplan.yaml"),
        ("pilot.replay_range=[0.6, 0.1]", r"ranges must rise"),
        ("pilot.total_steps=2", r"pilot.total_steps must be greater than pilot.warmup_steps; got 2 and 2 in cptplan"),
        ("pilot.num_runs=2", r"num_runs must be at least 6; got 2"),
        ("pilot.batch_tokens=100", r"pilot.batch_tokens must be a multiple of data.seq_len"),
        ("budget.tokens=1000", r"budget.tokens must be at least a pilot's tokens, 2048; got 1000"),
        ("budget.tokens=5B", r"budget.tokens must be a whole number; got '5B'"),
        ("goal.weights={general: -1, domain: 2}", r"weights must be >= 0; got general=-1 in cptplan.yaml"),
        ("goal.weights={general: 0, domain: 0}", r"weights must not all be zero; got 0 for general, domain"),
        ("goal.weights={genral: 1}", r"weights must name a validation set; got 'genral'"),
        ("goal.confidence=1", r"goal.confidence must be less than 1; got 1"),
        ("model.starts=[]", r"model.starts must have 1 or more entries"),
        ("data.general.name=wiki", r"data.general.name must be general, the name of its loss; got wiki"),
        ("data.domains=[{name: general, path: x}]", r"corpora must have different names"),
        ("seed", r"--set must be key=value; got 'seed'"),
        ("name.x=1", r"--set must name a key of a section; got 'name.x'"),
        ("name=[1", r"file must be YAML; got .* in --set name"),
    ],
)
def test_project_value_that_breaks_a_rule(cptplan, project, override, says):
    cptplan.assert_refused("validate", "--set", override, says=says)
    cptplan.assert_refused("pilot", "--set", override, says=says)
    assert not (project / "campaign").exists()


def test_unknown_key_gets_a_suggestion(cptplan, project):
    assert (
        "did you mean 'num_runs'?" in cptplan.assert_refused("validate", "--set", "pilot.num_run=9", says="num_run").err
    )


def test_number_such_as_1e_5_is_a_number(cptplan, project):
    text = (project / "cptplan.yaml").read_text()
    (project / "cptplan.yaml").write_text(text.replace("pretrain_peak_lr: 3e-3", "pretrain_peak_lr: 1e-5"))
    said = cptplan("validate")
    assert said.code == 0
    assert "peak_lr 3.33e-07 to 1e-05" in said.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, r"project file must be readable; got No such file or directory for cptplan.yaml"),
        ("", r"project file must hold keys and values; got NoneType in cptplan.yaml"),
        ("- 1\n", r"project file must hold keys and values; got list in cptplan.yaml"),
        ("a: [1\nb: 2\n", r"file must be YAML; got .* in cptplan.yaml:\d"),
        ("a: 1\na: 2\n", r"file must be YAML; got .* in cptplan.yaml:2"),
        ("\udcff", r"project file must be readable; got 'utf-8' codec"),
    ],
)
def test_project_file_that_cannot_be_read(cptplan, tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "cptplan.yaml").write_bytes(text.encode(errors="surrogateescape"))
    cptplan.assert_refused("validate", says=says)


# ---- corpora


def test_missing_corpus(cptplan, project):
    (project / "domain.jsonl").unlink()
    for verb in ("validate", "pilot"):
        cptplan.assert_refused(verb, says="corpus must exist; got no domain.jsonl for domain")
    cptplan.assert_refused("data", "pack", says="corpus must exist; got no domain.jsonl for domain")
    assert not (project / "campaign").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", r"corpus must have text; got only empty documents in domain.jsonl"),
        ('{"text": " "}\n', r"corpus must have text; got only empty documents in domain.jsonl"),
        ('{"txt": "a"}\n', r"column must be there; got no 'text' among txt in domain.jsonl:1"),
        ('{"text"\n', r"line must be JSON; got .* in domain.jsonl:1"),
    ],
)
def test_corpus_without_text(cptplan, project, content, says):
    (project / "domain.jsonl").write_text(content)
    cptplan.assert_refused("data", "pack", says=says)
    assert not list((project / "campaign").rglob("*.bin"))
    assert no_leftovers(project)


def test_corpus_can_be_mended_in_place(cptplan, project):
    good = (project / "domain.jsonl").read_text()
    (project / "domain.jsonl").write_text(good.replace('"text"', '"txt"'))
    cptplan.assert_refused("data", "pack", says="column must be there")
    said = cptplan("data", "pack", "--set", "data.domains=[{name: domain, path: domain.jsonl, text_column: txt}]")
    assert said.code == 0, said


def test_corpus_too_small_for_the_pilots(cptplan, ready):
    record = ready / "campaign" / "data" / "corpora.json"
    corpora = read_json(record)
    corpora["sources"][1]["train"]["num_tokens"] = 2047  # pilot-01 reads 8 steps of 256 tokens of it
    write_json(record, corpora)
    cptplan.assert_refused("pilot", says=r"corpus must hold the tokens .* got 2,047 tokens, needed 2,048 in domain")


def test_corpus_too_small_for_the_budget(cptplan, ready):
    there = read_json(ready / "campaign" / "data" / "corpora.json")["sources"][1]["train"]["num_tokens"]
    budget = (there * 5 // 2 // 256 + 1) * 256  # at most 60 % replay, so two fifths of it must be domain text
    cptplan.assert_refused(
        "pilot",
        "--set",
        f"budget.tokens={budget}",
        says=rf"corpus must hold .* got {there:,} tokens, needed {budget * 2 // 5:,} in domain",
    )


# ---- models and tokenizers


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", r"file must exist; got no base/config.json"),
        ("tokenizer.json", r"model directory must hold a tokenizer; got none of .* in base"),
        ("model.safetensors", r"model directory must hold its weights; got no \*.safetensors in base"),
        (".", r"file must exist; got no ./base/config.json"),
    ],
)
def test_model_directory_that_is_not_whole(cptplan, project, missing, says):
    override = ("--set", "model.starts=[{name: base, path: ./base}]")
    if missing == ".":
        shutil.rmtree(project / "base")
    else:
        (project / "base" / missing).unlink()
    for verb in (("validate",), ("pilot",), ("data", "pack")):
        cptplan.assert_refused(*verb, *override, says=says.replace("./base", "base"))
    assert not (project / "campaign").exists()


def test_tokenizer_larger_than_the_model(cptplan, ready):
    config = read_json(ready / "base" / "config.json")
    write_json(ready / "base" / "config.json", {**config, "vocab_size": 256})
    size = read_json(ready / "campaign" / "data" / "corpora.json")["tokenizer"]["vocab_size"]
    cptplan.assert_refused(
        "pilot", says=rf"vocabulary of the tokenizer must fit the model's 256 embeddings; got {size:,} in .* for base"
    )


def test_tokenizer_of_another_model(cptplan, ready):
    write_model(ready / "base", vocab_size=300)
    write_json(ready / "base" / "config.json", {**read_json(ready / "base" / "config.json"), "vocab_size": 512})
    cptplan.assert_refused(
        "pilot", says=r"tokenizer must be the model's own; got one of another vocabulary in .* for base"
    )


# ---- curves


def write_curves(directory, num_curves=4, sets=("general", "domain"), total_steps=40):
    """Curves of CPT runs that obey no law in particular, but keep the contract."""
    directory.mkdir()
    steps = np.arange(0, total_steps + 1, 4)
    for number in range(num_curves):
        falls = 3.0 + 0.5 * np.exp(-steps * (number + 1) / 40.0)
        rows = [",".join([str(step), *(f"{loss:.6f}" for _ in sets)]) for step, loss in zip(steps, falls, strict=True)]
        header = ",".join(["step", *(f"loss_{name}" for name in sets)])
        (directory / f"run-{number}.csv").write_text("\n".join([header, *rows]) + "\n")
        record = {
            "schema_version": 1,
            "phase": "cpt",
            "lr": {"kind": "constant", "peak_lr": 1e-4 * (number + 1), "total_steps": total_steps},
            "replay_ratio": 0.1 * number,
        }
        write_json(directory / f"run-{number}.json", record)
    return directory


def change_row(path, row, cells):
    lines = path.read_text().splitlines()
    lines[row] = cells
    path.write_text("\n".join(lines) + "\n")


def change_record(path, **values):
    write_json(path, {**read_json(path), **values})


LONG_WARMUP = {"kind": "constant", "peak_lr": 1e-4, "total_steps": 40, "warmup_steps": 80}
BROKEN_CURVES = {
    "NaN": (lambda d: change_row(d / "run-1.csv", 3, "8,nan,3.1"), r"must be finite; got nan in .*run-1.csv:4"),
    "steps go backwards": (
        lambda d: change_row(d / "run-1.csv", 3, "2,3.0,3.1"),
        r"step must rise from row to row; got 2 after 4 in .*run-1.csv:4",
    ),
    "negative loss": (lambda d: change_row(d / "run-1.csv", 3, "8,-1,3"), r"finite and positive; got -1 at step 8"),
    "step past the schedule": (lambda d: change_row(d / "run-1.csv", 11, "44,3,3"), r"step must lie in \[0, 40\]"),
    "no step column": (lambda d: change_row(d / "run-1.csv", 0, "iter,loss_general,loss_domain"), r"a column step"),
    "no validation column": (
        lambda d: change_row(d / "run-1.csv", 0, "step,train,eval"),
        r"must have a validation column loss_<set> for each set; got step, train, eval in .*run-1.csv",
    ),
    "no record": (lambda d: (d / "run-1.json").unlink(), r"schedule and phase in a file; got no .*run-1.json"),
    "record is no JSON": (lambda d: (d / "run-1.json").write_text("{"), r"file must be JSON; got .*run-1.json"),
    "replay_ratio above 1": (
        lambda d: change_record(d / "run-1.json", replay_ratio=1.2),
        r"replay_ratio must be in \[0, 1\]; got 1.2 in .*run-1.json",
    ),
    "warm-up longer than the run": (
        lambda d: change_record(d / "run-1.json", lr=LONG_WARMUP),
        r"total_steps must be at least warmup_steps; got total_steps 40 and warmup_steps 80 in .*run-1.json",
    ),
    "two batch sizes": (
        lambda d: [change_record(d / f"run-{n}.json", batch_tokens=n) for n in (1, 2)],
        r"curves must have one batch_tokens; got \[1, 2\]",
    ),
    "parent that is not there": (
        lambda d: change_record(d / "run-1.json", parent="run-8"),
        r"parent must be a curve of the same directory; got 'run-8'",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_CURVES)
def test_broken_curve(cptplan, tmp_path, kind):
    directory = write_curves(tmp_path / "curves")
    breaks, says = BROKEN_CURVES[kind]
    breaks(directory)
    cptplan.assert_refused("fit", directory, "-o", tmp_path / "out", says=says)
    assert not (tmp_path / "out").exists()


def test_fewer_than_three_pilots(cptplan, tmp_path):
    directory = write_curves(tmp_path / "curves", num_curves=2)
    cptplan.assert_refused("fit", directory, "-o", tmp_path / "out", says="must have at least 3 CPT curves .*; got 2")
    directory = write_curves(tmp_path / "more")
    names = ("--train", "run-0,run-1")
    cptplan.assert_refused(
        "fit", directory, *names, "-o", tmp_path / "out", says="must have at least 3 CPT curves .*; got 2"
    )
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_no_curves(cptplan, tmp_path, name):
    (tmp_path / "empty").mkdir()
    cptplan.assert_refused("fit", tmp_path / name, "-o", tmp_path / "out", says=f"must hold <name>.csv files; .*{name}")


# ---- verbs out of order, and options


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fit",), "curve directory must hold .* got none in campaign/curves"),
        (("optimize",), "fit must be there; got none in campaign/fits"),
        (("cost",), "plan must be there; got none in campaign/plans"),
        (("launch",), "plan must be there; got none in campaign/plans"),
        (("report",), "plan must be there; got none in campaign/plans"),
        (("status",), "runs must be there; got none in campaign/runs"),
        (("launch", "--target", "nonsense"), "launch target must be known; got 'nonsense'"),
        (("cost", "--tokens", "x"), "--tokens must come with --model; got 'x' alone"),
        (("cost", "--model", "base", "--tokens", "x"), "--tokens must be a number of tokens; got 'x'"),
        (("cost", "--model", "base"), "--tokens must be a number of tokens; got None"),
        (
            ("cost", "--model", "bse", "--tokens", "1B"),
            "model must be a size, a directory with config.json, or a hub id; got 'bse'",
        ),
        (("cost", "--model", "base", "--tokens", "1B", "--gpu", "h10"), "h10"),
        (("optimize", "--weights", "general=-1"), "weights must be >= 0; got general=-1 in --weights"),
        (("optimize", "--weights", "general=0,domain=0"), "weights must not all be zero"),
        (("optimize", "--weights", "genral=1"), "weights must name a validation set; got 'genral' in --weights"),
        (("optimize", "--weights", "general=x"), "--weights must be name=number pairs; got 'general=x'"),
        (("optimize", "--weights", "general=nan"), "weights must be >= 0; got general=nan"),
        (("optimize", "--confidence", "2"), "goal.confidence must be less than 1; got 2"),
        (("init",), "project file must be new; got one in cptplan.yaml"),
    ],
)
def test_verb_that_cannot_start(cptplan, project, arguments, says):
    cptplan.assert_refused(*arguments, says=says)
    assert not (project / "campaign").exists()


@pytest.mark.parametrize("arguments", [("nonsense",), ("fit", "--nonsense"), ("optimize", "--trials", "0")])
def test_usage_error_ends_with_2(cptplan, project, arguments):
    said = cptplan(*arguments)
    assert (said.code, said.out) == (2, "")
    assert "Error: " in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("verb", ["cost", "launch", "report", "optimize"])
def test_broken_plan(cptplan, project, verb):
    write_json(project / "campaign" / "plans" / "latest.json", {"schema_version": 1, "hash": "abc"})
    path = project / "campaign" / "plans" / "abc" / "plan.json"
    path.parent.mkdir()
    if verb == "optimize":
        write_json(project / "campaign" / "fits" / "latest.json", {"schema_version": 1, "hash": "abc"})
        says = "file must exist; got no .*fits/abc/law.json"
        cptplan.assert_refused(verb, says=says)
        return
    path.write_text('{"schema_version": 1')
    cptplan.assert_refused(verb, says=r"file must be JSON; got .*plans/abc/plan.json")
    path.write_text('{"schema_version": 1}')
    cptplan.assert_refused(verb, says=r"schema_version must be 2; got 1 in .*plans/abc/plan.json")
    path.write_text('{"schema_version": 2}')
    cptplan.assert_refused(verb, says=r"must be given; it is missing in .*plans/abc/plan.json")
    path.unlink()
    cptplan.assert_refused(verb, says=r"file must exist; got no .*plans/abc/plan.json")
    write_json(project / "campaign" / "plans" / "latest.json", [])
    cptplan.assert_refused(verb, says=r"plan must be named by its hash; got None in .*latest.json")


# ---- the output directory


@pytest.mark.parametrize(
    "arguments",
    [("data", "pack"), ("pilot",), ("demo", "--tiny"), ("fit", "curves")],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("out", ["file", "file/below"])
def test_output_directory_that_cannot_be_written(cptplan, project, arguments, out):
    write_curves(project / "curves")
    (project / "file").write_text("a good file")
    cptplan.assert_refused(
        *arguments, "-o", out, says=r"path must be writable; got (Not a directory|File exists) for file"
    )
    assert (project / "file").read_text() == "a good file"
    assert no_leftovers(project)


@pytest.mark.parametrize("verb", ["data", "pilot"])
def test_second_campaign_in_one_directory(cptplan, ready, verb):
    Workspace(root=ready / "campaign").claim(read_project(ready / "cptplan.yaml"))
    before = (ready / "campaign" / "campaign.json").read_bytes()
    command = ("data", "pack") if verb == "data" else (verb,)
    other = ("--set", "model.pretrain_peak_lr=1e-4")
    cptplan.assert_refused(
        *command, *other, says=r"directory must hold one campaign; got another model in campaign/campaign"
    )
    for later in ("optimize", "cost", "launch", "report"):
        cptplan.assert_refused(later, *other, says="directory must hold one campaign")
    assert (ready / "campaign" / "campaign.json").read_bytes() == before


def test_other_corpora_in_one_directory(cptplan, ready):
    cptplan.assert_refused(
        "data", "pack", "--set", "data.seed=5", says="directory must be empty or hold the corpora of this"
    )


def full_disk(monkeypatch):
    def no_room(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)


def test_full_disk_keeps_the_good_files(cptplan, project, monkeypatch):
    directory = write_curves(project / "curves", num_curves=3, sets=("domain",))
    assert cptplan("fit", directory, "-o", "out", "--allow-poor-fit").code == 0
    before = {path: path.read_bytes() for path in (project / "out").rglob("*") if path.is_file()}
    change_record(directory / "run-1.json", seed=1)
    full_disk(monkeypatch)
    cptplan.assert_refused(
        "fit", directory, "-o", "out", code=5, says="disk must have room; got No space left .*draws.npz"
    )
    assert {path: path.read_bytes() for path in (project / "out").rglob("*") if path.is_file()} == before


def test_full_disk_below_a_library(cptplan, ready, monkeypatch):
    """A write that is not ours, such as a run's log or the study's journal, ends the same way."""

    def no_room(_job, _environment):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "campaign/runs/pilot-01/log.txt")

    monkeypatch.setattr(campaign, "_start", no_room)
    cptplan.assert_refused(
        "pilot", code=5, says="disk must have room; got No space left .* campaign/runs/pilot-01/log.txt"
    )


# ---- failing while running


def test_run_that_breaks_ends_with_5_and_its_own_words(cptplan, ready, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(ready)
    says = r"run pilot-0\d must end with a result; got exit code 1: model must load; got .* for base"
    said = cptplan.assert_refused("pilot", code=5, says=says)
    assert "log.txt; the same command resumes it" in said.err
    assert not list(ready.glob("campaign/runs/*/result.json"))
    assert no_leftovers(ready)


def test_reader_of_json_gets_nothing_else(cptplan, project):
    said = cptplan("validate", "--json")
    assert json.loads(said.out)["start base"].startswith("llama")
    assert "cptplan.yaml is valid" in said.err
