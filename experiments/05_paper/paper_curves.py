"""Parts a, b and g: curves from the printed numbers, loss potential, model sizes."""

from __future__ import annotations

import numpy as np
from paper_runs import (
    PEAK,
    SIDES,
    WARMUP,
    Row,
    claimed,
    constant,
    continued,
    cosine,
    curve,
    ends,
    judged,
    linear,
    power_shift,
    pretraining,
    rounding,
    shift,
    shift_rounding,
    sized_laws,
    unprinted,
    written_out,
    wsd,
)

from cptplan.simulation.published import find_published, read_published
from cptplan.simulation.simulation import simulate_curves

POTENTIALS = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)
LENGTHS = (20_000, 30_000, 40_000, 50_000)  # published: range of figure 5
# A second computation from the printed parameters, made before this tool was written, with other code.
NO_REWARM = {  # by CPT steps: general, then domain loss at potentials 10, 30, 50 and 100 %
    (20_000, "domain"): (2.646, 2.604, 2.584, 2.554),
    (50_000, "domain"): (2.613, 2.571, 2.550, 2.516),
    (20_000, "general"): (3.288, 3.326, 3.339, 3.352),
}
AXES = {"without": (2.52, 2.66), "with": (2.59, 2.67)}  # published: axes of figures 5c and 5f, D_cpt
SIZES = {106: "knowledge-pile", 594: "knowledge-pile-594m", 1720: "knowledge-pile-1720m"}  # millions
STEP_SHIFTS = {  # published: figures 2 and 14, shift over CPT steps at a constant 2e-4: B, pace per step, exponent
    "figure 2": {"general": (0.368, 0.008, 0.173), "domain": (-0.702, 1.345, 0.131)},
    "figure 14": {"general": (0.627, 0.009, 0.081), "domain": (-1.607, 107.439, 0.025)},
}
SAME_SHIFT = 0.005  # assumed: nats, two printed fits of one curve with three digits each


def curve_rows(*, fast: bool) -> tuple[list[Row], dict]:
    """a: simulate against eq. 4 written out, and figure 2's shift against figure 3's."""
    worst, count = 0.0, 0
    names = [name for name, found in read_published().items() if found.pretrain is not None]
    for name in names[:2] if fast else names:
        published = find_published(name)
        laws, printed = sized_laws(published)
        before = wsd(40_000)
        for schedule in (wsd(10_000, warmup=WARMUP), cosine(10_000)):
            found = curve(laws, pretraining(before), schedule, published.replay_ratio or 0.0)
            for side in SIDES:
                plain = written_out(printed[side], before.lr(), schedule.lr(), found.steps)
                worst, count = max(worst, float(np.max(np.abs(plain - found.losses[side])))), count + 1
    what = f"largest gap of simulate to eq. 4 written out with the printed numbers, {count} curves, nats"
    rows = [claimed("a", what, "eq. 4; figures 3, 11, 12, 15, 16", "eq. 4", worst, holds=worst < 5e-4)]
    laws, measured = find_published("knowledge-pile").laws(), {}
    for side in SIDES:
        size, pace, power = STEP_SHIFTS["figure 2"][side]
        for steps in (1000, 10_000):
            by_start = []
            for start in (10_000, 20_000, 30_000):
                base = pretraining(constant(start + steps))
                records = {"base": base, "run": continued(base, constant(steps), step=start)}
                both = simulate_curves(laws, records)
                by_start.append(both["run"].losses[side][-1] - both["base"].losses[side][-1])
            measured[side, steps] = float(np.ptp(by_start))
            printed_shift = power_shift(size, pace, power, steps)
            what = f"shift of {side} loss after {steps:,} steps at 2e-4: figure 2's fit, ours by simulation"
            digits = shift_rounding(getattr(find_published("knowledge-pile"), side), steps * PEAK)
            tolerance = SAME_SHIFT + digits + rounding(size, pace, power, steps, 5e-4)
            rows.append(judged("a", what, "figures 2, 3", printed_shift, float(np.mean(by_start)), tolerance))
    spread = max(measured.values())
    rows.append(
        claimed(
            "a",
            "the shift does not hang on the start (10k, 20k, 30k steps)",
            "figure 2",
            "curves coincide",
            f"largest spread {spread:.0e} nats (so by form)",
            holds=spread < 1e-3,
        )
    )
    return rows, {"largest_gap": worst}


def potential_table(*, rewarm: bool) -> dict[int, dict[str, list[float]]]:
    """Final losses by CPT steps and side, in the order of POTENTIALS (without re-warm-up from 10 % on)."""
    published = find_published("knowledge-pile")
    laws, found = published.laws(), {}
    for steps in LENGTHS:
        lists: dict[str, list[float]] = {side: [] for side in SIDES}
        for share in POTENTIALS:
            if not rewarm and share == 0.0:
                continue  # a rate of 0 trains nothing
            schedule = linear(steps, 0.1 * PEAK, WARMUP) if rewarm else linear(steps, share * PEAK)
            end = ends(laws, published.pretrain_record(share), schedule)
            for side in SIDES:
                lists[side].append(end[side])
        found[steps] = lists
    return found


