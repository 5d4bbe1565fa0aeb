"""What a command says while it works: words of time, progress lines, tables, errors."""

from __future__ import annotations

import pytest

from cptplan import console
from cptplan.console import Screen, duration
from cptplan.errors import ConfigError


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(console.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (12.4, "12 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_plain_progress_speaks_now_and_then_with_the_time_left(capsys, clock):
    with Screen().stage("pilots") as note:
        note(0, 100, "start-up")
        for _ in range(5):
            clock.now += 3.0
            note(10, 100, "pilot-01 10/48")
        clock.now += 5.0
        note(20, 100, "")
        clock.now += 10.0
        note(30, 100, "pilot-02 3/48")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "start pilots",
        "  pilots: 10/100 (pilot-01 10/48)",
        # 20 more in the 27 s since the first ones were seen: 70 are left
        "  pilots: 30/100, about 1 min 34 s left (pilot-02 3/48)",
        "done  pilots in 30 s",
    ]


def test_progress_without_progress_promises_nothing(capsys, clock):
    with Screen().stage("corpora") as note:
        clock.now += 20.0
        note(0, 0, "starting")
    assert "left" not in capsys.readouterr().err


def test_stage_that_fails_is_not_done(capsys):
    with pytest.raises(ConfigError), Screen().stage("fit"):
        raise ConfigError("a must b; got c in d.")
    assert "done" not in capsys.readouterr().err


def test_quiet_says_nothing_but_errors(capsys):
    screen = Screen(quiet=True)
    screen.say("a")
    screen.table("t", ("a", "b"), [("1", "2")])
    screen.next_command("cptplan fit")
    with screen.stage("s"):
        pass
    assert capsys.readouterr() == ("", "")
    screen.error(ConfigError("a must b; got c in d.", hint="e"))
    assert capsys.readouterr().err == "error: a must b; got c in d.\nhint: e\n"


def test_table_keeps_brackets_and_every_cell(capsys):
    Screen().table("Plan [tiny]", ("", "chosen"), [("loss", "3.41 [3.38, 3.46]"), ("start", "[base]")])
    said = capsys.readouterr().err
    for cell in ("Plan [tiny]", "chosen", "3.41 [3.38, 3.46]", "[base]"):
        assert cell in said


def test_result_only_with_json_and_never_nan(capsys):
    Screen().result({"a": 1.5})
    assert capsys.readouterr().out == ""
    Screen(as_json=True).result({"a": 1.5})
    assert capsys.readouterr() == ('{\n  "a": 1.5\n}\n', "")
    with pytest.raises(ValueError, match="JSON"):
        Screen(as_json=True).result({"a": float("nan")})
