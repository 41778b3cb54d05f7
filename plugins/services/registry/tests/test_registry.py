"""A registry keeps what runs trained, refuses what was tampered with, and releases through gates."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from finetooth_hooks import ReleaseVersion, UserError
from finetooth_registry import exporter, records, release_gates
from finetooth_registry.command import registry as command
from finetooth_registry.lineage import lineage
from finetooth_registry.registry import Registry
from finetooth_registry.verifying import RECORD, verify_folder, verify_version
from finetooth_saving.artifact import write_folder
from securesystemslib.signer import CryptoSigner

GATES = {
    "at_least": (release_gates.build_at_least, release_gates.AtLeastOptions),
    "not_worse": (release_gates.build_not_worse, release_gates.NotWorseOptions),
    "signed": (release_gates.build_signed, release_gates.SignedOptions),
}


def write_run(
    folder: Path,
    content: str,
    *,
    loss: float = 1.0,
    customer_data: bool | None = False,
    model: str = "tiny",
    **more: Any,
) -> Path:
    """A run folder as a run leaves it."""
    about = {"base_digest": "b" * 64, "model": model, "data": {"data.train.sha256": "d" * 64}, "plugins": {}}
    write_folder(folder / "artifact", lambda place: (place / "weights").write_text(content) and None, about)
    said = "" if customer_data is None else f", classification: {{customer_data: {str(customer_data).lower()}}}"
    (folder / "recipe.yaml").write_text(f"model: tiny\nmethod: sft\ndata: {{train: rows.jsonl{said}}}\n")
    (folder / "plan.json").write_text('{"recipe": {}}')
    (folder / "run.json").write_text('{"id": "1"}')
    result = {"status": "done", "exit_code": 0, "reason": "", "metrics": {"eval/loss": loss}, **more}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def build(kind: str, pick: Any, *, setting: str) -> Any:
    options = {} if isinstance(pick, str) else {name: value for name, value in pick.items() if name != "name"}
    make, model = GATES[pick if isinstance(pick, str) else pick["name"]]
    return make(model(**options), None)  # type: ignore[operator, arg-type]


class Place:
    """A registry with one trusted key, and its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder / "registry", folder / "ci.pem"
        self.runs = folder
        assert self("init", str(self.folder), bare=True).exit_code == 0
        assert self("key", str(self.key), bare=True).exit_code == 0
        assert self("trust", "ci", f"{self.key}.pub").exit_code == 0

    def __call__(self, *arguments: str, bare: bool = False) -> Result:
        context = SimpleNamespace(run_folder=lambda text: Path(text) if Path(text).is_dir() else None, build=build)
        where = () if bare else ("--registry", str(self.folder))
        return CliRunner().invoke(command, [*arguments, *where], obj=context)

    def add(self, content: str, *, sign: bool = True, **about: Any) -> Result:
        run = write_run(self.runs / f"run-{len(list(self.runs.glob('run-*')))}", content, **about)
        return self("add", str(run), "--name", "bot", *(("--key", str(self.key)) if sign else ()))

    @property
    def registry(self) -> Registry:
        return Registry(self.folder)

    def policy(self, text: str) -> None:
        (self.folder / "policy.yaml").write_text(text)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def holds(links: Iterator[Any]) -> dict[str, bool]:
    return {link.what: link.holds for link in links}


def test_a_version_is_registered_verified_released_and_read_back(place: Place, tmp_path: Path) -> None:
    assert place.add("one", loss=2.0).stdout == "bot@v0 registered\n"
    assert place.add("two", loss=1.5).stdout == "bot@v1 registered\n"
    place.policy(
        "channels: {production: {gates: [signed, {name: not_worse, metric: eval/loss, higher_is_better: no}]}}"
    )
    assert place("promote", "bot@v0", "--to", "production").exit_code == 0
    assert place("promote", "bot", "--to", "production").exit_code == 0
    assert place("get", "bot@production", str(tmp_path / "out")).exit_code == 0
    assert (tmp_path / "out/artifact/weights").read_text() == "two"
    assert all(holds(verify_folder(tmp_path / "out", place.registry.trusted())).values())
    assert place("verify", "bot@v1").exit_code == 0
    assert place("rollback", "bot", "--channel", "production", "--why", "complaints").output.endswith("bot@v0 again\n")
    assert place.registry.version("bot@production").number == 0
    kinds = [event.kind for event in place.registry.events()]
    assert kinds == ["key trusted", "registered", "registered", "decided", "decided", "rolled back"]


