"""What bad curve directories are told: every case is written as files, read back, and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cptplan.curve_checks import check_curves, check_enough, check_same_batch
from cptplan.curves import LossCurve, read_curve_directory
from cptplan.errors import CurveError

STEPS = np.arange(0, 101, 10)
LOSSES = {"general": 3.0 + 0.1 * np.sqrt(STEPS / 100), "domain": 2.5 + np.exp(-STEPS / 30)}


def cosine(peak_lr: float = 1e-4, steps: int = 100) -> dict[str, Any]:
    return {"kind": "cosine", "peak_lr": peak_lr, "warmup_steps": 5, "total_steps": steps}


class Directory:
    """A curve directory that is sound until something is changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        pretrain = {"general": 5.0 - 2.0 * STEPS / 100, "domain": 6.0 - 2.5 * STEPS / 100}
        self.write("base", pretrain, phase="pretrain", parent=None, parent_step=None, replay_ratio=None)
        for number, (peak, replay, start) in enumerate([(1e-4, 0.0, 100), (3e-4, 0.3, 100), (1e-3, 0.1, 80)], start=1):
            losses = {name: loss + number * STEPS / 1e4 for name, loss in LOSSES.items()}
            if start < 100:
                losses = {"general": losses["general"] + 0.4, "domain": losses["domain"] + 0.5}
            self.write(f"pilot-{number}", losses, lr=cosine(peak), replay_ratio=replay, parent_step=start)

    def write(self, name: str, losses: dict[str, np.ndarray], steps: np.ndarray = STEPS, **record: Any) -> None:
        full = {"phase": "cpt", "lr": cosine(), "parent": "base", "parent_step": 100, "replay_ratio": 0.0, **record}
        (self.path / f"{name}.json").write_text(json.dumps(full))
        cells = [[str(step), *(f"{loss[row]:.12g}" for loss in losses.values())] for row, step in enumerate(steps)]
        rows = [["step", *(f"loss_{name}" for name in losses)], *cells]
        (self.path / f"{name}.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")

    def change(self, *names: str, **record: Any) -> None:
        for name in names or ("pilot-1", "pilot-2", "pilot-3"):
            path = self.path / f"{name}.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **record}))

    def read(self) -> dict[str, LossCurve]:
        return read_curve_directory(self.path)

    def codes(self, **options: Any) -> list[str]:
        return [warning.code for warning in check_curves(self.read(), where=self.path, **options)]

    def only_warning(self) -> Any:
        (warning,) = check_curves(self.read(), where=self.path)
        return warning

    def refusal(self, **options: Any) -> str:
        curves = self.read()
        with pytest.raises(CurveError) as caught:
            check_curves(curves, where=self.path, **options)
        assert "\n" not in str(caught.value)
        assert caught.value.hint
        return str(caught.value)


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


def changed(name: str, row: int | slice, value: float, by: dict[str, np.ndarray] = LOSSES) -> dict[str, np.ndarray]:
    losses = {key: loss.copy() for key, loss in by.items()}
    losses[name][row] = value
    return losses


def test_sound_directory_has_no_warning(directory: Directory) -> None:
    assert directory.codes() == []


def test_set_that_no_curve_has(directory: Directory) -> None:
    assert "curves must have loss_domian; got general, domain in" in directory.refusal(set_names=["domian"])


def test_two_batch_sizes_are_refused(directory: Directory) -> None:
    directory.change("pilot-1", batch_tokens=1024)
    directory.change("pilot-2", batch_tokens=2048)
    assert f"curves must have one batch_tokens; got [1024, 2048] in {directory.path}." in directory.refusal()


def test_batch_size_of_pretraining_may_differ_but_is_named(directory: Directory) -> None:
    directory.change(batch_tokens=1024)
    directory.change("base", batch_tokens=4096)
    warning = directory.only_warning()
    assert warning.code == "batch_tokens"
    assert "4096 (base), 1024 (pilot-1, pilot-2, pilot-3); the law counts time in steps" in warning.message
    assert warning.curves == ("base", "pilot-1", "pilot-2", "pilot-3")


