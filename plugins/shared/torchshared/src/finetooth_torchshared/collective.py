"""Adding and gathering over torch.distributed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from finetooth_hooks import EngineError
from finetooth_hooks.protocols import Collective
from torch import Tensor


class TorchCollective:
    """Implements `finetooth_hooks.protocols.Collective` over a process group.

    Args:
        bucket: bytes that are summed at once.
        group: of torch.distributed; None is the default one. A rank counts from 0 within it.
    """

    def __init__(self, bucket: int = 25_000_000, group: dist.ProcessGroup | None = None) -> None:
        self._bucket, self._group = bucket, group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)

    @property
    def group(self) -> dist.ProcessGroup:
        """What it is over."""
        made = dist.group.WORLD if self._group is None else self._group
        assert made is not None
        return made

    def sum(self, arrays: Sequence[Tensor]) -> list[Tensor]:
        """In buckets of one type, all under way at a time."""
        summed: list[Tensor | None] = [None] * len(arrays)
        flying: list[tuple[list[int], Tensor, Any]] = []
        with self._met():
            for places in self._buckets(arrays):
                flat = torch.cat([arrays[place].reshape(-1) for place in places])
                flying.append((places, flat, dist.all_reduce(flat, group=self._group, async_op=True)))
            for places, flat, work in flying:
                work.wait()
                parts = torch.split(flat, [arrays[place].numel() for place in places])
                for place, part in zip(places, parts, strict=True):
                    summed[place] = part.view(arrays[place].shape)
        return [array for array in summed if array is not None]

    def _buckets(self, arrays: Sequence[Tensor]) -> Iterator[list[int]]:
        alike: dict[torch.dtype, list[int]] = {}
        for place, array in enumerate(arrays):
            alike.setdefault(array.dtype, []).append(place)
        for places in alike.values():
            bucket: list[int] = []
            size = 0
            for place in places:
                if bucket and size + arrays[place].nbytes > self._bucket:
                    yield bucket
                    bucket, size = [], 0
                bucket.append(place)
                size += arrays[place].nbytes
            yield bucket

    def reduce_scatter(self, arrays: Sequence[Tensor]) -> Tensor:
        """Gloo has no operation for it: there it is a sum of which a part is kept."""
        if dist.get_backend(self._group) == "gloo":
            return self.sum(arrays)[self.rank]
        own = torch.empty_like(arrays[self.rank])
        with self._met():
            dist.reduce_scatter(own, list(arrays), group=self._group)
        return own

    def all_gather(self, array: Tensor) -> list[Tensor]:
        """See `finetooth_hooks.protocols.Neighbours`."""
        arrays = [torch.empty_like(array) for _ in range(self.world)]
        with self._met():
            dist.all_gather(arrays, array.contiguous(), group=self._group)
        return arrays

    def gather(self, value: Any) -> list[Any]:
        """What all gave, by torch.distributed's own pickle."""
        values: list[Any] = [None] * self.world
        with self._met():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast(self, value: Any) -> Any:
        """What the first rank gave, by torch.distributed's own pickle."""
        values = [value]
        with self._met():
            dist.broadcast_object_list(values, group_src=0, group=self._group)
        return values[0]

    def barrier(self) -> None:
        """Return once every rank has come here."""
        with self._met():
            dist.barrier(group=self._group)

    @contextmanager
    def _met(self) -> Iterator[None]:
        """
        Raises:
            EngineError: another rank has ended, or does not answer.
        """
        try:
            yield
        except (RuntimeError, dist.DistBackendError) as error:
            first = str(error).splitlines()[0]
            raise EngineError(
                f"rank {self.rank} lost the others: {first}",
                action="look at what another rank said at its end, then continue with ft resume",
            ) from error


class RowLine(TorchCollective):
    """The line between ranks that train rows of their own. Neighbours that compute the same rows are one for it.

    Args:
        everyone: the line between all ranks.
        neighbours: how many compute the same rows.
        adds: sums are those of all ranks, since each neighbour has gradients of its own; else every neighbour has
            those of its rows, and they are added between the rows.
    """

    def __init__(self, everyone: Collective, neighbours: int, *, adds: bool = False) -> None:
        firsts = range(neighbours)
        groups = [dist.new_group(list(range(first, everyone.world, neighbours))) for first in firsts]
        super().__init__(group=groups[everyone.rank % neighbours])
        self._everyone, self._neighbours = everyone, neighbours
        self.barrier, self.broadcast = everyone.barrier, everyone.broadcast  # type: ignore[method-assign]
        if adds:
            self.sum = everyone.sum  # type: ignore[method-assign]

    def gather(self, value: Any) -> list[Any]:
        """What the first of each group of neighbours gave, so that neighbours act alike."""
        return list(self._everyone.gather(value))[:: self._neighbours]


def digests_of(model: torch.nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter of a model that trains and has memory, by its name."""
    return {
        name: hashlib.sha256(parameter.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()).hexdigest()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not parameter.is_meta
    }


def digest_of(model: torch.nn.Module) -> str:
    """SHA-256 of every parameter of a model that trains."""
    return joined_digest(digests_of(model))


def joined_digest(digests: Mapping[str, str]) -> str:
    """SHA-256 that stands for several, by their names."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
