"""Laws of final losses: what every one of them must keep, known truth comes back, the table's limits are said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cptplan.errors import ConfigError, CurveError
from cptplan.fitting.final_losses import (
    FIT_COLUMNS,
    LAWS,
    PARAMETER_COLUMNS,
    critical_ratios,
    fit_final_losses,
    fit_rows,
    parameter_rows,
    summary,
)
from cptplan.fitting.final_table import FinalLosses
from cptplan.laws.final.chinchilla import ChinchillaLaw
from cptplan.laws.final.choices import best_share_of_domain_tokens, largest_domain_share
from cptplan.laws.final.cmr import ratio_law, tokens_law
from cptplan.laws.final.d_cpt import DCptLaw
from cptplan.laws.final.protocol import VARIABLES, FinalLaw, FloatArray, Runs, make_runs
from cptplan.laws.final.repetition import RepetitionLaw
from cptplan.laws.final.solve import _Problem, predict, solve

UNITS = {"reference_params": 1.8e9, "reference_tokens": 8e9, "reference_unique": 3e9}
ALL_LAWS: dict[str, FinalLaw] = {
    "d_cpt general": DCptLaw("general"),
    "d_cpt domain": DCptLaw("domain"),
    "d_cpt one size": DCptLaw("general", with_params=False),
    "d_cpt one size, one length": DCptLaw("domain", with_params=False, with_tokens=False),
    "chinchilla": ChinchillaLaw(),
    "chinchilla one size": ChinchillaLaw(with_params=False),
    "repetition": RepetitionLaw(**UNITS),
    "repetition one size": RepetitionLaw(with_params=False, **UNITS),
    "cmr_ratio": ratio_law(),
    "cmr_tokens domain": tokens_law(general=False),
    "cmr_tokens general": tokens_law(general=True),
}
each_law = pytest.mark.parametrize("law", ALL_LAWS.values(), ids=ALL_LAWS.keys())


def random_runs(number: int, seed: int = 0) -> Runs:
    rng = np.random.default_rng(seed)
    tokens = np.exp(rng.uniform(np.log(1e9), np.log(2e10), number))
    return make_runs(
        rng.choice([0.05, 0.1, 0.2, 1 / 3, 0.5, 2 / 3, 0.8, 0.9, 1.0], number),
        tokens,
        rng.choice([5e8, 1.8e9, 4e9], number),
        np.minimum(np.exp(rng.uniform(np.log(3e8), np.log(2e10), number)), tokens),
    )


def some_values(law: FinalLaw, seed: int = 1) -> FloatArray:
    """Nonlinear parameters within a prior width of their centre."""
    rng = np.random.default_rng(seed)
    return np.array([p.to_value(p.to_z(p.start) + rng.uniform(-1, 1) * p.prior_sd) for p in law.parameters])


def some_coefficients(law: FinalLaw, values: FloatArray, runs: Runs) -> FloatArray:
    """Coefficients that give every column a share of a loss near 2.5."""
    size = np.mean(np.abs(law.columns(values, runs)), axis=0)
    return np.array([1.6, *np.full(len(law.terms) - 1, 0.9 / (len(law.terms) - 1))]) / size


def table_of(runs: Runs, set_name: str, losses: FloatArray) -> FinalLosses:
    names = tuple(f"run-{number}" for number in range(len(runs)))
    return FinalLosses(names=names, runs=runs, losses={set_name: np.asarray(losses, dtype=float)}, where="finals.csv")


# What every law must keep


@each_law
def test_columns_are_finite_and_of_the_right_shape(law: FinalLaw) -> None:
    runs = random_runs(40)
    for seed in range(5):
        columns = law.columns(some_values(law, seed), runs)
        assert columns.shape == (40, len(law.terms))
        assert np.all(np.isfinite(columns))


@each_law
def test_derivatives_agree_with_differences(law: FinalLaw) -> None:
    runs, values = random_runs(20), some_values(law)
    found = law.derivatives(values, runs)
    for number in range(len(values)):
        step = 1e-6 * max(abs(values[number]), 1e-2)
        up, down = values.copy(), values.copy()
        up[number] += step
        down[number] -= step
        slow = (law.columns(up, runs) - law.columns(down, runs)) / (2 * step)
        # central differences of step 1e-6 keep about nine digits of the largest entry
        np.testing.assert_allclose(found[number], slow, atol=1e-7 * np.max(np.abs(slow)), rtol=1e-6)


@each_law
def test_loss_never_rises_where_the_law_says_so(law: FinalLaw) -> None:
    for name in law.falling:
        amounts = np.geomspace(1e8, 1e11, 60)
        fixed = {"domain_share": 0.4, "tokens": 8e9, "num_params": 1e9, "unique_tokens": 2e9}
        runs = make_runs(*({**fixed, name: amounts}[variable] for variable in VARIABLES))
        for seed in range(5):
            values = some_values(law, seed)
            losses = law.columns(values, runs) @ some_coefficients(law, values, runs)
            assert np.all(np.diff(losses) <= 1e-12 * losses[:-1]), name


@each_law
def test_variables_are_all_that_the_law_reads(law: FinalLaw) -> None:
    runs, values = random_runs(20), some_values(law)
    kept = {name: getattr(runs, name) if name in law.variables else np.full(20, np.nan) for name in VARIABLES}
    np.testing.assert_array_equal(law.columns(values, Runs(**kept)), law.columns(values, runs))


@each_law
def test_projected_jacobian_has_the_gradient_of_the_objective(law: FinalLaw) -> None:
    runs, values = random_runs(40), some_values(law)
    observed = law.columns(values, runs) @ some_coefficients(law, values, runs)
    observed = observed * (1 + 0.05 * np.random.default_rng(0).standard_normal(40))
    problem, weight = _Problem(law, runs, observed, np.ones(40)), np.ones(40)
    z = problem.to_z(values) + 0.02

    def residuals(at: FloatArray) -> FloatArray:
        matrix, coefficients = problem.project(at, weight)
        return matrix @ coefficients - weight

    gradient = problem.jacobian(z, weight).T @ residuals(z)
    for number in range(len(z)):
        step = np.zeros(len(z))
        step[number] = 1e-5
        slow = (np.sum(residuals(z + step) ** 2) - np.sum(residuals(z - step) ** 2)) / 4e-5
        # differences of a sum of squares near 0.1 keep about ten digits; gradients here are 1e-5 to 1e-1
        assert gradient[number] == pytest.approx(slow, rel=1e-3, abs=1e-8)


@each_law
@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 0.001), (0.004, 0.004)])
def test_known_truth_comes_back_in_predictions(law: FinalLaw, noise: float, tolerance: float) -> None:
    # without noise only the weak priors pull; with 40 rows the mean is better known than one row
    runs, unseen, values = random_runs(40), random_runs(100, seed=2), some_values(law)
    coefficients = some_coefficients(law, values, runs)
    truth = law.columns(values, runs) @ coefficients
    observed = truth * (1 + noise * np.random.default_rng(3).standard_normal(40))
    found = solve(law, runs, observed)
    error = predict(law, found, unseen) / (law.columns(values, unseen) @ coefficients) - 1
    assert np.sqrt(np.mean(error**2)) < tolerance
    for parameter, value in zip(law.parameters, found.values, strict=True):
        assert parameter.low <= value <= parameter.high
    assert np.all(found.coefficients[[t.sign == 1 for t in law.terms]] >= 0)


# The fit


def d_cpt_table(number: int, noise: float, seed: int = 0) -> tuple[FinalLosses, FinalLosses]:
    """A table of general losses of one size, and new runs of the same law with the same noise."""
    law = DCptLaw("general", with_params=False)
    values, coefficients = np.array([0.28, 0.5, 0.01, 0.3]), np.array([1.8, 60.0, 0.25])
    rng = np.random.default_rng(seed)

    def table(rows: int) -> FinalLosses:
        runs = make_runs(
            rng.choice([0.0, 0.1, 0.2, 1 / 3, 0.5, 2 / 3, 0.8, 0.9, 1.0], rows),
            rng.choice([2e9, 5e9, 1e10, 2e10], rows),
            1.8e9,
        )
        losses = law.columns(values, runs) @ coefficients
        return table_of(runs, "general", losses * (1 + noise * rng.standard_normal(rows)))

    return table(number), table(60)


def test_fit_holds_its_interval_on_new_runs() -> None:
    inside, errors = [], []
    for seed in range(6):
        table, new = d_cpt_table(16, 0.005, seed)
        prediction = fit_final_losses(table, num_draws=40).predict(new.runs)
        losses = new.losses["general"]
        inside.append(np.mean((prediction.low <= losses) & (losses <= prediction.high)))
        errors.append(np.sqrt(np.mean((prediction.mean / losses - 1) ** 2)))
    # 360 rows in 6 dependent groups: the standard error of the coverage is about 0.04
    assert 0.78 < np.mean(inside) < 0.97
    assert np.median(errors) < 0.008  # the noise of the new rows alone is 0.005


def test_fit_errors_tell_the_law_from_the_plain_mean() -> None:
    fit = fit_final_losses(d_cpt_table(24, 0.003)[0], num_draws=20)
    assert fit.in_sample_error < fit.held_out_error < 0.006
    assert fit.baseline_error > 0.05
    assert fit.warnings == ()


def test_fit_is_reproducible_and_its_seed_matters_little() -> None:
    table, new = d_cpt_table(16, 0.005)
    first, again, other = (fit_final_losses(table, num_draws=60, seed=seed).predict(new.runs) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.low, again.low)
    # intervals are some 2 % wide to either side, and 60 draws know their ends to a fifth or so
    np.testing.assert_allclose(other.high / other.mean, first.high / first.mean, atol=0.01)


def test_one_corrupted_row_does_not_move_the_fit_and_is_named() -> None:
    table, new = d_cpt_table(24, 0.002)
    clean = fit_final_losses(table, num_draws=2).mean(new.runs)
    table.losses["general"][3] *= 1.3  # type: ignore[index]
    fit = fit_final_losses(table, num_draws=2)
    # 30 % in one of 24 rows would move a plain mean by 1.3 %
    np.testing.assert_allclose(fit.mean(new.runs), clean, rtol=0.006)
    assert any("row run-3 is off by +" in word for word in fit.warnings)


def test_terms_follow_what_varies_and_the_rest_is_said() -> None:
    table, _ = d_cpt_table(16, 0.002)
    fit = fit_final_losses(table, num_draws=2)
    assert fit.law.variables == ("domain_share", "tokens")
    assert any(word.startswith("num_params never changes") for word in fit.unidentified)
    one_length = table.take(table.runs.tokens == 1e10)
    more = table_of(make_runs([0.05, 0.15, 0.3, 0.6], 1e10, 1.8e9), "general", np.array([2.3, 2.33, 2.37, 2.5]))
    both = table_of(
        make_runs(np.append(one_length.runs.domain_share, more.runs.domain_share), 1e10, 1.8e9),
        "general",
        np.append(one_length.losses["general"], more.losses["general"]),
    )
    fit = fit_final_losses(both, num_draws=2)
    assert fit.law.variables == ("domain_share",)
    assert any(word.startswith("tokens never changes") for word in fit.unidentified)
    assert any("not the table's 1e+10" in word for word in fit.predict(make_runs(0.5, 5e10)).outside)


def test_prediction_says_where_it_leaves_the_table() -> None:
    fit = fit_final_losses(d_cpt_table(16, 0.002)[0], num_draws=5)
    assert fit.predict(make_runs([0.3, 0.9], [3e9, 2e10], 1.8e9)).outside == ()
    beyond = fit.predict(make_runs(0.5, 9e10, 7e9)).outside
    assert beyond == (
        "tokens 9e+10 lies outside the table's 2e+09 to 2e+10",
        "num_params 7e+09 is not the table's 1.8e+09, which never changed: the law has no term for it",
    )


def test_undetermined_parameters_are_named() -> None:
    runs = make_runs([0.5, 0.55, 0.6, 0.65, 0.7, 0.75], 1e10)
    losses = np.array([2.51, 2.512, 2.509, 2.515, 2.511, 2.513])
    fit = fit_final_losses(table_of(runs, "general", losses), num_draws=2)
    assert any("gamma (exponent of the share) is mostly its prior" in word for word in fit.unidentified)


def test_loss_that_rises_with_tokens_is_a_warning() -> None:
    share, tokens = np.meshgrid([0.5, 0.8, 0.9, 1.0], [2e9, 5e9, 2e10])
    losses = 2.4 + 0.3 * share + 0.1 * np.log(tokens / 2e9)
    fit = fit_final_losses(table_of(make_runs(share.ravel(), tokens.ravel()), "general", losses.ravel()), num_draws=2)
    assert any(word.startswith("loss rises with tokens in 12 of 12 like pairs") for word in fit.warnings)


def test_variables_and_repeats_that_a_law_does_not_see_are_warnings() -> None:
    table, _ = d_cpt_table(16, 0.002)
    runs = make_runs(table.runs.domain_share, table.runs.tokens, 1.8e9, 2e9)
    fit = fit_final_losses(table_of(runs, "general", table.losses["general"]), "chinchilla", num_draws=2)
    assert "domain_share varies, and the law chinchilla does not see it" in fit.warnings
    assert any(word.startswith("data is seen up to 10 times") for word in fit.warnings)


def test_law_that_is_no_better_than_the_mean_says_so() -> None:
    rng = np.random.default_rng(0)
    runs = make_runs(rng.uniform(0, 1, 12), 1e10)
    fit = fit_final_losses(table_of(runs, "general", 2.5 + 0.1 * rng.standard_normal(12)), num_draws=2)
    assert any("do not use this fit" in word for word in fit.warnings)


# Choices


def test_largest_share_keeps_the_limit_and_falls_with_it() -> None:
    fit = fit_final_losses(d_cpt_table(24, 0.001)[0], num_draws=40)
    shares = []
    for limit in (2.4, 2.45, 2.5):
        choice = largest_domain_share(fit, limit=limit, tokens=1e10)
        assert choice.loss == pytest.approx(limit, rel=1e-4)  # a grid of a tenth of a percent, straight lines between
        assert choice.low <= choice.share <= choice.high
        shares.append(choice.share)
    assert shares == sorted(shares)
    assert largest_domain_share(fit, limit=9.0, tokens=1e10).share == 1.0


def test_largest_share_is_refused_when_no_share_keeps_the_limit() -> None:
    fit = fit_final_losses(d_cpt_table(24, 0.001)[0], num_draws=2)
    with pytest.raises(ConfigError, match=r"limit must be one that some domain share keeps; got 1\.5"):
        largest_domain_share(fit, limit=1.5, tokens=1e10)


def test_best_share_of_a_small_corpus_is_the_minimum_of_the_law() -> None:
    law = DCptLaw("domain", with_params=False)
    values, coefficients = np.array([0.25, 1.3, 0.02, 0.5]), np.array([0.4, 150.0, 0.1])
    share, tokens = (a.ravel() for a in np.meshgrid([0.1, 0.3, 0.5, 0.7, 0.9, 1.0], [3e9, 8e9, 2e10]))
    runs = make_runs(share, tokens)
    fit = fit_final_losses(table_of(runs, "domain", law.columns(values, runs) @ coefficients), set_name="domain")
    choice = best_share_of_domain_tokens(fit, domain_tokens=5e9)
    shares = np.linspace(0.05, 1, 20001)
    exact = law.columns(values, make_runs(shares, 5e9 / shares)) @ coefficients
    assert choice.loss == pytest.approx(exact.min(), rel=1e-3)
    assert choice.share == pytest.approx(shares[exact.argmin()], abs=0.02)  # flat around the minimum
    assert choice.tokens == pytest.approx(5e9 / choice.share)


def test_choice_needs_a_law_that_sees_the_share() -> None:
    table, _ = d_cpt_table(16, 0.002)
    fit = fit_final_losses(table, "chinchilla", num_draws=2)
    with pytest.raises(ConfigError, match="law must see domain_share to choose a share; got chinchilla"):
        largest_domain_share(fit, limit=2.5, tokens=1e10)


def test_critical_ratios_follow_their_law() -> None:
    tokens = np.array([2e9, 4e9, 8e9, 2e10])
    truth = 0.225 * (tokens / 0.2e9) ** 0.27 - 0.10
    shares = np.array([0.1, 0.2, 0.3, 0.5, 0.75, 1.0])
    # general loss is 2.0 + 0.05 at the critical ratio of every length, and a power of the share
    losses = np.array([2.05 + 0.4 * (shares**0.8 - r**0.8) for r in truth])
    runs = make_runs(np.tile(shares, 4), np.repeat(tokens, 6))
    found = critical_ratios(table_of(runs, "general", losses.ravel()), start_loss=2.0)
    np.testing.assert_allclose(found.ratios, truth, atol=0.003)  # weak priors of the fits
    assert found.law is not None
    assert found.law.at(1.5e10) == pytest.approx(0.225 * 75**0.27 - 0.10, abs=0.005)


# Refusals


def small_table(share: list[float], tokens: list[float], **known: list[float]) -> FinalLosses:
    return table_of(make_runs(share, tokens, **known), "general", np.linspace(2.4, 2.6, len(share)))


@pytest.mark.parametrize(
    ("law", "table", "message"),
    [
        ("d_cpt", small_table([0.3] * 9, list(np.linspace(1e9, 9e9, 9))), "domain_share must vary for d_cpt; got one"),
        ("d_cpt", small_table([0.1, 0.5, 0.9], [1e9] * 3), "must have 5 rows for d_cpt with 4 parameters; got 3"),
        ("cmr_ratio", small_table([0.1, 0.3, 0.5, 0.9], [1e9, 1e9, 2e9, 2e9]), "tokens must be one value for cmr_rat"),
        (
            "cmr_ratio",
            small_table([0.0, 0.3, 0.5, 0.9], [1e9] * 4),
            "domain_share must be greater than 0 for cmr_ratio",
        ),
        ("cmr_tokens", small_table([0.3] * 5, [1e9] * 5), "tokens must vary for cmr_tokens; got one value"),
        (
            "repetition",
            small_table([0.3] * 9, list(np.linspace(1e9, 9e9, 9))),
            "unique_tokens must vary for repetition",
        ),
        ("chinchilla", small_table([0.3] * 5, [1e9] * 5), "tokens must vary for chinchilla"),
    ],
)
def test_table_that_a_law_cannot_use_is_refused(law: str, table: FinalLosses, message: str) -> None:
    with pytest.raises(CurveError, match=message):
        fit_final_losses(table, law)


def test_unknown_law_and_set_are_refused_with_a_suggestion() -> None:
    table = small_table([0.1, 0.3, 0.5, 0.9], [1e9] * 4)
    with pytest.raises(ConfigError, match=r"got 'dcpt'\. hint: did you mean 'd_cpt'"):
        fit_final_losses(table, "dcpt")
    with pytest.raises(CurveError, match=r"must have a column loss_genral; got general .* did you mean 'general'"):
        fit_final_losses(table, set_name="genral")


# What the command line shows


@pytest.mark.parametrize("law_name", LAWS)
def test_rows_and_json_of_every_law(law_name: str) -> None:
    rng = np.random.default_rng(0)
    share = [0.3] * 12 if law_name == "cmr_tokens" else list(rng.uniform(0.1, 1, 12))
    tokens = [1e10] * 12 if law_name == "cmr_ratio" else list(rng.uniform(2e9, 2e10, 12))
    unique = list(rng.uniform(1e9, 2e9, 12))
    table = table_of(make_runs(share, tokens, None, unique), "general", rng.uniform(2.4, 2.6, 12))
    fit = fit_final_losses(table, law_name, num_draws=5)
    assert all(len(row) == len(FIT_COLUMNS) for row in fit_rows([fit]))
    rows = parameter_rows(fit)
    assert {row[0] for row in rows} == set(fit.parameters)
    assert all(len(row) == len(PARAMETER_COLUMNS) and all(row) for row in rows)
    read_back = json.loads(json.dumps(summary([fit]), allow_nan=False))["sets"]["general"]
    assert read_back["parameters"] == fit.parameters
    assert set(read_back["held_out"]) == set(table.names)