def test_a_worse_version_is_rejected_with_its_evidence(place: Place) -> None:
    place.add("one", loss=1.0)
    place.add("two", loss=1.25)
    place.policy("channels: {production: {gates: [{name: not_worse, metric: eval/loss, higher_is_better: false}]}}")
    place("promote", "bot@v0", "--to", "production")
    held = place("promote", "bot@v1", "--to", "production")
    assert held.exit_code == 1 and "REJECT" in held.output
    assert place("promote", "bot@v1", "--to", "production", "--dry-run").output == held.output
    assert place.registry.version("bot@production").number == 0
    (detail,) = [event.detail for event in place.registry.events() if event.detail.get("decision") == "REJECT"]
    assert detail["gates"]["1 not_worse"]["evidence"] == {"metric": "eval/loss", "value": 1.25, "before": 1.0}


def test_a_version_that_is_held_by_hand_enters_no_channel_until_the_hold_is_lifted(place: Place) -> None:
    place.add("one")
    assert place("hold", "bot@v0", "--from", "candidate", "--why", "wrong tone").exit_code == 0
    held = place("promote", "bot@v0", "--to", "candidate")
    assert held.exit_code == 1 and "wrong tone" in held.output
    assert place("promote", "bot@v0", "--to", "staging").exit_code == 0, "another channel"
    assert isinstance(place("hold", "bot@v0", "--from", "candidate").exception, UserError)
    assert isinstance(place("hold", "bot@v0", "--from", "nowhere", "--why", "x").exception, UserError)
    assert place("hold", "bot@v0", "--from", "candidate", "--lift").exit_code == 0
    assert place("promote", "bot@v0", "--to", "candidate").exit_code == 0
    again = place("hold", "bot@v0", "--from", "candidate", "--lift")
    assert "is not held back" in str(again.exception)
    assert place("verify", "bot@v0").exit_code == 0


@pytest.mark.parametrize("said, why", [(None, "says nothing"), (True, "says true")])
def test_customer_data_are_refused_and_the_refusal_is_logged(place: Place, said: bool | None, why: str) -> None:
    refused = place.add("one", customer_data=said)
    assert isinstance(refused.exception, UserError) and why in str(refused.exception)
    assert place.registry.versions() == []
    assert place.registry.events()[-1].kind == "refused"


def test_a_failed_run_is_kept_and_not_released(place: Place) -> None:
    assert "failed" in place.add("one", status="failed", reason="out of memory").output
    refused = place("promote", "bot@v0", "--to", "candidate")
    assert isinstance(refused.exception, UserError) and "out of memory" in str(refused.exception)


def test_a_reverted_version_is_kept_and_not_released(place: Place) -> None:
    place.add("one")
    place("revert", "bot@v0", "--why", "the full fine-tune forgot everything")
    assert isinstance(place("promote", "bot@v0", "--to", "staging").exception, UserError)
    assert place.registry.version("bot@v0").status == "reverted"


def test_a_revoked_key_signs_nothing(place: Place) -> None:
    place.add("one")
    assert place("promote", "bot@v0", "--to", "staging").exit_code == 0
    place("revoke", "ci")
    assert place("promote", "bot@v0", "--to", "staging").exit_code == 1
    assert not holds(verify_version(place.registry, place.registry.version("bot")))["signature"]


def test_a_threshold_of_signers(place: Place, tmp_path: Path) -> None:
    place.policy("channels: {production: {gates: [{name: signed, by: [ci, boss]}]}}")
    place.add("one")
    place("key", str(tmp_path / "boss.pem"), bare=True)
    place("trust", "boss", str(tmp_path / "boss.pem.pub"))
    assert place("promote", "bot", "--to", "production").exit_code == 1
    assert "boss, ci" in place("sign", "bot", "--key", str(tmp_path / "boss.pem")).output
    assert place("promote", "bot", "--to", "production").exit_code == 0


