"""The board through a real HTTP client: pages, buttons, and who is refused."""

from __future__ import annotations

import os
import re
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from finetooth_board import command as module
from finetooth_board.app import make_app
from finetooth_hooks import Page, PageService, PluginError, UserError, install_command
from finetooth_saving.runs import processes
from finetooth_toolbox.files.locks import FILE as LOCK
from starlette.responses import HTMLResponse

EVIL = "<script>alert(1)</script>"
Serve = Callable[..., str]
MakeRun = Callable[..., Path]


def token_of(address: str) -> str:
    found = re.search(r'name="token" value="([^"]+)"', httpx.get(f"{address}/new").text)
    assert found is not None
    return found[1]


def post(address: str, path: str, **form: str) -> httpx.Response:
    given = {"token": token_of(address), **form}
    return httpx.post(f"{address}{path}", data=given, headers={"origin": address}, timeout=60)


class Tags(HTMLParser):
    """The tags of a page; they are closed in order, and none has a script or a style in an attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_run_is_shown_with_all_that_its_folder_says(serve: Serve, make_run: MakeRun) -> None:
    make_run("one", [2.0, 1.5, 1.0])
    make_run("sweep/trial-1", [3.0], status="failed")
    address = serve()
    listed = httpx.get(address).text
    assert 'href="/runs/one"' in listed and 'href="/runs/sweep/trial-1"' in listed and ">failed<" in listed
    shown = httpx.get(f"{address}/runs/one").text
    for part in ("3 of 4", "<svg", "exact_match", "before", "train.precision", "model: toy", ">done<"):
        assert part in shown, part
    live = httpx.get(f"{address}/runs/one/live").text
    assert "<polyline" in live and "<html" not in live and live in shown


def test_what_a_run_says_is_text_on_every_page(serve: Serve, make_run: MakeRun) -> None:
    make_run("one", [2.0], answer=EVIL)
    address = serve()
    for path in ("/", "/runs/one", "/runs/one/live"):
        answer = httpx.get(address + path)
        assert EVIL not in answer.text and "alert" in answer.text, path
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        Tags(answer.text)
    assert EVIL not in httpx.get(f"{address}/new", params={"data": EVIL}).text


def test_nothing_comes_from_elsewhere(serve: Serve, make_run: MakeRun) -> None:
    make_run("one", [2.0])
    address = serve()
    for path in ("/", "/new", "/runs/one", "/board.css", "/board.js"):
        answer = httpx.get(address + path)
        assert answer.status_code == 200
        assert "//" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace("// ", ""), path


@pytest.mark.parametrize(
    ("headers", "code"),
    [({"host": "evil.example"}, 403), ({"x-forwarded-for": "10.0.0.9"}, 403), ({"host": "localhost"}, 200)],
)
def test_a_board_without_a_key_is_for_this_machine(serve: Serve, headers: dict[str, str], code: int) -> None:
    assert httpx.get(serve(), headers=headers).status_code == code


def test_forms_of_other_pages_are_refused(serve: Serve, make_run: MakeRun) -> None:
    make_run("one", [2.0], status="stopped")
    address = serve()
    token = {"token": token_of(address)}
    url = f"{address}/runs/one/resume"
    assert httpx.post(url, data=token).status_code == 403, "no origin"
    assert httpx.post(url, data=token, headers={"origin": "http://evil.example"}).status_code == 403
    assert httpx.post(url, data=token, headers={"origin": "http://127.0.0.1:1"}).status_code == 403, "another port"
    cross = {"origin": address, "sec-fetch-site": "cross-site"}
    assert httpx.post(url, data=token, headers=cross).status_code == 403
    stale = httpx.post(url, data={"token": "x"}, headers={"origin": address})
    assert stale.status_code == 400 and "load the page again" in stale.text
    sent = httpx.post(f"{address}/files?name=a.csv", content=b"a", headers={"origin": address})
    assert sent.status_code == 403 and not Path("a.csv").exists()


def test_others_need_the_key(serve: Serve) -> None:
    key = "k" * 20
    address = serve(key.__eq__)
    assert httpx.get(address).status_code == 401
    assert httpx.get(address, auth=("me", "wrong")).status_code == 401
    assert httpx.get(address, auth=("me", key), headers={"host": "board.example"}).status_code == 200
    refused = CliRunner().invoke(module.command, ["--host", "0.0.0.0"], standalone_mode=False)
    assert isinstance(refused.exception, UserError) and "FT_BOARD_KEY" in str(refused.exception)
    short = {"env": {"FT_BOARD_KEY": "k"}, "standalone_mode": False}
    refused = CliRunner().invoke(module.command, ["--host", "0.0.0.0"], **short)
    assert isinstance(refused.exception, UserError) and "16 characters or more" in str(refused.exception)
    others = {"env": {"FT_BOARD_KEY": key}, "standalone_mode": False}
    refused = CliRunner().invoke(module.command, ["--host", "0.0.0.0"], **others)
    assert isinstance(refused.exception, UserError) and "would travel in the clear" in str(refused.exception)
    refused = CliRunner().invoke(module.command, ["--tls", "generated", "--certificate", __file__], **others)
    assert isinstance(refused.exception, UserError) and "two certificates" in str(refused.exception)


def test_a_key_of_ft_keys_opens_it_until_it_is_revoked(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the tenant `board` that may do everything: a tenant of a server must not run commands as its owner."""
    pytest.importorskip("finetooth_server", reason="keys are the server's")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FT_BOARD_KEY", raising=False)

    def made(tenant: str, scopes: str) -> str:
        command = [sys.executable, "-m", "finetooth", "keys", "create", "--tenant", tenant, "--scopes", scopes]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    other = made("vision", "admin")
    assert module._made_by_keys() is None, "no key of the board's tenant"
    assert module._keys_installed() == ""
    with monkeypatch.context() as without:
        without.setattr(module, "entry_points", lambda group: ())
        assert module._keys_installed() == f"`{install_command('finetooth-server')}`, then "
    reader, key = made("board", "read"), made("board", "admin")
    admits = module._made_by_keys()
    assert admits is not None
    address = serve(admits)
    assert [httpx.get(address, auth=("me", given)).status_code for given in (key, other, reader, "", key[:-1])] == [
        200, 401, 401, 401, 401,
    ]  # fmt: skip
    command = [sys.executable, "-m", "finetooth", "keys", "revoke", key.split("_")[1]]
    subprocess.run(command, capture_output=True, check=True)
    assert httpx.get(address, auth=("me", key)).status_code == 401
    refused = CliRunner().invoke(module.command, ["--host", "0.0.0.0"], standalone_mode=False)
    assert isinstance(refused.exception, UserError) and "would travel in the clear" in str(refused.exception)


