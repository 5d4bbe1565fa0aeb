"""A report with made-up but realistic numbers: a small campaign of eight pilots, drawn from a known law plus noise."""

from __future__ import annotations

import numpy as np

from cptplan.report.data import (
    ComputeShare,
    CostRow,
    Fact,
    FitParameter,
    FitRow,
    FormRow,
    Headline,
    OutcomeRow,
    ReportData,
    RunView,
    SetCurve,
    as_cells,
    as_numbers,
    thin_lr,
)
from cptplan.report.plan_data import (
    Account,
    InsteadRow,
    KnobRow,
    LimitRow,
    NextPilot,
    ParetoFront,
    ParetoLine,
    ParetoPoint,
    PlanRow,
    Surface,
    SurfacePoint,
)

STEPS = 600
SETTLED = 12
SETS = ("general", "domain")
WEIGHTS = (0.4, 0.6)


def schedule(peak_lr: float, steps: int, decay_share: float) -> np.ndarray:
    warm, decay = 20, round(steps * decay_share)
    lr = np.full(steps, peak_lr)
    lr[:warm] *= np.linspace(0.05, 1, warm)
    if decay:
        lr[-decay:] *= np.linspace(1, 0.02, decay)
    return lr


def law(set_name: str, lr: np.ndarray, replay: float) -> np.ndarray:
    area = np.concatenate([[0.0], np.cumsum(lr)])
    annealed = np.concatenate([[0.0], np.maximum.accumulate(lr) - lr])
    hidden = 3.52 + 0.21 * (0.9 + area) ** -0.4 - 25.0 * annealed if set_name == "general" else None
    if hidden is not None:
        return hidden + 0.62 * (1 - replay) ** 3 * (1 - (1 + 9 * area) ** -0.35) - 0.05 * replay * area
    shift = 1.55 * (1 - 0.55 * replay) * (1 - (1 + 22 * area) ** -0.42)
    return 4.63 - shift - 22.0 * annealed + 0.27 * area**2


def run(name, label, role, peak_lr, replay, steps=STEPS, decay_share=0.3, seed=0, *, measured=True) -> RunView:
    lr = schedule(peak_lr, steps, decay_share)
    rng = np.random.default_rng(seed)
    at = np.unique(np.round(np.linspace(0, 1, 27) ** 2 * steps)).astype(int)
    grid = np.arange(steps + 1)
    curves = []
    for set_name in SETS:
        mean = law(set_name, lr, replay)
        half = 0.012 + 0.018 * (grid / steps) ** 0.5 * (1 if role != "pilot" else 0.5)
        drift = rng.normal(0, 0.006) * (grid / steps) + 0.004 * np.sin(grid / 60 + rng.uniform(0, 6))
        truth = mean + drift + rng.normal(0, 0.006, steps + 1)
        curves.append(
            SetCurve.of(
                set_name,
                measured=(at, truth[at]) if measured else None,
                predicted=(grid[SETTLED:], mean[SETTLED:], (mean - half)[SETTLED:], (mean + half)[SETTLED:]),
            )
        )
    lr_steps, rates = thin_lr(lr)
    return RunView(
        name=name,
        label=label,
        role=role,
        peak_lr=peak_lr,
        total_steps=steps,
        batch_tokens=16384,
        replay_ratio=f"{replay:.0%}",
        lr_steps=lr_steps,
        lr=rates,
        curves=tuple(curves),
    )


PILOTS = (
    (3e-4, 0.0, 0.0),
    (3e-4, 0.3, 0.3),
    (8e-4, 0.02, 0.0),
    (8e-4, 0.1, 0.3),
    (8e-4, 0.5, 0.0),
    (1.6e-3, 0.0, 0.3),
    (1.6e-3, 0.2, 0.0),
    (3e-3, 0.05, 0.3),
)


