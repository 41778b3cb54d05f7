"""`ft registry collect`: blobs that nothing names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetooth_registry.commands.options import HERE, here

if TYPE_CHECKING:
    from finetooth_registry.registry import Registry


@click.command("collect")
@click.option("--delete", is_flag=True, help="Delete the blobs; without this they are only listed.")
@HERE
def collect_blobs(delete: bool, where: str) -> None:
    """List the blobs that no version names."""
    sizes = collect(here(where), dry_run=not delete)
    done = "deleted" if delete else "would be deleted"
    click.echo(f"{len(sizes)} blobs of {sum(size for _, size in sizes) / 1e6:.1f} MB {done}")


def collect(registry: Registry, *, dry_run: bool) -> list[tuple[str, int]]:
    """Remove blobs that nothing names; returns name and bytes of each.

    Args:
        dry_run: remove nothing.
    """
    last = registry.events(newest=1)
    named = named_blobs(registry)
    with registry.alone():  # registration is locked; new versions are included
        named |= named_blobs(registry, after=last[0].sequence if last else 0)
        return registry.blobs.remove_unnamed(named, dry_run=dry_run)


def named_blobs(registry: Registry, after: int = 0) -> set[str]:
    """SHA-256 of every blob that a version, a measurement or a decision names.

    Args:
        after: only those named by events after this one.
    """
    from sqlalchemy import select

    from finetooth_registry import decisions, records
    from finetooth_registry.anywhere import files_of
    from finetooth_registry.tables import MEASUREMENTS

    named: set[str] = set()
    for event in registry.events(kinds=("registered", "signed", "measured", *decisions.KINDS), after=after):
        digests = event.detail.get("answers") or {}
        named |= {event.detail.get("record", ""), event.detail.get(decisions.RECORD, ""), *digests.values()}
        if event.kind == "registered":
            named |= set(files_of(records.read(registry.blobs.read(event.detail["record"]))).values())
    if not after:  # early registries logged less
        named |= {version.record for version in registry.versions()}
        with registry.reading() as connection:
            named |= {sha256 for (sha256,) in connection.execute(select(MEASUREMENTS.c.answers)) if sha256}
    return named
