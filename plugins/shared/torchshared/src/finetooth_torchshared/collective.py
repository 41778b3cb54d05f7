"""Meeting, adding and gathering over torch.distributed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from queue import Empty, SimpleQueue
from threading import Condition, Thread
from typing import Any

import torch
import torch.distributed as dist
from finetooth_hooks import EngineError
from finetooth_hooks.protocols import Collective, Foreseen, Rank, Traffic
from torch import Tensor

GRACE = 5.0
"""Seconds beyond the limit that torch's own timeout has to be raised."""


BEAT = 1.0
"""Seconds after which a rank that is busy says again that it lives."""


class Patience:
    """Meetings that no limit of time holds for. A thread of each rank says to the others how many it has come to, again
    and again while the rank is busy before one; only a rank that says nothing within the limit of the group is lost.

    Args:
        group: of all that meet, over gloo, and of no other use.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group, self._changed = group, Condition()
        self._depth = 0

    @contextmanager
    def waits(self) -> Iterator[None]:
        """See `finetooth_hooks.protocols.PatientCollective`.

        Raises:
            RuntimeError: a rank has ended, or is silent.
        """
        if not self._depth:
            self._came, self._all_came, self._over = 0, 0, False
            self._problem: Exception | None = None
            self._thread = Thread(target=self._beat, name="patience", daemon=True)
            self._depth = 1
            self._thread.start()
        else:
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:  # together, since the others see both at once
                self._depth -= 1
                self._came += 1
                self._changed.notify_all()
        with self._changed:
            self._changed.wait_for(lambda: self._all_came >= self._came or self._over)
        if not self._depth:
            self._thread.join()
        if self._problem is not None:
            raise self._problem

    def _beat(self) -> None:
        own = -1
        try:
            while not self._over:
                with self._changed:
                    self._changed.wait_for(lambda: self._came != own, BEAT)  # noqa: B023 - called at once
                    own, left = self._came, not self._depth
                least = torch.tensor([own, int(left)])
                dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self._group)
                with self._changed:
                    self._all_came, self._over = int(least[0]), bool(least[1])
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._problem, self._over = error, True
                self._changed.notify_all()


class TorchCollective:
    """Implements `finetooth_hooks.protocols.Collective` over a process group.

    Args:
        bucket: bytes that are summed at once.
        group: of torch.distributed; None is the default one. A rank counts from 0 within it.
        patience: of the same ranks; None: they wait for each other up to the limit of the group.
    """

    def __init__(
        self, bucket: int = 25_000_000, group: dist.ProcessGroup | None = None, patience: Patience | None = None
    ) -> None:
        self._bucket, self._group, self._patience = bucket, group, patience
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
        """The values of all ranks, by torch.distributed's own pickle."""
        values: list[Any] = [None] * self.world
        with self._met():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first rank's value, by torch.distributed's own pickle."""
        values = [value]
        with self._met():
            dist.broadcast_object_list(values, group_src=0, group=self._group)
        return values[0]

    def barrier(self) -> None:
        """Return once every rank has come here."""
        with self._met():
            dist.barrier(group=self._group)

    @contextmanager
    def waits(self) -> Iterator[None]:
        """See `finetooth_hooks.protocols.PatientCollective`."""
        if self._patience is None:
            yield
            return
        with self._met(), self._patience.waits():
            yield

    @contextmanager
    def _met(self) -> Iterator[None]:
        """
        Raises:
            EngineError: another rank has ended, or does not answer.
        """
        try:
            yield
        except (RuntimeError, dist.DistBackendError) as error:
            raise lost(error) from error


_OF_LIBRARIES = re.compile(r"gloo[/:]|NCCL|ProcessGroup")
_PLACE_AND_ADVICE = re.compile(r"^\[[^\]]*/gloo/[^\]]*\]\s*|\. This (is typically|may indicate|error may).*$")


def is_of_line(error: BaseException) -> bool:
    """Whether an error is one of the line to the other ranks, which torch raises as a plain RuntimeError."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and dist.is_initialized() and bool(_OF_LIBRARIES.search(str(error)))
    )


def lost(error: BaseException) -> EngineError:
    """What a rank says that has no line to the others any more, without the source file and the advice of gloo."""
    first = _PLACE_AND_ADVICE.sub("", str(error).splitlines()[0])
    return EngineError(
        f"rank {dist.get_rank() if dist.is_initialized() else 0} lost the others: {first}",
        action="look at what another rank said at its end, then continue with ft resume",
    )


