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
from typing import Any

import httpx2 as httpx
from finetooth_hooks import Context, DataError, Options
from finetooth_hooks.bases import EnvironmentBase, EpisodeBase
from finetooth_hooks.data.examples import Message, Task
from finetooth_hooks.environments import Answer, Observation, Turn
from finetooth_rollouts.prompts import messages_of
from finetooth_toolbox.text.strict_json import received
from pydantic import Field

from finetooth_gyms.messages import calls_with_ids

PARAMS = "responses_create_params"


class NemoGymOptions(Options):
    """Options of `nemogym`."""

    url: str = "127.0.0.1:11000"
    """Of the resource server."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds for a request; one that takes longer is an error of the environment, not a reward."""
    seed_session: bool = True
    """Whether the server keeps a session, which is begun with the row."""


class NemoGym(EnvironmentBase):
    """One server, a session for each episode."""

    capabilities = frozenset({"concurrent"})

    def __init__(self, options: NemoGymOptions) -> None:
        self._options = options

    def episode(self, task: Task, seed: int) -> NemoGymEpisode:
        """Returns an episode that the NeMo Gym server judges.

        Raises:
            DataError: the row is none of NeMo Gym's.
        """
        params = task.columns.get(PARAMS)
        if not isinstance(params, Mapping):
            raise DataError(
                PARAMS, "the row has none, so the server cannot judge it",
                action=f"set data.format to {{name: task, prompt: {PARAMS}.input}} for rows of NeMo Gym",
            )  # fmt: skip
        return NemoGymEpisode(task, params, self._options)


class NemoGymEpisode(EpisodeBase):
    """One row."""

    def __init__(self, task: Task, params: Mapping[str, Any], options: NemoGymOptions) -> None:
        self._task, self._params, self._options = task, params, options
        base = options.url if "://" in options.url else f"http://{options.url}"
        self._client = httpx.Client(base_url=base, timeout=options.timeout)
        self._output: list[dict[str, Any]] = []
        self._turns = 0

    def begin(self) -> Observation:
        """The row's prompt and tools.

        Raises:
            OSError: the server failed.
        """
        if self._options.seed_session:
            self._post("seed_session", dict(self._task.columns))
        return Observation(messages_of(self._task), tuple(_tool(tool) for tool in self._params.get("tools") or ()))

    def answer(self, turn: Turn) -> Answer:
        """Results of the calls in a turn; a turn without one is verified.

        Raises:
            OSError: the server failed.
            ValueError: it gave no reward.
        """
        self._turns += 1
        if turn.message.content:
            part = {"type": "output_text", "text": turn.message.content, "annotations": []}
            self._output.append({"type": "message", "role": "assistant", "id": f"msg_{self._turns}",
                                 "status": "completed", "content": [part]})  # fmt: skip
        calls = calls_with_ids(turn.message, self._turns)
        if not calls or turn.stop == "length":
            return self._verified()
        shown = []
        for call in calls:
            head = {"call_id": call["id"]}
            self._output.append({"type": "function_call", **head, "id": call["id"], "status": "completed",
                                 "name": call["name"], "arguments": call["arguments"]})  # fmt: skip
            result = self._call(call["name"], call["arguments"])
            self._output.append({"type": "function_call_output", **head, "output": result})
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

    def _verified(self) -> Answer:
        response = {
            "id": "resp_1", "created_at": 0, "model": "policy", "object": "response", "output": self._output,
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": list(self._params.get("tools") or ()),
        }  # fmt: skip
        verdict = self._post("verify", {**self._task.columns, "response": response})
        reward = verdict.get("reward") if isinstance(verdict, Mapping) else None
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise ValueError(f"/verify gave no reward: {str(verdict)[:200]}")
        return Answer(None, float(reward))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            answer = self._client.post(f"/{path}", json=dict(body))
        except httpx.HTTPError as error:
            raise OSError(f"{self._options.url}/{path}: {error or type(error).__name__}") from error
        if answer.status_code >= 400:
            raise OSError(f"{self._options.url}/{path} answers {answer.status_code}: {answer.text[:200]}")
        return answer.json() if answer.content else None


def _tool(declared: Mapping[str, Any]) -> dict[str, Any]:
    """A tool of the Responses interface in the shape of chats."""
    function = {
        name: declared[name]
        for name in ("name", "description", "parameters", "strict")
        if declared.get(name) is not None
    }
    return {"type": "function", "function": function}


def build(options: NemoGymOptions, context: Context) -> NemoGym:
    """Builder of the environment `nemogym`."""
    return NemoGym(options)
