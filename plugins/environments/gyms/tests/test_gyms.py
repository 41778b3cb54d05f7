"""Environments of others, spoken to through modules made by hand with their interfaces, and a resource server."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import httpx2 as httpx
import pytest
from finetooth_gyms.cookbook import CookbookOptions
from finetooth_gyms.cookbook import build as build_cookbook
from finetooth_gyms.loading import load
from finetooth_gyms.openenv import OpenEnvOptions
from finetooth_gyms.openenv import build as build_openenv
from finetooth_gyms.verifiers import VerifiersOptions
from finetooth_gyms.verifiers import build as build_verifiers
from finetooth_hooks import DataError, EngineError, Message, RecipeError, Task
from finetooth_kit import parametrize_with_checks
from finetooth_kit.fake_context import FakeContext
from finetooth_launching.ranks import free_port
from gym_stand_ins import ROW, ResourceServer, nemogym, turn


@parametrize_with_checks("finetooth_gyms.plugin")
def test_conforms(check: Any) -> None:
    check()


# --- NeMo Gym --------------------------------------------------------------------------------------------------------


def test_a_resource_server_gives_tools_and_the_reward(resources: ResourceServer, tmp_path: Path) -> None:
    """Two sessions side by side, each with a number of its own; the judge gets the whole response."""
    environment = nemogym(tmp_path, url=resources.url)
    task = Task((Message("user", "Reach 5."),), ROW)
    one, other = environment.episode(task, 0), environment.episode(task, 0)
    begun = one.begin()
    other.begin()
    assert begun.messages == task.prompt and begun.tools[0]["function"]["name"] == "add"
    answer = one.answer(turn("I add.", ("add", {"number": 2}), ("add", {"number": 3}), ("subtract", {})))
    assert answer.observation is not None and answer.reward is None
    shown = [one.content for one in answer.observation.messages]
    assert shown == ['{"total": 2}', '{"total": 5}', '{"error": "no tool subtract"}']
    assert (one.answer(turn("Done.")).reward, other.answer(turn("Done.")).reward) == (1.0, 0.0)
    one.close()
    other.close()
    verified = next(body for path, body in resources.asked if path == "/verify")
    kinds = [part["type"] for part in verified["response"]["output"]]
    assert kinds == ["message", *["function_call", "function_call_output"] * 3, "message"]
    assert verified["responses_create_params"] == ROW["responses_create_params"]


@pytest.mark.parametrize("path", ["/seed_session", "/add", "/verify"])
def test_a_resource_server_that_fails_is_no_reward(resources: ResourceServer, path: str, tmp_path: Path) -> None:
    resources.broken = path
    episode = nemogym(tmp_path, url=resources.url).episode(Task("Reach 5.", ROW), 0)
    with pytest.raises(OSError, match=f"{path} answers 500"):
        episode.begin()
        episode.answer(turn("", ("add", {"number": 1})))
        episode.answer(turn("Done."))
    episode.close()


def test_rows_without_the_parameters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"responses_create_params.*data\.format"):
        nemogym(tmp_path).episode(Task("Hi"), 0)


GYM = """
import http.server, os, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/end":
            print("the gym gives up", flush=True)
            os._exit(7)
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"reward": 0.25}')
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("in", os.getcwd(), flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""A gym of its own process, with a worker, that can be asked to end."""


@pytest.mark.slow
def test_a_gym_that_the_run_starts(tmp_path: Path) -> None:
    """In its folder, with its output kept; once it has ended, the next episode names the end of its output."""
    url, place = f"127.0.0.1:{free_port('127.0.0.1')}", tmp_path / "gym"
    place.mkdir()
    start = [sys.executable, "-c", GYM, url.rpartition(":")[2]]
    environment = nemogym(tmp_path, url=url, start=start, start_folder=str(place), ready=60)
    task = Task((Message("user", "Reach 5."),), ROW)
    episode = environment.episode(task, 0)
    episode.begin()
    assert episode.answer(turn("Done.")).reward == 0.25
    assert f"in {place}" in (tmp_path / "nemogym.log").read_text()
    with pytest.raises(RecipeError, match=rf"method\.environment\.start: another server has http://{url} already"):
        nemogym(tmp_path, url=url, start=start).episode(task, 0)
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"http://{url}/end", content=b"")
    running = environment._server._server._running
    assert running is not None
    assert running.wait(60) == 7
    with pytest.raises(EngineError, match=r"ended with 7; .*nemogym\.log ends: .*the gym gives up"):
        environment.episode(task, 0)
    environment._server.end()


@pytest.mark.parametrize(
    ("code", "ready", "said"),
    [("raise SystemExit('no such config')", 60, "ended with 1; .* ends: loading no such config"),
     ("import time; time.sleep(600)", 0.1, r"did not answer within 0\.1 s; .* ends: loading")],
)  # fmt: skip
@pytest.mark.slow
def test_a_gym_that_does_not_come_is_named(tmp_path: Path, code: str, ready: float, said: str) -> None:
    """And is ended: nothing of it runs afterwards. Its output follows that of an earlier process of the run."""
    (tmp_path / "nemogym.log").write_text("loading\n")
    start = [sys.executable, "-c", code]
    environment = nemogym(tmp_path, url=f"127.0.0.1:{free_port('127.0.0.1')}", start=start, ready=ready)
    with pytest.raises(EngineError, match=said):
        environment.episode(Task("Reach 5.", ROW), 0)
    assert not environment._server._server.runs


def test_a_gym_that_cannot_be_started_is_refused(tmp_path: Path) -> None:
    for options in ({"start": ["/no/such/ng_run"]}, {"start": [sys.executable], "start_folder": "/no/such/gym"}):
        environment = nemogym(tmp_path, url=f"127.0.0.1:{free_port('127.0.0.1')}", **options)
        with pytest.raises(RecipeError, match=r"method\.environment\.start: /no/such/\w+: No such file"):
            environment.episode(Task("Reach 5.", ROW), 0)


# --- the Tinker cookbook ---------------------------------------------------------------------------------------------


@dataclass
class Input:
    ids: list[int]

    def to_ints(self) -> list[int]:
        return self.ids


@dataclass
class StepResult:
    reward: float
    episode_done: bool
    next_observation: Input
    next_stop_condition: list[Any]
    metrics: dict[str, float] = field(default_factory=dict)


class CountingEnv:
    """Shows all tokens so far and a 7; three turns, a reward for each."""

    def __init__(self, row: Any) -> None:
        self.tokens, self.turns, self.row = [1, 2, 3], 0, row

    async def initial_observation(self) -> tuple[Input, list[Any]]:
        return Input(list(self.tokens)), [9]

    async def step(self, action: list[int], *, extra: Any = None) -> StepResult:
        await asyncio.sleep(0)
        self.turns += 1
        self.tokens += [*action, 7]
        done = self.turns == 3 or extra["stop_reason"] == "length"
        return StepResult(0.5, done, Input(list(self.tokens)), ["\n"], {"turns": 1})


def test_an_env_of_the_cookbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("counting_envs")
    module.make = lambda row, seed, tokenizer: CountingEnv(row)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counting_envs", module)
    environment = build_cookbook(CookbookOptions(env="counting_envs:make"), FakeContext(tmp_path))
    episode = environment.episode(Task("Hi", {"x": 1}), 0)
    begun = episode.begin()
    assert (begun.tokens, begun.stop, begun.stop_ids) == ((1, 2, 3), (), (9,))
    answer = episode.answer(turn("ab"))
    assert answer.observation is not None and answer.observation.tokens == (1, 2, 3, 97, 98, 7)
    assert (answer.observation.stop, answer.reward, answer.metrics) == (("\n",), 0.5, {"turns": 1.0})
    assert episode.answer(turn("c", stop="length")).observation is None


# --- OpenEnv ---------------------------------------------------------------------------------------------------------


class EchoClient:
    """A client of OpenEnv: sessions that echo, and end after two steps."""

    ended: ClassVar[list[str]] = []

    def __init__(self, base_url: str) -> None:
        self.url, self.steps = base_url, 0

    def sync(self) -> EchoClient:
        return self

    def connect(self) -> EchoClient:
        return self

    def disconnect(self) -> None:
        self.ended.append(self.url)

    def reset(self, **given: Any) -> Any:
        return SimpleNamespace(observation={"text": f"seed {given['seed']}"}, reward=None, done=False)

    def step(self, action: Any) -> Any:
        self.steps += 1
        said = {"text": f"you said {action['message']}"}
        return SimpleNamespace(observation=said, reward=float(len(action["message"])), done=self.steps == 2)


def test_an_environment_of_openenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("echo_client")
    module.EchoClient = EchoClient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "echo_client", module)
    options = OpenEnvOptions(url="http://127.0.0.1:1", client="echo_client:EchoClient", shown="text")
    episode = build_openenv(options).episode(Task("Play."), 4)
    assert episode.begin().messages == (Message("user", "Play.\n\nseed 4"),)
    answer = episode.answer(turn("abc"))
    assert answer.observation is not None and answer.observation.messages == (Message("user", "you said abc"),)
    assert answer.reward == 3.0 and episode.answer(turn("ab")).observation is None
    episode.close()
    assert EchoClient.ended == ["http://127.0.0.1:1"]


# --- verifiers -------------------------------------------------------------------------------------------------------


class Client:
    """As verifiers' abstract client begins."""

    def __init__(self, client: Any) -> None:
        self._client = client


class Rubric:
    has_group_rewards = False

    async def score_rollout(self, state: dict[str, Any]) -> None:
        said = [one for one in state["completion"] if one["role"] == "assistant"]
        state["reward"] = float(said[-1]["content"] == state["answer"])
        state["metrics"] = {"num_turns": float(len(said))}


class TheirEnvironment:
    """Asks its client for turns until one says `stop`; changes or breaks what was said before if told to."""

    rubric = Rubric()

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    async def rollout(self, given: dict[str, Any], client: Any, model: str, sampling_args: Any) -> dict[str, Any]:
        messages = [dict(one) for one in given["prompt"]]
        state: dict[str, Any] = {**given, "error": None}
        tools = [{"name": "look", "description": "", "parameters": {}}]
        while True:
            response = await client.get_response(prompt=messages, model=model, sampling_args={}, tools=tools)
            message = response.message
            messages.append({"role": "assistant", "content": message.content})
            if message.content == "stop" or message.is_truncated:
                break
            if self.fault == "raise":
                raise OSError("their board is gone")
            if self.fault == "error":
                state["error"] = ValueError("their tool failed")
                return state
            if self.fault == "change":
                messages[0] = {"role": "user", "content": "another question"}
            messages.append({"role": "user", "content": f"and then? {len(message.tool_calls or [])}"})
        state["completion"] = messages[len(given["prompt"]) :]
        return state


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with the interface of verifiers."""
    package, clients, types = (ModuleType(name) for name in ("theirs", "theirs.clients", "theirs.types"))
    package.load_environment = lambda id_, **given: TheirEnvironment(**given)  # type: ignore[attr-defined]
    clients.Client = Client  # type: ignore[attr-defined]
    for name in ("Response", "ResponseMessage", "ToolCall"):
        setattr(types, name, SimpleNamespace)
    for one in (package, clients, types):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    return "theirs"


def test_an_environment_of_verifiers(theirs: str, tmp_path: Path) -> None:
    """Two episodes in turns: each stands still while the policy writes."""
    environment = build_verifiers(VerifiersOptions(id="chat", package=theirs))
    one, other = (environment.episode(Task("Hello?", {"answer": "stop"}), 0) for _ in "ab")
    begun = one.begin()
    assert begun.messages == (Message("user", "Hello?"),) and begun.tools[0]["function"]["name"] == "look"
    assert other.begin() == begun
    answer = one.answer(turn("hm", ("look", {})))
    assert answer.observation is not None and answer.observation.messages == (Message("user", "and then? 1"),)
    assert other.answer(turn("cut", stop="length")).reward == 0.0
    ended = one.answer(turn("stop"))
    assert (ended.observation, ended.reward, ended.metrics) == (None, 1.0, {"num_turns": 2.0})
    one.close()
    other.close()


FAULTS = {
    "raise": "OSError: their board is gone",
    "error": "their tool failed",
    "change": "it changes earlier messages",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_in_verifiers_is_no_reward(theirs: str, tmp_path: Path, fault: str) -> None:
    options = VerifiersOptions(id="chat", package=theirs, arguments={"fault": fault})
    episode = build_verifiers(options).episode(Task("Hello?", {"answer": "stop"}), 0)
    episode.begin()
    with pytest.raises((RuntimeError, ValueError), match=FAULTS[fault]):
        episode.answer(turn("hm"))
    episode.close()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no_such_package is not installed"):
        build_verifiers(VerifiersOptions(id="x", package="no_such_package"))
    for reference, message in {
        "json": "names nothing", "json:nothing": "json has no nothing", "no_such_package:x": "which is not installed",
        "./no_file.py:x": "cannot be imported",
    }.items():  # fmt: skip
        with pytest.raises(RecipeError, match=message):
            load(reference, "method.environment.env")
