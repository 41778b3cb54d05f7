"""One of two ranks, a process of its own: `one_rank.py RANK STORE FOLDER DECODER...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from finetooth_hooks import Datum, LossData, LossResult, NotFinite
from finetooth_steps.normalizers import count_normalizers

sys.path.insert(0, str(Path(__file__).parent))


class Gloo:
    """`protocols.Collective` over torch.distributed."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def sum(self, arrays: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        flat = torch.cat([array.reshape(-1) for array in arrays])
        dist.all_reduce(flat)
        parts = flat.split([array.numel() for array in arrays])
        return [part.view(array.shape).clone() for part, array in zip(parts, arrays, strict=True)]

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found


def train(rank: int, folder: Path, decoder: str) -> None:
    """Three steps with the rank's half of the data; weights and norms go into the folder, by rank and decoder."""
    from conftest import NLL, make_data, make_engine, weights

    engine = make_engine(max_grad_norm=0.05, decoder=decoder, collective=Gloo())
    data = make_data(8, seed=2)
    mine = data[4 * rank : 4 * rank + 4]
    counts = count_normalizers(data)
    norms, backward = [], 0.0
    for step in range(3):
        if step == 0:  # by a handle: its norm is that of all ranks too
            made = engine.forward(mine, NLL, normalizer=counts)
            backward = engine.backward(made.handle).grad_norm
        else:
            engine.forward_backward(mine[:2], NLL, normalizer=counts)
            engine.forward_backward(mine[2:], NLL, normalizer=counts)
        norms.append(engine.step().grad_norm)
    np.savez(folder / f"{decoder}{rank}.npz", **weights(engine))
    broken = not_finite_at_one(rank, engine, mine, counts)
    said = json.dumps({"norms": norms, "backward": backward, "broken": broken})
    (folder / f"{decoder}{rank}.json").write_text(said, encoding="utf-8")


def not_finite_at_one(rank: int, engine: Any, mine: Sequence[Datum], counts: Any) -> list[Any]:
    """A call that is not finite at rank 1 alone, by each primitive, between two good ones: what each raised, with its
    rows, and then a step over what the good ones gave."""
    from conftest import NLL

    def nan(outputs: Any, data: LossData, state: Any) -> LossResult:
        result = NLL.fn(outputs, data, state)
        part = result.contributions["nll"]
        return replace(result, contributions={"nll": replace(part, total=part.total * float("nan"))})

    loss = replace(NLL, fn=nan if rank == 1 else NLL.fn)
    found: list[Any] = []
    engine.forward_backward(mine[:2], NLL, normalizer=counts)
    for call in (engine.forward_backward, engine.forward):
        try:
            call(mine[2:], loss, normalizer=counts)
            found.append("nothing")
        except NotFinite as error:
            found.append([error.problem, list(error.rows)])
    engine.forward_backward(mine[2:], NLL, normalizer=counts)
    return [*found, engine.step().grad_norm]


def main(rank: int, store: str, folder: Path, decoders: Sequence[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for decoder in decoders:
        train(rank, folder, decoder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
