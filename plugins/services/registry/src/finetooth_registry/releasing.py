"""Releases of versions: what a channel's gates say, and the decision that follows."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks import ReleaseVersion, Verdict
from finetooth_hooks.errors import UserError

from finetooth_registry import records
from finetooth_registry.registry import Registry, Version
from finetooth_registry.writing import write_version

if TYPE_CHECKING:
    from finetooth_hooks import CommandContext


def promote(
    commands: CommandContext, registry: Registry, version: Version, channel: str, *, dry_run: bool = False
) -> tuple[bool, Mapping[str, Verdict]]:
    """Ask the gates of a channel about a version, record the decision, and move the channel if all pass.

    Args:
        dry_run: ask, and change and record nothing.

    Returns:
        Whether it is promoted, and what each gate said.

    Raises:
        UserError: the policy has no such channel, or the version failed or was reverted.
    """
    channels = registry.policy.channels
    if channel not in channels:
        raise UserError(f"the policy has no channel {channel!r}", action=f"it has {', '.join(channels) or 'none'}")
    before = registry.in_channel(version.model, channel)
    with tempfile.TemporaryDirectory() as place:
        candidate = as_released(registry, version, Path(place) / "candidate")
        predecessor = None if before is None else as_released(registry, before, Path(place) / "predecessor")
        verdicts = judge(commands, channels[channel].gates, f"channels.{channel}.gates", candidate, predecessor)
    if dry_run:
        return all(verdict.passed for verdict in verdicts.values()), verdicts
    return registry.decide(version, channel, verdicts, before), verdicts


def judge(
    commands: CommandContext, gates: Sequence[str | dict[str, Any]], setting: str, candidate: ReleaseVersion,
    predecessor: ReleaseVersion | None,
) -> dict[str, Verdict]:  # fmt: skip
    """What each gate says, by its place and name.

    Args:
        setting: where the policy picks the gates, for messages.
    """
    verdicts: dict[str, Verdict] = {}
    for pick in gates:
        name = str(pick if isinstance(pick, str) else pick.get("name"))
        gate = commands.build("release_gate", pick, setting=setting)
        verdicts[f"{len(verdicts) + 1} {name}"] = gate.judge(candidate, predecessor)
    return verdicts


def as_released(registry: Registry, version: Version, place: Path) -> ReleaseVersion:
    """A version as gates see it, its files written to a new folder."""
    write_version(registry, version, place)
    record = registry.record(version)
    metrics, answers = registry.metrics(version)
    signers = records.signers_of(record, registry.trusted())
    return ReleaseVersion(version.model, version.number, place, records.read(record), metrics, answers, signers)
