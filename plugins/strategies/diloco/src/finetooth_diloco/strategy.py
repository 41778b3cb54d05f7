"""The strategy `diloco`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch.distributed as dist
from finetooth_hooks import EngineError, PlanError
from finetooth_hooks.protocols import Collective, Engine, Foreseen, Optimizer, Rank, Sharding, Strategy, Traffic
from finetooth_torchshared.collective import TorchCollective, meeting_point
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from finetooth_diloco.elastic import ElasticEngine
from finetooth_diloco.engine import IslandEngine, Lines
from finetooth_diloco.membership import FIRST, TIMEOUT, Membership, StoreLine, read
from finetooth_diloco.options import DilocoOptions
from finetooth_diloco.traffic import traffic


class Diloco:
    """Implements `finetooth_hooks.protocols.Strategy`, with islands.

    Args:
        inner: the strategy inside an island; it opens the line to all ranks.

    Raises:
        PlanError: it cannot divide what an island holds.
    """

    def __init__(self, options: DilocoOptions, inner: Strategy) -> None:
        self._options = options
        self._inner: Any = inner
        divides = {"optimizer": "shard_optimizer", "shards": "sharding"}
        self.capabilities = frozenset(word for word, method in divides.items() if hasattr(inner, method))
        if self.capabilities and "islands" not in signature(inner.open).parameters:
            raise PlanError(
                "scale.strategy.within: it divides a model among all ranks, not among those of an island",
                action="write within: ddp",
            )
        self.wrap = inner.wrap
        self._lines: Lines | None = None
        self._elastic: tuple[Store, Membership] | None = None

    def open(self, rank: Rank, device: str) -> Collective:
        """Joins the ranks and divides them into islands.

        Raises:
            PlanError: the ranks make no islands of one size.
        """
        count = self._count(rank.world)
        if rank.world % count:
            raise PlanError(
                f"scale.strategy.num_islands: {rank.world} ranks do not make {count} islands of one size",
                action="start a multiple of num_islands ranks",
            )
        if self._options.patience is not None:
            return self._open_for_some(rank, count, self._options.patience)
        more = {"islands": count} if self.capabilities else {}
        everyone: Collective = self._inner.open(rank, device, **more)
        size = rank.world // count
        islands = [dist.new_group(list(range(first, first + size))) for first in range(0, rank.world, size)]
        firsts = dist.new_group(list(range(0, rank.world, size)))
        island = TorchCollective(group=islands[rank.rank // size])
        between = TorchCollective(group=firsts) if rank.rank % size == 0 else None
        self._lines = Lines(everyone, island, between, rank.rank // size, count)
        return everyone

    def _open_for_some(self, rank: Rank, count: int, patience: float) -> Collective:
        """Meet by a store that the first rank keeps, so that ranks may leave and join.

        Raises:
            PlanError: an island has several ranks.
            EngineError: the store cannot be reached.
        """
        if count != rank.world:
            raise PlanError(
                f"scale.strategy.patience: islands of {rank.world // count} ranks cannot leave and join",
                action="leave num_islands out, so that every rank is an island",
            )
        try:
            store = meeting_point(rank, TIMEOUT, waits=False)
            dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        except (RuntimeError, OSError) as error:
            raise EngineError(
                f"rank {rank.rank} cannot meet the others at {rank.address}:{rank.port}: {str(error).splitlines()[0]}",
                action="look at the last messages of the other ranks",
            ) from error
        self._elastic = store, Membership(store, rank.rank, rank.world, patience)
        everyone = StoreLine(store, rank.rank, rank.world)
        self._lines = Lines(everyone, TorchCollective(), None, rank.rank, count)
        return everyone

    def close(self) -> None:
        """Leave the other ranks."""
        if self._elastic is not None:
            self._elastic[1].end()
        self._inner.close()

    def digest(self, engine: Engine) -> str:
        """What trains; of a rank that comes later that of the others, which it takes before it trains."""
        if self._elastic is None:
            return str(self._inner.digest(engine))
        store, membership = self._elastic
        if membership.joins:
            return read(store, "digest", FIRST).decode()
        digest = str(self._inner.digest(engine))
        store.set("digest", digest)
        return digest

    def island(self) -> Collective:
        """This rank's line to those of its island."""
        return self._opened().island

    def spread(self, engine: Engine, collective: Collective) -> Engine:
        """Wraps the engine so that islands train alone between exchanges.

        Raises:
            PlanError: the engine does not give its weights, or the optimizer keeps other weights in addition to them.
        """
        del collective
        if "weights" not in engine.capabilities:
            raise PlanError(
                "scale.strategy: diloco takes and sets weights, which this engine and its optimizer do not allow",
                action="set backend: torch, and an optimizer such as adamw",
            )
        lines = self._opened()
        if self._elastic is not None:
            island = self._inner.spread(engine, lines.island)
            return ElasticEngine(engine, island, lines, self._elastic[1], self._options)
        return IslandEngine(engine, self._inner.spread(engine, lines.island), lines, self._options)

    def shard_optimizer(self, parameters: Sequence[tuple[str, Any]], optimizer: Any, factory: Optimizer) -> Any:
        """Divides the optimizer's state among the ranks of an island."""
        return self._inner.shard_optimizer(parameters, optimizer, factory)

    def sharding(self, world: int) -> Sharding:
        """What the strategy inside divides among the ranks of an island."""
        made: Sharding = self._inner.sharding(world // self._count(world))
        return made

    def traffic(self, parameters: int, world: int, *, run: Foreseen | None = None) -> Traffic:
        """What islands send, and what ranks of an island do if the strategy inside says it."""
        between, size = traffic(self._options, parameters, world), world // self._count(world)
        if size == 1 or not hasattr(self._inner, "traffic"):
            return between
        more = {"run": run} if "shards" in self.capabilities else {}
        inside: Traffic = self._inner.traffic(parameters, size, **more)
        return replace(between, also=(replace(inside, also=()), *inside.also))

    def _count(self, world: int) -> int:
        return world if self._options.num_islands == "auto" else self._options.num_islands

    def _opened(self) -> Lines:
        if self._lines is None:
            raise EngineError("diloco: the other ranks were not met", action="call open first")
        return self._lines
