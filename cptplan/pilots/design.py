"""Which pilots to run first: a small set that separates rate, replay, schedule and start checkpoint.

The law needs (see arXiv:2505.07796, section 7, and the identifiability notes in reports/decisions): a constant-rate run
without replay (the shift alone), a decayed run (the annealing), several peak rates, and replay ratios of which one is
small, because forgetting falls steepest between 0 and 5 % replay. Where the final run would read a corpus several
times, some pilots read a cut of it as often, so that the law sees what repetition is worth (Muennighoff et al. 2023,
arXiv:2305.16264, fit it to runs that repeat).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import qmc

from cptplan.config import Project, Start
from cptplan.mixture import ConstantMixture
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet, default_eval_steps
from cptplan.schedule import ConstantSchedule, Schedule, WsdSchedule

SMALL_REPLAY = 0.05  # of the replay range: 3 % when it is 0 to 60 %


@dataclass(frozen=True, kw_only=True, slots=True)
class PilotCell:
    """One designed pilot, in the user's units."""

    peak_lr: float
    replay_ratio: float
    decay_share: float
    start: Start
    purpose: str
    passes: Mapping[str, float] = field(default_factory=dict)
    """Times that it reads a cut of a corpus, by corpus; one that is not here is read once."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """rate: 0..1 on the log scale of the range; replay: 0..1 of the range; start: 1 the last, 0 one of the others."""

    rate: float
    replay: float
    decay_share: float
    start: int
    purpose: str


_CELLS = (
    _Cell(1.0, 0.0, 0.0, 0, "the shift alone at the highest rate"),
    _Cell(0.5, 0.5, 0.5, 1, "annealing with replay from the last start"),
    _Cell(1.0, SMALL_REPLAY, 0.5, 1, "little replay, decayed"),
    _Cell(0.5, SMALL_REPLAY, 0.0, 0, "little replay at a middle rate"),
    _Cell(0.0, 0.25, 0.0, 1, "the lowest rate"),
    _Cell(0.75, 1.0, 0.5, 0, "the most replay, decayed"),
    _Cell(0.25, 0.0, 0.5, 0, "a low rate without replay, decayed"),
    _Cell(0.8, 0.5, 0.0, 1, "half the replay range at a high rate"),
)
_REPEATS = {"general": (5,), "domain": (2, 3)}
"""Cells that repeat scarce text, by its role: two of the domain, so that each can be left out of a fit; of the general
one the cell with most replay, which shows what it does though no law has a term for it."""
SCARCE = 1.2  # passes from which on the fit looks for repetition


def design_pilots(project: Project, passes: Mapping[str, float] | None = None) -> tuple[PilotCell, ...]:
    """The first pilots of a campaign: the fixed cells, then a Sobol set over rate and replay when more are asked for.

    Args:      project: ranges and number of pilots. passes: times that the final run would read scarce corpora, see
               final_passes.
    Returns:   num_runs cells, the same for the same project and passes.
    """
    extra = project.pilot.num_runs - len(_CELLS)
    cells = list(_CELLS[: project.pilot.num_runs])
    if extra > 0:
        for number, (rate, replay) in enumerate(
            qmc.Sobol(2, seed=project.seed).random(1 << extra.bit_length())[:extra]
        ):
            cells.append(
                _Cell(float(rate), float(replay) ** 2, 0.5 * (number % 2), number // 2 % 2, "fills the space between")
            )
    scarce = [
        {
            name: often
            for name, often in (passes or {}).items()
            if number in _REPEATS["general" if name == project.data.general.name else "domain"]
        }
        for number in range(len(cells))
    ]
    starts = _starts_of(cells, project.model.starts)
    return tuple(_to_units(*one, project) for one in zip(cells, starts, scarce, strict=True))


def _starts_of(cells: Sequence[_Cell], starts: Sequence[Start]) -> list[Start]:
    """The start of each cell: the last one, or the others in turn, so that every start has a pilot."""
    others = itertools.cycle(starts[:-1] or starts)
    return [starts[-1] if cell.start else next(others) for cell in cells]


def _to_units(cell: _Cell, start: Start, passes: Mapping[str, float], project: Project) -> PilotCell:
    low, high = project.peak_lr_range
    least, most = project.pilot.replay_range
    repeats = "".join(f"; reads a cut of {name} {often:.1f} times" for name, often in passes.items())
    return PilotCell(
        peak_lr=float(f"{low * (high / low) ** cell.rate:.3g}"),
        replay_ratio=round(least + (most - least) * cell.replay, 4),
        decay_share=cell.decay_share,
        start=start,
        purpose=cell.purpose + repeats,
        passes=passes,
    )


def final_passes(project: Project, tokens: float, corpora: Mapping[str, Any]) -> dict[str, float]:
    """Most times that a final run may read each corpus that is scarce for it.

    k = min(max_epochs, share x tokens / tokens there), at the replay ratio that asks most of it; kept from SCARCE on
    Args:      tokens: of the final run. corpora: corpora.json.
    """
    there = {source["name"]: source["train"]["num_tokens"] for source in corpora["sources"]}
    least, most = project.pilot.replay_range
    asked = {name: share * tokens for name, share in _shares(project, least).items()}
    asked[project.data.general.name] = most * tokens
    often = {name: min(project.budget.max_epochs, asked[name] / max(there[name], 1)) for name in asked}
    return {name: k for name, k in often.items() if k >= SCARCE}


def _shares(project: Project, replay_ratio: float) -> dict[str, float]:
    """Share of each corpus in a run's tokens."""
    whole = sum(domain.weight for domain in project.data.domains)
    shares = {domain.name: (1.0 - replay_ratio) * domain.weight / whole for domain in project.data.domains}
    return {project.data.general.name: replay_ratio, **shares}