class RowLine(TorchCollective):
    """The line between ranks that train rows of their own. Neighbours that compute the same rows are one for it.

    Args:
        everyone: the line between all ranks.
        neighbours: how many that are next to each other compute the same rows.
        apart: how many such groups compute the same rows; they lie apart, each in a part of the ranks of its own.
        adds: sums are those of all ranks, since each neighbour has gradients of its own; else every neighbour has
            those of its rows, and they are added between the rows.
    """

    def __init__(self, everyone: Collective, neighbours: int, *, adds: bool = False, apart: int = 1) -> None:
        size = everyone.world // apart
        lines = [
            range(at * size + near, (at + 1) * size, neighbours) for at in range(apart) for near in range(neighbours)
        ]
        groups = [dist.new_group(list(line)) for line in lines]
        super().__init__(group=groups[everyone.rank // size * neighbours + everyone.rank % neighbours])
        self._everyone, self._firsts = everyone, lines[0]
        self.barrier, self.broadcast = everyone.barrier, everyone.broadcast  # type: ignore[method-assign]
        self.waits = getattr(everyone, "waits", nullcontext)  # type: ignore[method-assign, arg-type]
        if adds:
            self.sum = everyone.sum  # type: ignore[method-assign]

    def gather(self, value: Any) -> list[Any]:
        """What the first of each group of neighbours gave, so that neighbours act alike."""
        values = self._everyone.gather(value)
        return [values[first] for first in self._firsts]


def traffic_of_positions(
    run: Foreseen, ranks: int, *, span: int, heads: int = 1, gloo: bool = False
) -> tuple[Traffic, ...]:
    """What ranks send that divide the positions of rows: keys and values, gathered in every layer of a pass and
    once more where the backward pass computes it again; and their gradients, of which each rank gets the sum for its
    positions.

    Args:
        ranks: that divide the positions.
        span: see `Traffic`.
        heads: ranks that divide the heads.
        gloo: it has no reduce-scatter, and sums everything at every rank.
    """
    layers = run.passes * run.layers
    whole = layers * run.positions * run.keys * run.size // heads
    gathers = (2 if run.recomputes else 1) + (0 if gloo else 1)
    gathered = Traffic(1, gathers * whole // ranks, ranks, False, None, gathers * layers, "keys and values", span)
    summed = Traffic(1, whole, ranks, calls=layers, what="gradients of keys and values", span=span)
    return (gathered, summed) if gloo else (gathered,)


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


def _connected(make: Callable[[], Any], rank: Rank, limit: timedelta) -> Any:
    """A connection to the store. Where another program listens, torch waits for its answer without an end; where
    nobody does, it tries again for longer than the limit."""
    came: SimpleQueue[Any] = SimpleQueue()

    def connect() -> None:
        try:
            came.put(make())
        except Exception as error:
            came.put(error)

    Thread(target=connect, daemon=True).start()
    try:
        made = came.get(timeout=limit.total_seconds() + GRACE)
    except Empty:
        try:
            socket.create_connection((rank.address, rank.port), GRACE).close()
        except OSError:
            raise TimeoutError(f"rank 0 did not listen there within {limit.total_seconds():g} s") from None
        raise _taken(rank, "what listens there does not answer as rank 0 does") from None
    if isinstance(made, Exception):
        raise made
    return made


def _taken(rank: Rank, why: str) -> EngineError:
    return EngineError(
        f"rank {rank.rank} cannot meet the others at {rank.address}:{rank.port}: {why}",
        action="give another port: port of scale.launcher, --master-port of torchrun, or MASTER_PORT",
    )


def meeting_point(rank: Rank, limit: timedelta, *, waits: bool = True) -> Any:
    """The store where ranks find each other. Rank 0 listens at the address that it is named by, and nowhere else: torch
    by itself would at every interface. A name that this machine resolves to itself alone (127.0.1.1) may be another
    address to the others, so that torch decides there. Under torchrun its agent listens, and keeps what an earlier
    attempt wrote.

    Args:
        limit: how long a call of the store waits.
        waits: return once all ranks are there.

    Raises:
        EngineError: another program listens there.
    """
    address, more = rank.address, dict[str, Any]()
    listens = rank.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    family, *_, place = socket.getaddrinfo(address, rank.port, type=socket.SOCK_STREAM)[0]
    loopback, named = ip_address(place[0]).is_loopback, address in ("localhost", place[0])
    interface = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "")
    if loopback and named and interface:  # gloo and NCCL would listen at the address of the machine's name
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", interface)
    if listens and (named or not loopback):
        try:
            listening = socket.create_server((place[0], rank.port), family=family, backlog=max(128, rank.world))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise _taken(rank, "another program listens there") from error
        more["master_listen_fd"] = listening.detach()
    make = partial(dist.TCPStore, address, rank.port, rank.world, listens, limit, waits, **more)  # type: ignore[attr-defined]
    store: Any = make() if listens else _connected(make, rank, limit)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    return store if attempt is None else dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