def test_batch_sizes_of_pretraining_alone_are_refused(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    for name, batch in (("pilot-1", 1), ("pilot-2", 2), ("pilot-3", 2)):
        directory.change(name, phase="pretrain", parent=None, parent_step=None, batch_tokens=batch)
    with pytest.raises(CurveError, match=r"got \[1, 2\] in here"):
        check_same_batch(directory.read().values(), "here")


def test_two_tokenizers_are_refused(directory: Directory) -> None:
    directory.change("base", tokenizer="llama-3")
    directory.change("pilot-1", tokenizer="llama-3")
    directory.change("pilot-2", tokenizer="gpt2")  # pilot-3 does not say
    found = directory.refusal()
    assert "curves must have one tokenizer; got 'llama-3' (base), 'gpt2' (pilot-2) in" in found
    assert "bits per byte" in found


@pytest.mark.parametrize("tokenizers", [("gpt2", "gpt2", None), ("/runs/a/step-80", "/runs/b/step-100", "gpt2")])
def test_one_tokenizer_and_directories_of_checkpoints_pass(
    directory: Directory, tokenizers: tuple[str | None, ...]
) -> None:
    for number, tokenizer in enumerate(tokenizers, start=1):
        directory.change(f"pilot-{number}", tokenizer=tokenizer)
    assert directory.codes() == []


def test_two_model_ids_as_tokenizers_are_named(directory: Directory) -> None:
    directory.change("pilot-1", tokenizer="org/model-stable")
    directory.change("pilot-2", tokenizer="org/model")
    warning = directory.only_warning()
    assert warning.code == "tokenizer"
    assert "org/model-stable (pilot-1), org/model (pilot-2)" in warning.message


@pytest.mark.parametrize(("field", "values"), [("seq_len", (256, 512)), ("num_params", (10**6, 10**7))])
def test_settings_that_change_the_loss_are_named(directory: Directory, field: str, values: tuple[int, int]) -> None:
    directory.change("pilot-1", **{field: values[0]})
    directory.change("pilot-2", **{field: values[1]})
    warning = directory.only_warning()
    assert warning.code == field
    assert f"curves have different {field}: {values[0]} (pilot-1), {values[1]} (pilot-2)" in warning.message


@pytest.mark.parametrize("phase", ["pretrain", "cpt"])
@pytest.mark.parametrize(
    "losses",
    [
        np.exp(np.linspace(4.5, 3.5, 11)),  # perplexity 90 -> 33
        np.exp(np.linspace(9.0, 2.5, 11)),  # falls below 20 in the end, but begins at 8,103
        np.linspace(3000, 2000, 11),  # a sum over a sequence
    ],
)
def test_loss_that_no_model_can_have_is_refused(directory: Directory, phase: str, losses: np.ndarray) -> None:
    name = "base" if phase == "pretrain" else "pilot-1"
    directory.write(name, {**LOSSES, "domain": losses}, phase=phase, parent=None, parent_step=None)
    found = directory.refusal()
    assert f"loss_domain must be in nats per token; got {losses[0]:.4g} at first" in found
    assert f"of {name} in {directory.path}, where guessing blindly costs at most 12.6." in found
    assert "--unit perplexity" in found


@pytest.mark.parametrize(
    ("copy", "unit"), [(np.exp(LOSSES["general"]), "perplexity"), (LOSSES["general"] / math.log(2), "value in bits")]
)
def test_one_loss_in_two_units_is_refused(directory: Directory, copy: np.ndarray, unit: str) -> None:
    directory.write("pilot-1", {**LOSSES, "copy": copy})
    assert f"got loss_copy as the {unit} of loss_general in pilot-1" in directory.refusal()
    assert directory.codes(set_names=["general", "domain"]) == []  # a set that is not fitted does no harm


@pytest.mark.parametrize(("name", "level"), [("base", 14.0), ("pilot-1", 9.0)])
def test_level_that_is_hardly_in_nats_is_questioned(directory: Directory, name: str, level: float) -> None:
    cpt = name != "base"
    losses = {"other": level - STEPS / 1000}
    directory.write(name, losses, phase="cpt" if cpt else "pretrain", parent="base" if cpt else None, parent_step=None)
    warnings = [w for w in check_curves(directory.read()) if w.code == "high_loss"]
    assert [w.curves for w in warnings] == [(name,)]
    assert f"loss_other is {level - 0.05:.4g} in the middle of {name}" in warnings[0].message
    assert "Is it perplexity or bits already?" in warnings[0].message


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (lambda loss: loss / math.log(2), "(1.443 times as much, as bits are to nats)"),
        (lambda loss: np.minimum(np.exp(loss), 19.9), "general of one checkpoint"),
        (lambda loss: loss * 1.1, "3.3 in pilot-1: they were not measured alike"),
    ],
)
def test_one_checkpoint_with_two_losses_is_named(
    directory: Directory, factor: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    directory.write("pilot-1", {**LOSSES, "general": factor(LOSSES["general"])})
    warnings = [w for w in check_curves(directory.read()) if w.code == "start_differs"]
    assert len(warnings) == 1
    assert words in warnings[0].message
    assert "(base at step 100) is 3 in" in warnings[0].message
    assert "pilot-1" in warnings[0].curves


def test_perplexity_of_a_start_is_recognised(directory: Directory) -> None:
    directory.write("base", {"domain": np.full(11, 2.0)}, phase="pretrain", parent=None, parent_step=None)
    directory.write("pilot-1", {"domain": np.full(11, math.exp(2.0))})
    assert any("as perplexity is to nats" in warning.message for warning in check_curves(directory.read()))


def test_copied_files_are_named(directory: Directory) -> None:
    for suffix in ("csv", "json"):
        (directory.path / f"copy.{suffix}").write_bytes((directory.path / f"pilot-2.{suffix}").read_bytes())
    warning = directory.only_warning()
    assert (warning.code, warning.curves) == ("duplicate", ("copy", "pilot-2"))


def test_one_run_from_two_tools_is_named_but_not_two_seeds(directory: Directory) -> None:
    losses = directory.read()["pilot-2"].losses
    single = {name: loss.astype(np.float32).astype(np.float64) for name, loss in losses.items()}
    directory.write("copy", single, lr=cosine(3e-4), replay_ratio=0.3)
    assert directory.codes() == ["duplicate"]
    directory.write("copy", {name: loss + 1e-4 for name, loss in losses.items()}, lr=cosine(3e-4), replay_ratio=0.3)
    assert directory.codes() == []


def test_runs_that_only_share_their_start_are_no_copies(directory: Directory) -> None:
    for name in ("one", "two"):
        directory.write(name, {set_name: loss[:2] for set_name, loss in LOSSES.items()}, steps=np.array([0, 1]))
    assert directory.codes() == []


@pytest.mark.parametrize("row", [4, 9])
def test_loss_that_jumps_and_stays_up_is_named(directory: Directory, row: int) -> None:
    directory.write("pilot-1", changed("domain", slice(row, None), 7.0))
    warning = directory.only_warning()
    assert (warning.code, warning.curves) == ("jump", ("pilot-1",))
    assert f"to 7 at step {row * 10} and stays up: did training diverge?" in warning.message


def test_forgetting_is_no_divergence(directory: Directory) -> None:
    directory.write("pilot-1", changed("general", slice(1, None), 4.5))  # the change of data, at once
    directory.write("pilot-2", changed("general", slice(2, None), 4.5), lr=cosine(3e-4), replay_ratio=0.3)
    assert directory.codes() == []


@pytest.mark.parametrize("value", [4.5, 0.5])
def test_lonely_outlier_is_named(directory: Directory, value: float) -> None:
    directory.write("pilot-1", changed("domain", 5, value))
    warning = directory.only_warning()
    assert (warning.code, warning.curves) == ("outlier", ("pilot-1",))
    assert f"loss_domain of pilot-1 is {value:g} at step 50, between" in warning.message


def test_noise_is_no_outlier(tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(11)  # a very rough curve
    directory = Directory(tmp_path)
    directory.write("pilot-1", {"general": LOSSES["general"], "domain": 3.0 + noise - noise[0] + 0.5})
    assert directory.codes() == []


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([0, 10, 20, 30, 70, 80, 90, 91, 92, 93, 94], []),  # four times as long as its neighbours, not more
        ([0, 5, 10, 15, 20, 80, 85, 90, 93, 95, 100], ["hole"]),
        ([0, 1, 2, 4, 8, 16, 32, 64, 90, 95, 100], []),  # a logarithmic grid, cut at the end
    ],
)
def test_hole_in_the_points(directory: Directory, steps: list[int], expected: list[str]) -> None:
    directory.write("pilot-1", LOSSES, steps=np.array(steps))
    assert directory.codes() == expected


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"lr": cosine(2e-4)}, "one_peak_lr", "peak_lr: every pilot peaks at 0.0002; its effect cannot be learnt"),
        ({"replay_ratio": 0.3}, "one_replay", "replay: every pilot has 30%; its effect cannot be learnt"),
        ({"replay_ratio": None}, "one_replay", "replay: every pilot has 0%; its effect cannot be learnt"),
        ({"parent_step": 100}, "one_start", "start: every pilot begins at base; what another checkpoint gives"),
        ({"parent": None, "parent_step": None}, "one_start", "every pilot begins at the same unnamed checkpoint"),
    ],
)
def test_what_all_pilots_share_cannot_be_learnt(directory: Directory, change: Any, code: str, words: str) -> None:
    directory.change(**change)
    found = {warning.code: warning.message for warning in check_curves(directory.read())}
    assert words in found.pop(code)
    assert set(found) <= {"start_differs"}


