"""A registry keeps what runs trained, refuses what its policy refuses, and releases through gates."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import UserError
from finetooth_registry import exporter, records
from finetooth_registry.registry import Registry
from finetooth_registry.verifying import verify_folder, verify_version
from finetooth_saving.origins import RECORD
from registry_place import Place, build, holds, write_run


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
    done = place("revert", "bot@v0", "--why", "the full fine-tune forgot everything")
    assert done.output == "bot@v0 is reverted, and no channel may hold it\n"
    assert isinstance(place("promote", "bot@v0", "--to", "staging").exception, UserError)
    assert place.registry.version("bot@v0").status == "reverted"


def test_a_revoked_key_signs_nothing(place: Place) -> None:
    place.add("one")
    assert place("promote", "bot@v0", "--to", "staging").exit_code == 0
    assert "no longer trusts what the key ci signs" in place("revoke", "ci").output
    assert place("promote", "bot@v0", "--to", "staging").exit_code == 1
    assert not holds(verify_version(place.registry, place.registry.version("bot")))["signature"]


def test_a_threshold_of_signers(place: Place, tmp_path: Path) -> None:
    place.policy("channels: {production: {gates: [{name: signed, by: [ci, boss]}]}}")
    place.add("one")
    place("key", str(tmp_path / "boss.pem"), bare=True)
    assert "trusts what the key boss signs" in place("trust", "boss", str(tmp_path / "boss.pem.pub")).output
    assert place("promote", "bot", "--to", "production").exit_code == 1
    assert place("sign", "bot", "--key", str(tmp_path / "boss.pem")).output == "bot@v0 is signed by boss, ci\n"
    assert place("promote", "bot", "--to", "production").exit_code == 0
    place("key", str(tmp_path / "else.pem"), bare=True)
    said = place("sign", "bot", "--key", str(tmp_path / "else.pem")).output
    assert said.startswith("bot@v0 is signed by boss, ci\n") and f"trust NAME {tmp_path / 'else.pem'}.pub" in said


def test_what_is_stored_once_is_stored_once(place: Place) -> None:
    place.add("same")
    before = len(list((place.folder / "blobs").rglob("*")))
    place.add("same")
    # of the second run only its record, and its manifest with another time, are new
    assert len([path for path in (place.folder / "blobs").rglob("*") if path.is_file()]) <= before + 3
    assert "0 blobs" in place("collect").output


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
    made = exporter.RegistryExporter(given, SimpleNamespace(build=build))  # type: ignore[arg-type]
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
        with pytest.raises(UserError, match=said):  # before it trains
            exporter.admit({"model": "bot", "registry": str(place.folder), **options}, {})
    assert len(place.registry.versions()) == 1
    monkeypatch.setenv("FT_REGISTRY_KEY", str(place.key))
    assert export(place, run, tmp_path / "third", sign=True)[1] == "signed"
