"""Decisions about channels, as signed statements: the question, each gate's verdict, and the result.

The bytes of a decision depend only on the version, the channel, its previous version and the evidence: they have no
time, and Ed25519 signatures are deterministic, so the same question gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks import Verdict
from finetooth_hooks.errors import UserError
from securesystemslib.signer import CryptoSigner, Key  # type: ignore[attr-defined]

from finetooth_registry import records
from finetooth_registry.anywhere import AnyRegistry, Event, Version

PREDICATE = "urn:finetooth:decision:1"
PROMOTE, HOLD, REJECT, ROLLBACK, LIFT = "PROMOTE", "HOLD", "REJECT", "ROLLBACK", "LIFT"
BY_HAND = ("held", "hold lifted", "reverted")
"""Events that keep a version out of a channel, regardless of gates."""
KINDS = ("decided", "rolled back", *BY_HAND)
"""Events that move a channel, or refuse to."""
RECORD = "signed"
"""Key of the statement's SHA-256 in such an event."""


def outcome(verdicts: Mapping[str, Verdict]) -> str:
    """The result of the gates' verdicts.

    REJECT: a gate judged the version and refused it. HOLD: none did, but a gate lacks a measurement or a signature; its
    verdict then has no evidence.
    """
    failed = [verdict for verdict in verdicts.values() if not verdict.passed]
    if not failed:
        return PROMOTE
    return REJECT if any(verdict.evidence for verdict in failed) else HOLD


def write(
    registry: AnyRegistry, version: Version, before: Version | None, about: Mapping[str, Any],
    signer: CryptoSigner | None,
) -> bytes:  # fmt: skip
    """A decision in its envelope.

    Args:
        before: the channel's version until now.
        about: channel, decision, each gate's verdict.
        signer: None: it is not signed.
    """
    judged = (version, *([] if before is None else [before]))
    digests = {each.called: records.digest(registry.record(each)) for each in judged}
    predicate = {"name": version.model, "number": version.number, **about}
    content = records.statement(digests, predicate, PREDICATE)
    return records.sign(content, signer) if signer else records.unsigned(content)


def latest(registry: AnyRegistry, version: Version, channel: str) -> bytes:
    """The latest decision about a version and a channel.

    Raises:
        UserError: there is none.
    """
    for event in reversed(registry.events(version.model, KINDS)):
        detail = event.detail
        wanted = (version.model, version.number, channel)
        if (detail.get("model"), detail["number"], detail.get("channel", channel)) == wanted and RECORD in detail:
            return registry.blobs.read(detail[RECORD])
    raise UserError(
        f"nothing was decided about {version.called} and {channel}", action="ft registry promote asks the gates"
    )


def check(registry: AnyRegistry, event: Event, trusted: Mapping[str, Key], *, must: bool) -> tuple[bool, str]:
    """Check that an event agrees with its statement, and who signed it.

    Args:
        trusted: keys by name.
        must: a decision needs a signature.
    """
    detail = event.detail
    if RECORD not in detail:  # an event of an earlier finetooth
        return not must, "not signed"
    try:
        envelope = registry.blobs.read(detail[RECORD])
        about = records.read(envelope, PREDICATE)["predicate"]
    except UserError as error:
        return False, str(error)
    before = detail.get("before" if event.kind == "decided" else "from")
    stated = about["number"], about.get("channel"), about.get("before"), about.get("why")
    if stated != (detail["number"], detail.get("channel", ""), before, detail.get("why")):
        return False, "the statement is of another decision"
    said = f"{about['decision']}: {about['why']}" if about.get("why") else about["decision"]
    signers = records.signers_of(envelope, trusted)
    if signers:
        return True, f"{said}, signed by {', '.join(signers)}"
    if records.is_signed(envelope):
        return False, f"{said}, signed by no trusted key"
    return not must, f"{said}, not signed"
