"""One more pilot: which, whether it is worth its price, and its run. The fit is made anew before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cptplan import campaign, decide, stages
from cptplan.checks import check_vocabulary
from cptplan.config import Project
from cptplan.fitting.store import read_fit
from cptplan.pilots.cost import run_cost
from cptplan.pilots.design import run_spec
from cptplan.pilots.next_pilot import (
    PilotValue,
    candidate_pilots,
    decision_draws,
    decision_regret,
    next_pilot,
    plan_pool,
)
from cptplan.planning.planner import affordable, plan_space
from cptplan.planning.search import quick_search
from cptplan.run_spec import read_run_spec
from cptplan.stages import Note, quiet
from cptplan.workspace import Workspace

PREFIX = "pilot-next-"
LEAST_VALUE = 1e-3  # assumed: nats; two seeds of one run differ by more


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """What one more pilot would be worth."""

    fit_dir: Path
    regret: float
    """What the best plan is expected to lose against the one that perfect knowledge would choose, nats."""
    candidates: tuple[PilotValue, ...]
    """Best first."""
    share: float
    """Cost of the best over that of the final run."""
    longer: float
    """What the final run is expected to gain from as many more tokens, nats."""

    @property
    def best(self) -> PilotValue:
        """The pilot of most value for its cost."""
        return self.candidates[0]

    @property
    def threshold(self) -> float:
        """Least value for which a pilot is run, nats: what its tokens would gain in the final run, and LEAST_VALUE."""
        return max(self.longer, LEAST_VALUE)

    @property
    def worth(self) -> bool:
        """Whether the best candidate is worth its price."""
        return self.best.value >= self.threshold

    def line(self) -> str:
        """The decision in a sentence."""
        told = (
            f"the best is expected to lower the weighted loss by {self.best.value:.4f} nats for {self.share:.1%} of "
            f"the final run's cost"
        )
        bar = (
            f"{self.longer:.4f} from as many more tokens in the final run"
            if self.longer > LEAST_VALUE
            else f"{LEAST_VALUE:g}, less than two seeds differ by"
        )
        if self.worth:
            return f"Worth its price: {told}; the bar is {bar}."
        return f"No pilot is worth its price: {told}, under the bar of {bar}. Plan with the pilots you have."


def advise_next(project: Project, workspace: Workspace, weights_text: str | None, note: Note = quiet) -> Advice:
    """Fit the curves that are there and judge candidates for one more pilot.

    Raises:    CurveError if the curves are too few for a fit; as decide.fit and decide.forecaster.
    """
    fit_dir = decide.fit(workspace.curves, workspace.fits, note=note)
    laws = read_fit(fit_dir)
    weights = decide.goal_weights(project, weights_text, tuple(laws))
    forecaster = decide.forecaster(project, workspace, laws, weights)
    decide.check_fit_belongs(project, workspace, laws, fit_dir)
    afford = affordable(project, forecaster, workspace.runs)
    space = plan_space(project, forecaster, afford)
    rough = forecaster.rough if forecaster.needs_draws else None
    found = quick_search(forecaster.score, space, rough)
    draws = decision_draws(forecaster, plan_pool(found))
    cost, _ = run_cost(project, project.pilot.total_steps, workspace.runs)
    candidates = next_pilot(
        forecaster,
        draws,
        candidate_pilots(space, project.pilot.total_steps, forecaster.warmup_steps),
        gpu_hours_per_token=None if cost.gpu_hours is None else cost.gpu_hours / cost.tokens,
    )
    best = found.best.knobs
    longer = replace(best, total_steps=round(best.total_steps * (1.0 + cost.share)))
    return Advice(
        fit_dir=fit_dir,
        regret=decision_regret(draws),
        candidates=candidates,
        share=cost.share,
        longer=max(forecaster.rough(best).objective - forecaster.rough(longer).objective, 0.0),
    )


def unfinished(workspace: Workspace, project: Project) -> list[campaign.Job]:
    """Advised pilots that were started and have no result yet."""
    found = []
    for path in sorted(workspace.runs.glob(f"{PREFIX}*/spec.json")):
        if not (path.parent / "result.json").exists():
            found += campaign.jobs_of([read_run_spec(path)], workspace.runs, project.pilot.processes)
    return found


def next_job(project: Project, workspace: Workspace, advice: Advice) -> campaign.Job:
    """The best candidate as a run of the campaign."""
    knobs = advice.best.knobs
    number = len(list(workspace.runs.glob(f"{PREFIX}*/spec.json"))) + 1
    spec = run_spec(
        project,
        str(workspace.data.resolve()),
        name=f"{PREFIX}{number:02d}",
        start=next(start for start in project.model.starts if start.name == knobs.start),
        schedule=knobs.schedule(project.pilot.warmup_steps),
        replay_ratio=knobs.replay_ratio,
    )
    return campaign.jobs_of([spec], workspace.runs, project.pilot.processes)[0]


def run_next(
    project: Project,
    workspace: Workspace,
    corpora: Mapping[str, Any],
    jobs: Sequence[campaign.Job],
    note: Note = quiet,
) -> list[dict[str, Any]]:
    """Train advised pilots and put their curves beside the others.

    Returns:   result.json of each.
    """
    for job in jobs:
        stages.require_tokens(corpora, stages.tokens_of_run(job.spec), project.budget.max_epochs)
    check_vocabulary(project, corpora, workspace.data)
    return stages.run_and_collect(project, workspace, jobs, note)
