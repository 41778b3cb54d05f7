"""The adapters beside the packages that they are for, where those are installed: environments as their own guides write
them, and OpenEnv's own server on the loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetooth_gyms.openenv import OpenEnvOptions
from finetooth_gyms.openenv import build as build_openenv
from finetooth_gyms.verifiers import VerifiersOptions
from finetooth_gyms.verifiers import build as build_verifiers
from finetooth_hooks import Message, Task, Turn
from finetooth_hooks.testing.fake_context import FakeContext

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


def turn(text: str) -> Turn:
    return Turn(tuple(text.encode()), text, Message("assistant", text), stop="stop")


@pytest.mark.slow
def test_an_environment_of_verifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own loop, stop condition, rubric and monitor, two episodes at a time."""
    pytest.importorskip("verifiers")
    (tmp_path / "finetooth_sums.py").write_text(SUMS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    environment = build_verifiers(VerifiersOptions(id="finetooth-sums"), FakeContext(tmp_path))
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
    environment = build_openenv(OpenEnvOptions(url=served, shown="text"), FakeContext(tmp_path))
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
