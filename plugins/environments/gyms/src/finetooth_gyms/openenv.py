"""An environment of OpenEnv, through its own client: `reset`, `step`, and text in a field of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from finetooth_hooks import Options
from finetooth_hooks.bases import EnvironmentBase, EpisodeBase
from finetooth_hooks.data.examples import Message, Task
from finetooth_hooks.environments import Answer, Observation, Turn
from finetooth_rollouts.prompts import messages_of

from finetooth_gyms.loading import load


class OpenEnvOptions(Options):
    """Options of `openenv`."""

    url: str
    """URL of the environment's server."""
    client: str = "openenv.core.generic_client:GenericEnvClient"
    """Class of its client; one that takes mappings, such as this one, needs `action`."""
    action: str = "message"
    """Field of an action that holds the policy's text."""
    shown: str = ""
    """Field of an observation that the policy reads. Left out, it reads the whole observation as JSON."""
    prompt: bool = True
    """Whether the row's prompt comes before the first observation."""


class OpenEnv(EnvironmentBase):
    """A connection for each episode."""

    capabilities = frozenset({"concurrent"})

    def __init__(self, options: OpenEnvOptions, client: Any) -> None:
        self._options, self._client = options, client

    def episode(self, task: Task, seed: int) -> OpenEnvEpisode:
        """Of any row."""
        return OpenEnvEpisode(task, seed, self._options, self._client)


class OpenEnvEpisode(EpisodeBase):
    """One session."""

    def __init__(self, task: Task, seed: int, options: OpenEnvOptions, client: Any) -> None:
        self._task, self._seed, self._options = task, seed, options
        self._make = client
        self._session: Any = None

    def begin(self) -> Observation:
        """The row's prompt with the first observation."""
        self._session = self._make(base_url=self._options.url).sync()
        self._session.connect()
        first = self._shown(self._session.reset(seed=self._seed).observation)
        before = messages_of(self._task) if self._options.prompt else ()
        if before and before[-1].role == "user":
            return Observation((*before[:-1], Message("user", f"{before[-1].content}\n\n{first}")))
        return Observation((*before, Message("user", first)))

    def answer(self, turn: Turn) -> Answer:
        """Of a step."""
        assert self._session is not None
        result = self._session.step({self._options.action: turn.message.content})
        reward = None if result.reward is None else float(result.reward)
        if result.done:
            return Answer(None, reward)
        return Answer(Observation((Message("user", self._shown(result.observation)),)), reward)

    def close(self) -> None:
        """End the session."""
        if self._session is not None:
            self._session.disconnect()

    def _shown(self, observation: Any) -> str:
        values = observation if isinstance(observation, Mapping) else vars(observation)
        if not self._options.shown:
            return json.dumps(dict(values), ensure_ascii=False, default=str)
        if self._options.shown not in values:
            raise ValueError(f"an observation has no {self._options.shown!r}, only {', '.join(map(str, values))}")
        return str(values[self._options.shown])


def build(options: OpenEnvOptions) -> OpenEnv:
    """Builder of the environment `openenv`."""
    return OpenEnv(options, load(options.client, "method.environment.client"))
