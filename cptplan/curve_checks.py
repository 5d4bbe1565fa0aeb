"""What a directory of curves cannot tell, or tells wrongly: errors for what cannot be fitted, warnings for the rest.

Reading (cptplan.curves) checks each file by itself and cptplan.advice.curve_symptoms each curve; here curves are held
against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from cptplan.advice.curve_symptoms import BITS, check_units, first_names, holes, jumps, outliers, unit_doubts
from cptplan.advice.curve_symptoms import CurveWarning as CurveWarning
from cptplan.curves import LOSS_PREFIX, FloatArray, LossCurve
from cptplan.errors import CurveError, suggest

FEWEST_ALIKE = 3  # points; the loss at step 0 is the same for all runs from one checkpoint
SAME_START = 0.03  # assumed: one checkpoint on one validation set is measured this alike; other subsets differ more


def check_curves(
    curves: Mapping[str, LossCurve], set_names: Iterable[str] | None = None, where: Path | str = "the curves given"
) -> tuple[CurveWarning, ...]:
    """Hold curves against each other and against what losses can be, before a law is fitted to them.

    Args:      curves: pilots and the runs they continue, by name. set_names: validation sets that will be fitted; all
               when None. where: the directory, for messages.
    Returns:   warnings, the gravest kinds first; none when there is nothing to say.
    Raises:    CurveError for what cannot be fitted together: two batch sizes, two tokenizers, losses that are not in
               nats per token, a set that no curve has, rates that are all 0.
    """
    found = list(curves.values())
    names = _known_sets(found, set_names, where)
    check_same_batch(_pilots(found), where)
    check_same_tokenizer(found, where)
    for curve in found:
        check_units(curve, names, where)
        if not curve.lr().any():
            raise CurveError(
                f"lr must be above 0 somewhere; got 0 at every step of {curve.name} in {where}.", hint="mend its lr"
            )
    checks: tuple[Callable[[], Iterator[CurveWarning]], ...] = (
        lambda: _tokenizer_doubts(found),
        lambda: unit_doubts(found, names),
        lambda: _starts(curves, names),
        lambda: _duplicates(found),
        lambda: jumps(found, names),
        lambda: outliers(found, names),
        lambda: _different_settings(found),
        lambda: _design(_pilots(found)),
        lambda: holes(found),
    )
    return tuple(warning for check in checks for warning in check())


def _known_sets(curves: Sequence[LossCurve], set_names: Iterable[str] | None, where: Path | str) -> tuple[str, ...]:
    there = list(dict.fromkeys(name for curve in curves for name in curve.losses))
    names = tuple(there if set_names is None else set_names)
    for name in names:
        if name not in there:
            raise CurveError(
                f"curves must have {LOSS_PREFIX}{name}; got {', '.join(there)} in {where}.",
                hint=suggest(name, there) or "name a set that was logged",
            )
    return names


def _pilots(curves: Sequence[LossCurve]) -> list[LossCurve]:
    """The CPT curves, or all when none is: the runs whose settings are to be compared."""
    return [curve for curve in curves if curve.record.phase == "cpt"] or list(curves)


def check_same_batch(curves: Iterable[LossCurve], where: Path | str) -> None:
    """Raise CurveError unless all curves have one batch size: the laws count time in steps of one batch."""
    sizes = {curve.record.batch_tokens for curve in curves if curve.record.batch_tokens is not None}
    if len(sizes) > 1:
        raise CurveError(
            f"curves must have one batch_tokens; got {sorted(sizes)} in {where}.",
            hint="fit the batch sizes apart, with --train",
        )


def check_same_tokenizer(curves: Iterable[LossCurve], where: Path | str) -> None:
    """Raise CurveError unless all tokenizers that are named are one: nats per token of two cannot be compared.

    A name with a slash is a place, of a checkpoint perhaps: two places may hold one tokenizer, so they prove nothing.
    """
    owners = {name: who for name, who in _tokenizers(curves).items() if "/" not in name and "\\" not in name}
    if len(owners) > 1:
        shown = ", ".join(f"{tokenizer!r} ({name})" for tokenizer, name in owners.items())
        raise CurveError(
            f"curves must have one tokenizer; got {shown} in {where}.",
            hint="fit them apart with --train, or give all losses in bits per byte and leave tokenizer out",
        )


def _tokenizers(curves: Iterable[LossCurve]) -> dict[str, str]:
    """Each tokenizer that is named, with the first curve that names it."""
    owners: dict[str, str] = {}
    for curve in curves:
        if curve.record.tokenizer is not None:
            owners.setdefault(curve.record.tokenizer, curve.name)
    return owners


def _tokenizer_doubts(curves: Sequence[LossCurve]) -> Iterator[CurveWarning]:
    """Model ids of two: the same tokenizer, or not. Directories are a campaign's own and say nothing."""
    owners = {name: who for name, who in _tokenizers(curves).items() if not Path(name).is_absolute()}
    if len(owners) > 1:
        yield CurveWarning(
            code="tokenizer",
            message=f"tokenizer is named differently: {', '.join(f'{t} ({n})' for t, n in owners.items())}; if these "
            "are not one tokenizer, losses per token cannot be compared",
            curves=tuple(owners.values()),
        )