def test_what_is_stored_once_is_stored_once(place: Place) -> None:
    place.add("same")
    before = len(list((place.folder / "blobs").rglob("*")))
    place.add("same")
    # of the second run only its record, and its manifest with another time, are new
    assert len([path for path in (place.folder / "blobs").rglob("*") if path.is_file()]) <= before + 3
    assert "0 blobs" in place("collect").output


# --- tampering --------------------------------------------------------------------------------------------------------


def tampered_blob(place: Place) -> None:
    sha256 = next(f["digest"]["sha256"] for f in statement_of(place)["subject"] if f["name"] == "artifact/weights")
    place.registry.blobs.path(sha256).write_text("evil")


def missing_blob(place: Place) -> None:
    sha256 = next(f["digest"]["sha256"] for f in statement_of(place)["subject"] if f["name"] == "artifact/weights")
    place.registry.blobs.path(sha256).unlink()


def swapped_records(place: Place) -> None:
    first, second = place.registry.versions("bot")
    sql(place, f"update versions set record = '{second.record}' where number = {first.number}")


def edited_event(place: Place) -> None:
    sql(place, "update events set detail = replace(detail, 'bot', 'bat') where kind = 'registered'")


def cut_log(place: Place) -> None:
    sql(place, "delete from events where sequence = 2")


def reordered_log(place: Place) -> None:
    sql(place, "update events set sequence = 99 where sequence = 2")
    sql(place, "update events set sequence = 2 where sequence = 3")
    sql(place, "update events set sequence = 3 where sequence = 99")


def forged_record(place: Place) -> None:
    """The same statement with another base, signed by a key that nobody trusts."""
    content = statement_of(place)
    content["predicate"]["base_digest"] = "e" * 64
    forged = records.sign(content, CryptoSigner(Ed25519PrivateKey.generate()))
    sql(place, f"update versions set record = '{place.registry.blobs.put_bytes(forged)}' where number = 0")


def edited_payload(place: Place) -> None:
    """The statement is changed under the old signature."""
    record = json.loads(place.registry.record(place.registry.version("bot@v0")))
    import base64

    payload = json.loads(base64.b64decode(record["payload"]))
    payload["predicate"]["model"] = "another"
    record["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    sha256 = place.registry.blobs.put_bytes(json.dumps(record).encode())
    sql(place, f"update versions set record = '{sha256}' where number = 0")


def statement_of(place: Place) -> dict[str, Any]:
    return records.read(place.registry.record(place.registry.version("bot@v0")))


def sql(place: Place, text: str) -> None:
    with sqlite3.connect(place.folder / "registry.db") as database:
        database.execute(text)
    database.close()


TAMPERED = {
    tampered_blob: "artifact/weights", missing_blob: "artifact/weights",
    swapped_records: "version", edited_event: "log", cut_log: "log",
    reordered_log: "log", forged_record: "signature", edited_payload: "signature",
}  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda one: one.__name__)
def test_tampering_is_named(place: Place, tamper: Any) -> None:
    place.add("one")
    place.add("two")
    assert all(holds(verify_version(place.registry, place.registry.version("bot@v0"))).values())
    tamper(place)
    found = holds(verify_version(place.registry, place.registry.version("bot@v0")))
    assert not found[TAMPERED[tamper]], found
    assert place("verify", "bot@v0").exit_code == 1


def added_file(folder: Path) -> str:
    (folder / "extra").write_text("x")
    return "extra"


def changed_file(folder: Path) -> str:
    (folder / "artifact/weights").write_text("evil")
    return "artifact/weights"


def linked_file(folder: Path) -> str:
    (folder / "artifact/weights").rename(folder.parent / "weights")
    (folder / "artifact/weights").symlink_to(folder.parent / "weights")
    return "artifact/weights"


def removed_file(folder: Path) -> str:
    (folder / "artifact/weights").unlink()
    return "artifact/weights"


