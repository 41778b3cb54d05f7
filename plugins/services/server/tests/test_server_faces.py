"""A face that a plugin brings is served like any other entry: found in the catalog, blocked, missing, broken."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.cli import main
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_hooks import PluginError, UserError
from finetooth_server.faces import check, load, names

PLUGIN = '''
"""A face that says which bases are served."""
import json
from contextlib import nullcontext

from finetooth_hooks import CommandContext, Face, FaceBase, NoOptions, hookimpl


@hookimpl
def ft_faces():
    yield Face(name="bases", build=f"{__name__}:build", summary="names of the bases")


class Bases(FaceBase):
    path = "/bases"

    def app(self, service):
        async def answer(scope, receive, send):
            body = json.dumps(sorted(service.served)).encode()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})

        return answer, nullcontext()


def build(options: NoOptions, context: CommandContext) -> Bases:
    return Bases()
'''


@pytest.fixture
def stranger(tmp_path: Path) -> State:
    """A context of a user who named a local plugin file with a face."""
    file = tmp_path / "bases.py"
    file.write_text(PLUGIN)
    return State(StartOptions(plugins=(str(file),)))


def test_a_strangers_face_answers_at_its_path(stranger: State, recipe: dict[str, Any], tmp_path: Path) -> None:
    from fastapi.testclient import TestClient
    from finetooth_server.app import make_app
    from finetooth_server.service import Service
    from finetooth_server.settings import Settings

    assert "bases" in names(stranger)
    check(stranger, ["api", "bases"])
    service = Service(stranger, Settings(tmp_path / "server", {"tiny": recipe}, keyless=True))
    with TestClient(make_app(service, ("bases",)), base_url="http://127.0.0.1") as client:
        answer = client.get("/bases")
    assert (answer.status_code, json.loads(answer.content)) == (200, ["tiny"])


def test_a_strangers_face_passes_the_kit(stranger: State) -> None:
    from finetooth_kit import run_checks

    (face,) = (found.entry for found in stranger.catalog.all("face") if found.entry.name == "bases")
    results = run_checks(face)
    assert not [result for result in results if result.status == "failed"]
    assert any(result.check == "face_has_a_path_of_its_own" for result in results)


def test_the_kit_names_a_face_without_a_path(stranger: State, tmp_path: Path) -> None:
    from finetooth_kit import run_checks

    (tmp_path / "bases.py").write_text(PLUGIN.replace('path = "/bases"', 'path = "bases"'))
    (face,) = (found.entry for found in stranger.catalog.all("face") if found.entry.name == "bases")
    assert {r.check for r in run_checks(face) if r.status == "failed"} == {"face_has_a_path_of_its_own"}


def test_a_face_without_the_base_is_refused_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "bases.py"
    file.write_text(PLUGIN.replace("class Bases(FaceBase)", "class Bases"))
    with pytest.raises(PluginError, match=r"face 'bases' is a Bases.*derive it from finetooth_hooks\.FaceBase"):
        load(State(StartOptions(plugins=(str(file),))), "bases")


def test_stdio_is_for_a_face_that_says_so(
    stranger: State, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetooth_kit import run_checks
    from finetooth_server.commands.serve import command

    options = ["--stdio", "--model", recipe["model"], "--folder", str(tmp_path / "server")]
    assert "stdio" in load(stranger, "mcp").capabilities
    with pytest.raises(UserError, match=r"--stdio does not go with bases \(give one face that can"):
        command.main(["bases", *options], obj=stranger, standalone_mode=False)
    assert not (tmp_path / "server").exists()
    speaks = "class Bases(FaceBase):\n    async def stdio(self, service):\n        ...\n"
    (tmp_path / "bases.py").write_text(PLUGIN.replace("class Bases(FaceBase):\n", speaks))
    other = State(StartOptions(plugins=(str(tmp_path / "bases.py"),)))
    (face,) = (found.entry for found in other.catalog.all("face") if found.entry.name == "bases")
    assert "says_what_it_can_do" in {result.check for result in run_checks(face) if result.status == "failed"}


def test_a_face_that_is_not_there_is_named_with_the_remedy() -> None:
    with pytest.raises(PluginError, match=r"ft serve mpc: no face 'mpc'.*did you mean 'mcp'"):
        check(State(StartOptions()), ["mpc"])
    with pytest.raises(
        UserError,
        match=r"installed: api, tinker, .*mcp.* \(a model is named with --model: ft serve mcp --model smollm2",
    ):
        check(State(StartOptions()), ["mcp", "smollm2"])
    with pytest.raises(UserError, match=r"ft serve apj: no face 'apj' \(did you mean api\?\)"):
        check(State(StartOptions()), ["apj"])
    blocked = State(StartOptions(blocked=("finetooth-mcp",)))
    assert "mcp" not in names(blocked)
    with pytest.raises(PluginError, match=r"finetooth-mcp brings it and is blocked: leave out -p no:finetooth-mcp"):
        load(blocked, "mcp")


def test_a_run_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no such folder; in runs: runs/mine .*: ft serve api --model runs/mine\)"):
        check(State(StartOptions()), ["api", "runs/mime"])
    with pytest.raises(UserError, match=r"no face 'runs/mine'.*: ft serve api --model runs/mine\)"):
        check(State(StartOptions()), ["runs/mine", "api"])


def test_serve_refuses_it_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["-p", "no:finetooth-mcp", "serve", "mcp", "--model", "nothing"]) == 2
    assert "no face 'mcp'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_serve_says_where_a_strangers_face_is(
    stranger: State, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import uvicorn
    from click.testing import CliRunner
    from finetooth_server.commands.serve import command

    async def listens(self: uvicorn.Server, sockets: Any = None) -> None:
        self.started = True

    monkeypatch.setattr(uvicorn.Server, "startup", listens)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: asyncio.run(self.startup(sockets)))
    options = ["--model", recipe["model"], "--port", "0", "--folder", str(tmp_path / "server")]
    said = CliRunner().invoke(command, ["bases", *options], obj=stranger, catch_exceptions=False).output
    (url,) = re.findall(r"at (http://\S+) \(bases\)", said)
    assert f"bases: {url}/bases\n" in said


def test_a_face_is_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "list", "--kind", "face"]) == 0
    assert "face mcp" in capsys.readouterr().out
    assert main(["plugins", "explain", "face:mcp"]) == 0
    assert "when a server is started" in capsys.readouterr().out
