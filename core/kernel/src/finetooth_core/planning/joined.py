"""This process as one of several ranks that train one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetooth_hooks.compute.collectives import Collective
from finetooth_hooks.compute.strategies import Rank, Strategy
from finetooth_hooks.errors import EngineError


@dataclass
class JoinedRank:
    """This process as one of several ranks.

    Attributes:
        rank: its place.
        strategy: spreads the engine.
        name: full name of the strategy.
        words: capabilities of the strategy's entry, and of the strategy.
        collective: its line to the others, once the plan has opened it.
    """

    rank: Rank
    strategy: Strategy
    name: str
    words: frozenset[str]
    collective: Collective | None = None

    @property
    def writes(self) -> bool:
        """Whether this rank writes the run folder."""
        return self.rank.rank == 0

    def same(self, value: str) -> str:
        """Rank 0's value."""
        return value if self.collective is None else str(self.collective.broadcast(value))

    def check_alike(self, own: Mapping[str, str]) -> None:
        """Checks that every rank holds the same as rank 0.

        Args:
            own: hashes of what must be equal at every rank, by name.

        Raises:
            EngineError: one differs; names it and the ranks.
        """
        assert self.collective is not None
        of_ranks = self.collective.gather(dict(own))
        for name in own:
            others = [rank for rank, hashes in enumerate(of_ranks) if hashes.get(name) != of_ranks[0].get(name)]
            if others:
                numbers = ", ".join(map(str, others))
                raise EngineError(
                    f"scale: {name} of rank {numbers} differs from that of rank 0",
                    action="start every rank with the same recipe, plugins, data and model",
                )
