"""The checkpoint selector: scores by hand, constraints, ties, noise, several runs, the exported copy, the verb."""

from __future__ import annotations

import json
import math
import os
import stat

import numpy as np
import pytest
from trained_runs import LOSSES, write_model, write_run

from cptplan.errors import ConfigError, CurveError, InfeasiblePlanError, RunFailedError, StorageError
from cptplan.select.select import check_feasible, evaluation_scatter, export_chosen, select_checkpoint

WEIGHTS = "general=0.4"


@pytest.fixture
def base(tmp_path):
    return write_model(tmp_path / "base", b"base")


@pytest.fixture
def run(tmp_path, base):
    return write_run(tmp_path / "run", base=base)


def test_score_is_the_weighted_change_against_step_0(run, base):
    found = select_checkpoint([run], WEIGHTS)
    assert [candidate.step for candidate in found.candidates] == [0, 10, 20]
    zero, middle, last = found.candidates
    assert (zero.score, zero.forgetting_ratio, zero.model) == (0.0, 1.0, base)
    assert middle.score == pytest.approx(0.4 * 0.1 + 0.6 * -0.5)
    assert last.score == pytest.approx(0.4 * 0.3 + 0.6 * -0.7)
    assert last.changes == pytest.approx({"general": 0.3, "domain": -0.7})
    assert last.forgetting_ratio == pytest.approx(math.exp(0.3))
    assert last.general_increase == pytest.approx(0.1)
    assert found.chosen is last


@pytest.mark.parametrize(
    ("weights", "step"),
    [("general=0", 20), ("general=0.4", 20), ("general=0.6", 10), ("general=0.4,domain=0.2", 10), ("general=1", 0)],
)
def test_weights_move_the_choice(run, weights, step):
    assert select_checkpoint([run], weights).chosen.step == step


def test_a_tie_goes_to_the_earlier_step(tmp_path):
    run = write_run(tmp_path / "run", {0: (3.0, 4.0), 5: (3.1, 3.5), 10: (3.1, 3.5)}, exports=(5, 10))
    assert select_checkpoint([run], WEIGHTS).chosen.step == 5


def test_base_is_kept_when_every_checkpoint_is_worse(tmp_path, base):
    losses = {0: (3.0, 4.0), 10: (3.5, 3.9)}
    run = write_run(tmp_path / "run", losses, base=base, exports=(10,))
    found = select_checkpoint([run], WEIGHTS)
    assert (found.chosen.step, found.chosen_model, found.notes) == (0, base, ())
    far = select_checkpoint([write_run(tmp_path / "far", losses, exports=(10,))], WEIGHTS)  # base is a hub id
    assert far.chosen.step == 10
    assert far.notes == ("the base itself is better: it scores 0, the best checkpoint +0.1400",)


def test_constraint_is_relative_to_the_base(run):
    assert select_checkpoint([run], WEIGHTS, max_general_increase=0.11).chosen.step == 20
    found = select_checkpoint([run], WEIGHTS, max_general_increase=0.05)
    assert found.chosen.step == 10
    assert found.candidates[2].infeasible == "loss_general is 10.00% above the base, and 5.00% is allowed"
    assert found.candidates[1].infeasible is None


def test_without_a_feasible_checkpoint_the_smallest_limit_that_would_do_is_said(run):
    found = select_checkpoint([run], WEIGHTS, max_general_increase=0.03)
    assert found.chosen is None
    with pytest.raises(
        InfeasiblePlanError, match=r"within 3.00% of the base; got 3.33% at the nearest, step 10"
    ) as why:
        check_feasible(found)
    limit = float(why.value.hint.split()[1])
    assert limit - 0.1 / 3.0 < 1e-4
    assert select_checkpoint([run], WEIGHTS, max_general_increase=limit).chosen.step == 10
    check_feasible(select_checkpoint([run], WEIGHTS, max_general_increase=limit))


def test_a_task_that_drops_counts_against_a_checkpoint(tmp_path):
    tasks = {0: {"mmlu": 0.50}, 10: {"mmlu": 0.52}, 20: {"mmlu": 0.40}}
    run = write_run(tmp_path / "run", tasks=tasks)
    assert select_checkpoint([run], WEIGHTS).chosen.step == 20
    found = select_checkpoint([run], WEIGHTS, task_weights="mmlu=1")
    assert [candidate.score for candidate in found.candidates[1:]] == pytest.approx([-0.26 - 0.02, -0.30 + 0.10])
    assert found.chosen.step == 10


