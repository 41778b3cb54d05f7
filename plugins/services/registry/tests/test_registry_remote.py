"""A registry at a URL is the registry in the folder that is served, and nothing that it sends is taken on trust."""

from __future__ import annotations

import gzip
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import UserError, Verdict
from finetooth_registry import face, records, release_gates, remote
from finetooth_registry.anywhere import files_of
from finetooth_registry.registry import Registry
from finetooth_registry.remote import RemoteRegistry, open_registry
from finetooth_registry.verifying import verify_version
from finetooth_registry.writing import write_version
from finetooth_toolbox.files.manifests import sha256_of
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

ABOUT = {"base_digest": "b", "recipe_sha256": "r", "data": {"train": "d"}, "classification": {"customer_data": False}}

SETTINGS = {"exact": {"template": "user: {question}", "stop": ["</s>"], "max_tokens": 8}}


class Caller(SimpleNamespace):
    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


class Place:
    """A registry in a folder, and the same one at a URL, for a key with some scopes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.scopes, self.recorded = folder, {"read", "download", "train"}, list[str]()
        self.here = Registry.create(folder / "registry")
        self.here.trust("ci", records.make_key(folder / "ci.pem"))
        self.signer = records.load_signer(folder / "ci.pem")
        commands: Any = SimpleNamespace(
            build=lambda kind, pick, setting: release_gates.Signed(release_gates.SignedOptions())
        )
        service: Any = SimpleNamespace(record=lambda what, caller, model="": self.recorded.append(what))
        inner, _ = face.RegistryFace(commands, folder / "registry").app(service)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                scope["state"] = {"caller": Caller(tenant=face.LOCAL, scopes=self.scopes)}
            begun: list[str] = []

            async def counted(message: Any) -> None:
                begun.append(message["type"])
                await send(message)

            try:
                await inner(scope, receive, counted)
            except UserError as error:
                answer: Any = JSONResponse({"error": str(error)}, 400)
                if begun:  # a server breaks the answer off
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                else:
                    await answer(scope, receive, send)

        monkeypatch.setattr(remote.httpx, "Client", lambda base_url, **_: TestClient(app, base_url=base_url))
        self.there = RemoteRegistry("http://registry.example")

    def files(self, content: bytes = b"weights") -> dict[str, Path]:
        (self.folder / "weights").write_bytes(content)
        return {"artifact/weights": self.folder / "weights"}

    def add(self, content: bytes = b"weights", **more: Any) -> Any:
        return self.there.add("bot", self.files(content), {**ABOUT, **more}, self.signer, metrics={"eval/loss": 1.0})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_both_say_the_same(place: Place) -> None:
    version = place.add()
    place.there.measure(version, {"exact/accuracy": 0.5}, {"exact": [{"id": "1", "answer": "<b>"}]}, SETTINGS)
    assert place.there.versions() == place.here.versions() == [version]
    assert place.there.versions(artifact="0" * 64) == place.here.versions(artifact="0" * 64) == []
    assert place.there.metrics(version) == place.here.metrics(version)
    assert place.there.settings(version) == place.here.settings(version) == SETTINGS
    assert place.there.events() == place.here.events() and place.there.check_log() == 3
    assert place.there.record(version) == place.here.record(version)
    assert place.there.policy == place.here.policy
    assert place.there.trusted().keys() == {"ci"}
    assert list(verify_version(place.there, version)) == list(verify_version(place.here, version))
    written = write_version(place.there, version, place.folder / "out")
    assert (written / "artifact/weights").read_bytes() == b"weights"
    assert place.recorded == ["registry admission", "registry blob", "registry version", "registry metrics"]


def test_a_large_file_comes_in_parts_and_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART", 1000)
    content = os.urandom(3501)
    assert place.add(content).number == 0
    assert place.add(content).number == 1
    assert place.recorded.count("registry blob") == 1
    assert place.here.blobs.read(place.there.blobs.put(place.files(b"")["artifact/weights"])) == b""


def test_gates_are_asked_where_the_registry_lies(place: Place) -> None:
    version = place.add()
    with pytest.raises(UserError, match="lacks the scope admin"):
        place.there.promote(version, "production", dry_run=False)
    place.scopes = {"admin"}
    passed, said = place.there.promote(version, "production", dry_run=True)
    assert passed and said == {"1 signed": Verdict(True, "signed by ci", said["1 signed"].evidence)}
    assert place.here.in_channel("bot", "production") is None
    assert place.there.promote(version, "production", dry_run=False)[0]
    assert place.here.in_channel("bot", "production") == place.there.version("bot@production")
    second = place.add()
    assert place.there.promote(second, "production", dry_run=False)[0]
    assert place.there.roll_back("bot", "production", "complaints").number == 0
    place.there.revert(place.there.version("bot@v1"), "worse")
    assert place.here.version("bot@v1").status == "reverted"
    assert place.there.watched(version, "production", {"m": 1.0}, {"1 x": Verdict(True, "fine")}) == 1


def test_customer_data_are_refused_before_a_byte_is_sent(place: Place) -> None:
    with pytest.raises(UserError, match="accepts no customer data"):
        place.add(classification={"customer_data": True})
    assert "registry blob" not in place.recorded and not (place.folder / "registry/blobs").exists()
    assert place.here.events()[-1].kind == "refused"
    with pytest.raises(UserError, match="accepts no customer data"):
        place.there.admit("bot", {"classification": {}})
    place.there.admit("bot", ABOUT)
    assert [event.kind for event in place.here.events()] == ["key trusted", "refused", "refused"]


def test_a_number_that_was_taken_is_signed_anew(place: Place) -> None:
    place.add()
    asked = place.there._server.ask
    taken: list[int] = []

    def ask(method: str, path: str, **parts: Any) -> Any:
        if path == "/versions/bot/1" and not taken:
            taken.append(1)
            place.here.add("bot", place.files(b"other"), ABOUT, None, metrics={})
        return asked(method, path, **parts)

    place.there._server.ask = ask  # type: ignore[method-assign]
    assert place.add().number == 2 and taken
    assert [version.number for version in place.here.versions()] == [0, 1, 2]
    assert all(link.holds for link in verify_version(place.here, place.here.version("bot@v2")))


def lost(place: Place) -> None:
    next((place.folder / "registry/blobs").glob("??/*")).unlink()


@pytest.mark.parametrize(
    ("method", "path", "parts", "said"),
    [
        ("POST", "/versions/bot/7", {"json": {"record": "{}", "metrics": {}}}, "cannot be read"),
        ("POST", "/versions/bot/0", {"json": {"record": "{}", "metrics": {}, "by": "me"}}, "by: unknown field"),
        ("POST", "/versions/bot/0", {"json": {"record": "{}", "metrcs": {}}}, "metrcs: unknown .*did you mean metrics"),
        ("POST", "/versions/bot/0/revert", {"json": {"why": "x"}}, "lacks the scope admin"),
        ("POST", "/channels/bot/production/rollback", {"json": {"why": "x"}}, "lacks the scope admin"),
        ("PUT", "/blobs/../../etc", {"params": {"upload": "x", "offset": 0, "size": 1}}, "status 40|not a SHA-256"),
        ("PUT", f"/blobs/{'a' * 64}", {"params": {"upload": "../x", "offset": 0, "size": 0}}, "that cannot be"),
        ("PUT", f"/blobs/{'a' * 64}", {"params": {"upload": "a" * 32, "offset": 5, "size": 9}}, "is missing"),
        ("PUT", f"/blobs/{'a' * 64}", {"params": {"upload": "a" * 32, "offset": 0, "size": 0}}, "was changed"),
        ("PUT", f"/blobs/{'a' * 64}", {"params": {"offset": "x"}}, "numbers are needed"),
        ("GET", f"/blobs/{'a' * 64}", {}, "is missing"),
        ("GET", "/blobs/registry.db", {}, "not a SHA-256"),
        ("POST", "/admission", {"content": b"[" * 100_000}, "body: Invalid JSON"),
        ("POST", "/keys", {}, "status 405"),
    ],
)
def test_what_a_stranger_sends_is_refused(place: Place, method: str, path: str, parts: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        place.there._server.ask(method, path, **parts)
    assert place.here.versions() == []
    assert not [file for file in (place.folder / "registry").rglob("*") if re.fullmatch("[0-9a-f]{64}", file.name)]


def test_a_record_of_another_version_or_without_files_is_refused(place: Place) -> None:
    content = records.statement({"weights": "a" * 64}, {"name": "bot", "number": 0, **ABOUT})
    for number, said in ((1, "the record is of bot@v0"), (0, "the file weights is not stored")):
        sent = {"record": records.sign(content, place.signer).decode(), "metrics": {}}
        with pytest.raises(UserError, match=said):
            place.there._server.ask("POST", f"/versions/bot/{number}", json=sent)
    assert place.here.versions() == []


def test_a_signature_is_added_and_nothing_else(place: Place) -> None:
    version = place.add()
    place.here.trust("boss", records.make_key(place.folder / "boss.pem"))
    boss = records.load_signer(place.folder / "boss.pem")
    assert place.there.countersign(version, boss) == ("boss", "ci")
    signed = place.there.version("bot")
    other = records.statement({}, {"name": "bot", "number": 0, "base_digest": "evil"})
    with pytest.raises(UserError, match="says something else"):
        place.there.replace_record(signed, records.sign(other, boss))
    with pytest.raises(UserError, match="lacks a signature"):
        place.there.replace_record(signed, place.here.blobs.read(version.record))
    with pytest.raises(UserError, match="somebody else meanwhile"):
        place.here.replace_record(version, place.here.record(signed))


def test_a_record_that_the_server_changed_is_not_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    version = place.add()
    monkeypatch.setattr(Registry, "record", lambda self, version: b"{}")
    with pytest.raises(UserError, match="the record of bot@v0 was changed"):
        place.there.record(version)


def test_a_blob_that_the_server_changed_is_not_kept(place: Place) -> None:
    version = place.add()
    sha256 = records.read(place.here.record(version))["subject"][0]["digest"]["sha256"]
    place.here.blobs.path(sha256).write_bytes(b"evil!!!")
    for refused in (place.there.blobs.read, place.there.blobs.check):
        with pytest.raises(UserError, match="was changed"):
            refused(sha256)
    with pytest.raises(UserError, match="was changed"):
        place.there.blobs.copy(sha256, place.folder / "copy")
    assert not (place.folder / "copy").exists()


@pytest.mark.parametrize(
    ("content", "headers", "said"),
    [
        (b"[" * 100_000, {}, "answers with no JSON"),
        (gzip.compress(b"[" + b" " * 2**20 + b"]"), {"Content-Encoding": "gzip"}, "in a packed form"),
        (b" " * 5000, {}, "answers with more than"),
    ],
)
def test_an_answer_that_is_deep_packed_or_endless_is_one_line(
    monkeypatch: pytest.MonkeyPatch, content: bytes, headers: dict[str, str], said: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Response(content, headers=headers)(scope, receive, send)

    monkeypatch.setattr(remote, "LARGEST", 4096 if said.endswith("more than") else 2**20)
    monkeypatch.setattr(remote.httpx, "Client", lambda base_url, **_: TestClient(app, base_url=base_url))
    with pytest.raises(UserError, match=said):
        RemoteRegistry("http://registry.example").versions()


def test_what_is_no_server_is_one_line(tmp_path: Path) -> None:
    for where, said in (("http://127.0.0.1:9", "check the URL"), (str(tmp_path), "holds no registry")):
        with pytest.raises(UserError, match=said):
            open_registry(where).versions()


# --- a server of its own ----------------------------------------------------------------------------------------------


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts `ft registry serve`; says where."""
    running: list[subprocess.Popen[str]] = []

    def start(port: str = "0") -> tuple[subprocess.Popen[str], str]:
        words = ["registry", "serve", "--registry", str(tmp_path / "registry"), "--folder", str(tmp_path / "s")]
        words += ["--port", port, "--tenant-requests", "1000"]
        process = subprocess.Popen(
            [sys.executable, "-m", "finetooth", *words], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        running.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if said := re.search(r"at (http://\S+)", line):
                return process, said[1]
        raise AssertionError("the server has ended")

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(params=["SQLite and a folder", pytest.param("PostgreSQL and a bucket", marks=pytest.mark.thorough)])
def written(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """An empty registry, which a server in another process opens too."""
    if request.param == "SQLite and a folder":
        yield Registry.create(tmp_path / "registry")
        return
    pytest.importorskip("boto3", reason="boto3 is not installed")
    servers = pytest.importorskip("moto.server", reason="moto is not installed, which is the S3 server")
    postgres, name = request.getfixturevalue("postgres"), f"registry_{secrets.token_hex(4)}"
    postgres.execute(f"CREATE DATABASE {name}")
    environment = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_CONFIG_FILE": os.devnull}
    for variable, value in {**environment, "FT_TEST_PG": postgres.password}.items():
        monkeypatch.setenv(variable, value)
    started = servers.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    endpoint = "http://{}:{}".format(*started.get_host_and_port())
    pytest.importorskip("boto3").client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(
        Bucket="blobs"
    )
    bucket = f"s3://blobs/team?endpoint={endpoint}&region=us-east-1"
    yield Registry.create(tmp_path / "registry", f"{postgres.url.rpartition('/')[0]}/{name}", bucket)
    started.stop()


@pytest.mark.slow
def test_fifty_writers_and_a_server_killed_twenty_times(
    serve: Any, written: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty writers register all the time, and try again while the server is away: no version whose registration was
    answered is lost, and every version that is there is whole."""
    here = written
    monkeypatch.delenv("FT_REGISTRY", raising=False)
    process, url = serve()
    over, progress = threading.Event(), threading.Semaphore(0)
    answered: dict[str, str] = {}
    failed: list[UserError] = []
    broken: list[BaseException] = []

    def write(writer: int) -> None:
        registry, file, count = RemoteRegistry(url), tmp_path / f"weights-{writer}", 0
        model = f"bot-{writer % 10}"
        while not over.is_set():
            file.write_bytes(f"{writer} {count} ".encode() * 10_000)
            try:
                version = registry.add(model, {"weights": file}, ABOUT, None, metrics={"m": 1.0})
            except UserError as error:
                failed.append(error)
                over.wait(1.0)  # a server that starts needs the processor
                continue
            except BaseException as error:
                broken.append(error)
                raise
            if version.called in answered:
                broken.append(AssertionError(f"two writers got {version.called}"))
            answered[version.called], count = sha256_of(file), count + 1
            progress.release()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    try:
        for kill in range(20):
            for _ in range(1 + kill % 5):  # at another moment each time
                assert progress.acquire(timeout=300), "nothing is registered any more"
            process.send_signal(signal.SIGKILL)
            process.wait()
            while progress.acquire(blocking=False):
                pass
            process, _ = serve(url.rpartition(":")[2])
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not broken and len(failed) >= 20
    versions = here.versions()
    for model in {version.model for version in versions}:
        mine = here.versions(model)
        assert [version.number for version in mine] == list(range(len(mine)))
    assert len(answered) <= len(versions) <= len(answered) + len(failed)  # an answer may be lost, no version is
    assert here.check_log() == len(versions) == len(here.events(kinds=("registered",)))
    stored = {version.called: files_of(records.read(here.record(version)))["weights"] for version in versions}
    assert answered.items() <= stored.items()
    for version in versions:
        links = {link.what: link.holds for link in verify_version(here, version, whole=False)}
        assert links.pop("signature") is False and all(links.values()), (version, links)
        assert here.metrics(version)[0].keys() == {"m"}
