"""Parts c, d, e: the best peak rate, start and replay ratio; critical point and turning length; eq. 8's orientation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from paper_runs import (
    PEAK,
    Row,
    changes,
    claimed,
    constant,
    cosine,
    ends,
    history,
    judged,
    pretraining,
    shift,
    unprinted,
    wsd,
)
from scipy.optimize import brentq

from cptplan.dynamics.dynamics import Setting, replay_by_weight, study
from cptplan.planning.knobs import Knobs, Space
from cptplan.planning.search import Evaluated, Score, grid, polish, rank
from cptplan.simulation.published import find_published

WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LOWEST_RATE = PEAK / 100
RATE_SETS = ("knowledge-pile", "pile-of-law", "knowledge-pile-replay-67")
# A second computation, other code: best peak rate in 1e-4 at lambda1 = 0.3, 0.4, 0.5, 0.6, 0.7.
BEST_RATES = {
    "knowledge-pile": (2.0, 2.0, 0.22, 0.08, 0.04),
    "pile-of-law": (2.0, 0.24, 0.08, 0.04, 0.02),
    "knowledge-pile-replay-67": (2.0, 2.0, 2.0, 2.0, 2.0),
}
HORIZONS = (20_000, 30_000, 40_000)  # published: figure 8c
LONG = 200_000  # steps looked at for a turning length
PRETRAININGS = (2000, 5000, 7500, 10_000, 20_000, 40_000)  # steps
FIG_19_B = {"general": 0.276, "domain": 0.526}  # published: amplitude of the joint replay fit; its beta is not printed


def _setting(
    name: str, base: object, schedule: object, general_weight: float = 0.4, *, any_replay: bool = False
) -> Setting:
    """A published law with one pre-training and one CPT schedule, at the set's own replay ratio or 0."""
    published = find_published(name)
    ratio = published.replay_ratio or 0.0
    return Setting(
        laws=published.laws(),
        weights={"general": general_weight, "domain": 1.0 - general_weight},
        history=lambda start, r: history(pretraining(base), schedule, r),
        start="end",
        replay_ratio=ratio,
        replay_range=(0.0, 1.0) if any_replay else (ratio, ratio),
    )


def _best_rate(name: str, weight: float) -> float:
    """The best peak rate of a cosine of 10,000 steps from the annealed start, by planning.search."""
    published = find_published(name)
    laws, ratio, base = published.laws(), published.replay_ratio or 0.0, published.pretrain_record()

    def score(knobs: Knobs) -> Score:
        moved = changes(laws, base, cosine(knobs.total_steps, knobs.peak_lr), ratio)
        objective = weight * moved["general"] + (1.0 - weight) * moved["domain"]
        return Score(objective=objective, losses=moved, violations={})

    space = Space(
        peak_lr=(LOWEST_RATE, PEAK),
        replay_ratio=(ratio, ratio),
        total_steps=(10_000, 10_000),
        decay_share=(0.0, 0.0),
        starts=("annealed",),
        kinds=("cosine",),
    )
    tried = [Evaluated(knobs=k, score=score(k)) for k in grid(space, 12, 1, (1.0,))]
    return polish(score, space, min(tried, key=rank)).knobs.peak_lr


