"""Answer both questions from printed numbers: python analyse.py. Writes results.json, results.md and figure.png.

The fits of arXiv:2505.07796 come from cptplan/simulation/published.yaml, the losses of arXiv:2403.08763 from
tables.csv.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import matplotlib as mpl
import numpy as np
from scipy.optimize import least_squares, minimize_scalar

mpl.use("Agg")
import matplotlib.pyplot as plt

from cptplan.files import write_json, write_text
from cptplan.simulation.published import LossParameters, find_published

HERE = Path(__file__).resolve().parent
SIDES = ("general", "domain")
SETS = {1.0: "knowledge-pile"} | {1 - r / 100: f"knowledge-pile-replay-{r}" for r in (33, 50, 67)}  # by domain share
AREAS = (0.1, 0.3, 1.0, 3.0, 8.0)  # forward areas of CPT in the paper's unit; 8 is 40,000 steps at 2e-4
SHOWN = 3.0
NAMES = {"german": "German", "slimpajama": "SlimPajama"}
A1 = {"general": 0.055, "domain": 0.037}  # published: figure 19, exponents of the annealing factor
C2 = {"general": 0.263, "domain": 0.279}  # published: figure 19
FULL_DECAY = 0.2  # S2 of a whole decay from 2e-4: the most that annealing can weigh
STARTS = 24  # of each fit; more change nothing
BOX = (-20.0, 9.0)  # logarithms of the parameters of the small-replay forms


def concave(a: float, share: np.ndarray) -> np.ndarray:
    """(1 - e^{-a s}) / (1 - e^{-a}): above the diagonal for every a > 0, so above 1/2 at s = 1/2."""
    return np.expm1(-a * share) / np.expm1(-a)


def convex(a: float, share: np.ndarray) -> np.ndarray:
    """(e^{a s} - 1) / (e^a - 1): below the diagonal for every a > 0."""
    return (np.exp(a * (share - 1)) - np.exp(-a)) / -np.expm1(-a)


PRINTED = {"general": concave, "domain": convex}
SWAPPED = {"general": convex, "domain": concave}


def main() -> None:
    """Both questions, three files."""
    orientation, small = orientation_results(), small_replay_results()
    write_json(HERE / "results.json", {"schema_version": 1, "orientation": orientation, "small_replay": small})
    write_text(HERE / "results.md", markdown(orientation, small))
    draw(orientation, small)


def shift(p: LossParameters, area: float) -> float:
    """B (1 - (1 + E S)^-beta), nats per token."""
    return p.B * (1 - (1 + p.E * area) ** -p.beta)


def orientation_results() -> dict:
    """Shift at each domain share over the shift without replay, against both readings of eq. 8."""
    replay = find_published("knowledge-pile").replay["exponential"]
    published_a = {"general": replay.general, "domain": replay.domain}
    shares = np.array(sorted(SETS))
    found: dict = {"shares": shares.tolist(), "areas": list(AREAS), "published_a": published_a, "sets": {}}
    for side in SIDES:
        fits = {share: getattr(find_published(name), side) for share, name in SETS.items()}
        whole = {area: shift(fits[1.0], area) for area in AREAS}
        observed = {area: [shift(fits[s], area) / whole[area] for s in shares] for area in AREAS}
        found["sets"][side] = {
            "observed": {str(area): ratios for area, ratios in observed.items()},
            "readings": {
                name: reading(forms[side], published_a[side], shares, observed)
                for name, forms in (("printed", PRINTED), ("swapped", SWAPPED))
            },
            "annealing": annealing_factor(side, fits, whole[SHOWN]),
        }
    found["permutations"] = permuted()
    found["half_share"] = half_share(found)
    return found


def reading(form: Callable, a: float, shares: np.ndarray, observed: dict[float, list[float]]) -> dict:
    """Factors by one reading at the published a, and its error there and at the a that suits it best."""
    ratios = np.array([observed[area] for area in AREAS])

    def rms(value: float) -> float:
        return float(np.sqrt(np.mean((form(value, shares)[:-1] - ratios[:, :-1]) ** 2)))

    best = minimize_scalar(lambda log_a: rms(float(np.exp(log_a))), bounds=(-7, 4), method="bounded")
    return {
        "factors": form(a, shares).tolist(),
        "rms_at_published_a": rms(a),
        "best_a": float(np.exp(best.x)),
        "rms_at_best_a": float(best.fun),
    }


def annealing_factor(side: str, fits: dict[float, LossParameters], whole: float) -> dict:
    """Whether e^{a1 r} on the annealing term could make up for the wrong factor at a domain share of one third.

    The gap between the printed factor and the fit is compared with all that the factor can move, a whole decay.
    """
    share, a = 0.33, getattr(find_published("knowledge-pile").replay["exponential"], side)
    gap = abs(float(PRINTED[side](a, np.array(share))) - shift(fits[min(fits)], SHOWN) / whole) * abs(whole)
    exponent = 1 - share if side == "general" else share
    movable = C2[side] * FULL_DECAY * np.expm1(A1[side] * exponent)
    return {
        "C2_fitted_alone": {f"{share:g}": p.C2 for share, p in sorted(fits.items())},
        "gap_nats": gap,
        "movable_nats": float(movable),
        "a1_needed": float(np.log1p(gap / (C2[side] * FULL_DECAY)) / exponent),
        "a1_published": A1[side],
    }


def permuted() -> dict:
    """General fits with replay in every order, because the figure's text does not say which is which."""
    general = [find_published(SETS[share]).general for share in sorted(SETS)]
    a, shares = find_published("knowledge-pile").replay["exponential"].general, np.array(sorted(SETS))
    rows = []
    for order in permutations(range(3)):
        ratios = np.array([shift(general[k], SHOWN) for k in order]) / shift(general[3], SHOWN)
        errors = {name: float(np.sqrt(np.mean((form(a, shares[:3]) - ratios) ** 2))) for name, form in FORMS_BY_NAME}
        rows.append({"ratios": ratios.tolist(), **errors})
    return {"rows": rows, "printed_wins": sum(row["printed"] < row["swapped"] for row in rows)}


