"""The strategy `context`."""

from __future__ import annotations

import torch.distributed as dist
from finetooth_hooks import EngineError
from finetooth_hooks.protocols import Collective, Engine, Foreseen, Neighbours, Rank, Sharding, Strategy, Traffic
from finetooth_torchshared.collective import RowLine, TorchCollective, traffic_of_positions

from finetooth_context.options import ContextOptions


class ContextParallel:
    """Implements `finetooth_hooks.protocols.ShardingStrategy`, with islands.

    Args:
        line: opens the line to all ranks and spreads the engine over them.
    """

    def __init__(self, options: ContextOptions, line: Strategy) -> None:
        self._options, self._line = options, line
        self.wrap, self.digest, self.close = line.wrap, line.digest, line.close
        self._rows: Collective | None = None
        self._neighbours: Neighbours | None = None

    def open(self, rank: Rank, device: str) -> Collective:
        """Joins the ranks, and the group of this rank that divides each row.

        Raises:
            PlanError: the ranks do not make groups of the size.
        """
        size = self._options.neighbours(rank.world)
        everyone = self._line.open(rank, device)
        groups = [dist.new_group(list(range(first, first + size))) for first in range(0, rank.world, size)]
        self._neighbours = TorchCollective(group=groups[rank.rank // size])
        self._rows = RowLine(everyone, size, adds=True)
        return everyone

    def island(self) -> Collective:
        """The line between groups that train rows of their own."""
        if self._rows is None:
            raise EngineError("context: the other ranks were not met", action="call open first")
        return self._rows

    def spread(self, engine: Engine, collective: Collective) -> Engine:
        """See `finetooth_hooks.protocols.Strategy`."""
        del collective
        return self._line.spread(engine, self.island())

    def sharding(self, world: int) -> Sharding:
        """Positions, among the ranks of a group."""
        size = self._options.neighbours(world)
        return Sharding(
            weights=1, gradients=1, optimizer=1, positions=size, neighbours=self._opened if size > 1 else None
        )

    def traffic(self, parameters: int, world: int, *, run: Foreseen) -> Traffic:
        """Every gradient in fp32, and what attention gathers of other positions."""
        size = self._options.neighbours(world)
        gloo = self._options.transport == "gloo"
        also = traffic_of_positions(run, size, span=size, gloo=gloo) if size > 1 else ()
        return Traffic(every=1, sent=4 * parameters, peers=world, also=also)

    def _opened(self) -> Neighbours:
        if self._neighbours is None:
            raise EngineError("context: the other ranks were not met", action="call open first")
        return self._neighbours