def potential_rows() -> tuple[list[Row], dict]:
    """b: final losses over the loss potential."""
    tables = {"without": potential_table(rewarm=False), "with": potential_table(rewarm=True)}
    rows = []
    for name, figure in (("without", "figure 5c"), ("with", "figure 5f")):
        falls = sum(bool(np.all(np.diff(table["domain"]) < 0)) for table in tables[name].values())
        words = f"falls at {falls} of {len(LENGTHS)} lengths"
        what = f"final domain loss over the potential, {name} re-warm-up, 20k to 50k steps"
        rows.append(claimed("b", what, figure, "falls at every length", words, holds=falls == len(LENGTHS)))
        every = [loss for table in tables[name].values() for loss in table["domain"]]
        low, high = AXES[name]
        inside = min(every) >= low - 0.005 and max(every) <= high + 0.005
        what = f"range of those losses against the axis of the figure, {name} re-warm-up"
        ours = f"{min(every):.3f} to {max(every):.3f}"
        rows.append(claimed("b", what, figure, f"{low} to {high} (axis)", ours, holds=inside))
    shares = POTENTIALS[1:]
    for (steps, side), values in NO_REWARM.items():
        ours = [tables["without"][steps][side][shares.index(share)] for share in (0.1, 0.3, 0.5, 1.0)]
        what = f"{side} loss from potentials 10, 30, 50, 100 %, {steps:,} steps, no re-warm-up"
        rows.append(unprinted("b", what, "figure 5", ours, values))
    for side, other in (("domain", 0.016), ("general", 0.009)):
        table = tables["with"][20_000][side]
        what = f"what a potential of 1 is worth over 0 on {side} loss, re-warmed to 10 %, 20,000 steps"
        rows.append(unprinted("b", what, "figure 5", table[0] - table[-1], other))
    return rows, {name: {str(steps): table for steps, table in parts.items()} for name, parts in tables.items()}


def size_rows() -> tuple[list[Row], dict]:
    """g: the joint fit of eq. 7 against the fits of single sizes."""
    joint, rows, losses = find_published("knowledge-pile-sizes"), [], {}
    base, schedule, near, far = pretraining(wsd(40_000)), cosine(10_000), 0, []
    for side in SIDES:
        for size, name in SIZES.items():
            single, num_params = find_published(name), size * 1_000_000
            one = ends(single.laws(), base, schedule)[side]
            together = ends(joint.laws(num_params=num_params), base, schedule)[side]
            printed, at_size = getattr(single, side), getattr(joint, side).at_size(num_params)
            tolerance = 2 * SAME_SHIFT + shift_rounding(printed, float(schedule.lr().sum()))
            what = f"{side} loss, {size}M, after 40,000 steps and a cosine of 10,000: single fit, joint fit"
            place = "figures 3, 15" if size == 106 else "figures 15, 16"
            rows.append(judged("g", f"{what} (digits allow {tolerance:.3f})", place, one, together, tolerance))
            losses[f"{side}-{size}"] = [one, together]
            gains = [getattr(at_size, key) / getattr(printed, key) - 1 for key in ("C1", "C2")]
            far += gains
            near += sum(abs(gain) < 0.1 for gain in gains)
    words = f"{near} of {len(far)}; {min(far):+.0%} to {max(far):+.0%}"
    what = "gains C1 N^g1, C2 N^g2 within 10 % of the single fits'"
    rows.append(claimed("g", what, "figures 3, 15, 16", "one formula for all", words, holds=near == len(far)))
    rows += _shifts_of_sizes()
    for unit, factor in (("millions", 1.0), ("single parameters", 1e6), ("thousands", 1e3), ("billions", 1e-3)):
        p, gaps = joint.general, []
        for size, name in SIZES.items():
            gaps.append(abs(p.L0 + (p.F or 0.0) * (size * factor) ** -p.g3 - find_published(name).general.L0))
        what = f"eq. 7's constant against L0 of the single general fits, N in {unit}: largest gap"
        rows.append(unprinted("g", what, "eq. 7", float(max(gaps))))
    return rows, losses


def _shifts_of_sizes() -> list[Row]:
    rows, area = [], 3.0
    for side in SIDES:
        size, pace, power = STEP_SHIFTS["figure 14"][side]
        common = power_shift(size, pace, power, area / PEAK)
        single = [getattr(find_published(name), side) for name in SIZES.values()]
        joint = shift(getattr(find_published("knowledge-pile-sizes"), side), area)
        what = f"shift of {side} at S1 = 3: figure 14's common fit, figure 15's joint fit"
        rows.append(judged("g", what, "figures 14, 15", common, joint, SAME_SHIFT))
        ranges = [(shift(p, area), shift_rounding(p, area)) for p in single]
        highest_low = max(abs(value) - half for value, half in ranges)
        lowest_high = min(abs(value) + half for value, half in ranges)
        words = ", ".join(f"{value:.3f} ± {half:.3f}" for value, half in ranges)
        what = f"shift of {side} at S1 = 3, 106M, 594M, 1720M (± the printed digits)"
        apart = max(highest_low - lowest_high, 0.0) / abs(common)
        rows.append(claimed("g", what, "figures 3, 14, 16", "nearly coincide", words, holds=apart < 0.1))
    return rows