@pytest.mark.parametrize("tamper", [added_file, changed_file, linked_file, removed_file], ids=lambda one: one.__name__)
def test_a_folder_that_was_changed_is_named(place: Place, tmp_path: Path, tamper: Any) -> None:
    place.add("one")
    place("get", "bot", str(tmp_path / "out"))
    name = tamper(tmp_path / "out")
    found = holds(verify_folder(tmp_path / "out", place.registry.trusted()))
    assert [what for what, fine in found.items() if not fine] == [name]


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b'{"payload": 1}', b"x" * (17 * 2**20)])
def test_a_record_of_a_stranger_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / RECORD).write_bytes(text)
    with pytest.raises(UserError):
        list(verify_folder(tmp_path, {}))


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b"])
def test_a_record_that_names_files_elsewhere_is_refused(name: str) -> None:
    content = records.statement({name: "0" * 64}, {"name": "bot", "number": 0})
    with pytest.raises(UserError, match="lies outside of its folder"):
        records.read(records.unsigned(content))


@pytest.mark.parametrize("name", ["../out", "/etc/x", "Bot", "b\u043et", "", "a" * 65])
def test_a_name_that_could_mislead_is_refused(place: Place, tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run-x", "one")
    assert isinstance(place("add", str(run), "--name", name).exception, UserError)
    assert place.registry.versions() == []


# --- gates ------------------------------------------------------------------------------------------------------------


def version(number: int, right: Mapping[str, bool]) -> ReleaseVersion:
    answers = tuple({"id": name, "score": float(fine)} for name, fine in right.items())
    return ReleaseVersion("bot", number, Path(), {}, {"m": sum(right.values()) / len(right)}, {"exact": answers})


@pytest.mark.parametrize("lost, gained", [(1, 0), (4, 0), (5, 0), (8, 1), (7, 3), (3, 3), (0, 5)])
def test_pairs_of_answers_are_judged_by_the_exact_test(lost: int, gained: int) -> None:
    """Against SciPy's binomial test."""
    from scipy.stats import binomtest

    before = {str(i): i < lost for i in range(20)} | {"z": True}
    after = {str(i): lost <= i < lost + gained for i in range(20)} | {"z": True}
    options = release_gates.NotWorseOptions(metric="m", answers="exact")
    said = release_gates.NotWorse(options).judge(version(1, after), version(0, before))
    chance = binomtest(lost, lost + gained, alternative="greater").pvalue
    assert said.evidence["p"] == pytest.approx(chance)
    assert said.passed == (chance >= 0.05 or lost <= gained)


def test_answers_to_other_rows_are_not_compared() -> None:
    gate = release_gates.NotWorse(release_gates.NotWorseOptions(metric="m", answers="exact"))
    assert not gate.judge(version(1, {"a": True}), version(0, {"b": True})).passed


def test_nan_never_passes() -> None:
    gate = release_gates.NotWorse(release_gates.NotWorseOptions(metric="m", tolerance=9))
    nan = ReleaseVersion("bot", 1, Path(), {}, {"m": float("nan")})
    assert not gate.judge(nan, ReleaseVersion("bot", 0, Path(), {}, {"m": 0.5})).passed
    bound = release_gates.AtLeast(release_gates.AtLeastOptions(metric="m", min=0, max=1))
    assert not bound.judge(nan, None).passed


# --- several writers, and a kill --------------------------------------------------------------------------------------


def test_concurrent_writers_each_get_a_number(place: Place) -> None:
    runs = [write_run(place.runs / f"run-{i}", str(i)) for i in range(8)]
    from finetooth_registry import from_run

    def add(run: Path) -> None:
        made = from_run.read(run)
        Registry(place.folder).add("bot", made.files, made.about, None, metrics=made.metrics)

    threads = [threading.Thread(target=add, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.number for one in place.registry.versions("bot")] == list(range(8))
    assert place.registry.check_log() == 9


def test_a_killed_writer_registers_nothing_by_halves(place: Place) -> None:
    """Killed after the files were stored and before the transaction ends."""
    run = write_run(place.runs / "run-0", "one")
    script = f"""
import os
from pathlib import Path
from finetooth_registry import from_run
from finetooth_registry.registry import Registry
Registry._log = lambda *a: os._exit(9)
made = from_run.read(Path({str(run)!r}))
Registry(Path({str(place.folder)!r})).add("bot", made.files, made.about, None, metrics=made.metrics)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert place.registry.versions() == []
    assert place.add("two").stdout == "bot@v0 registered\n"
    place.registry.check_log()


def test_production_is_watched_and_a_regression_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("one", loss=1.0)
    gate = "{name: not_worse, metric: eval/loss, higher_is_better: false, tolerance: 0.05}"
    place.policy(
        f"channels: {{production: {{watch: {{evaluators: [loss], data: rows, every_hours: 24, gates: [{gate}]}}}}}}"
    )
    assert place("promote", "bot", "--to", "production").exit_code == 0
    losses = iter([1.0] * 13 + [1.04, 1.06, 1.0])
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("finetooth_registry.command._measured", lambda *_: ({"eval/loss": next(losses)}, {}, {}))
    watched = place("watch", "bot", "--cycles", "14")
    assert watched.exit_code == 0 and "no regression, 14 cycles" in watched.output
    assert len(slept) == 13 and all(86_000 < seconds <= 86_400 for seconds in slept)
    again = place("watch", "bot", "--cycles", "2")
    assert again.exit_code == 1 and "REGRESSION" in again.output and "no regression, 1 cycle\n" in again.output
    events = [event.detail for event in place.registry.events() if event.kind == "watched"]
    assert [event["passed"] for event in events] == [True] * 14 + [False, True]
    assert place.registry.metrics(place.registry.version("bot"))[0] == {"eval/loss": 1.0}
    place.registry.check_log()
    assert "no channel 'candidate'" in str(place("watch", "bot", "--channel", "candidate").exception)


def export(place: Place, run: Path, folder: Path, **options: Any) -> tuple[str, ...]:
    """What the exporter `registry` says of a run."""
    given = exporter.RegistryOptions(model="bot", registry=str(place.folder), **options)
    made = exporter.build(given, SimpleNamespace(build=build))  # type: ignore[arg-type]
    source = SimpleNamespace(run=run)
    made.check(source)  # type: ignore[arg-type]
    folder.mkdir()
    return made.export(source, folder).checks  # type: ignore[arg-type]


def test_a_run_registers_itself_and_asks_for_a_channel(place: Place, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "one", loss=2.0)
    said = export(place, run, tmp_path / "out", channel="staging", key=str(place.key), sign=True)
    assert said[:3] == ("registered as bot@v0", "signed", "promoted to staging")
    assert said[3:] == ("no lock file: the run did not record its environment",)
    assert place.registry.version("bot@staging").number == 0
    record = (tmp_path / "out" / RECORD).read_bytes()
    assert records.signers_of(record, place.registry.trusted()) == ("ci",)


def test_a_gate_holds_back_what_a_run_registers(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", "one")
    with pytest.raises(UserError, match="bot@v0 is registered, and staging holds it back: 1 signed"):
        export(place, run, tmp_path / "out", channel="staging")
    assert not place.registry.version("bot").channels
    for options, said in [
        ({"sign": True}, "no key is given"),
        ({"channel": "beta"}, "no channel 'beta'"),
        ({"key": str(tmp_path / "none.pem")}, "no private key"),
    ]:
        with pytest.raises(UserError, match=said):
            export(place, run, tmp_path / "other", **options)
    assert len(place.registry.versions()) == 1
    monkeypatch.setenv("FT_REGISTRY_KEY", str(place.key))
    assert export(place, run, tmp_path / "third", sign=True)[1] == "signed"


def test_a_card_says_what_the_record_says(place: Place) -> None:
    place.add("one", loss=1.25)
    card = place("card", "bot").output
    assert card.startswith("# bot@v0\n")
    assert "signed by ci." in card
    for fact in ("| base | tiny |", f"| SHA-256 of the base | {'b' * 64} |", "| customer\\_data | False |",
                 f"| data.train.sha256 | {'d' * 64} |", "| eval/loss | 1.25 |", "| artifact/weights |"):  # fmt: skip
        assert fact in card, fact


def test_names_that_hold_markup_are_text(place: Place) -> None:
    run = write_run(place.runs / "odd", "two", model="<script>alert(1)</script>\n# | `rm`")
    assert place("add", str(run), "--name", "odd").exit_code == 0
    card = place("card", "odd").output
    assert "<script>" not in card
    assert "\\<script\\>alert(1)\\</script\\> \\# \\| \\`rm\\`" in card
    assert "no trusted key" in card


def test_a_bill_of_materials_is_valid_and_names_base_data_and_files(place: Place) -> None:
    place.add("one", loss=1.25)
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    schema = pytest.importorskip("cyclonedx.schema")
    text = place("bom", "bot").output
    assert validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text) is None
    bom: dict[str, Any] = json.loads(text)
    model = bom["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "bot", "v0")
    card = model["modelCard"]
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [{"type": "eval/loss", "value": "1.25"}]
    assert {"name": "finetooth:classification:customer_data", "value": "false"} in card["properties"]
    hashes = {part["name"]: part["hashes"][0]["content"] for part in bom["components"] if part.get("hashes")}
    assert hashes["data.train.sha256"] == "d" * 64
    stored = {part["name"]: part["hashes"][0]["content"] for part in model["components"]}
    weights = (place.runs / "run-0/artifact/weights").read_bytes()
    assert stored["artifact/weights"] == hashlib.sha256(weights).hexdigest()


@pytest.fixture
def child(place: Place, tmp_path: Path) -> Path:
    """`bot@v1` and `bot@v2`, each trained over the one before it; the folder of `bot@v2`."""
    place.add("one")
    for number in (0, 1):
        base = tmp_path / f"base{number}"
        assert place("get", f"bot@v{number}", str(base)).exit_code == 0
        run = write_run(tmp_path / f"over{number}", f"over {number}")
        (run / "recipe.yaml").write_text(
            f"model: {base}\nmethod: sft\ndata: {{train: rows.jsonl, classification: {{customer_data: false}}}}\n"
        )
        assert place("add", str(run), "--name", "bot", "--key", str(place.key)).exit_code == 0
    assert place("get", "bot@v2", str(tmp_path / "out")).exit_code == 0
    return tmp_path / "out"


def test_a_version_is_verified_with_all_that_it_was_trained_over(place: Place, child: Path) -> None:
    for links in (verify_version(place.registry, place.registry.version("bot@v2")),
                  verify_folder(child, place.registry.trusted())):  # fmt: skip
        held = holds(links)
        assert all(held.values()) and {"parent bot@v1", "parent bot@v0"} <= held.keys()
    assert all(holds(verify_folder(child, place.registry.trusted())).values())


def test_a_parent_that_is_missing_changed_or_revoked_is_named(place: Place, child: Path, tmp_path: Path) -> None:
    parent = child / "parents/bot@v0.dsse.json"
    content = parent.read_bytes()
    trusted = place.registry.trusted()
    parent.unlink()
    assert holds(verify_folder(child, trusted))["parent bot@v0"] is False
    parent.write_bytes((child / "parents/bot@v1.dsse.json").read_bytes())
    assert holds(verify_folder(child, trusted))["parent bot@v0"] is False
    parent.write_bytes(content)
    (child / "parents/other.dsse.json").write_bytes(content)
    assert holds(verify_folder(child, trusted))["parents/other.dsse.json"] is False
    records.make_key(tmp_path / "new.pem")
    place.registry.trust("new", records.load_signer(tmp_path / "new.pem").public_key)
    assert place("sign", "bot@v2", "--key", str(tmp_path / "new.pem")).exit_code == 0
    assert all(holds(verify_version(place.registry, place.registry.version("bot@v2"))).values())
    place("revoke", "ci")
    held = holds(verify_version(place.registry, place.registry.version("bot@v2")))
    assert held["signature"] and not held["parent bot@v0"]
    refused = place("promote", "bot@v2", "--to", "staging")
    assert isinstance(refused.exception, UserError) and "parent bot@v1" in str(refused.exception)


def test_the_policy_looks_at_the_data_of_parents_too(place: Place, child: Path, tmp_path: Path) -> None:
    place.policy("data: {customer_data: false, licences: [CC0-1.0]}")
    run = tmp_path / "over1"
    (run / "recipe.yaml").write_text(
        f"model: {tmp_path / 'base1'}\ndata: {{classification: {{customer_data: false, licence: CC0-1.0}}}}\n"
    )
    refused = place("add", str(run), "--name", "bot")
    assert "it was trained over bot@v1: the policy accepts the licences" in str(refused.exception)
    assert str(refused.exception).endswith("(train over another base)"), "its own recipe is right"
    before = len(place.registry.events())
    recipe = {"data": {"classification": {"customer_data": False, "licence": "CC0-1.0"}}}
    options = {"model": "bot", "registry": str(place.folder)}
    for base in (str(tmp_path / "base1"), {"name": str(tmp_path / "base1")}):  # before it trains
        with pytest.raises(UserError, match="it was trained over bot@v1: the policy accepts the licences"):
            exporter.admit(options, {**recipe, "model": base})
    assert [event.kind for event in place.registry.events()[before:]] == ["refused", "refused"]
    exporter.admit(options, {**recipe, "model": "tiny"})


def test_the_policy_looks_at_the_data_of_all_that_it_was_trained_over(
    place: Place, child: Path, tmp_path: Path
) -> None:
    place.policy("data: {}")
    begun = write_run(tmp_path / "begun", "begun", customer_data=True)
    last = write_run(tmp_path / "last", "last")

    def recipe(over: Path) -> str:
        return f"model: {over}\ndata: {{classification: {{customer_data: false}}}}\n"

    (last / "recipe.yaml").write_text(recipe(begun))
    assert place("add", str(begun), "--name", "first").exit_code == 0
    assert place("get", "first@v0", str(tmp_path / "first")).exit_code == 0
    for name, over in (("second", "first"), ("third", "second")):
        run = write_run(tmp_path / f"run-of-{name}", name)
        (run / "recipe.yaml").write_text(recipe(tmp_path / over))
        place.policy("data: {customer_data: false}" if name == "third" else "data: {}")
        said = place("add", str(run), "--name", name)
        if name == "second":
            assert place("get", "second@v0", str(tmp_path / "second")).exit_code == 0
    assert "it was trained over first@v0: the policy accepts no customer data" in str(said.exception), "a grandparent"
    refused = place("add", str(last), "--name", "last")
    assert "it was trained over the run begun: the policy accepts no customer data" in str(refused.exception)
    (begun / "merged").mkdir()
    (last / "recipe.yaml").write_text(recipe(begun / "merged"))
    assert "over the run begun" in str(place("add", str(last), "--name", "last").exception), "merged weights of it"
    place.policy("data: {}")
    assert place("add", str(last), "--name", "last").exit_code == 0
    (run,) = [node for node in lineage(place.registry, place.registry.version("last")).sources if node.kind == "run"]
    assert run.title == "begun" and run.sources[0].facts == (("customer_data", "True"),), "ft verify shows it"


@pytest.mark.slow
def test_model_signing_verifies_what_is_signed_for_it(place: Place, tmp_path: Path) -> None:
    """The real command, which knows nothing of registries."""
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    place.add("one")
    private = ec.generate_private_key(ec.SECP256R1())
    key, public, out = tmp_path / "ec.pem", tmp_path / "ec.pub", tmp_path / "out"
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    done = place("get", "bot@v0", str(out), "--model-signing", str(key))
    assert done.exit_code == 0 and f"{out}.sig" in done.output

    def verified() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "model_signing", "verify", "key", "--signature", f"{out}.sig"]
        return subprocess.run([*command, "--public_key", str(public), str(out)], capture_output=True, text=True)

    good = verified()
    assert good.returncode == 0, good.stderr
    (out / "artifact/weights").write_text("two")
    bad = verified()
    assert bad.returncode != 0 and "artifact/weights" in bad.stdout + bad.stderr


@pytest.mark.slow
def test_a_key_that_model_signing_does_not_take_is_refused_before_anything_is_written(
    place: Place, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    place.add("one")
    for key in (place.key, tmp_path / "missing.pem"):
        refused = place("get", "bot@v0", str(tmp_path / "out"), "--model-signing", str(key))
        assert isinstance(refused.exception, UserError) and "openssl ecparam" in str(refused.exception)
    assert not (tmp_path / "out").exists()
