"""The renderer `smollm3`.

    <|im_start|>system
    ## Metadata

    Knowledge Cutoff Date: June 2025
    Reasoning Mode: /think

    ## Custom Instructions

    Be brief.

    <|im_end|>
    <|im_start|>user
    Hello?<|im_end|>
    <|im_start|>assistant
    <think>
    A greeting.
    </think>
    Yes.<|im_end|>

A trained answer trains everything between `<|im_start|>assistant` with its line feed, or the empty think block of
`/no_think`, and its `<|im_end|>`, that token included.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from finetooth_hooks import Conversation, Message, Options
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.turns import TurnRenderer, noted, split_thought

START, END, DOCUMENT_END = "<|im_start|>", "<|im_end|>", "<|end_of_text|>"
THINK, THINK_END = "<think>", "</think>"
ON, OFF = "/think", "/no_think"
ROLES = ("system", "user", "assistant", "tool")

PLAIN_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face."
THINKING_SYSTEM = (
    f"{PLAIN_SYSTEM} Your role as an assistant involves thoroughly exploring questions through a systematic thinking "
    "process before providing the final precise and accurate solutions. This requires engaging in a comprehensive "
    "cycle of analysis, summarizing, exploration, reassessment, reflection, backtracking, and iteration to develop "
    "well-considered thinking process. Please structure your response into two main sections: Thought and Solution "
    "using the specified format: <think> Thought section </think> Solution section. In the Thought section, detail "
    "your reasoning process in steps. Each step should include detailed considerations such as analysing questions, "
    "summarizing relevant findings, brainstorming new ideas, verifying the accuracy of the current steps, refining any "
    "errors, and revisiting previous steps. In the Solution section, based on various attempts, explorations, and "
    "reflections from the Thought section, systematically present the final solution that you deem correct. The "
    "Solution section should be logical, accurate, and concise and detail necessary steps needed to reach the "
    "conclusion."
)


class SmolLM3Options(Options):
    """Options of `smollm3`."""

    thinking: bool = True
    """Whether the model thinks before it answers; `/think` or `/no_think` in a system message overrides it."""


def build(options: SmolLM3Options, context: Context) -> SmolLM3:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no ChatML tokens.
    """
    thinking = options.thinking
    return noted(SmolLM3(context.tokenizer, thinking=thinking), context, enable_thinking=thinking)


class SmolLM3(TurnRenderer):
    """SmolLM3 markup.

    Normalisation: line feeds before an answer and around reasoning go; a system message loses its `/think` and
    `/no_think` and the blanks at its end. Results of tools are messages of the user.

    Args:
        thinking: unless a system message says otherwise.

    Raises:
        RecipeError: the tokenizer has no ChatML tokens.
    """

    name = "smollm3"
    controls = (START, END)
    optional = (DOCUMENT_END, THINK, THINK_END)
    stops = (END, DOCUMENT_END)
    extension = True

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool = True) -> None:
        super().__init__(tokenizer)
        self._thinking = thinking

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message; a system message that is added stands before the first.

        Raises:
            DataError: tools, calls, another role, a system message that is not the first, reasoning where the mode is
                `/no_think`.
        """
        messages = conversation.messages
        system = messages[0] if messages and messages[0].role == "system" else None
        thinks = self._thinks(system)
        self._check(conversation, thinks)
        block = "" if thinks else f"{THINK}\n\n{THINK_END}\n"
        if system is not None:
            page.message()
        self._open(page, system, trained[0] if system is not None else False, thinks)
        for message, trains in list(zip(messages, trained, strict=True))[system is not None :]:
            page.message()
            if message.role == "assistant":
                page.markup(f"{START}assistant\n{block}")
                self._think(page, message, trains)
                feeds = len(message.content) - len(message.content.lstrip("\n"))
                page.say(message.content, trains, message.weights, cut=(feeds, len(message.content)))
            else:
                page.markup(f"{START}user\n")
                page.say(message.content, trains, message.weights)
            page.markup(END, trains)
            page.markup("\n")
        if ask:
            page.markup(f"{START}assistant\n{block}")

    def read(self, text: str) -> Message:
        reasoning, content = split_thought(text)
        return Message("assistant", content, reasoning=reasoning)

    def _open(self, page: Page, system: Message | None, trains: bool, thinks: bool) -> None:
        mode = ON if thinks else OFF
        page.markup(
            f"{START}system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nReasoning Mode: {mode}\n\n"
            "## Custom Instructions\n\n"
        )
        ranges = _instructions(system.content) if system is not None else []
        if system is not None and ranges:
            for cut in ranges:
                page.say(system.content, trains, system.weights, cut=cut)
        else:
            page.say(THINKING_SYSTEM if thinks else PLAIN_SYSTEM)
        page.markup("\n\n")
        page.markup(END, trains)
        page.markup("\n")

    def _think(self, page: Page, message: Message, trains: bool) -> None:
        if message.reasoning:
            reasoning = message.reasoning
            begin = len(reasoning) - len(reasoning.lstrip("\n"))
            page.markup(f"{THINK}\n", trains)
            page.say(reasoning, trains, message.reasoning_weights, cut=(begin, len(reasoning.rstrip("\n"))))
            page.markup(f"\n{THINK_END}\n", trains)

    def _thinks(self, system: Message | None) -> bool:
        text = "" if system is None else system.content
        return False if OFF in text else True if ON in text else self._thinking

    def _check(self, conversation: Conversation, thinks: bool) -> None:
        self.check_texts(conversation, ROLES, reasoning=True)
        for i, message in enumerate(conversation.messages):
            where = f"messages[{i}]"
            if message.role == "system" and i:
                raise self.refuse("no system message but the first", where)
            if message.reasoning and not thinks:
                raise self.refuse(
                    f"no place for reasoning where the mode is {OFF}",
                    where,
                    "remove it, or set thinking: true and take /no_think out of the system message",
                )


def _instructions(text: str) -> list[tuple[int, int]]:
    """Ranges of a system message that are written: without its flags, one after the other, and blanks at the end."""
    left = list(range(len(text)))
    for flag in (OFF, ON):
        joined, rest, at = "".join(text[i] for i in left), [], 0
        while (begin := joined.find(flag, at)) >= 0:
            rest += left[at:begin]
            at = begin + len(flag)
        left = rest + left[at:]
    while left and text[left[-1]].isspace():
        left.pop()
    runs = (list(run) for _, run in groupby(enumerate(left), key=lambda pair: pair[1] - pair[0]))
    return [(run[0][1], run[-1][1] + 1) for run in runs]
