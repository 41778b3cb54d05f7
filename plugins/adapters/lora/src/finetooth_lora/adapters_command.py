"""The command `ft adapters`, which compares two adapters and combines several."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import click
from finetooth_hooks import CommandContext, EngineError, UserError
from finetooth_peftfiles.resuming import place

Method = Literal["linear", "ties", "dare_linear", "dare_ties", "cat"]
SAMPLES = ("ties", "dare_linear", "dare_ties")
"""Methods that drop a part of the numbers, and need the share that stays."""


@click.group(name="adapters")
def command() -> None:
    """Compare adapters, and combine several into one."""


def adapter_folder(obj: CommandContext, reference: str) -> Path:
    """The folder of an adapter.

    Args:
        reference: a run by its folder or by its name under runs/, or an adapter's folder.

    Raises:
        UserError: the reference is not an adapter, or a file of it is damaged.
    """
    run = obj.run_folder(reference)
    try:
        return place(str(run or reference))
    except UserError as error:
        raise UserError(str(error.problem).removeprefix("adapter.resume_from: "), action=error.action) from error


@command.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--rows", type=click.IntRange(min=1), default=12, show_default=True, help="Number of modules to show.")
@click.pass_obj
def diff(obj: CommandContext, first: str, second: str, rows: int) -> None:
    """Show how A and B differ: their settings, and for each module the size of both additions and their difference.

    A and B are runs or adapters' folders. The base is not loaded.
    """
    from finetooth_lora.comparison import compare

    compared = compare(adapter_folder(obj, first), adapter_folder(obj, second))
    for name, (ours, theirs) in sorted(compared.settings.items()):
        click.echo(f"{name}: {ours} in A, {theirs} in B")
    if not compared.settings:
        click.echo("settings: the same")
    for side, only in (("A", compared.only_first), ("B", compared.only_second)):
        if only:
            click.echo(f"only in {side}: {len(only)} modules, such as {only[0]}")
    if not compared.modules:
        click.echo("no module has comparable additions in both adapters")
        return
    click.echo(f"{'module':<48} {'|A|':>9} {'|B|':>9} {'|A-B|':>9} {'cosine':>7}")
    far = sorted(compared.modules, key=lambda m: -m.difference)
    for module in far[:rows]:
        name = module.path if len(module.path) <= 48 else f"...{module.path[-45:]}"
        click.echo(f"{name:<48} {module.first:9.4g} {module.second:9.4g} {module.difference:9.4g} {module.cosine:7.3f}")
    if len(far) > rows:
        click.echo(f"and {len(far) - rows} more modules; --rows {len(far)} shows all")
    whole = math.sqrt(sum(module.difference**2 for module in far))
    base = math.sqrt(sum(module.first**2 for module in far))
    share = f", {whole / base:.1%} of |A|" if base else ""
    click.echo(f"all modules: |A-B| {whole:.4g}{share}")


@command.command()
@click.argument("adapters", nargs=-1, required=True, metavar="A B ...")
@click.option("--weights", help="A factor for each, such as 0.7,0.3; default: equal ones that sum to 1.")
@click.option(
    "--method",
    type=click.Choice(["linear", "ties", "dare_linear", "dare_ties", "cat"]),
    default="cat",
    show_default=True,
    help="cat: the exact sum, whose rank is the sum of the ranks; linear: A and B summed separately; ties, dare: "
    "keep part of the numbers.",
)
@click.option("--density", type=click.FloatRange(0, 1, min_open=True), help="Share of numbers that ties and dare keep.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of what dare keeps.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.pass_obj
def merge(
    obj: CommandContext,
    adapters: tuple[str, ...],
    weights: str | None,
    method: Method,
    density: float | None,
    seed: int,
    output: Path,
) -> None:
    """Combine several adapters on the same base into one, by peft's add_weighted_adapter.

    A, B, ... are runs or adapters' folders; the result is an adapter's folder like theirs. The base is not loaded.
    """
    if len(adapters) < 2:
        raise UserError("adapters merge: one adapter is given", action="name two or more")
    if output.exists():
        raise UserError(f"--output: {output} exists", action="name another folder; nothing was changed")
    if (density is None) == (method in SAMPLES):
        problem = (
            f"--method {method} needs the share of numbers to keep"
            if density is None
            else (f"--density is for {', '.join(SAMPLES)}, and --method is {method}")
        )
        raise UserError(problem, action="add --density, such as 0.5" if density is None else "leave it out")
    factors = parse_weights(weights, len(adapters))
    folders = [adapter_folder(obj, reference) for reference in adapters]
    from finetooth_lora.combination import combined

    try:
        combined(folders, factors, method, density, seed, output)
    except OSError as error:
        raise EngineError(f"{output} cannot be written: {error}", action="choose another --output") from error
    click.echo(f"merged {len(folders)} adapters by {method}: {output}")


def parse_weights(text: str | None, count: int) -> list[float]:
    """Read one weight for each adapter; without a text they are equal and sum to one.

    Raises:
        UserError: the text does not have one number per adapter.
    """
    if text is None:
        return [1 / count] * count
    parts = text.replace(",", " ").split()
    try:
        found_: list[Any] = [float(part) for part in parts]
    except ValueError as error:
        raise UserError(f"--weights {text}: {error}", action="give a number for each, such as 0.7,0.3") from error
    if len(found_) != count or not all(math.isfinite(factor) for factor in found_):
        raise UserError(
            f"--weights {text}: {len(found_)} numbers for {count} adapters", action="give a finite number for each"
        )
    return found_
