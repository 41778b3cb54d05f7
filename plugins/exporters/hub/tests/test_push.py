"""`ft push` against a hub on loopback: what is asked of it, what is sent, and what nobody sees."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SECRET = "hf_" + "s3cret" * 6
PROGRAM = """
import sys
from pathlib import Path
from click.testing import CliRunner
from finetooth_hub.push import command
from finetooth_hooks import FinetoothError

class Commands:
    def run_folder(self, reference):
        return Path(reference) if Path(reference).is_dir() else None
    def export(self, reference, pick, output=None):
        output.mkdir()
        (output / "README.md").write_text("# card of " + pick)
        (output / "config.json").write_text("{}")
        (output / "manifest.json").write_text("{}")
        return output

try:
    done = CliRunner().invoke(command, sys.argv[1:], obj=Commands(), catch_exceptions=False)
    print(done.output, end="")
    sys.exit(done.exit_code)
except FinetoothError as error:
    print("error:", error)
    sys.exit(error.exit_code)
"""


class Hub(ThreadingHTTPServer):
    """Speaks as much of the hub's protocol as an upload of small files takes."""

    def __init__(self, refuses: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.made: dict[str, Any] = {}
        self.refuses = refuses


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path))
        self.answer({"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        self.server.asked.append(("POST", self.path))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        base = f"http://127.0.0.1:{self.server.server_port}"
        if self.server.refuses:
            self.answer({"error": f"token {SECRET} has no rights"}, self.server.refuses)
        elif self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            self.answer({"url": f"{base}/me/mine"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    self.server.files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            url = f"{base}/me/mine/commit/{'1' * 40}"
            self.answer({"commitUrl": url, "commitOid": "1" * 40, "hookOutput": ""})
        else:
            self.answer({})


@pytest.fixture
def hub() -> Iterator[Any]:
    started: list[Hub] = []

    def start(refuses: int = 0) -> Hub:
        made = Hub(refuses)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        started.append(made)
        return made

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


def push(tmp_path: Path, port: int, *arguments: str, token: str = SECRET) -> tuple[int, str]:
    (tmp_path / "run" / "artifact").mkdir(parents=True, exist_ok=True)
    given = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        given.pop(name, None)
    if token:
        given["HF_TOKEN"] = token
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=given, check=False)
    assert SECRET not in done.stdout + done.stderr
    assert not [path for path in (tmp_path / "run").iterdir() if path.name != "artifact"]
    return done.returncode, done.stdout + done.stderr


def test_what_is_exported_arrives_with_its_card(tmp_path: Path, hub: Any) -> None:
    there = hub()
    code, said = push(tmp_path, there.server_port, str(tmp_path / "run"), "--to", "hf:me/mine")
    assert code == 0, said
    assert there.files == {"README.md": b"# card of vllm_lora", "config.json": b"{}"}
    assert there.made["name"] == "mine" and there.made["organization"] == "me"
    assert there.made.get("private") is True or there.made.get("visibility") == "private"
    assert there.tokens == {f"Bearer {SECRET}"}
    assert "pushed 2 files, " in said


def test_a_dry_run_lists_and_sends_nothing(tmp_path: Path, hub: Any) -> None:
    there = hub()
    to = ("--to", "hf:me/mine", "--dry-run", "--as", "gguf")
    code, said = push(tmp_path, there.server_port, str(tmp_path / "run"), *to, token="")
    assert code == 0 and there.asked == []
    assert "README.md" in said and "14 bytes" in said and "nothing was sent" in said and "manifest" not in said


@pytest.mark.slow
def test_what_cannot_be_pushed_is_one_line(tmp_path: Path, hub: Any) -> None:
    there = hub(refuses=403)
    run = str(tmp_path / "run")
    for arguments, token, code, problem in (
        ((run, "--to", "me/mine"), SECRET, 2, "--to: 'me/mine' names no repository"),
        ((run, "--to", "hf:mine"), SECRET, 2, "--to: 'hf:mine' names no repository"),
        ((run + "s", "--to", "hf:me/mine"), SECRET, 2, "no run has this name"),
        ((run, "--to", "hf:me/mine"), "", 2, "no token of the hub is known"),
        ((run, "--to", "hf:me/mine"), SECRET, 2, "the hub answered 403 for me/mine"),
    ):
        found, said = push(tmp_path, there.server_port, *arguments, token=token)
        assert found == code and problem in said and "Traceback" not in said, said