def outcome_rows(view: RunView, base_general: float) -> list[OutcomeRow]:
    finals = {}
    for curve in view.curves:
        measured = curve.measured_losses[-1] if curve.measured_losses else None
        finals[curve.set_name] = (
            curve.predicted_mean[-1],
            curve.predicted_low[-1],
            curve.predicted_high[-1],
            measured,
        )
    rows = []
    general, domain = (np.array([np.nan if v is None else v for v in finals[s]]) for s in SETS)
    for quantity, values in (
        ("loss_general", general),
        ("loss_domain", domain),
        ("forgetting_ratio", np.exp(general - base_general)),
        ("objective", 0.4 * general + 0.6 * domain),
    ):
        predicted, low, high, measured = (float(v) for v in values)
        rows.append(
            OutcomeRow(
                run=view.name,
                quantity=quantity,
                predicted=predicted,
                low=low,
                high=high,
                measured=None if np.isnan(measured) else measured,
            )
        )
    return rows


def surface() -> Surface:
    peaks, ratios = np.geomspace(2e-4, 4e-3, 30), np.linspace(0, 0.6, 25)
    values = np.array(
        [
            [
                sum(w * law(s, schedule(p, STEPS, 0.3), r)[-1] for w, s in zip(WEIGHTS, SETS, strict=True))
                for r in ratios
            ]
            for p in peaks
        ]
    )
    values[-3:, :3] = np.nan
    return Surface(
        peak_lrs=as_numbers(peaks),
        replay_ratios=as_numbers(ratios),
        objective=as_cells(values),
        chosen=SurfacePoint(label="chosen plan", peak_lr=1.2e-3, replay_ratio=0.12),
        rule_of_thumb=SurfacePoint(label="rule of thumb", peak_lr=3e-4, replay_ratio=0.3),
        pilots=tuple(
            SurfacePoint(label=f"pilot {i + 1}", peak_lr=p, replay_ratio=r) for i, (p, r, _) in enumerate(PILOTS)
        ),
        note="Held fixed: 600 steps, decay over the last 30%, stable checkpoint.",
        supported=(3e-4, 3e-3, 0.0, 0.5),
    )


def pareto_point(peak_lr: float, replay: float, steps: int = STEPS) -> ParetoPoint:
    general, domain = (float(law(s, schedule(peak_lr, steps, 0.3), replay)[-1]) for s in SETS)
    return ParetoPoint(
        peak_lr=peak_lr,
        replay_ratio=f"{replay:.0%}",
        total_steps=steps,
        decay="last 30%",
        start="stable",
        cost=f"{steps * 16384 / 1e6:.1f} M tokens",
        general=general,
        general_low=general - 0.025,
        general_high=general + 0.028,
        domain=domain,
        domain_low=domain - 0.03,
        domain_high=domain + 0.03,
    )


def pareto_line(steps: int) -> ParetoLine:
    cloud = [pareto_point(p, r, steps) for p in np.geomspace(2e-4, 3e-3, 14) for r in np.linspace(0, 0.6, 13)]
    front = [a for a in cloud if not any(b.general < a.general and b.domain < a.domain for b in cloud)]
    return ParetoLine(label=front[0].cost, points=tuple(sorted(front, key=lambda point: point.general)))


