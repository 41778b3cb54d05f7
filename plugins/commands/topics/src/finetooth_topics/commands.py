"""`ft agent-docs` and `ft fetch`; what is copied lies in the package, or in the checkout that it was installed from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
from finetooth_hooks.errors import UserError, install_command

from finetooth_topics.topics import OVERVIEW, get_doc, list_topics

KEPT = Path(__file__).with_name("kept")
_ABOVE = Path(__file__).parents
CHECKOUT = _ABOVE[min(5, len(_ABOVE) - 1)]
"""The repository's root, where this is a checkout; a folder without these places, where it is installed."""
PLACES = {"recipes": "docs/recipes", "examples": "examples"}
"""What can be fetched, and where it is in a checkout."""


@click.command("agent-docs")
@click.argument("topic", required=False, default=OVERVIEW)
@click.option("--list", "list_", is_flag=True, help="List the topics.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def agent_docs(topic: str, list_: bool, as_json: bool) -> int:
    """Print what a coding assistant has to know about TOPIC; without TOPIC, the overview."""
    if list_:
        topics = list_topics()
        listed = "\n".join(f"{name:<20}{title}" for name, title in topics.items())
        click.echo(json.dumps(topics, indent=2) if as_json else listed)
        return 0
    text = get_doc(topic)
    click.echo(json.dumps({"topic": topic, "text": text}) if as_json else text.rstrip())
    return 0


@click.command("fetch")
@click.argument("what", type=click.Choice(tuple(PLACES)))
@click.argument("name", required=False)
@click.option("--to", type=click.Path(path_type=Path), help="The folder to copy into; default: one of that name, here.")
def fetch(what: str, name: str | None, to: Path | None) -> int:
    """Copy recipes or examples into a folder, all of them or the one of NAME. It needs no network, and never overwrites
    an existing file."""
    source = place_of(what)
    files = sorted(path for path in source.rglob("*") if path.is_file() and not _hidden(path.relative_to(source)))
    chosen = [path for path in files if name in (None, path.name, path.stem)]
    if not chosen:
        raise UserError(f"no {what} of name {name!r}", action=f"choose of {', '.join(path.stem for path in files)}")
    target = to or Path(what)
    copies = {path: target / path.relative_to(source) for path in chosen}
    for path, copy in copies.items():
        if copy.exists() and copy.read_bytes() != path.read_bytes():
            raise UserError(f"{copy} exists, and is another file", action="add --to FOLDER; nothing was copied")
    try:
        for path, copy in copies.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            click.echo(copy)
    except OSError as error:
        raise UserError(f"--to: {target}: {error.strerror}", action="name a folder that can be written") from error
    return 0


def place_of(what: str) -> Path:
    """Where the files lie.

    Raises:
        UserError: the package was made without them.
    """
    for place in (KEPT / what, CHECKOUT / PLACES[what]):
        if place.is_dir():
            return place
    raise UserError(
        f"this installation has no {what}", action=install_command("finetooth-topics", option="--force-reinstall")
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)
