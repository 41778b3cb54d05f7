"""Promotions, holds, rejections and rollbacks are signed statements, the same bytes when asked again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from finetooth_hooks import UserError
from finetooth_registry import decisions, records, release_gates
from finetooth_registry.command import registry as command
from finetooth_registry.commands.collect import collect
from finetooth_registry.registry import Registry
from finetooth_registry.verifying import verify_version

ABOUT = {"base_digest": "b", "recipe_sha256": "r", "data": {"train": "d"}}
GATES = {
    "signed": (release_gates.Signed, release_gates.SignedOptions),
    "not_worse": (release_gates.NotWorse, release_gates.NotWorseOptions),
}
POLICY = """
channels:
  production:
    signed_decisions: true
    gates: [{name: not_worse, metric: eval/loss, higher_is_better: false}]
  staging: {gates: [{name: signed, by: [boss]}]}
"""


class Place:
    """A registry with a key of trust, versions by their loss, and its commands."""

    def __init__(self, folder: Path, *losses: float) -> None:
        self.folder, self.key = folder / "registry", folder / "ci.pem"
        self.registry = Registry.create(self.folder)
        self.registry.trust("ci", records.make_key(self.key))
        (self.folder / "policy.yaml").write_text(POLICY)
        for number, loss in enumerate(losses):
            (folder / "weights").write_text(str(number))
            signer = records.load_signer(self.key)
            self.registry.add("bot", {"weights": folder / "weights"}, ABOUT, signer, metrics={"eval/loss": loss})

    def __call__(self, *arguments: str, signed: bool = True) -> Result:
        key = ("--key", str(self.key)) if signed and arguments[0] in ("promote", "rollback", "hold", "revert") else ()
        words = [*arguments, *key, "--registry", str(self.folder)]
        return CliRunner().invoke(command, words, obj=SimpleNamespace(build=build))

    def links(self, called: str) -> dict[str, tuple[bool, str]]:
        version = self.registry.version(called)
        return {link.what: (link.holds, link.said) for link in verify_version(self.registry, version)}


def build(kind: str, pick: Any, *, setting: str) -> Any:
    make, model = GATES[pick["name"]]
    return make(model(**{name: value for name, value in pick.items() if name != "name"}))  # type: ignore[operator]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("FT_REGISTRY_KEY", raising=False)
    return Place(tmp_path, 2.0, 1.5, 3.0)


def statement(place: Place, called: str, channel: str) -> dict[str, Any]:
    envelope = place("decision", called, "--of", channel).output.encode()
    assert records.signers_of(envelope, place.registry.trusted()) == ("ci",)
    return records.read(envelope, decisions.PREDICATE)


def test_each_outcome_is_a_signed_statement_with_its_evidence(place: Place) -> None:
    for called, channel, word, code in (
        ("bot@v0", "production", "PROMOTE", 0),
        ("bot@v1", "production", "PROMOTE", 0),
        ("bot@v2", "production", "REJECT", 1),
        ("bot@v2", "staging", "HOLD", 1),
    ):
        said = place("promote", called, "--to", channel)
        assert said.exit_code == code and f"{called} to {channel}: {word}" in said.output
        about = statement(place, called, channel)
        assert about["predicate"]["decision"] == word
        assert about["predicate"]["gates"].keys() == {"1 not_worse" if channel == "production" else "1 signed"}
    about = statement(place, "bot@v2", "production")
    assert about["predicate"]["gates"]["1 not_worse"]["evidence"] == {
        "metric": "eval/loss",
        "value": 3.0,
        "before": 1.5,
    }
    digests = {f"bot@v{n}": records.digest(place.registry.record(place.registry.version(f"bot@v{n}"))) for n in (1, 2)}
    assert {item["name"]: item["digest"]["sha256"] for item in about["subject"]} == digests
    assert place("rollback", "bot", "--channel", "production", "--why", "complaints").exit_code == 0
    assert statement(place, "bot@v0", "production")["predicate"]["decision"] == "ROLLBACK"


@pytest.mark.parametrize(("called", "word"), [("bot@v1", "PROMOTE"), ("bot@v2", "REJECT")])
def test_the_same_question_gives_the_same_bytes(place: Place, called: str, word: str) -> None:
    place("promote", "bot@v0", "--to", "production")
    seen = set()
    for _ in range(3):
        place("promote", called, "--to", "production")
        seen.add(place("decision", called, "--of", "production").output)
    (envelope,) = seen
    assert records.read(envelope.encode(), decisions.PREDICATE)["predicate"]["decision"] == word
    if word == "PROMOTE":  # what was asked three times is rolled back to what it followed
        assert place("rollback", "bot", "--channel", "production", "--why", "x").output.endswith("bot@v0 again\n")


def test_what_is_decided_by_hand_is_signed_and_verified(place: Place) -> None:
    """A hold, its end and a rejection are statements about the version's record, with the reason."""
    digest = records.digest(place.registry.record(place.registry.version("bot@v1")))
    for words, decision, why in [
        (("hold", "bot@v1", "--from", "production", "--why", "not yet"), "HOLD", "not yet"),
        (("hold", "bot@v1", "--from", "production", "--lift"), "LIFT", ""),
        (("revert", "bot@v1", "--why", "worse"), "REJECT", "worse"),
    ]:
        refused = place(*words, signed=False)
        assert isinstance(refused.exception, UserError) and "must be signed" in str(refused.exception)
        assert place(*words).exit_code == 0
        about = statement(place, "bot@v1", "production")
        assert (about["predicate"]["decision"], about["predicate"]["why"]) == (decision, why)
        assert about["subject"] == [{"name": "bot@v1", "digest": {"sha256": digest}}]
        said = f"{decision}: {why}" if why else decision
        name = "decision of all channels" if decision == "REJECT" else "decision production"
        assert place.links("bot@v1")[name] == (True, f"{said}, signed by ci")
    assert not collect(place.registry, dry_run=True)
    place("revoke", "ci")
    links = place.links("bot@v1")
    assert links["decision of all channels"] == (False, "REJECT: worse, signed by no trusted key")
    assert links["decision production"] == (False, "LIFT, signed by no trusted key")


