"""Episodes that an agent server of NeMo Gym plays, against a server made by hand with its interface."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import httpx2 as httpx
import numpy as np
import pytest
from finetooth_gyms.loops import Loop
from finetooth_gyms.nemogym import NemoGym
from finetooth_gyms.nemogym_agent import AgentEpisode
from finetooth_hooks import Message, RecipeError, Rollout, Sampling, Task
from finetooth_hooks.data.examples import Parsed
from finetooth_hooks.rollouts import Prompt, Sampled
from finetooth_kit import ByteTokenizer
from finetooth_kit.fake_context import FakeContext, PlainRenderer
from finetooth_launching.ranks import free_port
from finetooth_methods.batched import Batches
from finetooth_rollouts.drawing import Drawing
from finetooth_rollouts.drawn import Drawn
from finetooth_rollouts.episodes import EpisodeTask, Playing
from finetooth_rollouts.judging import WeightedEnvironment
from finetooth_rollouts.options import RolloutOptions
from finetooth_rollouts.prompts import Prompts
from finetooth_rollouts.schedule import Schedule
from gym_stand_ins import ROW, ResourceServer, nemogym, turn

TLS = httpx.create_ssl_context()


class Agent:
    """An agent server as NeMo Gym's `simple_agent` (0.4.0): the loop of model, tools and judge behind `/run`. Like its
    own models it hands on what it read as the fields that it knows, with defaults filled in.

    Args:
        max_steps: turns after which it stops.
    """

    def __init__(self, policy: str, resources: str, max_steps: int = 9) -> None:
        self.policy, self.resources, self.max_steps = policy, resources, max_steps
        self.spoilt: Any = lambda items: items
        self.ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None: ...

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                try:
                    status, content = 200, agent.run(body)
                except (httpx.HTTPError, RuntimeError) as error:
                    status, content = 500, {"detail": str(error)}
                agent.ended.put(status)
                with suppress(OSError):  # who asked may be gone
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(json.dumps(content).encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def run(self, row: Any) -> Any:
        params = row["responses_create_params"]
        with httpx.Client(base_url=self.resources, timeout=60, verify=TLS) as gym:
            gym.post("/seed_session", json=row).raise_for_status()
            outputs: list[Any] = []
            for _ in range(self.max_steps):
                asked = {**params, "model": "policy", "input": self.spoilt([*params["input"], *outputs])}
                answer = httpx.post(f"http://{self.policy}/v1/responses", json=asked, timeout=60, verify=TLS)
                answer.raise_for_status()
                response = answer.json()
                outputs += [{**item, "status": None} for item in response["output"]]
                calls = [item for item in response["output"] if item["type"] == "function_call"]
                if response["incomplete_details"] or not calls:
                    break
                for call in calls:
                    result = gym.post(f"/{call['name']}", json=json.loads(call["arguments"])).text
                    outputs.append({"type": "function_call_output", "call_id": call["call_id"], "output": result})
            return gym.post("/verify", json={**row, "response": {**response, "output": outputs}}).json()


@pytest.fixture
def agent(resources: ResourceServer) -> Iterator[Agent]:
    made = Agent(f"127.0.0.1:{free_port('127.0.0.1')}", resources.url)
    yield made
    made.server.shutdown()
    made.server.server_close()


class Extending(PlainRenderer):
    """Every conversation only grows. A turn `add N` calls the tool."""

    extension = True

    def parse(self, tokens: Sequence[int]) -> Parsed:
        parsed = super().parse(tokens)
        _, calls, number = parsed.message.content.partition("add ")
        called = {"function": {"name": "add", "arguments": {"number": int(number)}}} if calls else None
        return replace(parsed, message=replace(parsed.message, tool_calls=(called,) if called else ()))


class Scripted:
    """Samples what a script says of the conversation so far; the numbers differ between rollouts of a group."""

    def __init__(self, tokenizer: ByteTokenizer, end: int) -> None:
        self._tokenizer, self._end, self.prompts = tokenizer, end, list[tuple[int, ...]]()

    def sample(self, engine: Any, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        rollouts: list[Rollout] = []
        for prompt in prompts:
            self.prompts.append(tuple(prompt.tokens))
            calls = self._tokenizer.decode(prompt.tokens).count("total")
            for k in range(sampling.n):
                text = f"add {2 + len(rollouts) % 2}" if calls < 2 else "Done."
                tokens = (*self._tokenizer.encode(text), self._end)
                drawn = tuple(-0.25 * (i + k + 1) for i in range(len(tokens)))
                rollouts.append(Rollout(prompt.id, prompt.group, tuple(prompt.tokens), tokens, drawn,
                                        (4,) * len(tokens), text, "stop"))  # fmt: skip
        return Sampled(tuple(rollouts))


def context_of(tmp_path: Path) -> Any:
    tokenizer = FakeContext(tmp_path).tokenizer
    return SimpleNamespace(
        renderer=Extending(tokenizer), tokenizer=tokenizer, facts=SimpleNamespace(max_positions=None),
        train=SimpleNamespace(max_length=10**4, batch_size=2),
        generator=lambda *keys: np.random.default_rng(crc32(repr(keys).encode())),
    )  # fmt: skip


def played(environment: NemoGym, tmp_path: Path, rows: int = 2, most_turns: int = 5) -> tuple[Any, Scripted]:
    """Two episodes of each row."""
    context = context_of(tmp_path)
    sampler: Any = Scripted(context.tokenizer, *context.renderer.stop_ids)
    tasks = [EpisodeTask(f"row:{i}", f"row:{i}@0", Task((Message("user", "Reach 5."),), ROW), i) for i in range(rows)]
    playing = Playing(context, environment, sampler, name="nemogym", most_turns=most_turns, limit=60)
    engine: Any = SimpleNamespace(first=lambda call: call())
    return playing.play(engine, tasks, Sampling(32, n=2), lambda turn: turn), sampler


@pytest.mark.slow
def test_an_agent_plays_what_the_run_would_play_itself(resources: ResourceServer, agent: Agent, tmp_path: Path) -> None:
    """Token for token: the same prompts are sampled, the same rollouts come out, with what tools said masked and the
    judge's reward as it is."""
    direct, theirs = played(nemogym(tmp_path, url=resources.url), tmp_path)
    environment = nemogym(tmp_path, agent=agent.url, policy=agent.policy)
    ours, asked = played(environment, tmp_path)
    assert ours.failures == [] and asked.prompts == theirs.prompts and ours.turns == 12

    def gist(episodes: Any) -> Any:
        return [[replace(rollout, transcript="") for rollout in episode] for episode in episodes]

    assert gist(ours.episodes) == gist(direct.episodes)
    tokenizer = ByteTokenizer()
    for number, (rollout,) in enumerate(ours.episodes):
        added = 2 + number % 2
        assert tokenizer.decode(rollout.of_policy(rollout.tokens), skip_special=True) == f"add {added}add {added}Done."
        said = [t for t, own in zip(rollout.tokens, rollout.own, strict=True) if not own]
        assert tokenizer.decode(said).count("total") == 2
        assert all(logprob == 0 for logprob, own in zip(rollout.logprobs, rollout.own, strict=True) if not own)
        assert all(logprob < 0 for logprob in rollout.of_policy(rollout.logprobs))
        assert (rollout.reward, rollout.metrics) == (0.0, {"calls": 2.0})


