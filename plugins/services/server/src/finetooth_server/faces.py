"""Faces of other plugins: entries of the catalog, and their service (`finetooth_hooks.faces`)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from finetooth_hooks import CommandContext, FinetoothError, PluginError, Sampling, UserError
from finetooth_hooks.faces import Asgi, Face, FaceCaller, FacePiece, StackPart
from finetooth_toolbox.text.nearest import nearest, nearest_path

from finetooth_server.batches.scores import ScoreRequest
from finetooth_server.keys import Caller
from finetooth_server.service import Service

OWN = ("api", "tinker")
"""Faces of this distribution."""


def names(context: CommandContext) -> list[str]:
    """All available faces."""
    brought = {registered.entry.name for registered in context.catalog.all("face")}
    return [*OWN, *sorted(brought - set(OWN))]


def check(context: CommandContext, faces: Collection[str]) -> None:
    """Check that a plugin in use has each face.

    Raises:
        UserError: no plugin in use has one of them.
    """
    for name in faces:
        if name in OWN:
            continue
        near = nearest(name, OWN)
        if near and name not in names(context):
            raise UserError(f"ft serve {name}: no face {name!r}", action=f"did you mean {near}?")
        try:
            context.catalog.get("face", name, setting=f"ft serve {name}")
        except PluginError as error:
            if error.known:
                raise
            there = names(context)
            problem = f"ft serve {name}: no face {name!r}; installed: {', '.join(there)}"
            typed = [face for face in faces if face in there]
            if "/" in name and not Path(name).exists():
                others = ", ".join(sorted(map(str, Path(name).parent.glob("*/")))[:5]) or "none"
                problem = f"ft serve {name}: no such folder; in {Path(name).parent}: {others}"
            meant = name if Path(name).exists() else nearest_path(Path(name)) or name
            action = f"a model is named with --model: {' '.join(['ft serve', *typed])} --model {meant}"
            raise UserError(problem, action=action) from None


def load(context: CommandContext, name: str) -> Face:
    """A face of another plugin.

    Raises:
        UserError: no plugin in use has it, or a package that it needs is missing.
    """
    made: Face = context.build("face", name, setting=f"ft serve {name}")
    return made


class Endpoint:
    """A face's ASGI application as a route's endpoint; a plain function would be called differently.

    Args:
        path: of the route.
        root: its prefix, unknown to the face.
        face: formats errors.
    """

    def __init__(self, path: str, app: Asgi, face: Face, root: str = "") -> None:
        self.path, self._app, self._face, self._root = path, app, face, root

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from finetooth_server.guard import problem

        scope["route"] = self  # named in the audit record
        scope["root_path"] = scope.get("root_path", "") + self._root
        try:
            await self._app(scope, receive, send)
        except FinetoothError as error:
            await problem(error, self._face.refusal)(scope, receive, send)


def root_of(name: str, face: Face, taken: Collection[tuple[str, str]]) -> str:
    """The prefix of a face's paths: its name, if another face has one of them.

    Args:
        name: of the face.
        taken: methods and paths of earlier faces.
    """
    own = {(route.method, face.path + route.path) for route in face.routes}
    return f"/{name}" if own & set(taken) else ""


class Desk:
    """Implements `finetooth_hooks.faces.FaceService` for a face.

    Args:
        face: its name, for the log.
    """

    def __init__(self, service: Service, face: str) -> None:
        self._service, self._face = service, face

    @property
    def context(self) -> CommandContext:
        return self._service.context

    @property
    def served(self) -> Mapping[str, Mapping[str, Any]]:
        return self._service.settings.models

    def caller(self, key: str | None) -> Caller:
        return self._service.keys.caller(key, keyless=self._service.settings.keyless)

    def open(
        self,
        caller: FaceCaller,
        *,
        base: str = "",
        sections: Mapping[str, Any] | None = None,
        checkpoint: str | None = None,
        restore_optimizer: bool = True,
    ) -> str:
        who = _caller(caller)
        call = self._service.create_model(
            who,
            self._service.open_session(who),
            base,
            sections or {},
            checkpoint=checkpoint,
            optimizer=restore_optimizer,
            face=self._face,
        )
        return call.id

    def submit(self, caller: FaceCaller, session: str, operation: str, arguments: Mapping[str, Any]) -> str:
        return self._service.submit(_caller(caller), session, operation, arguments, face=self._face).id

    async def wait(self, caller: FaceCaller, call: str, seconds: float) -> Any:
        from finetooth_server.rest.answers import call_json

        return await asyncio.to_thread(call_json, await self._service.wait(_caller(caller), call, seconds))

    @property
    def adapters(self) -> Mapping[str, str]:
        return {name: adapter.base for name, adapter in self._service.settings.adapters.items()}

    def sampler(
        self, caller: FaceCaller, *, base: str = "", checkpoint: str | None = None, stack: Sequence[StackPart] = ()
    ) -> str:
        who = _caller(caller)
        if stack:
            checkpoint = self._service.stacks.write(who.tenant, stack)
        named = json.dumps([self._face, who.tenant, base, checkpoint])
        id_ = f"sampler-{hashlib.sha256(named.encode()).hexdigest()[:32]}"
        if not self._service.has_sampler(who, id_):
            session = self._service.open_session(who)
            self._service.open_sampler(who, session, id_, base=base, checkpoint=checkpoint)
        return id_

    def sample(
        self,
        caller: FaceCaller,
        sampler: str,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        seeded: bool,
        top_logprobs: int = 0,
        embedding: bool = False,
    ) -> str:
        who = _caller(caller)
        return self._service.sample(
            who,
            sampler,
            prompt,
            sampling,
            seeded=seeded,
            face=self._face,
            asked=ScoreRequest(top_samples=top_logprobs, embedding=embedding),
        ).id

    async def follow(self, caller: FaceCaller, call: str) -> AsyncGenerator[FacePiece | Any | None, None]:
        from finetooth_server.log import Call
        from finetooth_server.rest.answers import call_json

        who = _caller(caller)
        with self._service.streams.place(who):
            async with aclosing(self._service.streams.follow(who, call)) as following:
                async for piece in following:
                    if piece is None:
                        yield None
                    elif isinstance(piece, Call):
                        yield await asyncio.to_thread(call_json, piece)
                    else:
                        yield FacePiece(piece.completion, piece.index, piece.tokens, piece.logprobs)

    def cancel(self, caller: FaceCaller, call: str) -> None:
        self._service.cancel(_caller(caller), call)

    def sessions(self, caller: FaceCaller) -> Any:
        return [_session(model) for model in self._service.models(_caller(caller))]

    def session(self, caller: FaceCaller, id: str) -> Any:
        return _session(self._service.model(_caller(caller), id))

    def close(self, caller: FaceCaller, session: str) -> None:
        self._service.close_model(_caller(caller), session)

    def checkpoints(self, caller: FaceCaller, session: str | None = None) -> Any:
        names = ("id", "kind", "name", "base", "created", "expires", "size")
        saved = self._service.all_checkpoints(_caller(caller), session)
        return [
            {"session": checkpoint.model, **{name: getattr(checkpoint, name) for name in names}} for checkpoint in saved
        ]

    def delete_checkpoint(self, caller: FaceCaller, id: str) -> None:
        self._service.delete_checkpoint(_caller(caller), id)

    def record(self, what: str, caller: FaceCaller, *, model: str = "", outcome: str = "") -> None:
        who = _caller(caller)
        self._service.audit.add(what, tenant=who.tenant, key=who.key, model=model[:160], outcome=outcome)


def _session(model: Any) -> dict[str, Any]:
    return {
        "id": model.id,
        "base": model.base,
        "recipe": {name: value for name, value in model.recipe.items() if name != "model"},
        "created": model.created,
        "calls": model.applied + 1,
    }


def _caller(caller: FaceCaller) -> Caller:
    assert isinstance(caller, Caller)  # a face passes the result of `caller`
    return caller
