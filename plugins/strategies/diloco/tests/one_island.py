"""One rank of several over gloo, a process of its own: `one_island.py RANK WORLD STORE FOLDER`.

It takes each case of FOLDER/cases.json and writes its weights as CASE-RANK.npz.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))

from finetooth_diloco.engine import IslandEngine, Lines
from finetooth_diloco.options import DilocoOptions
from finetooth_hooks import LossSpec
from finetooth_torchshared.collective import TorchCollective
from toy_engine import LeastSquares, rows

LOSS = LossSpec("toy", lambda outputs, data, state: None)


class Counting:
    """A line that counts the bytes of what it is given."""

    def __init__(self, line: TorchCollective) -> None:
        self.line, self.rank, self.world, self.sent = line, line.rank, line.world, 0
        self.broadcast, self.barrier, self.reduce_scatter = line.broadcast, line.barrier, line.reduce_scatter

    def sum(self, arrays: Any) -> Any:
        self.sent += sum(array.nbytes for array in arrays)
        return self.line.sum(arrays)

    def gather(self, value: Any) -> Any:
        self.sent += sum(array.nbytes for array in value)
        return self.line.gather(value)


class Sharded(LeastSquares):
    """The toy with its gradients summed over an island."""

    line: TorchCollective

    def step(self, **given: Any) -> Any:
        parameters = list(self._weights.values())
        for parameter, summed in zip(parameters, self.line.sum([p.grad for p in parameters]), strict=True):
            parameter.grad = summed
        return super().step(**given)

    def forward_backward(self, data: Any, loss: Any, *, normalizer: Any = None) -> Any:
        return super().forward_backward(data[self.line.rank :: self.line.world], loss, normalizer=normalizer)


def made(
    case: dict[str, Any], world: int, rank: int, lines: Callable[[int], Lines]
) -> tuple[IslandEngine, Counting | None]:
    """The engine of a case."""
    known = {
        datum.id: (given, target) for batch in rows(case["steps"], case["batch"]) for datum, given, target in batch
    }
    engine = Sharded(known, case["optimizer"], case["rate"])
    options = DilocoOptions(**case["options"])
    found = lines(world if options.num_islands == "auto" else options.num_islands)
    engine.line = found.island
    counting = None if found.between is None else Counting(found.between)
    lines_ = Lines(found.everyone, found.island, counting, found.number, found.islands)
    return IslandEngine(engine, engine, lines_, options), counting


def train(engine: IslandEngine, case: dict[str, Any], first: int = 0) -> None:
    """The steps of a case from `first` on; saved and left after `case["stop"]`, if that comes."""
    engine.set_total_steps(case["steps"])
    for batch in rows(case["steps"], case["batch"])[first : case.get("stop")]:
        engine.forward_backward([datum for datum, _, _ in batch], LOSS)
        engine.step()


def main(rank: int, world: int, store: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    groups: dict[int, Lines] = {}

    def lines(count: int) -> Lines:
        if count not in groups:
            size = world // count
            islands = [dist.new_group(list(range(at, at + size))) for at in range(0, world, size)]
            firsts = dist.new_group(list(range(0, world, size)))
            between = TorchCollective(group=firsts) if rank % size == 0 else None
            island = TorchCollective(group=islands[rank // size])
            groups[count] = Lines(TorchCollective(), island, between, rank // size, count)
        return groups[count]

    for name, case in json.loads((folder / "cases.json").read_text(encoding="utf-8")).items():
        engine, counting = made(case, world, rank, lines)
        train(engine, case)
        if case.get("stop"):
            kept = folder / f"{name}-kept-{rank}"
            engine.save(kept)
            first, (engine, counting) = case.pop("stop"), made(case, world, rank, lines)
            engine.load(kept)
            train(engine, case, first)
        with engine.averaged():
            np.savez(
                folder / f"{name}-{rank}.npz", **{key: value.numpy() for key, value in engine._own.weights().items()}
            )
        sent = None if counting is None else counting.sent
        (folder / f"{name}-{rank}.json").write_text(json.dumps(sent))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
