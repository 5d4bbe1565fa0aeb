"""What a run has used so far: seconds, device-hours, money, memory, and how well the devices are busy."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace

import torch
from accelerate import Accelerator

from cptplan.run_options import Accounting
from executor.checkpoint import Position


class Meter:
    """The clock of one attempt of a run, on top of what the attempts before it have used."""

    def __init__(
        self, settings: Accounting | None, accelerator: Accelerator, *, num_params: int, started: float
    ) -> None:
        """Start from nothing used.

        Args:      num_params: parameters that each token goes through, for FLOPs where the settings have none.
                   started: time.perf_counter() at the start of the process.
        """
        self._settings = settings or Accounting()
        self._processes, self._device = accelerator.num_processes, accelerator.device
        self._flops_per_token = self._settings.flops_per_token or 6.0 * num_params
        self._started = started
        self._before = Position()

    def resume(self, position: Position) -> None:
        """Count on from what a checkpoint knew."""
        self._before = position

    def stamp(self, position: Position) -> Position:
        """The position with the time used until now."""
        elapsed = time.perf_counter() - self._started
        return replace(
            position,
            wall_seconds=self._before.wall_seconds + elapsed,
            device_seconds=self._before.device_seconds + elapsed * self._processes,
        )

    def line(self, tokens: int, seconds: float, data_seconds: float) -> dict[str, float]:
        """Speed and cost of one optimiser step, for the log.

        Args:      tokens: of the step, over all processes. seconds, data_seconds: of the step, and of reading its data.
        """
        speed = tokens / seconds
        found = {
            "tokens_per_second": round(speed, 1),
            "data_seconds": round(data_seconds, 6),
            "memory_gb": round(self._peak_memory() / 1e9, 3),
            **self.cost(),
        }
        if self._settings.peak_flops is not None:
            found["mfu"] = round(speed * self._flops_per_token / (self._settings.peak_flops * self._processes), 4)
        return found

    def cost(self) -> dict[str, float]:
        """Device-hours of all attempts, and their price where it is known."""
        hours = self.stamp(self._before).device_seconds / 3600
        price = self._settings.usd_per_device_hour
        return {"gpu_hours": round(hours, 6)} | ({"price_usd": round(hours * price, 4)} if price is not None else {})

    def _peak_memory(self) -> float:
        """Bytes: of the device's allocations, or of the process where the device is the CPU."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak if sys.platform == "darwin" else peak * 1024)
