"""Domain weights against closed forms, weights of sequences against the objective, and the two runs with a stub."""

import json
import math
import os
import signal
import sys
import threading

import numpy as np
import pytest

from cptplan.errors import ConfigError, RunFailedError, StorageError
from cptplan.mixture import ConstantMixture
from cptplan.run_options import Reweight
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet, read_run_spec, write_run_spec
from cptplan.schedule import CosineSchedule
from executor.reweight import DomainWeights, Runner, learn, main, row_weights

NAMES = ("law", "code")


def settings(**changes):
    return Reweight(**{"reference": "somewhere", "step_size": 0.5, "smoothing": 0.0, **changes})


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_domain_weights_ratio_without_smoothing_grows_as_exponential(steps):
    weights = DomainWeights(settings(), NAMES)
    for _ in range(steps):
        weights.update({"law": 0.3, "code": 0.1})
    found = weights.weights
    # 1e-12: some tens of roundings of 1e-16 each
    assert found["law"] / found["code"] == pytest.approx(math.exp(0.5 * 0.2 * steps), rel=1e-12)
    assert sum(found.values()) == pytest.approx(1, abs=1e-15)


def test_domain_weights_with_smoothing_follow_algorithm_1():
    weights, share, sums = DomainWeights(settings(smoothing=0.1), NAMES), np.array([0.5, 0.5]), np.zeros(2)
    for excess in ([0.4, 0.0], [0.1, 0.9], [0.2, 0.2]):
        weights.update(dict(zip(NAMES, excess, strict=True)))
        raw = share * np.exp(0.5 * np.array(excess))
        share = 0.9 * raw / raw.sum() + 0.1 / 2
        sums += share
    assert list(weights.weights.values()) == pytest.approx(share.tolist(), rel=1e-14)
    assert list(weights.average.values()) == pytest.approx((sums / 3).tolist(), rel=1e-14)


def test_domain_weights_with_smoothing_never_fall_below_their_part_of_it():
    weights = DomainWeights(settings(smoothing=0.01, step_size=10.0), NAMES)
    for _ in range(500):
        weights.update({"law": 5.0, "code": 0.0})
    assert weights.weights["code"] == pytest.approx(0.005, rel=1e-12)


def test_domain_weights_without_smoothing_can_come_back():
    weights = DomainWeights(settings(step_size=100.0), NAMES)
    for _ in range(20):
        weights.update({"law": 5.0, "code": 0.0})
    assert 0 < weights.weights["code"] < 1e-300
    for _ in range(3):
        weights.update({"law": 0.0, "code": 5.0})
    assert weights.weights["code"] > 0.99


def test_domain_weights_with_huge_excess_stay_finite():
    weights = DomainWeights(settings(step_size=1e3), NAMES)
    weights.update({"law": 1e3, "code": 1e3})
    assert weights.weights == {"law": 0.5, "code": 0.5}


def test_domain_weights_without_tokens_of_a_domain_leave_it_as_it_was_before_normalising():
    weights = DomainWeights(settings(), NAMES)
    weights.update({"code": 0.6})
    grown = 0.5 * math.exp(0.5 * 0.6)
    assert weights.weights == pytest.approx({"law": 0.5 / (0.5 + grown), "code": grown / (0.5 + grown)}, rel=1e-15)


def test_domain_weights_before_the_first_step_are_equal():
    weights = DomainWeights(settings(), ("a", "b", "c", "d"))
    assert weights.weights == weights.average == dict.fromkeys("abcd", 0.25)


def test_domain_weights_restored_midway_are_exact():
    excess = np.random.default_rng(0).random((30, 2))
    steps = [dict(zip(NAMES, row, strict=True)) for row in excess.tolist()]
    straight, first = DomainWeights(settings(smoothing=1e-3), NAMES), DomainWeights(settings(smoothing=1e-3), NAMES)
    for step in steps:
        straight.update(step)
    for step in steps[:11]:
        first.update(step)
    second = DomainWeights(settings(smoothing=1e-3), NAMES, json.loads(json.dumps(first.state())))
    for step in steps[11:]:
        second.update(step)
    assert second.state() == straight.state()
    assert second.average == straight.average


