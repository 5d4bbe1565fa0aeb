"""Prices from catalogues: a stub in the place of gpuhunt, no network."""

from __future__ import annotations

import datetime
import sys
from types import SimpleNamespace

import pytest

from cptplan.errors import ConfigError
from cptplan.price.hardware import find_hardware, read_hardware
from cptplan.price.refresh import refresh_prices

DAY = datetime.date(2026, 12, 1)


def offer(provider, price, name="H100", memory=80.0, count=1):
    return SimpleNamespace(provider=provider, price=price, gpu_name=name, gpu_memory=memory, gpu_count=count)


OFFERS = [
    offer("one", 3.0), offer("one", 2.5), offer("two", 32.0, count=8), offer("three", 9.0, name="h100"),
    offer("four", 1.0, name="H100NVL", memory=94.0), offer("one", 1.2, name="A100", memory=80.0),
    offer("one", 0.8, name="A100", memory=40.0), offer("five", 1.0, name=None, memory=None),
]  # fmt: skip


@pytest.fixture
def catalogue(monkeypatch):
    """A gpuhunt that remembers what it was asked, and its offers."""
    asked = []

    def query(**arguments):
        asked.append(arguments)
        return OFFERS

    monkeypatch.setitem(sys.modules, "gpuhunt", SimpleNamespace(query=query))
    return asked


def test_prices_are_the_median_of_the_providers(tmp_path, catalogue):
    path = tmp_path / "mine.yaml"
    changes = {change.name: change for change in refresh_prices(path, DAY)}
    assert set(changes) == {"h100-sxm", "a100-80gb", "a100-40gb"}
    h100 = find_hardware("h100-sxm", path).usd_per_hour
    assert (h100.value, h100.basis, h100.date) == (4.0, "published", DAY)  # of 2.5, 32 / 8 and 9
    assert "median of 3 providers" in h100.source
    assert "cheapest one at 2.50" in h100.source
    assert find_hardware("a100-40gb", path).usd_per_hour.value == 0.8
    assert changes["h100-sxm"].usd_before == find_hardware("h100-sxm").usd_per_hour.value
    assert catalogue[0]["spot"] is False
    assert "H100" in catalogue[0]["gpu_name"]


def test_all_else_in_the_file_stays(tmp_path, catalogue):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "accelerators:\n  # our cluster\n  h100-sxm:\n    tdp_watts: {value: 500, basis: measured, source: the rack}\n"
    )
    refresh_prices(path, DAY)
    assert "# our cluster" in path.read_text()
    assert find_hardware("h100-sxm", path).tdp_watts.value == 500
    refresh_prices(path, DAY)
    assert read_hardware(path)["h100-sxm"].usd_per_hour.value == 4.0


@pytest.mark.usefixtures("catalogue")
def test_wrong_file_is_left_alone(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("accelerators: [1]\n")
    with pytest.raises(ConfigError, match="accelerators must be"):
        refresh_prices(path, DAY)
    assert path.read_text() == "accelerators: [1]\n"


def test_without_gpuhunt_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gpuhunt", None)
    with pytest.raises(ConfigError, match="gpuhunt must be installed") as caught:
        refresh_prices(tmp_path / "mine.yaml", DAY)
    assert "pip install 'cptplan[prices]'" in caught.value.hint
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize("failure", [OSError("no route to host"), RuntimeError("catalog is empty")])
def test_without_network_is_one_line(tmp_path, monkeypatch, failure):
    def query(**_):
        raise failure

    monkeypatch.setitem(sys.modules, "gpuhunt", SimpleNamespace(query=query))
    with pytest.raises(ConfigError, match=f"catalogues must be reachable; got {type(failure).__name__}"):
        refresh_prices(tmp_path / "mine.yaml", DAY)


def test_without_offers_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gpuhunt", SimpleNamespace(query=lambda **_: []))
    with pytest.raises(ConfigError, match="must hold offers"):
        refresh_prices(tmp_path / "mine.yaml", DAY)
    assert not (tmp_path / "mine.yaml").exists()
