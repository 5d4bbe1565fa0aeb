"""The search: known optima, constraints, the same answer each time, a study that others can open."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import optuna
import pytest

from cptplan.planning.knobs import Knobs, Space
from cptplan.planning.search import Evaluated, Score, grid, pareto, polish, quick_search, search
from cptplan.planning.study import open_storage

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
    return Score(objective=float(objective), losses=losses, violations={"limit": float(violation)})


def inside(knobs, space=SPACE):
    return (
        space.peak_lr[0] * 0.999 <= knobs.peak_lr <= space.peak_lr[1] * 1.001
        and space.replay_ratio[0] <= knobs.replay_ratio <= space.replay_ratio[1]
        and space.total_steps[0] <= knobs.total_steps <= space.total_steps[1]
        and space.decay_share[0] <= knobs.decay_share <= space.decay_share[1]
        and knobs.start in space.starts
    )


def test_known_optimum_is_found(tmp_path):
    found = search(bowl, SPACE, storage=str(tmp_path / "study.journal"), trials=15).best.knobs
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
        storage=str(tmp_path / "study.journal"),
        trials=10,
    )
    assert found.best.score.violation <= 0
    assert found.best.knobs.replay_ratio == pytest.approx(max(limit, BEST.replay_ratio), abs=0.01)


def test_everything_looked_at_lies_in_the_space(tmp_path):
    found = search(bowl, SPACE, storage=str(tmp_path / "study.journal"), trials=8)
    assert all(inside(candidate.knobs) for candidate in found.evaluated)
    assert found.best == min(found.evaluated, key=lambda e: e.score.objective)
    assert found.feasible


def test_same_seed_same_result(tmp_path):
    first, again, other = (
        search(bowl, SPACE, storage=str(tmp_path / "study.journal"), trials=5, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert [e.knobs for e in first.evaluated] != [e.knobs for e in other.evaluated]


def test_nothing_feasible_gives_the_least_broken(tmp_path):
    found = search(
        lambda knobs: bowl(knobs, violation=0.7 - knobs.replay_ratio),
        SPACE,
        storage=str(tmp_path / "study.journal"),
        trials=5,
    )
    assert not found.feasible
    assert found.best.score.violation == pytest.approx(0.1)


def test_journal_is_a_study_that_knows_its_constraints(tmp_path):
    """The study's own best trial is feasible, also when a better one is not."""
    found = search(
        lambda knobs: bowl(knobs, violation=0.4 - knobs.replay_ratio),
        SPACE,
        storage=str(tmp_path / "study.journal"),
        trials=12,
    )
    study = optuna.load_study(study_name="plan", storage=open_storage(str(tmp_path / "study.journal")))
    assert len(study.trials) == 20 + 12 + 1
    assert all(trial.constraints for trial in study.trials)
    assert study.best_trial.params["replay_ratio"] >= 0.4
    assert study.best_value == pytest.approx(found.best.score.objective)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_every_sampler_stays_in_the_space_and_repeats_itself(tmp_path, sampler):
    first, again = (
        search(bowl, SPACE, storage=str(tmp_path / "study.journal"), trials=9, sampler=sampler) for _ in range(2)
    )
    assert first == again
    assert all(inside(candidate.knobs) for candidate in first.evaluated)


def test_schedule_warmup_and_curriculum_are_searched(tmp_path):
    """The bowl likes a cosine, a warm-up of 12 and a ratio that ends at 0.5."""
    space = replace(SPACE, kinds=("wsd", "cosine"), warmup_steps=(4, 12), curriculum=True)

    def score(knobs):
        plain = bowl(replace(knobs, decay_share=BEST.decay_share))
        end = knobs.replay_ratio if knobs.end_replay is None else knobs.end_replay
        extra = 0.02 * (knobs.kind != "cosine") + 0.01 * (12 - knobs.warmup_steps) + (end - 0.5) ** 2
        return replace(plain, objective=plain.objective + extra)

    found = search(score, space, storage=str(tmp_path / "study.journal"), trials=60).best.knobs
    assert (found.kind, found.warmup_steps) == ("cosine", 12)
    assert found.end_replay == pytest.approx(0.5, abs=0.05)
    assert found.replay_ratio == pytest.approx(BEST.replay_ratio, abs=0.05)


def test_screening_finds_what_the_rough_score_does_not_know(tmp_path):
    """Only draws tell that rates above 5e-4 break the limit; the rough score thinks all is well."""

    def score(knobs):
        return bowl(knobs, violation=np.log(knobs.peak_lr / 5e-4))

    found = search(score, SPACE, rough=bowl, storage=str(tmp_path / "study.journal"), trials=40)
    assert found.feasible
    assert found.best.knobs.peak_lr == pytest.approx(5e-4, rel=0.02)
    assert len(found.evaluated) < 300  # of 800 cells of the grid most were never asked for their draws


def test_quick_search_comes_near_the_full_one(tmp_path):
    full = search(bowl, SPACE, storage=str(tmp_path / "study.journal"), trials=20).best
    quick = quick_search(bowl, SPACE).best
    assert quick.score.objective == pytest.approx(full.score.objective, abs=2e-3)


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
        assert astuple(knobs)[:5] == (pytest.approx(1e-3), 0.2, 9, 0.3, "only")


@pytest.mark.parametrize("replay", [0.0, 0.3, 0.6])
def test_polish_never_makes_it_worse_nor_leaves_the_space(replay):
    knobs = Knobs(peak_lr=3e-3, replay_ratio=replay, total_steps=60, decay_share=0.8, start="annealed")
    start = Evaluated(knobs=knobs, score=bowl(knobs))
    polished = polish(bowl, SPACE, start)
    assert inside(polished.knobs)
    assert polished.score.objective < start.score.objective
    assert (polished.knobs.total_steps, polished.knobs.start) == (60, "annealed")


def test_pareto_front_has_no_beaten_point():
    points = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.0), (4.0, 1.0), (1.5, 5.0)]
    numbers = {replace(BEST, total_steps=100 + n): point for n, point in enumerate(points)}
    assert [numbers[knobs] for knobs in pareto(numbers)] == [(1.0, 5.0), (2.0, 3.0), (4.0, 1.0)]
    assert pareto({}) == ()


def test_pareto_front_of_three_numbers_agrees_with_the_slow_rule():
    rng = np.random.default_rng(4)
    numbers = {replace(BEST, total_steps=n): tuple(rng.uniform(size=3)) for n in range(60)}
    table = np.array(list(numbers.values()))
    slow = {
        knobs
        for knobs, point in numbers.items()
        if not any(np.all(other <= point) and np.any(other < point) for other in table)
    }
    assert set(pareto(numbers)) == slow
