"""`ft simulate`: what a run would send over a slow link."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

    from finetooth_simulate.links import Machines, Sent
    from finetooth_simulate.overlap import Overlap

RATES = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
TIMES = {"ms": 1, "s": 1000}
OPERATIONS = {"gflop": 10**9, "tflop": 10**12, "pflop": 10**15}
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
    help="Bandwidth of each island or rank, such as 100Mbit (3600Gbit: NVLink 4; 512Gbit: PCIe 5).",
)
@click.option("--rtt", metavar="TIME", default="0ms", show_default=True, help="Round-trip time between two islands.")
@click.option("--within", metavar="RATE", help="Bandwidth of a rank inside its machine; default: as --link.")
@click.option(
    "--islands", type=click.IntRange(min=2), help="Number of islands, a machine each; default: that of the recipe."
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the run; default: that of the recipe.")
@click.option(
    "--compute",
    metavar="RATE",
    help="Operations per second of a rank, such as 400Tflop: how much of the link hides behind them (fsdp).",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_obj
def command(
    context: CommandContext, recipe: Described, overrides: tuple[str, ...], output: str | None, link: str, rtt: str,
    within: str | None, islands: int | None, steps: int | None, compute: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Show what a run of RECIPE over several islands or ranks would send, how long that takes, and what ddp would send.

    KEY=VALUE changes one setting, as for ft run. Reads the recipe, the data and the model's config; loads no weights,
    opens no connection and writes nothing. A recipe without a strategy is simulated with diloco.
    """
    from finetooth_simulate.links import Link, Machines, sent, together

    between = Link(measured(link, RATES, "--link", "100Mbit"), measured(rtt, TIMES, "--rtt", "80ms") / 1000)
    inside = between if within is None else Link(measured(within, RATES, "--within", "3600Gbit"), 0.0)
    for option, given in (("--link", between), ("--within", inside)):
        if given.rate == 0:
            raise UserError(f"{option} is 0, so no data would arrive", action="write it as 100Mbit")
    job = context.rows(recipe, with_output(overrides, output)).decided
    trained, steps = job.request.trains.parameters, steps or job.plan.total_steps
    if steps is None:
        raise UserError("the recipe does not say how many steps the run takes", action="give --steps")
    pick, world, of_machine = strategy_of(job.plan.recipe.get("scale") or {}, islands)
    machines = Machines(of_machine, between, inside)
    parts = traffic_of(context, pick, world, job)
    if not parts:
        raise UserError("one island has nobody to send to", action="give --islands")
    name = pick if isinstance(pick, str) else str(pick["name"])
    of_parts = [sent(part, machines.link(part), steps) for part in parts]
    of_ddp = [sent(part, machines.link(part), steps) for part in traffic_of(context, OVER_EVERY_STEP, world, job)]
    takes = together(of_parts)
    compared = takes if name == OVER_EVERY_STEP else together(of_ddp)
    overlap = None
    if compute is not None:
        rate = measured(compute, OPERATIONS, "--compute", "400Tflop")
        overlap = overlap_of(context, pick, world, job, parts, machines, rate)
    memory = None if islands is not None or job.plan.memory is None else job.plan.memory.total
    if as_json:
        import json

        less = {"bytes": _ratio(compared.wire, takes.wire), "seconds": _ratio(compared.seconds, takes.seconds)}
        named = [
            {"what": part.what, "peers": part.peers, "within": machines.link(part) is inside, "summed": part.summed,
             "every": part.every, **asdict(of)}
            for part, of in zip(parts, of_parts, strict=True)
        ]  # fmt: skip
        made = {
            "strategy": name, "parameters": trained, "ranks": world, "steps": steps, "every": parts[0].every,
            "link": asdict(between), "within": asdict(inside), "sent": asdict(takes), "parts": named,
            OVER_EVERY_STEP: asdict(compared), "times_less": less, "memory": memory,
            "overlap": None if overlap is None else asdict(overlap),
        }  # fmt: skip
        click.echo(json.dumps(made, indent=2, sort_keys=True))
        context.said_json = True
        return
    rows = {name: takes}
    for part, exchanged in zip(parts, of_parts, strict=True) if len(parts) > 1 else ():
        where = " of a machine" if within and machines.link(part) is inside else ""
        rows[f"  {part.what}, {part.peers} ranks{where}"] = exchanged
    title = f"{trained:,} numbers train on {world:,} ranks, {steps:,} step{'s' * (steps > 1)}"
    _show(title, {**rows, OVER_EVERY_STEP: compared}, takes, memory, overlap)


def strategy_of(scale: Mapping[str, Any], islands: int | None) -> tuple[Pick, int, int]:
    """What is simulated, over how many ranks, and how many of them are on a machine.

    Args:
        scale: the section of the recipe.
        islands: if they are others than the recipe's; each is then one rank, on a machine of its own.

    Raises:
        RecipeError: nothing says how many islands there are.
    """
    strategy = scale.get("strategy", "auto")
    pick: Pick = RARELY if strategy in ("auto", {"name": "auto"}) else strategy
    if islands is not None:
        named = ("num_islands", "within")  # an island of one rank has nothing inside
        return pick if isinstance(pick, str) else {k: v for k, v in pick.items() if k not in named}, islands, 1
    devices = scale.get("devices", "auto")
    if not isinstance(devices, int):
        raise RecipeError("scale.devices", "it does not say how many ranks there are", action="give --islands")
    return pick, devices * int(scale.get("nodes", 1)), devices


