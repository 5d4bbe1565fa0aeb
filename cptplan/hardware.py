"""Accelerators: peak speed, memory, power, price and the share of the peak that training reaches, all with sources."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from cptplan.config import parse_yaml
from cptplan.contract import Contract
from cptplan.errors import ConfigError, suggest

BUILT_IN = Path(__file__).with_name("hardware.yaml")

Basis = Literal["measured", "published", "assumed"]


class Provenance(Contract):
    """How a figure is known."""

    basis: Basis
    source: str
    date: datetime.date | None = None
    """When the source said so, or was last looked at."""


class Figure(Provenance):
    """A positive number and how it is known."""

    value: Annotated[float, Field(gt=0)]


class MfuPoint(Contract):
    """Model FLOPs utilisation at one model size."""

    num_params: Annotated[float, Field(gt=0)]
    mfu: Annotated[float, Field(gt=0, le=1)]


class MfuTable(Provenance):
    """Model FLOPs utilisation by model size (all parameters), sizes rising."""

    table: Annotated[tuple[MfuPoint, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        sizes = [point.num_params for point in self.table]
        if any(later <= earlier for earlier, later in zip(sizes, sizes[1:], strict=False)):
            raise ConfigError("mfu sizes must rise from row to row; got another order.", hint="sort by num_params")
        return self


class Hardware(Contract):
    """One kind of device."""

    name: str
    description: str
    kind: Literal["gpu", "cpu"]
    peak_flops: Figure
    """Dense bf16 FLOP/s of one device."""
    memory_bytes: Figure
    tdp_watts: Figure
    usd_per_hour: Figure | None = None
    """Price of one device for an hour; None when no dated figure is known."""
    mfu: MfuTable

    def expected_mfu(self, num_params: float) -> tuple[float, Provenance]:
        """Share of the peak that training a model of this size reaches, straight in log size between the table's rows.

        Args:      num_params: all parameters of the model.
        Returns:   MFU in (0, 1] and how it is known: outside the table's sizes the nearest row, as an assumption.
        """
        sizes = np.array([point.num_params for point in self.mfu.table])
        mfu = float(np.interp(np.log(num_params), np.log(sizes), [point.mfu for point in self.mfu.table]))
        # 10 %: a 7B of one family is the 6.7B of another
        inside = 0.9 * sizes[0] <= num_params <= 1.1 * sizes[-1]
        source = self.mfu.source if inside else f"nearest size of: {self.mfu.source}"
        return mfu, Provenance(basis=self.mfu.basis if inside else "assumed", source=source, date=self.mfu.date)


class _HardwareFile(Contract):
    """The whole file; its entries are checked once they are complete."""

    schema_version: Literal[1] = 1
    accelerators: dict[str, dict[str, Any]]


def read_hardware(extra: Path | None = None) -> dict[str, Hardware]:
    """All known devices by name.

    Args:      extra: a YAML file of the same form as hardware.yaml; a device of the same name takes the keys given
               there and keeps the others, a new name must be complete.
    Raises:    ConfigError with the rule, the value, the key and the file.
    """
    entries = _read_entries(BUILT_IN)
    places = dict.fromkeys(entries, str(BUILT_IN))
    for name, values in (_read_entries(extra) if extra else {}).items():
        entries[name] = {**entries.get(name, {}), **values}
        places[name] = str(extra)
    return {
        name: Hardware.parse({**values, "name": name}, f"{places[name]} at {name}") for name, values in entries.items()
    }


def find_hardware(name: str, extra: Path | None = None) -> Hardware:
    """The device of that name.

    Raises:    ConfigError with the closest name, or all of them.
    """
    known = read_hardware(extra)
    if name not in known:
        hint = suggest(name, known) or f"known: {', '.join(known)}"
        raise ConfigError(f"hardware must be known; got {name!r}.", hint=hint)
    return known[name]


def _read_entries(path: Path) -> dict[str, Mapping[str, Any]]:
    """The accelerators of a file, still unchecked."""
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"hardware file must be readable; got {error} for {path}.", hint="check the path") from error
    return dict(_HardwareFile.parse(value, str(path)).accelerators)
