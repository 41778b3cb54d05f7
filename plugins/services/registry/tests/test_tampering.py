"""Each manipulation of a registry, a record or a folder is refused, and the link that does not hold is named."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from finetooth_hooks import UserError
from finetooth_registry import from_run, records, releasing
from finetooth_registry.anywhere import chained, files_of
from finetooth_registry.registry import Registry
from finetooth_registry.verified import NOTHING
from finetooth_registry.verifying import verify_folder, verify_version
from finetooth_registry.writing import write_version
from finetooth_saving.artifact import write_folder
from finetooth_saving.origins import RECORD
from securesystemslib.signer import CryptoSigner


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bot@v0` in production, `bot@v1`, measured, and a key that was revoked."""
    place = tmp_path_factory.mktemp("made")
    registry = Registry.create(place / "registry")
    (place / "registry/policy.yaml").write_text("channels: {production: {}}")
    registry.trust("ci", records.make_key(place / "ci.pem"))
    registry.trust("old", records.make_key(place / "old.pem"))
    registry.revoke("old")
    for number in range(2):
        run = place / f"run-{number}"
        about = {"base_digest": "b" * 64, "model": "tiny", "data": {"data.train.sha256": "d" * 64}}

        def fill(folder: Path, text: str = f"{number}") -> None:
            for name in ("weights", "tokenizer.json"):
                (folder / name).write_text(f"{name} {text}")

        write_folder(run / "artifact", fill, about)
        (run / "recipe.yaml").write_text(f"model: tiny\nseed: {number}\n")
        (run / "plan.json").write_text('{"recipe": {}}')
        (run / "run.json").write_text(f'{{"id": "{number}"}}')
        (run / "result.json").write_text('{"status": "done", "metrics": {"eval/loss": 1.5}}')
        version, _ = from_run.register(registry, "bot", run, records.load_signer(place / "ci.pem"))
        registry.measure(version, {"exact/accuracy": 0.5}, {"exact": [{"id": "1", "score": 0.0}]})
        if number == 0:
            registry.decide(version, "production", {}, None)
    return place


class Place:
    """A copy to tamper with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.registry = folder, Registry(folder / "registry")
        self.old, self.new = self.registry.versions("bot")
        self.signer = records.load_signer(folder / "ci.pem")

    def sql(self, text: str) -> None:
        with sqlite3.connect(self.folder / "registry/registry.db") as database:
            database.execute(text)
        database.close()

    def blob(self, name: str, number: int = 0) -> Path:
        version = self.registry.version(f"bot@v{number}")
        return self.registry.blobs.path(files_of(self.content(number))[name] if name else version.record)

    def content(self, number: int = 0) -> dict[str, Any]:
        return records.read(self.registry.record(self.registry.version(f"bot@v{number}")))

    def put_record(self, record: bytes, number: int = 0) -> None:
        self.sql(f"update versions set record = '{self.registry.blobs.put_bytes(record)}' where number = {number}")


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Place:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path)


def flipped(name: str) -> Callable[[Place], None]:
    """One bit of a file."""

    def tamper(place: Place) -> None:
        path = place.blob(name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return tamper


def swapped(name: str) -> Callable[[Place], None]:
    """The other version's file under this one's name."""
    return lambda place: place.blob(name).write_bytes(place.blob(name, 1).read_bytes())


def signed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], None]:
    """A changed statement, signed by the trusted key and put in the record's place, past the log."""

    def tamper(place: Place) -> None:
        content = place.content()
        change(content)
        place.put_record(records.sign(content, place.signer))

    return tamper


def payload(place: Place) -> None:
    """A changed statement under the old signature."""
    record = json.loads(place.registry.record(place.old))
    content = json.loads(base64.b64decode(record["payload"]))
    content["predicate"]["base_digest"] = "e" * 64
    record["payload"] = base64.b64encode(json.dumps(content).encode()).decode()
    place.put_record(json.dumps(record).encode())


