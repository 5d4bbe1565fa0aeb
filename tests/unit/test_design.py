"""The first pilots: a small set that separates rate, replay, schedule and start."""

from __future__ import annotations

import numpy as np
import pytest
from simple_laws import make_project

from cptplan.design import default_eval_tokens, design_pilots, pilot_specs, run_schedule


@pytest.mark.parametrize("num_runs", [6, 7, 8, 9, 13, 24])
def test_cells_separate_what_the_law_needs(tmp_path, num_runs):
    project = make_project(tmp_path, f"pilot.num_runs={num_runs}")
    cells = design_pilots(project)
    low, high = project.peak_lr_range
    assert len(cells) == num_runs
    assert any(c.replay_ratio == 0 and c.decay_share == 0 and c.peak_lr == pytest.approx(high) for c in cells)
    assert any(0 < cell.replay_ratio <= 0.05 for cell in cells)
    assert {cell.decay_share for cell in cells} == {0.0, 0.5}
    assert {cell.start.name for cell in cells} == {"stable", "annealed"}
    assert min(cell.peak_lr for cell in cells) == pytest.approx(low)
    assert max(cell.replay_ratio for cell in cells) == 0.6
    assert len({round(float(np.log(cell.peak_lr)), 2) for cell in cells}) >= 4
    assert all(low <= cell.peak_lr <= high * 1.001 and 0 <= cell.replay_ratio <= 0.6 for cell in cells)
    assert len({(c.peak_lr, c.replay_ratio, c.decay_share, c.start.name) for c in cells}) == num_runs


def test_more_pilots_keep_those_that_ran(tmp_path):
    few, many = (design_pilots(make_project(tmp_path, f"pilot.num_runs={number}")) for number in (6, 20))
    some = design_pilots(make_project(tmp_path, "pilot.num_runs=11"))
    assert many[:6] == few
    assert many[:11] == some


def test_same_project_same_pilots(tmp_path):
    first, again, other = (design_pilots(make_project(tmp_path, "pilot.num_runs=12", f"seed={s}")) for s in (0, 0, 1))
    assert first == again
    assert first[:8] == other[:8]
    assert first[8:] != other[8:]


def test_range_is_respected(tmp_path):
    project = make_project(tmp_path, "pilot.replay_range=[0.1, 0.3]", "pilot.peak_lr_range=[1e-4, 2e-4]")
    for cell in design_pilots(project):
        assert 0.1 <= cell.replay_ratio <= 0.3
        assert 1e-4 <= cell.peak_lr <= 2e-4


def test_one_start_serves_all(tmp_path):
    project = make_project(tmp_path, "model.starts=[{name: only, path: a}]")
    assert {cell.start.name for cell in design_pilots(project)} == {"only"}


def test_specs_differ_in_nothing_but_the_cell(tmp_path):
    project = make_project(tmp_path, "model.starts=[{name: a, path: a, parent: base, parent_step: 7}]")
    specs = pilot_specs(project, "data")
    assert [spec.name for spec in specs] == [f"pilot-0{number}" for number in range(1, 7)]
    for spec, cell in zip(specs, design_pilots(project), strict=True):
        assert float(spec.lr().max()) == cell.peak_lr
        assert set(spec.replay_ratios()) == {cell.replay_ratio}
        assert (spec.phase, spec.total_steps, spec.parent, spec.parent_step) == ("cpt", 8, "base", 7)
        assert {source.path for source in spec.sources} == {"data/general", "data/domain"}
        assert spec.steps_to_evaluate()[0] == 0
    same = {"name": "x", "schedule": specs[0].schedule, "mixture": specs[0].mixture}
    assert len({spec.model_copy(update=same).hash for spec in specs}) == 1
    assert len({spec.hash for spec in specs}) == 6


@pytest.mark.parametrize(
    ("total_steps", "warmup_steps", "decay_share", "kind", "decay_steps"),
    [
        (100, 10, 0.0, "constant", 0),
        (100, 10, 0.004, "constant", 0),
        (100, 10, 0.5, "wsd", 50),
        (100, 10, 1.0, "wsd", 90),
        (10, 10, 0.5, "constant", 0),
    ],
)
def test_schedule(total_steps, warmup_steps, decay_share, kind, decay_steps):
    schedule = run_schedule(peak_lr=1e-3, total_steps=total_steps, warmup_steps=warmup_steps, decay_share=decay_share)
    assert schedule.kind == kind
    lr = schedule.lr()
    assert lr.shape == (total_steps,)
    assert lr.max() == 1e-3
    assert (np.diff(lr[total_steps - decay_steps :]) < 0).all()
    if decay_steps:
        assert lr[total_steps - decay_steps - 1] == 1e-3


def test_evaluation_tokens_count_every_set_and_point(tmp_path):
    project = make_project(tmp_path)
    spec = pilot_specs(project, "data")[0]
    assert default_eval_tokens(project, 8) == len(spec.steps_to_evaluate()) * 512 * 2
