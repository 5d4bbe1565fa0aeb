"""Many runs as processes: what is run, what is not run again, what a failure says. The trainer is a small script."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

from cptplan import campaign
from cptplan.campaign import Job, executor_command, is_complete, jobs_of, last_words, run_all, status_of_directory
from cptplan.errors import ConfigError, RunFailedError, StorageError
from cptplan.files import read_json, write_json, write_progress
from cptplan.run_spec import RunSpec, write_run_spec

TRAIN = """
import json, os, sys, time
run_dir = sys.argv[1]
begun = time.time()
time.sleep(float(sys.argv[2]))
result = {"name": os.path.basename(run_dir), "threads": os.environ["OMP_NUM_THREADS"], "begun": begun,
          "ended": time.time(), "session": os.getsid(0)}
json.dump(result, open(run_dir + "/result.json", "w"))
"""


def make_spec(name, **changes):
    values = {
        "name": name,
        "phase": "cpt",
        "model": {"config": {"model_type": "llama"}},
        "sources": [{"name": "domain", "role": "domain", "path": "d"}],
        "validation": [{"name": "domain", "path": "d", "num_tokens": 8}],
        "schedule": {"kind": "constant", "peak_lr": 1e-3, "total_steps": 10},
        "mixture": {"kind": "constant", "replay_ratio": 0.0},
        "seq_len": 8,
        "batch_tokens": 8,
    }
    return RunSpec.parse({**values, **changes}, "test")


def make_job(runs, name, code=TRAIN, seconds=0.0, **changes):
    run_dir = runs / name
    command = (sys.executable, "-S", "-c", code, str(run_dir), str(seconds))
    return Job(spec=make_spec(name, **changes), run_dir=run_dir, command=command)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(campaign, "POLL_SECONDS", 0.01)


def test_results_come_in_the_order_of_the_jobs(tmp_path):
    jobs = [make_job(tmp_path, name, seconds=seconds) for name, seconds in (("c", 0.2), ("a", 0.0), ("b", 0.1))]
    assert [result["name"] for result in run_all(jobs, parallel=3)] == ["c", "a", "b"]
    assert read_json(tmp_path / "c" / "spec.json") == jobs[0].spec.to_json()


@pytest.mark.parametrize("parallel", [1, 2])
def test_no_more_at_a_time_than_asked(tmp_path, parallel):
    jobs = [make_job(tmp_path, f"run-{number}", seconds=0.15) for number in range(4)]
    results = run_all(jobs, parallel=parallel)
    most = max(sum(other["begun"] <= result["begun"] < other["ended"] for other in results) for result in results)
    assert most == parallel


def test_complete_run_is_not_started_again(tmp_path):
    jobs = [make_job(tmp_path, "one"), make_job(tmp_path, "two")]
    first = run_all(jobs[:1])
    (again, other) = run_all(jobs)
    assert again == first[0]
    assert other["name"] == "two"


@pytest.mark.parametrize(
    ("threads", "parallel", "expected"), [(3, 2, "3"), (None, 1, "8"), (None, 2, "4"), (None, 9, "1")]
)
def test_threads_do_not_depend_on_what_is_left(tmp_path, monkeypatch, threads, parallel, expected):
    """Else a run that was interrupted would add up in another order than one that was not."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    jobs = [make_job(tmp_path, f"run-{number}") for number in range(3)]
    alone = run_all(jobs[:1], parallel=parallel, threads=threads)
    rest = run_all(jobs, parallel=parallel, threads=threads)
    assert {result["threads"] for result in (*alone, *rest)} == {expected}


def test_runs_have_sessions_of_their_own(tmp_path):
    """So that Ctrl-C reaches the planner alone, which stops them in order."""
    (result,) = run_all([make_job(tmp_path, "one")])
    assert result["session"] != os.getsid(0)


def test_directory_of_another_spec_is_refused(tmp_path):
    run_all([make_job(tmp_path, "one")])
    with pytest.raises(
        StorageError, match=r"run directory must belong to one spec; got another one in .*one/spec.json"
    ):
        run_all([make_job(tmp_path, "one", seed=1)])
    assert is_complete(tmp_path / "one", make_spec("one"))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import sys; print('error: disk must have room; got none in x.'); sys.exit(5)",
            "got exit code 5: disk must have",
        ),
        ("raise ValueError('no such thing')", "got exit code 1: ValueError: no such thing."),
        ("import os; os.kill(os.getpid(), 9)", "got exit code -9: nothing said."),
        ("print('bye')", "got exit code 0: bye."),
    ],
)
def test_failure_is_told_in_the_runs_own_words(tmp_path, code, words):
    with pytest.raises(RunFailedError) as caught:
        run_all([make_job(tmp_path, "one", code=code)])
    assert caught.value.message.startswith(f"run one must end with a result; {words}")
    assert caught.value.hint == f"see {tmp_path / 'one' / 'log.txt'}; the same command resumes it"


def test_words_of_an_earlier_start_are_not_taken_for_this_ones(tmp_path):
    with pytest.raises(RunFailedError, match="the first"):
        run_all([make_job(tmp_path, "one", code="raise ValueError('the first')")])
    with pytest.raises(RunFailedError, match="got exit code -9: nothing said"):
        run_all([make_job(tmp_path, "one", code="import os; os.kill(os.getpid(), 9)")])
    assert run_all([make_job(tmp_path, "one")])[0]["name"] == "one"