def stale(place: Place) -> None:
    """Signed by a key whose trust has ended."""
    place.put_record(records.sign(place.content(), records.load_signer(place.folder / "old.pem")))


def replayed(place: Place) -> None:
    """The record from before somebody else signed it too."""
    before = place.old.record
    place.registry.trust("boss", records.make_key(place.folder / "boss.pem"))
    place.registry.countersign(place.old, records.load_signer(place.folder / "boss.pem"))
    place.sql(f"update versions set record = '{before}' where number = 0")


def answers_of(place: Place) -> str:
    (event,) = [e for e in place.registry.events("bot", ("measured",)) if e.detail["number"] == 0]
    return str(event.detail["answers"]["exact"])


def better_answers(place: Place) -> None:
    """Other answers, as whole as the ones before, under the same score."""
    better = place.registry.blobs.put_bytes(json.dumps([{"id": "1", "score": 1.0}]).encode())
    place.sql(f"update measurements set answers = '{better}' where number = 0 and answers is not null")


def answers_bit(place: Place) -> None:
    place.registry.blobs.path(answers_of(place)).write_text('[{"id": "1", "score": 1.0}]')


def sql(text: str) -> Callable[[Place], None]:
    return lambda place: place.sql(text)


def evil_key(place: Place) -> None:
    """Trust a key that the log does not know."""
    public = records.key_to_json(records.make_key(place.folder / "evil.pem"))
    place.sql(f"insert into keys values ('evil', '{public}', 'now', null)")


def other_key(place: Place) -> None:
    """Another key under a trusted name, and a record that it signed."""
    public = records.key_to_json(records.make_key(place.folder / "evil.pem"))
    place.sql(f"update keys set public = '{public}' where name = 'ci'")
    place.put_record(records.sign(place.content(), records.load_signer(place.folder / "evil.pem")))


