"""Episodes with tools: the policy calls, is answered, and at last says what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetooth_hooks.bases import EpisodeBase
from finetooth_hooks.data.examples import Message, Task
from finetooth_hooks.environments import Answer, Observation, Turn
from finetooth_rollouts.prompts import messages_of


class ToolRefused(Exception):
    """Why a call has no result, in words for who called."""


@dataclass(frozen=True)
class Tool:
    """What the policy may call.

    Attributes:
        name: of the tool.
        summary: what it does.
        argument: name of its one argument, a text.
        call: gives the result.
    """

    name: str
    summary: str
    argument: str
    call: Callable[[str], str]

    def schema(self) -> dict[str, Any]:
        """In the OpenAI shape."""
        parameters = {
            "type": "object",
            "properties": {self.argument: {"type": "string"}},
            "required": [self.argument],
        }
        function = {"name": self.name, "description": self.summary, "parameters": parameters}
        return {"type": "function", "function": function}


class ToolEpisode(EpisodeBase):
    """A question, calls of one tool, an answer. Metrics: `calls`, and `refused` of them.

    Args:
        judge: the reward of an answer's text.
    """

    def __init__(self, task: Task, tool: Tool, judge: Callable[[str], float]) -> None:
        self._task, self._tool, self._judge = task, tool, judge

    def begin(self) -> Observation:
        """The row's prompt, with the tool."""
        return Observation(messages_of(self._task), (self._tool.schema(),))

    def answer(self, turn: Turn) -> Answer:
        """Results of the calls in a turn; a turn without one is the answer."""
        calls = turn.message.tool_calls
        if not calls:
            return Answer(reward=self._judge(turn.message.content))
        results, refused = [], 0
        for call in calls:
            function = call["function"]
            try:
                content = self._result(str(function["name"]), function["arguments"])
            except ToolRefused as why:
                content, refused = f"error: {why}", refused + 1
            id_ = str(call.get("id") or "")
            results.append(Message("tool", content, name=str(function["name"]), tool_call_id=id_))
        metrics = {"calls": float(len(calls)), "refused": float(refused)}
        return Answer(Observation(tuple(results)), reward=0.0, metrics=metrics)

    def _result(self, name: str, arguments: Mapping[str, Any]) -> str:
        if name != self._tool.name:
            raise ToolRefused(f"no tool {name!r}, only {self._tool.name!r}")
        argument = arguments.get(self._tool.argument)
        if not isinstance(argument, str):
            raise ToolRefused(f"{self._tool.name} takes a text {self._tool.argument!r}")
        return self._tool.call(argument)
