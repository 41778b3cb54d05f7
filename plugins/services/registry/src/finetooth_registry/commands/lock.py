"""`ft registry lock`: the environment of a version as a requirements file, and an environment made of it."""

from __future__ import annotations

from pathlib import Path

import click

from finetooth_registry.commands.options import HERE


@click.command("lock")
@click.argument("version", default="")
@click.option("--ask", is_flag=True, help="Ask pip's index for the hashes that are not known here.")
@click.option(
    "--into", type=click.Path(path_type=Path), metavar="FOLDER", help="Make a virtual environment of it in FOLDER."
)
@HERE
def lock(version: str, ask: bool, into: Path | None, where: str) -> None:
    """Print the lock file that was registered with VERSION; without VERSION, that of this environment.

    It is a requirements file with every installed distribution, and the SHA-256 of its archive where that is known.
    What was installed from a folder stands in it as a comment.
    """
    from finetooth_registry import locking

    if version and ask:
        from finetooth_hooks.errors import UserError

        raise UserError("--ask is for this environment", action=f"leave out {version}, or leave out --ask")
    if version:
        text = _registered(version, where)
    else:
        made = locking.installed()
        text = locking.text_of(locking.with_index_hashes(made) if ask else made)
    if into is None:
        click.echo(text, nl=False)
        return
    left = locking.install(text, version or "this environment", into)
    click.echo(f"made {into}; every archive has the hash that the lock file names")
    for each in left:
        click.echo(f"install by hand: {each.name} {each.version}, which came from a folder", err=True)


def _registered(version: str, where: str) -> str:
    """
    Raises:
        UserError: the version has no lock file, or it was changed.
    """
    from finetooth_hooks.errors import UserError

    from finetooth_registry import records
    from finetooth_registry.anywhere import files_of
    from finetooth_registry.locking import LOCK
    from finetooth_registry.remote import open_registry

    opened = open_registry(where)
    made = opened.version(version)
    sha256 = files_of(records.read(opened.record(made))).get(LOCK)
    if sha256 is None:
        raise UserError(
            f"{made.called} was registered without a lock file",
            action="register runs where they trained, or with ft registry add --lock FILE",
        )
    return opened.blobs.read(sha256).decode("utf-8")