def test_a_hold_whose_reason_was_changed_does_not_hold(place: Place) -> None:
    place("hold", "bot@v0", "--from", "production", "--why", "not yet")
    held = place.registry.events(kinds=("held",))[-1]
    event = replace(held, detail={**held.detail, "why": "never"})
    trusted = place.registry.trusted()
    assert decisions.check(place.registry, held, trusted, must=True) == (True, "HOLD: not yet, signed by ci")
    assert decisions.check(place.registry, event, trusted, must=True) == (False, "the statement is of another decision")


def test_a_hold_of_what_a_channel_holds_is_shown_with_its_promotion(place: Place) -> None:
    assert "still" not in place("hold", "bot@v1", "--from", "production", "--why", "new").output
    place("promote", "bot@v0", "--to", "production")
    said = place("hold", "bot@v0", "--from", "production", "--why", "complaints").output
    assert "production holds it still: ft registry rollback bot --channel production --why TEXT" in said
    links = place.links("bot@v0")
    assert links["decision production"] == (True, "PROMOTE, signed by ci")
    assert links["decision production, latest"] == (True, "HOLD: complaints, signed by ci")


def test_a_decision_that_nobody_of_trust_signed_does_not_hold(place: Place, tmp_path: Path) -> None:
    refused = place("promote", "bot@v0", "--to", "production", signed=False)
    assert isinstance(refused.exception, UserError) and "must be signed" in str(refused.exception)
    place("promote", "bot@v0", "--to", "production")
    assert place.links("bot@v0")["decision production"] == (True, "PROMOTE, signed by ci")
    place.registry.trust("other", records.make_key(tmp_path / "other.pem"))
    place.registry.countersign(place.registry.version("bot@v0"), records.load_signer(tmp_path / "other.pem"))
    place("revoke", "ci")
    assert place.links("bot@v0")["decision production"] == (False, "PROMOTE, signed by no trusted key")


def test_another_decision_s_statement_does_not_hold(place: Place) -> None:
    place("promote", "bot@v0", "--to", "production")
    sha256 = place.registry.events(kinds=("decided",))[-1].detail[decisions.RECORD]
    other = place.registry.version("bot@v1")
    envelope = decisions.write(place.registry, other, None, {"channel": "production", "decision": "PROMOTE"}, None)
    place.registry.blobs.read = lambda named: (
        envelope
        if named == sha256
        else type(place.registry.blobs).read(  # type: ignore[method-assign]
            place.registry.blobs, named
        )
    )
    assert place.links("bot@v0")["decision production"] == (False, "the statement is of another decision")


def test_decisions_are_kept_and_asked_for_by_name(place: Place) -> None:
    place("promote", "bot@v0", "--to", "production")
    assert json.loads(place("decision", "bot@v0", "--of", "production").output)
    assert not collect(place.registry, dry_run=True)
    assert "nothing was decided" in str(place("decision", "bot@v1", "--of", "production").exception)
