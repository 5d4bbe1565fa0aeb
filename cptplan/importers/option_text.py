"""Options of an import as a command line gives them: text, which may be JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cptplan.curves import EXAMPLE_SCHEDULE
from cptplan.errors import ConfigError


def parse_pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """key=value texts as a mapping, the key up to the first equals sign.

    Raises:    ConfigError for a text without one, or a key that comes twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"{option} must be key=value; got {text!r}.", hint=f"such as {option} key=value")
        if key in pairs:
            raise ConfigError(f"{option} must give a key once; got {key} twice.", hint="remove one")
        pairs[key] = value
    return pairs


def parse_record(texts: Sequence[str]) -> dict[str, Any]:
    """What --set says of a curve: values are JSON where they can be read so, such as 0.3 or null, else text."""
    return {key: _json_or_text(value) for key, value in parse_pairs(texts, "--set").items()}


def parse_lr(text: str | None) -> object | None:
    """The schedule object of --lr.

    Raises:    ConfigError if it is no JSON.
    """
    if text is None:
        return None
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"--lr must be JSON; got {error} in {text!r}.", hint=f"such as '{EXAMPLE_SCHEDULE}'"
        ) from error
    return value


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
