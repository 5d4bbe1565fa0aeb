"""Tables of final losses: what is read, what is taken from curves, and what a broken one is told."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cptplan.curves import CurveRecord, LossCurve, write_curve
from cptplan.errors import CurveError
from cptplan.fitting.final_table import read_final_losses
from cptplan.mixture import ConstantMixture
from cptplan.schedule import read_schedule

TABLE = """name,replay_ratio,tokens,num_params,unique_tokens,loss_general,loss_domain,note
start,,0,1.8e9,,2.86,3.1,the checkpoint
a,0.1,1e10,1.8e9,2e10,2.95,1.73,
b,0.5,1e10,1.8e9,4e9,2.80,,half
"""


def read(tmp_path: Path, text: str):
    path = tmp_path / "finals.csv"
    path.write_text(text)
    return read_final_losses(path)


def test_table_is_read_and_other_columns_are_ignored(tmp_path: Path) -> None:
    table = read(tmp_path, TABLE)
    assert table.names == ("start", "a", "b")
    np.testing.assert_allclose(table.runs.domain_share, [np.nan, 0.9, 0.5])
    np.testing.assert_allclose(table.runs.unique_tokens, [np.nan, 1e10, 4e9])  # at most the tokens that were seen
    np.testing.assert_allclose(table.losses["domain"], [3.1, 1.73, np.nan])
    assert table.rows_of("domain").tolist() == [False, True, False]
    assert table.start_loss("general") == 2.86
    assert table.start_loss("general", 1.8e9) == 2.86


def test_table_with_domain_share_and_without_names(tmp_path: Path) -> None:
    table = read(tmp_path, "domain_share,tokens,loss_general\n0.25,1e9,2.5\n\n0.75,1e9,2.6\n")
    assert table.names == ("row 2", "row 4")
    np.testing.assert_allclose(table.runs.domain_share, [0.25, 0.75])
    assert table.runs.levels("num_params") == 0
    assert table.runs.levels("domain_share") == 2


def test_start_loss_that_is_not_there_is_refused(tmp_path: Path) -> None:
    table = read(tmp_path, "domain_share,tokens,loss_general\n0.25,1e9,2.5\n")
    with pytest.raises(CurveError, match="must have a row with tokens 0 for loss_general; got none"):
        table.start_loss("general")
    with pytest.raises(CurveError, match="must have a row with tokens 0"):
        read(tmp_path, TABLE).start_loss("general", 4e9)
    with pytest.raises(CurveError, match="must have a column loss_law; got general, domain"):
        read(tmp_path, TABLE).start_loss("law")


HEADER = "replay_ratio,tokens,loss_general\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have at least one row; got none"),
        (HEADER, "must have at least one row; got none"),
        ("replay_ratio,loss_general\n0.1,2.5\n", "must have a column tokens"),
        ("replay_ratio,token,loss_general\n0.1,1e9,2.5\n", "got token in .* did you mean 'tokens'"),
        ("tokens,loss_general\n1e9,2.5\n", "one of replay_ratio and domain_share; got tokens, loss_general"),
        ("replay_ratio,domain_share,tokens,loss_general\n0,1,1e9,2\n", "one of replay_ratio and domain_share"),
        ("replay_ratio,tokens\n0.1,1e9\n", "must have a column loss_<set>"),
        ("replay_ratio,tokens,tokens,loss_general\n0.1,1,1,2\n", "different names; got tokens twice"),
        (HEADER + "0.1,1e9\n", r"row must have 3 cells; got 2 in .*:2"),
        (HEADER + "1.2,1e9,2.5\n", r"replay_ratio must be in \[0, 1\]; got 1.2 in .*:2"),
        (HEADER + "20%,1e9,2.5\n", "replay_ratio must be a number; got '20%'"),
        (HEADER + "0.1,-5,2.5\n", "tokens must be at least 0; got -5"),
        (HEADER + "0.1,,2.5\n", "tokens must be given in every row; it is missing in .*:2"),
        (HEADER + "0.1,1e9,-2.5\n", "loss_general must be greater than 0"),
        (HEADER + "0.1,1e9,inf\n", "loss_general must be finite; got inf"),
        (HEADER + "0.1,1e9,23.4\n", "must be in nats per token; got 23.4 .* looks like a perplexity"),
        (HEADER + "0.1,1e9,2.5\n,1e9,2.5\n", "domain_share must be given for every finished run; 1 of 2 rows lack it"),
        (
            "replay_ratio,tokens,num_params,loss_general\n0.1,1e9,,2\n0.1,1e9,1e9,2\n",
            "num_params must be given for every finished run; 1 of 2",
        ),
        ("replay_ratio,tokens,num_params,loss_general\n0.1,1e9,0,2\n", "num_params must be greater than 0"),
    ],
)
def test_broken_table_gets_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CurveError) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert re.search(message, str(caught.value))


def test_table_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CurveError, match="table must be a CSV file"):
        read_final_losses(tmp_path / "nothing.csv")


def curve(name: str, replay: float, peak_lr: float = 1e-3, **record: object) -> LossCurve:
    losses = np.array([3.0, 2.9, 2.8, np.nan])
    return LossCurve(
        name=name,
        record=CurveRecord(
            phase="cpt",
            lr=read_schedule({"kind": "constant", "peak_lr": peak_lr, "total_steps": 100}, "test"),
            replay_ratio=ConstantMixture(replay_ratio=replay),
            **record,
        ),
        steps=np.array([0, 50, 80, 100]),
        losses={"general": losses, "domain": np.array([7.0, 5.0, 4.5, 4.4])},
    )


def test_curves_give_their_last_full_row_and_their_start(tmp_path: Path) -> None:
    unique = {"general": 10**6, "domain": 50_000}
    write_curve(tmp_path, curve("a", 0.2, batch_tokens=1000, num_params=10**6, unique_tokens=unique))
    write_curve(tmp_path, curve("b", 0.0, batch_tokens=1000, num_params=10**6, unique_tokens=unique))
    table = read_final_losses(tmp_path)
    assert table.names == ("a at step 0", "a", "b at step 0", "b")
    np.testing.assert_allclose(table.runs.tokens, [0, 80_000, 0, 80_000])
    np.testing.assert_allclose(table.runs.domain_share[[1, 3]], [0.8, 1.0])
    np.testing.assert_allclose(table.runs.unique_tokens[[1, 3]], [16_000 + 50_000, 50_000])
    np.testing.assert_allclose(table.losses["general"], [3.0, 2.8, 3.0, 2.8])
    assert table.start_loss("domain") == 7.0


def test_recipes_that_differ_are_noted(tmp_path: Path) -> None:
    write_curve(tmp_path, curve("a", 0.2, batch_tokens=1000))
    assert read_final_losses(tmp_path).notes == ()
    write_curve(tmp_path, curve("b", 0.2, 3e-3, batch_tokens=1000))
    assert read_final_losses(tmp_path).notes == (
        "peak rates go from 0.001 to 0.003, which these laws do not see: fit the curves",
    )


def test_curve_without_batch_tokens_is_refused(tmp_path: Path) -> None:
    write_curve(tmp_path, curve("a", 0.2))
    with pytest.raises(CurveError, match="curve must have batch_tokens and a row with all its losses; got a without"):
        read_final_losses(tmp_path)