def test_export_without_a_measure_at_its_step_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", tasks={0: {"mmlu": 0.5}, 10: {"mmlu": 0.5}}, exports=(7, 10, 20))
    found = select_checkpoint([run], WEIGHTS)
    assert [candidate.step for candidate in found.candidates] == [0, 10, 20]
    export = run / "export"
    assert found.notes == (f"{export / 'step-7'} is left out: no loss_general and loss_domain at step 7",)
    found = select_checkpoint([run], WEIGHTS, task_weights="mmlu=0.1")
    assert [candidate.step for candidate in found.candidates] == [0, 10]
    assert found.notes[1] == f"{export / 'step-20'} is left out: no mmlu at step 20"


def test_third_set_counts_only_where_it_is_named(tmp_path):
    losses = {0: (3.0, 4.0, 2.0), 10: (3.1, 3.5, 2.5)}
    run = write_run(tmp_path / "run", losses, sets=("general", "domain", "law"), exports=(10,))
    assert select_checkpoint([run], WEIGHTS).goals.weights == pytest.approx({"general": 0.4, "domain": 0.6})
    found = select_checkpoint([run], "general=0.4,law=0.2")
    assert found.goals.weights == pytest.approx({"general": 0.4, "domain": 0.4, "law": 0.2})
    assert found.candidates[1].score == pytest.approx(0.4 * 0.1 - 0.4 * 0.5 + 0.2 * 0.5)


def test_incomplete_run_is_allowed_and_noted(tmp_path):
    run = write_run(tmp_path / "run", complete=False)
    assert select_checkpoint([run], WEIGHTS).notes == (f"{run} is not complete: last evaluated at step 20 of 20",)


def test_checkpoints_of_several_runs_are_compared(tmp_path, base):
    one = write_run(tmp_path / "one")
    two = write_run(tmp_path / "two", {0: (3.001, 4.0), 15: (3.0, 3.2), 20: (3.1, 3.1)}, base=base, exports=(15, 20))
    empty = write_run(tmp_path / "empty", {0: (3.0, 4.0), 20: (3.0, 3.0)}, exports=())
    found = select_checkpoint([one, two, one, empty], WEIGHTS)
    assert [(c.run.name, c.step) for c in found.candidates] == [
        ("one", 0),
        ("one", 10),
        ("two", 15),
        ("one", 20),
        ("two", 20),
    ]
    assert found.candidates[0].model == base
    assert found.candidates[4].score == pytest.approx(0.4 * 0.099 - 0.6 * 0.9)  # against its own step 0
    assert found.chosen is found.candidates[4]
    assert found.notes == (f"{empty} has no exports",)


@pytest.mark.parametrize("noise", [0.003, 0.03])
def test_scatter_finds_the_noise_of_a_falling_curve(noise):
    """The mean over seeds within 15 %: a median of 20 overlapping differences strays by 30 % alone, the trend adds."""
    steps = np.unique(np.round(np.linspace(0, 1, 24) ** 2 * 2000))[1:]
    rng = np.random.default_rng(0)
    curve = 0.8 * (1 + steps / 100) ** -0.5
    found = [evaluation_scatter(steps, curve + rng.normal(0, noise, len(steps))) for _ in range(200)]
    assert np.mean(found) == pytest.approx(noise, rel=0.15)


def test_scatter_of_a_parabola_is_none_and_of_few_is_unknown():
    steps = np.array([1, 2, 4, 9, 16, 30, 31, 50, 70, 90, 100])
    assert evaluation_scatter(steps, 3.0 - 0.02 * steps + 1e-4 * steps**2) == pytest.approx(0.0, abs=1e-12)
    assert evaluation_scatter(steps[:10], np.zeros(10)) is None


def test_candidates_within_the_scatter_are_named(cptplan, tmp_path, base):
    strays = np.random.default_rng(0).normal(0.0, 0.02, 24)  # of loss_domain, so 0.012 of the score
    losses = {0: (3.0, 4.0), **{10 * (i + 1): (3.0, 3.5 + stray) for i, stray in enumerate(strays)}}
    losses.update({250: (3.0, 3.4), 260: (3.0, 3.41), 270: (3.0, 3.5)})
    run = write_run(tmp_path / "run", losses, base=base, exports=(250, 260, 270))
    found = select_checkpoint([run], WEIGHTS)
    assert found.chosen.step == 250
    assert found.scatter == pytest.approx(0.012, rel=0.5)  # a median of 24 overlapping differences
    assert [candidate.step for candidate in found.equals] == [260]
    said = cptplan("select", run).err
    assert f"note: as good within the scatter of neighbouring evaluations, {found.scatter:.4f}: step 260" in said


