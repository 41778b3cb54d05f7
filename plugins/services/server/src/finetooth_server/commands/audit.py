"""`ft audit`: the audit record of a server."""

from __future__ import annotations

from pathlib import Path

import click

from finetooth_server.audit import audit_key
from finetooth_server.audit import verify as verify_record
from finetooth_server.commands.place import FOLDER


@click.group(name="audit")
def command() -> None:
    """Check the audit record of a server."""


@command.command()
@click.argument("record", type=click.Path(path_type=Path), default=FOLDER / "audit.jsonl")
@click.option("--head", default="", help="A hash that was noted earlier and must be among the lines.")
@click.option("--key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The key that signs the "
              "head; default is audit.key next to the record, if it exists.")  # fmt: skip
def verify(record: Path, head: str, key: Path | None) -> None:
    """Check that no line was changed, removed or moved, and that the record ends where its server left it."""
    beside = record.parent / "audit.key"
    signed = key or (beside if beside.is_file() else None)
    verified = verify_record(record, head=head, key=None if signed is None else audit_key(record.parent, signed))
    click.echo(f"{verified.lines} lines, none changed; head {verified.head}")
