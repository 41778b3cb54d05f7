"""See `plugin`. At the step that FT_KILL_AT names the process is killed, before the optimizer's step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from finetooth_hooks import Options, Prepared, StepReport
from finetooth_hooks.bases import MethodBase
from finetooth_hooks.context import Context
from finetooth_hooks.engine import Engine
from finetooth_methods.batched import train_step
from finetooth_rows.preparing import prepare

STEPS, ROWS = 12, 4


class ReplayOptions(Options):
    """None."""


class Replay(MethodBase):
    """Priorities of all rows, the rows of the last steps, and the counter of the random stream."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loss = context.loss("cross_entropy", setting="method")

    def prepare(self) -> Prepared:
        made = prepare(self._context.examples("train"), self._context.renderer.render, self._context.train)
        self._data = made.data
        self._priorities = np.ones(len(made.data), np.float32)
        self._drawn = np.zeros((0, ROWS), np.int16)
        self._counts = {"steps": np.array(0), "taken": [np.zeros(len(made.data), np.uint8), "text"]}
        return Prepared(STEPS, STEPS, made.report)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        while (step := int(self._counts["steps"])) < STEPS:
            random = np.random.default_rng([step, 7])
            share = self._priorities.astype(np.float64)
            rows = random.choice(len(share), ROWS, replace=False, p=share / share.sum())
            data = [self._data[row] for row in rows]
            for row, scores in zip(rows, engine.logprobs(data), strict=True):
                self._priorities[row] = 0.1 - scores.mean()
            self._drawn = np.concatenate([self._drawn[-5:], rows[None].astype(np.int16)])
            self._counts["steps"] += 1  # in place: what was told before must not move
            self._counts["taken"][0][rows] += 1
            if str(step) == os.environ.get("FT_KILL_AT"):
                os.kill(os.getpid(), signal.SIGKILL)
            yield train_step(engine, data, self._loss, (step + 1) / STEPS)

    def state(self) -> Mapping[str, Any]:
        return {"priorities": self._priorities, "drawn": self._drawn, "counts": self._counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._priorities, self._drawn, self._counts = (state[name] for name in ("priorities", "drawn", "counts"))


def build(options: ReplayOptions, context: Context) -> Replay:
    return Replay(context)
