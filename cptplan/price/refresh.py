"""Today's prices from gpuhunt's catalogues into the user's own hardware file; the only part that asks the network."""

from __future__ import annotations

import datetime
import importlib
import io
import logging
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cptplan.errors import ConfigError
from cptplan.files import write_text
from cptplan.price.hardware import Hardware, read_hardware

COLUMNS = ("accelerator", "before", "now", "from")
MEMORY_TOLERANCE = 0.05  # assumed: catalogues round the memory of a device, and count in GB or GiB


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceChange:
    """The price of one device for an hour, before and now."""

    name: str
    usd_before: float | None
    usd_now: float
    source: str

    def cells(self) -> tuple[str, ...]:
        """The change as a table shows it."""
        before = "none" if self.usd_before is None else f"{self.usd_before:.2f}"
        return self.name, before, f"{self.usd_now:.2f}", self.source

    def to_json(self) -> dict[str, str | float | None]:
        """The change for --json."""
        return {"name": self.name, "before": self.usd_before, "now": self.usd_now, "source": self.source}


def refresh_prices(path: Path, today: datetime.date | None = None) -> list[PriceChange]:
    """Write the prices of today into a hardware file; what else is in it, comments too, stays.

    The price is the median, over the providers, of the cheapest on-demand offer of each for one device.
    Args:      path: file to write; it need not be there. today: date to write; None is the calendar's.
    Raises:    ConfigError if gpuhunt is not installed, its catalogues cannot be reached or hold no price for any of the
               accelerators, or the file is wrong; StorageError if it cannot be written.
    """
    known = read_hardware(path if path.is_file() else None)
    offers = _offers([device.catalogue_name for device in known.values() if device.catalogue_name])
    changes = [change for device in known.values() if (change := _change(device, offers))]
    if not changes:
        raise ConfigError(
            "price catalogues must hold offers; got none for any accelerator.", hint=f"write prices into {path}"
        )
    yaml = YAML()
    content: Any = yaml.load(path.read_text(encoding="utf-8")) if path.is_file() else {"schema_version": 1}
    entries = content.setdefault("accelerators", {})
    for change in changes:
        entries.setdefault(change.name, {})["usd_per_hour"] = {
            "value": change.usd_now,
            "basis": "published",
            "source": change.source,
            "date": (today or datetime.date.today()).isoformat(),
        }
    stream = io.StringIO()
    yaml.dump(content, stream)
    write_text(path, stream.getvalue())
    return changes


def _offers(names: list[str]) -> Iterable[Any]:
    """On-demand offers of accelerators of these names, by every provider that gpuhunt knows."""
    try:
        gpuhunt = importlib.import_module("gpuhunt")
    except ImportError as error:
        raise ConfigError(
            "gpuhunt must be installed to refresh prices; it is not.",
            hint="pip install 'cptplan[prices]', or write your prices into cptplan.hardware.yaml",
        ) from error
    logging.getLogger("gpuhunt").setLevel(logging.CRITICAL)  # one line for each provider that asks for credentials
    try:
        found: list[Any] = gpuhunt.query(gpu_name=sorted(set(names)), min_gpu_count=1, spot=False)
    except Exception as error:  # whatever its many providers and their http clients raise
        raise ConfigError(
            f"price catalogues must be reachable; got {type(error).__name__}: {error}.",
            hint="check the network, or write your prices into cptplan.hardware.yaml",
        ) from error
    return found


def _change(device: Hardware, offers: Iterable[Any]) -> PriceChange | None:
    """The new price of a device, or None when nobody offers it."""
    if device.catalogue_name is None:
        return None
    gigabytes = device.memory_bytes.value / 1e9
    cheapest: dict[str, float] = {}
    for offer in offers:
        same = str(offer.gpu_name).lower() == device.catalogue_name.lower()
        if same and offer.gpu_memory and abs(offer.gpu_memory / gigabytes - 1.0) <= MEMORY_TOLERANCE:
            each = offer.price / offer.gpu_count
            cheapest[offer.provider] = min(each, cheapest.get(offer.provider, each))
    if not cheapest:
        return None
    provider = min(cheapest, key=lambda name: cheapest[name])
    source = f"gpuhunt: median of {len(cheapest)} providers, on demand; cheapest {provider} at {cheapest[provider]:.2f}"
    before = device.usd_per_hour
    return PriceChange(
        name=device.name,
        usd_before=None if before is None else before.value,
        usd_now=round(statistics.median(cheapest.values()), 4),
        source=source,
    )
