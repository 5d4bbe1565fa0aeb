"""All laws of whole curves by name: what each needs, when to choose it, and how to make one from its stored spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cptplan.errors import ConfigError, suggest
from cptplan.laws.cpt import CptForm, CptLaw
from cptplan.laws.pretraining import AnnealingLaw, FslLaw, MultiPowerLaw, PowerLaw
from cptplan.laws.protocol import Law


@dataclass(frozen=True, kw_only=True, slots=True)
class LawEntry:
    """One law as a person chooses it."""

    name: str
    title: str
    reference: str
    needs: str
    """The data it must have."""
    choose_when: str
    ignores: str


LAWS: Mapping[str, LawEntry] = {
    entry.name: entry
    for entry in (
        LawEntry(
            name="cpt",
            title="continual pre-training, the best form",
            reference="arXiv:2505.07796, corrected and extended",
            needs="3 or more CPT curves over several rates and replay ratios, their pre-training curve if there is one",
            choose_when="you plan a CPT run; the forms below are tried on left-out curves",
            ignores="batch size",
        ),
        LawEntry(
            name="cpt-published",
            title="continual pre-training as published",
            reference="arXiv:2505.07796, eq. 4 and 8 in the corrected orientation",
            needs="as cpt",
            choose_when="you compare with the paper",
            ignores="batch size, repetition; small replay ratios fit badly",
        ),
        LawEntry(
            name="annealing",
            title="learning-rate annealing",
            reference="arXiv:2408.11029",
            needs="1 or 2 curves of one data set whose rate falls, better 3",
            choose_when="you predict other schedules of pre-training",
            ignores="data, size; pays for steps at rate 0",
        ),
        LawEntry(
            name="multi_power",
            title="multi-power",
            reference="arXiv:2503.12811",
            needs="2 or 3 curves of one data set, one with a sudden fall of the rate",
            choose_when="you compare with the paper",
            ignores="data, size",
        ),
        LawEntry(
            name="multi_power_late",
            title="multi-power, with a gain that falls as training goes on",
            reference="arXiv:2503.12811 with the source time of arXiv:2509.19189",
            needs="as multi_power",
            choose_when="the runs to predict are much longer than those to fit",
            ignores="data, size",
        ),
        LawEntry(
            name="fsl",
            title="functional scaling law",
            reference="arXiv:2509.19189, eq. 30",
            needs="4 or more curves of one data set with falls of the rate early and late",
            choose_when="there are many curves",
            ignores="data, size",
        ),
        LawEntry(
            name="power",
            title="power of the steps",
            reference="arXiv:2203.15556 at one size",
            needs="1 curve",
            choose_when="never for a plan: it is the baseline that the others must beat",
            ignores="the schedule",
        ),
    )
}


def law_from_spec(spec: Mapping[str, Any], where: str) -> Law:
    """The law whose spec() this is.

    Raises:    ConfigError if no law has that name or an option is wrong.
    """
    name, options = spec.get("law"), {key: value for key, value in spec.items() if key != "law"}
    makers: Mapping[str, Any] = {
        "cpt": lambda side, reference_lr, memory_steps, form: CptLaw(side, reference_lr, CptForm(**form), memory_steps),
        "power": PowerLaw,
        "annealing": AnnealingLaw,
        "multi_power": MultiPowerLaw,
        "multi_power_late": lambda reference_lr: MultiPowerLaw(reference_lr, late=True),
        "fsl": FslLaw,
    }
    if name not in makers:
        raise ConfigError(
            f"law must be one of {', '.join(makers)}; got {name!r} in {where}.", hint=suggest(str(name), makers)
        )
    try:
        law: Law = makers[str(name)](**options)
    except TypeError as error:
        raise ConfigError(f"law must be whole; got {error} in {where}.", hint="run cptplan fit again") from error
    return law
