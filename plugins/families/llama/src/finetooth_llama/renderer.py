"""The renderer `llama3`.

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>

    Hello?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

    Yes.<|eot_id|>

A trained message trains its content, or its call as it is written, and its `<|eot_id|>` (`<|eom_id|>` after a call
where there are built-in tools); headers and the blank line after them never train. As in the models' own templates,
blanks around a content are trimmed. Text that spells a special token stays plain text.

Llama 3 has no tools. From 3.1 on, told by `dated`, they stand in the first message of the user or in the system
message, a message calls one tool and has no other content, and results are JSON text under the header `ipython`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetooth_hooks import Conversation, DataError, Message, Options
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import function_call
from finetooth_rendering.turns import TEXT_ROLES, TurnRenderer, json_string, json_text, noted, trimmed
from pydantic import Field

from finetooth_llama.calls import PYTHON, builtin_call, read_call

BEGIN, HEADER, HEADER_END, TURN_END = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
MESSAGE_END = "<|eom_id|>"
OTHER_ENDS = (MESSAGE_END, "<|end_of_text|>")
ROLES = ("system", "user", "assistant", "tool")

HOW = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)
IN_USER = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    "answers the given prompt.\n\n" + HOW
)
IN_SYSTEM = (
    "You have access to the following functions. To call a function, please respond with JSON for a function call."
    + HOW
)


class Llama3Options(Options):
    """Options of `llama3`."""

    dated: bool = False
    """Begin every conversation with a system message that states two dates, as Llama 3.1 and later do; tools need
    it."""
    knowledge_date: str = "December 2023"
    """With `dated`: the end of the model's knowledge."""
    today: str = "26 Jul 2024"
    """With `dated`: today's date; fixed, so that a run gives the same tokens tomorrow. Default: the date that the
    models' own template falls back to."""
    tools_in_user_message: bool = True
    """Whether tools stand in the first user message, as in the models' own template, or in the system message."""
    builtin_tools: list[str] = Field(default_factory=list)
    """Names of tools that the model knows from its training (`brave_search`, `wolfram_alpha`). Their calls are written
    as Python, and every call ends with `<|eom_id|>`."""


def build(options: Llama3Options, context: Context) -> Llama3:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no Llama 3 tokens.
    """
    variables: dict[str, Any] = {"date_string": options.today, "tools_in_user_message": options.tools_in_user_message}
    variables |= {"builtin_tools": options.builtin_tools} if options.builtin_tools else {}
    return noted(Llama3(context.tokenizer, options), context, **variables)


class Llama3(TurnRenderer):
    """Llama 3 markup.

    Normalisation: contents are trimmed, but for results of tools; calls lose their ids, results the name of the tool.

    Raises:
        RecipeError: the tokenizer has no Llama 3 tokens.
    """

    name = "llama3"
    controls = (BEGIN, HEADER, HEADER_END, TURN_END)
    optional = (*OTHER_ENDS, PYTHON)
    stops = (TURN_END, *OTHER_ENDS)
    extension = True

    def __init__(self, tokenizer: Tokenizer, options: Llama3Options | None = None) -> None:
        super().__init__(tokenizer)
        self._options = options or Llama3Options()
        self._dates = ""
        if self._options.dated:
            known, today = self._options.knowledge_date, self._options.today
            self._dates = f"Cutting Knowledge Date: {known}\nToday Date: {today}\n\n"

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message; what stands before the first message belongs to none.

        Raises:
            DataError: a shape this family cannot say: reasoning, several calls in one message or text next to a call,
                tools without a message of the user to stand in, another role; with `dated: false` any tools.
        """
        messages = conversation.messages
        self._check(conversation)
        page.markup(BEGIN)
        own = bool(messages) and messages[0].role == "system"
        if own or self._dates:
            self._system(page, conversation, trained[0] if own else False, messages[0] if own else None)
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            if own and not i:
                continue
            page.message()
            if message.role == "tool":
                self._result(page, message, trains)
                continue
            page.markup(f"{HEADER}{message.role}{HEADER_END}\n\n")
            if i == own and conversation.tools and self._options.tools_in_user_message:
                page.markup(IN_USER)
                self._tools(page, conversation)
            if message.tool_calls:
                self._call(page, message, trains, f"messages[{i}]")
            else:
                page.say(message.content, trains, message.weights, cut=trimmed(message.content))
                page.markup(TURN_END, trains)
        if ask:
            page.markup(f"{HEADER}assistant{HEADER_END}\n\n")

    def read(self, text: str) -> Message:
        call = read_call(text) if self._dates else None
        return Message("assistant", text) if call is None else Message("assistant", "", tool_calls=(call,))

    def _system(self, page: Page, conversation: Conversation, trains: bool, message: Message | None) -> None:
        if message is not None:
            page.message()
        page.markup(f"{HEADER}system{HEADER_END}\n\n")
        if self._dates:
            builtin = self._options.builtin_tools
            if builtin or conversation.tools:
                page.markup("Environment: ipython\n")
            if builtin:
                page.say(f"Tools: {', '.join(name for name in builtin if name != 'code_interpreter')}\n\n")
            page.say(self._dates)
            if conversation.tools and not self._options.tools_in_user_message:
                page.markup(IN_SYSTEM)
                self._tools(page, conversation)
        if message is not None:
            page.say(message.content, trains, message.weights, cut=trimmed(message.content))
        page.markup(TURN_END, trains)

    def _tools(self, page: Page, conversation: Conversation) -> None:
        for tool in conversation.tools:
            page.say(json_text(tool, indent=4) + "\n\n")

    def _call(self, page: Page, message: Message, trains: bool, where: str) -> None:
        (call,) = message.tool_calls
        name, arguments = function_call(call, where)
        if name in self._options.builtin_tools:
            page.markup(PYTHON, trains)
            page.say(builtin_call(name, arguments, where), trains)
        else:
            page.say(f'{{"name": "{name}", "parameters": {json_text(arguments)}}}', trains)
        page.markup(MESSAGE_END if self._options.builtin_tools else TURN_END, trains)

    def _result(self, page: Page, message: Message, trains: bool) -> None:
        page.markup(f"{HEADER}ipython{HEADER_END}\n\n")
        text, weights = json_string(message.content, message.weights)
        page.say(text, trains, weights)
        page.markup(TURN_END, trains)

    def _check(self, conversation: Conversation) -> None:
        messages = conversation.messages
        if conversation.tools and not self._dates:
            raise self.refuse("no markup for tools", "tools", "remove them, or set dated: true for Llama 3.1 and later")
        self.check_texts(conversation, ROLES if self._dates else TEXT_ROLES, calls=bool(self._dates))
        for i, message in enumerate(messages):
            if message.tool_calls:
                self._check_call(message, f"messages[{i}]")
        if conversation.tools and self._options.tools_in_user_message:
            first = messages[messages[0].role == "system" :][:1] if messages else ()
            if not first or first[0].role != "user":
                raise self.refuse(
                    "its tools in the first message of the user, and there is none before others speak",
                    "tools",
                    "begin with the user, or set tools_in_user_message: false",
                )

    def _check_call(self, message: Message, where: str) -> None:
        if len(message.tool_calls) > 1:
            raise self.refuse(f"one call in a message, and here are {len(message.tool_calls)}", where)
        if message.content.strip():
            raise self.refuse("no markup for text next to a tool call", where)
        if self._options.builtin_tools and MESSAGE_END not in self._controls.ids:
            raise DataError(where, f"the tokenizer has no {MESSAGE_END}", action="leave builtin_tools empty")
