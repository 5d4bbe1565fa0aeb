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
