"""`ft registry serve` as others reach it: over TLS, with keys, by a plain HTTP client and by that of the command."""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from click.testing import CliRunner
from finetooth_hooks import UserError
from finetooth_registry import records
from finetooth_registry.anywhere import files_of
from finetooth_registry.face import RegistryFace
from finetooth_registry.registry import Registry
from finetooth_registry.remote import KEY, RemoteRegistry
from finetooth_registry.verifying import verify_version

pytest.importorskip("finetooth_server", reason="finetooth-server is not installed")
pytestmark = pytest.mark.slow
ABOUT = {"base_digest": "b", "recipe_sha256": "r", "data": {"train": "d"}, "classification": {"customer_data": False}}
SCOPES = ("read", "download", "train", "sample", "admin")


@dataclass
class Served:
    """A server process with a registry, a key of each scope for one tenant, and one of another tenant."""

    folder: Path
    url: str = ""
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def certificate(self) -> Path:
        return self.folder / "server/tls/certificate.pem"

    def ft_keys(self, *words: str) -> str:
        from finetooth_server.commands.keys import command

        done = CliRunner().invoke(command, [*words, "--folder", str(self.folder / "server")])
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    def ask(self, key: str | None, method: str, path: str, **parts: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        context = ssl.create_default_context(cafile=self.certificate)
        with httpx.Client(base_url=f"{self.url}/registry", headers=headers, verify=context) as client:
            return client.request(method, path, **parts)

    def audit(self) -> list[Mapping[str, Any]]:
        return [json.loads(line) for line in (self.folder / "server/audit.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("served"))
    Registry.create(made.folder / "registry")
    Registry.create(made.folder / "registry/tenants/team").trust("ci", records.make_key(made.folder / "ci.pem"))
    for scope in SCOPES:
        made.keys[scope] = made.ft_keys("create", "--tenant", "team", "--scopes", scope)
    made.keys["rival"] = made.ft_keys("create", "--tenant", "Team", "--scopes", "admin")
    words = ["registry", "serve", "--registry", str(made.folder / "registry"), "--folder", str(made.folder / "server"),
             "--host", "0.0.0.0", "--port", "0", "--tls", "generated", "--address-requests", "1000"]  # fmt: skip
    state = {**os.environ, "XDG_STATE_HOME": str(made.folder / "state")}
    process = subprocess.Popen(
        [sys.executable, "-m", "finetooth", *words], stdout=subprocess.PIPE, text=True, cwd=made.folder, env=state
    )
    try:
        assert process.stdout is not None
        port = next(found[1] for line in process.stdout if (found := re.search(r"at https://\S+?:(\d+)", line)))
        made.url = f"https://localhost:{port}"
        yield made
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def remote(served: Served, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client with the key of a scope, as the command makes it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(served.certificate))

    def make(scope: str) -> RemoteRegistry:
        monkeypatch.setenv(KEY, served.keys[scope])
        return RemoteRegistry(served.url)

    return make


def add(registry: RemoteRegistry, served: Served, content: bytes) -> Any:
    (served.folder / "weights").write_bytes(content)
    signer = records.load_signer(served.folder / "ci.pem")
    return registry.add("bot", {"artifact/weights": served.folder / "weights"}, ABOUT, signer, metrics={"m": 1.0})


def test_every_route_asks_for_a_key_and_for_its_scope(served: Served) -> None:
    """The routes are those of the face, so that a new one is in here by itself."""
    for route in RegistryFace.routes:
        path = route.path.replace("{number:int}", "7").replace("{sha256}", "a" * 64)
        path = path.replace("{model}", "nobody").replace("{channel}", "production")
        for key in (None, "ft_000000000000_" + "0" * 64):
            assert served.ask(key, route.method, path).status_code == 401, (route, key)
        for scope in SCOPES:
            key = served.keys[scope]
            allowed = scope in route.scopes or scope == "admin"
            status = served.ask(key, route.method, path).status_code
            assert (status in (401, 403)) is not allowed, (route, scope, status)
    assert served.ask(served.keys["admin"], "GET", "/versions").json() == []


def test_a_version_goes_over_tls_and_each_key_of_the_tenant_sees_it(served: Served, remote: Any) -> None:
    version = add(remote("train"), served, b"one")
    for scope in ("read", "admin"):
        assert remote(scope).versions() == [version]
        assert records.read(remote(scope).record(version))["predicate"]["name"] == "bot"
    (weights,) = (link for link in verify_version(remote("read"), version) if link.what == "artifact/weights")
    assert not weights.holds and "lacks the scope download" in weights.said
    with pytest.raises(UserError, match="lacks the scope admin"):
        remote("train").promote(version, "production", dry_run=False)
    assert all(link.holds for link in verify_version(remote("admin"), version) if link.what != "channels")
    passed, verdicts = remote("admin").promote(version, "production", dry_run=False)
    assert passed and list(verdicts) == ["1 signed"]
    assert remote("read").version("bot@production").number == version.number


def test_a_tenant_neither_sees_nor_changes_what_another_one_has(served: Served, remote: Any) -> None:
    secret = os.urandom(1000)
    version = add(remote("admin"), served, secret)
    remote("admin").measure(version, {"exact": 1.0}, {"exact": [{"id": "1", "answer": "theirs"}]})
    assert remote("admin").promote(version, "production", dry_run=False)[0]
    before, rival = remote("admin").events(), remote("rival")
    blobs = set(files_of(records.read(remote("admin").record(version))).values()) | {version.record}
    blobs |= {event.detail["signed"] for event in before if "signed" in event.detail}
    assert hashlib.sha256(secret).hexdigest() in blobs
    assert (rival.versions(), rival.events(), rival.trusted(), rival.released()) == ([], [], {}, [])
    for path in {f"/blobs/{sha256}" for sha256 in blobs}:
        theirs, nobodys = (served.ask(served.keys["rival"], "GET", each) for each in (path, f"/blobs/{'a' * 64}"))
        assert theirs.status_code == nobodys.status_code == 404
        assert served.ask(served.keys["admin"], "GET", path).status_code == 200
    here = f"/versions/bot/{version.number}"
    for method, path, body in [
        ("GET", f"{here}/metrics", None),
        ("POST", f"{here}/metrics", {"metrics": {"exact": 0.0}, "answers": {}}),
        ("POST", f"{here}/revert", {"why": "x"}),
        ("POST", f"{here}/hold", {"channel": "production", "why": "x"}),
        ("POST", f"{here}/promote", {"channel": "candidate"}),
        ("POST", f"{here}/record", {"record": "{}"}),
        ("POST", "/channels/bot/production/rollback", {"why": "x"}),
    ]:
        refused = served.ask(served.keys["rival"], method, path, **({} if body is None else {"json": body}))
        assert refused.status_code == 400 and "bot" in refused.json()["error"], path
    record = remote("admin").record(version).decode()
    sent = {"model": "bot", "about": ABOUT, "blobs": sorted(blobs)}
    assert served.ask(served.keys["rival"], "POST", "/admission", json=sent).json() == {"missing": sorted(blobs)}
    taken = served.ask(served.keys["rival"], "POST", here, json={"record": record, "metrics": {}})
    assert taken.status_code == 400 and "is not stored" in taken.json()["error"]
    assert remote("admin").events() == before
    own = add(remote("rival"), served, secret)  # the same name and content are another's version 0
    assert (own.number, [one.called for one in remote("rival").versions()]) == (0, ["bot@v0"])
    assert remote("rival").check_log() == 1 and remote("admin").check_log() == len(before)
    assert not records.signers_of(remote("rival").record(own), remote("rival").trusted())
    assert Registry(served.folder / "registry").versions() == []
    policy = served.folder / "registry/policy.yaml"
    kept = policy.read_text()
    try:
        policy.write_text("channels: {one: {}}")  # that of the served registry is everybody's
        assert [list(remote(key).policy.channels) for key in ("rival", "admin")] == [["one"], ["one"]]
    finally:
        policy.write_text(kept)


def test_the_audit_record_names_who_changed_what_and_holds_no_content(served: Served, remote: Any) -> None:
    begin = len(served.audit())
    version = add(remote("train"), served, b"two")
    remote("admin").promote(version, "candidate", dry_run=False)
    with pytest.raises(UserError, match="lacks the scope"):
        remote("sample").versions()
    lines = served.audit()[begin:]
    changes = [(line["event"], line["tenant"], line["model"]) for line in lines if line["event"].startswith("registry")]
    assert changes == [
        ("registry admission", "team", ""),
        ("registry blob", "team", ""),
        ("registry version", "team", "bot"),
        ("registry promote", "team", "bot"),
    ]
    ids = {key.split("_")[1] for key in served.keys.values()}
    assert {line["key"] for line in lines if line["event"].startswith("registry")} <= ids
    text = (served.folder / "server/audit.jsonl").read_text()
    assert not any(key.split("_")[2] in text for key in served.keys.values()) and "payload" not in text
    from finetooth_server.commands.audit import command

    verified = CliRunner().invoke(command, ["verify", str(served.folder / "server/audit.jsonl")])
    assert verified.exit_code == 0, verified.output


def test_a_key_that_was_revoked_opens_nothing(served: Served) -> None:
    key = served.ft_keys("create", "--tenant", "gone", "--scopes", "admin")
    assert served.ask(key, "GET", "/versions").status_code == 200
    served.ft_keys("revoke", key.split("_")[1])
    assert served.ask(key, "GET", "/versions").status_code == 401


def test_who_does_not_trust_the_certificate_is_told_what_to_do_and_sends_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, served.keys["admin"])
    before = served.audit()
    with pytest.raises(UserError, match=r"certificate.*set SSL_CERT_FILE") as told:
        RemoteRegistry(served.url).versions()
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="check the URL"):
        RemoteRegistry(served.url.replace("https", "http")).versions()
    assert served.audit() == before
