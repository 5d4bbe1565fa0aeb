"""Parts a (fit, then predict), f and h: what fits recover from simulated curves, and where the law misbehaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from paper_runs import (
    PEAK,
    SIDES,
    WARMUP,
    Row,
    changes,
    claimed,
    constant,
    continued,
    cosine,
    ends,
    linear,
    pretraining,
    shift,
    shift_rounding,
    sized_laws,
    unprinted,
    written_out,
    wsd,
)

from cptplan.curves import CurveRecord, LossCurve
from cptplan.fitting.fitted import FittedLaw, Prediction
from cptplan.fitting.out_of_domain import fit_out_of_domain
from cptplan.fitting.predictions import predict_runs
from cptplan.fitting.select import select_law
from cptplan.schedule import TableSchedule
from cptplan.simulation.published import ReplayForm, find_published
from cptplan.simulation.simulation import Noise, add_noise, simulate_curves
from cptplan.simulation.virtual_lab import BASE, Lab, run_lab

NOISE_SD, NOISE_MEMORY = 0.003, 0.5  # assumed: nats and autocorrelation of one evaluation
PAIRS = {  # published: appendix K, weights of (domain, general) loss by out-of-domain set
    "C4": (0.152, 0.867),
    "SlimPajama": (0.385, 0.622),
    "Stories": (-0.516, 1.409),
    "StackExchange": (1.853, -0.546),
    "arXiv": (1.631, -0.609),
    "Books": (0.475, 0.611),
    "Open-Web-Math": (1.2, -0.078),
    "PhilPapers": (1.505, -0.178),
}
TAILS = (0, 250, 500, 1000, 2000, 5000)  # steps
UNSEEN = ("linear from the stable start", "re-warmed to 10 %, cosine")


def _campaign() -> tuple[dict[str, CurveRecord], dict[str, CurveRecord]]:
    """Runs of figure 3 (and one at a constant rate: a fit wants three) and the unseen schedules of figure 10."""
    wsd_base = pretraining(wsd(40_000))
    cosine_base = pretraining(cosine(40_000, warmup=0))
    seen = {
        "wsd-base": wsd_base,
        "cosine-base": cosine_base,
        "wsd": continued(wsd_base, wsd(20_000, warmup=WARMUP), parent="wsd-base"),
        "cosine": continued(cosine_base, cosine(20_000), parent="cosine-base"),
        "constant": continued(wsd_base, constant(10_000), parent="wsd-base", step=32_000),
    }
    unseen = {
        UNSEEN[0]: continued(wsd_base, linear(30_000, PEAK), parent="wsd-base", step=32_000),
        UNSEEN[1]: continued(wsd_base, cosine(30_000, 0.1 * PEAK), parent="wsd-base"),
    }
    return seen, unseen


def fit_rows(seeds: Sequence[int], *, fast: bool) -> tuple[list[Row], dict]:
    """a: fit to figure 3's schedules with noise, predict figure 10's."""
    rows: list[Row] = []
    shown: dict[str, list[list[float]]] = {}
    for law in ("cpt-published",) if fast else ("cpt-published", "auto"):
        for name in ("knowledge-pile",) if fast else ("knowledge-pile", "pile-of-law"):
            errors, inside, ends_inside, widest = [], [], [], 0.0
            for seed in seeds:
                for told in _predict_unseen(name, law, seed):
                    band, truth, settled = told.band, told.truth, told.steps >= told.settled_step
                    errors.append(band.mean[-1] - truth[-1])
                    within = (truth >= band.low) & (truth <= band.high)
                    inside.append(np.mean(within[settled]))
                    ends_inside.append(within[-1])
                    widest = max(widest, float(np.max((band.high - band.low)[~settled])))
                    if name == "knowledge-pile":
                        lines = (told.steps, truth, band.mean, band.low, band.high)
                        shown[f"{told.run}/{told.side}"] = [line[settled].tolist() for line in lines]
            rms = float(np.sqrt(np.mean(np.square(errors))))
            fitted = f"fit ({law}) to noisy curves of figure 3's schedules, predict figure 10's, {name}"
            said = f"{np.mean(ends_inside):.0%} of {len(ends_inside)} ends and {np.mean(inside):.0%} of settled points"
            rows.append(unprinted("a", f"{fitted}: rms end error, nats; {said} in the 90 % band", "figure 10", rms))
            what = f"{fitted}: widest band before two warm-ups, nats"
            rows.append(unprinted("a", what, "figure 10", f"{widest:.2g}"))
    return rows, shown


@dataclass(frozen=True, kw_only=True, slots=True)
class _Predicted:
    """One loss of one unseen run: what a fit says of it and what it is."""

    run: str
    side: str
    steps: np.ndarray
    truth: np.ndarray
    band: Prediction
    settled_step: int


def _predict_unseen(name: str, law: str, seed: int) -> list[_Predicted]:
    published = find_published(name)
    seen, unseen = _campaign()
    exact = simulate_curves(published.laws(), {**seen, **unseen})
    noisy = add_noise(exact, Noise(sd_nats=NOISE_SD, autocorrelation=NOISE_MEMORY, seed=seed))
    given = {run: noisy[run] for run in seen}
    fitted = {side: select_law(given, side, side, law=law, seed=seed).fitted for side in SIDES}
    bare = {run: LossCurve(name=run, record=c.record, steps=c.steps, losses={}) for run, c in exact.items()}
    told = predict_runs(fitted, bare, list(unseen), seed=seed)
    grids = {run: told[run].steps for run in unseen}
    truths = simulate_curves(published.laws(), {**seen, **unseen}, steps=grids)
    return [
        _Predicted(
            run=run,
            side=side,
            steps=told[run].steps,
            truth=truths[run].losses[side],
            band=told[run].bands[side],
            settled_step=fitted[side].settled_step,
        )
        for run in unseen
        for side in SIDES
    ]


def out_of_domain_rows(seeds: Sequence[int]) -> tuple[list[Row], dict]:
    """f: weights of eq. 6 from simulated curves, and sets for which eq. 6 does not hold."""
    rows, recovered = [], {}
    for name, (domain, general) in PAIRS.items():
        fits = [fit_out_of_domain(_third_set(name, seed), name, seed=seed) for seed in seeds]
        kept = [fit for fit in fits if fit.valid]
        errors = np.array([fit.coefficients[[1, 0]] - (domain, general) for fit in fits])
        low, high = np.percentile(np.array([fit.draws for fit in fits])[:, :, [1, 0]], [5, 95], axis=1)
        inside = float(np.mean((low <= (domain, general)) & ((domain, general) <= high)))
        held_out = max(fit.held_out_error for fit in fits)
        recovered[name] = [[domain, general], [fit.coefficients[[1, 0]].tolist() for fit in fits]]
        mean = np.mean([fit.coefficients[[1, 0]] for fit in fits], axis=0)
        said = f"{mean[0]:.3f}, {mean[1]:.3f}; worst {np.abs(errors).max():.3f}; {inside:.0%} in the 90 % interval"
        said += f"; called valid {len(kept)} of {len(fits)}; unseen curves missed by {held_out:.2%}"
        holds = bool(np.abs(errors).max() < 0.03) and len(kept) == len(fits)
        what = f"weights of domain and general loss, {name}: printed, then back from noisy curves"
        rows.append(claimed("f", what, "appendix K", f"{domain}, {general}", said, holds=holds))
    for kind, words in (
        ("transient", "a jump of the first 200 steps besides"),
        ("own way", "a fall of 0.3 nats by a clock of its own rate"),
        ("by run", "weights that differ from run to run"),
    ):
        refused = sum(not fit_out_of_domain(_third_set("C4", seed, kind), "C4", seed=seed).valid for seed in seeds)
        what = f"a third set that eq. 6 does not describe ({words})"
        rows.append(unprinted("f", what, "5.2", f"refused {refused} of {len(seeds)}"))
    return rows, recovered


def _third_set(name: str, seed: int, kind: str = "") -> dict[str, LossCurve]:
    """Six noisy CPT runs with a third set that is the printed combination, or by kind something else."""
    published = find_published("knowledge-pile")
    base = pretraining(wsd(40_000))
    runs = {"base": base}
    for number, (rate, replay) in enumerate(((1, 0), (1, 0.3), (0.3, 0), (0.3, 0.1), (0.1, 0.3), (0.1, 0))):
        runs[f"run-{number}"] = continued(base, wsd(10_000, rate * PEAK, WARMUP), replay)
    exact = simulate_curves(published.laws(), runs)
    domain, general = PAIRS[name]
    with_third = {}
    rng = np.random.default_rng([seed, 5])
    for run, found in exact.items():
        moved = rng.normal(0.0, 0.3) if kind == "by run" else 0.0
        third = (domain + moved) * found.losses["domain"] + (general - moved) * found.losses["general"]
        rates = np.concatenate([[0.0], np.cumsum(found.record.lr.lr())])[found.steps]
        third += {"transient": 0.3 * found.steps / 200 * np.exp(1 - found.steps / 200)}.get(kind, 0.0)
        third += {"own way": -0.3 * rng.uniform(0.2, 1.8) * (1 - np.exp(-rates / 0.3))}.get(kind, 0.0)
        with_third[run] = LossCurve(
            name=run, record=found.record, steps=found.steps, losses={**found.losses, name: third}
        )
    return add_noise(with_third, Noise(sd_nats=NOISE_SD, autocorrelation=NOISE_MEMORY, seed=seed))


def misbehaviour_rows(seeds: Sequence[int], *, fast: bool) -> tuple[list[Row], dict]:
    """h: what the law says that no run could do, each as a number."""
    rows, published = [], find_published("knowledge-pile")
    laws, base = published.laws(), published.pretrain_record()
    table: dict = {"tail": {}, "scaled": {side: [] for side in SIDES}}
    for name, rates in (("cosine", cosine(10_000).lr()), ("decay of 100 steps", wsd(10_000, decay=0.01).lr())):
        tails = [ends(laws, base, _table(np.concatenate([rates, np.zeros(extra)]))) for extra in TAILS]
        moved = [[found[side] - tails[0][side] for side in SIDES] for found in tails]
        table["tail"][name] = [[extra, *change] for extra, change in zip(TAILS, moved, strict=True)]
        what = f"general, domain loss after {TAILS[-1]:,} more steps at rate 0, behind a {name}: change"
        rows.append(unprinted("h", what, "eq. 1, 4", moved[-1]))
    factors = (1, 2, 4, 8, 16)
    for factor in factors:
        found = ends(laws, pretraining(wsd(40_000, factor * PEAK)), cosine(10_000, factor * PEAK))
        for side in SIDES:
            table["scaled"][side].append(found[f"{side}_start"])
    falls = [table["scaled"][side] for side in SIDES]
    what = "{side} loss after pre-training with all rates times 1, 2, 4, 8, 16 (L0 {floor})"
    for side, losses in zip(SIDES, falls, strict=True):
        floor = getattr(published, side).L0
        rows.append(unprinted("h", what.format(side=side, floor=floor), "eq. 4", losses))
    rows += _rewarm_rows()
    rows += _ridge_rows()
    zero, more = _zero_replay_rows(seeds, fast=fast)
    return rows + more, {**table, "factors": factors, "zero_replay": zero}


def _table(rates: np.ndarray) -> TableSchedule:
    return TableSchedule(kind="table", values=tuple(rates.tolist()))


def _rewarm_rows() -> list[Row]:
    """What a full re-warm-up and anneal earns, and how much of it hangs on whether S2_pt goes on."""
    rows = []
    for name, values in (
        ("knowledge-pile", {2e-4: (0.156, -0.490), 2e-5: (0.073, -0.410)}),
        ("pile-of-law", {2e-4: (0.815, -1.266), 2e-5: (0.443, -1.052)}),
    ):
        published = find_published(name)
        laws, base = published.laws(), published.pretrain_record()
        for peak, other in values.items():
            moved = changes(laws, base, cosine(10_000, peak))
            what = f"general, domain loss after a cosine of 10,000 steps at {peak:g} less before, {name}"
            rows.append(unprinted("h", what, "eq. 4", [moved["general"], moved["domain"]], other))
    schedule, base = cosine(10_000), find_published("knowledge-pile").pretrain_record()
    _, printed = sized_laws(find_published("knowledge-pile"))
    last = np.array([10_000])
    bare = printed["general"].model_copy(update={"L0": 1.0, "A": 1e-12, "B": 1e-12, "C1": 0.0, "C2": 1.0})
    credit = 1.0 - float(written_out(bare, base.lr.lr(), schedule.lr(), last)[0])
    what = "S2_cpt after re-warming to 2e-4 and annealing to 0 (a whole decay of pre-training: 0.2)"
    rows.append(unprinted("h", what, "eq. 1", credit, -0.010))
    both = [
        float(written_out(printed["general"], base.lr.lr(), schedule.lr(), last, frozen=frozen)[0])
        for frozen in (False, True)
    ]
    what = "general loss at that end when S2_pt goes on relaxing less when it is frozen"
    rows.append(unprinted("h", what, "eq. 4 (either reading)", both[0] - both[1], -0.0075))
    return rows


def _ridge_rows() -> list[Row]:
    """B, E and beta apart mean nothing where beta is near 0."""
    rows = []
    for name in ("knowledge-pile-594m", "knowledge-pile-1720m"):
        p = find_published(name).general
        what = f"L0 + B of general loss, {name}, beside the shift at S1 = 3 and what its printed digits allow"
        said = f"{p.L0 + p.B:.1f}; {shift(p, 3.0):.3f} ± {shift_rounding(p, 3.0):.3f}"
        rows.append(unprinted("h", what, "figure 16", said))
    return rows


def _zero_replay_rows(seeds: Sequence[int], *, fast: bool) -> tuple[dict, list[Row]]:
    """General loss of a run without replay, from pilots that all have some and from pilots that have none too."""
    table: dict[str, list[float]] = {}
    rows = []
    forms: tuple[ReplayForm, ReplayForm] = ("exponential", "logarithmic")
    for form in forms[1:] if fast else forms:
        for least in (0.05,) if fast else (0.05, 0.0):
            found = [_zero_replay(form, least, seed) for seed in seeds]
            errors = [one[0] for one in found]
            table[f"{form}, pilots from {least:.0%}"] = errors
            inside, flagged = (sum(one[k] for one in found) for k in (1, 2))
            rms = float(np.sqrt(np.mean(np.square(errors))))
            what = f"0 % replay predicted from pilots of {least:.0%} to 60 %, replay acts by the {form} form"
            said = f"rms end error of general loss, nats; {inside} of {len(found)} in the 90 % band, {flagged} flagged"
            rows.append(unprinted("h", f"{what}: {said}", "eq. 8", rms))
    return table, rows


def _zero_replay(form: ReplayForm, least: float, seed: int) -> tuple[float, bool, bool]:
    noise = Noise(sd_nats=NOISE_SD, autocorrelation=NOISE_MEMORY, seed=seed)
    lab = Lab(
        law="knowledge-pile", replay=form, replay_range=(least, 0.6), num_pilots=8, num_finals=1, noise=noise, seed=seed
    )
    campaign = run_lab(lab)
    laws: dict[str, FittedLaw] = {"general": select_law(campaign.seen, "general", "general", seed=seed).fitted}
    record = continued(campaign.seen[BASE].record, wsd(lab.final_steps, warmup=WARMUP))
    runs = {BASE: campaign.seen[BASE].record, "without": record}
    exact = simulate_curves(campaign.truth, runs)
    bare = {n: LossCurve(name=n, record=c.record, steps=c.steps, losses={}) for n, c in exact.items()}
    told = predict_runs(laws, bare, ["without"], seed=seed)["without"]
    band, truth = told.bands["general"], exact["without"].losses["general"][-1]
    flagged = any("replay" in note for note in told.notes)
    return float(band.mean[-1] - truth), bool(band.low[-1] <= truth <= band.high[-1]), flagged
