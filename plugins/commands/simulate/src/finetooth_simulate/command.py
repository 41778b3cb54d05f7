"""`ft simulate`: what a run would send over a slow link."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from finetooth_hooks.entries import Strategy
from finetooth_hooks.errors import RecipeError, UserError
from finetooth_toolbox.cli.recipe_arguments import Described, recipe_arguments, with_output
from finetooth_toolbox.text.measures import measured

if TYPE_CHECKING:
    from finetooth_hooks.context import CommandContext
    from finetooth_hooks.plan import Pick
    from finetooth_hooks.protocols import Foreseen, Traffic

    from finetooth_simulate.links import Sent

RATES = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
TIMES = {"ms": 1, "s": 1000}
BYTES = {"fp64": 8, "fp32": 4}
"""Of a number of the model, by `train.precision`; others have 2."""
OVER_EVERY_STEP, RARELY = "ddp", "diloco"
"""What a strategy is compared with, and what is simulated where the recipe names none."""


@click.command("simulate")
@recipe_arguments
@click.option(
    "--link",
    metavar="RATE",
    required=True,
    help="What each island or rank sends at most, such as 100Mbit (3600Gbit: NVLink 4; 512Gbit: PCIe 5).",
)
@click.option("--rtt", metavar="TIME", default="0ms", show_default=True, help="A round trip between two islands.")
@click.option("--islands", type=click.IntRange(min=2), help="How many; default: those of the recipe.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the run; default: those of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_obj
def command(
    context: CommandContext,
    recipe: Described,
    overrides: tuple[str, ...],
    output: str | None,
    link: str,
    rtt: str,
    islands: int | None,
    steps: int | None,
    as_json: bool,
) -> None:
    """Show what a run of RECIPE over several islands would send, how long that takes, and what ddp would send.

    KEY=VALUE changes one setting, as for ft run. Reads the recipe, the data and the model's config; loads no weights,
    opens no connection and writes nothing. A recipe without a strategy is simulated with diloco.
    """
    from finetooth_simulate.links import Link, sent

    over = Link(measured(link, RATES, "--link", "100Mbit"), measured(rtt, TIMES, "--rtt", "80ms") / 1000)
    if over.rate == 0:
        raise UserError("--link is 0, and nothing would arrive", action="write it as 100Mbit")
    job = context.rows(recipe, with_output(overrides, output)).decided
    trained, steps = job.request.trains.parameters, steps or job.plan.total_steps
    if steps is None:
        raise UserError("the recipe does not say how many steps the run takes", action="give --steps")
    pick, world = strategy_of(job.plan.recipe.get("scale") or {}, islands)
    run = foreseen(job, world)
    name, traffic = traffic_of(context, pick, trained, world, run)
    if traffic.peers < 2:
        raise UserError("one island sends nothing", action="give --islands")
    _, each = traffic_of(context, OVER_EVERY_STEP, trained, traffic.peers, run)
    takes, compared = sent(traffic, over, steps), sent(each, over, steps)
    if as_json:
        import json

        less = {"bytes": _ratio(compared.wire, takes.wire), "seconds": _ratio(compared.seconds, takes.seconds)}
        made = {
            "strategy": name, "parameters": trained, "islands": traffic.peers, "steps": steps, "every": traffic.every,
            "link": asdict(over), "sent": asdict(takes), OVER_EVERY_STEP: asdict(compared), "times_less": less,
        }  # fmt: skip
        click.echo(json.dumps(made, indent=2, sort_keys=True))
        context.said_json = True
        return
    _show(f"{trained:,} numbers train on {traffic.peers} islands, {steps:,} steps", {name: takes, "ddp": compared})


def strategy_of(scale: Mapping[str, Any], islands: int | None) -> tuple[Pick, int]:
    """What is simulated, and over how many ranks.

    Args:
        scale: the section of the recipe.
        islands: if they are others than the recipe's; each is then one rank.

    Raises:
        RecipeError: nothing says how many islands there are.
    """
    strategy = scale.get("strategy", "auto")
    pick: Pick = RARELY if strategy in ("auto", {"name": "auto"}) else strategy
    if islands is not None:
        return pick if isinstance(pick, str) else {k: v for k, v in pick.items() if k != "num_islands"}, islands
    devices = scale.get("devices", "auto")
    if not isinstance(devices, int):
        raise RecipeError("scale.devices", "it does not say how many ranks there are", action="give --islands")
    return pick, devices * int(scale.get("nodes", 1))


def foreseen(job: Any, world: int) -> Foreseen:
    """What a step of a decided run puts through its model; rows are as long as they are on average."""
    from finetooth_hooks.protocols import Foreseen

    train, base, report = job.plan.train, job.request.base, job.prepared.report
    average = report.tokens / max(report.examples, 1)
    of_rank = train.batch_size * average / world
    passes = math.ceil(of_rank / train.micro_batch_tokens) if train.micro_batch_tokens else 1
    size, facts = BYTES.get(train.precision, 2), base.facts
    outside = facts.vocab_size * (1 if facts.tied else 2) * facts.hidden_size
    return Foreseen(size * base.model.parameters, size * outside, facts.layers, max(1, passes))


def traffic_of(context: CommandContext, pick: Pick, trained: int, world: int, run: Foreseen) -> tuple[str, Traffic]:
    """The strategy's name, and what it says of itself.

    Raises:
        UserError: it says nothing.
    """
    name = pick if isinstance(pick, str) else str(pick["name"])
    entry = context.catalog.get("strategy", name, setting="scale.strategy").entry
    assert isinstance(entry, Strategy)
    if "traffic" not in entry.capabilities:
        raise UserError(f"the strategy {name} does not say what it sends", action="choose diloco, ddp or fsdp")
    more = {"run": run} if "shards" in entry.capabilities else {}
    traffic: Traffic = context.build("strategy", pick, setting="scale.strategy").traffic(trained, world, **more)
    return name, traffic


def _ratio(more: float, less: float) -> float | None:
    return round(more / less, 2) if less else None


def _show(title: str, rows: Mapping[str, Sent]) -> None:
    from finetooth_toolbox.cli.tables import duration, plain_console, show, table
    from finetooth_toolbox.text.measures import size

    headers = ("strategy", "exchanges", "given", "on the link", "time", "one exchange")
    lines = [
        (
            name,
            f"{of.exchanges:,}",
            size(of.given),
            size(of.wire),
            duration(of.seconds),
            f"{of.seconds / of.exchanges:.3g} s",
        )
        for name, of in rows.items()
    ]
    first, *_, last = rows.values() if len(rows) > 1 else [*rows.values()] * 2
    notes = [
        "bytes are those that one island sends; times are those of the link alone, with nothing computed meanwhile, "
        "and all islands exchange in a ring",
    ]
    if first is not last and first.wire and first.seconds:
        sends, takes = last.wire / first.wire, last.seconds / first.seconds
        fewer = f"{sends:,.1f} times fewer bytes" if sends >= 1 else f"{1 / sends:,.1f} times more bytes"
        shorter = f"{takes:,.1f} times less time" if takes >= 1 else f"{1 / takes:,.1f} times more time"
        notes.insert(0, f"{fewer}, {shorter}")
    console = plain_console()
    show(console, table(console, title, headers, lines, numbers=5), "\n".join(notes))
