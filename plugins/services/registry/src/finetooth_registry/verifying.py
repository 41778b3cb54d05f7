"""Verification: from the served weights back to their origins, link by link, without a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import UserError
from finetooth_saving.origins import RECORD, read_origin
from finetooth_toolbox.files.manifests import MANIFEST, listed_files, read_manifest, sha256_of
from securesystemslib.signer import Key  # type: ignore[attr-defined]

from finetooth_registry import decisions, records
from finetooth_registry.anywhere import MADE, AnyRegistry, Event, Version, files_of
from finetooth_registry.policy import Policy

PARENTS = "parents"
"""The folder inside it with the records of its base versions."""


TAKE = "take a folder that ft registry get, ft merge or ft export wrote"
TRAINED_OVER = "it was trained over"
"""Prefix of a refusal because of an ancestor's data."""


@dataclass(frozen=True)
class Link:
    """One check and its result."""

    what: str
    holds: bool
    said: str


Logged = tuple[Link, Sequence[Event]]
"""The result for a registry's log, and the events of a model in it."""


def verify_log(registry: AnyRegistry, model: str, *, whole: bool) -> Logged:
    """Check the log of a registry.

    Args:
        whole: from its first event on; see `AnyRegistry.check_log`.
    """
    try:
        count, events = registry.checked_events(model, whole=whole)
    except UserError as error:
        return Link("log", False, str(error)), registry.events(model)
    return Link("log", True, f"{count} events in one chain"), events


def verify_version(
    registry: AnyRegistry, version: Version, *, whole: bool = True, logged: Logged | None = None
) -> Iterator[Link]:
    """Check the log, the record's signatures and number, the origins, and every file of a version.

    Args:
        whole: as for `verify_log`.
        logged: result of `verify_log` for the version's model; None: it is called.
    """
    yield from verify_record(registry, version, whole=whole, logged=logged)
    for name, sha256 in files_of(records.read(registry.record(version))).items():
        yield _checked(name, partial(_blob, registry, sha256))


def verify_record(
    registry: AnyRegistry, version: Version, *, whole: bool = False, logged: Logged | None = None
) -> Iterator[Link]:
    """Check a version without its files."""
    log, events = logged or verify_log(registry, version.model, whole=whole)
    yield log
    record, trusted = registry.record(version), registry.trusted()
    content = records.read(record)
    signers = records.signers_of(record, trusted)
    yield Link("signature", bool(signers), f"by {', '.join(signers)}" if signers else "by no trusted key")
    named = (content["predicate"]["name"], content["predicate"]["number"])
    yield Link("version", named == (version.model, version.number), f"the record is of {named[0]}@v{named[1]}")
    try:
        yield from list(_as_logged(registry, version, events, trusted))
    except (KeyError, TypeError, AttributeError):  # an event that no registry wrote
        yield Link("registered", False, "the log cannot be read")
    yield from _provenance(content["predicate"])
    yield from _parents(content, lambda called: registry.record(registry.version(called)), trusted)


def verify_folder(folder: Path, trusted: Mapping[str, Key]) -> Iterator[Link]:
    """Check a folder that a registry wrote: its record's signatures, and that it holds exactly the listed files.

    Args:
        trusted: keys by name.

    Raises:
        UserError: the folder has no record.
    """
    record = record_of(folder)
    content = records.read(record)
    signers = records.signers_of(record, trusted)
    yield Link("signature", bool(signers), f"by {', '.join(signers)}" if signers else "by no trusted key")
    listed = files_of(content)
    parent_records = {f"{PARENTS}/{called}.dsse.json" for called in ancestors(content, partial(parent_record, folder))}
    yield from _files(folder, listed, {RECORD, *parent_records})
    yield from _provenance(content["predicate"])
    yield from _parents(content, partial(parent_record, folder), trusted)


