"""The system turn of a model: what it says before the conversation, read off the model's own chat template.

Cohere's models differ in nothing but these words: pages of rules, the languages they speak, their name, the tools. The
template writes four of them, with and without a system message and tools, around words that mark their places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_toolbox.messages.chat_templates import render_template

START, END = "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
SYSTEM, USER, CHATBOT = "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"
RESPONSE = "<|START_RESPONSE|>"
ASKED, SAID = "(a question)", "(a system message)"
TOOL_BEGIN, TOOL_END, TOOL_JOIN = '    {"name": "', ', "responses": null}', ",\n"
NAMES = ("first_tool", "second_tool")
PROBES = tuple(
    {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": {}}} for name in NAMES
)
SHOWN = TOOL_JOIN.join(f'{TOOL_BEGIN}{name}", "description": "A tool.", "parameters": {{}}{TOOL_END}' for name in NAMES)


class Foreign(ValueError):
    """The template does not write these turns; the message says what it writes instead."""


@dataclass(frozen=True)
class Preamble:
    """The system turn.

    Attributes:
        turns: by whether there is a system message, and tools: the turn, in which `SAID` stands for the message and
            `SHOWN` for the tools. Without those with tools if the template leaves tools out.
        opens: a prompt ends with `<|START_RESPONSE|>`.
    """

    turns: Mapping[tuple[bool, bool], str]
    opens: bool

    def parts(self, system: bool, tools: bool) -> Sequence[str]:
        """The turn, cut before and behind `SAID` and `SHOWN`."""
        return re.split(f"({re.escape(SAID)}|{re.escape(SHOWN)})", self.turns[system, tools])


def bare_preamble(bos_token: str) -> Preamble:
    """Of a model of which nothing is known: the system message alone, and no tools."""
    return Preamble({(False, False): bos_token, (True, False): f"{bos_token}{START}{SYSTEM}{SAID}{END}"}, opens=False)


def read_preamble(template: str, **variables: Any) -> Preamble:
    """What a chat template says in the system turn.

    Args:
        variables: what it reads, `bos_token="<BOS_TOKEN>"`.

    Raises:
        Foreign: it does not write Cohere's turns.
    """
    turns: dict[tuple[bool, bool], str] = {}
    opens = False
    for system, tools in ((False, False), (True, False), (False, True), (True, True)):
        messages = [{"role": "system", "content": SAID}] * system + [{"role": "user", "content": ASKED}]
        text = render_template(template, messages, prompt=True, **{**variables, "tools": PROBES if tools else None})
        head, question, rest = (text or "").partition(f"{START}{USER}{ASKED}{END}")
        if not question or rest not in (f"{START}{CHATBOT}", f"{START}{CHATBOT}{RESPONSE}"):
            ending = f"its question ends with {(rest or head)[-60:]!r}"
            raise Foreign("it cannot be rendered" if text is None else ending)
        if head.count(SAID) != system or not head.endswith(END):
            raise Foreign("a system message does not stand in its first turn")
        opens = rest.endswith(RESPONSE)
        if not tools or head.count(SHOWN) == 1:
            turns[system, tools] = head
    return Preamble(turns, opens)
