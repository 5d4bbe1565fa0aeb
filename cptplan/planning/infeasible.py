"""Why no run keeps the constraints, and the smallest change of one of them that lets some run do so."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cptplan.errors import InfeasiblePlanError
from cptplan.planning.forecast import Forecaster
from cptplan.planning.knobs import Space
from cptplan.planning.search import Evaluated, Score, SearchResult, polish

TOO_SMALL = 1e-9  # of a broken constraint: rounding


def explain(found: SearchResult, space: Space, forecaster: Forecaster) -> InfeasiblePlanError:
    """The error that names the constraints which stand in the way, with the change that each needs alone.

    A constraint stands in the way alone when some run keeps all others; else all that the nearest run breaks are named.
    """
    names = list(found.best.score.violations)
    alone = {name: nearest for name in names if (nearest := _nearest(name, found, space, forecaster)) is not None}
    if alone:
        changes = [_change(name, nearest, forecaster) for name, nearest in alone.items()]
        name = min(alone, key=lambda key: alone[key].score.violations[key])
        shown = alone[name]
        hint = "; or ".join(dict.fromkeys(changes))
    else:
        broken = [name for name in names if found.best.score.violations[name] > TOO_SMALL]
        name, shown = ", ".join(broken), found.best
        hint = "; and ".join(dict.fromkeys(_change(name, found.best, forecaster) for name in broken))
    return InfeasiblePlanError(
        f"a plan must keep {name}; got none among {len(found.evaluated)} runs, the nearest with "
        f"{_state(name.split(', '), shown, forecaster)}.",
        hint=hint,
    )


def _nearest(name: str, found: SearchResult, space: Space, forecaster: Forecaster) -> Evaluated | None:
    """The run that breaks one constraint least among those that keep all others; None when no run keeps them."""

    def others(score: Score) -> float:
        return max((v for key, v in score.violations.items() if key != name), default=-math.inf)

    kept = [e for e in found.evaluated if others(e.score) <= 0]
    if not kept:
        return None
    begin = min(kept, key=lambda e: e.score.violations[name])
    return polish(
        forecaster.score,
        space,
        begin,
        cost=lambda score: score.violations[name] + 100.0 * max(others(score), 0.0),
    )


def _state(names: Sequence[str], shown: Evaluated, forecaster: Forecaster) -> str:
    """How the nearest run stands to the constraints it breaks."""
    said = []
    for name in names:
        excess = shown.score.violations[name]
        if name in forecaster.general_caps():
            cap = forecaster.general_caps()[name]
            said.append(f"general loss {cap + excess:.3f} at {forecaster.confidence:.0%} confidence, allowed {cap:.3f}")
        else:
            said.append(f"{1.0 + excess:.2f} times the {name.replace('_', ' ')} that are there")
    return " and ".join(said)


def _change(name: str, shown: Evaluated, forecaster: Forecaster) -> str:
    """The smallest change of a constraint with which the run shown keeps it, rounded to the safe side."""
    excess = shown.score.violations[name]
    base = forecaster.starts[forecaster.base].losses["general"]
    caps = forecaster.general_caps()
    if name not in caps:
        there = forecaster.general_tokens if name == "general_tokens" else forecaster.domain_tokens
        source = name.removesuffix("_tokens")
        epochs = forecaster.max_epochs * (1.0 + excess)
        missing = there * forecaster.max_epochs * excess
        return f"add {_up(missing, 2):,.0f} {source} tokens, or set budget.max_epochs={_up(epochs, 3):g}"
    needed = caps[name] + excess
    value = {
        "max_general_increase": _up(needed / base - 1.0, 3),
        "max_forgetting_ratio": _up(math.exp(needed - base), 4),
        "max_general_loss": _up(needed, 4),
    }[name]
    chance = forecaster.chance(shown.knobs) or 0.0
    confidence = math.floor(100.0 * chance) / 100.0
    looser = f", or goal.confidence={confidence:g}" if 0.0 < confidence < forecaster.confidence else ""
    return f"goal.{name}={value:g} is the least that some run keeps{looser}"


def _up(value: float, digits: int) -> float:
    """The next number with so many significant digits that is not smaller."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.ceil(value / unit - 1e-9) * unit