def choice_rows(*, fast: bool) -> tuple[list[Row], dict]:
    """c: optima over the weight of general loss."""
    weights = WEIGHTS[1::3] if fast else WEIGHTS
    rates = {name: [_best_rate(name, w) for w in weights] for name in RATE_SETS}
    rows = []
    for name in RATE_SETS:
        if name != "knowledge-pile-replay-67":  # at no lambda1 below the highest rate, which shows no fall
            falls = bool(np.all(np.diff(rates[name]) <= 1e-3 * PEAK) and rates[name][-1] < rates[name][0])
            said = ", ".join(f"{1e4 * rate:.2f}" for rate in rates[name])
            what = f"best peak rate (1e-4) over lambda1 = {weights[0]} .. {weights[-1]}, {name}"
            rows.append(claimed("c", what, "figure 8b", "falls with lambda1", said, holds=falls))
        if not fast:
            ours = [1e4 * rate for rate in rates[name][2:7]]
            what = f"best peak rate (1e-4) at lambda1 = 0.3 .. 0.7, {name}"
            rows.append(unprinted("c", what, "figure 8b", ours, BEST_RATES[name]))
    lower = all(far <= near * 1.01 for far, near in zip(rates["pile-of-law"], rates["knowledge-pile"], strict=True))
    what = "the stronger shift (Pile-of-Law) asks for no higher a rate at any lambda1"
    rows.append(claimed("c", what, "figure 8b", "lower", "lower or equal" if lower else "not always", holds=lower))
    starts, more_starts = _start_rows(weights)
    rows += more_starts
    replay_table, more = _replay_rows()
    return rows + more, {"weights": weights, "rates": rates, "starts": starts, "replay": replay_table}


def _start_rows(weights: Sequence[float]) -> tuple[dict, list[Row]]:
    """Best loss potential over lambda1 for 10,000 CPT steps, by what the rate does at the change of data."""
    shares = np.round(np.linspace(0.05, 1.0, 20), 2)
    published, table, rows = find_published("knowledge-pile"), {}, []
    laws = published.laws()
    readings: dict[str, Callable[[float], Any]] = {
        "cosine from the last rate of pre-training": lambda share: cosine(10_000, share * PEAK, 0),
        "re-warmed to 10 % of the peak": lambda _: cosine(10_000, 0.1 * PEAK),
        "re-warmed to the peak": lambda _: cosine(10_000),
    }
    for name, schedule in readings.items():
        found = [ends(laws, published.pretrain_record(share), schedule(share)) for share in shares]
        final = {side: np.array([one[side] for one in found]) for side in laws}
        change = {side: final[side] - np.array([one[f"{side}_start"] for one in found]) for side in laws}
        for judge, losses in (("change from its own start (eq. 5)", change), ("final loss", final)):
            best = [float(shares[np.argmin(w * losses["general"] + (1 - w) * losses["domain"])]) for w in weights]
            table[f"{name}, {judge}"] = best
            holds = bool(np.all(np.diff(best) <= 0) and best[0] > best[-1])
            what = f"best loss potential over lambda1 = {weights[0]} .. {weights[-1]}, {name}, by {judge}"
            said = ", ".join(f"{share:g}" for share in best)
            rows.append(claimed("c", what, "figure 8a", "large at small lambda1, then smaller", said, holds=holds))
    return table, rows


def _replay_rows() -> tuple[dict, list[Row]]:
    """Best replay ratio over lambda1, from a pre-trained model."""
    table: dict[str, list[float]] = {}
    rows = []
    for steps in HORIZONS:
        found = replay_by_weight(_setting("knowledge-pile", wsd(40_000), wsd(steps), any_replay=True))
        table["weights"] = [choice.general_weight for choice in found]
        ratios = table[str(steps)] = [choice.replay_ratio.mean for choice in found]
        gap = np.array(ratios) - np.array(table["weights"])
        crossing = int(np.sum(np.diff(np.sign(gap)) != 0))
        rises = bool(np.all(np.diff(ratios) >= -1e-6))
        said = f"{gap.min():+.2f} to {gap.max():+.2f} around it, {crossing} crossing(s), at 0.5: {ratios[9]:.2f}"
        what = f"best replay ratio less lambda1, {steps:,} steps, Knowledge-Pile"
        holds = rises and crossing >= 1
        rows.append(claimed("c", what, "figure 8c", "a wave around the line", said, holds=holds))
    return table, rows