def verify_export(folder: Path, registry: AnyRegistry) -> tuple[list[Link], Version | None]:
    """Check weights that `ft merge` or `ft export` wrote: that they are unchanged, and the registry's version of the
    artifact in their manifest.

    Returns:
        The checks, and that version; None: the registry has none.

    Raises:
        UserError: the manifest was changed, or names no origin.
    """
    origin = read_origin(folder)
    if origin is None:
        raise UserError(f"{folder} has no {RECORD}, and no origin in a {MANIFEST}", action=TAKE)
    listed = {name: file.sha256 for name, file in listed_files(read_manifest(folder)).items()}
    links = list(_files(folder, listed, {MANIFEST}))
    of = records.read(origin.record.encode())["predicate"] if origin.record else {"name": "", "number": None}
    made = registry.versions(str(of["name"]), artifact=origin.artifact) if origin.artifact else []
    for version in sorted(made, key=lambda version: (version.number == of["number"], version.number), reverse=True):
        if files_of(records.read(registry.record(version))).get(MADE) == origin.artifact:
            link = Link("origin", True, f"the artifact of {version.called}")
            return [*links, link, *verify_version(registry, version)], version
    return [*links, Link("origin", False, f"no version has the artifact of {origin.run or 'its run'}")], None


def _files(folder: Path, listed: Mapping[str, str], more: Set[str]) -> Iterator[Link]:
    """Check that a folder holds exactly the listed files, by SHA-256, besides the allowed others."""
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_symlink() or file.is_file()}
    for name in sorted(there - listed.keys() - more):
        yield Link(name, False, "it is not listed")
    for name, sha256 in listed.items():
        file = folder / name
        if file.is_symlink() or not file.is_file():
            yield Link(name, False, "missing, or a link")
        else:
            digest = sha256_of(file)
            yield Link(name, digest == sha256, digest[:12] if digest == sha256 else "the file was changed")


def record_of(folder: Path) -> bytes:
    """The record in a folder that a registry wrote.

    Raises:
        UserError: there is none.
    """
    path = folder / RECORD
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{folder} has no {RECORD}", action=TAKE)
    return path.read_bytes()


def ancestors(content: Mapping[str, Any], load: Callable[[str], bytes]) -> dict[str, tuple[bytes | None, str]]:
    """The records of a statement's ancestors.

    Args:
        load: the record of a version, `bot@v0`.

    Returns:
        By version: its record, None if missing, and the SHA-256 of its statement.
    """
    made: dict[str, tuple[bytes | None, str]] = {}
    left = list(content["predicate"].get("parents") or ())
    while left:
        parent = left.pop(0)
        called = f"{parent['name']}@v{parent['number']}"
        if called in made:
            continue
        try:
            record = load(called)
            left += records.read(record)["predicate"].get("parents") or ()
        except (UserError, OSError):
            made[called] = None, parent["statement"]
        else:
            made[called] = record, parent["statement"]
    return made


def data_refusal(policy: Policy, about: Mapping[str, Any], load: Callable[[str], bytes]) -> str:
    """Why a policy refuses the data of a run or its ancestors; empty if it does not.

    Args:
        about: the predicate of the run's record.
        load: from a version, `bot@v0`, to its record. A missing or different record tells nothing about its data.
    """
    try:
        made = {"": about}
        for called, (record, statement) in ancestors({"predicate": about}, load).items():
            same = record is not None and records.digest(record) == statement
            made[called] = records.read(record)["predicate"] if record is not None and same else {}
        for called, version in made.items():
            earlier = [(f"the run {run['run']}", run) for run in version.get("earlier") or ()]
            for over, trained in ((called, version), *earlier):
                if refusal := policy.refusal(trained.get("classification") or {}):
                    return f"{TRAINED_OVER} {over}: {refusal}" if over else refusal
    except (KeyError, TypeError, AttributeError):
        return f"{TRAINED_OVER} something that cannot be read"
    return ""


def _parents(content: Mapping[str, Any], load: Callable[[str], bytes], trusted: Mapping[str, Key]) -> Iterator[Link]:
    """Check every ancestor down to the base: it exists, is unchanged, and has a trusted signature."""
    try:
        records_of = ancestors(content, load)
    except (KeyError, TypeError, AttributeError):
        yield Link("parents", False, "the record's parents cannot be read")
        return
    for called, (record, statement) in records_of.items():
        if record is None:
            yield Link(f"parent {called}", False, "its record is missing")
        elif records.digest(record) != statement:
            yield Link(f"parent {called}", False, "its record is not the one that the version was trained over")
        else:
            signers = records.signers_of(record, trusted)
            yield Link(f"parent {called}", bool(signers), f"signed by {', '.join(signers) or 'no trusted key'}")