def account() -> Account:
    """With one of each: a limit that binds and one that does not, a knob at its edge, runs better, worse, neither."""

    def instead(name: str, low: float, high: float, source: str = "") -> InsteadRow:
        return InsteadRow(
            name=name,
            peak_lr=1.1e-3,
            replay_ratio="12%",
            steps=STEPS,
            decay="last 30%",
            start="stable",
            difference=(low + high) / 2,
            low=low,
            high=high,
            source=source,
        )

    pilot = {
        "peak learning rate": "3e-3",
        "replay ratio": "30%",
        "steps": "200",
        "decay": "none",
        "price": "3.3 M tokens",
    }
    return Account(
        binding=("budget.usd: a longer run would be better",),
        limits=(
            LimitRow(
                name="budget.usd",
                used="99.8",
                allowed="100",
                unit="USD",
                share=0.998,
                binding=True,
                known_by="published",
            ),
            LimitRow(
                name="domain tokens", used="8,650,752", allowed="9,100,000", unit="tokens", share=0.95, binding=False
            ),
        ),
        chance=0.97,
        knobs=(
            KnobRow(knob="peak learning rate", value="1.2e-3", lower=0.0123, higher=0.0045),
            KnobRow(knob="replay ratio", value="12%", lower=0.0021, higher=-0.0002),
            KnobRow(knob="steps", value="600", lower=0.0312),
        ),
        instead=(
            instead("half the budget", 0.08, 0.14),
            instead("double the budget", -0.12, -0.05),
            instead(
                "re-warm, weak shift (nearest recipe)", -0.01, 0.05, "arXiv:2403.08763: re-warm to the peak, 5 % replay"
            ),
        ),
        regret=0.0084,
        next_pilot=NextPilot(choices=tuple(PlanRow(label=k, chosen=v) for k, v in pilot.items()), value=0.0061),
        extrapolations=("peak rate 0.004 is outside the tried 0.0003 to 0.003",),
        assumptions=("General tokens are read 1.2 times: assumed to do no harm.",),
    )


def pareto() -> ParetoFront:
    return ParetoFront(
        lines=(pareto_line(300), pareto_line(STEPS)),
        chosen=pareto_point(1.2e-3, 0.12),
        rule_of_thumb=pareto_point(3e-4, 0.3),
    )


