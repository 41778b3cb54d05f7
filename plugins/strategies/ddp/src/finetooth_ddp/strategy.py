"""The strategy `ddp`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from finetooth_hooks import Datum, EngineError, LossSpec, PlanError
from finetooth_hooks.compute.loss_totals import LossTotals
from finetooth_hooks.engine import Counts
from finetooth_hooks.protocols import Collective, Engine, Rank, Traffic
from finetooth_steps.data_checks import check_fields
from finetooth_steps.micro_batches import one_batch
from finetooth_steps.not_finite import check_finite
from finetooth_steps.outputs import per_datum, side_by_side
from finetooth_steps.rectangles import loss_data
from finetooth_steps.sharding import Scores, ShardedEngine
from finetooth_steps.totals import Totals
from finetooth_torchshared.collective import Patience, TorchCollective, digest_of, meeting_point
from numpy.typing import NDArray

from finetooth_ddp.options import DdpOptions


class Ddp:
    """Implements `finetooth_hooks.protocols.Strategy`."""

    def __init__(self, options: DdpOptions) -> None:
        self._options = options

    def open(self, rank: Rank, device: str) -> Collective:
        """See `finetooth_hooks.protocols.Strategy`."""
        transport = self._options.transport
        if transport == "auto":
            transport = "nccl" if device.startswith("cuda") else "gloo"
        limit = timedelta(seconds=self._options.timeout)
        try:
            store = meeting_point(rank, limit)
            dist.init_process_group(transport, store=store, rank=rank.rank, world_size=rank.world, timeout=limit)
            patience = Patience(dist.new_group(backend="gloo", timeout=limit))
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineError(
                f"rank {rank.rank} cannot meet the others at {rank.address}:{rank.port}: {str(error).splitlines()[0]}",
                action="look at the last messages of the other ranks",
            ) from error
        return TorchCollective(int(self._options.bucket_mb * 1e6), patience=patience)

    def wrap(self, model: Any) -> Any:
        """The model itself: every rank holds all of it."""
        return model

    def spread(self, engine: Engine, collective: Collective) -> Engine:
        """See `finetooth_hooks.protocols.Strategy`."""
        return ShardedEngine(engine, collective, slopes)

    def digest(self, engine: Engine) -> str:
        """SHA-256 of every parameter that trains.

        Raises:
            PlanError: the engine does not give its model away.
        """
        if "module" not in engine.capabilities:
            raise PlanError("scale.strategy: ddp needs an engine of torch", action="set backend: torch")
        return digest_of(engine.module())

    def traffic(self, parameters: int, world: int) -> Traffic:
        """Every gradient in fp32, at every step."""
        return Traffic(every=1, sent=4 * parameters, peers=world)

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def slopes(
    spec: LossSpec, data: Sequence[Datum], scores: Scores, counts: Counts, step: int
) -> tuple[LossTotals, Sequence[NDArray[Any]]]:
    """A loss over a whole step, and its gradient for the log-probabilities.

    Raises:
        EngineError: the loss keeps a state, which would have to be saved with the engine.
        NotFinite: the loss is not finite; names the data.
    """
    check_fields(data)
    batch = one_batch(data, whole=True)
    tensors = {name: _tensor(side_by_side(batch, list(arrays))) for name, arrays in scores.items()}
    logprobs = tensors["logprobs"].requires_grad_()
    result = spec.fn(tensors, loss_data(data, batch, _tensor), {})
    if result.state:
        raise EngineError(
            f"loss {spec.name}: it keeps a state over whole steps, which ranks do not share yet",
            action="train on one rank (scale.devices: 1), or choose another loss",
        )
    totals = Totals(spec, counts)
    objective = totals.add(result, logprobs.new_zeros(()))
    check_finite(
        objective, spec, data=data, batch=batch, outputs=tensors, step=step,
        action="look at these rows, or lower optimizer.learning_rate",
    )  # fmt: skip
    pulled = torch.zeros_like(logprobs)
    if objective.requires_grad:
        (gradient,) = torch.autograd.grad(objective, logprobs, allow_unused=True)
        pulled = pulled if gradient is None else gradient
    of_data = per_datum(data, batch, pulled)
    return totals.plain, [of_data[place] for place in range(len(data))]


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    """Losses are computed in float32 at least."""
    narrow = values.dtype.kind == "f" and values.dtype != np.float64
    return torch.from_numpy(values.astype(np.float32) if narrow else values)