def test_nothing_is_said_of_noise_with_few_evaluations_or_task_scores(run, tmp_path):
    found = select_checkpoint([run], WEIGHTS)
    assert (found.scatter, found.equals) == (None, ())
    losses = {step: (3.0, 4.0 - 0.01 * step) for step in range(20)}
    run = write_run(tmp_path / "more", losses, tasks={0: {"a": 0.1}, 19: {"a": 0.1}}, exports=(19,))
    assert select_checkpoint([run], WEIGHTS).scatter is not None
    assert select_checkpoint([run], WEIGHTS, task_weights="a=1").scatter is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": "general=0.4,domian=0.6"}, "weights must name a validation set; got 'domian' in --weights"),
        ({"weights": "general=some"}, "--weights must be name=number pairs; got 'general=some'"),
        ({"weights": "general=-1"}, "weights must be >= 0; got general=-1 in --weights"),
        ({"task_weights": "mmlu=0.1"}, "--task-weights must name a task scored at step 0; got 'mmlu'"),
        ({"task_weights": "arc"}, "--task-weights must be name=number pairs, numbers >= 0; got 'arc'"),
        ({"task_weights": "arc=-0.1"}, "--task-weights must be name=number pairs, numbers >= 0; got 'arc=-0.1'"),
        ({"max_general_increase": math.nan}, "max_general_increase must be .*; got nan in --max-general-increase"),
    ],
)
def test_options_that_break_a_rule_are_refused(tmp_path, options, says):
    run = write_run(tmp_path / "run", tasks={0: {"arc": 0.5}})
    with pytest.raises(ConfigError, match=says):
        select_checkpoint([run], **{"weights": WEIGHTS, **options})


def test_runs_without_a_candidate_are_refused(tmp_path):
    with pytest.raises(CurveError, match=r"must hold an export .*; got none: .*/none has no exports\."):
        select_checkpoint([write_run(tmp_path / "none", exports=())], WEIGHTS)
    with pytest.raises(
        CurveError, match=r"got none: .*step-5 is left out: no loss_general and loss_domain at step 5\."
    ):
        select_checkpoint([write_run(tmp_path / "between", exports=(5,))], WEIGHTS)
    run = write_run(tmp_path / "hollow", exports=(10,))
    (run / "export" / "step-10" / "config.json").unlink()
    with pytest.raises(CurveError, match=r"got none: .*step-10 is left out: config.json or weights are missing\."):
        select_checkpoint([run], WEIGHTS)
    with pytest.raises(ConfigError, match="validation must hold a set named general; got law"):
        select_checkpoint([write_run(tmp_path / "law", {0: (3.0,), 10: (3.0,)}, sets=["law"])], WEIGHTS)


def test_export_is_a_copy_with_the_selection(run, tmp_path):
    (run / "export" / "step-20" / "onnx").mkdir()
    (run / "export" / "step-20" / "onnx" / "graph").write_bytes(b"g")
    (run / "export" / "step-20" / "tokenizer.json").symlink_to(run / "spec.json")
    found = select_checkpoint([run], WEIGHTS)
    out = tmp_path / "deep" / "best"
    export_chosen(found, found.chosen_model, out)
    assert (out / "model.safetensors").read_bytes() == b"run 20"
    assert (out / "onnx" / "graph").read_bytes() == b"g"
    assert not (out / "tokenizer.json").is_symlink()  # a copy stands alone
    assert (out / "model.safetensors").stat().st_nlink == 1
    assert stat.S_IMODE((out / "model.safetensors").stat().st_mode) & stat.S_IRUSR
    record = json.loads((out / "selection.json").read_text())
    assert record == json.loads(json.dumps(found.to_json()))
    assert (record["schema_version"], record["chosen"]["step"]) == (1, 20)
    assert record["weights"] == pytest.approx({"general": 0.4, "domain": 0.6})
    assert [row["step"] for row in record["table"]] == [0, 10, 20]
    assert sorted(path.name for path in out.parent.iterdir()) == ["best"]


