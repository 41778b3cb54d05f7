"""What a server keeps, encrypted: nothing readable is left, damage and wrong keys are named, numbers are the same."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from finetooth_hooks import UserError
from finetooth_server.commands.encryption import command
from finetooth_server.encryption import streams
from finetooth_server.encryption.master import NONCE, MasterKeys, master_keys, new_key, parsed
from finetooth_server.encryption.values import Values
from finetooth_server.encryption.vault import Vault
from finetooth_server.keeping.records import Records
from finetooth_server.keys import Caller
from finetooth_server.service import Service
from finetooth_server.settings import Settings
from finetooth_wire import wire
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

ME = Caller("local", "", frozenset({"train", "sample", "read"}))
KEY = bytes(range(32))


def sealed(content: bytes, chunk: int = 16, name: str = "a/b") -> bytes:
    target = io.BytesIO()
    assert streams.encrypt(io.BytesIO(content), target, KEY, name, chunk) == len(content)
    return target.getvalue()


def opened(content: bytes, chunk: int = 16, name: str = "a/b", key: bytes = KEY) -> bytes:
    target = io.BytesIO()
    streams.decrypt(io.BytesIO(content), target, key, name, chunk)
    return target.getvalue()


@given(st.binary(max_size=70))
def test_a_file_is_what_the_page_says_and_comes_back(content: bytes) -> None:
    """The same bytes from the block cipher's own interface, chunk by chunk."""
    expected = b""
    starts = range(0, max(len(content), 1), 16)
    for number, start in enumerate(starts):
        nonce = number.to_bytes(11, "big") + (b"\x01" if start + 16 >= len(content) else b"\x00")
        encryptor = Cipher(algorithms.AES(KEY), modes.GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(b"a/b")
        expected += encryptor.update(content[start : start + 16]) + encryptor.finalize() + encryptor.tag
    assert sealed(content) == expected
    assert opened(expected) == content


@given(st.data())
def test_no_change_of_a_file_goes_unseen(data: st.DataObject) -> None:
    content = data.draw(st.binary(min_size=33, max_size=64))
    whole, chunk = sealed(content), 32
    place = data.draw(st.integers(0, len(whole) - 1))
    swapped = whole[chunk : 2 * chunk] + whole[:chunk] + whole[2 * chunk :]
    for changed in (
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
        whole[:chunk],
        whole[: 2 * chunk],
        whole[:place],
        whole + whole[:chunk],
        b"" if swapped == whole else swapped,
    ):
        with pytest.raises(streams.Damaged):
            opened(changed)
    with pytest.raises(streams.Damaged):
        opened(whole, name="a/c")
    with pytest.raises(streams.Damaged):
        opened(whole, key=bytes(32))


def keys(*texts: str) -> MasterKeys:
    return parsed(list(texts), "test")


def filled(vault: Vault, id_: str, word: bytes = b"weights of the model") -> Path:
    place = vault.root / "checkpoints" / id_
    with vault.writing(place) as folder:
        (folder / "state").mkdir()
        (folder / "state" / "trained").write_bytes(word * 200_000)
        (folder / "state" / "empty").write_bytes(b"")
        (folder / "weights").write_bytes(word)
    return place


def test_no_nonce_is_used_twice_in_a_database(tmp_path: Path) -> None:
    """GCM with one nonce for two values gives their XOR away, and the key that authenticates (NIST SP 800-38D, 8)."""
    keys, folder = parsed([new_key()], "a test"), tmp_path / "server"
    folder.mkdir()
    records = Records(Settings(folder, {}).database_url)
    values = Values(records, keys)
    sealed_ones = [values.seal(b"the same", "call", "result") or b"" for _ in range(1000)]
    again = Values(records, keys)  # another start of the server
    sealed_ones += [again.seal(b"the same", "call", "result") or b"" for _ in range(1000)]
    assert len({one[1 : 1 + NONCE] for one in sealed_ones}) == len(sealed_ones)
    assert {again.open(one, "call", "result") for one in sealed_ones} == {b"the same"}


def test_a_folder_comes_back_and_nothing_readable_is_left(tmp_path: Path) -> None:
    vault = Vault(tmp_path, keys(new_key()))
    place = filled(vault, "one")
    assert not any(b"weights of" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    with vault.reading(place / "state") as folder:
        assert (folder / "trained").read_bytes() == b"weights of the model" * 200_000
        assert (folder / "empty").read_bytes() == b""
        assert not (folder.parent / "weights").exists()  # only what was asked for
    assert list((tmp_path / "scratch").iterdir()) == []
    with pytest.raises(RuntimeError), vault.writing(tmp_path / "checkpoints" / "two") as folder:
        (folder / "x").write_bytes(b"weights of")
        raise RuntimeError
    assert [one.name for one in (tmp_path / "checkpoints").iterdir()] == ["one"]
    assert list((tmp_path / "scratch").iterdir()) == []


class Killed(BaseException):
    """The process ends here."""


RMTREE = shutil.rmtree


def begin_only(folder: Path, ignore_errors: bool = False) -> None:
    """`rmtree` of a process that is killed as soon as it removes what is kept."""
    sealed = list(folder.rglob("sealed.json"))
    if not sealed or (folder.name[0] == "." and not folder.name.endswith(".gone")):
        RMTREE(folder, ignore_errors=ignore_errors)
        return
    for file in sealed:
        file.unlink()
    raise Killed


@pytest.mark.parametrize("removed", ["checkpoints/one", "snapshots/m/3", "snapshots/m"])
def test_a_removal_that_a_crash_cut_short_stops_no_server(
    removed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = Vault(tmp_path, keys(new_key()))
    places = [tmp_path / name for name in ("checkpoints/one", "checkpoints/two", "snapshots/m/3", "snapshots/n/3")]
    for place in places:
        with vault.writing(place) as folder:
            (folder / "x").write_bytes(b"x")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(shutil, "rmtree", begin_only)
        vault.remove(tmp_path / removed)
    left = [place for place in places if not place.is_relative_to(tmp_path / removed)]
    vault.check()
    assert vault.places() == left
    vault.sweep()
    assert vault.places() == left
    assert not list(tmp_path.rglob(".*"))
    vault.remove(tmp_path / removed)  # a second time
    (tmp_path / "snapshots" / ".left").touch()
    vault.remove(tmp_path / "snapshots" / ".left")  # no folder: others' business
    assert [file.name for file in tmp_path.rglob(".*")] == [".left"]


def test_an_overwriting_that_a_crash_cut_short_stops_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = Vault(tmp_path, keys(new_key()))
    place = filled(vault, "one")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(shutil, "rmtree", begin_only)
        filled(vault, "one", b"others")
    assert not (tmp_path / "checkpoints" / "one").exists()
    assert (tmp_path / "checkpoints" / ".one.gone" / "weights").exists(), "it was cut short where it was to be"
    vault.check()
    vault.sweep()
    assert not list(tmp_path.rglob(".*"))
    assert filled(vault, "one") == place


def test_what_was_being_encrypted_when_the_process_ended_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = filled(Vault(tmp_path, None), "one")
    was = {file.relative_to(place): file.read_bytes() for file in place.rglob("*") if file.is_file()}
    vault, rename = Vault(tmp_path, keys(new_key())), Path.rename

    def until_it_is_hidden(self: Path, target: Path) -> Path:
        done = rename(self, target)
        if self == place:
            raise Killed
        return done

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Path, "rename", until_it_is_hidden)
        vault.seal(place)
    assert not place.exists()
    vault.sweep()
    assert {file.relative_to(place): file.read_bytes() for file in place.rglob("*") if file.is_file()} == was
    vault.seal(place)
    vault.check()
    assert not list(tmp_path.rglob(".*"))


def test_a_server_takes_nothing_plain_that_was_being_encrypted(
    context: Any, recipe: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "snapshots" / "m" / ".3.plain").mkdir(parents=True)
    with pytest.raises(UserError, match="snapshots/m/3: it is not encrypted"):
        Service(context, Settings(tmp_path, {"tiny": recipe}, keyless=True, encryption=keys(new_key())))


def test_what_was_changed_is_named_in_one_line(tmp_path: Path) -> None:
    text = new_key()
    vault = Vault(tmp_path, keys(text))
    place, other = filled(vault, "one"), filled(vault, "two")
    kept = tmp_path / "kept"
    shutil.copytree(place, kept)

    def flip() -> None:
        content = bytearray((place / "state" / "trained").read_bytes())
        content[2_500_000] ^= 1
        (place / "state" / "trained").write_bytes(content)

    def wrapped() -> None:
        said = json.loads((place / "sealed.json").read_text())
        said["wrapped"] = said["wrapped"][:-4] + "AAA="
        (place / "sealed.json").write_text(json.dumps(said))

    for change, message in (
        (flip, "checkpoints/one: state/trained is damaged after 2097152 bytes"),
        (lambda: (place / "weights").unlink(), "checkpoints/one: weights is missing"),
        (lambda: (place / "more").write_text("x"), "checkpoints/one: more does not belong to it"),
        (lambda: shutil.copy(other / "weights", place / "weights"), "checkpoints/one: weights is damaged after 0"),
        (lambda: shutil.copy(other / "sealed.json", place), "checkpoints/one: its data keys were changed"),
        (wrapped, "checkpoints/one: its data keys were changed"),
        (lambda: (place / "sealed.json").write_text("{"), "checkpoints/one: sealed.json cannot be read"),
        (lambda: (place / "sealed.json").unlink(), "checkpoints/one: it is not encrypted"),
    ):
        change()
        with pytest.raises(UserError) as caught, vault.reading(place):
            pass
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
        assert not any((tmp_path / "scratch").iterdir())
        shutil.rmtree(place)
        shutil.copytree(kept, place)
    for wrong, message in ((None, "it is encrypted"), (keys(new_key()), f"with the key {keys(text).current}, which")):
        for attempt in (Vault(tmp_path, wrong).check, Vault(tmp_path, wrong).reading(place).__enter__):
            with pytest.raises(UserError, match=message):
                attempt()


def test_a_new_key_rewrites_the_wrapped_keys_alone(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    vault = Vault(tmp_path, keys(old))
    place = filled(vault, "one")
    before = {file: (file.read_bytes(), file.stat().st_ino) for file in place.rglob("*") if file.is_file()}
    both = Vault(tmp_path, keys(new, old))
    assert both.rewrap(place) and not both.rewrap(place)
    after = {file: (file.read_bytes(), file.stat().st_ino) for file in place.rglob("*") if file.is_file()}
    assert [file.name for file in before if before[file] != after[file]] == ["sealed.json"]
    (place / ".sealed.json").write_text("{")  # as a crash in the middle leaves it
    with Vault(tmp_path, keys(new)).reading(place) as folder:
        assert (folder / "weights").read_bytes() == b"weights of the model"
    with pytest.raises(UserError, match="which was not given"):
        vault.check()


def test_keys_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    for content, mode, message in (
        ("", 0o600, "it holds no key"),
        ("# a note\nc2hvcnQ=\n", 0o600, "key 1 is not 32 bytes"),
        (f"{new_key()}\nsecret!\n", 0o600, "key 2 is not 32 bytes"),
        (new_key(), 0o640, "others may read it"),
    ):
        file.write_text(content)
        file.chmod(mode)
        with pytest.raises(UserError, match=message) as caught:
            master_keys(file)
        assert "secret" not in str(caught.value) and "c2hvcnQ" not in str(caught.value)
    with pytest.raises(UserError, match="No such file"):
        master_keys(tmp_path / "none")
    assert master_keys(None) is None
    text = new_key()
    monkeypatch.setenv("FT_ENCRYPTION_KEY", f"{text},{new_key()}")
    found = master_keys(None)
    assert found is not None and found.current == keys(text).current and len(found.by_id) == 2
    assert text not in repr(found) and "by_id" not in repr(found)
    with pytest.raises(UserError, match="two places"):
        master_keys(file)


# --- a server ---------------------------------------------------------------------------------------------------------


def calls(ask: SimpleNamespace) -> list[tuple[str, dict[str, Any]]]:
    data = [ask.sent(ask.data(n)) for n in range(3)]
    return [
        ("forward_backward", {"data": data[0], "loss": "cross_entropy"}),
        ("step", {}),
        ("forward", {"data": data[1], "loss": "cross_entropy"}),
        ("backward", {"handle": 3}),
        ("step", {}),
        ("forward_backward", {"data": data[2], "loss": "cross_entropy"}),
        ("save", {"name": "middle"}),
        ("step", {}),
    ]


def end(service: Any, ask: SimpleNamespace, model: str, done: int = 0) -> tuple[Any, dict[str, np.ndarray]]:
    """Results and the trained numbers after the calls from `done` on."""
    results = [
        ask.result(service, ME, service.submit(ME, model, *one, seq=seq, face="test"))
        for seq, one in list(enumerate(calls(ask), 1))[done:]
    ]
    saved = ask.result(service, ME, service.submit(ME, model, "save", {"name": "end"}, seq=9, face="test"))
    checkpoint = service.checkpoint(ME, saved["checkpoint"])
    with service.checkpoints.reading(checkpoint, "state") as folder:
        found = {f"{file.stem}/{k}": v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    return [one for one in results if "checkpoint" not in one], found


def made(service: Any, ask: SimpleNamespace) -> str:
    call = service.create_model(ME, service.open_session(ME), "tiny", {}, face="test")
    ask.result(service, ME, call)
    return str(call.queue)


def everything(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def test_an_encrypted_server_computes_the_same_and_leaves_nothing_readable(
    start: Any, ask: SimpleNamespace, tmp_path: Path
) -> None:
    plain = start(tmp_path / "plain")  # no snapshot before it stops, which would remove others while they are read here
    want = end(plain, ask, made(plain, ask))
    traces = [json.dumps(wire.encode_array(ask.data(0)[0].targets)["base64"]).strip('"').encode()]
    traces += [values.tobytes() for name, values in want[1].items() if "trained" in name][:2]
    traces += [wire.encode_array(wire.decode_forward(want[0][0]).outputs[0]["logprobs"])["base64"].encode()]
    assert all(trace in everything(tmp_path / "plain") for trace in traces)

    text, folder = new_key(), tmp_path / "sealed"
    service = start(folder, replay=0.0, encryption=keys(text))
    model = made(service, ask)
    for seq, one in list(enumerate(calls(ask), 1))[:4]:
        ask.result(service, ME, service.submit(ME, model, *one, seq=seq, face="test"))
    service.stop()
    assert not any(trace in everything(folder) for trace in traces)
    for wrong, message in ((None, "is encrypted"), (keys(new_key()), "which was not given")):
        with pytest.raises(UserError, match=message) as caught:
            start(folder, encryption=wrong)
        assert "\n" not in str(caught.value)
    service = start(folder, replay=0.0, encryption=keys(new_key(), text))
    first = ask.result(service, ME, service.submit(ME, model, "forward_backward", {}, seq=1, face="test"))
    results, trained = end(service, ask, model, done=4)
    assert [first, *results] == [want[0][0], *want[0][4:]]
    assert trained.keys() == want[1].keys() and all(np.array_equal(trained[k], want[1][k]) for k in trained)
    sampler = service.open_sampler(
        ME, service.open_session(ME), "s", checkpoint=service.checkpoints.all("local")[-1].id
    )
    assert sampler == "tiny"
    service.stop()
    assert not any(trace in everything(folder) for trace in traces)


def test_a_server_that_began_plain_is_encrypted_and_its_key_changed(
    start: Any, ask: SimpleNamespace, tmp_path: Path
) -> None:
    folder, file = tmp_path / "server", tmp_path / "key"
    service = start(folder)
    model = made(service, ask)
    want = end(service, ask, model)
    service.stop()

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    here = ["--folder", str(folder), "--encryption-key", str(file)]
    run("key", str(file))
    result = want[0][0]["outputs"][0]["logprobs"]["base64"][:40].encode()
    forgotten = b"data of a call that was removed"
    with sqlite3.connect(folder / "service.db") as connection:  # leaves pages that are free, and still full
        connection.execute("PRAGMA secure_delete=OFF")  # some builds of SQLite have it on
        connection.execute("CREATE TABLE removed (content BLOB)")
        connection.execute("INSERT INTO removed VALUES (?)", (forgotten * 1000,))
        connection.commit()
        connection.execute("DROP TABLE removed")
    connection.close()
    assert result in everything(folder) and forgotten in everything(folder)
    first = keys(file.read_text().strip()).current
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match=r"it is not encrypted \(run `ft encryption seal` first\)"):
        start(folder, encryption=master_keys(file))
    assert run("seal", *here) == f"3 checkpoints and snapshots and 10 calls encrypted with {first}\n"
    assert "calls: " + first in run("status", *here[:2]) and "3 " + first in run("status", *here[:2])
    values = next(v for name, v in want[1].items() if "trained" in name)
    assert values.tobytes() not in everything(folder) and result not in everything(folder)
    assert forgotten not in everything(folder)

    assert "which holds the earlier ones too" in run("key", str(file))
    second = keys(*file.read_text().split()).current
    assert run("rotate", *here) == f"4 data keys wrapped with {second}\n"
    assert run("rotate", *here) == f"0 data keys wrapped with {second}\n"
    file.write_text(file.read_text().splitlines()[0])
    service = start(folder, encryption=master_keys(file))
    again = ask.result(service, ME, service.submit(ME, model, "forward_backward", {}, seq=1, face="test"))
    assert again == want[0][0]
    stepped = service.submit(ME, model, "forward_backward", calls(ask)[0][1], seq=10, face="test")
    assert ask.result(service, ME, stepped)["targets"] > 0
