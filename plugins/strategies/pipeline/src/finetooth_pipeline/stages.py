"""Micro-batches through the layers of several ranks, by torch.distributed.pipelining."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from finetooth_hooks.errors import FinetoothError
from finetooth_hooks.protocols import StagePasses
from finetooth_torchshared.collective import TorchCollective
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe


class TorchStages(TorchCollective):
    """Implements `finetooth_hooks.protocols.Stages`.

    Args:
        group: the ranks that hold one model, in the order of its layers.
        schedule: `1f1b` or `gpipe`.
    """

    def __init__(self, group: dist.ProcessGroup, schedule: str) -> None:
        super().__init__(group=group)
        self._schedule = schedule

    def through(self, passes: StagePasses, micro_batches: int, states: Tensor, *, backward: bool) -> None:
        """Runs this rank's stage over the micro-batches with torch's schedule.

        Raises:
            FinetoothError: what the passes raise.
            EngineError: another rank has ended, or does not answer.
        """
        # Stages are made again for each call: their buffers have the shape of its micro-batches, and go with it.
        first, last = self.rank == 0, self.rank == self.world - 1
        numbers = torch.arange(micro_batches, device=states.device)
        like = states.new_empty(states.shape, device="meta").requires_grad_(backward)
        stage = _Stage(
            _Layers(passes, first=first), self.rank, self.world, states.device,
            input_args=(numbers[:1].to("meta"),) if first else (like,), output_args=(like,), group=self._group,
        )  # fmt: skip
        kind = Schedule1F1B if self._schedule == "1f1b" and micro_batches >= self.world else ScheduleGPipe

        def loss(computed: Tensor, number: Tensor) -> Any:
            return passes.loss(int(number), computed)

        made = kind(stage, micro_batches, loss_fn=loss, scale_grads=False)
        run = made.step if backward else made.eval
        with self._met():
            try:
                run(
                    *((numbers,) if first else ()), target=numbers if last else None, return_outputs=False,
                    number=numbers,
                )  # fmt: skip
            except RuntimeError as error:  # torch wraps what a stage raises
                if isinstance(error.__cause__, FinetoothError):
                    raise error.__cause__ from None
                raise


class _Layers(nn.Module):
    """One rank's layers as a module of a pipeline: what travels with a micro-batch is its number alone, since every
    rank has the data."""

    def __init__(self, passes: StagePasses, *, first: bool) -> None:
        super().__init__()
        self.passes, self._first = passes, first

    def forward(self, received: Tensor, *, number: Tensor) -> Any:
        """See `finetooth_hooks.protocols.StagePasses.forward`."""
        return self.passes.forward(int(number), None if self._first else received)


class _Stage(PipelineStage):
    """A stage whose backward passes go through what the engine asks for."""

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **more: Any) -> None:
        """See torch's."""
        passes: Any = self.submod
        with passes.passes.again(bwd_chunk_id):
            super().backward_one_chunk(bwd_chunk_id, *args, **more)
