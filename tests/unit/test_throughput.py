"""Speed from the results of runs: only of the same model on the same hardware, and in proportion to devices."""

from __future__ import annotations

import pytest

from cptplan.files import write_json
from cptplan.price.hardware import find_hardware
from cptplan.price.throughput import measured_speed

H200 = find_hardware("h200-sxm")
RESULT = {"tokens": 1000, "train_seconds": 2.0, "device": "NVIDIA H200", "num_processes": 4, "num_params_total": 7}


def write(directory, *results):
    for number, result in enumerate(results):
        write_json(directory / f"run-{number}" / "result.json", {**RESULT, **result})


def test_speed_counts_device_seconds(tmp_path):
    write(tmp_path, {}, {"tokens": 5000, "train_seconds": 4.0})
    speed = measured_speed(tmp_path, H200, 7)
    assert speed.tokens_per_second_per_device == pytest.approx(6000 / (4 * 2.0 + 4 * 4.0))
    assert speed.on(4)[0] == pytest.approx(1000.0)
    assert (speed.on(4)[1].basis, speed.on(4)[1].source) == ("measured", "2 runs of this model on this hardware")


def test_speed_of_other_numbers_of_devices_is_assumed(tmp_path):
    write(tmp_path, {}, {"num_processes": 8})
    value, known = measured_speed(tmp_path, H200, 7).on(16)
    assert value == pytest.approx(16 * 2000 / (2.0 * 4 + 2.0 * 8))
    assert known.basis == "assumed"
    assert "on 4 or 8 of this hardware, in proportion" in known.source


@pytest.mark.parametrize("other", [{"device": "cpu"}, {"num_params_total": 8}, {"device": "NVIDIA H100 80GB HBM3"}])
def test_other_runs_do_not_count(tmp_path, other):
    write(tmp_path, other)
    assert measured_speed(tmp_path, H200, 7) is None
    assert measured_speed(tmp_path / "none", H200, 7) is None
