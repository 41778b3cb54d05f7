"""`ft registry curves`: what the versions of a model measured while they trained."""

from __future__ import annotations

import json
from pathlib import Path

import click

from finetooth_registry.commands.options import HERE


@click.command("curves")
@click.argument("model")
@click.option("--metric", default="eval/loss", show_default=True, help="The metric; lower is better.")
@click.option("--json", "as_json", is_flag=True, help="Print every point as JSON.")
@click.option(
    "--svg", "folder", type=click.Path(path_type=Path), metavar="FOLDER", help="Write plots: by step, by corpus."
)
@HERE
def curves(model: str, metric: str, as_json: bool, folder: Path | None, where: str) -> None:
    """List the lowest value of each version of MODEL with its step, the step that was kept, and the training rows."""
    from finetooth_hooks.errors import UserError
    from finetooth_toolbox.cli.tables import plain_console, show, table

    from finetooth_registry.curves import curves as read
    from finetooth_registry.curves import pictures
    from finetooth_registry.remote import open_registry

    made = read(open_registry(where), model, metric)
    if folder is not None:
        if folder.exists():
            raise UserError(f"--svg {folder} exists", action="choose another folder")
        folder.mkdir(parents=True)
        for name, drawn in pictures(made, metric).items():
            (folder / name).write_text(drawn, encoding="utf-8")
    if as_json:
        click.echo(json.dumps([curve.as_json() for curve in made], indent=2))
        return
    cells = [
        [
            curve.version, curve.status, f"{curve.rows or '-'}", f"{curve.minimum:.6g}", str(curve.step),
            "-" if curve.kept is None else f"{curve.kept}{'' if curve.selected else ' (not the lowest)'}",
        ]
        for curve in made
    ]  # fmt: skip
    header = ("version", "status", "training rows", f"lowest {metric}", "at step", "kept step")
    console = plain_console()
    show(console, table(console, model, header, cells))
