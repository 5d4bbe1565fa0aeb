"""cptplan: plan a continual pre-training run before paying for it.

from cptplan import read_curves, fit, predict, simulate
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cptplan.api import fit as fit
    from cptplan.api import predict as predict
    from cptplan.api import read_curves as read_curves
    from cptplan.api import simulate as simulate

__version__ = "0.1.0"

_DOOR = dict.fromkeys(("fit", "predict", "read_curves", "simulate"), "cptplan.api")
"""Public functions and where they are; loaded when they are asked for, so that importing the package stays fast."""


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module 'cptplan' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_DOOR[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_DOOR})
