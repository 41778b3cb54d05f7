"""Episodes that an agent server of NeMo Gym plays: `POST /run` with a row, answered with the reward once it has ended.

In between the agent asks its model server for each turn, and that one asks us (`policy_server`). So the policy's turns
are sampled as those of any other environment, and what trains are the tokens that were drawn: none is read from NeMo
Gym's answers. A request finds its episode by a key in `metadata`, which agents hand on with the row's parameters.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping
from concurrent.futures import Future
from ssl import SSLContext
from typing import Any

import httpx2 as httpx
from finetooth_hooks.bases import EpisodeBase
from finetooth_hooks.data.examples import Task
from finetooth_hooks.environments import Answer, Observation, Turn

from finetooth_gyms.loops import Loop
from finetooth_gyms.messages import calls_with_ids
from finetooth_gyms.policy_server import EPISODE, GONE, PolicyServer, Question
from finetooth_gyms.responses import (
    call_item,
    gist_of,
    items_in,
    messages_in,
    response_of,
    reward_of,
    said_item,
    tool_of,
)


class AgentEpisode(EpisodeBase):
    """One row.

    Args:
        task: the row; its columns have `responses_create_params`.
        agent: URL of the agent server.
        timeout: seconds until the agent asks for the next turn, or ends.
        loop: where requests to agents wait.
    """

    def __init__(
        self, task: Task, agent: str, timeout: float, policy: PolicyServer, loop: Loop, tls: SSLContext
    ) -> None:
        self._row, self._agent, self._timeout = task.columns, agent, timeout
        self._policy, self._loop, self._tls = policy, loop, tls
        self._key = policy.key()
        self._events = policy.open(self._key)
        self._known: tuple[tuple[str, ...], ...] = ()
        self._question: Question | None = None
        self._running: Future[None] | None = None
        self._turns = 0

    def begin(self) -> Observation:
        """What the agent shows first.

        Raises:
            OSError: the agent failed.
            ValueError: it ended without asking for a turn.
        """
        params = self._row["responses_create_params"]
        params = {**params, "metadata": {**(params.get("metadata") or {}), EPISODE: self._key}}
        self._running = self._loop.start(self._run({**self._row, "responses_create_params": params}))
        answer = self._next()
        if answer.observation is None:
            raise ValueError("the agent ended before the first turn")
        return answer.observation

    def answer(self, turn: Turn) -> Answer:
        """What the agent shows next, or the reward. It gets no calls of a turn that was cut off.

        Raises:
            OSError: the agent failed.
            ValueError: it gave no reward, or changed what was said before.
        """
        assert self._question is not None
        self._turns += 1
        cut = turn.stop == "length"
        calls = [] if cut else [call_item(call) for call in calls_with_ids(turn.message, self._turns)]
        said = [said_item(turn.message.content, self._turns)] if turn.message.content or not calls else []
        output = [*said, *calls]
        self._known = (*self._known, *map(gist_of, output))
        tools = [{"parameters": None, "strict": None, **tool} for tool in self._question.body.get("tools") or ()]
        self._question.give(200, response_of(output, tools, turn=self._turns, cut=cut))
        return self._next()

    def close(self) -> None:
        """Refuse what the agent still asks, and leave its `/run`."""
        self._policy.close(self._key)
        if self._question is not None:
            self._question.give(*GONE)
        if self._running is not None:
            self._running.cancel()

    async def _run(self, row: Mapping[str, Any]) -> None:
        try:
            async with httpx.AsyncClient(timeout=None, verify=self._tls) as client:
                answer = await client.post(f"{self._agent}/run", json=row)
            if answer.status_code >= 400:
                raise OSError(f"{self._agent}/run answers {answer.status_code}: {answer.text[:200]}")
            self._events.put(answer.json())
        except Exception as error:  # the waiter for the next event must hear of it
            self._events.put(error)

    def _next(self) -> Answer:
        try:
            event = self._events.get(timeout=self._timeout)
        except queue.Empty:
            raise OSError(f"{self._agent}/run neither asks for a turn nor ends within {self._timeout:g} s") from None
        if isinstance(event, httpx.HTTPError):
            raise OSError(f"{self._agent}/run: {event or type(event).__name__}") from event
        if isinstance(event, Exception):
            raise event
        if not isinstance(event, Question):
            return Answer(None, reward_of(event, "/run"))
        self._question, before = event, self._known
        self._known = tuple(map(gist_of, items_in(event.body)))
        if self._known[: len(before)] != before:
            raise ValueError("the agent changes earlier messages, so its turns do not form one conversation")
        new = self._known[len(before) :]
        tools = () if self._turns else tuple(map(tool_of, event.body.get("tools") or ()))
        calls = float(sum(gist[0] == "function_call_output" for gist in new))
        return Answer(Observation(messages_in(new, before), tools), metrics={"calls": calls} if self._turns else {})
