"""Sampling from saved weights: one engine for each base and shape of adapter, with calls computed together."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetooth_hooks import CommandContext, Completion, Engine, EngineError
from finetooth_hooks.compute.held import HeldAdapter
from finetooth_hooks.continuous import RunningBatch
from finetooth_hooks.sampling import ShownPrompt
from finetooth_wire import wire
from sqlalchemy import insert, select, update

from finetooth_server.batches import scores
from finetooth_server.batches.hosts import Hosts, shape_of
from finetooth_server.collector import collect
from finetooth_server.encryption.vault import Vault
from finetooth_server.faults import Unknown
from finetooth_server.keeping.model_ids import of_tenant
from finetooth_server.keeping.records import Records, now, samplers
from finetooth_server.settings import Limits


class Samplers:
    """Engines that only sample. They load the weights of the next calls. If there are too many, the least recently used
    one is dropped, with its folder.

    Args:
        vault: of the server's folder; its scratch folder has the engines' first weights.
        limits: `samplers` and `sampler_bytes`.
    """

    def __init__(self, context: CommandContext, vault: Vault, limits: Limits) -> None:
        self._context, self._vault, self._limits = context, vault, limits
        self._engines: dict[str, tuple[Engine, Path]] = {}  # the latest used is last
        self._bytes: dict[str, int] = {}
        self._holds: dict[str, str] = {}
        self._folder = vault.scratch / "samplers"

    @property
    def held(self) -> int:
        """Engines in memory."""
        return len(self._engines)

    @property
    def nbytes(self) -> int:
        """Bytes of their weights; a base that is shared does not count."""
        return sum(self._bytes.values())

    def engine(self, recipe: Mapping[str, Any], weights: Path | None) -> Engine:
        """The engine for a recipe's model, with these weights; None: the unchanged base."""
        key = shape_of(recipe)
        if key not in self._engines:
            self._make_room(self._limits.samplers - 1, self._limits.sampler_bytes)
            engine = self._context.engine(recipe)
            fresh = self._folder / key
            engine.export(fresh)
            self._engines[key] = engine, fresh
            self._bytes[key] = _weights(recipe, engine)
            self._holds[key] = str(fresh)
            self._make_room(self._limits.samplers, self._limits.sampler_bytes)
        engine, fresh = self._engines[key] = self._engines.pop(key)
        wanted = weights or fresh
        if self._holds[key] != str(wanted):
            self._holds[key] = ""  # partly loaded weights are useless
            with self._vault.reading(wanted) as folder:
                engine.restore(folder)
            self._holds[key] = str(wanted)
        return engine

    def _make_room(self, most: int, most_bytes: int) -> None:
        """Drop engines down to this number and these bytes; the last one stays."""
        while self._engines and (len(self._engines) > max(0, most) or (self.nbytes > most_bytes and self.held > 1)):
            key = next(iter(self._engines))
            _, fresh = self._engines.pop(key)
            del self._bytes[key], self._holds[key], _
            shutil.rmtree(fresh, ignore_errors=True)
            collect(guest=True)  # an engine's parts refer to each other

    def hosts(self, most: int) -> Hosts:
        """Engines that hold low-rank adapters for one batch, of so many bytes at most."""
        return Hosts(self._context, self._vault, most)

    def close(self) -> None:
        """Drop the engines."""
        self._make_room(0, 0)


