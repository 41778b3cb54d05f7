"""A strategy that leaves the work to `ddp`, and counts the bytes that it sends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from finetooth_hooks import Context, Strategy, hookimpl
from finetooth_hooks.protocols import Collective, Engine, Rank


@hookimpl
def ft_strategies() -> Iterator[Strategy]:
    yield Strategy(name="counted", build=f"{__name__}:Counted", summary="counts what ddp sends")


class Counting:
    """A line to the other ranks that counts what goes over it."""

    def __init__(self, line: Collective) -> None:
        self.line, self.sent = line, 0
        self.rank, self.world = line.rank, line.world

    def sum(self, arrays: Sequence[Any]) -> list[Any]:
        self.sent += sum(array.nbytes for array in arrays)
        return self.line.sum(arrays)

    def reduce_scatter(self, arrays: Sequence[Any]) -> Any:
        self.sent += sum(array.nbytes for array in arrays)
        return self.line.reduce_scatter(arrays)

    def gather(self, value: Any) -> list[Any]:
        return self.line.gather(value)

    def broadcast(self, value: Any) -> Any:
        return self.line.broadcast(value)

    def barrier(self) -> None:
        self.line.barrier()


class Counted:
    """The strategy, made once in every rank: rank 0 says at the end what a rank sent."""

    def __init__(self, context: Context) -> None:
        self.inner = context.build("strategy", "ddp")

    def open(self, rank: Rank, device: str) -> Collective:
        self.line = Counting(self.inner.open(rank, device))
        return self.line

    def wrap(self, model: Any) -> Any:
        return self.inner.wrap(model)

    def spread(self, engine: Engine, collective: Collective) -> Engine:
        return self.inner.spread(engine, collective)

    def digest(self, engine: Engine) -> str:
        return self.inner.digest(engine)

    def close(self) -> None:
        if self.line.rank == 0:
            print(f"summed over {self.line.world} ranks: {self.line.sent:,} bytes a rank")
        self.inner.close()
