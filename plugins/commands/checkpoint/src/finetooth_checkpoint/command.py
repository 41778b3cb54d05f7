"""`ft checkpoint`: look at checkpoints, check them, remove them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from finetooth_hooks.errors import FinetoothError, UserError

if TYPE_CHECKING:
    from finetooth_hooks.context import CommandContext


@click.group("checkpoint")
def command() -> None:
    """List, check, compare and remove checkpoints.

    PLACE is a run by its folder or its name under runs/, a folder of checkpoints, one checkpoint, or a URL
    (s3://bucket/run).
    """


@command.command("list")
@click.argument("place")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_(commands: CommandContext, place: str, as_json: bool) -> int:
    """List the checkpoints of PLACE, newest first, with their metrics."""
    from finetooth_toolbox.cli.tables import plain_console, table
    from finetooth_toolbox.cli.tables import show as print_parts
    from finetooth_toolbox.text.measures import size as readable

    store = commands.checkpoints(place)
    aside = store.set_aside()
    rows, problems = [], 0
    for name in store.names(none=bool(aside)):
        try:
            manifest: Mapping[str, Any] = store.manifest(name)
            rows.append({"name": name, **_summary(manifest)})
        except FinetoothError as error:
            problems += 1
            rows.append({"name": name, "problem": error.problem})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return 2 * bool(problems)
    cells = []
    for row in rows:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(row.get("metrics", {}).items()))
        size = readable(row["bytes"]) if "bytes" in row else "-"
        cells.append([row["name"], size, str(row.get("problem", metrics))])
    console = plain_console()
    if cells:
        print_parts(console, table(console, "Checkpoints", ["name", "size", "metrics"], cells, numbers=1))
    else:
        click.echo("no complete checkpoint")
    for name, reason in aside.items():
        click.echo(f"in quarantine: {name}, {reason}")
    return 2 * bool(problems)


@command.command("show")
@click.argument("place")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
@click.pass_obj
def show(commands: CommandContext, place: str, as_json: bool) -> int:
    """Show one checkpoint: PLACE, or the newest one there."""
    store = commands.checkpoints(place)
    name = store.names()[0]
    manifest = store.manifest(name)
    if as_json:
        click.echo(json.dumps(manifest, indent=2))
        return 0
    summary = _summary(manifest)
    lines = [f"{name} of run {manifest.get('run', '?')}, {summary['bytes']:,} bytes in {len(manifest['files'])} files"]
    for group in ("metrics", "base", "data", "environment"):
        lines += [f"  {group + ' ' + key:<40} {value}" for key, value in sorted(manifest.get(group, {}).items())]
    lines += [f"  {path:<40} {entry['size']:>12,} bytes" for path, entry in sorted(manifest["files"].items())]
    click.echo("\n".join(lines))
    return 0


@command.command("verify")
@click.argument("place")
@click.pass_obj
def verify(commands: CommandContext, place: str) -> int:
    """Check every file of every checkpoint of PLACE against its SHA-256."""
    store = commands.checkpoints(place)
    bad = 0
    for name in store.names():
        problem = store.verify(name)
        bad += bool(problem)
        click.echo(f"{name}: {problem or 'whole'}")
    return 2 * bool(bad)


@command.command("diff")
@click.argument("first")
@click.argument("second")
@click.pass_obj
def diff(commands: CommandContext, first: str, second: str) -> int:
    """Compare two checkpoints: which files differ, and what their manifests say. Exit code 1 if they do."""
    from finetooth_saving.places import difference

    left, right = commands.checkpoints(first), commands.checkpoints(second)
    differences = difference(left.manifest(left.names()[0]), right.manifest(right.names()[0]))
    for line in (*differences.files, *differences.facts):
        click.echo(line)
    if not differences.files and not differences.facts:
        click.echo("no difference")
    return int(bool(differences.files))


@command.command("prune")
@click.argument("place")
@click.option("--keep-last", type=click.IntRange(min=1), required=True, help="Number of newest checkpoints that stay.")
@click.option("--keep-best", type=click.IntRange(min=1), help="Number of best checkpoints that stay too.")
@click.option("--metric", show_default="eval/loss", help="Metric that decides which are best.")
@click.option("--mode", type=click.Choice(["auto", "min", "max"]), show_default="auto")
@click.option("--yes", is_flag=True, help="Remove the checkpoints; without this they are only listed.")
@click.pass_obj
def prune(
    commands: CommandContext, place: str, keep_last: int, keep_best: int | None, metric: str | None, mode: str | None,
    yes: bool,
) -> int:  # fmt: skip
    """Remove all but the newest and the best checkpoints of PLACE.

    A damaged checkpoint stays, since it may be the only one.
    """
    from finetooth_saving.names import name_of, step_of
    from finetooth_saving.retention import Best, mode_of, superfluous

    for option, given in (("--metric", metric), ("--mode", mode)):
        if keep_best is None and given is not None:
            raise UserError(f"{option}: only --keep-best N compares checkpoints", action=f"add it, or omit {option}")
    metric = metric or "eval/loss"
    checkpoints = commands.checkpoints(place)
    if checkpoints.only:
        raise UserError(f"{place} is one checkpoint", action="give the folder or URL that holds them")
    metrics: dict[int, Mapping[str, float]] = {}
    for name in checkpoints.names():
        if problem := checkpoints.verify(name):
            click.echo(f"{name} stays: {problem}")
            continue
        step = step_of(name)
        assert step is not None
        metrics[step] = checkpoints.manifest(name).get("metrics", {})
    if keep_best is not None and not any(metric in values for values in metrics.values()):
        have = ", ".join(sorted({name for values in metrics.values() for name in values})) or "none"
        raise UserError(f"no checkpoint has the metric {metric}", action=f"there are: {have}")
    way = mode_of(metric) if mode in (None, "auto") else mode
    best = None if keep_best is None else Best(keep_best, metric, "min" if way == "min" else "max")
    surplus = [name_of(step) for step in superfluous(metrics, keep_last, best)]
    for name in surplus:
        if yes:
            checkpoints.remove(name)
        click.echo(f"{name} {'removed' if yes else 'would be removed'}")
    if not surplus:
        click.echo("nothing to remove")
    elif not yes:
        click.echo("nothing was removed; add --yes")
    return 0


def _summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    sizes = [entry["size"] for entry in manifest["files"].values()]
    return {"step": manifest.get("step"), "bytes": sum(sizes), "metrics": manifest.get("metrics", {})}