FORMS_BY_NAME = (("printed", concave), ("swapped", convex))


def half_share(found: dict) -> list[dict]:
    """Normalised change at a domain share of one half: whatever a is, one reading is above 1/2 and the other below."""
    rows = []
    middle = found["shares"].index(0.5)
    for side in SIDES:
        ratios = [found["sets"][side]["observed"][str(area)][middle] for area in AREAS]
        rows.append({"source": "arXiv:2505.07796", "set": side, "lowest": min(ratios), "highest": max(ratios)})
    for domain in NAMES:
        table = read_table(domain)
        for side in SIDES:
            change = table[f"change_{side}"]
            if np.isfinite(change).all():
                ratio = float(change[table["replay"] == 0.5][0] / change[table["replay"] == 0][0])
                rows.append({"source": f"arXiv:2403.08763, {domain}", "set": side, "lowest": ratio, "highest": ratio})
    for row in rows:
        row["printed_says"] = "above" if row["set"] == "general" else "below"
        row["is"] = "above" if row["lowest"] > 0.5 else "below" if row["highest"] < 0.5 else "both"
    return rows


def read_table(domain: str) -> dict[str, np.ndarray]:
    """Replay shares and changes of loss of one pair of corpora, nats per token; NaN where the start is not given."""
    lines = [line for line in (HERE / "tables.csv").read_text().splitlines() if not line.startswith("#")]
    rows = [row for row in csv.DictReader(lines) if row["domain"] == domain]
    table = {"replay": np.array([float(row["replay_percent"]) for row in rows]) / 100}
    for side in SIDES:
        start = np.array([float(row[f"start_{side}"] or "nan") for row in rows])
        table[f"change_{side}"] = np.array([float(row[f"loss_{side}"]) for row in rows]) - start
    return table