def turning_rows() -> tuple[list[Row], dict]:
    """d: critical point, turning length and its patterns."""
    rows: list[Row] = []
    settings = {
        name: _setting(name, wsd(40_000), constant(LONG)) for name in ("knowledge-pile", "knowledge-pile-replay-67")
    }
    found = {name: study(setting) for name, setting in settings.items()}
    for name, start, limit in (("knowledge-pile", 3.188, 3.423), ("knowledge-pile-replay-67", 3.189, 3.174)):
        point = found[name].critical["general"]
        rows.append(unprinted("d", f"general loss at the start of CPT, {name}", "4.4", point.start.mean, start))
        rows.append(unprinted("d", f"L0 + B, where it goes, {name}", "figure 7c", point.asymptote.mean, limit))
    for name, said in (
        ("knowledge-pile", "post-critical: never back"),
        ("knowledge-pile-replay-67", "weak shift: turns"),
    ):
        turning = found[name].turning["general"]
        back = f"{turning.state}" + (f" after {turning.steps.mean:,.0f} steps" if turning.state == "returns" else "")
        expected = "never" if name == "knowledge-pile" else "returns"
        what = f"general loss at a constant 2e-4, {name}, 40,000 steps of pre-training"
        rows.append(claimed("d", what, "4.4, finding 4", said, back, holds=turning.state == expected))
    lengths = {}
    for steps in PRETRAININGS:
        setting = _setting("knowledge-pile", constant(steps), constant(LONG))
        turning = study(setting).turning["general"]
        lengths[str(steps)] = [turning.state, turning.steps.mean if np.isfinite(turning.steps.mean) else None]
        if turning.state == "returns":
            direct = _turning_by_formula(steps)
            what = f"turning length after {steps:,} steps of pre-training, Knowledge-Pile; other = root of eq. 4"
            rows.append(unprinted("d", what, "4.4", turning.steps.mean, direct))
    states = [state for state, _ in lengths.values()]
    said = ", ".join(f"{steps}: {state}" for steps, (state, _) in lengths.items())
    holds = states == sorted(states, key=("below", "returns", "beyond", "never").index) and states[0] != states[-1]
    what = "turning over the steps of pre-training, Knowledge-Pile"
    rows.append(claimed("d", what, "4.4, figure 7c", "finite only when pre-training is short", said, holds=holds))
    rows += _patterns()
    weighted, more = _weighted_rows()
    curves = {}
    for steps in PRETRAININGS:
        found_curve = study(_setting("knowledge-pile", constant(steps), constant(LONG)))
        curves[str(steps)] = [found_curve.steps.tolist(), found_curve.changes["general"].mean.tolist()]
    return rows + more, {"lengths": lengths, "weighted": weighted, "curves": curves}


def _turning_by_formula(steps: int) -> float:
    """Steps x / eta with A ((S)^-alpha - (S + x)^-alpha) = B (1 - (1 + E x)^-beta), constant rates throughout."""
    p, area = find_published("knowledge-pile").general, steps * PEAK

    def risen(x: float) -> float:
        return shift(p, x) - p.A * (area**-p.alpha - (area + x) ** -p.alpha)

    return float(brentq(risen, 1e-3, LONG * PEAK)) / PEAK


def _patterns() -> list[Row]:
    """The three shapes that figure 7 names: rises on, rises and comes part of the way back, comes back below."""
    cases: tuple[tuple[str, Callable[[], np.ndarray]], ...] = (
        ("rises on", lambda: _moved("pile-of-law", wsd(40_000), constant(40_000))),
        ("rises, then falls a part", lambda: _moved("knowledge-pile", wsd(40_000), cosine(20_000))),
        ("rises, then falls below its start", lambda: _moved("knowledge-pile", constant(2000), constant(40_000))),
    )
    rows = []
    for said, moved in cases:
        change = moved()
        top = int(np.argmax(change))
        fallen = change[top] - change[-1]
        shape = "rises on" if fallen < 1e-4 else "rises, then falls a part"
        if change[-1] < 0:
            shape = "rises, then falls below its start" if change[top] > 1e-3 else "falls"
        rows.append(claimed("d", "shape of general loss", "4.4, figure 7", said, shape, holds=shape == said))
    return rows


