"""Accelerators: peak speed, memory, power, price and the share of the peak that training reaches, all with sources.

The built-in figures are in hardware.yaml; a cptplan.hardware.yaml in the working directory, or a file that is named,
goes over them key by key.
"""

from __future__ import annotations

import datetime
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cptplan.config import parse_yaml
from cptplan.contract import Contract
from cptplan.errors import ConfigError

BUILT_IN = Path(__file__).with_name("hardware.yaml")
USER_FILE = Path("cptplan.hardware.yaml")
"""The user's own figures, beside cptplan.yaml: read from the working directory whenever no other file is named."""

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
    device_names: tuple[str, ...] = ()
    """What torch calls it in result.json, to know runs that were measured on it."""
    catalogue_name: str | None = None
    """Its name in price catalogues; None when they do not tell it from others."""
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
        sizes = [point.num_params for point in self.mfu.table]
        mfu = self._interpolated(num_params)
        # 10 %: a 7B of one family is the 6.7B of another
        inside = 0.9 * sizes[0] <= num_params <= 1.1 * sizes[-1]
        source = self.mfu.source if inside else f"nearest size of: {self.mfu.source}"
        return mfu, Provenance(basis=self.mfu.basis if inside else "assumed", source=source, date=self.mfu.date)

    def _interpolated(self, num_params: float) -> float:
        """MFU straight in log size between the rows around it; outside them the nearest row's."""
        rows = self.mfu.table
        for low, high in zip(rows, rows[1:], strict=False):
            if num_params <= high.num_params:
                share = math.log(num_params / low.num_params) / math.log(high.num_params / low.num_params)
                return low.mfu + max(share, 0.0) * (high.mfu - low.mfu)
        return rows[-1].mfu


class _HardwareFile(Contract):
    """The whole file; its entries are checked once they are complete."""

    schema_version: Literal[1] = 1
    accelerators: dict[str, dict[str, Any]]


def read_hardware(extra: Path | None = None) -> dict[str, Hardware]:
    """All known devices by name.

    Args:      extra: a YAML file of the same form as hardware.yaml; a device of the same name takes the keys given
               there and keeps the others, a new name must be complete. None reads USER_FILE if there is one.
    Raises:    ConfigError with the rule, the value, the key and the file.
    """
    if extra is None and USER_FILE.is_file():
        extra = USER_FILE
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

    Raises:    ConfigError with the closest names, or all of them.
    """
    known = read_hardware(extra)
    if name not in known:
        near = [word for word in known if name.lower() in word or word in name.lower()]
        near += [word for word in difflib.get_close_matches(name.lower(), known, n=3) if word not in near]
        hint = f"did you mean {' or '.join(map(repr, near[:3]))}?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"hardware must be known; got {name!r}.", hint=hint)
    return known[name]


def _read_entries(path: Path) -> dict[str, Mapping[str, Any]]:
    """The accelerators of a file, still unchecked."""
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"hardware file must be readable; got {error} for {path}.", hint="check the path") from error
    return dict(_HardwareFile.parse(value, str(path)).accelerators)
