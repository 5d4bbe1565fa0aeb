"""The first pilots: a small set that separates rate, replay, schedule and start."""

from __future__ import annotations

import numpy as np
import pytest
from campaign_files import make_corpora
from simple_laws import make_project

from cptplan.pilots.design import default_eval_tokens, design_pilots, final_passes, pilot_specs, run_schedule


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


def test_every_start_has_a_pilot(tmp_path):
    four = "model.starts=[{name: a, path: a}, {name: b, path: b}, {name: c, path: c}, {name: d, path: d}]"
    cells = design_pilots(make_project(tmp_path, four, "pilot.num_runs=6"))
    assert {cell.start.name for cell in cells[:6]} >= {"a", "b", "d"}
    assert {cell.start.name for cell in design_pilots(make_project(tmp_path, four, "pilot.num_runs=8"))} == set("abcd")


def test_final_run_may_repeat_what_is_scarce_up_to_max_epochs(tmp_path):
    project = make_project(tmp_path, "budget.max_epochs=4", "pilot.replay_range=[0.1, 0.5]")
    corpora = make_corpora(general=4000, domain=3000)
    # general: 0.5 x 9,000 / 4,000 = 1.125 passes are as good as one; domain: 0.9 x 9,000 / 3,000
    assert final_passes(project, 9000, corpora) == pytest.approx({"domain": 2.7})
    assert final_passes(project, 90_000, corpora) == {"general": 4.0, "domain": 4.0}
    once = make_project(tmp_path, "pilot.replay_range=[0.1, 0.5]")
    assert final_passes(once, 90_000, corpora) == {}


def test_passes_of_several_domains_follow_their_weights(tmp_path):
    project = make_project(
        tmp_path, "data.domains=[{name: code, path: a, weight: 3}, {name: law, path: b}]", "budget.max_epochs=9"
    )
    assert final_passes(project, 8000, make_corpora(general=10**6, code=2000, law=2000)) == pytest.approx({"code": 3.0})


def test_pilots_repeat_a_cut_as_often_as_the_final_run(tmp_path):
    project = make_project(tmp_path, "pilot.total_steps=40", "budget.tokens=100000")
    plain, often = pilot_specs(project, "data"), pilot_specs(project, "data", {"domain": 3.0, "general": 2.0})
    assert all(source.max_tokens is None for spec in plain for source in spec.sources)
    passes = {}
    for spec in often:
        for source in spec.sources:
            if source.max_tokens is not None:
                share = spec.replay_ratios()[0] if source.role == "general" else 1.0 - spec.replay_ratios()[0]
                passes[spec.name, source.name] = share * spec.total_tokens / (source.max_tokens - 1)
                assert (source.max_tokens - 1) % spec.seq_len == 0
    assert list(passes) == [("pilot-03", "domain"), ("pilot-04", "domain"), ("pilot-06", "general")]
    # cuts are whole windows of 64 tokens: 1 % off in the domain's, 3 % in the smaller general one
    assert list(passes.values()) == pytest.approx([3.0, 3.0, 2.0], rel=0.03)
    assert "reads a cut of domain 3.0 times" in design_pilots(project, {"domain": 3.0})[2].purpose
