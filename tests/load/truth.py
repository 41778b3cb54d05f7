"""What the server did, held against its own log and against a local engine that was told the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from clients import ADAPTER, OPTIMIZER, Sampled, Trainer, rows  # type: ignore[import-not-found]


def futures(database: Path, queues: dict[str, int]) -> dict[str, int]:
    """Calls that were lost or are there twice.

    Args:
        queues: for each queue the number that its client would give the next call.
    """
    lost = doubled = calls = 0
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        for queue, following in queues.items():
            found = connection.execute("SELECT seq, state FROM calls WHERE queue = ?", (queue,)).fetchall()
            first = 1 if queue.startswith("sampler:") else 0
            done = [seq for seq, state in found if state == "done"]
            lost += len(set(range(first, following)) - set(done))
            doubled += (
                len(found)
                - len({seq for seq, _ in found})
                + len({seq for seq, _ in found} - set(range(first, following)))
            )
            calls += len(found)
    return {"calls": calls, "lost": lost, "doubled": doubled}  # fmt: skip


def gradients(context: Any, recipe: dict[str, Any], trainers: Sequence[Trainer]) -> dict[str, int]:
    """Steps whose gradient norm, and losses that, are other than a local engine's for the same calls."""
    wrong = checked = 0
    loss = context.context(recipe).loss("cross_entropy")
    for trainer in trainers:
        own = {**recipe, "adapter": ADAPTER, "optimizer": OPTIMIZER}
        engine = context.engine({**own, "train": {**recipe["train"], "seed": trainer.number}})
        for name, seed, had in trainer.done:
            if name == "forward_backward":
                found: Any = engine.forward_backward(rows(seed), loss).loss
            elif name == "forward":
                forward = engine.forward(rows(seed), loss)
                found = forward.loss, engine.backward(forward.handle).grad_norm
            else:
                stepped = engine.step()
                found = stepped.step, stepped.grad_norm
            checked += 1
            wrong += not np.array_equal(np.asarray(found), np.asarray(had))
    return {"results": checked, "wrong": wrong}


def samples(context: Any, recipe: dict[str, Any], clients: Sequence[Sampled], most: int) -> dict[str, int]:
    """Completions whose tokens are other than those sampled alone by a local engine."""
    engine = context.engine(recipe)
    done = [one for client in clients for one in client.done][:: max(1, sum(len(c.done) for c in clients) // most)]
    wrong = sum(engine.generate([prompt], sampling)[0][0].tokens != tokens for prompt, sampling, tokens in done)
    return {"completions": len(done), "wrong": wrong}