def means(sources, losses, number):
    return losses[sources == number].mean()


def test_row_weights_make_the_objective():
    rng = np.random.default_rng(1)
    sources, losses = np.array([0, 1, 2, 0, 2, 2, 1, 0, 2, 2]), rng.random(10)
    found = row_weights(sources, NAMES, {"law": 0.7, "code": 0.3})
    general, law, code = (means(sources, losses, number) for number in range(3))
    assert found.sum() == pytest.approx(1, abs=1e-15)
    assert found @ losses == pytest.approx(0.3 * general + 0.7 * (0.7 * law + 0.3 * code), rel=1e-14)


def test_row_weights_without_sequences_of_a_domain_scale_the_others_up():
    sources, losses = np.array([3, 1, 1, 0]), np.array([1.0, 2.0, 4.0, 8.0])
    found = row_weights(sources, ("law", "code", "poems"), {"law": 0.2, "code": 0.5, "poems": 0.3})
    assert found @ losses == pytest.approx(0.25 * 8 + 0.75 * (0.2 * 3 + 0.3 * 1) / 0.5, rel=1e-14)


@pytest.mark.parametrize("source", [0, 2])
def test_row_weights_of_one_source_are_equal(source):
    assert row_weights(np.full(4, source), NAMES, {"law": 0.9, "code": 0.1}).tolist() == [0.25] * 4


def make_spec(**changes) -> RunSpec:
    values = {
        "name": "run",
        "phase": "cpt",
        "model": ModelSource(path="base"),
        "sources": (
            Source(name="wiki", role="general", path="wiki"),
            Source(name="law", role="domain", path="law", weight=3.0),
            Source(name="code", role="domain", path="code", weight=1.0),
        ),
        "validation": (ValidationSet(name="wiki", path="wiki", num_tokens=64),),
        "schedule": CosineSchedule(kind="cosine", peak_lr=1e-3, total_steps=10, warmup_steps=1, min_lr=1e-4),
        "mixture": ConstantMixture(replay_ratio=0.25),
        "seq_len": 16,
        "batch_tokens": 64,
    }
    return RunSpec(**{**values, **changes})


class StubRunner(Runner):
    """Writes results in place of training; says `code` for the run of that name."""

    def __init__(self, codes=None, learnt=True):
        self.codes, self.learnt, self.trained = codes or {}, learnt, []

    def train(self, run_dir):
        self.trained.append(run_dir.name)
        if code := self.codes.get(run_dir.name, 0):
            return code
        spec = read_run_spec(run_dir / "spec.json")
        weights = {"average": {"law": 0.25, "code": 0.75}, "last": {"law": 0.1, "code": 0.9}}
        found = {"spec_hash": spec.hash, "steps": 10, "exports": ["export/step-5", "export/step-10"]}
        if spec.reweight is not None and self.learnt:
            found["domain_weights"] = weights
        (run_dir / "result.json").write_text(json.dumps(found))
        return 0


def test_learn_trains_reference_then_proxy_and_writes_the_weights(tmp_path):
    spec, runner = make_spec(keep_steps=(5,)), StubRunner()
    assert learn(spec, tmp_path, runner) == 0
    assert runner.trained == ["reference", "proxy"]
    reference, proxy = (read_run_spec(tmp_path / name / "spec.json") for name in ("reference", "proxy"))
    assert reference.reweight is None
    assert reference.sources == spec.sources
    assert proxy.reweight == Reweight(reference=str(tmp_path / "reference/export/step-10"))
    assert [source.weight for source in proxy.sources] == [1.0, 1.0, 1.0]
    assert json.loads((tmp_path / "weights.json").read_text()) == {
        "schema_version": 1,
        "spec_hash": spec.hash,
        "weights": {"law": 0.25, "code": 0.75},
        "last": {"law": 0.1, "code": 0.9},
        "steps": 10,
    }
    learnt = read_run_spec(tmp_path / "spec.json")
    assert [source.weight for source in learnt.sources] == [1.0, 0.25, 0.75]
    assert learnt.model_copy(update={"sources": spec.sources}) == spec