@pytest.mark.slow
def test_batches_are_the_same_with_and_without_prefetch(agent: Agent, tmp_path: Path) -> None:
    """Three steps: what is drawn ahead, while an agent waits for nothing, is what would be drawn in its turn."""
    environment = nemogym(tmp_path, agent=agent.url, policy=agent.policy)
    ids = [f"row:{i}" for i in range(6)]
    tasks = {id_: Task((Message("user", "Reach 5."),), {**ROW, "target": 4 + i % 3}) for i, id_ in enumerate(ids)}
    found: list[list[Rollout]] = []
    for ahead in (0, 1):
        context = context_of(tmp_path)
        sampler: Any = Scripted(context.tokenizer, *context.renderer.stop_ids)
        options = RolloutOptions(prefetch=ahead, num_generations=2, max_completion_length=32, max_turns=5)
        batches = Batches(len(ids), 2, 0, 3, 3)
        prompts = Prompts(len(ids), tasks, [(id_, (1,)) for id_ in ids])
        weighted = WeightedEnvironment("nemogym", environment, 1.0)
        drawing = Drawing(context, options, prompts, batches, sampler, [], Schedule(ahead, 1, None, False), weighted)
        indices, engine, trained = (
            iter(batches),
            SimpleNamespace(weights_version=4, first=lambda call: call()),
            list[Rollout](),
        )
        for step in range(3):
            drawn = Drawn()
            assert drawing.batch(engine, indices, drawn, remaining=3 - step)
            trained += drawn.rollouts
            drawing.go_ahead(engine, indices, left=1, remaining=3 - step)
        found.append(trained)
        drawing.stop()
    assert found[0] == found[1] and len(found[0]) == 12
    assert {rollout.reward for rollout in found[0]} == {0.0, 1.0}