def test_schedules_that_never_decay_are_named(directory: Directory) -> None:
    for number, peak in enumerate((1e-4, 3e-4, 1e-3), start=1):
        lr = {"kind": "wsd", "peak_lr": peak, "total_steps": 200, "decay_steps": 100}  # the rows end where decay begins
        directory.change(f"pilot-{number}", lr=lr)
    warning = directory.only_warning()
    assert warning.code == "no_decay"
    assert warning.curves == ("pilot-1", "pilot-2", "pilot-3")


def test_curriculum_shows_the_effect_of_replay(directory: Directory) -> None:
    directory.change(replay_ratio={"kind": "ramp", "start_ratio": 0.5, "end_ratio": 0.1, "end_step": 100})
    assert directory.codes() == []


def test_one_pilot_is_not_compared_with_itself(directory: Directory) -> None:
    for number in (2, 3):
        for suffix in ("csv", "json"):
            (directory.path / f"pilot-{number}.{suffix}").unlink()
    assert directory.codes() == []


def test_rates_that_are_all_zero(directory: Directory) -> None:
    directory.change("pilot-2", lr={"kind": "piecewise", "points": [[0, 0.0]], "total_steps": 100})
    assert "lr must be above 0 somewhere; got 0 at every step of pilot-2 in" in directory.refusal()


@pytest.mark.parametrize(
    ("num_parameters", "min_curves", "expected"),
    [
        (43, 4, None),
        (44, 1, "more points of loss_general than its 44 free parameters; got 44 in here"),
        (8, 5, "the law must have at least 5 curves with loss_general; got 4 in here"),
    ],
)
def test_law_that_needs_more_than_there_is(
    directory: Directory, num_parameters: int, min_curves: int, expected: str | None
) -> None:
    def check() -> None:
        curves = directory.read().values()
        check_enough(curves, "general", num_parameters=num_parameters, min_curves=min_curves, where="here")

    if expected is None:
        check()
        return
    with pytest.raises(CurveError, match=expected):
        check()


def test_points_that_were_not_evaluated_do_not_count(directory: Directory) -> None:
    table = directory.path / "pilot-1.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:3], *(line.split(",")[0] + ",," for line in lines[3:])]) + "\n")
    with pytest.raises(CurveError, match="got 35 in"):
        check_enough(directory.read().values(), "general", num_parameters=40)