def test_learn_keeps_the_settings_of_the_spec_and_replaces_its_reference(tmp_path):
    learn(make_spec(reweight=settings(step_size=0.25)), tmp_path, StubRunner())
    proxy = read_run_spec(tmp_path / "proxy/spec.json")
    assert proxy.reweight == settings(step_size=0.25, reference=str(tmp_path / "reference/export/step-10"))
    assert read_run_spec(tmp_path / "spec.json").reweight is None


@pytest.mark.parametrize(("failing", "trained"), [("reference", ["reference"]), ("proxy", ["reference", "proxy"])])
def test_learn_after_a_failed_run_goes_on_with_it(tmp_path, failing, trained):
    runner = StubRunner({failing: 143})
    assert learn(make_spec(), tmp_path, runner) == 143
    assert runner.trained == trained
    assert not (tmp_path / "weights.json").exists()
    again = StubRunner()
    assert learn(make_spec(), tmp_path, again) == 0
    assert again.trained == [name for name in ("reference", "proxy") if name == failing or name not in trained]
    assert learn(make_spec(), tmp_path, StubRunner({"reference": 5, "proxy": 5})) == 0  # complete: nothing is trained


def test_learn_in_the_directory_of_another_spec_is_refused(tmp_path):
    learn(make_spec(), tmp_path, StubRunner())
    with pytest.raises(StorageError, match="one run spec"):
        learn(make_spec(seed=1), tmp_path, StubRunner())
    (tmp_path / "weights.json").unlink()
    with pytest.raises(StorageError, match="yet, as the one"):
        learn(make_spec(), tmp_path, StubRunner())
    (tmp_path / "spec.json").unlink()
    with pytest.raises(StorageError, match="one run spec"):
        learn(make_spec(seed=1), tmp_path, StubRunner())


def test_learn_with_one_domain_is_refused_before_training(tmp_path):
    spec, runner = make_spec(sources=make_spec().sources[:2]), StubRunner()
    with pytest.raises(ConfigError, match="two or more domains"):
        learn(spec, tmp_path, runner)
    assert runner.trained == []


def test_learn_with_a_proxy_that_says_no_weights_fails(tmp_path):
    with pytest.raises(RunFailedError, match="domain_weights"):
        learn(make_spec(), tmp_path, StubRunner(learnt=False))


@pytest.fixture
def runner():
    """A runner, and the signal handlers of the tests back afterwards."""
    numbers = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield Runner(1)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def run_script(runner, script: str, run_dir) -> int:
    runner._command = (sys.executable, "-c", script)
    return runner.train(run_dir)


@pytest.mark.parametrize(
    ("script", "code"), [("raise SystemExit(5)", 5), ("import os; os.kill(os.getpid(), 9)", 137), ("", 0)]
)
def test_runner_returns_the_exit_code(runner, tmp_path, script, code):
    assert run_script(runner, script, tmp_path) == code


def test_runner_passes_a_signal_on_and_starts_nothing_after_it(runner, tmp_path):
    waits = (
        "import pathlib, signal, sys, time\n"
        "def note(number, _):\n pathlib.Path(sys.argv[1], 'got').write_text(str(number)); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, note)\n"
        "pathlib.Path(sys.argv[1], 'ready').touch()\n"
        "time.sleep(30)"
    )

    def ask():
        while not (tmp_path / "ready").exists():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    assert run_script(runner, waits, tmp_path) == 143
    asking.join()
    assert (tmp_path / "got").read_text() == str(int(signal.SIGTERM))
    assert run_script(runner, "raise SystemExit('started')", tmp_path) == 143


def test_runner_command_with_several_processes_goes_through_torchrun(runner):
    assert runner._command[1:] == ("-m", "executor.train", "--run-dir")
    assert Runner(4)._command[1:5] == ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4")


def test_main_with_bad_input_says_so_in_one_line(tmp_path, capsys, runner):
    write_run_spec(tmp_path / "own.json", make_spec(sources=make_spec().sources[:2]))
    assert main(["--spec", str(tmp_path / "own.json"), "--run-dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: sources must hold two or more domains to reweight; got 1.\nhint:")