def _moved(name: str, base: object, schedule: object) -> np.ndarray:
    return np.asarray(study(_setting(name, base, schedule)).changes["general"].mean)


def _weighted_rows() -> tuple[dict, list[Row]]:
    """Turning of lambda1 L_pt + lambda2 L_cpt over lambda1, figure 13."""
    weights = [round(0.05 * k, 2) for k in range(1, 20)]
    table, rows = {}, []
    for name, base in (("annealed after 40,000 steps", wsd(40_000)), ("constant for 40,000 steps", constant(40_000))):
        states = []
        for weight in weights:
            turning = study(_setting("knowledge-pile", base, constant(LONG), weight)).turning["weighted"]
            states.append(turning.state)
        table[name] = {"weights": weights, "states": states}
        order = [state for k, state in enumerate(states) if k == 0 or state != states[k - 1]]
        firsts = ", ".join(f"{state} from {weights[states.index(state)]}" for state in order)
        what = f"turning of the weighted loss over lambda1, Knowledge-Pile, {name}"
        patterns = "below its start, then finite, then never"
        holds = order[0] == "below" and order[-1] == "never" and any(s in order for s in ("returns", "beyond"))
        rows.append(claimed("d", what, "figure 13", patterns, firsts, holds=holds))
    return table, rows


def orientation_rows() -> tuple[list[Row], dict]:
    """e: eq. 8 as printed and with its factors swapped; the whole of it is experiments/02_replay_orientation."""
    whole, rows, table = find_published("knowledge-pile"), [], {}
    third = find_published("knowledge-pile-replay-33")
    factors = {side: getattr(whole.replay["exponential"], side) for side in ("general", "domain")}
    readings: dict[str, dict[str, Callable[[np.ndarray], np.ndarray]]] = {
        "printed": {"general": _concave(factors["general"]), "domain": _convex(factors["domain"])},
        "swapped": {"general": _convex(factors["general"]), "domain": _concave(factors["domain"])},
    }
    for side in ("general", "domain"):
        fitted = shift(getattr(third, side), 3.0) / shift(getattr(whole, side), 3.0)
        for name, forms in readings.items():
            factor = float(forms[side](np.array(0.67)))
            what = f"{side} shift at 33 % replay over that at 0 %, S1 = 3: the fit, eq. 8 {name}"
            rows.append(judged("e", what, "eq. 8, figures 3, 12, 19", fitted, factor, 0.05))
    shares = np.linspace(0.0, 1.0, 201)
    for name, forms in readings.items():
        moved = {s: shift(getattr(whole, s), 6.0) * forms[s](shares) for s in forms}
        best = [1 - shares[np.argmin(w * moved["general"] + (1 - w) * moved["domain"])] for w in WEIGHTS]
        inner = sum(0.0 < ratio < 1.0 for ratio in best)
        table[name] = [float(ratio) for ratio in best]
        what = f"weights lambda1 (of {len(WEIGHTS)}) whose best replay lies between 0 and 100 %, eq. 8 {name}"
        rows.append(claimed("e", what, "figure 8c", "a curve", f"{inner}", holds=inner > len(WEIGHTS) // 2))
    for side in ("general", "domain"):
        a, target = factors[side], abs(shift(getattr(whole, side), 3.0)) / FIG_19_B[side]
        for name, size in (("1 - e^-a", -np.expm1(-a)), ("e^a - 1", np.expm1(a))):
            beta = float(-np.log1p(-target / size) / np.log1p(100 * 3.0))
            what = f"beta that figure 19 needs for the {side} shift without replay, factor {name}"
            rows.append(unprinted("e", what, "figure 19", beta))
    return rows, {"weights": list(WEIGHTS), **table}


def _concave(a: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda share: np.expm1(-a * share) / np.expm1(-a)


def _convex(a: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda share: np.expm1(a * share) / np.expm1(a)
