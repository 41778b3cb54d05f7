"""The audit record: what was cut off or rewritten is found, after a crash too, and never mended in silence."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from finetooth_hooks import UserError
from finetooth_server.audit import Audit, audit_key, has_key, verify
from finetooth_server.keeping.records import Records
from finetooth_server.keys import Keys
from finetooth_server.settings import Settings


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a record of five lines, as a killed server leaves it: nothing was closed."""
    record = Audit(tmp_path / "audit.jsonl", audit_key(tmp_path))
    for n in range(5):
        record.add(f"POST /{n}", tenant="team", outcome="200")
    return tmp_path


def found(place: Path) -> int:
    return verify(place / "audit.jsonl", key=audit_key(place)).lines


def test_a_killed_server_leaves_a_whole_record(place: Path) -> None:
    assert found(place) == 5
    told: list[str] = []
    Audit(place / "audit.jsonl", audit_key(place), told.append).add("POST /5", tenant="team", outcome="200")
    assert told == [] and found(place) == 6


def test_a_head_that_a_crash_left_one_line_behind_is_no_change(place: Path) -> None:
    head = (place / "audit.head").read_bytes()
    Audit(place / "audit.jsonl", audit_key(place)).add("POST /5", tenant="team", outcome="200")
    (place / "audit.head").write_bytes(head)
    assert found(place) == 6
    told: list[str] = []
    Audit(place / "audit.jsonl", audit_key(place), told.append)
    assert told == []


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_an_end_that_was_cut_off_is_found_and_never_healed(place: Path, kept: int) -> None:
    path = place / "audit.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    with pytest.raises(UserError, match=f"{kept} lines, 5 were noted"):
        found(place)
    told: list[str] = []
    record = Audit(path, audit_key(place), told.append)
    record.add("POST /after", tenant="team", outcome="200")
    record.close()
    assert len(told) == 1 and f"{kept} lines, 5 were noted" in told[0]
    with pytest.raises(UserError, match=rf"audit.jsonl:{kept + 1}: lines before this one are missing"):
        found(place)  # whatever was written since


def test_a_byte_that_is_no_text_is_found(place: Path) -> None:
    path = place / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"POST /3", b"POST /\xe9"))
    with pytest.raises(UserError, match=r"audit.jsonl:4: the line does not belong to a record"):
        found(place)


def test_a_record_that_was_rewritten_whole_is_found(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The forger knows the format, and not the key."""
    other = tmp_path_factory.mktemp("forged")
    forged = Audit(other / "audit.jsonl", bytes(32))
    for n in range(5):
        forged.add(f"POST /{n}", tenant="nobody", outcome="200")
    forged.close()
    shutil.copy(other / "audit.jsonl", place / "audit.jsonl")
    with pytest.raises(UserError, match="does not end as its head says"):
        found(place)
    shutil.copy(other / "audit.head", place / "audit.head")
    with pytest.raises(UserError, match="not signed with this key"):
        found(place)
    told: list[str] = []
    Audit(place / "audit.jsonl", audit_key(place), told.append)
    assert len(told) == 1 and "not signed" in told[0]
    (place / "audit.head").unlink()
    with pytest.raises(UserError, match=r"(head is missing|lines before this one)"):
        found(place)


def test_a_line_that_was_rewritten_with_a_hash_of_its_own_is_found(place: Path) -> None:
    """Whoever rewrites a line can compute its hash; the line behind it hangs on the one before."""
    path = place / "audit.jsonl"
    lines = path.read_text().splitlines()
    before, content = json.loads(lines[1])["hash"], {**json.loads(lines[2]), "tenant": "nobody"}
    del content["hash"]
    written = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["hash"] = hashlib.sha256((before + written).encode()).hexdigest()
    lines[2] = json.dumps(content, sort_keys=True, separators=(",", ":"))
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"audit.jsonl:4: its hash does not fit"):
        found(place)


def test_an_end_that_was_cut_off_with_the_head_rewritten_is_found(place: Path) -> None:
    """The forger says in the head what the shorter record ends with, and has a signature of another end alone."""
    path, head = place / "audit.jsonl", place / "audit.head"
    lines = path.read_text().splitlines(keepends=True)[:3]
    path.write_text("".join(lines))
    head.write_text(json.dumps({**json.loads(head.read_text()), "lines": 3, "head": json.loads(lines[-1])["hash"]}))
    with pytest.raises(UserError, match="not signed with this key"):
        found(place)


def test_half_a_line_is_kept_beside_the_record(place: Path) -> None:
    path = place / "audit.jsonl"
    with path.open("a") as file:
        file.write('{"at": 1, "ev')
    Audit(path, audit_key(place)).close()
    assert found(place) == 6 and (place / "audit.torn").read_text() == '{"at": 1, "ev\n'
    assert json.loads(path.read_text().splitlines()[-1])["event"] == "record: half a line was set aside"


def test_the_key_may_lie_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "key"
    for text, problem in (("abc", "no key"), ("00" * 31, "31 bytes")):
        file.write_text(text)
        with pytest.raises(UserError, match=problem):
            audit_key(tmp_path, file)
    file.write_text("ab" * 32)
    assert audit_key(tmp_path, file) == b"\xab" * 32 and not (tmp_path / "audit.key").exists()
    assert (len(audit_key(tmp_path)), (tmp_path / "audit.key").stat().st_mode & 0o777) == (32, 0o600)


def test_what_is_done_to_keys_is_recorded(tmp_path: Path) -> None:
    records = Records(Settings(tmp_path, {}).database_url)
    keys = Keys(records)
    first = keys.create("vision").split("_")[1]
    second = keys.rotate(first).split("_")[1]
    keys.revoke(second)
    record = Audit(tmp_path / "audit.jsonl", audit_key(tmp_path))
    keys.record(record)
    keys.record(record)  # each once
    record.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["event"], line["tenant"], line["key"]) for line in lines] == [
        ("key created", "vision", first), ("key created", "vision", second), ("key rotated", "vision", first),
        ("key revoked", "vision", second),
    ]  # fmt: skip
    records.close()


@pytest.mark.parametrize("killed", [False, True])
def test_a_record_from_before_heads_were_signed_goes_on(place: Path, killed: bool) -> None:
    head = json.loads((place / "audit.head").read_text())
    (place / "audit.head").unlink()
    if not killed:  # such a server wrote its head when it ended
        (place / "audit.head").write_text(json.dumps({"head": head["head"], "lines": head["lines"]}))
    (place / "audit.key").unlink()
    assert not has_key(place)
    told: list[str] = []
    Audit(place / "audit.jsonl", audit_key(place), told.append, unsigned=True).add("POST /5", tenant="", outcome="200")
    assert told == [] and found(place) == 6 and has_key(place)
