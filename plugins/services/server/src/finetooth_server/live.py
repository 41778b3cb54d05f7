"""A model in memory: its engine, and what goes with it between calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks import CommandContext, DataError, Engine, Handle
from finetooth_hooks.compute.losses import LossSpec

if TYPE_CHECKING:
    from finetooth_server.ranks.engine import RankedEngine

LossMaker = Callable[[Any], LossSpec]


@dataclass
class LiveModel:
    """A model in memory.

    Attributes:
        id: the model's.
        engine: holds the weights.
        make_loss: from a pick to the loss, for this model's recipe.
        handles: of forwards that may get a backward: the engine's handle by the number of the call.
        since: time of each of these forwards, by a monotonic clock.
        applied: number of the engine's last call.
        computed: seconds of work since the last snapshot.
        written: called with every token of `generate`: the completion's number, token, log-probability.
        used: time of the last call; the least recently used model makes room.
        asked: called before each part of a call outside the engine: as `Engine.interrupt_when`.
        ranks: the engine, if it runs operations in several processes; its handles are then the calls' numbers.
    """

    id: str
    engine: Engine
    make_loss: LossMaker
    handles: dict[int, Handle] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)
    applied: int = -1
    computed: float = 0.0
    written: Callable[[int, int, float], None] = lambda completion, token, logprob: None
    used: float = 0.0
    asked: Callable[[], bool] = lambda: False
    ranks: RankedEngine | None = None
    _losses: dict[str, LossSpec] = field(default_factory=dict)

    def loss(self, pick: Any) -> LossSpec:
        """A loss of the catalog; built once for each set of options.

        Raises:
            DataError: the pick is neither a name nor a mapping with a name.
            UserError: no loss has this name, or its options are wrong.
        """
        named = pick if isinstance(pick, str) else pick.get("name") if isinstance(pick, Mapping) else None
        if not isinstance(named, str):
            raise DataError("loss", f"{pick!r} picks none", action="give a name, or a mapping with name and options")
        key = json.dumps(pick, sort_keys=True)
        if key not in self._losses:
            if len(self._losses) >= 64:  # options that change with every call must not fill memory
                self._losses.clear()
            self._losses[key] = self.make_loss(pick)
        return self._losses[key]


def made_model(
    context: CommandContext, id_: str, recipe: Mapping[str, Any], engine: Engine, ranks: RankedEngine | None = None,
    asked: Callable[[], bool] = lambda: False,
) -> LiveModel:  # fmt: skip
    """A model over an engine; the other arguments are those of `LiveModel`."""
    building = cache(lambda: context.context(recipe))  # finds all plugins, only when a loss is needed

    def make(pick: Any) -> LossSpec:
        return building().loss(pick, setting="loss")

    return LiveModel(id_, engine, make, asked=asked, ranks=ranks)


def state_copied(engine: Engine, folder: Path) -> Callable[[], None]:
    """Copy the training state; return a function that writes the copy into a folder, from any thread. If the engine
    cannot copy, or memory is short, it is written at once; if it is in other processes, they write it while others run
    here.

    Raises:
        FinetoothError: the state is not whole, after a failed step.
    """
    if "snapshots" in engine.capabilities:
        with suppress(Exception):  # errors of the state are raised below
            return partial(engine.snapshot().save, folder)
    from finetooth_server.ranks.engine import RankedEngine

    if isinstance(engine, RankedEngine):  # other processes write, and get no call meanwhile
        return partial(engine.save, folder)
    engine.save(folder)
    return lambda: None
