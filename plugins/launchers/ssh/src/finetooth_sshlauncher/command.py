"""`ft launch`: train what a recipe describes on several hosts."""

from __future__ import annotations

import json

import click
from finetooth_hooks import UserError


@click.command("launch", context_settings={"ignore_unknown_options": True})
@click.option("--hosts", required=True, help="Hosts by their ssh names, by commas; that of rank 0 first.")
@click.option("--devices", type=click.IntRange(min=1), help="Ranks on each host; default: the recipe's.")
@click.argument("arguments", metavar="RECIPE [KEY=VALUE]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def command(ctx: click.Context, hosts: str, devices: int | None, arguments: tuple[str, ...]) -> int:
    """Train RECIPE on several hosts, by ssh without a password.

    The same as `ft run` with scale: {nodes: 2, launcher: {name: ssh, hosts: [a, b]}}; its options may follow RECIPE.
    """
    names = [name.strip() for name in hosts.split(",")]
    if len(set(names)) < len(names) or not all(names):
        raise UserError(f"--hosts {hosts}: each host once, by commas", action="write --hosts gpu-1,gpu-2")
    set_here = [f"scale.nodes={len(names)}", f"scale.launcher={json.dumps({'name': 'ssh', 'hosts': names})}"]
    if devices is not None:
        set_here.append(f"scale.devices={devices}")
    root = ctx.find_root()
    assert isinstance(root.command, click.Group)
    run = root.command.get_command(root, "run")
    assert run is not None
    recipe, *rest = arguments
    with run.make_context("run", [recipe, *set_here, *rest], parent=root) as inner:
        code: int = run.invoke(inner)
    return code
