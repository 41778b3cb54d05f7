"""One of several islands that may leave: `one_elastic.py RANK WORLD PORT FOLDER`, which has a case.json.

`dies`, `hangs`, `late` and `sends_nothing` name an island and a step: it kills or stops itself behind that step, comes
to the exchange of that step when that is over, or kills itself in place of sending. Files in FOLDER are what processes
wait for, so that nothing depends on time: the patience of the first island ends as soon as all are there that are not
away, and an island is away from the file `away` to the file `back`. (What waits for one that is stopped does so by a
clock.)
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from finetooth_diloco import membership
from finetooth_diloco.options import DilocoOptions
from finetooth_diloco.outer import Exchange
from finetooth_diloco.strategy import Diloco
from finetooth_hooks import LossSpec
from finetooth_hooks.protocols import Rank
from toy_engine import LeastSquares, rows

LOSS = LossSpec("toy", lambda outputs, data, state: None)


class Inner:
    """A strategy of one rank."""

    wrap = close = None

    def spread(self, engine: LeastSquares, collective: object) -> LeastSquares:
        return engine

    def digest(self, engine: object) -> str:
        return "".join(map(str, engine.weights().values()))  # type: ignore[attr-defined]


def await_file(file: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
    while not file.exists():
        meanwhile()
        time.sleep(0.01)


def leave(folder: Path) -> None:
    (folder / "away").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def await_present(folder: Path, apart: int) -> Callable[[membership.Membership, str, set[int], float], set[int]]:
    """In place of `Membership._await`, where island `apart` may be away."""

    def awaited(self: membership.Membership, key: str, ranks: set[int], seconds: float) -> set[int]:
        while True:
            self._store.add("moves", 1)
            away = {apart} if (folder / "away").exists() and not (folder / "back").exists() else set()
            there = {rank for rank in range(len(self._announced)) if self._store.check([key.format(rank)])}
            if ranks - away <= there:
                return there
            time.sleep(0.01)

    return awaited


def main(rank: int, world: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    for does in case.keys() & {"dies", "late", "sends_nothing"}:
        membership.Membership._await = await_present(folder, case[does][0])  # type: ignore[method-assign,assignment]
    if "sends_nothing" in case:
        membership.EXCHANGE = 10.0
    if case.keys() & {"hangs", "stands still"}:
        membership.EXCHANGE = 2.0
    batches = rows(case["steps"], case["batch"])
    engine = LeastSquares({d.id: (given, target) for batch in batches for d, given, target in batch}, "adamw", 0.05)
    strategy = Diloco(DilocoOptions(**case["options"]), Inner())  # type: ignore[arg-type]
    line = strategy.open(Rank(rank, world, rank, "127.0.0.1", port), "cpu")
    again = strategy._elastic[1].joins  # type: ignore[index]
    own = {"what trains": strategy.digest(engine)}
    assert line.gather(own) == [own] * world
    spread = strategy.spread(engine, line)
    spread.set_total_steps(case["steps"])
    if again:
        (folder / "back").touch()
    for number, batch in enumerate(batches, start=1):
        if rank == 0 and str(number) in case["first_waits"]:
            moves = partial(strategy._elastic[1].stepped, 0.0)  # type: ignore[index]
            await_file(folder / case["first_waits"][str(number)], moves if "hangs" in case else lambda: None)
        if not again and case.get("late") == [rank, number]:
            (folder / "away").touch()
            await_file(folder / f"done-{number}")
        if not again and case.get("sends_nothing") == [rank, number]:
            Exchange.mean = lambda *given: leave(folder)  # type: ignore[method-assign,assignment]
        spread.forward_backward([datum for datum, _, _ in batch], LOSS)
        done = spread.step()
        assert done.step == spread.weights_version == number
        if rank == 0:
            (folder / f"done-{number}").touch()
        if not again and (case.get("late") == [rank, number] or case.get("hangs") == [rank, number - 1]):
            (folder / "back").touch()
        if not again and case.get("dies") == [rank, number]:
            leave(folder)
        if not again and case.get("hangs") == [rank, number]:
            os.kill(os.getpid(), signal.SIGSTOP)
    np.savez(folder / f"{rank}.npz", **{key: value.numpy() for key, value in engine.weights().items()})
    if rank == 0:  # it keeps the store
        for other in range(1, world):
            await_file(folder / f"{other}.npz")
    strategy._elastic[1].end()  # type: ignore[index]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
