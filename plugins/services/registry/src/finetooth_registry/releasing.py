"""Releases of versions: runs a channel's gates and records the decision."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks import ReleaseVersion, Verdict
from finetooth_hooks.errors import UserError

from finetooth_registry import decisions, records
from finetooth_registry.anywhere import AnyRegistry, Event, Version
from finetooth_registry.policy import ChannelPolicy
from finetooth_registry.records import MADE_OF
from finetooth_registry.registry import Registry
from finetooth_registry.remote import RemoteRegistry
from finetooth_registry.verifying import Logged, verify_log, verify_version
from finetooth_registry.writing import write_version

GATED = ("signature", *MADE_OF)
"""Checks of a verification that are left to gates."""

if TYPE_CHECKING:
    from finetooth_hooks import CommandContext
    from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]


def promote(
    commands: CommandContext,
    registry: AnyRegistry,
    version: Version,
    channel: str,
    *,
    dry_run: bool = False,
    signer: CryptoSigner | None = None,
) -> tuple[bool, Mapping[str, Verdict]]:
    """Ask the gates of a channel about a version, record the decision, and move the channel if all pass.

    A version that is already in the channel is compared with its predecessor there, so that the same question has the
    same answer.

    Args:
        dry_run: ask the gates without changing or recording anything.
        signer: signs the decision; at a server, the server's key does. None: it is not signed.

    Returns:
        Whether it is promoted, and each gate's verdict.

    Raises:
        UserError: the policy has no such channel, the version failed or was reverted, or it or the channel's version
            was tampered with.
    """
    if isinstance(registry, RemoteRegistry):  # the registry's server asks the gates
        return registry.promote(version, channel, dry_run=dry_run)
    assert isinstance(registry, Registry)
    wanted = registry.channel(channel)
    if not dry_run:
        _check_signer(channel, wanted, signer)
    with tempfile.TemporaryDirectory() as place:
        with registry.reading_together():
            logged = verify_log(registry, version.model, whole=False)
            before = _before(registry, version, channel, logged[1])
            for judged in (version, *([] if before is None else [before])):
                _check_untouched(registry, judged, logged)
            candidate = as_released(registry, version, Path(place) / "candidate")
            predecessor = None if before is None else as_released(registry, before, Path(place) / "predecessor")
        verdicts = judge(commands, wanted.gates, f"channels.{channel}.gates", candidate, predecessor)
    if why := registry.held(version, channel, logged[1]):
        verdicts["by hand"] = Verdict(False, f"held back: {why}")
    if dry_run:
        return all(verdict.passed for verdict in verdicts.values()), verdicts
    return registry.decide(version, channel, verdicts, before, signer), verdicts


def _check_untouched(registry: Registry, version: Version, logged: Logged) -> None:
    """
    Raises:
        UserError: a check of the version fails that is not left to gates.
    """
    for link in verify_version(registry, version, logged=logged):
        if not link.holds and link.what not in GATED and not link.what.startswith("decision "):
            text = f"{version.called} was tampered with: {link.what}: {link.said}"
            raise UserError(text, action="restore the registry from a copy")


def _before(registry: Registry, version: Version, channel: str, events: Sequence[Event]) -> Version | None:
    """The version in a channel, or the one before the given one.

    Args:
        events: of the model, verified.
    """
    before = registry.in_channel(version.model, channel)
    if before is None or before.number != version.number:
        return before
    moves = [event.detail for event in events if event.kind == "decided"]
    about = {"model": version.model, "number": version.number, "channel": channel, "decision": decisions.PROMOTE}
    earlier = next((move["before"] for move in reversed(moves) if about.items() <= move.items()), None)
    return None if earlier is None else registry.version(f"{version.model}@v{earlier}")


def roll_back(
    registry: AnyRegistry, model: str, channel: str, reason: str, signer: CryptoSigner | None = None
) -> Version:
    """Set a channel to its previous version, and record the decision.

    Args:
        signer: as for `promote`.

    Raises:
        UserError: it held none before, or the policy wants a signature.
    """
    if not isinstance(registry, Registry):
        return registry.roll_back(model, channel, reason)
    wanted = registry.policy.channels.get(channel)
    _check_signer(channel, wanted, signer)
    return registry.roll_back(model, channel, reason, signer)


def hold(
    registry: AnyRegistry, version: Version, channel: str, reason: str, signer: CryptoSigner | None = None
) -> None:
    """Keep a version out of a channel by hand, and record the decision.

    Args:
        reason: empty: the hold is lifted.
        signer: as for `promote`.

    Raises:
        UserError: see `AnyRegistry.hold`, or the policy wants a signature.
    """
    if not isinstance(registry, Registry):
        return registry.hold(version, channel, reason)
    _check_signer(channel, registry.channel(channel), signer)
    return registry.hold(version, channel, reason, signer)


def revert(registry: AnyRegistry, version: Version, reason: str, signer: CryptoSigner | None = None) -> None:
    """Reject a version by hand for all channels, and record the decision.

    Args:
        signer: as for `promote`.

    Raises:
        UserError: a channel holds it, or the policy wants a signature.
    """
    if not isinstance(registry, Registry):
        return registry.revert(version, reason)
    for channel, wanted in registry.policy.channels.items():
        _check_signer(channel, wanted, signer)
    return registry.revert(version, reason, signer)


def _check_signer(channel: str, wanted: ChannelPolicy | None, signer: CryptoSigner | None) -> None:
    """
    Raises:
        UserError: decisions about the channel must be signed, and no key is given.
    """
    if wanted is not None and wanted.signed_decisions and signer is None:
        raise UserError(f"decisions about {channel} must be signed", action="give --key, or set FT_REGISTRY_KEY")


def judge(
    commands: CommandContext, gates: Sequence[str | dict[str, Any]], setting: str, candidate: ReleaseVersion,
    predecessor: ReleaseVersion | None,
) -> dict[str, Verdict]:  # fmt: skip
    """Each gate's verdict, by its place and name.

    Args:
        setting: the policy's setting of the gates, for messages.
    """
    verdicts: dict[str, Verdict] = {}
    for place, pick in enumerate(gates):
        name = str(pick if isinstance(pick, str) else pick.get("name"))
        gate = commands.build("release_gate", pick, setting=f"{setting}.{place}")
        verdicts[f"{len(verdicts) + 1} {name}"] = gate.judge(candidate, predecessor)
    return verdicts


def as_released(registry: AnyRegistry, version: Version, place: Path) -> ReleaseVersion:
    """A version for gates, with its files in a new folder."""
    write_version(registry, version, place)
    record = registry.record(version)
    metrics, answers = registry.metrics(version)
    signers = records.signers_of(record, registry.trusted())
    return ReleaseVersion(version.model, version.number, place, records.read(record), metrics, answers, signers)
