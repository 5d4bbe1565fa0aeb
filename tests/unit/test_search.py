"""The search: known optima, constraints, the same answer each time, a study that others can open."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import optuna
import pytest

from cptplan.errors import InfeasiblePlanError
from cptplan.search import Evaluated, Knobs, Score, SearchResult, Space, grid, polish, search

SPACE = Space(
    peak_lr=(1e-4, 3e-3),
    replay_ratio=(0.0, 0.6),
    total_steps=(25, 100),
    decay_share=(0.0, 0.8),
    starts=("stable", "annealed"),
)
BEST = Knobs(peak_lr=7e-4, replay_ratio=0.13, total_steps=100, decay_share=0.42, start="stable")


def bowl(knobs, violation=-1.0):
    """A bowl around BEST: longer is better, and the other start costs something."""
    objective = (
        0.1 * np.log(knobs.peak_lr / BEST.peak_lr) ** 2
        + (knobs.replay_ratio - BEST.replay_ratio) ** 2
        + 0.5 * (knobs.decay_share - BEST.decay_share) ** 2
        + 0.01 * (100 - knobs.total_steps)
        + (0.05 if knobs.start == "annealed" else 0.0)
    )
    losses = {"general": 3.0 - knobs.replay_ratio, "domain": 2.0 + knobs.replay_ratio + objective}
    return Score(objective=float(objective), losses=losses, violation=violation)


def inside(knobs, space=SPACE):
    return (
        space.peak_lr[0] * 0.999 <= knobs.peak_lr <= space.peak_lr[1] * 1.001
        and space.replay_ratio[0] <= knobs.replay_ratio <= space.replay_ratio[1]
        and space.total_steps[0] <= knobs.total_steps <= space.total_steps[1]
        and space.decay_share[0] <= knobs.decay_share <= space.decay_share[1]
        and knobs.start in space.starts
    )


def test_known_optimum_is_found(tmp_path):
    found = search(bowl, SPACE, storage=tmp_path / "study.journal", trials=15).best.knobs
    # the polish stops within 1e-3 in ln(rate), replay and decay, or when 1e-5 nats are left to gain
    assert found.peak_lr == pytest.approx(BEST.peak_lr, rel=0.05)
    assert found.replay_ratio == pytest.approx(BEST.replay_ratio, abs=0.01)
    assert found.decay_share == pytest.approx(BEST.decay_share, abs=0.02)
    assert (found.total_steps, found.start) == (100, "stable")


@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_constraint_is_kept(tmp_path, limit):
    """At least `limit` replay: the best is the bowl's own, or on the limit."""
    found = search(
        lambda knobs: bowl(knobs, violation=limit - knobs.replay_ratio),
        SPACE,
        storage=tmp_path / "study.journal",
        trials=10,
    )
    assert found.best.score.violation <= 0
    assert found.best.knobs.replay_ratio == pytest.approx(max(limit, BEST.replay_ratio), abs=0.01)


def test_everything_looked_at_lies_in_the_space(tmp_path):
    found = search(bowl, SPACE, storage=tmp_path / "study.journal", trials=8)
    assert all(inside(candidate.knobs) for candidate in found.evaluated)
    assert found.best == min(found.evaluated, key=lambda e: e.score.objective)


def test_same_seed_same_result(tmp_path):
    first, again, other = (
        search(bowl, SPACE, storage=tmp_path / "study.journal", trials=5, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert [e.knobs for e in first.evaluated] != [e.knobs for e in other.evaluated]


def test_nothing_feasible_says_how_far_it_was(tmp_path):
    with pytest.raises(InfeasiblePlanError, match=r"got none among \d+ candidates, the nearest breaks them by 0\.1 "):
        search(
            lambda knobs: bowl(knobs, violation=0.7 - knobs.replay_ratio),
            SPACE,
            storage=tmp_path / "study.journal",
            trials=5,
        )


def test_journal_is_a_study_that_knows_its_constraints(tmp_path):
    """The study's own best trial is feasible, also when a better one is not."""
    found = search(
        lambda knobs: bowl(knobs, violation=0.4 - knobs.replay_ratio),
        SPACE,
        storage=tmp_path / "study.journal",
        trials=12,
    )
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    study = optuna.load_study(study_name="plan", storage=optuna.storages.JournalStorage(backend))
    assert len(study.trials) == 20 + 12 + 1
    assert all(trial.constraints for trial in study.trials)
    assert study.best_trial.params["replay_ratio"] >= 0.4
    assert study.best_value == pytest.approx(found.best.score.objective)


def test_search_replaces_a_half_written_journal(tmp_path):
    path = tmp_path / "study.journal"
    path.write_text('{"op_code": 0, "wor')
    first = search(bowl, SPACE, storage=path, trials=3)
    assert search(bowl, SPACE, storage=tmp_path / "other", trials=3) == first


def test_grid_covers_the_corners():
    cells = grid(SPACE)
    assert all(inside(knobs) for knobs in cells)
    assert len(set(map(astuple, cells))) == len(cells)
    assert {knobs.total_steps for knobs in cells} == {50, 100}
    assert {knobs.start for knobs in cells} == {"stable", "annealed"}
    for name in ("peak_lr", "replay_ratio", "decay_share"):
        values = [getattr(knobs, name) for knobs in cells]
        assert (min(values), max(values)) == pytest.approx(getattr(SPACE, name))
    near_zero = sorted({knobs.replay_ratio for knobs in cells})
    assert near_zero[1] < 0.05 * SPACE.replay_ratio[1]  # forgetting is steepest there


def test_grid_of_a_narrow_space():
    narrow = Space(
        peak_lr=(1e-3, 1e-3), replay_ratio=(0.2, 0.2), total_steps=(9, 9), decay_share=(0.3, 0.4), starts=("only",)
    )
    for knobs in grid(narrow):
        assert astuple(knobs) == (pytest.approx(1e-3), 0.2, 9, 0.3, "only")


@pytest.mark.parametrize("replay", [0.0, 0.3, 0.6])
def test_polish_never_makes_it_worse_nor_leaves_the_space(replay):
    knobs = Knobs(peak_lr=3e-3, replay_ratio=replay, total_steps=60, decay_share=0.8, start="annealed")
    start = Evaluated(knobs=knobs, score=bowl(knobs))
    polished = polish(bowl, SPACE, start)
    assert inside(polished.knobs)
    assert polished.score.objective < start.score.objective
    assert (polished.knobs.total_steps, polished.knobs.start) == (60, "annealed")


def test_pareto_front_has_no_beaten_and_no_forbidden_point():
    def candidate(general, domain, violation=0.0):
        score = Score(objective=0.0, losses={"general": general, "domain": domain}, violation=violation)
        return Evaluated(knobs=BEST, score=score)

    points = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.0), (4.0, 1.0), (1.5, 5.0), (0.1, 0.1, 0.5)]
    result = SearchResult(best=candidate(1, 1), evaluated=tuple(candidate(*point) for point in points))
    front = result.pareto("general", "domain")
    assert [tuple(e.score.losses.values()) for e in front] == [(1.0, 5.0), (2.0, 3.0), (4.0, 1.0)]
