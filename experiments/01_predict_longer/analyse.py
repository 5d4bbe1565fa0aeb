"""Answer the question from the kept curves: python analyse.py. Writes results.json, results.md and figure.png."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from cptplan.curves import LossCurve, read_curve_directory
from cptplan.files import write_json, write_text
from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.select import FORMS, select_law, settled_step
from cptplan.fitting.separable import predict, solve
from cptplan.laws.cpt import PUBLISHED, CptForm, CptLaw, memory_prior
from cptplan.laws.history import history_of, observations

HERE = Path(__file__).resolve().parent
SETS = ("general", "domain")
LONG_MEMORY = 300.0  # steps: towards the published lambda = 0.999, for comparison


def is_test(name: str) -> bool:
    """Runs that the law does not see: those of this question and the demo's two final ones."""
    return name.startswith("long-") or name in {"final", "rule-of-thumb"}


def main(out: Path) -> None:
    """Fit to pilots and pre-training, predict the long runs."""
    curves = read_curve_directory(HERE / "curves")
    seen = {name: curve for name, curve in curves.items() if not is_test(name)}
    tests = {name: curve for name, curve in curves.items() if is_test(name)}
    laws = {name: select_law(seen, name, name).fitted for name in SETS}
    rows = [row for name in SETS for row in held_out_rows(name, laws[name], tests, curves)]
    variants = [row for name in SETS for row in variant_rows(name, seen, tests, curves)]
    write_json(out / "results.json", {"schema_version": 1, "long_runs": rows, "variants": variants})
    write_text(out / "results.md", markdown(rows, variants))
    draw(laws, tests, curves, out / "figure.png")


def held_out_rows(
    set_name: str, law: FittedLaw, tests: dict[str, LossCurve], curves: dict[str, LossCurve]
) -> list[dict]:
    """End of every long run: predicted with its interval, measured, and the share of the settled curve inside."""
    rows = []
    for name, curve in tests.items():
        band = law.predict(history_of(curve, curves), curve.steps)
        loss, settled = curve.losses[set_name], curve.steps >= law.settled_step
        inside = (loss >= band.low) & (loss <= band.high)
        rows.append(
            {
                "set": set_name,
                "run": name,
                "form": law.law.name,
                "measured": float(loss[-1]),
                "predicted": float(band.mean[-1]),
                "low": float(band.low[-1]),
                "high": float(band.high[-1]),
                "inside": bool(inside[-1]),
                "share_of_curve_inside": float(inside[settled].mean()),
            }
        )
    return rows


def variant_rows(
    set_name: str, seen: dict[str, LossCurve], tests: dict[str, LossCurve], curves: dict[str, LossCurve]
) -> list[dict]:
    """Error at the end of the long runs for every form, with and without the transient, and with a long memory."""
    reference_lr = max(float(curve.lr().max()) for curve in seen.values())
    settled = settled_step(seen)
    memory = memory_prior(max(len(d.history.pretrain_lr) + len(d.history.lr) for d in observations(seen, set_name)))
    forms = {form.name: form for form in (*FORMS[set_name], PUBLISHED, CptForm())}
    rows = []
    for form in forms.values():
        for label, prior, skip in (
            ("as used", memory, settled),
            ("transient fitted too", memory, 0),
            (f"annealing memory near {LONG_MEMORY:.0f} steps", LONG_MEMORY, settled),
        ):
            law = CptLaw(set_name, reference_lr, form, prior)
            data = observations(seen, set_name, skip_steps=skip)
            solution = solve(law, data)
            errors = []
            for curve in tests.values():
                end = np.array([curve.total_steps])
                predicted = predict(law, solution, history_of(curve, curves), end)[0]
                errors.append(float(predicted / curve.losses[set_name][-1] - 1.0))
            rows.append(
                {
                    "set": set_name,
                    "form": form.name,
                    "variant": label,
                    "rms_end_error": float(np.sqrt(np.mean(np.square(errors)))),
                    "worst_end_error": float(np.max(np.abs(errors))),
                }
            )
    return rows


def markdown(rows: list[dict], variants: list[dict]) -> str:
    """The tables."""
    lines = ["| set | run | predicted | 90 % interval | measured | error | inside | curve inside |", "|" + " --- |" * 8]
    lines += [
        f"| {r['set']} | {r['run']} | {r['predicted']:.3f} | {r['low']:.3f} to {r['high']:.3f} | {r['measured']:.3f} | "
        f"{r['predicted'] / r['measured'] - 1:+.1%} | {'yes' if r['inside'] else 'NO'} | "
        f"{r['share_of_curve_inside']:.0%} |"
        for r in rows
    ]
    inside = sum(r["inside"] for r in rows)
    covered = float(np.mean([r["share_of_curve_inside"] for r in rows]))
    lines += ["", f"Ends inside the 90 % interval: {inside} of {len(rows)}. Of all settled points: {covered:.0%}.", ""]
    lines += ["| set | form | variant | rms end error | worst |", "|" + " --- |" * 5]
    lines += [
        f"| {v['set']} | {v['form']} | {v['variant']} | {v['rms_end_error']:.2%} | {v['worst_end_error']:.2%} |"
        for v in variants
    ]
    return "\n".join(lines) + "\n"


def draw(laws: dict[str, FittedLaw], tests: dict[str, LossCurve], curves: dict[str, LossCurve], path: Path) -> None:
    """Measured over predicted, one row of panels for each set."""
    figure, axes = plt.subplots(len(SETS), len(tests), figsize=(2.1 * len(tests), 4.6), sharex=True, sharey="row")
    for row, name in zip(axes, SETS, strict=True):
        for axis, (run, curve) in zip(row, tests.items(), strict=True):
            grid = np.arange(0, curve.total_steps + 1, 4)
            band = laws[name].predict(history_of(curve, curves), grid)
            axis.fill_between(grid, band.low, band.high, color="#4477aa", alpha=0.25, linewidth=0)
            axis.plot(grid, band.mean, color="#4477aa", linewidth=1.2)
            axis.plot(curve.steps, curve.losses[name], ".", color="#222222", markersize=3)
            axis.set_title(f"{run}\n{curve.lr().max():.1g}, {curve.replay_ratios().mean():.1%} replay", fontsize=7)
            axis.tick_params(labelsize=6)
        row[0].set_ylabel(f"loss_{name}, nats per token", fontsize=7)
    figure.supxlabel("optimiser step", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=160)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="where the results go; default: beside this file")
    main(parser.parse_args().out)
