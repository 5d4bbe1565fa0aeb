"""What a run does about what it measures: spikes and the monitor's rules; the same again when it was killed between."""

from __future__ import annotations

import signal
from pathlib import Path

import executor_runs as runs
import numpy as np
import pytest

from cptplan.curves import read_curve
from cptplan.run_options import Anchor, Monitor, Rule, Spikes
from cptplan.schedule import ConstantSchedule

STEPS, SPIKE = 48, 30  # the step of number 30 (from 0) reads nothing but noise


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("watching")
    runs.write_corpora(path)
    runs.write_shard(path / "poisoned", "train", runs.toy_tokens(8000, rule=1, seed=1))
    runs.poison_step(spiky_spec(path), SPIKE)
    return path


def spiky_spec(root: Path, **changes):
    """General text, but for one step of noise."""
    return runs.make_spec(
        root,
        sources=(runs.Source(name="general", role="general", path=str(root / "poisoned")),),
        validation=(runs.ValidationSet(name="general", path=str(root / "general"), num_tokens=33 * runs.SEQ_LEN),),
        mixture=runs.ConstantMixture(replay_ratio=1.0),
        schedule=ConstantSchedule(kind="constant", peak_lr=1e-2, total_steps=STEPS, warmup_steps=4),
        eval_steps=(24, 36),
        keep_steps=(),
        **changes,
    )


def domain_spec(root: Path, rules: tuple[Rule, ...], **changes):
    """Domain text alone, so that general loss rises or stays and domain loss falls."""
    return runs.make_spec(
        root,
        mixture=runs.ConstantMixture(replay_ratio=0.2),
        schedule=ConstantSchedule(kind="constant", peak_lr=1e-2, total_steps=24, warmup_steps=4),
        eval_steps=(4, 8, 12, 16, 20),
        keep_steps=(),
        monitor=Monitor(rules=rules),
        **changes,
    )


def events(run_dir: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["event"]) for line in runs.metrics(run_dir) if "event" in line]


def steps(run_dir: Path) -> dict[int, dict]:
    return {line["step"]: line for line in runs.metrics(run_dir) if "train_loss" in line}


def kill_and_finish(run_dir: Path, at_step: int) -> None:
    """Kill a run once it has logged a step, and let it come to its end."""
    process = runs.start(run_dir)
    path = run_dir / "metrics.jsonl"
    assert runs.wait_until(lambda: path.exists() and f'"step": {at_step},' in path.read_text(), process)
    process.kill()
    assert runs.finish(process) == -signal.SIGKILL
    assert runs.train(run_dir) == 0


def assert_same(run_dir: Path, other: Path) -> None:
    assert runs.metrics(run_dir) == runs.metrics(other)
    for name in ("curve.csv", "curve.json"):
        assert (run_dir / name).read_bytes() == (other / name).read_bytes()
    last = f"export/step-{runs.result(other)['steps']}/model.safetensors"
    assert (run_dir / last).read_bytes() == (other / last).read_bytes()


def test_spike_without_policy_is_trained_on(root):
    run_dir = runs.write_run(root / "spike-none", spiky_spec(root))
    assert runs.train(run_dir) == 0
    assert events(run_dir) == []
    losses = runs.train_losses(run_dir)
    assert losses[SPIKE] > losses[SPIKE - 8 : SPIKE].max() + 1.0  # so that there is a spike to find


@pytest.mark.parametrize("killed_at", [None, 29, 33])
def test_spike_skipped_is_not_applied(root, killed_at):
    spec = spiky_spec(root, spikes=Spikes(policy="skip", window=16))
    run_dir = runs.write_run(root / f"spike-skip-{killed_at}", spec)
    if killed_at is None:
        assert runs.train(run_dir) == 0
        assert events(run_dir) == [(SPIKE + 1, "skip")]
        assert [step for step, line in steps(run_dir).items() if "left_out" in line] == [SPIKE + 1]
        assert runs.result(run_dir)["steps"] == STEPS
    else:
        kill_and_finish(run_dir, killed_at)
        assert_same(run_dir, root / "spike-skip-None")


def test_spike_skipped_leaves_the_weights_as_they_were(root):
    """The step after the skipped one has the loss that it has without the noisy step's update."""
    skipped, applied = (root / name for name in ("spike-skip-None", "spike-none"))
    losses, others = runs.train_losses(skipped), runs.train_losses(applied)
    assert np.array_equal(losses[: SPIKE + 1], others[: SPIKE + 1])
    assert losses[SPIKE + 1] < others[SPIKE + 1]


@pytest.mark.parametrize("killed_at", [None, 29, 31, 33])
def test_spike_rolled_back_is_left_out_the_second_time(root, killed_at):
    spec = spiky_spec(root, spikes=Spikes(policy="rollback", window=16), checkpoint_every=8)
    run_dir = runs.write_run(root / f"spike-rollback-{killed_at}", spec)
    if killed_at is None:
        assert runs.train(run_dir) == 0
        assert events(run_dir) == [(24, "rollback")]
        assert [step for step, line in steps(run_dir).items() if "left_out" in line] == [SPIKE + 1]
        numbers = [line["step"] for line in runs.metrics(run_dir) if "train_loss" in line]
        assert numbers == list(range(1, STEPS + 1))  # none twice
        evaluated = [line["step"] for line in runs.metrics(run_dir) if "eval_seconds" in line or "loss_general" in line]
        assert evaluated == [0, 24, 36, STEPS]
    else:
        kill_and_finish(run_dir, killed_at)
        assert_same(run_dir, root / "spike-rollback-None")


