"""Fit a law of final losses: variable projection with an analytic Jacobian, robust weights, many starts.

For given nonlinear parameters the coefficients are a non-negative least-squares problem, solved exactly; the search
over the others uses Kaufman's Jacobian, (1 - P) W dPhi c, P the projection on the columns in use, which gives the exact
gradient (Kaufman 1975). Residuals are relative, predicted / observed - 1, weighted down by Huber's rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls
from scipy.stats import qmc

from cptplan.laws.final.protocol import FinalLaw, FloatArray, Runs

NUM_STARTS = 16
NUM_POLISHED = 3
REWEIGHTING_ROUNDS = 3
ROUGH_SCALE = 0.01  # assumed: relative residuals of a first guess
HUBER_KNEE = 1.345  # published: 95 % efficiency at the normal distribution (Huber 1981)
SMALLEST_SCALE = 1e-3  # published: Huber delta on log residuals, arXiv:2203.15556 and the laws after it


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """Parameters of a law for one table of final losses."""

    values: FloatArray
    """Nonlinear parameters, shape (parameters,)."""
    coefficients: FloatArray
    """Linear parameters, shape (terms,)."""
    scale: float
    """Robust standard deviation of the relative residuals, corrected for the parameters that were fitted."""
    objective: float
    """Huber loss of the residuals and prior in units of the scale, and the scale's own share."""
    freedom: float
    """Rows less the parameters that the rows, not the priors, determine; at least 1."""
    determined: FloatArray
    """How much narrower each nonlinear parameter is than its prior, 0 (not at all) to 1, shape (parameters,)."""
    converged: bool


def predict(law: FinalLaw, solution: Solution, runs: Runs) -> FloatArray:
    """Final loss of runs, nats per token, shape (rows,)."""
    return law.columns(solution.values, runs) @ solution.coefficients


def solve(
    law: FinalLaw,
    runs: Runs,
    observed: FloatArray,
    *,
    weights: FloatArray | None = None,
    start: Solution | None = None,
    seed: int = 0,
) -> Solution:
    """The best parameters of a law for a table.

    Args:      observed: final losses, > 0, shape (rows,). weights: of each row, 1 on average; equal when None.
               start: a solution of much the same table, kept in scale, to begin (only) from. seed: of the starts.
    Returns:   the solution with the smallest objective; converged False when no start met the solver's tolerance.
    """
    problem = _Problem(law, runs, observed, np.ones(len(runs)) if weights is None else weights)
    if start is not None:
        return problem.round(problem.to_z(start.values), start.scale, problem.robust_weights(start), 20)
    everywhere = np.ones(len(runs))
    rough = [problem.round(z, ROUGH_SCALE, everywhere, 15) for z in problem.starts(seed)]
    best = sorted(rough, key=lambda s: s.objective)[:NUM_POLISHED]
    return min((problem.search(s) for s in best), key=lambda s: s.objective)