# Forgetting as a function of the replay share p; theta are logarithms of positive parameters, so every start is valid.
SMALL_FORMS: dict[str, tuple[int, Callable]] = {
    "eq. 8 as printed: K (1 - e^{-a s})": (2, lambda t, p: np.exp(t[0]) * concave(np.exp(t[1]), 1 - p)),
    "eq. 8 swapped: K (e^{a s} - 1)": (2, lambda t, p: np.exp(t[0]) * convex(np.exp(t[1]), 1 - p)),
    "F (1 + B p)^-a (arXiv:2502.06042)": (3, lambda t, p: np.exp(t[0]) * (1 + np.exp(t[1]) * p) ** -np.exp(t[2])),
    "F ln((1 + e) / (p + e)) / ln((1 + e) / e)": (
        2,
        lambda t, p: np.exp(t[0]) * np.log1p((1 - p) / (p + np.exp(t[1]))) / np.log1p(np.exp(-t[1])),
    ),
    "C / (p + e)^g - c (arXiv:2406.01375)": (
        4,
        lambda t, p: np.exp(t[0]) / (p + np.exp(t[1])) ** np.exp(t[2]) - np.exp(t[3]),
    ),
}


def small_replay_results() -> dict:
    """Every form fitted to both tables, and what it misses of a ratio that it has not seen."""
    found: dict = {}
    for domain in NAMES:
        table = read_table(domain)
        replay, forgetting = table["replay"], table["change_general"]
        found[domain] = {"replay": replay.tolist(), "forgetting": forgetting.tolist(), "forms": {}}
        for name, (size, form) in SMALL_FORMS.items():
            theta = fit(form, size, replay, forgetting)
            missed = []
            for left_out in range(len(replay)):
                others = np.arange(len(replay)) != left_out
                again = fit(form, size, replay[others], forgetting[others])
                missed.append(float(form(again, replay[left_out]) - forgetting[left_out]))
            found[domain]["forms"][name] = {
                "parameters": np.exp(theta).tolist(),
                "rms": float(np.sqrt(np.mean((form(theta, replay) - forgetting) ** 2))),
                "worst_left_out_inside": float(np.max(np.abs(missed[1:]))),
                "left_out_zero_replay": missed[0],
            }
        found[domain]["removed_by_one_percent"] = float(1 - forgetting[replay == 0.01][0] / forgetting[0])
    return found