def foreseen(job: Any, sharers: int) -> Foreseen:
    """What a step of a decided run puts through its model; rows are as long as they are on average.

    Args:
        sharers: ranks, or groups of ranks that compute the same rows, which share the rows of a step.
    """
    from finetooth_hooks.protocols import Foreseen

    train, base, trains, report = job.plan.train, job.request.base, job.request.trains, job.prepared.report
    average = report.tokens / max(report.examples, 1)
    of_rank = train.batch_size * average / sharers
    passes = max(1, math.ceil(of_rank / train.micro_batch_tokens)) if train.micro_batch_tokens else 1
    size, facts = BYTES.get(train.precision, 2), base.facts
    outside = facts.vocab_size * (1 if facts.tied else 2) * facts.hidden_size
    in_layers = base.model.parameters - outside
    held = in_layers * (size if base.stored is None else base.stored.bytes_per_weight)
    held += size * (outside + (trains.parameters if trains.base_frozen else 0))
    return Foreseen(
        int(held), size * outside, facts.layers, passes, size=size, positions=math.ceil(of_rank / passes),
        hidden=facts.hidden_size, keys=2 * facts.kv_heads * facts.head_dim, linears=len(facts.linear_targets),
        recomputes=train.gradient_checkpointing is True,
    )  # fmt: skip


def overlap_of(
    context: CommandContext, pick: Pick, world: int, job: Any, parts: Sequence[Traffic], machines: Machines, rate: float
) -> Overlap:
    """What a step takes whose layers are gathered while others compute.

    Args:
        parts: what the strategy says of its exchanges.
        rate: operations per second of a rank.

    Raises:
        UserError: the strategy gathers no layers.
    """
    from finetooth_simulate.links import sent
    from finetooth_simulate.overlap import Overlap, pass_of

    built = context.build("strategy", pick, setting="scale.strategy")
    shards = hasattr(built, "sharding") and "shards" in getattr(built, "capabilities", ("shards",))
    divided = built.sharding(world) if shards else None
    if divided is None or divided.weights == 1 or divided.divided or not rate:
        raise UserError(
            "--compute: nothing computes meanwhile" if rate else "--compute is 0, and nothing would be computed",
            action="leave it out; layers are gathered ahead by fsdp alone" if rate else "write it as 400Tflop",
        )
    facts, run = job.request.base.facts, foreseen(job, world // divided.together)
    weights, *others = parts
    of_pass = pass_of(
        weights, run, job.request.trains.parameters, head=facts.vocab_size * facts.hidden_size, divided=divided.layers,
        rate=rate, link=machines.link(weights),
    )  # fmt: skip
    apart = sum(sent(part, machines.link(part), 1).seconds for part in others)
    return Overlap.of(of_pass, run.passes, apart)


def traffic_of(context: CommandContext, pick: Pick, world: int, job: Any) -> list[Traffic]:
    """What a strategy says of the exchanges that a rank takes part in.

    Raises:
        UserError: it says nothing.
    """
    name = pick if isinstance(pick, str) else str(pick["name"])
    entry = context.catalog.get("strategy", name, setting="scale.strategy").entry
    assert isinstance(entry, Strategy)
    if "traffic" not in entry.capabilities:
        raise UserError(
            f"the strategy {name} does not say what it sends",
            action="choose context, ddp, deepspeed, diloco, fsdp or pipeline",
        )
    built, more = context.build("strategy", pick, setting="scale.strategy"), {}
    if "shards" in entry.capabilities | getattr(built, "capabilities", frozenset()):
        divided = built.sharding(world)
        more["run"] = foreseen(job, world // divided.together)
    traffic: Traffic = built.traffic(job.request.trains.parameters, world, **more)
    return [part for part in (traffic, *traffic.also) if part.peers > 1]


def _ratio(more: float, less: float) -> float | None:
    return round(more / less, 2) if less else None


def _show(
    title: str, rows: Mapping[str, Sent], takes: Sent, memory: int | None, overlap: Overlap | None = None
) -> None:
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
    notes = [
        "bytes: what one island or rank sends; time: of the link alone, as if nothing were computed meanwhile; "
        "all exchange in a ring",
    ]
    if memory is not None:
        notes.append(f"a rank takes {size(memory)} of memory at its peak, estimated")
    if overlap is not None:
        notes.append(
            f"a step takes {overlap.step:.3g} s: {overlap.computing:.3g} s of computing, behind which "
            f"{overlap.hidden:.3g} s of {overlap.link:.3g} s on the link hide. Assumed: layers come one ahead, a "
            "layer's gradients leave while the layer before computes; no products between positions, no optimizer"
        )
    compared = rows[OVER_EVERY_STEP]
    if takes is not compared and takes.wire and takes.seconds:
        sends, lasts = compared.wire / takes.wire, compared.seconds / takes.seconds
        fewer = f"{sends:,.1f} times fewer bytes" if sends >= 1 else f"{1 / sends:,.1f} times more bytes"
        shorter = f"{lasts:,.1f} times less time" if lasts >= 1 else f"{1 / lasts:,.1f} times more time"
        notes.insert(0, f"{fewer}, {shorter}")
    console = plain_console()
    show(console, table(console, title, headers, lines, numbers=5), "\n".join(notes))