def agents_episode(agent: Agent, tmp_path: Path, **columns: Any) -> tuple[NemoGym, Any]:
    environment = nemogym(tmp_path, agent=agent.url, policy=agent.policy)
    return environment, environment.episode(Task("Reach 5.", {**ROW, **columns}), 0)


def test_the_judges_reward_passes_unchanged(resources: ResourceServer, agent: Agent, tmp_path: Path) -> None:
    """And a turn that was cut off ends the episode without its calls."""
    _, episode = agents_episode(agent, tmp_path, target=2)
    assert episode.begin().tools[0]["function"]["name"] == "add"
    answer = episode.answer(turn("I add.", ("add", {"number": 2})))
    assert [(m.role, m.name, m.content) for m in answer.observation.messages] == [("tool", "add", '{"total": 2}')]
    assert episode.answer(turn("", ("add", {"number": 2}), stop="length")).reward == 1.0
    verified = next(body for path, body in resources.asked if path == "/verify")
    assert [item["type"] for item in verified["response"]["output"]] == [
        "message", "function_call", "function_call_output", "message",
    ]  # fmt: skip
    assert verified["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert {**verified["responses_create_params"], "metadata": None} == {
        **ROW["responses_create_params"], "metadata": None,
    }  # fmt: skip
    episode.close()


def test_an_agent_that_fails_is_no_reward(resources: ResourceServer, agent: Agent, tmp_path: Path) -> None:
    resources.broken = "/seed_session"
    environment, episode = agents_episode(agent, tmp_path)
    with pytest.raises(OSError, match="/run answers 500"):
        episode.begin()
    episode.close()
    resources.broken = ""
    agent.spoilt = lambda items: items[-2:]
    episode = environment.episode(Task("Reach 5.", ROW), 0)
    episode.begin()
    with pytest.raises(ValueError, match="changes earlier messages"):
        episode.answer(turn("I add.", ("add", {"number": 2})))
    episode.close()
    silent = threading.Event()
    agent.spoilt = lambda items: silent.wait(60) and items
    episode = AgentEpisode(Task("Reach 5.", ROW), agent.url, 0.05, environment._policy, Loop("silent"), TLS)
    with pytest.raises(OSError, match=r"neither asks for a turn nor ends within 0\.05 s"):
        episode.begin()
    silent.set()
    episode.close()


def test_an_agent_of_an_episode_that_was_left_is_refused(agent: Agent, tmp_path: Path) -> None:
    """The run's own bound of turns comes first: the agent waits for a turn, and is told that there is none."""
    environment = nemogym(tmp_path, agent=agent.url, policy=agent.policy)
    ours, _ = played(environment, tmp_path, rows=1, most_turns=2)
    assert [episode[-1].outcome for episode in ours.episodes] == ["turns", "turns"]
    assert [agent.ended.get(timeout=60) for _ in "ab"] == [500, 500]
    late = {"input": "Hi", "metadata": {"finetooth_episode": "gone"}}
    for body, status in ((late, 410), ({"input": "Hi"}, 400), ({}, 400)):
        assert httpx.post(f"http://{agent.policy}/v1/responses", json=body).status_code == status
    assert httpx.post(f"http://{agent.policy}/v1/chat/completions", json=late).status_code == 404


def test_an_address_that_is_taken_is_refused(agent: Agent, tmp_path: Path) -> None:
    taken = agent.url.removeprefix("http://")
    for policy in (taken, "127.0.0.1:many"):
        with pytest.raises(RecipeError, match=rf"method\.environment\.policy: nothing can listen at {policy}: \w+"):
            nemogym(tmp_path, agent=agent.url, policy=policy).episode(Task("Reach 5.", ROW), 0)