def fit(form: Callable, size: int, replay: np.ndarray, forgetting: np.ndarray) -> np.ndarray:
    """Least squares from many starts, logarithms of the parameters, shape (size,)."""
    rng = np.random.default_rng(0)

    def residuals(theta: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.clip(np.nan_to_num(form(theta, replay) - forgetting, nan=1e3), -1e3, 1e3)

    starts = np.clip(3 * rng.standard_normal((STARTS, size)), -8, 8)
    found = [least_squares(residuals, start, bounds=BOX, max_nfev=1000) for start in starts]
    return min(found, key=lambda one: one.cost).x


def markdown(orientation: dict, small: dict) -> str:
    """The tables."""
    lines = ["## Orientation of eq. 8", ""]
    columns = [f"S1 = {area:g}" for area in AREAS]
    for side in SIDES:
        part = orientation["sets"][side]
        lines += [f"| {side}, domain share | {' | '.join(columns)} | printed | swapped |", "|" + " --- |" * 8]
        for k, share in enumerate(orientation["shares"][:-1]):
            seen = " | ".join(f"{part['observed'][str(area)][k]:.3f}" for area in AREAS)
            factors = [part["readings"][name]["factors"][k] for name in ("printed", "swapped")]
            lines.append(f"| {share:.2f} | {seen} | {factors[0]:.3f} | {factors[1]:.3f} |")
        lines.append("")
    lines += ["| set | reading | rms at the published a | best a | rms there |", "|" + " --- |" * 5]
    for side in SIDES:
        for name, r in orientation["sets"][side]["readings"].items():
            lines.append(
                f"| {side} | {name} | {r['rms_at_published_a']:.3f} | {r['best_a']:.3g} | {r['rms_at_best_a']:.3f} |"
            )
    orders = orientation["permutations"]
    lines += [
        "",
        f"Orders of the general fits in which the printed reading is nearer: {orders['printed_wins']} of 6.",
        "",
    ]
    lines += ["| change at a domain share of 1/2 | set | over the whole | printed says | is |", "|" + " --- |" * 5]
    for row in orientation["half_share"]:
        span = f"{row['lowest']:.2f}" + (f" to {row['highest']:.2f}" if row["highest"] > row["lowest"] else "")
        lines.append(f"| {row['source']} | {row['set']} | {span} | {row['printed_says']} 1/2 | {row['is']} 1/2 |")
    lines += [
        "",
        "| set | gap of the printed factor at share 0.33, nats | what e^{a1 r} can move | a1 needed | a1 printed |",
    ]
    lines += ["|" + " --- |" * 5]
    for side in SIDES:
        p = orientation["sets"][side]["annealing"]
        lines.append(
            f"| {side} | {p['gap_nats']:.3f} | {p['movable_nats']:.4f} | {p['a1_needed']:.2f} | {p['a1_published']} |"
        )
    lines += ["", "## Forgetting at small replay", ""]
    lines += ["| form | corpora | parameters | rms, nats | worst ratio left out | 0 % left out |", "|" + " --- |" * 6]
    for domain, part in small.items():
        for name, f in part["forms"].items():
            values = ", ".join(f"{value:.3g}" for value in f["parameters"])
            lines.append(
                f"| {name} | {domain} | {values} | {f['rms']:.3f} | {f['worst_left_out_inside']:.2f} | "
                f"{f['left_out_zero_replay']:+.2f} |"
            )
    removed = ", ".join(f"{part['removed_by_one_percent']:.0%} ({name})" for name, part in small.items())
    lines += ["", f"Forgetting removed by the first 1 % of replay: {removed}."]
    return "\n".join(lines) + "\n"


def draw(orientation: dict, small: dict) -> None:
    """Above: shift over domain share and both readings. Below: forgetting over replay and the forms."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    for axis, side in zip(axes[0], SIDES, strict=True):
        part = orientation["sets"][side]
        shares = np.array(orientation["shares"])
        for k, area in enumerate(AREAS):
            shade = str(0.65 - 0.15 * k)
            axis.plot(shares, part["observed"][str(area)], "o", color=shade, markersize=5, label=f"fit, S1 = {area:g}")
        grid, a = np.linspace(0, 1, 200), orientation["published_a"][side]
        axis.plot(grid, PRINTED[side](a, grid), "--", color="#b8470d", label="eq. 8 as printed")
        axis.plot(grid, SWAPPED[side](a, grid), "-", color="#0a5fa3", label="factors swapped")
        axis.set(xlabel="domain share of the tokens", ylim=(-0.05, 1.05))
        axis.set_title(f"{side.capitalize()} loss: shift over the whole shift", fontsize=10)
    axes[0][1].legend(fontsize=8, frameon=False, loc=(0.34, 0.25))
    styles = (("--", "#b8470d"), ("-", "#0a5fa3"), (":", "#6b4aa0"), ("-", "#00795a"), ("-.", "#77736b"))
    for axis, (domain, part) in zip(axes[1], small.items(), strict=True):
        axis.plot(part["replay"], part["forgetting"], "o", color="black", label="measured, arXiv:2403.08763")
        grid = np.concatenate([[0.0], np.geomspace(1e-4, 0.5, 200)])
        for (dash, colour), (name, (_, form)) in zip(styles, SMALL_FORMS.items(), strict=True):
            theta = np.log(part["forms"][name]["parameters"])
            with np.errstate(all="ignore"):
                axis.plot(grid, form(theta, grid), dash, color=colour, linewidth=1.4, label=name)
        axis.set_xscale("symlog", linthresh=1e-3, linscale=0.4)
        axis.set_xlim(-1e-4, 0.6)
        axis.set_xticks([0, 1e-3, 1e-2, 0.05, 0.1, 0.5], ["0", "0.1 %", "1 %", "5 %", "10 %", "50 %"])
        axis.set_xlabel("replay ratio")
        axis.set_title(f"Pile to {NAMES[domain]}: forgetting, nats per token", fontsize=10)
    axes[1][1].legend(fontsize=7, frameon=False)
    figure.savefig(HERE / "figure.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
