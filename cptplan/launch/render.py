"""Text of the files of a launch directory: templates, where what comes from outside is quoted, and YAML."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

YAML_1_1_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "~", ""}


def render(template: str, values: Mapping[str, Any]) -> str:
    """A template of this package with values; the filter `sh` quotes for the shell, `line` keeps to one line."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell and Markdown; what comes from outside goes through sh or line
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    environment.filters["line"] = one_line
    return environment.get_template(template).render(**values)


def one_line(value: object) -> str:
    """The value without what would end a line or a code span of Markdown."""
    return "".join(character if character.isprintable() and character != "`" else "?" for character in str(value))


class _Representer(RoundTripRepresenter):
    """Scalars that readers of YAML 1.1 and of 1.2 take for the same; what is said twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never write anchors."""
        return True


def _text(representer: RoundTripRepresenter, value: str) -> ScalarNode:
    # a bare no is false in 1.1; 1e-5 and 24:00:00 are numbers in one of them
    ambiguous = value.lower() in YAML_1_1_WORDS or value[:1].isdigit() or value[:1] in "+-."
    style = "'" if ambiguous else "|" if value.endswith("\n") else None
    return representer.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _number(representer: RoundTripRepresenter, value: float) -> ScalarNode:
    text = repr(value)
    if "." not in text:
        text = text.replace("e", ".0e")  # in 1.1 a number has a dot
    return representer.represent_scalar("tag:yaml.org,2002:float", text)


_Representer.add_representer(str, _text)
_Representer.add_representer(float, _number)


def yaml_text(value: Mapping[str, Any]) -> str:
    """A YAML document of plain values."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width = 10**6
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(dict(value), stream)
    return stream.getvalue()
