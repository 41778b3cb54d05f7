"""`ft serve`: one process, one set of base models, one or more faces."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from finetooth_hooks import Backend, CommandContext, UserError
from finetooth_hooks.faces import Face
from finetooth_toolbox.loopback import is_loopback
from finetooth_wire.listening import (
    Tls,
    address_of,
    listen,
    tell_certificate,
    tls_options,
    uvicorn_options,
)

from finetooth_server.commands.limits import STATUS, limit_options, limits_of, status
from finetooth_server.commands.place import FOLDER, database_url, is_there, records_of
from finetooth_server.faces import OWN, Desk, check, load, names
from finetooth_server.keeping.folder_lock import folder_lock
from finetooth_server.keys import Keys
from finetooth_server.sections import check_scale
from finetooth_server.settings import LINE, Limits, Settings

if TYPE_CHECKING:
    from finetooth_wire.tls import Certificate

    from finetooth_server.service import Service

PORT = 8420


PART = 1024
"""Tokens computed between two turns: enough to keep a CPU busy. A fast device needs more."""


def _complete(ctx: click.Context, param: click.Parameter, begun: str) -> list[str]:
    known = [] if ctx.obj is None else [*names(ctx.obj), *_others(ctx.obj)]
    return [name for name in known if name.startswith(begun)]


class ServeCommand(click.Command):
    """Faces, and services of other plugins: their command `serve-NAME` is also `ft serve NAME`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        build = _others(ctx.obj).get(args[0]) if args and ctx.obj is not None else None
        if build is None:
            return super().parse_args(ctx, args)
        module, _, attribute = build.partition(":")
        other: click.Command = getattr(import_module(module), attribute)
        ctx.params = {"other": other.make_context(f"{ctx.info_name} {args[0]}", args[1:], parent=ctx.parent)}
        return []

    def invoke(self, ctx: click.Context) -> Any:
        if "other" not in ctx.params:
            return super().invoke(ctx)
        with ctx.params["other"] as other:
            return other.command.invoke(other)


def _others(obj: CommandContext) -> dict[str, str]:
    """Builders of other plugins' commands `serve-NAME`, by NAME."""
    entries = (registered.entry for registered in obj.catalog.all("command"))
    return {entry.name.removeprefix("serve-"): entry.build for entry in entries if entry.name.startswith("serve-")}


@click.command(name="serve", cls=ServeCommand)
@click.argument("faces", nargs=-1, required=True, metavar="api|tinker|mcp|openai...|status", shell_complete=_complete)
@click.option("--model", "models", multiple=True, metavar="NAME", help="A base model to serve; may be repeated.")
@click.option("--adapter", "adapters", multiple=True, metavar="RUN_OR_FOLDER", help="An adapter over a served model, "
              "sampled in one batch with it; may be repeated. `openai` also samples sums: A+B*0.5.")  # fmt: skip
@click.option("--recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A recipe whose model, "
              "precision and other settings are served.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting of the served recipes.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: a free one.")
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True,
              help="Folder for the database, checkpoints and the audit record.")  # fmt: skip
@click.option("--database", default="", help="postgresql://USER:${PASSWORD}@HOST/NAME, the "
              "variable from the environment; default: SQLite in the folder.")  # fmt: skip
@click.option("--replay", default=30.0, show_default=True, type=click.FloatRange(0), help="Most seconds of "
              "training that a crash may lose.")  # fmt: skip
@click.option("--results", default=Limits.results / 3600, show_default=True, type=click.FloatRange(0.1), help="Hours "
              "for which a result is kept after its client has received it.")  # fmt: skip
@click.option("--encryption-key", type=click.Path(path_type=Path), help="File with the key that checkpoints, snapshots "
              "and calls are encrypted with; see `ft encryption`.")  # fmt: skip
@click.option("--audit-key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File with the key "
              "that signs the end of the audit record; default: one in the folder.")  # fmt: skip
@click.option("--scratch", type=click.Path(exists=True, file_okay=False, path_type=Path), help="With an encryption "
              "key: where weights lie unencrypted while they are read or written; default: the folder.")  # fmt: skip
@tls_options
@click.option("--accept-memory", is_flag=True, help="Start although a model's plan does not fit into memory.")
@click.option("--stdio", is_flag=True, help="Use standard input and output, and open no port. "
              "For a single face that can, such as mcp.")  # fmt: skip
