"""The interface of registries: in a folder (`registry.Registry`) and at a URL (`remote.RemoteRegistry`)."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetooth_hooks import Verdict
from finetooth_hooks.errors import UserError
from finetooth_saving.run_folder import ARTIFACT
from finetooth_toolbox.files.manifests import MANIFEST
from securesystemslib.signer import CryptoSigner, Key  # type: ignore[attr-defined]

from finetooth_registry import records
from finetooth_registry.policy import ChannelPolicy, Policy
from finetooth_registry.verified import NOTHING, Verified, changed

VARIABLE = "FT_REGISTRY"
"""Place of the registry: a folder, or the URL of a server."""
MADE = f"{ARTIFACT}/{MANIFEST}"
"""The file of a version that lists what its run made, each file by SHA-256."""
PAGE = 10_000
"""Events per batch of reading and checking."""


@dataclass(frozen=True)
class Version:
    """A version as it was registered.

    Attributes:
        record: SHA-256 of the signed record.
        status: `registered`, `failed` (the run failed) or `reverted`.
        reason: why it failed or was reverted.
        channels: those that hold it now.
    """

    model: str
    number: int
    record: str
    status: str
    reason: str
    added: str
    channels: tuple[str, ...] = ()

    @property
    def called(self) -> str:
        """`bot@v3`."""
        return f"{self.model}@v{self.number}"


@dataclass(frozen=True)
class Event:
    """One line of the log."""

    sequence: int
    at: str
    kind: str
    detail: Mapping[str, Any]
    previous: str
    sha256: str

    def expected(self) -> str:
        """Its SHA-256."""
        content = [self.sequence, self.at, self.kind, self.detail, self.previous]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=dict).encode()).hexdigest()


class VersionTaken(UserError):
    """A version with this number was registered meanwhile."""


class BlobStore(Protocol):
    """Files by their SHA-256."""

    def put(self, source: Path) -> str:
        """Store a file and return its SHA-256."""
        ...

    def read(self, sha256: str) -> bytes:
        """The bytes of a small blob, checked."""
        ...

    def copy(self, sha256: str, target: Path) -> None:
        """Write a blob to a new file, checked while it is copied."""
        ...

    def check(self, sha256: str) -> None:
        """Read a blob and compare it with its name."""
        ...


class AnyRegistry(ABC):
    """Versions of models, their records, channels and the log."""

    blobs: BlobStore

    @property
    @abstractmethod
    def place(self) -> str:
        """Its place: an absolute path or a URL."""

    @property
    @abstractmethod
    def policy(self) -> Policy:
        """The policy: what may be registered and released."""

    @abstractmethod
    def trusted(self) -> dict[str, Key]:
        """Trusted keys by name."""

    @abstractmethod
    def versions(self, model: str = "", newest: int = 0, artifact: str = "") -> list[Version]:
        """Versions of one model or of all, the newest of each last.

        Args:
            newest: number of the newest, in order of registration; 0: all.
            artifact: SHA-256 of `MADE`; empty: all.
        """

    @abstractmethod
    def metrics(self, version: Version) -> tuple[dict[str, float], dict[str, tuple[Mapping[str, Any], ...]]]:
        """The latest measurement of each metric, and the latest kept answers of each evaluator."""

    def settings(self, version: Version) -> dict[str, Mapping[str, Any]]:
        """By evaluator, the settings of the latest answers: template, stop texts, longest answer."""
        mine = [e.detail for e in self.events(version.model, ("measured",)) if e.detail.get("number") == version.number]
        return {name: settings for detail in mine for name, settings in detail.get("settings", {}).items()}

    @abstractmethod
    def events(
        self, model: str = "", kinds: Sequence[str] = (), *, after: int = 0, most: int = 0, newest: int = 0
    ) -> list[Event]:
        """The log, oldest first.

        Args:
            model: only its events and those of no model; empty: all.
            kinds: only events of these kinds; empty: all.
            after: only events after this one.
            most: only this many, the oldest; 0: all.
            newest: only this many, the newest; 0: all.
        """

    @abstractmethod
    def admit(self, model: str, about: Mapping[str, Any]) -> None:
        """Check that a version may be registered. A refusal of the policy is logged.

        Args:
            about: predicate of its record: classification of the data, parents.

        Raises:
            UserError: the policy refuses the data, or the name is not a name.
        """

    @abstractmethod
    def add(
        self, model: str, files: Mapping[str, Path], about: Mapping[str, Any], signer: CryptoSigner | None,
        *, metrics: Mapping[str, float], failed: str = "",
    ) -> Version:  # fmt: skip
        """Register a version.

        Args:
            files: by name; their content is stored.
            about: predicate of the record: base, recipe, data, plugins, environment, parents.
            signer: None: the record is not signed.
            metrics: measurements of the run.
            failed: why the run failed; empty: it did not.

        Raises:
            UserError: the policy refuses the data, or the name is not a name. A refusal is logged.
        """

    @abstractmethod
    def measure(
        self, version: Version, metrics: Mapping[str, float], answers: Mapping[str, Sequence[Mapping[str, Any]]],
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        """Add measurements of a version.

        Args:
            metrics: by name.
            answers: kept answers by evaluator.
            settings: of the answers, by evaluator; see `Evaluation.settings`.
        """

    @abstractmethod
    def replace_record(self, version: Version, record: bytes) -> None:
        """Replace a version's record by one with more signatures.

        Raises:
            UserError: it differs from that one, or lacks one of its signatures.
        """

    @abstractmethod
    def revert(self, version: Version, reason: str) -> None:
        """Mark a version as reverted; it stays, and no channel may hold it.

        Raises:
            UserError: a channel holds it.
        """

    @abstractmethod
    def hold(self, version: Version, channel: str, reason: str) -> None:
        """Keep a version out of a channel by hand, regardless of the gates.

        Args:
            reason: for the log; empty: the hold is lifted.

        Raises:
            UserError: the policy has no such channel, or the version is not held back.
        """

    def held(self, version: Version, channel: str, events: Sequence[Event] | None = None) -> str:
        """Why a version is held back by hand from a channel; empty if it is not.

        Args:
            events: of its model, verified; None: read here.
        """
        about = {"model": version.model, "number": version.number, "channel": channel}
        kinds = ("held", "hold lifted")
        holds = [e for e in (events or self.events(version.model, kinds)) if e.kind in kinds]
        return next((str(e.detail["why"]) for e in reversed(holds) if about.items() <= e.detail.items()), "")

    @abstractmethod
    def watched(
        self, version: Version, channel: str, metrics: Mapping[str, float], verdicts: Mapping[str, Verdict]
    ) -> int:
        """Record that the version in a channel was measured again.

        Returns:
            Number of consecutive passes, with this one; 0: it did not pass.
        """

    @abstractmethod
    def roll_back(self, model: str, channel: str, reason: str) -> Version:
        """Set a channel to its previous version.

        Raises:
            UserError: it held none before.
        """

    def version(self, reference: str) -> Version:
        """The version of a reference `NAME`, `NAME@v3` or `NAME@production`; a name alone means the newest.

        Raises:
            UserError: no such version.
        """
        model, _, where = reference.removeprefix("registry:").partition("@")
        made = self.versions(model) if model else []
        if not made:
            raise UserError(f"no model is called {model!r} here", action="ft registry list shows them")
        if not where:
            return made[-1]
        number = where[1:] if where.startswith("v") and where[1:].isdigit() else ""
        for version in made:
            if where in version.channels or (number and version.number == int(number)):
                return version
        raise UserError(f"{model} has neither a version nor a channel {where!r}", action="ft registry list shows them")

    def channel(self, name: str) -> ChannelPolicy:
        """The policy's section of a channel.

        Raises:
            UserError: it has none of this name.
        """
        channels = self.policy.channels
        if name not in channels:
            raise UserError(f"the policy has no channel {name!r}", action=f"it has {', '.join(channels) or 'none'}")
        return channels[name]

    def in_channel(self, model: str, channel: str) -> Version | None:
        """The version that a channel holds."""
        return next((version for version in self.versions(model) if channel in version.channels), None)

    def released(self) -> list[Version]:
        """Versions in channels."""
        return [version for version in self.versions() if version.channels]

    def record(self, version: Version) -> bytes:
        """The signed record of a version."""
        return self.blobs.read(version.record)

    def countersign(self, version: Version, signer: CryptoSigner) -> tuple[str, ...]:
        """Add a signature to a record; returns the names of the trusted keys that signed it."""
        record = records.add_signature(self.record(version), signer)
        self.replace_record(version, record)
        return records.signers_of(record, self.trusted())

    def check_log(self, *, whole: bool = True) -> int:
        """Check the chain of the log; returns how many events it has.

        Args:
            whole: from the first event. False: from the last one that this user verified; see `checked_events`.

        Raises:
            UserError: an event was changed, removed or reordered, or the log is not the verified one.
        """
        verified = Verified(self.place)
        number, sha256 = before = verified.known()
        known = NOTHING if whole or not number else (number - 1, "")
        while page := self.events(after=known[0], most=PAGE):
            if known[1] == "":  # the last verified event, whose own chain was checked
                known = (known[0], page[0].previous)
            last = chained(page, known)
            if known[0] < number <= last[0] and page[number - known[0] - 1].sha256 != sha256:
                raise changed(f"event {number}, which was verified here before", verified.file)
            if new := page[max(number - known[0], 0) :]:
                verified.add(before, new)
                before = last
            known = last
        if known[0] < number:
            raise changed(f"its end: event {number}, which was verified here before, is missing", verified.file)
        return known[0]

    def checked_events(self, model: str, *, whole: bool = False) -> tuple[int, list[Event]]:
        """The number of events, and the verified events of a model and of no model.

        Raises:
            UserError: see `check_log`.
        """
        return self.check_log(whole=whole), Verified(self.place).verified(model, self.events(model))


def chained(events: Iterable[Event], known: tuple[int, str] = NOTHING) -> tuple[int, str]:
    """Check that events follow each other.

    Args:
        known: number and SHA-256 of the event before the first.

    Returns:
        The same of the last one.

    Raises:
        UserError: an event was changed, cut out or reordered.
    """
    count, previous = known
    for event in events:
        count += 1
        if event.sequence != count or event.previous != previous or event.sha256 != event.expected():
            raise changed(f"event {count}")
        previous = event.sha256
    return count, previous


def files_of(content: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of every file of a statement, by name."""
    return {item["name"]: item["digest"]["sha256"] for item in content["subject"]}


def evidence(verdicts: Mapping[str, Verdict]) -> dict[str, dict[str, Any]]:
    """Verdicts in the log's format."""
    return {
        name: {"passed": verdict.passed, "reason": verdict.reason, "evidence": dict(verdict.evidence)}
        for name, verdict in verdicts.items()
    }
