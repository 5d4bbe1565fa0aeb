"""The README stays true: its verbs and options exist, its files exist, its make targets exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from cptplan.cli import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\s*(?:\.venv/bin/)?cptplan ([a-z][^#\n]*)", README, flags=re.MULTILINE)
INLINE = re.findall(r"`cptplan ([a-z][^`]*)`", README)
TREE = README.split("## Where things are")[1].split("```")[1]


@pytest.mark.parametrize("line", sorted({*COMMANDS, *INLINE}))
def test_command_and_its_options_exist(line: str) -> None:
    words = line.split()
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        verb = words.pop(0)
        assert verb in command.commands, f"README names the verb {verb}"
        command = command.commands[verb]
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        if word.startswith("-"):
            assert word in known, f"README gives {word} to {line.split()[0]}"


def test_every_verb_is_in_the_readme() -> None:
    verbs = set(typer.main.get_command(app).commands)
    named = {line.split()[0] for line in (*COMMANDS, *INLINE)}
    assert verbs - named <= {"status"}


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_link_leads_to_a_file(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("name", re.findall(r"\b([a-z_]+(?:\.py|/))(?=[\s,]|$)", TREE))
def test_tree_names_what_is_there(name: str) -> None:
    places = [ROOT, ROOT / "cptplan", ROOT / "executor", ROOT / "reports"]
    assert any((place / name).exists() for place in places)


@pytest.mark.parametrize("target", ["demo", "test", "check"])
def test_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