@limit_options
@click.pass_obj
def command(
    obj: CommandContext,
    /,
    faces: tuple[str, ...],
    models: tuple[str, ...],
    adapters: tuple[str, ...],
    recipe: Path | None,
    overrides: tuple[str, ...],
    host: str,
    port: int,
    folder: Path,
    database: str,
    replay: float,
    results: float,
    encryption_key: Path | None,
    audit_key: Path | None,
    scratch: Path | None,
    accept_memory: bool,
    stdio: bool,
    **others: Any,
) -> None:
    """Serve models to train and to sample from, step by step.

    \b
    ft serve api --model smollm2-135m       REST; its pages are at /docs
    ft serve tinker --model smollm2-135m    for scripts of the tinker client
    ft serve mcp --model smollm2-135m       for assistants; with --stdio for the one that starts it
    ft serve openai --model smollm2-135m    for programs that speak OpenAI's protocol; also a run: --model runs/mine
    ft serve api tinker mcp openai ...      all of them, on the same models
    ft serve vllm MODEL                     a vLLM server for rollouts; see ft serve vllm --help
    ft serve status --folder FOLDER         the limits of a server, and what its tenants take
    """
    if LINE in os.environ:
        from finetooth_server.ranks.program import serve_rank

        serve_rank(obj)
        return
    if faces == (STATUS,):
        status(folder, database)
        return
    from finetooth_server.encryption.master import master_keys
    from finetooth_server.keeping.served_adapters import served_adapters
    from finetooth_server.service import Service

    check(obj, faces)
    tls = Tls(**{name: others.pop(name) for name in Tls.__dataclass_fields__})
    stdio_face = _stdio_face(obj, faces) if stdio else None
    private = stdio or is_loopback(host)
    if not private:
        _need_key(host, folder, database)
        tls.check(host)
    if not stdio:  # report a used port before reading or making anything
        listen(host, port).close()
    accepted = ("train.accept_memory=true",) if accept_memory else ()
    served = _bases(obj, _served(obj, faces, models, recipe, (*overrides, *accepted)))
    beside, encryption = served_adapters(obj, adapters, served), master_keys(encryption_key)
    # a refusal leaves no folder
    click.get_current_context().with_resource(folder_lock(folder.absolute()))
    settings = Settings(
        folder.absolute(), served, database=database_url(database), replay=replay, adapters=beside, keyless=private,
        encryption=encryption,
        scratch=None if scratch is None else scratch.absolute(),
        audit_key=None if audit_key is None else audit_key.absolute(),
        own_command=(sys.executable, "-m", "finetooth", *sys.argv[1:]),
        limits=Limits(results=results * 3600, **limits_of(others)),
    )  # fmt: skip
    if stdio_face is not None:
        _serve_stdio(stdio_face, faces[0].rpartition(":")[2], Service(obj, settings))
        return
    shown, service = tls.shown(settings.folder, host), Service(obj, settings)
    if "tinker" in faces:
        from finetooth_server.tinker.tokenizers import write_tokenizers

        write_tokenizers(obj, service)
    say = partial(_say, (*served, *adapters), faces, shown, private=private)
    _listen_and_serve(service, faces, host, port, shown, say=say)


