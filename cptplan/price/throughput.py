"""How fast training was measured to go: from the results of runs that are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cptplan.files import read_json
from cptplan.price.hardware import Hardware, Provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredSpeed:
    """Training speed of one model on one kind of device."""

    tokens_per_second_per_device: float
    num_runs: int
    num_devices: tuple[int, ...]
    """Devices of the runs, each number once."""

    def on(self, num_devices: int) -> tuple[float, Provenance]:
        """Tokens per second of so many devices together; in proportion, and so assumed, unless runs had that many."""
        speed = self.tokens_per_second_per_device * num_devices
        ran = f"{self.num_runs} {'run' if self.num_runs == 1 else 'runs'} of this model"
        if self.num_devices == (num_devices,):
            return speed, Provenance(basis="measured", source=f"{ran} on this hardware")
        counts = " or ".join(map(str, self.num_devices))
        return speed, Provenance(basis="assumed", source=f"{ran} on {counts} of this hardware, in proportion")


def measured_speed(runs_dir: Path, hardware: Hardware, num_params_total: int) -> MeasuredSpeed | None:
    """Speed of the finished runs of this model on this hardware; None when there is none.

    tokens / device seconds, over all those runs together, without their evaluations.
    Args:      runs_dir: run directories with result.json. num_params_total: all parameters of the model.
    Raises:    ConfigError if a result.json cannot be read.
    """
    results = [read_json(path) for path in sorted(runs_dir.glob("*/result.json"))]
    same = [
        result
        for result in results
        if result.get("device") in hardware.device_names and result.get("num_params_total") == num_params_total
    ]
    device_seconds = sum(result["train_seconds"] * result["num_processes"] for result in same)
    if device_seconds <= 0:
        return None
    return MeasuredSpeed(
        tokens_per_second_per_device=sum(result["tokens"] for result in same) / device_seconds,
        num_runs=len(same),
        num_devices=tuple(sorted({result["num_processes"] for result in same})),
    )
