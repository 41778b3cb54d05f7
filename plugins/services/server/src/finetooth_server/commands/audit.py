"""`ft audit`: the audit record of a server."""

from __future__ import annotations

from pathlib import Path

import click

from finetooth_server.audit import verify as verify_record
from finetooth_server.commands.place import FOLDER


@click.group(name="audit")
def command() -> None:
    """Check the audit record of a server."""


@command.command()
@click.argument("record", type=click.Path(path_type=Path), default=FOLDER / "audit.jsonl")
@click.option("--head", default="", help="A hash that was noted earlier and must be among the lines.")
def verify(record: Path, head: str) -> None:
    """Check that no line was changed, removed or moved."""
    found = verify_record(record, head=head)
    click.echo(f"{found.lines} lines, none changed; head {found.head}")
