"""Stores `device` and `host`: the newest states of a run, in memory."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Store, hookimpl


@hookimpl
def ft_stores() -> Iterator[Store]:
    """The stores of the tiers `device` and `host`."""
    yield Store(
        name="device",
        build="finetooth_memory.store:build_device",
        tier="device",
        summary="the newest states in device memory, to undo a bad step at once",
    )
    yield Store(
        name="host",
        build="finetooth_memory.store:build_host",
        tier="host",
        summary="the newest states in host memory, which survive a fault of the device",
    )
