"""An environment of verifiers (0.1.14), as it is: its own `rollout` runs, and our policy answers as its client.

Verifiers' environments drive: they ask a client for each turn. Here that client waits until the policy has written the
turn, so an episode stands still between two turns. Afterwards the environment's rubric scores the rollout.
"""

from __future__ import annotations

import asyncio
import importlib
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from finetooth_hooks import DataError, Options, RecipeError, install_command
from finetooth_hooks.bases import EnvironmentBase, EpisodeBase
from finetooth_hooks.data.examples import Message, Task
from finetooth_hooks.environments import Answer, Observation, Turn
from finetooth_rollouts.prompts import messages_of
from pydantic import Field

from finetooth_gyms.loops import Loop
from finetooth_gyms.messages import calls_with_ids, message_of


class VerifiersOptions(Options):
    """Options of `verifiers`."""

    id: str
    """Id of the environment, as `verifiers.load_environment` takes it."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment."""
    package: str = "verifiers"
    """Package that holds `load_environment`, `clients.Client` and `types`."""


class Verifiers(EnvironmentBase):
    """One environment of theirs; rows are ours: `prompt`, and perhaps `answer` and `info`."""

    capabilities = frozenset({"concurrent"})

    def __init__(self, environment: Any, clients: Any, types: Any) -> None:
        self._environment, self._types, self._loop = environment, types, Loop("verifiers")
        self._client = _client_class(clients.Client)

    def episode(self, task: Task, seed: int) -> VerifiersEpisode:
        """Returns an episode of the verifiers environment.

        Raises:
            DataError: the rubric scores groups, which are not known to one episode.
        """
        if self._environment.rubric.has_group_rewards:
            raise DataError("method.environment", "its rubric scores whole groups", action="take another")
        return VerifiersEpisode(task, self._environment, self._client, self._types, self._loop)


class VerifiersEpisode(EpisodeBase):
    """One rollout of theirs."""

    def __init__(self, task: Task, environment: Any, client: Any, types: Any, loop: Loop) -> None:
        self._task, self._environment, self._types, self._loop = task, environment, types, loop
        self._said: queue.SimpleQueue[_Question | Mapping[str, Any] | BaseException] = queue.SimpleQueue()
        self._client = client(self._said)
        self._question: _Question | None = None
        self._known: tuple[Message, ...] = ()
        self._running: Future[None] | None = None
        self._turns = 0

    def begin(self) -> Observation:
        """What it asks first."""
        prompt = [{"role": message.role, "content": message.content} for message in messages_of(self._task)]
        extra = {name: self._task.columns[name] for name in ("answer", "info") if name in self._task.columns}
        self._running = self._loop.start(self._drive({"prompt": prompt, "example_id": 0, **extra}))
        answer = self._next()
        if answer.observation is None:
            raise ValueError("it ended before the first turn")
        return answer.observation

    def answer(self, turn: Turn) -> Answer:
        """What it asks next, or the reward."""
        assert self._question is not None
        self._turns += 1
        self._known = (*self._question.messages, turn.message)
        self._question.give(self._response(turn))
        return self._next()

    def close(self) -> None:
        """Leave the rollout, if it is not done."""
        if self._running is not None:
            self._running.cancel()

    async def _drive(self, row: Mapping[str, Any]) -> None:
        try:
            state = await self._environment.rollout(dict(row), self._client, "policy", {})
            if state.get("error") is None:
                await self._environment.rubric.score_rollout(state)
            self._said.put(state)
        except BaseException as error:  # the waiter for the next question must hear of it
            self._said.put(error)

    def _next(self) -> Answer:
        """
        Raises:
            Exception: what the environment raised.
            ValueError: it changed what was said before, or gave no reward.
        """
        event = self._said.get()
        if isinstance(event, BaseException):
            raise RuntimeError(f"{type(event).__name__}: {event}") from event
        if isinstance(event, _Question):
            self._question = event
            before, messages = self._known, event.messages
            if [_gist(message) for message in messages[: len(before)]] != [_gist(message) for message in before]:
                raise ValueError("it changes earlier messages, so its turns do not form one conversation")
            return Answer(Observation(messages[len(before) :], event.tools if not self._turns else ()))
        if event.get("error") is not None:
            raise RuntimeError(f"{type(event['error']).__name__}: {event['error']}")
        reward = event.get("reward")
        if reward is None:
            raise ValueError("its rubric gave no reward")
        metrics = {str(name): float(value) for name, value in (event.get("metrics") or {}).items()}
        return Answer(None, float(reward), metrics)

    def _response(self, turn: Turn) -> Any:
        calls = [self._types.ToolCall(**call) for call in calls_with_ids(turn.message, self._turns)]
        message = self._types.ResponseMessage(
            content=turn.message.content, reasoning_content=turn.message.reasoning or None, tool_calls=calls or None,
            finish_reason="length" if turn.stop == "length" else "tool_calls" if calls else "stop",
            is_truncated=turn.stop == "length",
        )  # fmt: skip
        return self._types.Response(id=f"turn-{self._turns}", created=0, model="policy", message=message)


class _Question:
    """What the environment wants answered.

    Attributes:
        messages: the whole conversation.
        tools: in OpenAI's shape.
    """

    def __init__(self, messages: Sequence[Any], tools: Sequence[Any]) -> None:
        self.messages = tuple(message_of(message) for message in messages)
        self.tools = tuple(_tool(tool) for tool in tools)
        self._loop = asyncio.get_running_loop()
        self.answered: asyncio.Future[Any] = self._loop.create_future()

    def give(self, response: Any) -> None:
        """Answer it, from another thread."""
        self._loop.call_soon_threadsafe(self.answered.set_result, response)


def _client_class(base: Any) -> Any:
    """Their client, with our policy behind it."""

    class PolicyClient(base):  # type: ignore[misc]
        def __init__(self, said: queue.SimpleQueue[Any]) -> None:
            super().__init__(said)
            self._said = said

        async def get_response(self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **_: Any) -> Any:
            question = _Question(prompt, tools or ())
            self._said.put(question)
            return await question.answered

        def setup_client(self, config: Any) -> Any:
            return config

        async def to_native_tool(self, tool: Any) -> Any:
            return tool

        async def to_native_prompt(self, messages: Any) -> Any:
            return messages, {}

        async def get_native_response(self, prompt: Any, *_: Any, **__: Any) -> Any:
            return prompt  # what is native does not come into it: `get_response` above answers

        async def raise_from_native_response(self, response: Any) -> None: ...

        async def from_native_response(self, response: Any) -> Any:
            return response

        async def close(self) -> None: ...

    return PolicyClient


def _tool(declared: Any) -> dict[str, Any]:
    values = dict(declared) if isinstance(declared, Mapping) else declared.model_dump(exclude_none=True)
    return values if "function" in values else {"type": "function", "function": values}


def _gist(message: Message) -> tuple[str, str]:
    return message.role, message.content


def build(options: VerifiersOptions) -> Verifiers:
    """Builder of the environment `verifiers`.

    Raises:
        RecipeError: the package is not installed, or has no such environment.
    """
    try:
        package = importlib.import_module(options.package)
        clients, types = (importlib.import_module(f"{options.package}.{name}") for name in ("clients", "types"))
    except ModuleNotFoundError as error:
        raise RecipeError(
            "method.environment.package",
            f"{error.name} is not installed",
            action=install_command("verifiers"),
        ) from error
    try:
        environment = package.load_environment(options.id, **options.arguments)
    except Exception as error:
        raise RecipeError("method.environment.id", f"{options.id!r}: {type(error).__name__}: {error}") from error
    return Verifiers(environment, clients, types)