def run_schedule(
    *, peak_lr: float, total_steps: int, warmup_steps: int, decay_share: float
) -> ConstantSchedule | WsdSchedule:
    """Constant rate, or WSD whose last decay_share of the steps falls linearly to 0."""
    decay_steps = min(round(decay_share * total_steps), total_steps - warmup_steps)
    if decay_steps == 0:
        return ConstantSchedule(kind="constant", peak_lr=peak_lr, total_steps=total_steps, warmup_steps=warmup_steps)
    return WsdSchedule(
        kind="wsd", peak_lr=peak_lr, total_steps=total_steps, warmup_steps=warmup_steps, decay_steps=decay_steps
    )


def run_spec(
    project: Project,
    data_dir: str,
    *,
    name: str,
    start: Start,
    schedule: Schedule,
    replay_ratio: float,
    passes: Mapping[str, float] | None = None,
) -> RunSpec:
    """The spec of one CPT run of a project; pilots and final run differ only in start, schedule, replay and length.

    Args:      data_dir: directory of the packed shards. passes: times that it reads a cut of a corpus, by corpus.
    """
    data, pilot = project.data, project.pilot
    tokens = schedule.total_steps * pilot.batch_tokens
    shares = _shares(project, replay_ratio)
    # whole windows, whose last target is one token more
    cuts = {
        name: max(round(shares[name] * tokens / often / data.seq_len), 1) * data.seq_len + 1
        for name, often in (passes or {}).items()
        if shares[name] > 0.0
    }
    corpora = [("general", data.general), *(("domain", domain) for domain in data.domains)]
    return RunSpec(
        name=name,
        phase="cpt",
        model=ModelSource(path=start.path, trust_remote_code=project.model.trust_remote_code),
        sources=tuple(
            Source.model_validate(
                {
                    "name": c.name,
                    "role": role,
                    "path": f"{data_dir}/{c.name}",
                    "weight": c.weight,
                    "max_tokens": cuts.get(c.name),
                }
            )
            for role, c in corpora
        ),
        validation=tuple(
            ValidationSet(name=c.name, path=f"{data_dir}/{c.name}", num_tokens=data.validation_tokens)
            for _, c in corpora
        ),
        schedule=schedule,
        mixture=ConstantMixture(replay_ratio=replay_ratio),
        seq_len=data.seq_len,
        batch_tokens=pilot.batch_tokens,
        micro_batch_tokens=pilot.micro_batch_tokens,
        precision=pilot.precision,
        seed=project.seed,
        eval_steps=default_eval_steps(schedule.total_steps, pilot.eval_points),
        parent=start.parent,
        parent_step=start.parent_step,
    )


def pilot_specs(project: Project, data_dir: str, passes: Mapping[str, float] | None = None) -> tuple[RunSpec, ...]:
    """The run specs of the designed pilots, named pilot-01, pilot-02, ...

    Args:      passes: as of design_pilots.
    """
    pilot = project.pilot
    return tuple(
        run_spec(
            project,
            data_dir,
            name=f"pilot-{number:02d}",
            start=cell.start,
            schedule=run_schedule(
                peak_lr=cell.peak_lr,
                total_steps=pilot.total_steps,
                warmup_steps=pilot.warmup_steps,
                decay_share=cell.decay_share,
            ),
            replay_ratio=cell.replay_ratio,
            passes=cell.passes,
        )
        for number, cell in enumerate(design_pilots(project, passes), start=1)
    )


def default_eval_tokens(project: Project, total_steps: int) -> float:
    """Validation tokens that a run of this length reads: every set at every evaluation."""
    points = len({0, total_steps, *default_eval_steps(total_steps, project.pilot.eval_points)})
    return float(points * project.data.validation_tokens * (1 + len(project.data.domains)))