def begin(
    engine: Engine,
    batch: RunningBatch,
    arguments: Mapping[str, Any],
    call: str,
    adapter: HeldAdapter | None = None,
    scoring: Callable[[], Engine] | None = None,
) -> tuple[dict[str, Any], int, int]:
    """Add a call to the running batch.

    Args:
        engine: of the batch.
        arguments: result of `wire.encode_prompt`, `sampling`, `seeded`, and optionally an encoded `scores.Asked`.
        call: its id, the source of the seed if the client chose none.
        adapter: held by the engine, to sample from; None: the engine's own weights.
        scoring: returns an engine with these weights as its own, to score prompts; None: `engine` has them.

    Returns:
        the call's result without its completions; its number in the batch, and the number of completions that it waits
        for: 0 if it requests no tokens, or its prompt has images, which run at once while the batch waits.

    Raises:
        FinetoothError: it cannot be sampled.
    """
    prompt, sampling = wire.decode_prompt(arguments), wire.decode_sampling(arguments["sampling"])
    if not arguments.get("seeded"):
        sampling = replace(sampling, seed=int(call[:15], 16))
    if sampling.form is not None and "schema" not in engine.capabilities:
        raise EngineError("the engine of this model holds no answer to a form", action="ask without one")
    for word, names, wanted in (
        ("min_p", "min_p", sampling.min_p > 0),
        ("repetition_penalty", "repetition_penalty", sampling.repetition_penalty != 1),
        ("additions", "presence_penalty, frequency_penalty and logit_bias", sampling.adds),
    ):
        if wanted and word not in engine.capabilities:
            raise EngineError(f"the engine of this model has no {names}", action="leave it out")
    result: dict[str, Any] = {"completions": []}
    number, count = -1, 0
    if isinstance(prompt, ShownPrompt):  # a running batch accepts only tokens
        own = engine if scoring is None else scoring()
        result["completions"] = [
            wire.encode_completion(completion) for completion in own.generate([prompt], sampling)[0]
        ]
        complete(own, arguments, result["completions"])
    elif sampling.max_tokens > 0:
        number, count = batch.add(prompt, sampling, adapter=adapter), sampling.n
    else:
        nothing = wire.encode_completion(Completion((), (), "", "length", engine.weights_version))
        result["completions"] = [dict(nothing) for _ in range(sampling.n)]
    try:
        scored = scores.decoded(arguments)
        if "layout" in arguments:
            result["layout"] = arguments["layout"]
        if scored.about_prompt:
            seed = abs(sampling.seed or 0)
            own = engine if scoring is None else scoring()
            result |= scores.of_prompt(own, prompt, scored, temperature=sampling.temperature, seed=seed)
    except BaseException:
        batch.cancel(number)
        raise
    return result, number, count


def complete(engine: Engine, arguments: Mapping[str, Any], completions: Sequence[dict[str, Any]]) -> None:
    """Add a call's additional results to its encoded completions."""
    top = scores.decoded(arguments).top_samples
    if top:
        prompt = wire.decode_prompt(arguments)
        for completion in completions:
            completion.update(scores.of_completion(engine, prompt, completion["tokens"], top))


def open_sampler(records: Records, id_: str, tenant: str, session: str, base: str, checkpoint: str | None) -> None:
    """Make weights available for sampling under an id; the same id again changes nothing.

    Args:
        checkpoint: id of a saved one; None: the base model.
    """
    row = {
        "id": id_,
        "tenant": tenant,
        "session": session,
        "base": base,
        "checkpoint": checkpoint,
        "created": now(),
    }
    with records.write() as connection:
        if of_tenant(connection, samplers, tenant, id_) is None:
            if connection.execute(select(samplers.c.id).where(samplers.c.id == id_)).first() is not None:
                row |= {"id": secrets.token_hex(16), "name": id_}  # another tenant's, which stays hidden
            connection.execute(insert(samplers).values(row))


def join_sampler(records: Records, tenant: str, id_: str) -> int:
    """A unique number, from 1, for a client of a tenant's sampler.

    Raises:
        Unknown: there is none, or it is another tenant's.
    """
    with records.write() as connection:
        row = of_tenant(connection, samplers, tenant, id_)
        if row is None:
            raise Unknown(f"no sampler {id_!r}", action="make one")
        number = int(row.joined or 0) + 1
        connection.execute(update(samplers).where(samplers.c.id == row.id).values(joined=number))
    return number


def batch_key(checkpoint: str | None, base: str) -> str:
    """A key, equal for calls with the same weights, which can share a batch."""
    return hashlib.sha256(json.dumps([checkpoint, base]).encode()).hexdigest()


def _weights(recipe: Mapping[str, Any], engine: Engine) -> int:
    """Bytes of an engine's own weights, at four per number."""
    backend = recipe.get("backend")
    shares = isinstance(backend, Mapping) and bool(backend.get("share_base"))
    return 4 * (engine.info.trained if shares else engine.info.parameters)
