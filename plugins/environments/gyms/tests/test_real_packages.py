"""The adapters beside the packages that they are for, where those are installed: environments as their own guides write
them, OpenEnv's own server on the loopback, and a resource server of NeMo Gym's examples in a Python that has it
(`FT_NEMO_GYM`)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetooth_gyms.nemogym import NemoGym, NemoGymOptions
from finetooth_gyms.openenv import OpenEnvOptions
from finetooth_gyms.openenv import build as build_openenv
from finetooth_gyms.verifiers import VerifiersOptions
from finetooth_gyms.verifiers import build as build_verifiers
from finetooth_hooks import Message, Task, Turn
from finetooth_kit.fake_context import FakeContext
from finetooth_launching.ranks import free_port

SUMS = '''
import verifiers as vf
from datasets import Dataset

class Sums(vf.MultiTurnEnv):
    """Asks again until the answer is right."""

    @vf.stop
    async def is_right(self, state):
        said = [one for one in state.get("completion") or [] if one["role"] == "assistant"]
        last = state["trajectory"][-1]["completion"][-1]["content"] if state["trajectory"] else ""
        return last == state["answer"]

    async def env_response(self, messages, state, **_):
        return [{"role": "user", "content": f"{messages[-1]['content']} is wrong. Again?"}]

async def is_answer(completion, answer):
    return float(completion[-1]["content"] == answer)

def load_environment(fault=""):
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "2+3?"}], "answer": "5"}])
    return Sums(dataset=rows, rubric=vf.Rubric(funcs=[is_answer]), max_turns=3)
'''
ECHO = """
from openenv.core.env_server import Action, Environment, Observation, State

class Said(Action):
    message: str

class Heard(Observation):
    text: str

class Echo(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed=None, episode_id=None, **_):
        self.steps = 0
        return Heard(text=f"seed {seed}")

    def step(self, action, timeout_s=None, **_):
        self.steps += 1
        return Heard(text=f"you said {action.message}", reward=float(len(action.message)), done=self.steps == 2)

    @property
    def state(self):
        return State(step_count=self.steps)
"""


COUNTER = """
import sys
from unittest.mock import MagicMock
import uvicorn
from nemo_gym.server_utils import ServerClient
from resources_servers.example_session_state_mgmt import app as example

port = int(sys.argv[1])
config = example.StatefulCounterResourcesServerConfig(
    host="127.0.0.1", port=port, entrypoint="", name="counter", domain="agent"
)
server = example.StatefulCounterResourcesServer(config=config, server_client=MagicMock(spec=ServerClient))
uvicorn.run(server.setup_webserver(), host="127.0.0.1", port=port, log_level="error")
"""
"""NeMo Gym's own example with sessions, without the processes around it: tools that count, and a judge."""

AGENT = """
import asyncio, sys
import uvicorn
from nemo_gym.server_utils import BaseServerConfig, ServerClient
from omegaconf import OmegaConf
from resources_servers.example_session_state_mgmt import app as example
from responses_api_agents.simple_agent import app as agent
from responses_api_models.openai_model import app as model

def at(port, **more):
    return {"host": "127.0.0.1", "port": int(port), "entrypoint": "app.py", **more}

gym, model_port, agent_port, policy = sys.argv[1:]
del sys.argv[1:]  # NeMo Gym reads settings there
settings = {
    "counter": at(gym, domain="agent"),
    "policy_model": at(
        model_port, openai_base_url=f"http://{policy}/v1", openai_api_key="none", openai_model="policy"
    ),
    "agent": at(
        agent_port,
        resources_server={"type": "resources_servers", "name": "counter"},
        model_server={"type": "responses_api_models", "name": "policy_model"},
    ),
}
known = OmegaConf.create({name: {"kind": {"its": given}} for name, given in settings.items()})
client = ServerClient(head_server_config=BaseServerConfig(host="127.0.0.1", port=1), global_config_dict=known)
servers = []
for name, kind, config in (
    ("counter", example.StatefulCounterResourcesServer, example.StatefulCounterResourcesServerConfig),
    ("policy_model", model.SimpleModelServer, model.SimpleModelServerConfig),
    ("agent", agent.SimpleAgent, agent.SimpleAgentConfig),
):
    server = kind(config=config(name=name, **settings[name]), server_client=client)
    port = settings[name]["port"]
    servers.append(uvicorn.Server(uvicorn.Config(server.setup_webserver(), port=port, log_level="error")))

async def serve():
    await asyncio.gather(*(server.serve() for server in servers))

asyncio.run(serve())
"""
"""NeMo Gym's `simple_agent` with that example and its model server `openai_model`, all in one process."""