def parent_record(folder: Path, called: str) -> bytes:
    """The record of a parent in a folder that a registry wrote.

    Raises:
        OSError: there is none.
    """
    file = folder / PARENTS / f"{called}.dsse.json"
    if file.parent != folder / PARENTS or file.is_symlink():
        raise FileNotFoundError(called)
    return file.read_bytes()


def _as_logged(
    registry: AnyRegistry, version: Version, events: Sequence[Event], trusted: Mapping[str, Key]
) -> Iterator[Link]:
    """Compare the registry's tables with its log: an edit of a table does not change the chain of hashes."""
    keys: dict[str, str] = {}
    record = status = ""
    channels: dict[str, int] = {}
    moved: dict[str, Event] = {}
    latest: dict[str, Event] = {}
    metrics: dict[str, float] | None = {}
    answers: dict[str, str] = {}
    for event in events:
        detail, kind = event.detail, event.kind
        if kind == "key trusted":
            keys[detail["name"]] = detail["keyid"]
        elif kind == "key revoked":
            keys.pop(detail["name"], None)
        if detail.get("model") != version.model:
            continue
        if kind == "rolled back" or (kind == "decided" and detail["decision"] == "PROMOTE"):
            channels[detail["channel"]], moved[detail["channel"]] = detail["number"], event
        if detail.get("number") != version.number:
            continue
        if kind in decisions.KINDS:
            latest[detail.get("channel", "")] = event
        if kind in ("registered", "signed"):
            record = detail["record"]
        if kind == "registered":
            status, metrics = detail.get("status", version.status), detail.get("metrics")
        elif kind == "reverted":
            status = "reverted"
        elif kind == "measured" and metrics is not None:
            metrics |= detail["metrics"]
            answers |= detail.get("answers") or {}
    yield Link("registered", record == version.record and status == version.status, "the log says the same")
    known = {name: key.keyid for name, key in trusted.items()}
    yield Link("keys", known == keys, f"the log trusts {', '.join(keys) or 'none'}")
    logged_channels = tuple(sorted(channel for channel, number in channels.items() if number == version.number))
    yield Link("channels", logged_channels == version.channels, f"the log says {', '.join(logged_channels) or 'none'}")
    policies = registry.policy.channels
    shown = {f"decision {channel}": moved[channel] for channel in logged_channels}
    for channel, event in latest.items():
        if event not in shown.values():
            shown[f"decision {channel or 'of all channels'}{', latest' if channel in logged_channels else ''}"] = event
    for name, event in shown.items():
        channel = event.detail.get("channel", "")
        wanted = [policies[channel]] if channel in policies else [] if channel else [*policies.values()]
        must = any(each.signed_decisions for each in wanted)
        yield Link(name, *decisions.check(registry, event, trusted, must=must))
    try:
        measured, kept = registry.metrics(version)
    except UserError as error:
        yield Link("measurements", False, str(error))
        return
    digests = {name: hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest() for name, rows in kept.items()}
    same = metrics is None or (measured, digests) == (metrics, answers)  # early registries logged none
    yield Link("measurements", same, f"{len(measured)}, and the answers of {len(kept)}, as the log says")


def _provenance(about: Mapping[str, object]) -> Iterator[Link]:
    """The origins, which every record must state."""
    for name in records.MADE_OF:
        recorded = about.get(name)
        yield Link(name, bool(recorded), _said(recorded) if recorded else "the record does not say it")


def _said(recorded: object) -> str:
    """A digest, or digests by name, for display."""
    if not isinstance(recorded, Mapping):
        return str(recorded)
    return ", ".join(f"{name.removesuffix('.sha256')} {str(digest)[:12]}" for name, digest in recorded.items())


def _blob(registry: AnyRegistry, sha256: str) -> str:
    registry.blobs.check(sha256)
    return sha256[:12]


def _checked(what: str, check: Callable[[], str]) -> Link:
    try:
        return Link(what, True, check())
    except UserError as error:
        return Link(what, False, str(error))
