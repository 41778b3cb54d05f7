"""A resource server of NeMo Gym: the tools of a task and its judge, over HTTP.

    POST /seed_session    before the first turn, with the row; the session is in a cookie
    POST /TOOL            arguments of a call, answered with its result
    POST /verify          the row with the whole response, answered with `reward`

A row keeps NeMo Gym's `responses_create_params` (its `input` is the prompt: `data.format: {name: task, prompt:
responses_create_params.input}`; its `tools` are offered to the policy) and whatever else the judge reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from ssl import SSLContext
from typing import Any

import httpx2 as httpx
from finetooth_hooks import Context, DataError, Options
from finetooth_hooks.bases import EnvironmentBase, EpisodeBase
from finetooth_hooks.data.examples import Message, Task
from finetooth_hooks.environments import Answer, Episode, Observation, Turn
from finetooth_rollouts.prompts import messages_of
from finetooth_toolbox.text.strict_json import received
from pydantic import Field

from finetooth_gyms.gym_server import LOG, GymServer
from finetooth_gyms.loops import Loop
from finetooth_gyms.messages import calls_with_ids
from finetooth_gyms.nemogym_agent import AgentEpisode
from finetooth_gyms.policy_server import policy_at
from finetooth_gyms.responses import call_item, response_of, reward_of, said_item, tool_of

PARAMS = "responses_create_params"


class NemoGymOptions(Options):
    """Options of `nemogym`."""

    url: str = "127.0.0.1:11000"
    """URL of the resource server."""
    timeout: float = Field(default=30.0, gt=0)
    """Time limit for a request, in seconds. A request that takes longer is an error of the environment, not a
    reward."""
    seed_session: bool = True
    """Whether the server keeps a session, which begins with the row."""
    agent: str = ""
    """URL of an agent server, which plays whole episodes (`/run`); `url` and `seed_session` are then not used. Left
    out, the run itself calls the resource server's tools and judge."""
    policy: str = "127.0.0.1:11080"
    """HOST:PORT where an agent's model server reaches the policy: NeMo Gym's `policy_base_url` is
    `http://HOST:PORT/v1`."""
    start: list[str] = Field(default_factory=list)
    """Command that starts NeMo Gym, word by word. Left out, it must already run. Its output goes to `nemogym.log` in
    the run folder, and it ends with the run. Of several ranks, the first one starts it and talks to it."""
    start_folder: str = ""
    """Folder in which the command runs, such as NeMo Gym's own. Default: where the run was started."""
    ready: float = Field(default=300.0, gt=0)
    """Seconds that NeMo Gym may take to answer after its start."""


class NemoGym(EnvironmentBase):
    """One server, a session for each episode."""

    capabilities = frozenset({"concurrent"})

    def __init__(self, options: NemoGymOptions, context: Context) -> None:
        self._options = options
        address = address_of(options.agent or options.url)
        self._server = GymServer(options.start, address, options.start_folder, options.ready, context.folder / LOG)
        self._policy = policy_at(options.policy)
        self._tls = httpx.create_ssl_context()  # read once: it takes longer than a request
        self._loop: Loop | None = None

    def episode(self, task: Task, seed: int) -> Episode:
        """Returns an episode that the NeMo Gym server judges; the first one starts the server.

        Raises:
            DataError: the row is none of NeMo Gym's.
            EngineError, RecipeError: NeMo Gym cannot be started, or has ended; the policy's address is taken.
        """
        params = task.columns.get(PARAMS)
        if not isinstance(params, Mapping):
            raise DataError(
                PARAMS, "the row has none, so the server cannot judge it",
                action=f"set data.format to {{name: task, prompt: {PARAMS}.input}} for rows of NeMo Gym",
            )  # fmt: skip
        self._server.begin()
        if not self._options.agent:
            return NemoGymEpisode(task, params, self._options, self._tls)
        self._policy.begin()
        self._loop = self._loop or Loop("nemogym")
        agent = address_of(self._options.agent).rstrip("/")
        return AgentEpisode(task, agent, self._options.timeout, self._policy, self._loop, self._tls)


class NemoGymEpisode(EpisodeBase):
    """One row."""

    def __init__(self, task: Task, params: Mapping[str, Any], options: NemoGymOptions, tls: SSLContext) -> None:
        self._task, self._params, self._options = task, params, options
        self._client = httpx.Client(base_url=address_of(options.url), timeout=options.timeout, verify=tls)
        self._output: list[dict[str, Any]] = []
        self._turns = 0

    def begin(self) -> Observation:
        """The row's prompt and tools.

        Raises:
            OSError: the server failed.
        """
        if self._options.seed_session:
            self._post("seed_session", dict(self._task.columns))
        return Observation(messages_of(self._task), tuple(tool_of(tool) for tool in self._params.get("tools") or ()))

    def answer(self, turn: Turn) -> Answer:
        """Results of the calls in a turn; a turn without one is verified.

        Raises:
            OSError: the server failed.
            ValueError: it gave no reward.
        """
        self._turns += 1
        if turn.message.content:
            self._output.append(said_item(turn.message.content, self._turns))
        calls = calls_with_ids(turn.message, self._turns)
        if not calls or turn.stop == "length":
            return self._verified(cut=turn.stop == "length")
        shown = []
        for call in calls:
            self._output.append(call_item(call))
            result = self._call(call["name"], call["arguments"])
            self._output.append({"type": "function_call_output", "call_id": call["id"], "output": result})
            shown.append(Message("tool", result, name=call["name"], tool_call_id=call["id"]))
        return Answer(Observation(tuple(shown)), metrics={"calls": float(len(calls))})

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _call(self, name: str, arguments: str) -> str:
        """A tool's result as text; what the policy asked wrongly is told to it, as the server says it."""
        offered = {tool.get("name") for tool in self._params.get("tools") or ()}
        if name not in offered:
            return json.dumps({"error": f"no tool {name}"})
        answer = self._client.post(f"/{name}", json=received(arguments))
        if answer.status_code >= 500:
            raise OSError(f"/{name} answers {answer.status_code}: {answer.text[:200]}")
        return answer.text

    def _verified(self, *, cut: bool) -> Answer:
        response = response_of(self._output, self._params.get("tools") or (), cut=cut)
        return Answer(None, reward_of(self._post("verify", {**self._task.columns, "response": response}), "/verify"))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            answer = self._client.post(f"/{path}", json=dict(body))
        except httpx.HTTPError as error:
            raise OSError(f"{self._options.url}/{path}: {error or type(error).__name__}") from error
        if answer.status_code >= 400:
            raise OSError(f"{self._options.url}/{path} answers {answer.status_code}: {answer.text[:200]}")
        return answer.json() if answer.content else None


def address_of(url: str) -> str:
    """A URL with its scheme; http where none is given."""
    return url if "://" in url else f"http://{url}"


def build(options: NemoGymOptions, context: Context) -> NemoGym:
    """Builder of the environment `nemogym`."""
    return NemoGym(options, context)
