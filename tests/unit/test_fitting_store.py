"""Fits on disk: what is read is what was written, and what does not belong together is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fit_examples import DOMAIN, GENERAL, PEAK, blank_campaign, blank_pretraining, measured

from cptplan.errors import ConfigError, CptplanError
from cptplan.files import read_json, write_json
from cptplan.fitting.select import Selection, select_law
from cptplan.fitting.store import read_fit, write_fit
from cptplan.fitting.verdict import Verdict
from cptplan.laws.history import observations
from cptplan.laws.pretraining import AnnealingLaw

LAWS = {"general": GENERAL, "domain": DOMAIN}
CURVES = measured(blank_campaign(), LAWS, 0.003)


@pytest.fixture(scope="module")
def selections() -> dict[str, Selection]:
    return {
        "general": select_law(CURVES, "general", "general", law="cpt-published"),
        "domain": select_law(CURVES, "domain", "domain", law="annealing"),
    }


def test_fit_reads_back_the_same(tmp_path: Path, selections: dict[str, Selection]) -> None:
    write_fit(tmp_path, "abc", selections, {})
    loaded = read_fit(tmp_path)
    assert list(loaded) == ["general", "domain"]
    points = observations(CURVES, "general")[-1]
    for name, law in loaded.items():
        before = selections[name].fitted
        for field in (
            "set_name",
            "held_out",
            "in_sample_error",
            "transient_error",
            "settled_step",
            "support",
            "noise",
            "reach",
        ):
            assert getattr(law, field) == getattr(before, field), field
        assert law.law.spec() == before.law.spec()
        assert (law.best.converged, law.best.scale) == (before.best.converged, before.best.scale)
        for measured_too in (False, True):
            one, two = (fit.predict(points.history, points.steps, measured=measured_too) for fit in (before, law))
            np.testing.assert_allclose([two.mean, two.low, two.high], [one.mean, one.low, one.high], rtol=1e-12)


def test_average_of_forms_reads_back_the_same(tmp_path: Path) -> None:
    selection = select_law(CURVES, "domain", "domain")
    assert selection.fitted.rivals
    write_fit(tmp_path, "abc", {"domain": selection}, {})
    loaded = read_fit(tmp_path)["domain"]
    assert [(f.law.name, f.weight) for f in loaded.forms] == [
        (f.law.name, pytest.approx(f.weight)) for f in selection.fitted.forms
    ]
    points = observations(CURVES, "domain")[-1]
    one, two = (fit.predict(points.history, points.steps) for fit in (selection.fitted, loaded))
    np.testing.assert_allclose([two.mean, two.low, two.high], [one.mean, one.low, one.high], rtol=1e-12)


def test_fit_of_one_form_from_before_averages_is_read(tmp_path: Path, selections: dict[str, Selection]) -> None:
    write_fit(tmp_path, "abc", selections, {})
    stored = read_json(tmp_path / "law.json")
    for law in stored["laws"].values():
        del law["weight"], law["rivals"], law["reach"]
    write_json(tmp_path / "law.json", stored)
    assert [len(law.forms) for law in read_fit(tmp_path).values()] == [1, 1]


def test_files_say_what_was_fitted_why_and_how_well(tmp_path: Path, selections: dict[str, Selection]) -> None:
    write_fit(tmp_path, "abc", selections, {})
    stored = read_json(tmp_path / "law.json")
    assert (stored["schema_version"], stored["curves_hash"]) == (1, "abc")
    law = stored["laws"]["general"]
    assert set(law["parameters"]) == {p.name for p in selections["general"].fitted.law.parameters}
    assert set(law["coefficients"]) == {"L0", "A", "C1", "C2", "B"}
    assert law["reason"] == selections["general"].reason
    assert Verdict.parse(law["verdict"], "law.json") == selections["general"].verdict
    report = read_json(tmp_path / "report.json")
    for name, selection in selections.items():
        assert [c["form"] for c in report["sets"][name]] == [c.form for c in selection.candidates]
        assert report["sets"][name][0]["discrepancy"] == selection.candidates[0].discrepancy
    assert report["out_of_domain"] == {}
    assert not list(tmp_path.glob("*.tmp"))


def test_fit_of_one_curve_is_stored_too(tmp_path: Path) -> None:
    curves = measured(blank_pretraining(["cosine"]), AnnealingLaw(PEAK), 0.002)
    write_fit(tmp_path, "abc", {"general": select_law(curves, "general", "general", law="fsl")}, {})
    loaded = read_fit(tmp_path)["general"]
    assert loaded.held_out == ()
    assert loaded.law.name == "fsl"
    assert loaded.support.num_params is None


def without_draws(directory: Path) -> None:
    (directory / "draws.npz").unlink()


def cut_draws(directory: Path) -> None:
    content = (directory / "draws.npz").read_bytes()
    (directory / "draws.npz").write_bytes(content[: len(content) // 2])


def spoil_draws(directory: Path) -> None:
    content = bytearray((directory / "draws.npz").read_bytes())
    content[60:200] = bytes(140)
    (directory / "draws.npz").write_bytes(content)


def draws_of_another(directory: Path) -> None:
    np.savez(directory / "draws.npz", **{"general.values": np.zeros((2, 5)), "general.coefficients": np.zeros((2, 5))})


@pytest.mark.parametrize("spoil", [without_draws, cut_draws, spoil_draws, draws_of_another])
def test_draws_that_do_not_belong_are_refused(tmp_path: Path, selections: dict[str, Selection], spoil) -> None:
    write_fit(tmp_path, "abc", selections, {})
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=r"draws\.npz must hold the left-out fits of law\.json; got .* in") as error:
        read_fit(tmp_path)
    assert error.value.hint == "run cptplan fit again"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda law: law["laws"]["general"].pop("noise"), "noise"),
        (lambda law: law["laws"]["general"]["law"].update(law="unknown"), "law must be one of .*; got 'unknown'"),
        (lambda law: law["laws"]["general"]["law"].pop("side"), "law must be whole"),
        (lambda law: law.update(schema_version=2), "schema_version"),
        (lambda law: law["laws"]["general"]["parameters"].pop("alpha"), "alpha"),
    ],
    ids=["field", "unknown law", "law's option", "version", "parameter"],
)
def test_law_file_that_was_changed_is_refused(tmp_path: Path, selections, change, message: str) -> None:
    write_fit(tmp_path, "abc", selections, {})
    content = read_json(tmp_path / "law.json")
    change(content)
    write_json(tmp_path / "law.json", content)
    with pytest.raises(CptplanError, match=message):
        read_fit(tmp_path)


def test_directory_without_a_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CptplanError, match=r"law\.json"):
        read_fit(tmp_path)
