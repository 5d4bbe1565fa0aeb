"""The verb advise. Registered by cli.py; no arithmetic here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cptplan.console import Screen
from cptplan.errors import ConfigError, DataError, suggest

if TYPE_CHECKING:
    from cptplan.advice.advise import Use
    from cptplan.advice.preflight import Check
    from cptplan.config import Project

DEFAULT_CONFIG = Path("cptplan.yaml")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(advise)


def advise(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Project file; default: cptplan.yaml if there is one.")
    ] = None,
    override: Annotated[list[str], typer.Option("--set", help="Override a key of the project. Repeatable.")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the campaign.")] = Path("campaign"),
    use: Annotated[
        str, typer.Option("--use", help="What the model is for: knowledge, style, facts-that-change or task.")
    ] = "knowledge",
    runs: Annotated[
        list[Path], typer.Option("--runs", help="Runs or curves to diagnose; default: the campaign's. Repeatable.")
    ] = [],  # noqa: B006
    corpus_tokens: Annotated[str | None, typer.Option("--corpus-tokens", help="Of the domain, such as 500M.")] = None,
    domain_perplexity: Annotated[
        float | None, typer.Option("--domain-perplexity", help="Of the base model, per token.")
    ] = None,
    general_perplexity: Annotated[
        float | None, typer.Option("--general-perplexity", help="Of the base model, by the same tokenizer.")
    ] = None,
    budget_tokens: Annotated[str | None, typer.Option("--budget-tokens", help="Such as 5B.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Size, directory or hub id; default: project's.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Hardware; default: the project's.")] = None,
    num_devices: Annotated[int | None, typer.Option("--num-devices", min=1, help="Default: the project's.")] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.0, help="For the search of validation text in training text.")
    ] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="Data on stdout as JSON; all else stays on stderr.")] = False,
) -> None:
    """Should you do this at all; is all ready; what is wrong with the runs that are there."""
    from cptplan.advice import table as advise_table
    from cptplan.advice.advise import advise as judge
    from cptplan.advice.advise import recipe
    from cptplan.advice.diagnosing import diagnose_runs, read_campaign_logs
    from cptplan.advice.preflight import preflight
    from cptplan.advice.situation import Told, find_situation
    from cptplan.price.pricing import parse_tokens
    from cptplan.workspace import Workspace

    screen = Screen(as_json=as_json)
    project, workspace = _project(config, override), Workspace(root=out)
    logs = read_campaign_logs(runs, workspace)
    told = Told(
        use=_use(use),
        corpus_tokens=None if corpus_tokens is None else parse_tokens(corpus_tokens, "--corpus-tokens"),
        domain_perplexity=domain_perplexity,
        general_perplexity=general_perplexity,
        budget_tokens=None if budget_tokens is None else parse_tokens(budget_tokens, "--budget-tokens"),
        model=model,
        gpu=gpu,
        num_devices=num_devices,
    )
    situation = find_situation(told, project, workspace, logs)
    advice, settings = judge(situation), recipe(situation)
    screen.table("Situation", advise_table.SITUATION_COLUMNS, advise_table.situation_rows(situation))
    for line in advise_table.advice_lines(advice):
        screen.say(line)
    screen.table("Before there are pilots", advise_table.RECIPE_COLUMNS, advise_table.recipe_rows(settings))
    checks: tuple[Check, ...] = ()
    if project is not None:
        with screen.stage("checklist"):
            checks = preflight(project, workspace, seconds)
        screen.table("Checklist", advise_table.CHECK_COLUMNS, advise_table.check_rows(checks))
    found = diagnose_runs(logs, workspace, project)
    if found:
        screen.table("Runs", advise_table.DIAGNOSIS_COLUMNS, advise_table.diagnosis_rows(found))
    elif logs:
        screen.say(f"nothing is wrong with the {len(logs)} runs that are there, as far as their curves show")
    screen.result(advise_table.to_json(situation, advice, settings, checks, found, len(logs)))
    blocking = [check for check in checks if check.blocks]
    if blocking:
        raise DataError(
            f"checklist must hold nothing that makes a run impossible; got {', '.join(c.name for c in blocking)}.",
            hint=blocking[0].next_step or "see the list",
        )
    screen.next_command("cptplan init" if project is None else f"cptplan pilot --dry-run -c {config or DEFAULT_CONFIG}")


def _project(config: Path | None, override: list[str]) -> Project | None:
    """The project: the one named, or the one that lies here."""
    from cptplan.config import read_project

    if config is None and not DEFAULT_CONFIG.exists():
        if override:
            raise ConfigError(f"--set must have a project; got {override[0]!r} without one.", hint="give --config")
        return None
    return read_project(config or DEFAULT_CONFIG, override)


def _use(text: str) -> Use:
    from cptplan.advice.advise import USES

    found: dict[str, Any] = {use: use for use in USES}
    if text not in found:
        raise ConfigError(
            f"--use must be one of {', '.join(USES)}; got {text!r}.", hint=suggest(text, USES) or "such as knowledge"
        )
    use: Use = found[text]
    return use
