"""Settings shared by all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.fixture
def cptplan(monkeypatch, capsys):
    """The command line, run as a user types it."""
    from command_line import CommandLine

    return CommandLine(monkeypatch, capsys)


@pytest.fixture(scope="session")
def example_plan(tmp_path_factory):
    """A plan over laws that are known by hand."""
    from simple_laws import make_forecaster, make_project

    from cptplan.planning.planner import make_plan

    root = tmp_path_factory.mktemp("plan")
    return make_plan(make_project(root), make_forecaster(), "abc", str(root / "study.journal"), trials=5)