def test_a_board_with_a_certificate_is_read_by_who_trusts_it(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forms work as without: the origin that a browser sends has the other scheme."""
    monkeypatch.chdir(tmp_path)
    make_run("one", [2.0])
    command = [
        sys.executable,
        "-u",
        "-m",
        "finetooth",
        "board",
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        "--tls",
        "generated",
    ]
    environment = {**os.environ, "FT_BOARD_KEY": "k" * 20}
    board = subprocess.Popen([*command, "--tls", "generated"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert board.stdout is not None
        port = board.stdout.readline().partition(" (")[0].rpartition(":")[2]
        certificate = re.search(r"^certificate (\S+), fingerprint [0-9a-f]{64}$", board.stdout.readline())
        assert certificate is not None
        board.stdout.readline()
        trusted = ssl.create_default_context(cafile=certificate[1])
        with httpx.Client(base_url=f"https://localhost:{port}", verify=trusted, auth=("me", "k" * 20)) as client:
            page = client.get("/runs/one")
            assert page.status_code == 200
            form = {"token": re.findall(r'name="token" value="([^"]+)"', client.get("/new").text)[0], "name": "one"}
            sent = client.post("/start", data=form, headers={"origin": f"https://localhost:{port}"})
            assert "there is a run" in sent.text
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"https://localhost:{port}")
        assert stat.S_IMODE(Path("runs/board/tls/key.pem").stat().st_mode) == 0o600
    finally:
        board.terminate()
        board.wait()
        board.stdout.close()


@pytest.mark.parametrize("name", ["%2e%2e/one", "a/b/c", "%2e%2e/x", ".hidden", "one%2f..%2fone"])
def test_nothing_outside_of_the_runs_is_reached(serve: Serve, make_run: MakeRun, name: str) -> None:
    make_run("one", [2.0])
    assert httpx.get(f"{serve()}/runs/{name}").status_code in (400, 404)


def test_uploaded_rows_are_kept_and_never_written_over(serve: Serve) -> None:
    address = serve()
    headers = {"origin": address, "x-board-token": token_of(address)}
    sent = httpx.post(f"{address}/files?name=my rows.csv", content=b"a,b\n", headers=headers)
    assert (sent.status_code, sent.text, Path("my_rows.csv").read_bytes()) == (200, "my_rows.csv", b"a,b\n")
    again = httpx.post(f"{address}/files?name=my_rows.csv", content=b"other", headers=headers)
    assert again.status_code == 400 and Path("my_rows.csv").read_bytes() == b"a,b\n"
    outside = httpx.post(f"{address}/files?name=..%2Fx.csv", content=b"a", headers=headers)
    assert outside.status_code == 400


STAND_IN = """
import sys
a = sys.argv[1:]
print('asked', *a)
print('error: no such model', file=sys.stderr)
for written in [x.partition('=')[2] for x in a if x.startswith('--output=')]:
    open(written, 'w').write('model: toy\\n')
sys.exit(2 if any('broken' in x for x in a) else 0)
"""


def test_a_run_is_begun_from_rows(serve: Serve, commands: list[tuple[str, ...]]) -> None:
    address = serve()
    form = {"name": "mine", "data": "rows.csv", "model": "toy", "prompt": "--yes", "completion": "b", "passes": "look"}
    proposed = post(address, "/new", **form)
    assert proposed.status_code == 200 and "model: toy" in proposed.text
    assert commands[0][:2] == ("init", "--yes")
    assert {"--data=rows.csv", "--prompt=--yes", "--completion=b", "--passes=look"} <= set(commands[0])
    begun = post(address, "/start", name="mine", recipe="model: toy\r\ntrain: {max_steps: 1}\r\n")
    assert (begun.status_code, begun.headers["location"]) == (303, "/runs/mine")
    assert Path("mine.yaml").read_bytes() == b"model: toy\ntrain: {max_steps: 1}\n"
    assert commands[-1] == ("run", "mine.yaml", "--output", "runs/mine")
    while "asked run" not in processes.output_of(Path("runs/mine")):
        time.sleep(0.01)
    assert "asked run mine.yaml" in httpx.get(f"{address}/runs/mine").text
    while not processes.is_free(Path("runs/mine")):
        time.sleep(0.01)
    assert "It did not begin" in httpx.get(f"{address}/runs/mine").text
    assert post(address, "/start", name="mine", recipe="model: toy\n").status_code == 303  # the corrected recipe
    assert Path("mine.yaml").read_bytes() == b"model: toy\n"
    while not processes.is_free(Path("runs/mine")):
        time.sleep(0.01)
    Path("runs/mine").mkdir()
    again = post(address, "/start", name="mine", recipe="model: toy\n")
    assert again.status_code == 400 and "there is a run" in again.text


def test_what_init_refuses_is_said_with_the_form_as_it_was(serve: Serve, commands: list[tuple[str, ...]]) -> None:
    address = serve()
    answer = post(address, "/new", name="mine", data="broken.csv", model="toy")
    assert answer.status_code == 400 and "asked init" in answer.text and 'value="broken.csv"' in answer.text
    assert post(address, "/new", name="a/b", data="x").status_code == 400


def test_an_error_is_shown_as_a_line_and_not_as_json_too(serve: Serve, commands: list[tuple[str, ...]]) -> None:
    answer = post(serve(), "/models", models="broken")
    assert answer.status_code == 400 and "error: no such model" in answer.text and "asked" not in answer.text


def test_what_import_prints_names_the_file_that_train_will_write(serve: Serve, commands: list[tuple[str, ...]]) -> None:
    """Not the scratch file of the board, which ends with it; seen in a first import."""
    shown = post(serve(), "/import", name="mine", data="axolotl.yml").text
    assert "asked import --output=mine.yaml" in shown and "model: toy" in shown


def test_a_run_is_stopped_as_by_ctrl_c_and_goes_on(
    serve: Serve, make_run: MakeRun, commands: list[tuple[str, ...]]
) -> None:
    folder = make_run("one", [2.0], status="unfinished")
    held = (
        "import fcntl, os, signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"f = open({str(folder / LOCK)!r}, 'w+')\nf.write(str(os.getpid()))\nf.flush()\n"
        "fcntl.flock(f, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    address = serve()
    assert ">Stop<" in httpx.get(f"{address}/runs/one").text
    assert post(address, "/runs/one/resume").status_code == 400, "it is under way"
    assert post(address, "/runs/one/stop").status_code == 303
    assert holder.wait(timeout=30) in (-signal.SIGINT, 1)
    holder.stdout.close()
    assert post(address, "/runs/one/stop").status_code == 400
    assert ">Resume<" in httpx.get(f"{address}/runs/one").text
    assert post(address, "/runs/one/resume").status_code == 303
    assert commands[-1] == ("resume", "runs/one")


def test_rows_are_made_once_and_may_stand_in_the_page(
    serve: Serve, make_run: MakeRun, commands: list[tuple[str, ...]]
) -> None:
    make_run("one", [2.0])
    address = serve()
    for _ in range(2):
        answer = httpx.get(f"{address}/runs/one/rows")
        assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert len(commands) == 1 and commands[0][:3] == ("data", "preview", "runs/one/recipe.yaml")


def test_of_many_runs_the_newest_are_listed(serve: Serve, make_run: MakeRun) -> None:
    for number in range(210):
        make_run(f"r{number:03}", [1.0])
    listed = httpx.get(serve(), timeout=60).text
    assert listed.count('<th scope="row">') == 100 and "110 older runs are not shown" in listed


class Brought:
    """A catalog with one page of another plugin, which answers with the address that it is asked for."""

    def __init__(self, name: str) -> None:
        self.catalog = self
        self._page = Page(name=name, build="acme:build", title=EVIL)

    def all(self, kind: str) -> Any:
        return (SimpleNamespace(entry=self._page, distribution="acme"),) if kind == "page" else ()

    def build(self, kind: str, pick: str, *, setting: str) -> Any:
        return SimpleNamespace(app=self._app)

    def _app(self, service: PageService) -> Any:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            body = (await receive()).get("body", b"")
            said = service.form(body).get("word") if scope["method"] == "POST" else scope["path"]
            if said == "wrong":
                raise UserError(f"no such word {EVIL}")
            await HTMLResponse(service.whole("Costs", f"<p>{said}</p>"))(scope, receive, send)

        return answer


def test_a_plugin_brings_a_page(serve: Serve) -> None:
    address = serve(context=Brought("costs"))
    home = httpx.get(address).text
    assert '<a href="/costs/">&lt;script&gt;' in home
    shown = httpx.get(f"{address}/costs/of/one")
    assert "/costs/of/one" in shown.text and "/board.css" in shown.text
    assert "script-src 'self'" in shown.headers["content-security-policy"]
    Tags(shown.text)
    assert "<p>dear</p>" in post(address, "/costs/", word="dear").text
    refused = post(address, "/costs/", word="wrong")
    assert refused.status_code == 400 and "no such word &lt;script&gt;" in refused.text
    stale = post(address, "/costs/", token="x", word="dear")
    assert stale.status_code == 400 and "load the page again" in stale.text
    foreign = {"origin": "http://evil.example"}
    assert httpx.post(f"{address}/costs/", data={"token": token_of(address)}, headers=foreign).status_code == 403
    assert "/costs/" not in httpx.get(serve()).text


def test_a_page_cannot_take_the_place_of_the_boards() -> None:
    with pytest.raises(PluginError, match=r"^acme: its page 'runs'"):
        make_app(Brought("runs"))  # type: ignore[arg-type]
