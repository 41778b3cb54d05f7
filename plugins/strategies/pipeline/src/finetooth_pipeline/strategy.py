"""The strategy `pipeline`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.distributed as dist
from finetooth_hooks import EngineError
from finetooth_hooks.protocols import Collective, Engine, Foreseen, Rank, Sharding, Traffic
from finetooth_torchshared.collective import RowLine, digests_of, joined_digest

from finetooth_pipeline.options import PipelineOptions
from finetooth_pipeline.stages import TorchStages


class PipelineParallel:
    """Implements `finetooth_hooks.protocols.ShardingStrategy`, with islands.

    Args:
        line: opens the line to all ranks and spreads the engine over them: the strategy `ddp`, or `fsdp` if ranks with
            the same layers divide something.
    """

    def __init__(self, options: PipelineOptions, line: Any) -> None:
        self._options, self._line = options, line
        self.close = line.close
        self._rows: Collective | None = None
        self._digests: dict[str, str] = {}
        self._stages: TorchStages | None = None

    def open(self, rank: Rank, device: str) -> Collective:
        """Joins the ranks, and the group of this rank that divides the layers.

        Raises:
            PlanError: the ranks cannot be grouped as the options say.
        """
        size = self._options.count(rank.world)
        models, line = rank.world // size, self._line
        if self._options.divides:  # ranks with the same layers are neighbours
            everyone: Collective = line.open(rank, device, islands=size)
            of_models, own = [range(first, rank.world, models) for first in range(models)], rank.rank % models
            self._rows = RowLine(everyone, self._options.together, apart=size)
        else:
            everyone = line.open(rank, device)
            of_models = [range(first, first + size) for first in range(0, rank.world, size)]
            own = rank.rank // size
            self._rows = RowLine(everyone, size)
        groups = [dist.new_group(list(ranks)) for ranks in of_models]
        self._stages = TorchStages(groups[own], self._options.schedule)
        return everyone

    def island(self) -> Collective:
        """The line between ranks that have the same layers and train rows of their own."""
        if self._rows is None:
            raise EngineError("pipeline: the other ranks were not met", action="call open first")
        return self._rows

    def spread(self, engine: Engine, collective: Collective) -> Engine:
        """See `finetooth_hooks.protocols.Strategy`."""
        del collective
        spread: Engine = self._line.spread(engine, self.island())
        return spread

    def wrap(self, model: Any) -> Any:
        """The model itself, which the engine divides."""
        self._digests = digests_of(model)
        return model

    def digest(self, engine: Engine) -> str:
        """SHA-256 of every parameter that trains: of this rank's as it began with them, else as another rank did."""
        del engine
        of_all = {name: digest for own in self._opened().gather(self._digests) for name, digest in own.items()}
        return joined_digest(of_all | self._digests)

    def sharding(self, world: int) -> Sharding:
        """Layers, among the ranks that hold one model; and what the ranks that have the same divide of these."""
        stages, divided = self._options.count(world), Sharding(weights=1, gradients=1, optimizer=1)
        if self._options.divides:
            divided = self._line.sharding(world // stages)
        return replace(divided, stage_count=stages, stages=self._opened, stored=False)

    def traffic(self, parameters: int, world: int, *, run: Foreseen) -> Traffic:
        """What a rank in the middle gives: hidden states to the next, their gradients to the one before, micro-batch by
        micro-batch; gradients in fp32, at most, to the ranks with the same layers, with `shard` weights too; and to all
        of a model those of what lies in no layer."""
        stages = self._options.count(world)
        models, span, layers = world // stages, stages, -(-run.layers // stages)
        outside = run.trained_outside(parameters)
        of_stage = outside + (parameters - outside) * layers // run.layers
        sums = Traffic(every=1, sent=4 * of_stage, peers=models, span=world)
        if self._options.divides:
            weights = run.outside + (run.weights - run.outside) * layers // run.layers
            sums, span = self._line.traffic(of_stage, models, run=replace(run, weights=weights, layers=layers)), world
            outside //= self.sharding(world).weights
        whole = Traffic(every=1, sent=4 * outside, peers=stages, what="gradients of no layer", span=span)
        states = run.positions // self._options.context * run.hidden * run.size
        passed = Traffic(
            every=1, sent=run.passes * states, peers=2, summed=False, calls=run.passes + stages - 2,
            what="hidden states", span=span,
        )  # fmt: skip
        back = replace(passed, what="gradients of hidden states")
        return replace(sums, also=sums.also + ((whole,) if outside else ()) + ((passed, back) if stages > 1 else ()))

    def _opened(self) -> TorchStages:
        if self._stages is None:
            raise EngineError("pipeline: the other ranks were not met", action="call open first")
        return self._stages
