"""The strategies `deepspeed` and `zero3`."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from finetooth_hooks import EngineError
from finetooth_hooks.protocols import Collective, Engine, Foreseen, Optimizer, Rank, Sharding, Strategy, Traffic
from finetooth_torchshared.collective import TorchCollective, digest_of

from finetooth_deepspeed.options import DeepspeedOptions, Zero3Options
from finetooth_deepspeed.zero import ZeroOptimizer
from finetooth_deepspeed.zero3 import Zero3Model

COMPUTED = {"bf16": torch.bfloat16, "fp64": torch.float64}
"""What the model computes in, where that is not fp32."""


class Deepspeed:
    """Implements `finetooth_hooks.protocols.OptimizerStrategy`.

    Args:
        line: a strategy that opens the line between the ranks and shares the data of a step among them.
    """

    def __init__(self, options: DeepspeedOptions, line: Strategy) -> None:
        self._options, self._line = options, line
        self.wrap, self.spread, self.digest = line.wrap, line.spread, line.digest
        self._island: TorchCollective | None = None
        self._sharded: list[ZeroOptimizer] = []

    def open(self, rank: Rank, device: str, *, islands: int = 1) -> Collective:
        """See `finetooth_hooks.protocols.Strategy`.

        Args:
            islands: groups of neighbouring ranks, each of which divides the optimizer's state by itself.
        """
        everyone = _opened(self._line, rank, device)
        size = rank.world // islands
        groups = [dist.new_group(list(range(first, first + size))) for first in range(0, rank.world, size)]
        self._island = TorchCollective(group=groups[rank.rank // size])
        return everyone

    def shard_optimizer(
        self, parameters: Sequence[tuple[str, torch.nn.Parameter]], optimizer: torch.optim.Optimizer, factory: Optimizer
    ) -> ZeroOptimizer:
        """Divides the optimizer's state among the ranks with DeepSpeed's ZeRO. A plan has refused an optimizer that
        cannot work on a part of its parameters."""
        if self._island is None:
            raise EngineError("deepspeed: the other ranks were not met", action="call open first")
        del factory
        self._sharded.append(ZeroOptimizer(parameters, optimizer, self._island, self._options))
        return self._sharded[-1]

    def sharding(self, world: int) -> Sharding:
        """The optimizer's state, among all ranks; summed gradients are divided once nothing of a step is left to do."""
        return Sharding(weights=1, gradients=1, optimizer=world)

    def close(self) -> None:
        """Undo what DeepSpeed has done to the parameters, and leave the process group."""
        for sharded in self._sharded:
            sharded.close()
        self._line.close()

    def traffic(self, parameters: int, world: int, *, run: Foreseen | None = None) -> Traffic:
        """Every gradient in fp32, and every weight that was updated: as much as a sum of gradients."""
        del run
        return Traffic(every=1, sent=4 * parameters, peers=world)


class Zero3:
    """Implements `finetooth_hooks.protocols.ShardingStrategy`.

    Args:
        line: as that of `Deepspeed`.
    """

    def __init__(self, options: Zero3Options, line: Strategy) -> None:
        self._options, self._line = options, line
        self.wrap, self.spread = line.wrap, line.spread
        self._models: list[Zero3Model] = []
        self._digest = ""

    def open(self, rank: Rank, device: str) -> Collective:
        """See `finetooth_hooks.protocols.Strategy`."""
        return _opened(self._line, rank, device)

    def digest(self, engine: Engine) -> str:
        """SHA-256 of every parameter that trains, as it was before it was divided."""
        del engine
        return self._digest

    def sharding(self, world: int) -> Sharding:
        """Everything, among all ranks."""
        return Sharding(
            weights=world, gradients=world, optimizer=world, shard=self._shard, divided=True,
            on_host=self._options.offload, whole=Zero3Model.whole,
        )  # fmt: skip

    def close(self) -> None:
        """Undo what DeepSpeed has done to the model, and leave the process group."""
        for model in self._models:
            model.close()
        self._line.close()

    def _shard(self, model: torch.nn.Module, layers: Sequence[torch.nn.Module], precision: str) -> Zero3Model:
        self._digest = digest_of(model)
        computed = COMPUTED.get(precision, torch.float32)
        self._models.append(made := Zero3Model(model, layers, computed, on_host=self._options.offload))
        return made


def _opened(line: Strategy, rank: Rank, device: str) -> Collective:
    os.environ.setdefault("LOCAL_RANK", str(rank.local))  # DeepSpeed asks for it
    if not device.startswith("cuda"):
        os.environ["DS_ACCELERATOR"] = "cpu"  # else it looks for one, and takes a GPU that the run does not use
    return line.open(rank, device)
