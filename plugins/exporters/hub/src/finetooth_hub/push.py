"""`ft push`: export a run, and upload the folder with its model card to a hub."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import click
from finetooth_hooks import CommandContext, EngineError, UserError
from finetooth_saving.moved_bases import base_moved
from finetooth_saving.run_folder import no_such_run

SCHEME = "hf:"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
OWN = "manifest.json"
"""Of the export: it names this machine's packages, and is of no use elsewhere."""


@click.command("push")
@click.argument("run", metavar="RUN")
@click.argument("settings", nargs=-1, metavar="[model=NEW]")
@click.option("--to", "place", required=True, metavar="hf:OWNER/NAME", help="The repository.")
@click.option("--as", "exporter", metavar="EXPORTER", help="What to push; default: the adapter alone, or the model.")
@click.option("--public", is_flag=True, help="Make a new repository public.")
@click.option("--dry-run", is_flag=True, help="List the files, and send nothing.")
@click.pass_obj
def command(
    obj: CommandContext, run: str, settings: tuple[str, ...], place: str, exporter: str | None, public: bool,
    dry_run: bool,
) -> None:  # fmt: skip
    """Publish the model or adapter of RUN on a model hub, with its model card. model=NEW says where its base is now.
    The token comes from HF_TOKEN or from `hf auth login`; it is never printed.
    """
    repository = place.removeprefix(SCHEME)
    if not place.startswith(SCHEME) or not REPOSITORY.fullmatch(repository):
        raise UserError(f"--to: {place!r} names no repository", action="write hf:OWNER/NAME")
    folder = obj.run_folder(run)
    if folder is None:
        raise no_such_run(run)
    if settings:
        click.get_current_context().with_resource(base_moved(folder, settings))
    token = None if dry_run else _token()
    whole = (folder / "artifact" / "config.json").is_file()
    with tempfile.TemporaryDirectory(prefix=".push.", dir=folder) as scratch:
        made = obj.export(run, exporter or ("safetensors" if whole else "vllm_lora"), Path(scratch) / "export")
        files = sorted(path for path in made.rglob("*") if path.is_file() and path.name != OWN)
        for path in files:
            click.echo(f"  {path.relative_to(made).as_posix():<40} {path.stat().st_size:>14,} bytes")
        total = sum(path.stat().st_size for path in files)
        if dry_run:
            click.echo(f"would push {len(files)} files, {total:,} bytes, to {place}; nothing was sent")
            return
        url = _upload(made, repository, token, private=not public)
    click.echo(f"pushed {len(files)} files, {total:,} bytes, to {url}")


def _token() -> str:
    """
    Raises:
        UserError: there is none.
    """
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise UserError("no token of the hub is known", action="set HF_TOKEN, or run: hf auth login")
    return str(token)


def _upload(folder: Path, repository: str, token: str | None, *, private: bool) -> str:
    """Make the repository if it is not there, and upload a folder in one commit; returns its address.

    Raises:
        UserError: the hub refuses it.
        EngineError: the hub cannot be reached, or the upload broke off.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub: Any = HfApi(token=token)
    try:
        made = hub.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            repo_type="model",
            folder_path=str(folder),
            commit_message="Model and card of a finetooth run",
            ignore_patterns=[OWN],
        )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        refused = status in (401, 403, 404, 409)
        problem = f"the hub answered {status} for {repository}"
        action = "check the token's rights and the name" if refused else "try again: what was sent is kept there"
        raise (UserError if refused else EngineError)(problem, action=action) from None  # its text may hold addresses
    except OSError as error:
        raise EngineError(
            f"the hub cannot be reached: {type(error).__name__}", action="check the network, or HF_ENDPOINT"
        ) from error
    return str(made)
