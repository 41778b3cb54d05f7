"""Clients that train, sample and pry, all at once, and remember what they did."""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import finetooth
import httpx2 as httpx
import numpy as np
from finetooth_hooks import Datum, Sampling

T = TypeVar("T")

GET = ("/v1/sessions/{}", "/v1/calls/{}?wait=0", "/v1/calls/{}/stream", "/v1/checkpoints/{}")
POST = (
    "/v1/sessions/{}/generate?wait=0", "/v1/sessions/{}/zero_grad?wait=0", "/v1/sessions/{}/step?wait=0",
    "/v1/samplers/{}/generate?wait=0",
)  # fmt: skip
DELETE = ("/v1/sessions/{}", "/v1/checkpoints/{}")
BODIES: dict[str, Any] = {"generate": {"prompts": [[5]]}, "samplers": {"prompt": [5]}}


@dataclass
class Timed:
    """When each call began and ended, by primitive."""

    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    async def call(self, name: str, awaited: Awaitable[T]) -> T:
        """Its result; how long it took is noted."""
        begun = time.monotonic()
        result = await awaited
        self.spans.setdefault(name, []).append((begun, time.monotonic()))
        return result


@dataclass
class Trainer:
    """One session.

    Attributes:
        done: what was called, with what came back, for the same calls to be made of a local engine.
        calls: how many calls were numbered.
    """

    tenant: str
    number: int
    session: Any = None
    done: list[tuple[str, int, Any]] = field(default_factory=list)
    calls: int = 0

    async def run(self, client: Any, base: str, timed: Timed, end: float) -> None:
        """Until a moment."""
        self.session = await timed.call(
            "create", client.session(base, adapter=ADAPTER, optimizer=OPTIMIZER, train={"seed": self.number})
        )
        for turn in itertools.count():
            if time.monotonic() > end:
                break
            seed = 1000 * self.number + turn
            forward = await timed.call("forward_backward", self.session.forward_backward(rows(seed)))
            self.done.append(("forward_backward", seed, forward.loss))
            if turn % 3 == 0:
                forward = await timed.call("forward", self.session.forward(rows(seed + 500), "cross_entropy"))
                backward = await timed.call("backward", self.session.backward(forward.handle))
                self.done.append(("forward", seed + 500, (forward.loss, backward.grad_norm)))
            stepped = await timed.call("step", self.session.step())
            self.done.append(("step", 0, (stepped.step, stepped.grad_norm)))
            if turn % 4 == 0:  # in the first turn too: a slow machine has time for no other
                await timed.call("generate", self.session.generate([[5, 6]], Sampling(max_tokens=8, seed=seed)))
            if turn % 8 == 3:
                await timed.call("logprobs", self.session.logprobs(rows(seed)))
            if turn % 16 == 7:
                await timed.call("save", self.session.save(f"s{turn}"))
        self.calls = self.session._calls._next


@dataclass
class Sampled:
    """Samples the base model; every second call is streamed."""

    tenant: str
    number: int
    sampler: Any = None
    done: list[tuple[list[int], Sampling, tuple[int, ...]]] = field(default_factory=list)
    calls: int = 0

    async def run(self, client: Any, base: str, timed: Timed, end: float) -> None:
        """Until a moment."""
        self.sampler = await client.sampler(base)
        dice = random.Random(self.number)
        while time.monotonic() < end:
            prompt = [dice.randrange(3, 127) for _ in range(dice.randrange(1, 40))]
            sampling = Sampling(
                max_tokens=dice.randrange(1, 33), seed=dice.randrange(10**6), temperature=dice.choice([0.0, 0.7, 1.0]),
                top_k=dice.choice([0, 5]), stop_ids=(),
            )  # fmt: skip
            if len(self.done) % 2:
                found = await timed.call("sample", self.sampler.generate(prompt, sampling, seeded=True))
                tokens = found[0].tokens
            else:
                tokens = await timed.call("stream", self._stream(prompt, sampling))
            self.done.append((prompt, sampling, tokens))
        self.calls = self.sampler._calls._next

    async def _stream(self, prompt: list[int], sampling: Sampling) -> tuple[int, ...]:
        stream = self.sampler.stream(prompt, sampling, seeded=True)
        told = tuple([token async for piece in stream for token in piece.tokens])
        if told != stream.completions[0].tokens:
            raise AssertionError(f"streamed {told}, finished {stream.completions[0].tokens}")
        return told


@dataclass
class Prober:
    """A tenant that tries the ids of all others.

    Attributes:
        tried: requests that were answered.
        read: those that were let through.
    """

    tenant: str
    key: str
    tried: int = 0
    read: list[str] = field(default_factory=list)

    async def run(self, url: str, database: Path, end: float) -> None:
        """Until a moment."""
        dice = random.Random(self.tenant)
        async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": self.key}, timeout=10) as http:
            while time.monotonic() < end:
                for id_ in self._ids(database, dice):
                    method, path = dice.choice(
                        [("GET", p) for p in GET] + [("POST", p) for p in POST] + [("DELETE", p) for p in DELETE]
                    )
                    body = BODIES.get(path.split("/")[2], BODIES["generate"]) if "generate" in path else {}
                    try:
                        answer = await http.request(
                            method, path.format(id_), json=body if method == "POST" else None
                        )  # fmt: skip
                    except httpx.TransportError:
                        await asyncio.sleep(0.5)
                        continue
                    self.tried += 1
                    if answer.status_code < 400:
                        self.read.append(f"{method} {path}: {answer.status_code}")
                await asyncio.sleep(0.5)

    def _ids(self, database: Path, dice: random.Random) -> list[str]:
        """Some of others, and neighbours of one's own."""
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10) as connection:
            found: list[str] = []
            for table in ("sessions", "models", "samplers", "checkpoints", "calls"):
                query = f"SELECT id FROM {table} WHERE tenant != ? ORDER BY random() LIMIT 2"
                found += [row[0] for row in connection.execute(query, (self.tenant,))]
            own = connection.execute("SELECT id FROM calls WHERE tenant = ? LIMIT 1", (self.tenant,)).fetchone()
        if own:
            found.append(f"{(int(own[0], 16) + dice.choice([-1, 1])) % 16**32:032x}")
        return found


ADAPTER = {"name": "lora", "rank": 4, "dropout": 0.1}
OPTIMIZER = {"name": "adamw", "learning_rate": 1e-3}


def rows(seed: int) -> list[Datum]:
    """Three rows that depend on the seed alone."""
    dice = np.random.default_rng(seed)
    return [Datum.from_tokens(dice.integers(3, 127, size=dice.integers(5, 20)), id=f"r{seed}-{n}") for n in range(3)]


def make_client(url: str, key: str) -> Any:
    """A client that waits as long as the load lasts."""
    return finetooth.AsyncClient(url, key, patience=600)