def _bases(obj: CommandContext, recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The bases of the recipes, checked.

    Raises:
        UserError: a server does not support one.
        PlanError: they do not fit into memory.
    """
    served = {name: _one_base(obj, _in_parts(_as_long_as_the_model(obj, base))) for name, base in recipes.items()}
    for base in served.values():
        check_scale(base)
    _check_memory(obj, served)
    return served


def _listen_and_serve(
    service: Service,
    faces: Sequence[str],
    host: str,
    port: int,
    shown: Certificate | None,
    *,
    say: Callable[[Mapping[str, str], str], None],
) -> None:
    """Serve until Ctrl-C.

    Args:
        say: called with the paths of other plugins' faces, and with the URL once the server listens.
    """
    import uvicorn

    from finetooth_server.app import make_app
    from finetooth_server.collector import settle
    from finetooth_server.keeping.counted_log import count_lines_of_libraries
    from finetooth_server.limits.connections import AT_ONCE, BoundedConnection, telling_server

    listening = listen(host, port)
    url = address_of(host, listening, shown)
    app = make_app(service, faces)
    config = uvicorn.Config(
        app,
        http=BoundedConnection,
        log_level="warning",
        server_header=False,
        backlog=AT_ONCE,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        **uvicorn_options(shown),
    )
    settle()
    count_lines_of_libraries()  # after uvicorn's configuration, which makes new loggers
    telling_server(config, partial(say, app.state.places, url)).run(sockets=[listening])


def _say(
    served: Collection[str],
    faces: Sequence[str],
    shown: Certificate | None,
    places: Mapping[str, str],
    url: str,
    *,
    private: bool,
) -> None:
    """Where the server is, and what to do with it."""
    click.echo(f"serving {', '.join(served) or 'no model'} at {url} ({', '.join(faces)}); Ctrl-C ends it")
    tell_certificate(shown)
    if "api" in faces:
        click.echo(f"pages: {url}/docs")
    for name, path in places.items():
        click.echo(f"{name}: {url}{path}")
    if "tinker" in faces:
        click.echo(f"for tinker scripts: TINKER_BASE_URL={url} TINKER_API_KEY=tml-{'local' if private else 'KEY'}")


def _need_key(host: str, folder: Path, database: str) -> None:
    """Refuse to serve an address that others can reach before a key exists.

    Raises:
        UserError: others can reach the server, and it has no API key.
    """
    if is_there(folder, database):
        records = records_of(folder, database)
        try:
            if Keys(records).exist():
                return
        finally:
            records.close()
    raise UserError(
        f"--host {host} can be reached by others, and the server has no API key",
        action=f"run `ft keys create --tenant NAME --folder {folder}` first, or listen on 127.0.0.1",
    )


def _stdio_face(obj: CommandContext, faces: tuple[str, ...]) -> Face:
    """
    Raises:
        UserError: it is not a single face, or one without standard input and output.
    """
    face = None if len(faces) != 1 or faces[0] in OWN else load(obj, faces[0])
    if face is None or "stdio" not in face.capabilities:
        raise UserError(f"--stdio does not go with {' '.join(faces)}", action="give one face that can, such as mcp")
    return face


def _serve_stdio(face: Face, name: str, service: Service) -> None:
    """Serve one face through standard input and output until the input ends."""
    import asyncio

    service.start()
    try:
        asyncio.run(face.stdio(Desk(service, name)))
    finally:
        service.stop()


def _served(
    obj: CommandContext,
    faces: tuple[str, ...],
    models: tuple[str, ...],
    recipe: Path | None,
    overrides: tuple[str, ...],
) -> dict[str, Mapping[str, Any]]:
    """Recipe by name of each base model.

    Raises:
        UserError: none is given, and a face needs one.
    """
    if not models and recipe is None:
        if all(name not in OWN and "modelless" in load(obj, name).capabilities for name in faces):
            return {}
        raise UserError("no model to serve", action="give --model NAME, or --recipe FILE")
    template = dict(obj.load(recipe, overrides)) if recipe is not None else {}
    recipes: dict[str, Mapping[str, Any]] = {}
    for name in models:
        recipes[name] = _without_data(obj.load({**template, "model": _now(obj, name)}, overrides))
    if not models:
        model = template["model"]
        name = str(model["name"] if isinstance(model, Mapping) else model)
        now = {**model, "name": _now(obj, name)} if isinstance(model, Mapping) else _now(obj, name)
        recipes[name] = _without_data({**template, "model": now})
    return recipes


def _now(obj: CommandContext, name: str) -> str:
    """The run that a reference means now: it may mean another one later."""
    return str(obj.run_folder(name) or name) if ":" in name else name


def _check_memory(obj: CommandContext, served: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the memory of each model separately: clients and --live decide how many are held at once.

    Raises:
        PlanError: one will not fit into memory.
    """
    for recipe in served.values():
        obj.check_memory(recipe)


def _as_long_as_the_model(obj: CommandContext, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with a `train.max_length` that the model supports. It reads the model's config, so that an invalid
    name fails now, and not at the first client."""
    positions = obj.context(recipe).facts.max_positions
    train = dict(recipe.get("train") or {})
    if positions and train.get("max_length", positions + 1) > positions:
        train["max_length"] = positions
    return {**recipe, "train": train}


def _in_parts(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with micro-batches small enough for frequent turns, unless it sets their size."""
    return {**recipe, "train": {"micro_batch_tokens": PART, **(recipe.get("train") or {})}}


def _one_base(obj: CommandContext, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with adapters of all tenants on one copy of the base, if the backend can."""
    default = next((registered.entry for registered in obj.catalog.all("backend") if registered.entry.default), None)
    shares = isinstance(default, Backend) and "shared_base" in default.capabilities
    if "backend" in recipe or not shares:
        return dict(recipe)
    return {**recipe, "backend": {"name": "auto", "share_base": True}}


def _without_data(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in recipe.items() if name not in ("output", "evaluate", "trackers")}
