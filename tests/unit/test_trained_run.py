"""Run directories: what was measured and exported, cut-off files, runs that do not belong together."""

from __future__ import annotations

import json

import pytest
from trained_runs import LOSSES, write_model, write_run

from cptplan.errors import ConfigError, CurveError
from cptplan.select.trained_run import check_same_base, read_trained_run


def test_run_is_read(tmp_path):
    base = write_model(tmp_path / "base")
    run = read_trained_run(write_run(tmp_path / "run", base=base, tasks={0: {"mmlu": 0.5}, 20: {"mmlu": 0.4}}))
    assert run.losses == {step: dict(zip(("general", "domain"), pair, strict=True)) for step, pair in LOSSES.items()}
    assert run.task_scores == {0: {"mmlu": 0.5}, 20: {"mmlu": 0.4}}
    assert run.exports == {step: tmp_path / "run" / "export" / f"step-{step}" for step in (10, 20)}
    assert (run.base_model, run.complete, run.left_out) == (base, True, ())


def test_base_that_is_no_directory_here(tmp_path):
    assert read_trained_run(write_run(tmp_path / "run")).base_model is None


def test_last_line_that_is_cut_off_is_left_out(tmp_path):
    directory = write_run(tmp_path / "run")
    path = directory / "metrics.jsonl"
    whole = path.read_bytes()
    last = whole.rstrip().rfind(b"\n") + 1
    for end in range(last + 1, len(whole) - 2):
        path.write_bytes(whole[:end])
        assert sorted(read_trained_run(directory).losses) == [0, 10]
    path.write_bytes(whole[:-1])
    assert sorted(read_trained_run(directory).losses) == [0, 10, 20]  # whole but for its newline


def test_broken_line_in_the_middle_is_refused(tmp_path):
    directory = write_run(tmp_path / "run")
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:20]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CurveError, match=r"line must be a JSON object with a step; got .*metrics.jsonl:3\."):
        read_trained_run(directory)


def test_last_evaluation_of_a_step_counts(tmp_path):
    directory = write_run(tmp_path / "run")
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10, "loss_general": 3.2, "loss_domain": 3.4, "eval_seconds": 0.1}) + "\n")
        file.write('{"step": 15, "loss_general": NaN, "loss_domain": 0.0, "eval_seconds": 0.1}\n')
    losses = read_trained_run(directory).losses
    assert losses[10] == {"general": 3.2, "domain": 3.4}
    assert losses[15] == {}  # no number that can be compared


def test_task_scores_may_have_a_line_of_their_own(tmp_path):
    directory = write_run(tmp_path / "run")
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "task_scores": {"mmlu": 0.3, "odd": null}}\n')
    run = read_trained_run(directory)
    assert run.task_scores == {10: {"mmlu": 0.3}}
    assert run.losses[10] == {"general": 3.1, "domain": 3.5}


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_export_that_is_not_whole_is_left_out(tmp_path, missing):
    directory = write_run(tmp_path / "run")
    (directory / "export" / "step-10" / missing).unlink()
    (directory / "export" / ".step-30.tmp").mkdir()
    (directory / "export" / "step-best").mkdir()
    run = read_trained_run(directory)
    assert list(run.exports) == [20]
    assert len(run.left_out) == 1
    assert "step-10 is left out" in run.left_out[0]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"run directory must hold spec.json; got none in .*/nowhere\."):
        read_trained_run(tmp_path / "nowhere")
    directory = write_run(tmp_path / "run")
    (directory / "metrics.jsonl").write_text('{"step": 10, "loss_general": 3.0, "loss_domain": 3.0}\n')
    with pytest.raises(CurveError, match="step 0 must be evaluated on every set; got no loss_general there"):
        read_trained_run(directory)
    (directory / "metrics.jsonl").unlink()
    with pytest.raises(CurveError, match=r"metrics.jsonl must be readable; got No such file"):
        read_trained_run(directory)


def test_runs_of_one_base_may_differ_a_little_at_step_0(tmp_path):
    runs = [
        read_trained_run(write_run(tmp_path / str(general), {0: (general, 4.0), 20: (3.0, 3.0)}))
        for general in (3.0, 3.002, 3.004)
    ]
    check_same_base(runs[:2])
    with pytest.raises(ConfigError, match=r"same base; got loss_general 3.0000 at step 0 of .* and 3.0040 of"):
        check_same_base(runs)


def test_runs_with_other_sets_are_refused(tmp_path):
    one = read_trained_run(write_run(tmp_path / "one"))
    other = read_trained_run(write_run(tmp_path / "other", sets=("general", "law")))
    with pytest.raises(ConfigError, match=r"same validation sets; got general, domain in .* and general, law in"):
        check_same_base([one, other])
