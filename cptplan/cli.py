"""The command line: verbs in pipeline order. No arithmetic: every verb reads files, calls a stage, says what next."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cptplan import __version__
from cptplan.console import Screen
from cptplan.errors import CptplanError
from cptplan.verbs import advise as advise_verb
from cptplan.verbs import cost as cost_verb
from cptplan.verbs import dynamics as dynamics_verb
from cptplan.verbs import law as law_verbs
from cptplan.verbs import pilot as pilot_verb
from cptplan.verbs import plan as plan_verbs
from cptplan.verbs import rehearse as rehearse_verb
from cptplan.verbs import run as run_verbs
from cptplan.verbs import watch as watch_verb

if TYPE_CHECKING:
    from cptplan.config import Project
    from cptplan.workspace import Workspace

app = typer.Typer(
    help="Plan continual pre-training before paying for it: short pilots, a fitted law, the best run with its price.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Corpus work.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

Config = Annotated[Path, typer.Option("--config", "-c", help="Project file.")]
Set = Annotated[list[str], typer.Option("--set", help="Override a key, such as pilot.num_runs=10. Repeatable.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory of the campaign.")]
AsJson = Annotated[bool, typer.Option("--json", help="Data on stdout as JSON; all else stays on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]

FINAL_LAWS = ("d_cpt", "cmr_ratio", "cmr_tokens", "repetition", "chinchilla")
"""Laws of final losses; a test holds them against final_losses.LAWS, whose import would slow --help."""
INTERRUPTED = 130  # what typer makes of Ctrl-C: 128 + SIGINT
DEFAULT_CONFIG = Path("cptplan.yaml")
DEFAULT_OUT = Path("campaign")


def main() -> None:
    """Run the command line; errors are one line and an exit code, never a traceback."""
    try:
        app(prog_name="cptplan")
    except CptplanError as error:
        Screen().error(error)
        sys.exit(error.exit_code)
    except OSError as failure:
        from cptplan.files import storage_error

        storage = storage_error(failure, Path(failure.filename or "the output directory"))
        Screen().error(storage)
        sys.exit(storage.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            Screen().say("stopped; the same command goes on where it was")
        raise


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Say the version, or go on to a verb."""
    if version:
        print(__version__)
        raise typer.Exit


def _open(config: Path, out: Path, overrides: list[str]) -> tuple[Project, Workspace]:
    from cptplan.config import read_project
    from cptplan.workspace import Workspace

    project, workspace = read_project(config, overrides), Workspace(root=out)
    workspace.check(project)
    return project, workspace


