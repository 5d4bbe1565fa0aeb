"""Reading the published parameter sets, and what a known law refuses."""

from __future__ import annotations

import numpy as np
import pytest

from cptplan.errors import ConfigError
from cptplan.laws.history import RunHistory
from cptplan.simulation.published import LossParameters, PublishedSet, find_published, read_published


def run(replay: float = 0.0, *, known: bool = True, steps: int = 2000) -> RunHistory:
    before = np.full(1000, 2e-4) if known else np.zeros(0)
    return RunHistory(
        phase="cpt",
        pretrain_lr=before,
        pretrain_known=known,
        lr=np.full(steps, 2e-4),
        replay_ratio=np.full(steps, replay),
    )


def shift(source: PublishedSet, side: str, replay_ratio: float, **options) -> float:
    """Loss at the end less that of the same run on general data alone, where nothing shifts."""
    law, end = source.laws(**options)[side], np.array([2000])
    return float(law.mean(run(replay_ratio), end)[0] - law.mean(run(1.0), end)[0])


def test_all_sets_are_read_with_their_source():
    sets = read_published()
    assert {"knowledge-pile", "pile-of-law", "knowledge-pile-sizes", "llama-3.2-1b-pile-of-law"} <= set(sets)
    for name, source in sets.items():
        assert source.name == name
        assert source.figure
        assert source.general.B > 0 > source.domain.B  # forgetting and learning


@pytest.mark.parametrize("form", ["exponential", "logarithmic"])
def test_replay_weakens_forgetting_faster_than_learning(form):
    source, ratios = find_published("knowledge-pile"), [0.0, 0.01, 0.1, 0.3, 0.6, 1.0]
    forgetting = np.array([shift(source, "general", r, replay=form) for r in ratios])
    learning = np.array([shift(source, "domain", r, replay=form) for r in ratios])
    assert np.all(np.diff(forgetting) < 0)
    assert np.all(np.diff(learning) > 0)
    assert forgetting[3] / forgetting[0] < 0.5 < 0.9 < learning[3] / learning[0]


def test_first_percent_of_replay_counts_only_in_the_logarithmic_form():
    source = find_published("knowledge-pile")
    kept = {
        form: shift(source, "general", 0.01, replay=form) / shift(source, "general", 0.0, replay=form)
        for form in ("exponential", "logarithmic")
    }
    assert kept["exponential"] > 0.95
    assert kept["logarithmic"] < 0.5  # arXiv:2403.08763: 1 % replay removes 53 to 67 % of forgetting


def test_set_of_one_ratio_refuses_another():
    law = find_published("knowledge-pile-replay-33").laws()["general"]
    assert law.mean(run(0.33), np.array([0, 2000])).shape == (2,)
    with pytest.raises(ConfigError, match=r"replay_ratio must be 0\.33, .*; got 0\.5\."):
        law.mean(run(0.5), np.array([0]))


def test_open_set_needs_no_pretraining_and_has_none():
    source = find_published("llama-3.2-1b-pile-of-law")
    assert source.laws()["domain"].mean(run(known=False), np.array([0]))[0] > 2.1
    with pytest.raises(ConfigError, match="pre-training must be known to be simulated"):
        source.pretrain_record()


@pytest.mark.parametrize("potential", [0.0, 0.3, 1.0])
def test_pretraining_ends_at_its_loss_potential(potential):
    record = find_published("knowledge-pile").pretrain_record(potential)
    lr = record.lr.lr()
    assert (len(lr), lr[0], lr[-1]) == (40_000, 2e-4, pytest.approx(potential * 2e-4))


def test_set_of_several_sizes_wants_one_and_the_others_none():
    with pytest.raises(ConfigError, match=r"num_params must be given for knowledge-pile-sizes; got none\."):
        find_published("knowledge-pile-sizes").laws()
    with pytest.raises(ConfigError, match=r"num_params must be left out for pile-of-law; got 5\."):
        find_published("pile-of-law").laws(num_params=5)


def test_parameters_at_a_size_follow_powers_of_millions():
    printed = LossParameters(
        L0=1.0, A=1.0, alpha=0.5, B=1.0, E=1.0, beta=1.0, C1=0.1, C2=0.2, F=3.0, g1=1.0, g2=2.0, g3=1.0
    )
    found = printed.at_size(2_000_000)
    assert (found.L0, found.C1, found.C2, found.F) == (2.5, 0.2, 0.8, None)


def test_unknown_set_is_refused_with_the_closest():
    with pytest.raises(ConfigError, match=r"law must be a published set; got 'knowlege-pile'\. hint: did you mean"):
        find_published("knowlege-pile")


def test_set_without_a_peak_rate_is_refused():
    values = find_published("fineweb-as-unknown").to_json()
    del values["cpt_peak_lr"]
    with pytest.raises(ConfigError, match="must have a peak rate"):
        PublishedSet.parse(values, "test")
