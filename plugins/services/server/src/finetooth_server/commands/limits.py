"""Limits as options of `ft serve`, and `ft serve status`, which shows limits and tenants' usage."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetooth_server.commands.place import records_of
from finetooth_server.settings import Limits

if TYPE_CHECKING:
    Kind = click.ParamType[Any]
else:
    Kind = click.ParamType  # not generic in all releases

STATUS = "status"
"""The word instead of a face that shows limits."""

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]i?)?B?", re.IGNORECASE)
_UNITS = {f"{unit}{i}": (1024 if i else 1000) ** n for n, unit in enumerate("kmgt", 1) for i in ("", "i")}


class Size(Kind):
    """Bytes: a number, or one with kB, MB, GB or TB, or with KiB, MiB, GiB or TiB.

    Args:
        least: the smallest allowed value.
    """

    name = "size"

    def __init__(self, least: int = 1) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value).strip())
        bytes_ = int(float(match[1]) * (_UNITS[match[2].lower()] if match[2] else 1)) if match else -1
        if bytes_ < self._least:
            self.fail(f"{value!r} is not a size: write 512MB, or 8GB", param, ctx)
        return bytes_


def sized(count: float) -> str:
    """Bytes as text, in the format of the options."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return f"{count:.0f}B"


COUNT, SIZE, SECONDS, RATE = click.IntRange(1), Size(), click.FloatRange(0.001), click.FloatRange(0.1)
SIZE_OR_NONE = Size(least=0)

OPTIONS: Mapping[str, tuple[str, Kind, str]] = {
    "tokens": ("--call-tokens", COUNT, "Tokens of one call, prompts and what they may grow to."),
    "samples": ("--call-samples", COUNT, "Completions that one call may ask for."),
    "memory": ("--call-memory", SIZE, "Memory that one call may take in addition to its model."),
    "body": ("--call-bytes", SIZE, "Length of a request."),
    "values": ("--call-values", COUNT, "Numbers and texts in a request."),
    "models": ("--tenant-models", COUNT, "Open models of a tenant."),
    "sessions": ("--tenant-sessions", COUNT, "Open sessions of a tenant."),
    "queued": ("--queued", COUNT, "Calls of a tenant that may wait."),
    "streams": ("--tenant-streams", COUNT, "Streams that a tenant may follow at once."),
    "requests": ("--tenant-requests", RATE, "Requests of a tenant in a second, while others are at work."),
    "connections": ("--tenant-connections", COUNT, "Requests of a tenant that may be under way at once."),
    "strangers": ("--address-requests", RATE, "Requests in a second from one address, without a valid key."),
    "checkpoint_bytes": ("--tenant-checkpoints", SIZE, "Room for a tenant's checkpoints."),
    "live": ("--live", COUNT, "Models held in memory."),
    "ranks": ("--ranks", COUNT, "Processes that one model may be spread over, if its session asks for a strategy."),
    "rank_silence": ("--rank-silence", SECONDS, "Seconds without a sign of life until one of these ends its session."),
    "samplers": ("--samplers", COUNT, "Engines held in memory that sample from saved weights."),
    "sampler_bytes": ("--sampler-memory", SIZE, "Memory for the weights of these engines."),
    "held": ("--held-adapters", SIZE_OR_NONE, "Memory for adapters that are sampled in one batch; 0: each has turns."),
    "device_memory": ("--device-memory", SIZE, "Memory that running calls may take together, without their models."),
    "waiting": ("--waiting", COUNT, "Calls that may wait, of all tenants together."),
    "batch": ("--batch", COUNT, "Sampling calls that are written together."),
    "silent": ("--silent", SECONDS, "Seconds after its last heartbeat until a session ends."),
    "idle": ("--idle", SECONDS, "Seconds after its last call until a session ends that has no heartbeat."),
    "history": ("--tenant-history", COUNT, "Ended sessions of a tenant that are remembered."),
    "gap": ("--gap", SECONDS, "Seconds that calls wait for one whose number is missing before them."),
}
"""Flag, type and help of each limit that has one."""


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for each limit; `limits_of` reads them."""
    for name, (flag, kind, help_) in reversed(list(OPTIONS.items())):
        default = getattr(Limits, name)
        shown = sized(default) if isinstance(kind, Size) else default
        command = click.option(flag, f"limit_{name}", default=shown, show_default=True, type=kind, help=help_)(command)
    return command


def limits_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The limits among a command's options, by their names."""
    return {name: options[f"limit_{name}"] for name in OPTIONS}


def status(folder: Path, database: str) -> None:
    """Show the limits of a server, running or not, and what its tenants take."""
    from finetooth_server.limits.usage import read_limits, usage

    records = records_of(folder, database)
    try:
        by_tenant = usage(records)
    finally:
        records.close()
    for name, value in read_limits(folder).items():
        if name in OPTIONS:
            flag, kind, help_ = OPTIONS[name]
            shown = sized(value) if isinstance(kind, Size) else f"{value:g}" if isinstance(value, float) else str(value)
            click.echo(f"{flag} {shown:<10} {help_}")
    for tenant, used in by_tenant.items():
        click.echo(
            f"{tenant}: {used.models} models, {used.sessions} sessions, {used.queued} calls waiting, "
            f"{sized(used.checkpoint_bytes)} of checkpoints"
        )
    if not by_tenant:
        click.echo("no tenant takes anything", err=True)
