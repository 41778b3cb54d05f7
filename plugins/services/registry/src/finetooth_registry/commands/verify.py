"""`ft verify`, `ft registry verify`: the chain from the raw data to what is served, link by link."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from finetooth_hooks.errors import UserError

from finetooth_registry.commands.options import HERE

if TYPE_CHECKING:
    from rich.tree import Tree

    from finetooth_registry.lineage import Node


@click.command("verify")
@click.argument("what", metavar="PATH|VERSION")
@click.option(
    "--trust", "keys", multiple=True, type=click.Path(path_type=Path, exists=True), help="Public key; for a folder."
)
@HERE
def verify(what: str, keys: tuple[Path, ...], where: str) -> None:
    """Check a version (NAME, NAME@v3, NAME@CHANNEL), or a folder that `ft registry get`, `ft merge` or `ft export`
    wrote, link by link.

    What it was made of is printed first, down to the raw data and the base. Exit code 1: a link does not hold.
    """
    from finetooth_saving.origins import RECORD
    from finetooth_toolbox.cli.tables import plain_console, show, table
    from finetooth_toolbox.files.manifests import MANIFEST, sha256_of

    from finetooth_registry import records
    from finetooth_registry.lineage import Node, lineage, lineage_of_folder
    from finetooth_registry.remote import open_registry
    from finetooth_registry.verifying import verify_export, verify_folder, verify_version

    folder = Path(what)
    if keys and not (folder / RECORD).is_file():
        problem = f"--trust: {what} is not a folder of ft registry get, and the keys of a registry count"
        raise UserError(problem, action="leave it out")
    if folder.is_dir() and not (folder / RECORD).is_file():
        opened = open_registry(where)
        links, version = verify_export(folder, opened)
        sources = () if version is None else (lineage(opened, version),)
        made_of = Node("weights", folder.name, sha256_of(folder / MANIFEST), (), sources)
    elif folder.is_dir():
        texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in keys}
        trusted = {path.stem: records.key_from_json(text, str(path)) for path, text in texts.items()}
        links = list(verify_folder(folder, trusted or open_registry(where).trusted()))
        made_of = lineage_of_folder(folder)
    else:
        opened = open_registry(where)
        version = opened.version(what)
        links = list(verify_version(opened, version))
        made_of = lineage(opened, version)
    console = plain_console()
    console.print(_tree(made_of), soft_wrap=True)
    cells = [[link.what, "yes" if link.holds else "NO", link.said] for link in links]
    show(console, table(console, what, ("link", "holds", "what was found"), cells))
    if not all(link.holds for link in links):
        raise click.exceptions.Exit(1)


def _tree(node: Node) -> Tree:
    """The origins of a node as a tree; a version shows its number of files, everything else its facts."""
    from finetooth_toolbox.text.controls import escape_controls
    from rich.text import Text
    from rich.tree import Tree

    version = node.version
    if node.kind == "version" and node.sources:
        summary = f"{len(node.facts)} files" + (
            f", in {', '.join(version.channels)}" if version and version.channels else ""
        )
    else:
        summary = ", ".join(f"{name}: {value}" for name, value in node.facts if node.kind != "base")
    shown = escape_controls(f"{node.kind} {node.title}  {node.digest[:12] or 'no digest'}  {summary}".rstrip())
    made = Tree(Text(shown))
    for source in node.sources:
        made.children.append(_tree(source))
    return made
