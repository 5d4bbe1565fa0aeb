"""The laws a second time, step by step in plain Python from their printed formulas: the judge of the fast ones."""

from __future__ import annotations

from math import exp, log

from cptplan.laws.history import RunHistory
from cptplan.laws.protocol import Law

Named = dict[str, float]
SOURCE_POWER = 0.1  # of multi_power_late


def slow_loss(law: Law, values, coefficients, run: RunHistory, step: int) -> float:
    """Loss after a step, nats per token."""
    p = dict(zip((parameter.name for parameter in law.parameters), map(float, values), strict=True))
    c = dict(zip((term.name for term in law.terms), map(float, coefficients), strict=True))
    return _cpt(law, p, c, run, step) if hasattr(law, "form") else _schedule(law, p, c, run, step)


def _falls(rates: list[float], warm: int, begin: int = 1) -> list[tuple[int, float]]:
    """(step, fall of the rate before it), after the warm-up, from a step on."""
    return [(k, rates[k - 1] - rates[k]) for k in range(begin, len(rates)) if k > warm]


def _warm(rates: list[float]) -> int:
    """Index of the first highest rate: the warm-up ends there."""
    return rates.index(max(rates))


def _area(rates: list[float], power: float) -> float:
    return sum(r**power for r in rates if r > 0)


def _schedule(law: Law, p: Named, c: Named, run: RunHistory, step: int) -> float:
    whole = [float(r) / law.reference_lr for r in (*run.pretrain_lr, *run.lr)]
    warm, rates = _warm(whole), whole[: len(run.pretrain_lr) + step]
    power = 0.0 if law.name == "power" else p.get("p", 1.0)
    loss = c["L0"] + c["A"] * max(_area(rates, power), 1.0) ** -p["alpha"]
    for k, fall in _falls(rates, warm):
        since, source = sum(rates[k:]), max(sum(rates[:k]), 1.0)
        if law.name == "annealing":
            loss -= c["C"] * fall * (1 - (1 - 1 / p["forgetting_time"]) ** (len(rates) - k))
        elif law.name.startswith("multi_power"):
            x = p["C"] * max(rates[k], 1e-6) ** -p["gamma"] * since
            late = source**-SOURCE_POWER if law.name == "multi_power_late" else 1.0
            loss -= c["B"] * fall * late * (1 - (1 + x) ** -p["beta"])
        elif law.name == "fsl":
            gain = 1 - (1 + p["c4"] * since) ** -p["gamma"]
            loss -= fall * (c["c2"] + c["c3"] * source ** -p["alpha"]) * gain
        else:
            assert law.name == "power"
    return loss


def _cpt(law: Law, p: Named, c: Named, run: RunHistory, step: int) -> float:
    before = [float(r) / law.reference_lr for r in run.pretrain_lr]
    own = [float(r) / law.reference_lr for r in run.lr[:step]]
    rates, shifts = before + own, run.phase == "cpt"
    area = _area(rates, p.get("p", 1.0))
    if shifts and not run.pretrain_known:
        area += p.get("S_pt", 0.0) if run.known_area is None else run.known_area / law.reference_lr
    millions = run.num_params / 1e6 if law.form.sizes else 1.0
    loss = c["L0"] + c["A"] * max(area, 1.0) ** -p["alpha"] + c.get("F", 0.0) * millions ** -p.get("g3", 0.0)
    loss -= _annealing(law, p, c, run, step, millions)
    if not shifts:
        return loss
    weights = [r if any(own) else 1.0 for r in own] or [1.0]
    shares = [1.0 - float(r) for r in run.replay_ratio[: max(step, 1)]]
    share = sum(w * s for w, s in zip(weights, shares, strict=True)) / sum(weights)
    repeats = law.side == "domain" and law.form.repetition
    passes = [0.0] * len(run.lr) if run.domain_passes is None else [float(x) for x in run.domain_passes]
    clock = sum(
        r ** p.get("p", 1.0)
        * (s ** p["gamma"] if "gamma" in p else 1.0)
        * (exp(-max(seen - 1.0, 0.0) / p["R"]) if repeats else 1.0)
        for r, s, seen in zip(own, shares, passes, strict=False)
        if r > 0
    )
    loss += c["B"] * _amplitude(law, p, share) * (1 - (1 + p["E"] * clock) ** -p["beta"])
    if repeats:
        after = passes[step] if step < len(passes) else 2 * passes[-1] - passes[-2]
        loss += c["O"] * max(after - 1.0, 0.0) ** 2
    if "T" in p and 0 < step <= 7 * p["T"]:
        loss += c["D"] * own[-1] ** 0.5 * share * exp(-step / p["T"])
    return loss


def _annealing(law: Law, p: Named, c: Named, run: RunHistory, step: int, millions: float) -> float:
    """C1 N^g1 S2 of pre-training + C2 N^g2 S2 of CPT, S2 by phase; undo: C1 up to the peak of CPT."""
    gains = {"C1": 0.0, "C2": 0.0}
    before, own = ([float(r) / law.reference_lr for r in part] for part in (run.pretrain_lr, run.lr))
    rates = before + own
    for k, fall in _falls(rates, _warm(before or own) if before or run.phase == "pretrain" else -1):
        if k < len(before) + step:
            peaks = [max(own[: n + 1]) for n in range(len(own))]
            passed = next((n for n, r in enumerate(own) if r < 0.999 * peaks[n]), len(own))
            earlier = len(before) + (passed if law.form.undo else 0)
            term = "C1" if run.phase == "pretrain" or k < earlier else "C2"
            gains[term] += fall * (1 - (1 - 1 / p["forgetting_time"]) ** (len(before) + step - k))
    if not before and run.phase == "cpt" and step:  # from the last rate that is told, or from 0: taken as annealed
        rise = rates[0] - (run.last_lr or 0.0) / law.reference_lr
        gains["C1" if law.form.undo else "C2"] -= rise * (1 - (1 - 1 / p["forgetting_time"]) ** step)
    return sum(c[name] * gain * millions ** p.get(name.replace("C", "g"), 0.0) for name, gain in gains.items())


def _amplitude(law: Law, p: Named, share: float) -> float:
    if "epsilon" in p:
        e = p["epsilon"]
        return log((1 + e) / (1 - share + e)) / log((1 + e) / e)
    if "a" in p and law.side == "general":
        return (exp(p["a"] * share) - 1) / (exp(p["a"]) - 1)
    return (1 - exp(-p["a"] * share)) / (1 - exp(-p["a"])) if "a" in p else 1.0