def test_a_later_selection_replaces_an_earlier_one(run, tmp_path):
    out = tmp_path / "best"
    out.mkdir()  # an empty directory is as good as none
    for weights, step in (("general=0.4", 20), ("general=0.6", 10)):
        found = select_checkpoint([run], weights)
        export_chosen(found, found.chosen_model, out)
        assert (out / "model.safetensors").read_bytes() == f"run {step}".encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "best", "run"]


def test_export_does_not_touch_what_is_not_its_own(run, base, tmp_path):
    found = select_checkpoint([run], WEIGHTS)
    (tmp_path / "file").write_text("mine")
    for out, says in (
        (tmp_path / "file", "--out must be new"),
        (run, "--out must be apart from the models"),
        (base, "--out must be apart"),
        (base / "best", "--out must be apart"),
    ):
        with pytest.raises(StorageError, match=says):
            export_chosen(found, found.chosen_model, out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="--out must be new, or the place of an earlier selection; got other files"):
        export_chosen(found, found.chosen_model, tmp_path / "other")
    assert (base / "model.safetensors").read_bytes() == b"base"


def test_export_that_fails_leaves_what_was_there(run, tmp_path, monkeypatch):
    found, out = select_checkpoint([run], WEIGHTS), tmp_path / "best"
    export_chosen(found, found.chosen_model, out)

    def full(_number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailedError, match="disk must have room"):
        export_chosen(found, run / "export" / "step-10", out)
    assert (out / "model.safetensors").read_bytes() == b"run 20"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "best", "run"]


def test_verb_shows_the_table_and_what_to_type_next(cptplan, run):
    said = cptplan("select", run, "--weights", "general=0.4", "--max-general-increase", 0.05)
    assert (said.code, said.out) == (0, "")
    cells = [[cell.strip() for cell in line.split("│")] for line in said.err.splitlines() if "│" in line]
    assert cells == [
        ["0", "3.000 (+0.000)", "4.000 (+0.000)", "1.000", "+0.0000", "the base"],
        ["10", "3.100 (+0.100)", "3.500 (-0.500)", "1.105", "-0.2600", "chosen"],
        ["20", "3.300 (+0.300)", "3.300 (-0.700)", "1.350", "-0.3000", "general +10.00%"],
    ]
    assert "score: 0.4 x change of loss_general + 0.6 x change of loss_domain, against step 0" in said.err
    assert said.err.splitlines()[-1] == (
        f"next: cptplan select {run} --weights general=0.4 --max-general-increase 0.05 --out selected"
    )


def test_verb_exports_and_gives_json(cptplan, run, tmp_path):
    said = cptplan("select", run, "--weights", "general=1", "--out", tmp_path / "best", "--json")
    assert said.code == 0
    assert json.loads(said.out)["chosen"]["step"] == 0
    assert "chosen: keep the base" in said.err
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == b"base"
    assert said.err.splitlines()[-1].endswith(f"pretrained={tmp_path / 'best'} --tasks mmlu")


def test_verb_of_several_runs_and_tasks(cptplan, tmp_path):
    tasks = {step: {"mmlu": 0.5 - 0.01 * step} for step in LOSSES}
    runs = [write_run(tmp_path / name / "run", tasks=tasks) for name in ("a", "b")]
    said = cptplan("select", *runs, "--task-weights", "mmlu=0.5")
    assert "Checkpoints of 2 runs" in said.err
    assert "0.300 (-0.200)" in said.err
    assert "0.6 x change of loss_domain - 0.5 x change of mmlu" in said.err
    assert f"{runs[0]} {runs[1]} --weights general=0.4 --task-weights mmlu=0.5 --out" in said.err.splitlines()[-1]


def test_verb_ends_with_3_when_nothing_is_feasible(cptplan, run, tmp_path):
    command = ("select", run, "--max-general-increase", 0.01, "--out", tmp_path / "best")
    said = cptplan.assert_refused(*command, says="within 1.00%", code=3)
    assert "general +3.33%" in said.err
    assert "--max-general-increase 0.0334 allows that one" in said.err
    assert json.loads(cptplan(*command, "--json").out)["chosen"] is None
    assert not (tmp_path / "best").exists()


def test_verb_refuses_what_is_no_run(cptplan, tmp_path):
    cptplan.assert_refused("select", tmp_path, says="run directory must hold spec.json; got none in")
    assert cptplan("select").code == 2