def test_failure_stops_the_others(tmp_path):
    """They are asked to end, and have the time to write where they are."""
    patient = (
        "import signal, sys, time\n"
        "def end(*_):\n    open(sys.argv[1] + '/saved', 'w').close()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\nopen(sys.argv[1] + '/ready', 'w').close()\ntime.sleep(60)"
    )
    fails = (
        "import os, sys, time\nother = os.path.dirname(sys.argv[1]) + '/patient/ready'\n"
        "while not os.path.exists(other):\n    time.sleep(0.01)\nsys.exit('error: broke.')"
    )
    jobs = [make_job(tmp_path, "patient", code=patient), make_job(tmp_path, "fails", code=fails)]
    with pytest.raises(RunFailedError, match="run fails must end"):
        run_all(jobs, parallel=2)
    assert (tmp_path / "patient" / "saved").exists()


def test_run_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "STOP_SECONDS", 0.2)
    deaf = (
        "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[1] + '/pid', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    job = make_job(tmp_path, "deaf", code=deaf)

    def stop_when_up(_statuses):
        if (job.run_dir / "pid").exists() and (job.run_dir / "pid").read_text():
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all([job], report=stop_when_up)
    assert time.monotonic() - began < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((job.run_dir / "pid").read_text()), 0)


STOPS = """
import json, os, sys
run_dir = sys.argv[1]
starts = sum(line == "start\\n" for line in open(run_dir + "/log.txt"))  # of this run so far, this one left out
print("start", flush=True)
steps = {steps}
if starts == len(steps):
    json.dump({{"name": "one", "starts": starts + 1}}, open(run_dir + "/result.json", "w"))
    sys.exit(0)
json.dump({{"done": steps[starts], "total": 10, "message": "stopped"}}, open(run_dir + "/progress.json", "w"))
sys.exit({code})
"""


@pytest.mark.parametrize("steps", [[3, 4, 9], [5, 4, 9]])  # the second as after a kill, which loses what was not saved
def test_run_that_a_signal_has_stopped_is_started_again(tmp_path, steps):
    (result,) = run_all([make_job(tmp_path, "one", code=STOPS.format(steps=steps, code=138))])
    assert result["starts"] == 4


@pytest.mark.parametrize(
    ("steps", "code", "starts"),
    [
        ([3, 3, 9], 138, 2),  # it stops where it stopped: starting it again would go on for ever
        ([0, 9], 138, 1),
        ([3, 9], 0, 1),  # nothing stopped it
    ],
)
def test_run_that_does_not_get_on_is_not_started_again(tmp_path, steps, code, starts):
    with pytest.raises(RunFailedError, match=f"run one must end with a result; got exit code {code}: start"):
        run_all([make_job(tmp_path, "one", code=STOPS.format(steps=steps, code=code))])
    assert (tmp_path / "one" / "log.txt").read_text() == "start\n" * starts


def test_report_counts_all_runs(tmp_path):
    jobs = [make_job(tmp_path, name, seconds=0.05) for name in ("a", "b")]
    seen = []
    run_all(jobs, report=lambda statuses: seen.append([(s.state, s.done, s.total) for s in statuses]))
    assert [state for state, _, _ in seen[0]] == ["running", "waiting"]
    assert seen[-1] == [("complete", 10, 10)] * 2


def test_jobs_are_named_after_their_specs(tmp_path):
    (job,) = jobs_of([make_spec("pilot-01")], tmp_path, processes=3)
    assert job.run_dir == tmp_path / "pilot-01"
    assert job.command == executor_command(job.run_dir, 3)
    assert "--nproc-per-node=3" in job.command
    assert str(job.run_dir.resolve()) == job.command[-1]


def test_status_of_a_directory(tmp_path):
    with pytest.raises(ConfigError, match="runs must be there; got none in"):
        status_of_directory(tmp_path)
    for name in ("done", "fresh", "idle", "new"):
        write_run_spec(tmp_path / name / "spec.json", make_spec(name))
    write_json(tmp_path / "done" / "result.json", {})
    for name in ("fresh", "idle"):
        write_progress(tmp_path / name / "progress.json", done=4, total=10, unit="steps")
    os.utime(tmp_path / "idle" / "progress.json", (0, 0))
    statuses = {s.name: (s.state, s.done, s.total) for s in status_of_directory(tmp_path)}
    assert statuses == {
        "done": ("complete", 10, 10),
        "fresh": ("running", 4, 10),
        "idle": ("waiting", 4, 10),
        "new": ("waiting", 0, 10),
    }


TORCHRUN_LOG = """
[rank0]: Traceback (most recent call last):
[rank0]:   File "x.py", line 1, in <module>
[rank0]: some.module.OddError: header too small
E1121 failed (exitcode: 1) local_rank: 0 (pid: 5) of binary: python
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\x20
============================================================
"""


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("a\nerror: one.\nhint: x\nerror: two.\n", "two"),
        (TORCHRUN_LOG, "some.module.OddError: header too small"),
        (
            "E1 failed\n  traceback : Signal 9 (SIGKILL) received by PID 7\n=====",
            "Signal 9 (SIGKILL) received by PID 7",
        ),
        ("step 3\n\n", "step 3"),
        ("\n", "nothing said"),
    ],
)
def test_last_words(log, words):
    assert last_words(log) == words


def test_progress_that_is_being_written_is_no_progress(tmp_path):
    write_run_spec(tmp_path / "one" / "spec.json", make_spec("one"))
    (tmp_path / "one" / "progress.json").write_text(json.dumps({"done": 3})[:-2])
    (status,) = status_of_directory(tmp_path)
    assert status.done == 0