@app.command()
def demo(
    out: Out = Path("demo"),
    tiny: Annotated[bool, typer.Option("--tiny", help="The same path in a minute and a half, for tests.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The whole path on this machine in minutes: no account, no GPU, no download."""
    from cptplan.demo import run_demo

    screen = Screen(quiet=quiet, as_json=as_json)
    result = run_demo(out, tiny=tiny, screen=screen)
    screen.result(result)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the project file.")] = DEFAULT_CONFIG,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented cptplan.yaml."""
    from importlib.resources import files

    from cptplan.errors import StorageError
    from cptplan.files import write_text

    if path.exists() and not force:
        raise StorageError(f"project file must be new; got one in {path}.", hint="edit it, or give --force")
    write_text(path, files("cptplan").joinpath("example.yaml").read_text(encoding="utf-8"))
    screen = Screen()
    screen.say(f"wrote {path}: fill in model, data and budget")
    screen.next_command(f"cptplan validate -c {path}")


@app.command()
def validate(config: Config = DEFAULT_CONFIG, override: Set = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Check the project file, the base models and the corpora's paths."""
    from cptplan.checks import check_project
    from cptplan.config import read_project

    screen = Screen(as_json=as_json)
    project = read_project(config, override)
    rows = check_project(project)
    screen.table(f"{config} is valid", ("what", "value"), rows)
    screen.result(dict(rows))
    screen.next_command(f"cptplan data pack -c {config}")


@data_app.command("pack")
def pack(config: Config = DEFAULT_CONFIG, override: Set = [], out: Out = DEFAULT_OUT, as_json: AsJson = False) -> None:  # noqa: B006
    """Read, split, tokenize and pack the corpora into token shards."""
    from cptplan import stages, tables
    from cptplan.checks import check_project

    screen = Screen(as_json=as_json)
    project, workspace = _open(config, out, override)
    check_project(project)
    with screen.stage("corpora") as note:
        corpora = stages.pack_data(project, workspace, note)
    workspace.claim(project)
    screen.table("Corpora", tables.CORPORA_COLUMNS, tables.corpora_rows(corpora))
    screen.result(corpora)
    screen.next_command(f"cptplan pilot -c {config} -o {out}")


advise_verb.register(app)  # each here, since the verbs are listed in pipeline order
rehearse_verb.register(app)
pilot_verb.register(app)


@app.command()
def fit(
    directory: Annotated[
        Path | None, typer.Argument(help="Curve directory, or a CSV table of final losses; default: the campaign's.")
    ] = None,
    out: Out = DEFAULT_OUT,
    law: Annotated[str, typer.Option("--law", help="auto, or a name that cptplan laws lists.")] = "auto",
    train: Annotated[str | None, typer.Option("--train", help="Curves to fit to: names or patterns, a,b-*.")] = None,
    test: Annotated[
        str | None, typer.Option("--test", help="Curves to predict and compare; left out of the fit.")
    ] = None,
    allow_poor_fit: Annotated[
        bool, typer.Option("--allow-poor-fit", help="Go on with a fit that is too poor.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the search and the draws.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Fit the law of every validation set to the curves; with --test, score it on curves that it has not seen."""
    import time

    from cptplan import decide, tables
    from cptplan.fitting import scoring
    from cptplan.workspace import Workspace

    screen = Screen(as_json=as_json)
    workspace, curves_dir = Workspace(root=out), directory or Workspace(root=out).curves
    if curves_dir.is_file() or law in FINAL_LAWS:
        _fit_final_losses(screen, curves_dir, law, seed)
        return
    names = decide.train_names(curves_dir, train, test)
    begun = time.perf_counter()
    with screen.stage("fit") as note:
        fit_dir = decide.fit(curves_dir, workspace.fits, names, note, seed=seed, law=law)
    seconds = time.perf_counter() - begun
    screen.table("Laws", tables.FIT_COLUMNS, tables.fit_rows(fit_dir))
    for line in tables.verdict_lines(fit_dir):
        screen.say(f"note: {line}")
    scores = scoring.score_fit(fit_dir, curves_dir, test.split(",")) if test else {}
    if scores:
        screen.table("Curves that the fit has not seen", tables.SCORE_COLUMNS, tables.score_rows(scores))
    screen.result(decide.fit_summary(fit_dir, law=law, seconds=seconds, test=scores))
    decide.check_fit(fit_dir, allow_poor=allow_poor_fit)
    if directory is None:
        screen.next_command(f"cptplan optimize --weights general=0.4 -o {out}")
    else:
        screen.next_command(f"cptplan predict --fit {fit_dir} --curves {directory}")


def _fit_final_losses(screen: Screen, path: Path, law: str, seed: int) -> None:
    """Fit a law of final losses to a table, or to the ends of a curve directory."""
    from cptplan.fitting import final_losses
    from cptplan.fitting.final_table import read_final_losses

    table = read_final_losses(path)
    name = "d_cpt" if law == "auto" else law
    fits = [final_losses.fit_final_losses(table, name, set_name, seed=seed) for set_name in table.losses]
    screen.table(f"Final losses: {name}", final_losses.FIT_COLUMNS, final_losses.fit_rows(fits))
    for fitted in fits:
        parameters = final_losses.parameter_rows(fitted)
        screen.table(f"loss_{fitted.set_name}", final_losses.PARAMETER_COLUMNS, parameters)
        for line in (*fitted.unidentified, *fitted.warnings):
            screen.say(f"note: loss_{fitted.set_name}: {line}")
    for line in table.notes:
        screen.say(f"note: {line}")
    screen.result(final_losses.summary(fits))


law_verbs.register(app)
plan_verbs.register(app)
dynamics_verb.register(app)


cost_verb.register(app)


@app.command()
def launch(
    config: Config = DEFAULT_CONFIG,
    override: Set = [],  # noqa: B006
    out: Out = DEFAULT_OUT,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="local, accelerate, torchrun, slurm, skypilot, kubernetes; or a recipe for another trainer: "
            "llama-factory, deepspeed, axolotl, nemo-automodel, torchtitan. Default: the project's launch.target.",
        ),
    ] = None,
    option: Annotated[
        list[str], typer.Option("--option", help="Of the target, such as partition=gpu. Repeatable.")
    ] = [],  # noqa: B006
    allow_loss_of: Annotated[
        list[str], typer.Option("--allow-loss-of", help="What a recipe may drop of the plan. Repeatable.")
    ] = [],  # noqa: B006
    run: Annotated[bool, typer.Option("--run", help="Start it here and now (target local).")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the files that launch the plan's run."""
    from cptplan import final

    screen = Screen(as_json=as_json)
    project, workspace = _open(config, out, override)
    target = target or project.launch.target
    directory = final.write_launch_files(project, workspace, target, option, allow_loss_of)
    screen.say(f"wrote {directory}")
    if run:
        with screen.stage("final run") as note:
            result = final.run_final(project, workspace, target, note)
        screen.result(result)
        screen.next_command(f"cptplan report -c {config} -o {out}")
        return
    screen.result({"directory": str(directory)})
    screen.next_command(f"bash {directory / 'launch.sh'}")


watch_verb.register(app)
run_verbs.register(app)


@app.command()
def report(
    config: Config = DEFAULT_CONFIG,
    override: Set = [],  # noqa: B006
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Write the HTML report and its figures."""
    from cptplan.report.build import build_report
    from cptplan.report.html import write_report

    screen = Screen(as_json=as_json)
    project, workspace = _open(config, out, override)
    with screen.stage("report"):
        files = write_report(build_report(project, workspace), workspace.report)
    screen.say(f"report: {files.page}")
    screen.result({"page": str(files.page), "figures": [str(path) for path in files.figures]})


@app.command()
def status(out: Out = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """How far the runs of a campaign are."""
    from cptplan.campaign import status_of_directory

    screen = Screen(as_json=as_json)
    statuses = status_of_directory(out / "runs")
    rows = [(s.name, s.state, f"{s.done}/{s.total}") for s in statuses]
    screen.table("Runs", ("run", "state", "steps"), rows)
    screen.result({"runs": [{"name": s.name, "state": s.state, "done": s.done, "total": s.total} for s in statuses]})
