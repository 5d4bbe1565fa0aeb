"""From a log to a curve: options, units, what is written, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cptplan.curves import read_curve, read_curve_directory
from cptplan.errors import ConfigError, CptplanError, CurveError, MixtureError, ScheduleError, StorageError
from cptplan.importers import Imported, ImportOptions, import_curve, import_into

FILES = Path(__file__).parent / "importer_files"
LR = {"kind": "constant", "peak_lr": 1e-4, "total_steps": 20}
PLAIN = "step,loss_general,loss_domain\n0,3.0,4.0\n10,3.1,\n20,3.2,3.5\n"


def options(**changes: Any) -> ImportOptions:
    return ImportOptions(**{"name": "run", "record": {"phase": "cpt"}, "lr": LR, **changes})


def import_text(directory: Path, text: str = PLAIN, **changes: Any) -> Imported:
    path = directory / "log.csv"
    path.write_text(text)
    return import_curve([path], options(**changes))


def refusal(directory: Path, text: str = PLAIN, **changes: Any) -> CptplanError:
    with pytest.raises(CptplanError) as caught:
        import_text(directory, text, **changes)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def trainer_cosine(time: int) -> float:
    """What transformers' cosine schedule gives at a time, for the files' peak 3e-3, warm-up 7 and 60 steps."""
    return 3e-3 * time / 7 if time < 7 else 3e-3 * (1 + math.cos(math.pi * (time - 7) / 53)) / 2


def trainer_wsd(time: int) -> float:
    """Its warmup_stable_decay with a floor of a tenth: 7 steps up from the floor, 33 held, 20 down along a cosine."""
    if time < 7:
        return 3e-4 + 2.7e-3 * time / 7
    return 3e-3 if time < 40 else 3e-4 + 2.7e-3 * (1 + math.cos(math.pi * (time - 40) / 20)) / 2


@pytest.mark.parametrize(("name", "rate"), [("cosine", trainer_cosine), ("wsd", trainer_wsd)])
def test_run_of_a_trainer_is_imported_with_the_rate_of_every_step(tmp_path: Path, name: str, rate: Any) -> None:
    record = {"phase": "cpt", "replay_ratio": 0.25, "batch_tokens": 128, "seq_len": 16, "tokenizer": "toy"}
    imported = import_into(tmp_path, [FILES / f"trainer_state_{name}.json"], options(lr=None, record=record))
    assert [(warning.code, warning.curves) for warning in imported.warnings] == [("lr_worked_out", ("run",))]
    curve = read_curve_directory(tmp_path)["run"]
    assert curve.record == imported.curve.record
    assert curve.steps.tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert curve.losses["general"][0] == 4.162769794464111
    # float64 all the way: a few units in the last place of the peak
    np.testing.assert_allclose(curve.lr(), [rate(time) for time in range(60)], rtol=0, atol=1e-17)
    assert curve.replay_ratios().tolist() == [0.25] * 60
    assert (curve.record.batch_tokens, curve.record.tokenizer) == (128, "toy")


def test_given_schedule_is_checked_against_the_trainer(tmp_path: Path) -> None:
    path = FILES / "trainer_state_cosine.json"
    given = {"kind": "cosine", "peak_lr": 3e-3, "warmup_steps": 7, "total_steps": 60}
    imported = import_curve([path], options(lr=given))
    assert imported.warnings == ()
    np.testing.assert_allclose(imported.curve.lr(), [trainer_cosine(time) for time in range(60)], rtol=0, atol=1e-17)
    with pytest.raises(CurveError, match=r"lr must agree with the logged rates; got .* from --lr at step 5, where"):
        import_curve([path], options(lr={**given, "warmup_steps": 8}))


def test_plain_csv_with_a_schedule(tmp_path: Path) -> None:
    imported = import_text(tmp_path)
    assert imported.curve.steps.tolist() == [0, 10, 20]
    np.testing.assert_array_equal(imported.curve.losses["domain"], [4.0, np.nan, 3.5])
    assert imported.curve.lr().tolist() == [1e-4] * 20
    assert [warning.code for warning in imported.warnings] == ["lr_unchecked"]
    assert "log.csv holds no learning rate to check it against" in imported.warnings[0].message


def test_other_names_of_columns(tmp_path: Path) -> None:
    text = "updates,held_out,law,rate\n0,3.0,4.0,\n10,3.1,3.9,1e-4\n20,3.2,3.8,1e-4\n"
    losses = {"general": "held_out", "domain": "law"}
    curve = import_text(tmp_path, text, losses=losses, step_column="updates", lr_column="rate").curve
    assert {name: loss.tolist() for name, loss in curve.losses.items()} == {
        "general": [3.0, 3.1, 3.2],
        "domain": [4.0, 3.9, 3.8],
    }


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        ("nats", [3.0, 2.5]),
        ("bits", [3.0 / math.log(2), 2.5 / math.log(2)]),
        ("perplexity", [math.exp(3.0), math.exp(2.5)]),
    ],
)
def test_losses_are_written_in_nats(tmp_path: Path, unit: Any, values: list[float]) -> None:
    text = f"step,loss_general\n0,{values[0]!r}\n20,{values[1]!r}\n"
    curve = import_text(tmp_path, text, unit=unit).curve
    np.testing.assert_allclose(curve.losses["general"], [3.0, 2.5], rtol=1e-15)


def test_wandb_and_tensorboard_are_told_from_their_files(tmp_path: Path) -> None:
    chart = '"train/global_step","r - eval/general_loss"\n0,3.0\n20,2.5\n'
    assert list(import_text(tmp_path, chart).curve.losses) == ["general"]
    with pytest.raises(CurveError, match="directory must hold the event files of one run"):
        import_curve([tmp_path], options())
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(CurveError, match="must hold a log_history"):
        import_curve([tmp_path / "x.json"], options())
    assert list(import_text(tmp_path, chart, format="csv", losses={"a": "r - eval/general_loss"}).curve.losses) == ["a"]


def test_curve_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(PLAIN)
    out = tmp_path / "curves"
    import_into(out, [tmp_path / "log.csv"], options())
    with pytest.raises(StorageError, match="curve must be new; got one in"):
        import_into(out, [tmp_path / "log.csv"], options())
    import_into(out, [tmp_path / "log.csv"], options(record={"phase": "cpt", "seed": 7}), replace_existing=True)
    assert read_curve(out, "run").record.seed == 7


def test_nothing_is_written_when_the_import_fails(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss_general\n0,3.0\n30,3.0\n")
    with pytest.raises(CurveError, match=r"step must lie in \[0, 20\]"):
        import_into(tmp_path / "curves", [tmp_path / "log.csv"], options())
    assert not (tmp_path / "curves").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"name": "a/b"}, ConfigError, "--name must be a file name of letters, digits and . _ + = -; got 'a/b'."),
        ({"name": "../x"}, ConfigError, "--name must be a file name"),
        ({"name": ""}, ConfigError, "--name must be a file name"),
        ({"name": ".x"}, ConfigError, "--name must be a file name"),
        ({"format": "wandbb"}, ConfigError, "got 'wandbb'. hint: did you mean 'wandb'?"),
        ({"unit": "bit"}, ConfigError, "--unit must be nats or bits or perplexity; got 'bit'."),
        ({"lr_at": "after"}, ConfigError, "--lr-at must be used or next; got 'after'."),
        ({"record": {}}, ConfigError, "phase must be given; it is missing in --set."),
        ({"record": {"phase": "cpt", "seqlen": 5}}, ConfigError, "got seqlen in --set. hint: did you mean 'seq_len'?"),
        ({"record": {"phase": "cpt", "lr": LR}}, ConfigError, "lr must be given with --lr; got it with --set."),
        ({"record": {"phase": "cpt", "replay_ratio": 3}}, MixtureError, "got 3 in --set replay_ratio."),
        ({"lr": {"kind": "cosin", "total_steps": 5}}, ConfigError, "kind must be known; got 'cosin' in --lr."),
        ({"lr": {**LR, "warmup_steps": 21}}, ScheduleError, "in --lr."),
        ({"lr": None}, CurveError, "lr must be known at every optimiser step; got none in"),
        ({"losses": {"general": "x"}}, CurveError, "--loss must name a column or tag of the log; got 'x' for"),
        ({"lr_column": "rate"}, CurveError, "--lr-column must name a column or tag of the log; got 'rate' for"),
        ({"step_column": "n"}, CurveError, "--step-column must name a column; got 'n' for"),
    ],
)
def test_option_that_breaks_a_rule(
    tmp_path: Path, changes: dict[str, Any], kind: type[CptplanError], words: str
) -> None:
    error = refusal(tmp_path, **changes)
    assert type(error) is kind
    assert words in str(error)


@pytest.mark.parametrize(
    ("losses", "unit", "words"),
    [
        ((90.0, 60.0), "nats", "loss_general must be in nats per token; got 90 at first"),
        ((3.0, 0.9), "perplexity", "perplexity must be above 1; got 0.9 for loss_general in"),
        ((3.0, -1.0), "nats", "loss_general must be finite and positive; got -1 at step 20"),
        ((3.0, math.nan), "nats", "loss_general must be finite; got nan at step 20 in"),
        ((3.0, math.inf), "bits", "loss_general must be finite; got inf at step 20 in"),
    ],
)
def test_losses_that_cannot_be(tmp_path: Path, losses: tuple[float, float], unit: str, words: str) -> None:
    assert words in str(refusal(tmp_path, f"step,loss_general\n0,{losses[0]}\n20,{losses[1]}\n", unit=unit))


@pytest.mark.parametrize(
    ("sources", "words"), [([], "a log must be given; got none."), (["no.csv"], "log must exist; got no ")]
)
def test_log_that_is_not_there(tmp_path: Path, sources: list[str], words: str) -> None:
    with pytest.raises(CurveError, match=words):
        import_curve([tmp_path / source for source in sources], options())


def test_two_states_are_two_runs(tmp_path: Path) -> None:
    state = FILES / "trainer_state_cosine.json"
    copy = tmp_path / "trainer_state.json"
    shutil.copy(state, copy)
    with pytest.raises(CurveError, match="a trainer_state log must be one file or directory; got 2"):
        import_curve([state, copy], options())


def test_length_of_the_schedule_may_be_given(tmp_path: Path) -> None:
    state = json.loads((FILES / "trainer_state_cosine.json").read_text())
    state["max_steps"] = 0
    state["log_history"] = [row for row in state["log_history"] if row["step"] <= 30]  # stopped half-way
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps(state))
    with pytest.raises(CurveError, match="no known schedule gives them"):
        import_curve([path], options(lr=None))
    curve = import_curve([path], options(lr=None, total_steps=60)).curve
    np.testing.assert_allclose(curve.lr(), [trainer_cosine(time) for time in range(60)], rtol=0, atol=1e-17)
