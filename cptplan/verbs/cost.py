"""The verb cost: what a plan, or any run of any model, costs. Registered by cli.py; no arithmetic here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cptplan.console import Screen
from cptplan.errors import ConfigError

DEFAULT_GPU = "h100-sxm"
DEFAULT_DEVICES = 8
TERAFLOPS = 1e12

Tokens = Annotated[str | None, typer.Option("--tokens", help="Training tokens, such as 50B; with --model.")]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(cost)


def cost(
    config: Annotated[Path, typer.Option("--config", "-c", help="Project file.")] = Path("cptplan.yaml"),
    override: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key, such as pilot.num_runs=10. Repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the campaign.")] = Path("campaign"),
    model: Annotated[
        str | None, typer.Option("--model", help="Without a plan: 8B, a config.json or its directory, or a hub id.")
    ] = None,
    tokens: Tokens = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Accelerator, such as h100-sxm.")] = None,
    num_devices: Annotated[int | None, typer.Option("--num-devices", min=1, help="Accelerators.")] = None,
    seq_len: Annotated[int, typer.Option("--seq-len", min=1, help="Tokens of a sequence; with --model.")] = 4096,
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", min=1, help="Sequences of a forward pass on a device; with --model.")
    ] = None,
    lora: Annotated[int | None, typer.Option("--lora", min=1, help="Rank of adapters on all linear layers.")] = None,
    strategy: Annotated[
        Literal["ddp", "fsdp", "hsdp"], typer.Option("--strategy", help="What the devices share.")
    ] = "fsdp",
    checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Compute activations twice to keep fewer.")
    ] = False,
    eval_tokens: Annotated[
        str | None, typer.Option("--eval-tokens", help="Validation tokens over the whole run; with --model.")
    ] = None,
    synthetic_tokens: Annotated[
        str | None, typer.Option("--synthetic-tokens", help="Replay that the base model writes before the run.")
    ] = None,
    mfu: Annotated[
        float | None, typer.Option("--mfu", help="Share of the peak; default: measured, else a table.")
    ] = None,
    tflops: Annotated[float | None, typer.Option("--tflops", help="TFLOP/s that a device achieves.")] = None,
    speed: Annotated[
        float | None, typer.Option("--tokens-per-second", help="Measured, of all devices together.")
    ] = None,
    usd: Annotated[float | None, typer.Option("--usd-per-hour", min=0, help="Price of a device for an hour.")] = None,
    carbon: Annotated[
        float | None, typer.Option("--co2-per-kwh", min=0, help="kg of CO2; default: the world's average.")
    ] = None,
    checkpoints: Annotated[int, typer.Option("--checkpoints", min=0, help="To resume from, kept at a time.")] = 2,
    exports: Annotated[int, typer.Option("--exports", min=0, help="Models kept, in bf16.")] = 1,
    hardware: Annotated[
        Path | None, typer.Option("--hardware", help="Your own figures; default: cptplan.hardware.yaml if there.")
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh-prices", help="Ask gpuhunt for prices, write them to --hardware, and end.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Data on stdout as JSON; all else stays on stderr.")] = False,
) -> None:
    """Price the plan, or any model and number of tokens: FLOPs, hours, money, energy, memory, storage."""
    from cptplan.price import pricing

    screen = Screen(as_json=as_json)
    if refresh:
        _refresh(screen, hardware)
        return
    if tokens is not None and model is None:
        raise ConfigError(f"--tokens must come with --model; got {tokens!r} alone.", hint="leave it out for the plan")
    if sum(given is not None for given in (mfu, tflops, speed)) > 1:
        raise ConfigError(
            "speed must be given once; got two of --mfu, --tflops, --tokens-per-second.", hint="leave one out"
        )
    terms = pricing.Terms(
        num_devices=num_devices or DEFAULT_DEVICES,
        seq_len=seq_len,
        micro_batch_tokens=None if micro_batch is None else micro_batch * seq_len,
        strategy=strategy,
        activation_checkpointing=checkpointing,
        lora_rank=lora,
        eval_tokens=0.0 if eval_tokens is None else pricing.parse_tokens(eval_tokens, "--eval-tokens"),
        synthetic_tokens=0.0
        if synthetic_tokens is None
        else pricing.parse_tokens(synthetic_tokens, "--synthetic-tokens"),
        mfu=mfu,
        flops_per_second=None if tflops is None else tflops * TERAFLOPS,
        tokens_per_second=speed,
        usd_per_hour=usd,
        co2_kg_per_kwh=carbon,
        kept_checkpoints=checkpoints,
        kept_exports=exports,
        hardware_file=hardware,
    )
    if model is not None:
        rows = pricing.price_model(model, pricing.parse_tokens(tokens), gpu or DEFAULT_GPU, terms)
        title = f"Cost of {tokens} tokens, {model}"
    else:
        from cptplan.config import read_project
        from cptplan.workspace import Workspace

        project, workspace = read_project(config, override or []), Workspace(root=out)
        workspace.check(project)
        rows = pricing.price_plan(project, workspace, gpu=gpu, num_devices=num_devices, terms=terms)
        title = "Cost of the plan"
    screen.table(title, pricing.COLUMNS, [row.cells() for row in rows])
    for line in pricing.source_lines(rows):
        screen.say(line)
    screen.result({"rows": [row.to_json() for row in rows]})
    screen.next_command("cptplan init" if model else f"cptplan launch --target accelerate -c {config} -o {out}")


def _refresh(screen: Screen, hardware: Path | None) -> None:
    """Replace the prices in the user's file by those of today."""
    from cptplan.price import refresh as price_refresh
    from cptplan.price.hardware import USER_FILE

    path = hardware or USER_FILE
    with screen.stage("prices"):
        changes = price_refresh.refresh_prices(path)
    screen.table("Prices of a device for an hour, USD", price_refresh.COLUMNS, [change.cells() for change in changes])
    screen.say(f"wrote {path}")
    screen.result({"file": str(path), "prices": [change.to_json() for change in changes]})
    named = "" if hardware is None else f" --hardware {hardware}"
    screen.next_command(f"cptplan cost --model 8B --tokens 50B{named}")