def test_rolled_back_and_skipped_runs_have_the_same_weights(root):
    """The same step is missing in both; the detector's memory alone differs."""
    names = ("spike-skip-None", "spike-rollback-None")
    first, second = (root / name / f"export/step-{STEPS}/model.safetensors" for name in names)
    assert first.read_bytes() == second.read_bytes()


def test_spike_policy_stop_ends_with_a_checkpoint_to_go_on_from(root):
    spec = spiky_spec(root, spikes=Spikes(policy="stop", window=16))
    run_dir = runs.write_run(root / "spike-stop", spec)
    assert runs.train(run_dir) == 5
    assert "train_loss must stay near those before it; got " in runs.said(run_dir)
    assert f"at step {SPIKE + 1} with lr 0.01" in runs.said(run_dir)
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir())[-1] == "step-00000028"


@pytest.mark.parametrize("killed_at", [None, 7, 10])
def test_rules_change_rate_and_mixture_from_then_on(root, killed_at):
    rules = (
        Rule(when="general_increase", threshold=0.0, action="warn"),
        Rule(when="forgetting_ratio", threshold=0.0, patience=2, action="lower_lr", amount=0.25),
        Rule(when="forgetting_ratio", threshold=0.0, patience=3, action="raise_replay", amount=0.5),
    )
    run_dir = runs.write_run(root / f"rules-{killed_at}", domain_spec(root, rules))
    if killed_at is not None:
        kill_and_finish(run_dir, killed_at)
        assert_same(run_dir, root / "rules-None")
        return
    assert runs.train(run_dir) == 0
    assert [event for event in events(run_dir) if event[1] != "warn"] == [(4, "lower_lr"), (8, "raise_replay")]
    lines = steps(run_dir)
    assert [lines[step]["lr"] for step in (4, 5, 24)] == pytest.approx([1e-2, 0.25e-2, 0.25e-2])
    shares = np.diff([lines[step]["tokens_by_source"]["general"] for step in (1, 8, 24)]) / (np.array([7, 16]) * 128)
    assert shares == pytest.approx([0.2, 0.7], abs=1 / 7 / 8)  # one sequence of a step of eight
    curve = read_curve(run_dir, "curve")
    assert curve.lr() == pytest.approx([lines[step]["lr"] for step in range(1, 25)], rel=1e-12)
    assert curve.record.replay_ratio.replay_ratios(24) == pytest.approx([0.2] * 8 + [0.7] * 16)
    assert [done["action"] for done in runs.result(run_dir)["interventions"] if done["action"] != "warn"] == [
        "lower_lr",
        "raise_replay",
    ]


def test_rule_that_stops_ends_the_run_with_a_result(root):
    rules = (Rule(when="forgetting_ratio", threshold=0.0, patience=3, action="stop"),)
    run_dir = runs.write_run(root / "rules-stop", domain_spec(root, rules))
    assert runs.train(run_dir) == 0
    result = runs.result(run_dir)
    assert (result["steps"], result["stopped_early"], result["exports"]) == (8, True, ["export/step-8"])
    assert (run_dir / "export/step-8/model.safetensors").is_file()
    assert not (run_dir / "checkpoints").exists()
    curve = read_curve(run_dir, "curve")
    assert curve.steps.tolist() == [0, 4, 8]
    assert curve.record.lr.total_steps == 8


@pytest.mark.parametrize("killed_at", [None, 11])
def test_rule_that_switches_ewc_on_holds_the_weights(root, killed_at):
    """Two runs that differ in the strength only: what is pulled harder stays nearer to the start."""
    run_dirs = {}
    for strength in (1e-6, 1e4):
        rules = (Rule(when="forgetting_ratio", threshold=0.0, patience=2, action="ewc", amount=strength),)
        run_dirs[strength] = runs.write_run(root / f"ewc-{strength}-{killed_at}", domain_spec(root, rules))
        if killed_at is None:
            assert runs.train(run_dirs[strength]) == 0
    if killed_at is not None:
        kill_and_finish(run_dirs[1e4], killed_at)
        assert_same(run_dirs[1e4], root / "ewc-10000.0-None")
        return
    weak, strong = ([line for line in runs.metrics(run_dir) if "loss_domain" in line] for run_dir in run_dirs.values())
    assert weak[1] == strong[1] | {"anchor_penalty": weak[1]["anchor_penalty"]}  # before the rule: the same
    assert strong[-1]["anchor_penalty"] / 1e4 < 0.5 * weak[-1]["anchor_penalty"] / 1e-6


def test_anchor_of_the_spec_holds_from_the_first_step(root):
    moved = {}
    for strength in (1e-8, 10.0):
        spec = runs.make_spec(root, anchor=Anchor(kind="l2", strength=strength), keep_steps=())
        run_dir = runs.write_run(root / f"l2-{strength}", spec)
        assert runs.train(run_dir) == 0
        last = [line for line in runs.metrics(run_dir) if "anchor_penalty" in line][-1]
        moved[strength] = last["anchor_penalty"] / strength
    assert moved[10.0] < 0.5 * moved[1e-8]
