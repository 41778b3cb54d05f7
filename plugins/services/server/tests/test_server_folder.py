"""One server at a time works on a folder, and a killed one leaves nothing behind that keeps the next one out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import UserError
from finetooth_server.encryption.master import new_key
from finetooth_server.faults import Conflict, Unknown
from finetooth_server.keeping import checkpoints as checkpoints_module
from finetooth_server.keeping.folder_lock import folder_lock, make_folder
from finetooth_server.keeping.model_ids import folder_name
from finetooth_server.keeping.records import models
from finetooth_server.keys import Caller
from sqlalchemy import select


def refused(*arguments: str) -> str:
    """What a command said that must not work: one line, exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "finetooth", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2 and not done.stdout, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.slow
def test_a_held_folder_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder, key = tmp_path / "server", tmp_path / "key"
    serving = ("serve", "api", "--model", str(tiny), "--port", "0", "--folder", str(folder))
    with folder_lock(folder):
        assert refused(*serving) == (
            f"error: --folder {folder}: a server works on it in process {os.getpid()} "
            "(stop that one, or give this one a folder of its own)"
        )
        assert [file.name for file in folder.iterdir()] == [".lock"], "the one that was refused wrote something"
        (folder / "service.db").touch()
        key.touch(mode=0o600)
        key.write_text(new_key())
        sealing = refused("encryption", "seal", "--folder", str(folder), "--encryption-key", str(key))
        assert f"works on it in process {os.getpid()}" in sealing
    with folder_lock(folder):
        pass
    with pytest.raises(UserError, match="Not a directory"), folder_lock(key / "below"):
        pass


@pytest.mark.parametrize("words", ["list", "revoke some", "rotate some"])
def test_keys_are_not_looked_for_where_no_server_was(words: str, tmp_path: Path) -> None:
    from click.testing import CliRunner
    from finetooth_server.commands.keys import command

    for folder, said in (
        (tmp_path / "none" / "server", "this folder does not exist"),
        (tmp_path, "no server has worked there"),
    ):
        with pytest.raises(UserError, match=said):
            CliRunner().invoke(command, [*words.split(), "--folder", str(folder)], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "{taken}"], "Address already in use"),
        (["--adapter", "nowhere"], "--adapter nowhere: it holds no adapter"),
        (["--host", "0.0.0.0"], "the server has no API key"),
        (["--certificate", "{file}"], "belong together"),
        (["--model", "{folder}/no-model"], "no-model"),
    ],
    ids=["port", "adapter", "host", "certificate", "model"],
)
def test_a_server_that_is_refused_leaves_nothing(
    words: list[str], said: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import socket

    from finetooth_core.cli import main

    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = {"taken": taken.getsockname()[1], "file": tiny / "config.json", "folder": tmp_path}
        chosen = [word.format(**given) for word in words]
        free = [] if "--port" in words else ["--port", "0"]
        assert main(["serve", "api", "--model", str(tiny), *free, *chosen]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_model_is_named_out_of_its_folder_or_into_another_ones(start: Any) -> None:
    service = start()
    for tenant, id_, said in (
        ("one", "..", "model id '..'"),
        ("one", ".hidden-model", "model id '.hidden-model'"),
        ("one", "model:1", ""),
        ("one", "model:1", ""),  # the same request again
        ("two", "model:1", ""),  # nobody is told of other tenants' ids
        ("one", "Model:1", "is taken"),  # the same folder on systems that take letters so
        ("one", "model.", "model id 'model.'"),
        ("one", "model-1", "is taken"),
        ("two", "model-2", ""),
    ):
        caller = Caller(tenant, "", frozenset({"train"}))
        session = service.open_session(caller)
        if not said:
            service.create_model(caller, session, "tiny", {}, id_=id_, face="test")
            continue
        with pytest.raises((UserError, Conflict), match=said):
            service.create_model(caller, session, "tiny", {}, id_=id_, face="test")
    with service.records.read() as connection:
        folders = [folder_name(id_).lower() for id_ in connection.scalars(select(models.c.id))]
    assert len(folders) == len(set(folders)) == 3


@pytest.mark.slow
def test_the_second_server_is_refused_until_the_first_was_killed(tiny: Path, tmp_path: Path, killable: Any) -> None:
    first = killable(tiny, tmp_path, "tinker")
    again = ("serve", "tinker", "--model", str(tiny), "--port", "0", "--folder", str(tmp_path / "server"))
    assert f"--folder {tmp_path / 'server'}: a server works on it in process {first.pid}" in refused(*again)
    assert "serving" in first.log.read_text(), "the first goes on"
    first.kill()
    first.start()  # on the same folder
    assert str(first.pid) in refused(*again)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_folder_that_others_can_read_is_closed_to_them_or_refused(tmp_path: Path) -> None:
    empty, own, foreign = (tmp_path / name for name in ("empty", "own", "foreign"))
    for folder in (empty, own, foreign):
        folder.mkdir(mode=0o755)
    (own / "service.db").touch()
    (foreign / "thesis.tex").touch()
    for folder in (empty, own):
        make_folder(folder)
        assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(UserError, match=r"others can read it.*chmod 700"):
        make_folder(foreign)
    assert foreign.stat().st_mode & 0o777 == 0o755


def test_what_has_expired_goes_while_the_server_runs(start: Any, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    service, me = start(), Caller("local", "", frozenset({"train", "sample", "read"}))
    made = service.create_model(me, service.open_session(me), "tiny", {}, face="test")
    for name, ttl in (("brief", 60.0), ("kept", None)):
        ask.result(service, me, service.submit(me, made.queue, "save", {"name": name, "ttl": ttl}, face="test"))
    brief, kept = service.checkpoints.all("local")
    later = checkpoints_module.now() + 61
    monkeypatch.setattr(checkpoints_module, "now", lambda: later)
    with pytest.raises(Unknown, match="no checkpoint"):  # before it is swept too
        service.checkpoints.readable("local", brief.id)
    assert service.checkpoints.readable("local", kept.id) == kept
    service.pruner.prune()
    folder = service.settings.folder / "checkpoints"
    assert [one.name for one in folder.iterdir()] == [kept.id] and brief.id != kept.id
    assert service.checkpoints.expire() == 0


def test_metrics_are_those_of_the_tenant(start: Any) -> None:
    service = start()
    mine, other = (Caller(name, "", frozenset({"train", "read"})) for name in ("mine", "other"))
    service.create_model(mine, service.open_session(mine), "tiny", {}, face="test")
    assert sum(service.counts(other).values()) == 0 and sum(service.counts(mine).values()) == 1
    assert sum(service.counts(Caller("other", "", frozenset({"admin"}))).values()) == 1
