"""The newest snapshots of a run, a bounded number of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetooth_hooks import Context, FinetoothError, Options, StoreError
from finetooth_hooks.checkpoints import StepSnapshot
from finetooth_hooks.engine import Snapshot
from pydantic import Field


class MemoryOptions(Options):
    """Options of the stores `device` and `host`."""

    count: int = Field(1, ge=1)
    """Number of states to keep, the newest ones; each takes as much memory as everything that trains."""


class MemoryStore:
    """`checkpoints.SnapshotStore` that keeps the newest `count` snapshots.

    One thread may put while another asks what is kept.

    Args:
        count: how many are kept.
        on_host: keep a copy in host memory in place of the snapshot itself.
    """

    def __init__(self, count: int, *, on_host: bool) -> None:
        self._count = count
        self._on_host = on_host
        self._kept: tuple[StepSnapshot, ...] = ()

    @property
    def most(self) -> int:
        """The bound."""
        return self._count

    def put(self, kept: StepSnapshot) -> None:
        """Keep it, and drop the oldest beyond the bound, once the new one is whole. What was kept of the same or a
        later step goes as well: a run that comes to a step again has undone it.

        Raises:
            StoreError: host memory does not suffice; what was kept before still is.
        """
        if self._on_host:
            kept = replace(kept, snapshot=self._host_copy(kept))
        earlier = tuple(other for other in self._kept if other.step < kept.step)
        self._kept = (*earlier, kept)[-self._count :]  # one assignment: a reader sees the old or the new

    def kept(self) -> Sequence[StepSnapshot]:
        """What is kept, oldest first."""
        return self._kept

    def _host_copy(self, kept: StepSnapshot) -> Snapshot:
        try:
            return kept.snapshot.to_host()
        except FinetoothError:
            raise
        except Exception as error:  # each framework says in its own way that memory is short
            raise StoreError(
                "host memory",
                f"the state of step {kept.step} ({kept.snapshot.nbytes / 1e6:.0f} MB) could not be copied: "
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}",
                action="keep fewer states with `count`, or leave the store `host` out of checkpoint.stores",
            ) from error


def build_device(options: MemoryOptions, context: Context) -> MemoryStore:
    """Builder of the store `device`."""
    return MemoryStore(options.count, on_host=False)


def build_host(options: MemoryOptions, context: Context) -> MemoryStore:
    """Builder of the store `host`."""
    return MemoryStore(options.count, on_host=True)
