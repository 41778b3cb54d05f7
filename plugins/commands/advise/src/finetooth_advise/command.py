"""`ft advise`: what of a model fits which memory, and which method fits what one has."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from finetooth_hooks.compute.ways import Way, Ways
from finetooth_hooks.context import CommandContext
from finetooth_hooks.errors import PlanError, UserError
from finetooth_toolbox.cli.working import working
from finetooth_toolbox.text.measures import memory_of

if TYPE_CHECKING:
    from rich.console import Console

    from finetooth_advise.advice import Advice, Spread

WIDEST = 100
"""Columns that are written at most, also into a pipe."""


@click.command("advise")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--memory", metavar="SIZE", help="Memory of the device, such as 24GB; default: that of this machine.")
@click.option("--cpu", is_flag=True, help="With --memory: a CPU, not an accelerator.")
@click.option("--mac", is_flag=True, help="With --memory: a Mac with an Apple chip, trained by MLX.")
@click.option("--rows", type=click.IntRange(min=1), default=1000, show_default=True, help="Number of rows that train.")
@click.option("--length", type=click.IntRange(min=2), help="Tokens of a row; default: 512.")
@click.option("--tflops", type=click.FloatRange(min=0, min_open=True), help="TFLOP/s that training reaches there.")
@click.option("--devices", type=click.IntRange(min=2), help="Number of devices; shows what of MODEL fits on each.")
@click.option("--goal", is_flag=True, help="Show which method suits which data.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_obj
def command(
    context: CommandContext,
    models: tuple[str, ...],
    memory: str | None,
    cpu: bool,
    mac: bool,
    rows: int,
    length: int | None,
    tflops: float | None,
    devices: int | None,
    goal: bool,
    as_json: bool,
) -> None:
    """Show in which ways MODEL can be trained in a given memory, how long that takes and what is known about the
    quality.

    MODEL is what a recipe's `model` takes, or a folder with nothing but its config.json; no weights are read. For
    several models, one line each shows which way fits. With --devices, it shows the memory of each device, for every
    strategy that spreads a run over them.
    """
    if goal:
        _show_goals(context, as_json)
        return
    if not models:
        raise UserError("ft advise: no model is named", action="write ft advise MODEL, or ft advise --goal")
    if (cpu or mac) and memory is None:
        raise UserError(f"--{'cpu' if cpu else 'mac'} needs --memory", action="add --memory, such as 32GB")
    if cpu and mac:
        raise UserError("--cpu and --mac exclude each other", action="name one")
    if devices is not None and len(models) > 1:
        raise UserError("--devices needs exactly one model", action="name one")
    from finetooth_advise import advice
    from finetooth_advise import made_up_machines as made_up

    size = None if memory is None else memory_of(memory, "--memory")
    make = made_up.processor if cpu else made_up.mac if mac else made_up.accelerator
    hardware = None if size is None else make(size)
    speed = None if tflops is None else tflops * 1e12
    advised = {}
    for model in models:
        with working(f"looking at {model}"):
            backend = made_up.MAC_BACKEND if mac else "auto"
            ways = context.ways(
                model, hardware=hardware, length=length, measure=speed is None, backend=backend
            )  # fmt: skip
        advised[model] = advice.advise(ways, rows=rows, speed=speed)
    if devices is not None:
        spread = _spread(context, models[0], advised[models[0]], devices)
        if as_json:
            _say_json(context, {"devices": devices, **plain_spread(spread, models[0])})
        else:
            _show_spread(spread, models[0])
    elif as_json:
        made = [plain(model_advice, model) for model, model_advice in advised.items()]
        _say_json(context, made[0] if len(made) == 1 else made)
    elif len(advised) == 1:
        _show(advised[models[0]], models[0])
    else:
        _show_several(advised)


def _say_json(context: CommandContext, value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=2, sort_keys=True))
    context.said_json = True


def _spread(context: CommandContext, model: str, whole: Advice, devices: int) -> Spread:
    """What of a model fits each of several devices.

    Raises:
        UserError: they would share one memory.
    """
    from finetooth_hooks.entries import Strategy

    from finetooth_advise.advice import Spread

    hardware = whole.of.hardware
    if hardware.device == "cpu" and len(hardware.devices) == 1 and hardware.host_memory:
        raise UserError("--devices: ranks on this processor share its memory", action="say what each has: --memory")
    words = {
        r.entry.name: r.entry.capabilities for r in context.catalog.all("strategy") if isinstance(r.entry, Strategy)
    }
    sharded, held = dict[str, Ways](), dict[str, str]()
    for name in [name for name, of in words.items() if "shards" in of]:
        with working(f"looking at {model} under {name}"), suppress(PlanError):  # what it needs is not installed
            divided = context.build("strategy", name, setting="--devices").sharding(devices)
            sharded[name] = context.ways(
                model, hardware=hardware, length=whole.of.length, measure=False, sharding=divided
            )
            held[name] = ", ".join(what for _, what in divided.held().values()) or "the whole model"
    copies = tuple(name for name, of in words.items() if not of & {"shards", "optimizer", "islands"})
    return Spread(devices, whole, copies, sharded, held)


def _console() -> Console:
    """A console of at most `WIDEST` columns; in a pipe, too, cells and notes are folded there."""
    from finetooth_toolbox.cli.tables import plain_console

    console = plain_console()
    if console.is_terminal:
        return plain_console(width=min(console.width, WIDEST))
    return plain_console(force_terminal=True, color_system=None, width=WIDEST)


def plain(advice: Advice, model: str) -> dict[str, Any]:
    """Advice as JSON has it."""
    from finetooth_advise.advice import QUALITY

    taken = advice.taken
    return {
        "model": model,
        "parameters": advice.of.parameters,
        "device": advice.of.hardware.label,
        "memory": advice.of.hardware.memory,
        "rows": advice.rows,
        "length": advice.of.length,
        "speed": advice.speed,
        "speed_from": advice.speed_from,
        "taken": None if taken is None else taken.label,
        "ways": [
            {
                "way": way.label,
                "kind": way.kind,
                "recipe": dict(way.changes),
                "fits": way.fits,
                "memory": None if way.memory is None else asdict(way.memory),
                "lacks": way.lacks,
                "seconds": advice.seconds(way),
                "gives_up": list(way.gives_up),
                "quality": QUALITY[way.kind][0],
                "source": QUALITY[way.kind][1],
            }
            for way in advice.of.ways
        ],
    }


def _show(advice: Advice, model: str) -> None:
    from finetooth_toolbox.cli.tables import duration, show, table
    from finetooth_toolbox.text.measures import size
    from rich.text import Text

    from finetooth_advise.advice import QUALITY

    console = _console()
    notes: dict[str, int] = {}  # the number of each, in the order in which the table names them
    headers = ("way", "memory", "time", "fits", "quality")
    rows = [
        (
            way.label,
            "-" if way.memory is None else size(way.memory.total),
            "-" if (seconds := advice.seconds(way)) is None else duration(seconds),
            _fits(advice, way, notes),
            _noted(notes, f"as published: {QUALITY[way.kind][0]} [{QUALITY[way.kind][1]}]"),
        )
        for way in advice.of.ways
    ]
    hardware = advice.of.hardware
    title = f"{model}, {advice.of.parameters:,} parameters, on {hardware.label} ({size(hardware.memory)})"
    lines = [
        *(f"[{number}] {note}" for note, number in notes.items()),
        _measured_by(advice),
        "memory is the plan's estimate of the peak; time counts only the matrix products, without dequantising "
        "stored weights; the numbers after authors are arXiv identifiers",
    ]
    if advice.taken is None:
        lines.append("nothing fits: take a smaller model, shorter rows, or a device with more memory")
    else:
        settings = ", ".join(f"{name}: {_shown_value(value)}" for name, value in advice.taken.changes.items())
        lines.append(f"adapter: auto with quantization: auto takes {advice.taken.label} ({settings})")
    show(console, table(console, title, headers, rows, numbers=2), Text("\n".join(lines)))


def plain_spread(spread: Spread, model: str) -> dict[str, Any]:
    """The same as JSON has it: each way with its memory under each strategy."""
    made = plain(spread.whole, model)
    for place, way in enumerate(made["ways"]):
        under = spread.ways(place).items()
        way["seconds"] = spread.seconds(place)
        way["strategies"] = {
            name: {
                "fits": of.fits,
                "memory": None if of.memory is None else asdict(of.memory),
                "lacks": of.lacks,
                "held": spread.held.get(name, "the whole model"),
            }
            for name, of in under
        }
    taken = spread.taken
    return {**made, "taken": None if taken is None else {"way": taken[0], "strategy": taken[1]}}


def _show_spread(spread: Spread, model: str) -> None:
    from finetooth_toolbox.cli.tables import duration, show, table
    from finetooth_toolbox.text.measures import size

    console, notes = _console(), dict[str, int]()
    names = (*spread.copies, *spread.sharded)
    rows = []
    for place, way in enumerate(spread.whole.of.ways):
        under = spread.ways(place)
        memory = [
            f"cannot work {_noted(notes, of.lacks)}" if of.memory is None else size(of.memory.total)
            for of in under.values()
        ]
        fits = ", ".join(name for name, of in under.items() if of.fits) or "none"
        seconds = spread.seconds(place)
        rows.append((way.label, *memory, "-" if seconds is None else duration(seconds), fits))
    hardware = spread.whole.of.hardware
    title = f"{model} on {spread.devices} of {hardware.label}: memory of each under a strategy"
    taken = spread.taken
    choice = "nothing fits: take a smaller model, shorter rows, or more devices"
    if taken is not None:
        choice = f"{taken[0]} fits under {taken[1]}: scale: {{devices: {spread.devices}, strategy: {taken[1]}}}"
    lines = [
        *(f"[{number}] {note}" for note, number in notes.items()),
        f"{_measured_by(spread.whole)}, as if no rank waited for another",
        *(f"{name}: each device holds the whole model" for name in spread.copies),
        *(f"{name}: each device holds {held}" for name, held in spread.held.items()),
        choice,
    ]
    show(
        console, table(console, title, ("way", *names, "time", "fits"), rows, numbers=len(names) + 1), "\n".join(lines)
    )


def _measured_by(advised: Advice) -> str:
    return (
        f"{advised.rows:,} rows of {advised.of.length} tokens, once; time at {advised.speed / 1e12:.3g} TFLOP/s, "
        f"{advised.speed_from}"
    )


def _show_several(advised: Mapping[str, Advice]) -> None:
    """A line for each model: the best way that fits, or what the smallest lacks."""
    from finetooth_toolbox.cli.tables import duration, plain_console, show, table
    from finetooth_toolbox.text.measures import size

    unfolded = plain_console()  # a line for each model, aligned, in a pipe
    rows = []
    for model, advice in advised.items():
        way = advice.taken
        possible = [each.memory.total for each in advice.of.ways if each.memory is not None]
        least = f"nothing; the smallest way would take {size(min(possible))}" if possible else "nothing"
        memory = "-" if way is None or way.memory is None else size(way.memory.total)
        seconds = None if way is None else advice.seconds(way)
        time = "-" if seconds is None else duration(seconds)
        rows.append((model, f"{advice.of.parameters:,}", memory, time, least if way is None else way.label))
    first = next(iter(advised.values()))
    lines = [
        _measured_by(first),
        "the table shows the first way that fits, of those that `ft advise MODEL` lists; memory is the plan's "
        "estimate of the peak",
    ]
    headers = ("model", "parameters", "memory", "time", "what fits")
    title = f"On {first.of.hardware.label} ({size(first.of.hardware.memory)})"
    show(unfolded, table(unfolded, title, headers, rows, numbers=3))
    show(_console(), "\n".join(lines))


def _shown_value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _fits(advised: Advice, way: Way, notes: dict[str, int]) -> str:
    if way is advised.taken:
        return "yes, taken"
    return "yes" if way.fits else "no" if way.memory is not None else f"cannot work {_noted(notes, way.lacks)}"


def _noted(notes: dict[str, int], text: str) -> str:
    """The number of a note under the table, which is added if it is new."""
    return f"[{notes.setdefault(text, len(notes) + 1)}]"


def _show_goals(context: CommandContext, as_json: bool) -> None:
    from finetooth_hooks.entries import Method
    from finetooth_toolbox.cli.tables import show, table

    entries = [registered.entry for registered in context.catalog.all("method")]
    goals = [(e.learns_from, e.rows, e.name, e.summary) for e in entries if isinstance(e, Method) and e.learns_from]
    if as_json:
        names = ("learns_from", "rows", "method", "summary")
        _say_json(context, [dict(zip(names, goal, strict=True)) for goal in goals])
        return
    console = _console()
    headers = ("what you have", "how much of it", "method", "what it does")
    show(console, table(console, "Which method", headers, goals))
