"""Options of an import as text."""

from __future__ import annotations

import pytest

from cptplan.errors import ConfigError
from cptplan.importers.option_text import parse_lr, parse_pairs, parse_record


def test_pairs_are_split_at_the_first_equals_sign() -> None:
    assert parse_pairs(["general=eval/loss", "law=a=b"], "--loss") == {"general": "eval/loss", "law": "a=b"}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["general"], "--loss must be key=value; got 'general'."),
        (["=x"], "--loss must be key=value; got '=x'."),
        (["x="], "--loss must be key=value; got 'x='."),
        (["x=1", "x=2"], "--loss must give a key once; got x twice."),
    ],
)
def test_pair_that_is_none(texts: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_pairs(texts, "--loss")
    assert words in str(caught.value)


def test_record_takes_numbers_objects_and_text() -> None:
    texts = ["phase=cpt", "replay_ratio=0.3", "parent_step=80", "seed=null"]
    texts += ['pretrain={"loss_potential": 0.1}', "parent=base-1"]
    assert parse_record(texts) == {
        "phase": "cpt",
        "replay_ratio": 0.3,
        "parent_step": 80,
        "seed": None,
        "pretrain": {"loss_potential": 0.1},
        "parent": "base-1",
    }


def test_schedule_is_json() -> None:
    assert parse_lr('{"kind": "constant"}') == {"kind": "constant"}
    assert parse_lr(None) is None
    with pytest.raises(ConfigError, match="--lr must be JSON; got"):
        parse_lr("cosine")