class _Problem:
    """One law, one table, one weighting. Search coordinates z as in laws.protocol.Parameter."""

    def __init__(self, law: FinalLaw, runs: Runs, observed: FloatArray, weights: FloatArray) -> None:
        self.law, self.runs, self.observed = law, runs, observed
        self.root_weight = np.sqrt(weights)
        self.signs = np.array([term.sign for term in law.terms], dtype=np.float64)
        self.lower = np.array([p.to_z(p.low) for p in law.parameters])
        self.upper = np.array([p.to_z(p.high) for p in law.parameters])
        self.centre = np.array([p.to_z(p.start) for p in law.parameters])
        self.width = np.array([p.prior_sd for p in law.parameters])
        self.log_scale = np.array([p.log_scale for p in law.parameters])

    def values(self, z: FloatArray) -> FloatArray:
        return np.array([p.to_value(float(v)) for p, v in zip(self.law.parameters, z, strict=True)])

    def to_z(self, values: FloatArray) -> FloatArray:
        z = [p.to_z(float(v)) for p, v in zip(self.law.parameters, values, strict=True)]
        return np.clip(z, self.lower, self.upper)

    def starts(self, seed: int) -> list[FloatArray]:
        """The prior's centre and points spread over two prior widths around it."""
        unit = qmc.Sobol(len(self.law.parameters), seed=seed).random(NUM_STARTS)[: NUM_STARTS - 1]
        spread = self.centre + 2.0 * self.width * (2.0 * unit - 1.0)
        return [self.centre, *np.clip(spread, self.lower, self.upper)]

    def project(self, z: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Weighted columns divided by the observed loss, and the best coefficients for them."""
        matrix = self.law.columns(self.values(z), self.runs) / self.observed[:, None] * weight[:, None]
        size = np.linalg.norm(matrix, axis=0)
        size[size == 0.0] = 1.0
        oriented = matrix / size * np.where(self.signs < 0.0, -1.0, 1.0)
        free = self.signs == 0.0
        found, _ = nnls(np.hstack([oriented, -oriented[:, free]]), weight)
        coefficients = found[: len(size)]
        coefficients[free] -= found[len(size) :]
        return matrix, coefficients * np.where(self.signs < 0.0, -1.0, 1.0) / size

    def jacobian(self, z: FloatArray, weight: FloatArray) -> FloatArray:
        """Derivatives of the projected weighted residuals by z, shape (rows, parameters)."""
        matrix, coefficients = self.project(z, weight)
        values = self.values(z)
        slopes = self.law.derivatives(values, self.runs) @ coefficients * np.where(self.log_scale, values, 1.0)[:, None]
        moved = (slopes / self.observed * weight).T
        basis, _ = np.linalg.qr(matrix[:, (coefficients != 0.0) | (self.signs == 0.0)])
        return np.asarray(moved - basis @ (basis.T @ moved))

    def search(self, rough: Solution) -> Solution:
        """Full local search: robust weights and scale are set anew after each round."""
        solution, robust = rough, np.ones(len(self.runs))
        for _ in range(REWEIGHTING_ROUNDS):
            solution = self.round(self.to_z(solution.values), self.scale_of(solution), robust)
            robust = self.robust_weights(solution)
        return self.round(self.to_z(solution.values), self.scale_of(solution), robust)

    def round(self, z: FloatArray, scale: float, robust: FloatArray, evaluations: int = 60) -> Solution:
        """Least squares over the nonlinear parameters for given weights and scale."""
        weight = self.root_weight * robust

        def residuals(at: FloatArray) -> FloatArray:
            matrix, coefficients = self.project(at, weight)
            return np.concatenate([(matrix @ coefficients - weight) / scale, (at - self.centre) / self.width])

        def jacobian(at: FloatArray) -> FloatArray:
            return np.concatenate([self.jacobian(at, weight) / scale, np.diag(1.0 / self.width)])

        found = least_squares(
            residuals,
            z,
            jac=jacobian,
            bounds=(self.lower, self.upper),
            x_scale=self.width,
            ftol=1e-8,
            xtol=1e-8,
            gtol=1e-8,
            max_nfev=evaluations,
        )
        return self._solution(found.x, scale, weight, converged=bool(found.status > 0))

    def _solution(self, z: FloatArray, scale: float, weight: FloatArray, *, converged: bool) -> Solution:
        _, coefficients = self.project(z, weight)
        slopes = self.jacobian(z, weight) / scale
        posterior = np.linalg.inv(slopes.T @ slopes + np.diag(self.width**-2))
        used = float(np.trace(slopes @ posterior @ slopes.T)) + int(np.sum(coefficients != 0.0))
        values = self.values(z)
        relative = self.law.columns(values, self.runs) @ coefficients / self.observed - 1.0
        return Solution(
            values=values,
            coefficients=coefficients,
            scale=scale,
            objective=self._objective(z, relative, scale),
            freedom=max(len(self.runs) - used, 1.0),
            determined=1.0 - np.sqrt(np.diag(posterior)) / self.width,
            converged=converged,
        )

    def scale_of(self, solution: Solution) -> float:
        """Robust standard deviation of the relative residuals, corrected for the fitted parameters."""
        typical = 1.4826 * float(np.median(np.abs(self.relative(solution))))
        return max(typical * float(np.sqrt(len(self.runs) / solution.freedom)), SMALLEST_SCALE)

    def relative(self, solution: Solution) -> FloatArray:
        """Relative residuals, shape (rows,)."""
        return predict(self.law, solution, self.runs) / self.observed - 1.0

    def robust_weights(self, solution: Solution) -> FloatArray:
        """Huber's weights in the square root: 1 up to 1.345 scales, then falling, shape (rows,)."""
        size = np.abs(self.relative(solution)) / (HUBER_KNEE * solution.scale)
        return np.asarray(1.0 / np.sqrt(np.maximum(size, 1.0)))

    def _objective(self, z: FloatArray, relative: FloatArray, scale: float) -> float:
        """Huber loss and prior, with the term that makes solutions of different scale comparable."""
        knee = HUBER_KNEE * scale
        size: NDArray[np.float64] = np.abs(relative)
        huber = np.where(size <= knee, 0.5 * relative**2, knee * (size - 0.5 * knee)) / scale**2
        prior = 0.5 * np.sum(((z - self.centre) / self.width) ** 2)
        return float(np.sum(self.root_weight**2 * (huber + np.log(scale))) + prior)