TAMPERED: dict[str, tuple[Callable[[Place], None], str]] = {
    "a bit of the weights": (flipped("artifact/weights"), "artifact/weights"),
    "a bit of the tokenizer": (flipped("artifact/tokenizer.json"), "artifact/tokenizer.json"),
    "a bit of the manifest": (flipped("artifact/manifest.json"), "artifact/manifest.json"),
    "a bit of the recipe": (flipped("recipe.yaml"), "recipe.yaml"),
    "a bit of the plan": (flipped("plan.json"), "plan.json"),
    "a bit of the result": (flipped("result.json"), "result.json"),
    "another version's weights": (swapped("artifact/weights"), "artifact/weights"),
    "another version's tokenizer": (swapped("artifact/tokenizer.json"), "artifact/tokenizer.json"),
    "weights that are gone": (lambda place: place.blob("artifact/weights").unlink(), "artifact/weights"),
    "another base, signed again": (signed(lambda it: it["predicate"].update(base_digest="e" * 64)), "registered"),
    "another base, not signed again": (payload, "signature"),
    "another parent, signed again": (signed(lambda it: it["predicate"].update(parent={"run": "x"})), "registered"),
    "no base": (signed(lambda it: it["predicate"].pop("base_digest")), "base_digest"),
    "no recipe": (signed(lambda it: it["predicate"].pop("recipe_sha256")), "recipe_sha256"),
    "no data": (signed(lambda it: it["predicate"].pop("data")), "data"),
    "a file less, signed again": (signed(lambda it: it["subject"].pop()), "registered"),
    "the record of another version": (lambda place: place.put_record(place.registry.record(place.new)), "version"),
    "the record of another model": (signed(lambda it: it["predicate"].update(name="b\u043et")), "version"),
    "a record without a signature": (lambda place: place.put_record(records.unsigned(place.content())), "signature"),
    "a record of a key that nobody knows": (
        lambda place: place.put_record(records.sign(place.content(), CryptoSigner(Ed25519PrivateKey.generate()))),
        "signature",
    ),
    "a record of a key that was revoked": (stale, "signature"),
    "an older record": (replayed, "registered"),
    "a better score": (sql("update measurements set value = 0.9 where metric = 'exact/accuracy'"), "measurements"),
    "a better loss of the run": (sql("update measurements set value = 1.0 where metric = 'eval/loss'"), "measurements"),
    "a score more": (
        sql("insert into measurements (model, number, metric, value, at) values ('bot', 0, 'x', 1.0, '')"),
        "measurements",
    ),
    "better answers": (better_answers, "measurements"),
    "a bit of the answers": (answers_bit, "measurements"),
    "answers less": (sql("delete from measurements where answers is not null and number = 0"), "measurements"),
    "a score less": (sql("delete from measurements where metric = 'eval/loss'"), "measurements"),
    "a channel that nobody moved": (sql("insert into channels values ('bot', 'staging', 0)"), "channels"),
    "a channel that was emptied": (sql("delete from channels"), "channels"),
    "a channel moved past the gates": (sql("update channels set number = 1"), "channels"),
    "a key that nobody trusts": (evil_key, "keys"),
    "another key under a trusted name": (other_key, "keys"),
    "a revoked key that is trusted again": (sql("update keys set revoked = null"), "keys"),
    "a key whose trust ended in silence": (sql("update keys set revoked = 'now' where name = 'ci'"), "keys"),
    "a version that is said to have failed": (
        sql("update versions set status = 'failed' where number = 0"),
        "registered",
    ),
    "a changed event": (sql("update events set detail = replace(detail, '0.5', '0.9') where kind = 'measured'"), "log"),
    "an event less": (sql("delete from events where sequence = 2"), "log"),
    "the first event less": (sql("delete from events where sequence = 1"), "log"),
    "events in another order": (sql("update events set sequence = -sequence where kind = 'measured'"), "log"),
    "an event later": (sql("update events set at = '2030-01-01T00:00:00Z' where sequence = 4"), "log"),
    "an event of another kind": (sql("update events set kind = 'watched' where kind = 'decided'"), "log"),
    "an event that no registry wrote": (
        sql("insert into events values (99, '', 'registered', '[]', '', '', null)"),
        "log",
    ),
    "the end of the log less": (sql("delete from events where sequence > 4"), "channels"),
}


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "since"])
@pytest.mark.parametrize("name", TAMPERED)
def test_a_registry_that_was_tampered_with_is_named(place: Place, name: str, whole: bool) -> None:
    assert all(link.holds for link in verify_version(place.registry, place.old, whole=whole))
    tamper, link = TAMPERED[name]
    tamper(place)
    version = place.registry.version("bot@v0")
    broken = {found.what for found in verify_version(place.registry, version, whole=whole) if not found.holds}
    assert link in broken, broken


def rewritten(place: Place, change: Callable[[int, dict[str, Any]], dict[str, Any] | None]) -> None:
    """A whole new log, chained anew, in the place of the old one."""
    sequence, sha256 = NOTHING
    made = []
    for event in place.registry.events():
        if (detail := change(event.sequence, dict(event.detail))) is not None:
            event = replace(event, sequence=(sequence := sequence + 1), previous=sha256, detail=detail)
            made.append(replace(event, sha256=(sha256 := event.expected())))
    with sqlite3.connect(place.folder / "registry/registry.db") as database:
        database.execute("delete from events")
        about = "insert into events (sequence, at, kind, detail, previous, sha256, model) values (?, ?, ?, ?, ?, ?, ?)"
        for e in made:
            row = (e.sequence, e.at, e.kind, json.dumps(e.detail), e.previous, e.sha256, e.detail.get("model"))
            database.execute(about, row)
    database.close()


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "since"])
def test_a_log_that_was_written_anew_is_named_by_who_verified_it_before(place: Place, whole: bool) -> None:
    place.registry.check_log()
    rewritten(place, lambda sequence, detail: {**detail, "metrics": {}} if "metrics" in detail else detail)
    assert chained(place.registry.events())[0] == 8, "it is a good chain"
    with pytest.raises(UserError, match="which was verified here before"):
        place.registry.check_log(whole=whole)


