"""API keys by their commands, and what each scope may do at a server."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from click.testing import CliRunner
from finetooth_hooks import PlanError, UserError
from finetooth_server import keys as keys_module
from finetooth_server.audit import Audit, audit_key
from finetooth_server.commands import audit as audit_command
from finetooth_server.commands.keys import command
from finetooth_server.commands.serve import command as serve_command
from finetooth_server.faults import Unauthorised
from finetooth_server.keeping.records import Records
from finetooth_server.keys import Keys
from finetooth_server.settings import Settings


class Shell:
    """`ft keys` on one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str) -> tuple[str, str]:
        """Output and messages."""
        place = ["--folder", str(self.folder)]
        done = CliRunner().invoke(command, [*arguments, *place], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout.strip(), done.stderr.strip()

    @property
    def keys(self) -> Keys:
        """What a running server sees."""
        return Keys(Records(Settings(self.folder, {}).database_url))

    def valid(self, key: str) -> bool:
        """Whether a server would take it."""
        try:
            return bool(self.keys.caller(key, keyless=False))
        except Unauthorised:
            return False


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "server")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What keys read instead of the time, in seconds."""
    seconds = [time.time()]
    monkeypatch.setattr(keys_module, "now", lambda: seconds[0])
    return seconds


def test_a_key_that_is_changed_ends_no_later_than_it_would_have(shell: Shell, clock: list[float]) -> None:
    shell.folder.mkdir()
    brief = shell.keys.create("vision", days=1)
    new = shell.keys.rotate(brief.split("_")[1], grace_hours=1000)
    old_end, new_end = (shell.keys.list()[n].expires for n in (0, 1))
    assert old_end == clock[0] + 86400 and new_end == clock[0] + 86400  # the new one is valid for as long again
    clock[0] += 86400 / 2
    newer = shell.keys.rotate(new.split("_")[1], grace_hours=1)
    assert [key.expires for key in shell.keys.list()][1:] == [clock[0] + 3600, clock[0] + 86400]
    clock[0] += 3600
    assert shell.valid(newer) and not shell.valid(new) and shell.valid(brief)


@pytest.mark.parametrize("days", [None, 30.0])
def test_a_key_that_is_changed_twice_in_its_grace_gives_the_same_lifetime_again(
    shell: Shell, clock: list[float], days: float | None
) -> None:
    shell.folder.mkdir()
    key = shell.keys.create("vision", days=days)
    for _ in range(2):
        shell.keys.rotate(key.split("_")[1])
        clock[0] += 3600
    ends = [one.expires for one in shell.keys.list()][1:]
    assert ends == (
        [None, None] if days is None else pytest.approx([clock[0] + days * 86400 - n for n in (7200, 3600)])
    )


def test_a_key_is_shown_once_and_ends(shell: Shell, clock: list[float]) -> None:
    key, said = shell.run("create", "--tenant", "vision", "--scopes", "train, read", "--name", "laptop")
    assert re.fullmatch(r"ft_[0-9a-f]+_[0-9a-f]{64}", key) and "only time" in said
    id_, secret = key.split("_")[1], key.split("_", 2)[2]
    listed, _ = shell.run("list")
    assert id_ in listed and "read,train" in listed and "laptop" in listed and "valid" in listed
    kept = b"".join(file.read_bytes() for file in shell.folder.rglob("*") if file.is_file())
    assert secret not in listed and secret.encode() not in kept
    caller = shell.keys.caller(f"tml-{key}", keyless=False)
    assert (caller.tenant, caller.scopes) == ("vision", {"train", "read"})

    new, _ = shell.run("rotate", id_, "--grace", "1")
    assert shell.valid(key) and shell.valid(new)
    assert shell.keys.caller(new, keyless=False).scopes == caller.scopes
    newer, _ = shell.run("rotate", new.split("_")[1], "--grace", "0")
    assert not shell.valid(new) and shell.valid(newer)
    assert shell.run("revoke", newer.split("_")[1])[0].endswith("ended")
    assert not shell.valid(newer)
    assert shell.run("list")[0].count(" ended ") == 2

    brief, _ = shell.run("create", "--tenant", "vision", "--days", "0.000001")
    clock[0] += 0.1
    assert not shell.valid(brief)
    with pytest.raises(UserError, match="no valid key"):  # what has ended gives no new one
        shell.run("rotate", brief.split("_")[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "--tenant", "a/b"), "tenant 'a/b'"),
        (("create", "--tenant", "a", "--scopes", "trian"), "unknown scope 'trian'"),
        (("create", "--tenant", "a", "--scopes", " "), "a key without scopes"),
        (("create", "--tenant", "a", "--days", "-1"), "days is -1"),
        (("create", "--tenant", "a", "--days", "nan"), "days.*nan"),
        (("create", "--tenant", "a", "--name", "x" * 129), "a note of 129 letters"),
        (("revoke", "nothing"), "no key 'nothing'"),
        (("rotate", "nothing"), "no valid key 'nothing'"),
    ],
)
def test_what_is_wrong_is_one_line(shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    shell.run("create", "--tenant", "other")
    with pytest.raises(UserError, match=message) as caught:
        shell.run(*arguments)
    assert "\n" not in str(caught.value) and caught.value.action


@pytest.mark.parametrize("wrong", [("--tenant", "a/b"), ("--tenant", "a", "--scopes", "trian")])
def test_a_key_that_is_refused_makes_no_folder(shell: Shell, wrong: tuple[str, ...]) -> None:
    with pytest.raises(UserError):
        shell.run("create", *wrong)
    assert not shell.folder.exists()


def test_a_scope_allows_what_it_says_and_no_more(serve: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    server = serve(Settings(tmp_path / "server", {"tiny": recipe}))
    keys = server.service.keys
    owner = keys.create("team", ("train", "sample"))

    def status(key: str, method: str, path: str, body: Any = None) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.request(method, server.url + path, headers=headers, json=body, timeout=60).status_code

    made = httpx.post(f"{server.url}/v1/sessions", headers={"X-API-Key": owner}, json={"base": "tiny"}, timeout=60)
    session = f"/v1/sessions/{made.json()['session']}"
    prompts = {"prompts": [[5, 6]], "sampling": {"max_tokens": 1}}
    table: list[tuple[str, str, Any, set[str]]] = [
        ("GET", session, None, {"train", "read", "admin"}),
        ("GET", "/v1/sessions", None, {"train", "read", "admin"}),
        ("GET", "/metrics", None, {"read", "admin"}),
        ("POST", "/v1/samplers", {"base": "tiny"}, {"sample", "admin"}),
        ("POST", f"{session}/generate", prompts, {"sample", "admin"}),
        ("POST", f"{session}/zero_grad", {}, {"train", "admin"}),
        ("POST", f"{session}/save", {"name": "x"}, {"train", "admin"}),
        ("DELETE", session, None, {"train", "admin"}),
    ]
    by_scope = {scope: keys.create("team", (scope,)) for scope in ("train", "sample", "read", "admin")}
    for method, path, body, allowed in table:
        for scope, key in by_scope.items():
            answer = status(key, method, path, body)
            assert (answer < 400) == (scope in allowed), (method, path, scope, answer)
            assert answer < 400 or answer == 403
    server.stop()


def test_others_are_not_let_in_without_a_key(context: Any, tiny: Path, tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        arguments = ["api", "--model", str(tiny), "--host", host, "--folder", str(tmp_path / "server")]
        with pytest.raises(
            UserError, match=r"can be reached by others, and the server has no API key \(run `ft keys create"
        ):
            CliRunner().invoke(serve_command, arguments, obj=context, catch_exceptions=False)
    assert not (tmp_path / "server").exists()
    (tmp_path / "server").mkdir()
    Keys(Records(Settings(tmp_path / "server", {}).database_url)).create("vision")
    with pytest.raises(UserError, match=r"keys and data would travel in the clear .give --certificate"):
        CliRunner().invoke(serve_command, arguments, obj=context, catch_exceptions=False)


def test_a_model_that_cannot_fit_is_not_served(
    context: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import finetooth_cpu.hardware as machine
    import finetooth_server.commands.serve as module

    listened: list[Any] = []
    monkeypatch.setattr(module, "_listen_and_serve", lambda service, *given, say: listened.append(service))
    arguments = ["api", "--model", str(tiny), "--port", "0", "--folder", str(tmp_path / "server")]
    for name in ("total_memory", "available_memory"):
        monkeypatch.setattr(machine, name, lambda: 2**20)
    with pytest.raises(PlanError, match=r"memory: the model would take .* and .* has 1 MB .*--accept-memory"):
        CliRunner().invoke(serve_command, arguments, obj=context, catch_exceptions=False)
    assert listened == [] and not (tmp_path / "server" / "service.db").exists()
    done = CliRunner().invoke(serve_command, [*arguments, "--accept-memory"], obj=context, catch_exceptions=False)
    assert done.exit_code == 0 and len(listened) == 1
    monkeypatch.undo()
    monkeypatch.setattr(module, "_listen_and_serve", lambda service, *given, say: listened.append(service))
    assert CliRunner().invoke(serve_command, arguments, obj=context, catch_exceptions=False).exit_code == 0


def test_ft_audit_verify(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    record = Audit(path, audit_key(tmp_path))
    for n in range(3):
        record.add("POST /x", tenant="team", outcome=str(200 + n))
    record.close()

    def run(*arguments: str) -> str:
        return (
            CliRunner().invoke(audit_command.command, ["verify", str(path), *arguments], catch_exceptions=False).output
        )

    said = run()
    assert re.fullmatch(r"3 lines, none changed; head [0-9a-f]{64}\n", said)
    assert run("--head", said.split()[-1]) == said
    path.write_text(path.read_text().replace('"201"', '"200"'))
    with pytest.raises(UserError, match=r"audit\.jsonl:2: its hash does not fit"):
        run()
