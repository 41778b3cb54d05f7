"""`ft serve`: one process, one set of base models, one or more faces."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from finetooth_hooks import CommandContext, UserError

from finetooth_server.settings import Limits, Settings

PORT = 8420
FOLDER = Path("runs/server")


@click.command(name="serve")
@click.argument("faces", nargs=-1, required=True, type=click.Choice(["api", "tinker"]), metavar="api|tinker...")
@click.option("--model", "models", multiple=True, metavar="NAME", help="A base model to serve; may be repeated.")
@click.option("--recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A recipe whose model, "
              "precision and other settings are served.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting of the served recipes.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True,
              help="Database, checkpoints and audit record.")  # fmt: skip
@click.option("--database", default="", help="SQLAlchemy URL; default is SQLite in the folder.")
@click.option("--replay", default=30.0, show_default=True, type=click.FloatRange(0), help="Seconds of training that a "
              "crash may cost.")  # fmt: skip
@click.option("--queued", default=Limits.queued, show_default=True, type=click.IntRange(1), help="Calls of a tenant "
              "that may wait.")  # fmt: skip
@click.option("--live", default=Limits.live, show_default=True, type=click.IntRange(1), help="Models held in memory.")
@click.option("--certificate", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TLS certificate.")
@click.option("--certificate-key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its key.")
@click.pass_obj
def command(
    obj: CommandContext,
    faces: tuple[str, ...],
    models: tuple[str, ...],
    recipe: Path | None,
    overrides: tuple[str, ...],
    host: str,
    port: int,
    folder: Path,
    database: str,
    replay: float,
    queued: int,
    live: int,
    certificate: Path | None,
    certificate_key: Path | None,
) -> None:
    """Serve models to train and to sample from, step by step.

    \b
    ft serve api --model smollm2-135m       REST; its pages are at /docs
    ft serve tinker --model smollm2-135m    for scripts of the tinker client
    ft serve api tinker ...                 both, on the same models
    """
    import uvicorn

    from finetooth_server.app import make_app
    from finetooth_server.service import Service

    given = _served(obj, models, recipe, overrides)
    served = {name: _one_base(obj, _as_long_as_the_model(obj, one)) for name, one in given.items()}
    private = _loopback(host)
    settings = Settings(
        folder.absolute(),
        served,
        database=database,
        replay=replay,
        keyless=private,
        limits=Limits(queued=queued, live=live),
    )
    if (certificate is None) != (certificate_key is None):
        raise UserError("--certificate and --certificate-key belong together", action="give both")
    service = Service(obj, settings)
    if not private and not service.keys.exist():
        raise UserError(
            f"--host {host} can be reached by others, and there is no API key",
            action=f"run `ft keys create --tenant NAME --folder {folder}` first, or listen on 127.0.0.1",
        )
    if "tinker" in faces:
        from finetooth_server.tinker.tokenizers import write_tokenizers

        write_tokenizers(obj, service)
    app = make_app(service, faces)
    listening = _listen(host, port)
    scheme = "https" if certificate else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    click.echo(f"serving {', '.join(served)} at {url} ({', '.join(faces)}); Ctrl-C ends it")
    if "api" in faces:
        click.echo(f"pages: {url}/docs")
    if "tinker" in faces:
        click.echo(f"for tinker scripts: TINKER_BASE_URL={url} TINKER_API_KEY=tml-{'local' if private else 'KEY'}")
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        ssl_certfile=None if certificate is None else str(certificate),
        ssl_keyfile=None if certificate_key is None else str(certificate_key),
    )
    uvicorn.Server(config).run(sockets=[listening])


def _served(
    obj: CommandContext, models: tuple[str, ...], recipe: Path | None, overrides: tuple[str, ...]
) -> dict[str, Mapping[str, Any]]:
    """Recipe by name of each base model."""
    if not models and recipe is None:
        raise UserError("no model to serve", action="give --model NAME, or --recipe FILE")
    template = dict(obj.load(recipe, overrides)) if recipe is not None else {}
    found: dict[str, Mapping[str, Any]] = {}
    for name in models:
        found[name] = _without_data(obj.load({**template, "model": name}, overrides))
    if not models:
        model = template["model"]
        found[str(model["name"] if isinstance(model, Mapping) else model)] = _without_data(template)
    return found


def _as_long_as_the_model(obj: CommandContext, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with a `train.max_length` that the model can take. Reads the model's description, so that a name that
    cannot be served is found now, and not by the first client."""
    positions = obj.context(recipe).facts.max_positions
    train = dict(recipe.get("train") or {})
    if positions and train.get("max_length", positions + 1) > positions:
        train["max_length"] = positions
    return {**recipe, "train": train}


def _one_base(obj: CommandContext, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with adapters of all tenants on one copy of the base, if the backend can."""
    default = next((one.entry for one in obj.catalog.all("backend") if one.entry.default), None)
    if "backend" in recipe or "shared_base" not in getattr(default, "capabilities", ()):
        return dict(recipe)
    return {**recipe, "backend": {"name": "auto", "share_base": True}}


def _without_data(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in recipe.items() if name not in ("output", "evaluate", "trackers")}


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        UserError: the address or the port cannot be had.
    """
    from finetooth_server.guard import SLOWEST

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # the protocol by its number: asyncio turns Nagle's algorithm off only where it stands, and an answer would wait
        # 40 ms for the client's delayed acknowledgement
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it: who takes no bytes for so long is cut off
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SLOWEST))
        listening.bind(address)
    except OSError as error:
        raise UserError(f"{host}:{port}: {error.strerror}", action="choose another --host or --port") from error
    return listening
