"""Scores of predicted curves: metrics by hand, which points and curves count, and the command line's JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fit_examples import CELLS, GENERAL, LONG, PEAK, blank_campaign, blank_pretraining, measured

from cptplan.curves import CurveRecord, LossCurve, write_curve
from cptplan.errors import ConfigError, CurveError
from cptplan.files import read_json
from cptplan.fitting.fitted import Prediction
from cptplan.fitting.scoring import Metrics, mean_of, score_curve, score_fit, warmup_steps
from cptplan.fitting.select import select_law
from cptplan.fitting.store import write_fit
from cptplan.laws.cpt import PUBLISHED, CptLaw
from cptplan.laws.history import history_of
from cptplan.laws.pretraining import AnnealingLaw

NAMES = ("mape", "rmse", "worst", "r2", "coverage90", "end_error")


@dataclass(frozen=True)
class Flat:
    """A law that predicts 3.0 for everything, give or take 0.25 for a measured value."""

    set_name: str = "general"
    law: object = None
    support: object = field(default_factory=lambda: SimpleNamespace(check_batch=lambda *_: None))
    asked: list = field(default_factory=list)

    def predict(self, history, steps, *, measured):
        assert measured  # the interval is that of what was measured
        self.asked.append(steps.tolist())
        mean = np.full(len(steps), 3.0)
        return Prediction(mean=mean, low=mean - 0.25, high=mean + 0.25, level=0.9)


def curve(losses, steps=None, name="run", phase="cpt", warmup_steps=0, **record) -> LossCurve:
    steps = np.arange(len(losses)) * 10 if steps is None else np.array(steps)
    lr = {"kind": "constant", "peak_lr": 1e-3, "total_steps": 100, "warmup_steps": warmup_steps}
    made = CurveRecord.parse({"phase": phase, "lr": lr, **record}, "test")
    return LossCurve(name=name, record=made, steps=steps, losses={"general": np.array(losses, dtype=float)})


def score(measured: LossCurve, *others: LossCurve, law: Flat | None = None) -> Metrics:
    return score_curve(law or Flat(), measured, {c.name: c for c in (measured, *others)})


def test_metrics_by_hand() -> None:
    found = score(curve([4.0, 3.0, 2.5, 3.2]))
    # errors -1, 0, 0.5, -0.2; relative 1/4, 0, 1/5, 1/16; squares sum to 1.29; about the mean 3.175: 1.1875
    assert found.mape == pytest.approx((0.25 + 0.2 + 0.0625) / 4)
    assert found.rmse == pytest.approx(np.sqrt(1.29 / 4))
    assert found.worst == pytest.approx(0.25)
    assert found.r2 == pytest.approx(1 - 1.29 / 1.1675)
    assert found.coverage90 == 0.5
    assert found.end_error == pytest.approx(0.0625)


def test_exact_prediction_has_no_error_and_r2_of_a_flat_curve_is_not_known() -> None:
    found = score(curve([3.0, 3.0]))
    assert asdict(found) == {"mape": 0, "rmse": 0, "worst": 0, "r2": None, "coverage90": 1, "end_error": 0}


def test_edge_of_the_interval_is_inside() -> None:
    assert score(curve([3.25, 2.75, 3.26, 2.74])).coverage90 == 0.5


def test_points_without_a_value_do_not_count() -> None:
    assert score(curve([4.0, np.nan, 3.0, np.nan])) == score(curve([4.0, 3.0]))


def test_every_point_of_a_cpt_run_counts_from_the_first() -> None:
    law, base = Flat(), curve([3.0], steps=[100], name="base", phase="pretrain")
    score(curve([4.0, 3.5, 3.0], steps=[0, 1, 50], warmup_steps=20, parent="base"), base, law=law)
    assert law.asked == [[0, 1, 50]]


def test_warmup_of_pretraining_does_not_count() -> None:
    law = Flat()
    base = curve([9.0, 8.0, 7.0, 6.0, 5.0], steps=[0, 10, 20, 21, 100], phase="pretrain", warmup_steps=20, name="base")
    score(base, law=law)
    assert law.asked == [[21, 100]]
    assert warmup_steps(history_of(base, {"base": base})) == 20
    # a pre-training that goes on from another has no warm-up of its own
    more = curve([5.0, 4.0], steps=[5, 50], phase="pretrain", warmup_steps=20, name="more", parent="base")
    score(more, base, law=law)
    assert law.asked[1] == [5, 50]


def test_curve_within_its_warmup_is_refused() -> None:
    early = curve([9.0, 8.0], steps=[0, 10], phase="pretrain", warmup_steps=20, name="early")
    with pytest.raises(
        CurveError, match="a curve must have a point of loss_general after its warm-up; got none in early"
    ):
        score(early)


def test_run_of_another_start_or_batch_size_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="pre-training must be known to a law that was fitted with it; got none for run"
    ):
        score(curve([3.0]), law=Flat(law=GENERAL))

    def another(_history, name):
        raise ConfigError(f"batch_tokens must be 1; got 2 in {name}.", hint="x")

    with pytest.raises(ConfigError, match="batch_tokens must be 1; got 2 in run"):
        score(curve([3.0]), law=Flat(support=SimpleNamespace(check_batch=another)))


def metrics(*values: float | None) -> Metrics:
    return Metrics(**dict(zip(NAMES, values, strict=True)))


def test_mean_is_over_curves_and_worst_is_the_largest() -> None:
    found = mean_of([metrics(0.01, 0.03, 0.05, 0.9, 1.0, 0.02), metrics(0.03, 0.05, 0.25, 0.5, 0.5, 0.0)])
    assert astuple_of(found) == pytest.approx((0.02, 0.04, 0.25, 0.7, 0.75, 0.01))


def astuple_of(found: Metrics) -> tuple:
    return tuple(getattr(found, name) for name in NAMES)


def test_mean_of_r2_is_over_the_curves_that_have_one() -> None:
    one, none = metrics(0.0, 0.0, 0.0, 0.5, 1.0, 0.0), metrics(0.0, 0.0, 0.0, None, 1.0, 0.0)
    assert mean_of([one, none]).r2 == 0.5
    assert mean_of([none]).r2 is None


# ---- files


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> tuple[Path, Path]:
    """A fit of general and domain loss to six pilots, and a directory with three more runs, one without domain loss."""
    root = tmp_path_factory.mktemp("scores")
    cells = [*CELLS, LONG, replace(LONG, peak_lr=8e-4), replace(LONG, replay=0.4)]
    laws = {side: CptLaw(side, PEAK, PUBLISHED) for side in ("general", "domain")}
    curves = measured(blank_campaign(cells), laws, 0.002)
    curves["run-8"] = replace(curves["run-8"], losses={"general": curves["run-8"].losses["general"]})
    for name, made in curves.items():
        write_curve(root / "curves", replace(made, name=name))
    seen = {name: made for name, made in curves.items() if name not in ("run-6", "run-7", "run-8")}
    selections = {side: select_law(seen, side, side, law="cpt-published") for side in laws}
    write_fit(root / "fit", "abc", selections, {})
    return root / "fit", root / "curves"


def test_named_curves_are_scored_and_their_parents_are_not(fitted) -> None:
    found = score_fit(*fitted, ["run-6", "run-[78]"])
    assert list(found) == ["general", "domain"]
    assert list(found["general"]) == ["mean", "run-6", "run-7", "run-8"]
    assert list(found["domain"]) == ["mean", "run-6", "run-7"]
    for rows in found.values():
        assert all(set(row) == set(NAMES) for row in rows.values())
        single = [row for name, row in rows.items() if name != "mean"]
        assert rows["mean"]["mape"] == pytest.approx(np.mean([row["mape"] for row in single]))
        assert rows["mean"]["worst"] == max(row["worst"] for row in single)
        # the truth is the law that was fitted: 0.2 % of noise and no more than 1 % of error
        assert rows["mean"]["mape"] < 0.01
        assert rows["mean"]["coverage90"] > 0.5
    assert score_fit(*fitted, ["base"])["general"].keys() == {"mean", "base"}


def test_curves_without_a_fitted_set_are_refused(fitted, tmp_path) -> None:
    other = blank_pretraining(["constant"])["constant"]
    write_curve(tmp_path, replace(other, losses={"books": np.ones(len(other.steps))}))
    with pytest.raises(CurveError, match="test curves must have a set that was fitted; got none in"):
        score_fit(fitted[0], tmp_path, ["constant"])


@pytest.fixture
def pretraining(tmp_path) -> Path:
    """Five schedules of one pre-training, one of them longer, and one with a single point."""
    names = ["constant", "cosine", "two-stage", "late", "unseen"]
    curves = measured(blank_pretraining(names), AnnealingLaw(PEAK, 100.0), 0.002)
    last = curves["late"]
    curves["end-only"] = replace(
        last, name="end-only", steps=last.steps[-1:], losses={"general": last.losses["general"][-1:]}
    )
    for made in curves.values():
        write_curve(tmp_path / "curves", made)
    return tmp_path / "curves"


def test_command_line_fits_and_scores_as_json(cptplan, pretraining, tmp_path) -> None:
    out = tmp_path / "out"
    arguments = ("--train", "c*,two-stage", "--test", "unseen,late", "--law", "annealing", "--json", "-o", out)
    said = cptplan("fit", pretraining, *arguments)
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["law"] == "annealing"
    assert found["seconds"] > 0
    assert list(found["sets"]) == ["general"]
    general = found["sets"]["general"]
    assert general["form"] == "annealing"
    assert list(general["test"]) == ["mean", "late", "unseen"]
    for row in general["test"].values():
        assert set(row) == set(NAMES)
        assert all(isinstance(value, float) for value in row.values())
    assert general["test"]["mean"]["mape"] < 0.005
    assert general["test"]["mean"]["worst"] == max(general["test"][name]["worst"] for name in ("late", "unseen"))
    # only the curves named were fitted, and the fit is where it says
    assert {held[0] for held in general["held_out"]} == {"constant", "cosine", "two-stage"}
    assert read_json(Path(found["fit"]) / "law.json")["laws"]["general"]["form"] == "annealing"
    # found again without a fit: another seed is another fit
    assert json.loads(cptplan("fit", pretraining, *arguments).out)["fit"] == found["fit"]
    assert json.loads(cptplan("fit", pretraining, *arguments, "--seed", 1).out)["fit"] != found["fit"]


def test_command_line_shows_the_scores(cptplan, pretraining, tmp_path) -> None:
    said = cptplan("fit", pretraining, "--test", "unseen", "--law", "power", "-o", tmp_path / "out")
    assert (said.code, said.out) == (0, "")
    assert "Curves that the fit has not seen" in said.err
    assert "general: mean" in said.err
    assert "note: all: power: the only law asked for" in said.err
    assert said.err.splitlines()[-1].startswith("next: cptplan predict --fit ")


def test_command_line_scores_a_curve_of_one_point(cptplan, pretraining, tmp_path) -> None:
    arguments = ("fit", pretraining, "--train", "c*,two-stage", "--test", "end-only", "--law", "power", "-o", tmp_path)
    said = cptplan(*arguments, "--json")
    assert said.code == 0, said.err
    row = json.loads(said.out)["sets"]["general"]["test"]["end-only"]
    assert row["r2"] is None
    assert row["mape"] == row["worst"] == row["end_error"]
    assert " - " in cptplan(*arguments).err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--train", "c*", "--test", "cosine"), "--train and --test must not share a curve; got cosine in both"),
        (("--test", "*"), "--test must leave curves to fit to; got all of"),
        (("--test", "unsen"), "name must be a curve, or a pattern that matches one; got 'unsen'"),
        (("--law", "anealing"), "law must be auto or one of .*; got 'anealing'"),
        (("--law", "cpt"), "a fit must have at least 3 CPT curves with loss_general; got 0"),
        (("--train", "end-only"), "the multi_power_late law must have at least 10 points of loss_general; got 1"),
    ],
)
def test_command_line_refuses_in_one_line(cptplan, pretraining, tmp_path, arguments, says) -> None:
    cptplan.assert_refused("fit", pretraining, *arguments, "-o", tmp_path / "out", says=says)
    assert not list((tmp_path / "out").rglob("law.json"))
