"""Rules of thumb: as runs, and which is nearest."""

from __future__ import annotations

import pytest

from cptplan.planning.knobs import Knobs
from cptplan.planning.recipes import COMMON, RECIPES, nearest_recipe


def test_common_recipe_is_a_tenth_of_the_rate_and_thirty_percent():
    knobs = COMMON.knobs(3e-3, 100, "annealed")
    assert (knobs.peak_lr, knobs.replay_ratio, knobs.total_steps) == (pytest.approx(3e-4), 0.3, 100)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe_is_nearest_to_itself(recipe):
    assert nearest_recipe(recipe.knobs(3e-3, 100, "annealed"), 3e-3) is recipe


@pytest.mark.parametrize(
    ("peak_lr", "replay", "name"),
    [(2.5e-3, 0.0, "re-warm, weak shift"), (3e-3, 0.5, "re-warm, strong shift"), (2e-4, 0.1, "rule of thumb")],
)
def test_nearest(peak_lr, replay, name):
    knobs = Knobs(peak_lr=peak_lr, replay_ratio=replay, total_steps=10, decay_share=0.2, start="a")
    assert nearest_recipe(knobs, 3e-3).name == name


def test_every_recipe_says_where_it_is_from():
    assert all(recipe.source for recipe in RECIPES)