def turn(text: str, *calls: tuple[str, dict[str, Any]], stop: Any = "stop") -> Turn:
    made = tuple({"id": "", "function": {"name": name, "arguments": given}} for name, given in calls)
    return Turn(tuple(text.encode()), text, Message("assistant", text, tool_calls=made), stop=stop)


@pytest.mark.slow
def test_an_environment_of_verifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own loop, stop condition, rubric and monitor, two episodes at a time."""
    pytest.importorskip("verifiers")
    (tmp_path / "finetooth_sums.py").write_text(SUMS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    environment = build_verifiers(VerifiersOptions(id="finetooth-sums"))
    one, other = (environment.episode(Task("2+3?", {"answer": "5"}), 0) for _ in "ab")
    assert one.begin().messages == other.begin().messages == (Message("user", "2+3?"),)
    again = one.answer(turn("4"))
    assert again.reward is None and again.observation is not None
    assert again.observation.messages == (Message("user", "4 is wrong. Again?"),)
    ended = other.answer(turn("5"))
    assert (ended.observation, ended.reward, ended.metrics["num_turns"]) == (None, 1.0, 1.0)
    ended = one.answer(turn("5"))
    assert (ended.observation, ended.reward, ended.metrics["num_turns"]) == (None, 1.0, 2.0)
    one.close()
    other.close()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """OpenEnv's server of an environment that echoes."""
    servers = pytest.importorskip("openenv.core.env_server")
    uvicorn = pytest.importorskip("uvicorn")
    (tmp_path / "finetooth_echo.py").write_text(ECHO, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import finetooth_echo  # type: ignore[import-not-found]

    app = servers.create_fastapi_app(finetooth_echo.Echo, finetooth_echo.Said, finetooth_echo.Heard, 4)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="websockets-sansio"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.slow
def test_an_environment_of_openenv(served: str, tmp_path: Path) -> None:
    """Through its own client: two sessions at a time."""
    environment = build_openenv(OpenEnvOptions(url=served, shown="text"))
    one, other = (environment.episode(Task("Play."), seed) for seed in (4, 5))
    assert one.begin().messages == (Message("user", "Play.\n\nseed 4"),)
    assert other.begin().messages == (Message("user", "Play.\n\nseed 5"),)
    answer = one.answer(turn("abc"))
    assert answer.reward == 3.0 and answer.observation is not None
    assert answer.observation.messages == (Message("user", "you said abc"),)
    ended = one.answer(turn("ab"))
    assert ended.observation is None and ended.reward == 2.0
    one.close()
    other.close()


@pytest.fixture
def counter() -> Iterator[str]:
    """NeMo Gym's counter, in a Python that has it."""
    python = os.environ.get("FT_NEMO_GYM", "")
    if not python:
        pytest.skip("FT_NEMO_GYM names no Python with nemo-gym")
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        port = probing.getsockname()[1]
    process = subprocess.Popen([python, "-c", COUNTER, str(port)])
    try:
        for _ in range(1200):
            with socket.socket() as asking:
                if process.poll() is not None or asking.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        assert process.poll() is None, "the server ended"
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_a_resource_server_of_nemo_gym(counter: str, tmp_path: Path) -> None:
    """Two sessions at a time, each from the row's own number; a call with wrong arguments is told to the policy."""
    names = ("increment_counter", "get_counter_value")
    tools = [{"type": "function", "name": name, "parameters": {}, "strict": True} for name in names]
    params = {"input": [{"role": "user", "content": "Add 1, then 2, then say the count."}], "tools": tools}
    task = Task("Add.", {"responses_create_params": params, "initial_count": 3, "expected_count": 6})
    environment = NemoGym(NemoGymOptions(url=counter), FakeContext(tmp_path))
    one, other = environment.episode(task, 0), environment.episode(task, 0)
    assert [tool["function"]["name"] for tool in one.begin().tools] == list(names)
    other.begin()
    add, count = ("increment_counter", {"count": 1}), ("get_counter_value", dict[str, Any]())
    answer = one.answer(turn("", add, ("increment_counter", {"count": 2}), ("increment_counter", {}), count))
    assert answer.observation is not None
    said = [json.loads(message.content) for message in answer.observation.messages]
    assert said[:2] == [{"success": True}] * 2 and said[3] == {"count": 6}
    assert said[2]["detail"][0]["loc"] == ["body", "count"]
    answer = other.answer(turn("", add, count))
    assert answer.observation is not None and answer.observation.messages[1].content == '{"count":4}'
    assert (one.answer(turn("Six.")).reward, other.answer(turn("Four.")).reward) == (1.0, 0.0)
    one.close()
    other.close()


@pytest.mark.slow
def test_an_agent_of_nemo_gym(tmp_path: Path) -> None:
    """Started by the environment: two episodes at a time, their turns asked by NeMo Gym's own model server."""
    python = os.environ.get("FT_NEMO_GYM", "")
    if not python:
        pytest.skip("FT_NEMO_GYM names no Python with nemo-gym")
    ports = [str(free_port("127.0.0.1")) for _ in range(4)]
    agent, policy = f"127.0.0.1:{ports[2]}", f"127.0.0.1:{ports[3]}"
    start = [python, "-c", AGENT, *ports[:3], policy]
    options = NemoGymOptions(start=start, start_folder=str(tmp_path), agent=agent, policy=policy, timeout=60)
    environment = NemoGym(options, FakeContext(tmp_path))
    tools = [{"type": "function", "name": name, "parameters": {}, "strict": True}
             for name in ("increment_counter", "get_counter_value")]  # fmt: skip
    params = {"input": [{"role": "user", "content": "Add 1, then 2, then say the count."}], "tools": tools}
    task = Task("Add.", {"responses_create_params": params, "initial_count": 3, "expected_count": 6})
    one, other = environment.episode(task, 0), environment.episode(task, 0)
    begun = one.begin()
    assert begun == other.begin() and begun.messages == (Message("user", "Add 1, then 2, then say the count."),)
    assert [tool["function"]["name"] for tool in begun.tools] == ["increment_counter", "get_counter_value"]
    add, count = ("increment_counter", {"count": 1}), ("get_counter_value", dict[str, Any]())
    answer = one.answer(turn("I add.", add, ("increment_counter", {"count": 2}), ("increment_counter", {})))
    assert answer.observation is not None and answer.metrics == {"calls": 3.0}
    said = [json.loads(message.content) for message in answer.observation.messages]
    assert said[:2] == [{"success": True}] * 2 and said[2]["detail"][0]["loc"] == ["body", "count"]
    answer = one.answer(turn("", count))
    assert answer.observation is not None and answer.observation.messages[0].content == '{"count":6}'
    assert one.answer(turn("Six.")).reward == 1.0
    assert other.answer(turn("cut", stop="length")).reward == 0.0
    left = environment.episode(task, 0)
    left.begin()
    for episode in (one, other, left):
        episode.close()
    environment._server.end()