def check_enough(
    curves: Iterable[LossCurve],
    set_name: str,
    *,
    num_parameters: int,
    min_curves: int = 1,
    law: str = "the law",
    where: Path | str = "the curves given",
) -> None:
    """Raise CurveError unless a set has the curves and the points that a law needs.

    Args:      curves: those that would be fitted. num_parameters: free parameters of the law for one set; more points
               than parameters are needed. min_curves: curves that must have the set.
    """
    counts = [int(np.isfinite(c.losses[set_name]).sum()) for c in curves if set_name in c.losses]
    if len(counts) < min_curves:
        raise CurveError(
            f"{law} must have at least {min_curves} curves with {LOSS_PREFIX}{set_name}; got {len(counts)} in {where}.",
            hint="run more pilots, or choose a law with fewer needs",
        )
    if sum(counts) <= num_parameters:
        raise CurveError(
            f"{law} must have more points of {LOSS_PREFIX}{set_name} than its {num_parameters} free parameters; got "
            f"{sum(counts)} in {where}.",
            hint="evaluate more often, run more pilots, or choose a law with fewer parameters",
        )


def _starts(curves: Mapping[str, LossCurve], set_names: Sequence[str]) -> Iterator[CurveWarning]:
    """One checkpoint must have one loss: at step 0 of all that begin there, and at that step of its own run."""
    for name in set_names:
        starts: dict[tuple[str, int], dict[str, float]] = {}
        for curve in curves.values():
            parent = curves.get(curve.record.parent or "")
            if parent is not None and name in curve.losses:
                step = parent.total_steps if curve.record.parent_step is None else curve.record.parent_step
                group = starts.setdefault((parent.name, step), _loss_at(parent, name, step))
                group.update(_loss_at(curve, name, 0))
        for (parent_name, step), losses in starts.items():
            low, high = min(losses, key=lambda n: losses[n]), max(losses, key=lambda n: losses[n])
            if losses[high] > losses[low] * (1 + SAME_START):
                yield CurveWarning(
                    code="start_differs",
                    message=f"{LOSS_PREFIX}{name} of one checkpoint ({parent_name} at step {step}) is "
                    f"{losses[low]:.4g} in {low} and {losses[high]:.4g} in {high}"
                    f"{_guess_unit(losses[low], losses[high])}: they were not measured alike",
                    curves=(low, high),
                )


def _loss_at(curve: LossCurve, set_name: str, step: int) -> dict[str, float]:
    if set_name not in curve.losses:
        return {}
    values = curve.losses[set_name][(curve.steps == step) & np.isfinite(curve.losses[set_name])]
    return {curve.name: float(values[0])} if len(values) else {}


def _guess_unit(low: float, high: float) -> str:
    if math.isclose(high, BITS * low, rel_tol=0.01):
        return f" ({high / low:.3f} times as much, as bits are to nats)"
    return " (as perplexity is to nats)" if math.isclose(math.log(high), low, rel_tol=0.01) else ""


def _duplicates(curves: Sequence[LossCurve]) -> Iterator[CurveWarning]:
    for one, other in combinations(curves, 2):
        same = np.array_equal(one.steps, other.steps) and one.losses.keys() == other.losses.keys()
        if len(one.steps) < FEWEST_ALIKE or not same:
            continue
        # logs of one run by two tools differ in float32 rounding; two seeds of one setting by far more
        if all(np.allclose(one.losses[n], other.losses[n], rtol=1e-6, atol=0, equal_nan=True) for n in one.losses):
            yield CurveWarning(
                code="duplicate",
                message=f"{one.name} and {other.name} have the same losses at every step: a copied curve counts twice",
                curves=(one.name, other.name),
            )


def _different_settings(curves: Sequence[LossCurve]) -> Iterator[CurveWarning]:
    """Settings that change the loss and that no law here follows."""
    consequences = {
        "batch_tokens": "the law counts time in steps, so pre-training looks longer or shorter than it was",
        "seq_len": "loss falls with the length of the context, and the law takes that for training",
        "num_params": "only a law with a term for size describes them together",
    }
    for field, consequence in consequences.items():
        owners: dict[int, list[str]] = {}
        for curve in curves:
            value = getattr(curve.record, field)
            if value is not None:
                owners.setdefault(value, []).append(curve.name)
        if len(owners) > 1:
            shown = ", ".join(f"{value} ({first_names(tuple(names))})" for value, names in owners.items())
            yield CurveWarning(
                code=field,
                message=f"curves have different {field}: {shown}; {consequence}",
                curves=tuple(name for names in owners.values() for name in names),
            )


def _design(pilots: Sequence[LossCurve]) -> Iterator[CurveWarning]:
    """What all pilots have in common: its effect cannot be learnt from them."""
    if len(pilots) < 2:
        return
    names = tuple(curve.name for curve in pilots)
    seen = [curve.lr()[: max(int(curve.steps[-1]), 1)] for curve in pilots]  # later rates left no trace in the losses
    peaks = [float(lr.max()) for lr in seen]
    found: dict[str, str] = {}
    if max(peaks) <= 1.01 * min(peaks):
        found["one_peak_lr"] = f"peak_lr: every pilot peaks at {peaks[0]:.4g}; its effect cannot be learnt"
    if all(lr[int(lr.argmax()) :].min() >= 0.99 * lr.max() for lr in seen):
        found["no_decay"] = "lr: no pilot lowers its rate before its last point; what annealing gives cannot be learnt"
    if pilots[0].record.phase == "cpt":
        ratios = np.concatenate([_ends(curve.replay_ratios()) for curve in pilots])
        if np.ptp(ratios) < 0.005:
            found["one_replay"] = f"replay: every pilot has {ratios[0]:.0%}; its effect cannot be learnt"
        starts = {(c.record.parent, c.record.parent_step, c.record.pretrain and c.record.pretrain.hash) for c in pilots}
        if len(starts) == 1:
            begin = pilots[0].record.parent or "the same unnamed checkpoint"
            found["one_start"] = f"start: every pilot begins at {begin}; what another checkpoint gives cannot be learnt"
    for code, message in found.items():
        yield CurveWarning(code=code, message=message, curves=names)


def _ends(values: FloatArray) -> FloatArray:
    return np.array([values.min(), values.max()])