def test_a_shorter_log_is_named_by_who_verified_it_before(place: Place) -> None:
    place.registry.check_log()
    rewritten(place, lambda sequence, detail: detail if sequence < 8 else None)
    for whole in (True, False):
        with pytest.raises(UserError, match="event 8, which was verified here before, is missing"):
            place.registry.check_log(whole=whole)


def test_what_was_verified_before_is_not_read_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.registry.check_log(whole=False) == 8
    read: list[int] = []
    monkeypatch.setattr("finetooth_registry.anywhere.chained", lambda page, known: read.append(len(page)) or (8, ""))
    place.registry.check_log(whole=False)
    assert read == [1]


def test_pages_of_a_long_log_are_one_chain(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetooth_registry.anywhere.PAGE", 2)
    assert place.registry.check_log() == 8
    place.registry.measure(place.old, {"loss": 1.0}, {})
    assert place.registry.check_log(whole=False) == 9
    assert [event.sequence for event in place.registry.checked_events("bot")[1]] == list(range(1, 10))
    place.sql("update events set at = 'never' where sequence = 5")
    with pytest.raises(UserError, match="at event 5"):
        place.registry.check_log()
    with pytest.raises(UserError, match="an event of bot"):
        place.registry.checked_events("bot")


def test_there_are_forty_manipulations() -> None:
    assert len(TAMPERED) >= 40


@pytest.mark.parametrize(
    "name", ["a better score", "better answers", "an event less", "a bit of the weights", "a key that nobody trusts"]
)
def test_nothing_that_was_tampered_with_is_released(place: Place, name: str) -> None:
    TAMPERED[name][0](place)
    commands: Any = SimpleNamespace()
    for version in place.registry.versions():  # the candidate was tampered with, or what it is compared with
        with pytest.raises(UserError, match=r"was tampered with|was changed"):
            releasing.promote(commands, place.registry, version, "production")


def test_a_folder_that_leads_elsewhere_is_named(place: Place, tmp_path: Path) -> None:
    """The files behind the link are good, today."""
    folder = write_version(place.registry, place.old, tmp_path / "out")
    (folder / "artifact").rename(tmp_path / "elsewhere")
    (folder / "artifact").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [link.what for link in verify_folder(folder, place.registry.trusted()) if not link.holds] == ["artifact"]


def test_a_statement_that_is_deep_or_large_is_refused(place: Place, tmp_path: Path) -> None:
    folder = write_version(place.registry, place.old, tmp_path / "out")
    record = json.loads((folder / RECORD).read_bytes())
    for payload in (b"[" * 100_000, b'{"a":' * 50_000, b'"' + b"x" * (13 * 2**20) + b'"'):
        record["payload"] = base64.b64encode(payload).decode()
        (folder / RECORD).write_text(json.dumps(record))
        with pytest.raises(UserError, match=r"cannot be read|larger than"):
            list(verify_folder(folder, place.registry.trusted()))


def test_a_folder_with_the_other_adapter_is_named(place: Place, tmp_path: Path) -> None:
    folders = [write_version(place.registry, version, tmp_path / version.called) for version in (place.old, place.new)]
    (folders[0] / "artifact").rename(tmp_path / "aside")
    (folders[1] / "artifact").rename(folders[0] / "artifact")
    broken = [link.what for link in verify_folder(folders[0], place.registry.trusted()) if not link.holds]
    assert {"artifact/weights", "artifact/tokenizer.json", "artifact/manifest.json"} == set(broken)
    (folders[0] / RECORD).write_bytes((folders[1] / RECORD).read_bytes())
    assert not all(link.holds for link in verify_folder(folders[0], place.registry.trusted()))
