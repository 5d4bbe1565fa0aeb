"""The data file of accelerators: complete, sourced, and the user's own figures win."""

from __future__ import annotations

import pytest

from cptplan.errors import ConfigError
from cptplan.price.hardware import Hardware, find_hardware, read_hardware

ALL = read_hardware()


def test_built_in_devices_are_there():
    assert set(ALL) == {
        "h100-sxm", "h100-pcie", "h200-sxm", "b200", "a100-80gb", "a100-40gb", "a10g", "l4", "l40s", "mi300x",
        "rtx4090", "rtx5090", "cpu",
    }  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_every_figure_has_source_and_date(name):
    device = ALL[name]
    figures = [device.peak_flops, device.memory_bytes, device.tdp_watts, device.mfu]
    figures += [device.usd_per_hour] if device.usd_per_hour else []
    for figure in figures:
        assert figure.source
        assert figure.date is not None
        assert figure.basis in ("published", "assumed")


@pytest.mark.parametrize(
    ("name", "peak", "memory", "watts"),
    [("h100-sxm", 989e12, 80e9, 700), ("a100-80gb", 312e12, 80e9, 400), ("rtx4090", 165.2e12, 24e9, 450)],
)
def test_vendor_figures(name, peak, memory, watts):
    device = find_hardware(name)
    assert (device.peak_flops.value, device.memory_bytes.value, device.tdp_watts.value) == (peak, memory, watts)


@pytest.mark.parametrize(
    ("num_params", "mfu", "basis"),
    [
        (6.7e9, 0.464, "published"),
        ((6.7e9 * 13e9) ** 0.5, (0.464 + 0.398) / 2, "published"),  # straight in log size
        (1e8, 0.349, "assumed"),  # below the table
        (1e12, 0.426, "assumed"),
    ],
)
def test_expected_mfu_follows_the_table(num_params, mfu, basis):
    value, provenance = find_hardware("h100-sxm").expected_mfu(num_params)
    assert value == pytest.approx(mfu, abs=1e-12)
    assert provenance.basis == basis


def test_unknown_name_suggests_the_closest():
    with pytest.raises(ConfigError, match=r"hardware must be known; got 'h100-smx'.*did you mean 'h100-sxm'"):
        find_hardware("h100-smx")


@pytest.mark.parametrize(
    ("name", "near"),
    [("h100", "'h100-sxm' or 'h100-pcie'"), ("A100-80", "'a100-80gb'"), ("nvidia-l4", "'l4'"), ("b20", "'b200'")],
)
def test_unknown_name_gets_the_closest_ones(name, near):
    with pytest.raises(ConfigError) as caught:
        find_hardware(name)
    assert near in caught.value.hint


def test_devices_have_names_of_their_own():
    names = [name for device in ALL.values() for name in device.device_names]
    assert len(names) == len(set(names)) >= len(ALL)


def test_user_file_of_the_working_directory_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cptplan.hardware.yaml").write_text(
        "accelerators:\n  h100-sxm:\n    usd_per_hour: {value: 2.5, basis: assumed, source: our contract}\n"
    )
    mine, other = find_hardware("h100-sxm").usd_per_hour, tmp_path / "other.yaml"
    assert mine is not None
    assert (mine.value, mine.source) == (2.5, "our contract")
    other.write_text("accelerators: {}\n")
    assert find_hardware("h100-sxm", other) == ALL["h100-sxm"]  # a file that is named goes alone


def test_unknown_name_far_from_all_lists_them():
    with pytest.raises(ConfigError, match="known: h100-sxm"):
        find_hardware("abacus")


def test_user_file_changes_only_its_keys(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(
        "schema_version: 1\naccelerators:\n  h100-sxm:\n"
        "    usd_per_hour: {value: 2, basis: assumed, source: our contract, date: 2026-01-31}\n"
    )
    mine = find_hardware("h100-sxm", path)
    assert mine.usd_per_hour is not None
    assert mine.usd_per_hour.value == 2
    assert mine.model_copy(update={"usd_per_hour": ALL["h100-sxm"].usd_per_hour}) == ALL["h100-sxm"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("accelerators:\n  x: {kind: gpu}\n", "description must be given.*at x"),
        ("accelerators:\n  h100-sxm: {peak_flop: 1}\n", "did you mean 'peak_flops'"),
        ("accelerators:\n  h100-sxm: {tdp_watts: {value: -1, basis: assumed, source: s}}\n", "greater than 0"),
        ("accelerators:\n  cpu: {mfu: {basis: assumed, source: s, table: "
         "[{num_params: 2e9, mfu: 0.3}, {num_params: 1e9, mfu: 0.3}]}}\n", "mfu sizes must rise"),
        ("accelerators: [1]\n", "accelerators must be"),
        ("a: b: c", "must be YAML"),
    ],
)  # fmt: skip
def test_user_file_wrong_is_refused(tmp_path, text, match):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match) as caught:
        read_hardware(path)
    assert "mine.yaml" in str(caught.value)


def test_user_file_missing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must be readable"):
        read_hardware(tmp_path / "none.yaml")


def test_hardware_round_trips():
    device = ALL["a100-80gb"]
    assert Hardware.parse(device.to_json(), "json") == device
