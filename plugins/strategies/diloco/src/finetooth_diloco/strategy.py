"""The strategy `diloco`."""

from __future__ import annotations

import torch.distributed as dist
from finetooth_hooks import EngineError, PlanError
from finetooth_hooks.protocols import Collective, Engine, Rank, Strategy, Traffic
from finetooth_torchshared.collective import TorchCollective

from finetooth_diloco.engine import IslandEngine, Lines
from finetooth_diloco.options import DilocoOptions
from finetooth_diloco.outer import Exchange
from finetooth_diloco.traffic import traffic


class Diloco:
    """Implements `finetooth_hooks.protocols.Strategy`, with islands.

    Args:
        inner: the strategy inside an island; it opens the line to all ranks.
    """

    def __init__(self, options: DilocoOptions, inner: Strategy) -> None:
        self._options, self._inner = options, inner
        self.wrap, self.digest, self.close = inner.wrap, inner.digest, inner.close
        self._lines: Lines | None = None

    def open(self, rank: Rank, device: str) -> Collective:
        """
        Raises:
            PlanError: the ranks make no islands of one size.
        """
        count = rank.world if self._options.num_islands == "auto" else self._options.num_islands
        if rank.world % count:
            raise PlanError(
                f"scale.strategy.num_islands: {rank.world} ranks do not make {count} islands of one size",
                action="start a multiple of num_islands ranks",
            )
        everyone = self._inner.open(rank, device)
        size = rank.world // count
        islands = [dist.new_group(list(range(first, first + size))) for first in range(0, rank.world, size)]
        firsts = dist.new_group(list(range(0, rank.world, size)))
        island = TorchCollective(group=islands[rank.rank // size])
        between = TorchCollective(group=firsts) if rank.rank % size == 0 else None
        self._lines = Lines(everyone, island, between, rank.rank // size, count)
        return everyone

    def island(self) -> Collective:
        """This rank's line to those of its island."""
        return self._opened().island

    def spread(self, engine: Engine, collective: Collective) -> Engine:
        """
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
        exchange = None if lines.between is None else Exchange(lines.between, self._options.pseudo_gradient_dtype)
        return IslandEngine(engine, self._inner.spread(engine, lines.island), lines, exchange, self._options)

    def traffic(self, parameters: int, world: int) -> Traffic:
        """See `finetooth_hooks.protocols.ForeseenStrategy`."""
        return traffic(self._options, parameters, world)

    def _opened(self) -> Lines:
        if self._lines is None:
            raise EngineError("diloco: the other ranks were not met", action="call open first")
        return self._lines