def example_report(*, measured: bool = True) -> ReportData:
    """The whole report; measured=False is the same campaign before the proof runs."""
    runs = [
        run("plan", "chosen plan", "chosen", 1.2e-3, 0.12, seed=1, measured=measured),
        run("rule", "rule of thumb", "rule_of_thumb", 3e-4, 0.3, decay_share=0.1, seed=2, measured=measured),
        *(
            run(f"pilot-{i + 1}", f"pilot {i + 1}", "pilot", p, r, 200, d, seed=10 + i)
            for i, (p, r, d) in enumerate(PILOTS)
        ),
    ]
    outcomes = [
        row for view in runs for row in outcome_rows(view, 3.70) if view.role != "pilot" or "loss" in row.quantity
    ]
    final = {(row.run, row.quantity): row for row in outcomes}
    plan_domain, plan_forgetting = final["plan", "loss_domain"], final["plan", "forgetting_ratio"]
    gain = final["rule", "objective"].predicted - final["plan", "objective"].predicted
    return ReportData(
        title="From docstrings to Python code",
        verdict=(
            "Train 600 steps at a peak learning rate of 1.2e-3 with 12% replay, from the stable checkpoint."
            if not measured
            else f"The chosen plan beats the rule of thumb by {gain:.2f} nats, and the prediction held.",
            "Peak learning rate 1.2e-3, 12% replay and 600 steps from the stable checkpoint minimise "
            "0.4 × general + 0.6 × domain loss within 8 minutes of this machine.",
            "All four final losses came out inside their 90% intervals, which were fixed before the runs started."
            if measured
            else "The proof runs have not been trained yet.",
        ),
        held=True if measured else None,
        objective="0.4 × general + 0.6 × domain",
        headlines=(
            Headline(
                label="Domain loss",
                value=f"{plan_domain.predicted:.2f}",
                note="nats per token, before it 4.63",
            ),
            Headline(
                label="Forgetting ratio",
                value=f"{plan_forgetting.predicted:.2f}",
                note="of general perplexity",
            ),
            Headline(label="Gain over rule of thumb", value=f"{gain:.2f}", note="nats of the weighted objective"),
            Headline(label="Pilots", value="31%", note="of all compute of the campaign"),
        ),
        plan=(
            PlanRow(label="Start from", chosen="stable checkpoint", rule_of_thumb="annealed checkpoint"),
            PlanRow(label="Peak learning rate", chosen="1.2e-3", rule_of_thumb="3e-4 (a tenth of pre-training)"),
            PlanRow(label="Replay ratio", chosen="12%", rule_of_thumb="30%"),
            PlanRow(label="Steps", chosen="600", rule_of_thumb="600"),
            PlanRow(label="Tokens", chosen="9.8 M", rule_of_thumb="9.8 M"),
            PlanRow(label="Decay", chosen="last 30%, 1-sqrt", rule_of_thumb="last 10%, linear"),
            PlanRow(label="Price on this machine", chosen="3 min 10 s", rule_of_thumb="3 min 10 s"),
        ),
        account=account(),
        runs=tuple(runs),
        outcomes=tuple(outcomes),
        surface=surface(),
        pareto=pareto(),
        costs=(
            CostRow(what="Compute of the chosen run, 6ND", value="1.9e14", unit="FLOP", provenance="measured"),
            CostRow(what="Compute, exact count", value="2.3e14", unit="FLOP", provenance="measured"),
            CostRow(what="Throughput of this machine", value="51,600", unit="tokens/s", provenance="measured"),
            CostRow(what="Peak of one A100 80 GB, bf16", value="312", unit="TFLOP/s", provenance="published"),
            CostRow(what="Utilisation on the accelerator", value="0.35", unit="MFU", provenance="assumed"),
            CostRow(what="Price of one A100 hour", value="1.79", unit="USD/h", provenance="assumed"),
        ),
        compute=(
            ComputeShare(stage="Base model", seconds=171, tokens=1.6e7, flops=3.1e14),
            ComputeShare(stage="Pilots", seconds=212, tokens=2.6e7, flops=4.2e14),
            ComputeShare(stage="Chosen run", seconds=93, tokens=9.8e6, flops=2.3e14),
            ComputeShare(stage="Rule of thumb", seconds=93, tokens=9.8e6, flops=2.3e14),
            ComputeShare(stage="Evaluation", seconds=60, tokens=8.1e6, flops=1.6e14),
        ),
        fits=tuple(
            FitRow(
                set_name=name,
                law="CPT law with replay",
                parameters=(
                    FitParameter(name="L0", value=3.52, low=3.41, high=3.60),
                    FitParameter(name="A", value=0.21, low=0.18, high=0.25),
                    FitParameter(name="alpha", value=0.40, low=0.31, high=0.47),
                    FitParameter(name="B", value=0.62, low=0.44, high=None),
                    FitParameter(name="beta", value=0.35, low=0.20, high=0.50),
                ),
                forms=(
                    FormRow(form="CPT law with replay", weight=0.7, in_sample_error=0.0052, held_out_error=0.0094),
                    FormRow(form="the same with a clock", weight=0.3, in_sample_error=0.0047, held_out_error=0.0101),
                    FormRow(form="without replay", weight=0.0, in_sample_error=0.0411, held_out_error=0.0702),
                ),
            )
            for name in SETS
        ),
        fit_notes=("all: forms that predict left-out curves about as well are averaged",),
        warnings=(
            "The chosen plan is three times as long as the longest pilot: its last 400 steps are an extrapolation.",
        ),
        facts=(
            Fact(label="cptplan", value="0.1.0"),
            Fact(label="torch, transformers", value="2.13.0, 5.23.0"),
            Fact(label="Machine", value="x86_64, 2 cores, no accelerator"),
            Fact(label="General corpus", value="8.4 MB, sha256 4b1f9c20a7e3"),
            Fact(label="Domain corpus", value="9.1 MB, sha256 9a77e21d0c55"),
            Fact(label="Seeds", value="base 0, pilots 100 to 107, proof 200 and 201"),
            Fact(label="Date", value="2026-01-31"),
        ),
        next_commands=(
            "cptplan optimize --weights general=0.6 --pareto",
            "cptplan launch --target accelerate --out launch/",
        ),
    )
