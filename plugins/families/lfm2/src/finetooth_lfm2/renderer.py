"""The renderer `lfm2`.

    <|startoftext|><|im_start|>system
    You are ...
    List of tools: <|tool_list_start|>[{...}]<|tool_list_end|><|im_end|>
    <|im_start|>user
    The time?<|im_end|>
    <|im_start|>assistant
    <|tool_call_start|>[clock(zone='UTC')]<|tool_call_end|><|im_end|>
    <|im_start|>tool
    <|tool_response_start|>12:00<|tool_response_end|><|im_end|>

A trained message trains from behind the prompt up to and with `<|im_end|>`. LFM2.5 writes tools and results without the
tokens around them, and may think before it answers, `<think>Look.</think>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from finetooth_hooks import Conversation, Message, Options
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Rendered, TrainOn
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.own_templates import own_template
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import call_of, function_call
from finetooth_rendering.turns import TurnRenderer, json_text, last_question, trimmed
from finetooth_toolbox.messages.chat_templates import foreign_template, render_template

from finetooth_lfm2.calls import read_calls, write_call

BOS, START, END = "<|startoftext|>", "<|im_start|>", "<|im_end|>"
LIST, LIST_END = "<|tool_list_start|>", "<|tool_list_end|>"
CALL, CALL_END = "<|tool_call_start|>", "<|tool_call_end|>"
RESPONSE, RESPONSE_END = "<|tool_response_start|>", "<|tool_response_end|>"
THINK, THOUGHT = "<think>", "</think>"
ROLES = ("system", "user", "assistant", "tool")
Version = Literal["2", "2.5"]

PROBE: Mapping[str, Any] = {
    "type": "function", "function": {"name": "probe", "description": "A tool.", "parameters": {}},
}  # fmt: skip

ASKED: tuple[Mapping[str, Any], ...] = ({"role": "user", "content": "Hello?"},)


class LFM2Options(Options):
    """Options of `lfm2`."""

    version: Literal["auto", "2", "2.5"] = "auto"
    """The markup of LFM2 or of LFM2.5; `auto` takes LFM2's unless the model's own template lists tools without LFM2's
    tool tokens."""
    keep_reasoning: bool = False
    """For LFM2.5: also write the reasoning of answers to earlier questions, as the template's `preserve_thinking`
    does."""


def build(options: LFM2Options, context: Context) -> LFM2Renderer:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no tokens of LFM2's.
    """
    tokenizer = context.tokenizer
    renderer = LFM2Renderer(tokenizer, options)
    difference = foreign_template(renderer, "lfm2", tokenizer) or _foreign_tools(renderer, tokenizer)
    if difference:
        context.note(difference)
    return renderer


class LFM2Renderer(TurnRenderer):
    """LFM2 and LFM2.5.

    Normalisation: an empty system message at the beginning is left out. Of an answer of LFM2.5 to an earlier question,
    reasoning is left out and counted (`Rendered.remarks`), also what its content holds up to `</think>`.

    Args:
        options: what differs between models.

    Raises:
        RecipeError: the tokenizer has no tokens of LFM2's.
    """

    name = "lfm2"
    controls = (BOS, START, END)
    optional = (LIST, LIST_END, CALL, CALL_END, RESPONSE, RESPONSE_END, THINK, THOUGHT)
    stops = (END,)

    def __init__(self, tokenizer: Tokenizer, options: LFM2Options) -> None:
        super().__init__(tokenizer)
        template = tokenizer.chat_template
        detected: Version = "2" if template is None or LIST in template else "2.5"
        self.version: Version = detected if options.version == "auto" else options.version
        self._keeps = options.keep_reasoning
        self._json_lists = _json_lists(template, self.version)
        self.extension = self.version == "2" or self._keeps
        old = self.version == "2"
        self.template = own_template(
            Path(__file__).parent / "lfm2.jinja",
            {
                "begin": BOS, "start": START, "end": END, "call_start": CALL, "call_end": CALL_END,
                "list_start": LIST if old else "", "list_end": LIST_END if old else "",
                "result_start": RESPONSE if old else "", "result_end": RESPONSE_END if old else "",
                "plain": "yes" if old else "", "json_lists": "yes" if self._json_lists else "",
                "keeps": "yes" if self._keeps else "",
            },
        )  # fmt: skip

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """As `TurnRenderer.render`, with a remark if reasoning is left out."""
        rendered = super().render(conversation, train_on=train_on)
        first = self._thinks_from(conversation.messages)
        early = [message for message in conversation.messages[:first] if message.role == "assistant"]
        lost = any(message.reasoning or THOUGHT in message.content for message in early)
        return replace(rendered, remarks=("reasoning left out",)) if lost else rendered

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message, from its opening token; tools belong to the system message,
        or to none.

        Raises:
            DataError: a role or call that it cannot say, reasoning of LFM2.
        """
        messages = conversation.messages
        self.check_texts(conversation, ROLES, reasoning=self.version == "2.5", calls=True)
        page.markup(BOS)
        has_system = bool(messages and messages[0].role == "system")
        if has_system:
            page.message()
        if conversation.tools or (has_system and messages[0].content):
            self._system(page, conversation, has_system, bool(trained) and trained[0])
        thinks_from = self._thinks_from(messages)
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            if i < has_system:
                continue
            page.message()
            page.markup(f"{START}{message.role}\n")
            if message.role == "assistant":
                self._answer(page, message, trains, i >= thinks_from, f"messages[{i}]")
            else:
                wrapped = message.role == "tool" and self.version == "2"
                page.markup(RESPONSE if wrapped else "", trains)
                page.say(message.content, trains, message.weights)
                page.markup(RESPONSE_END if wrapped else "", trains)
            page.markup(END, trains)
            page.markup("\n")
        if ask:
            page.markup(f"{START}assistant\n")

    def read(self, text: str) -> Message:
        """The message that a completion says; what stands behind its calls belongs to the content, too."""
        reasoning, rest = "", text
        if self.version == "2.5" and text.startswith(THINK):  # a block that was not closed is reasoning to its end
            reasoning, _, rest = text.removeprefix(THINK).partition(THOUGHT)
        before, opened, inside = rest.rpartition(CALL)
        listed, closed, after = inside.partition(CALL_END)
        calls = read_calls(listed) if opened and closed else None
        if calls is None:
            return Message("assistant", rest, reasoning=reasoning)
        return Message("assistant", before + after, reasoning=reasoning, tool_calls=calls)

    def _system(self, page: Page, conversation: Conversation, has_system: bool, trains: bool) -> None:
        """
        Args:
            has_system: the first message is a system message.
        """
        trains = has_system and trains
        page.markup(f"{START}system\n")
        if has_system:
            first = conversation.messages[0]
            page.say(first.content, trains, first.weights)
            page.markup("\n" if conversation.tools and first.content else "")
        if conversation.tools:
            page.markup("List of tools: " + (LIST if self.version == "2" else "") + "[")
            for i, tool in enumerate(conversation.tools):
                page.markup(", " if i else "")
                page.say(json_text(tool))
            page.markup("]" + (LIST_END if self.version == "2" else ""))
        page.markup(END, trains)
        page.markup("\n")

    def _answer(self, page: Page, message: Message, trains: bool, thinks: bool, where: str) -> None:
        if message.reasoning and thinks:
            page.markup(THINK, trains)
            page.say(message.reasoning, trains, message.reasoning_weights)
            page.markup(THOUGHT, trains)
        behind = 0 if thinks else message.content.rfind(THOUGHT)
        if thinks or behind < 0:
            page.say(message.content, trains, message.weights)
        else:
            behind += len(THOUGHT)
            begin, end = trimmed(message.content[behind:])
            page.say(message.content, trains, message.weights, cut=(behind + begin, behind + end))
        if message.tool_calls:
            page.markup(f"{CALL}[", trains)
            for i, call in enumerate(message.tool_calls):
                page.markup(", " if i else "", trains)
                page.say(self._call(call, where), trains)
            page.markup(f"]{CALL_END}", trains)

    def _call(self, call: Mapping[str, Any], where: str) -> str:
        """
        Raises:
            DataError: it is not of the OpenAI shape, or cannot be read back.
        """
        parsed = function_call(call, where)
        text = write_call(parsed, json_lists=self._json_lists)
        if read_calls(f"[{text}]") != (call_of(*parsed),):
            raise self.refuse(f"no markup for a call that could be read back: {text:.80}", where, "fix the row")
        return text

    def _thinks_from(self, messages: Sequence[Message]) -> int:
        """The first message whose reasoning is written: behind the last question."""
        if self.version == "2" or self._keeps:
            return 0
        return last_question(messages) + 1


def _json_lists(template: str | None, version: Version) -> bool:
    """Lists among arguments are JSON, not Python: in LFM2, and in LFM2.5 where the model's own template has it so."""
    call = {"type": "function", "function": {"name": "probe", "arguments": {"names": ["a"]}}}
    messages = (*ASKED, {"role": "assistant", "content": "", "tool_calls": [call]})
    text = (template and render_template(template, messages, bos_token="")) or ""
    return 'names=["a"]' in text or (version == "2" and "names=['a']" not in text)


def _foreign_tools(renderer: LFM2Renderer, tokenizer: Tokenizer) -> str:
    """In words if the tokenizer's chat template lists tools otherwise, as LFM2.5-8B-A1B's, which says the date."""
    if tokenizer.chat_template is None:
        return ""
    bos = "" if tokenizer.bos_id is None else tokenizer.decode([tokenizer.bos_id])
    expected = render_template(tokenizer.chat_template, ASKED, prompt=True, bos_token=bos, tools=[PROBE])
    tokens = renderer.prompt((Message("user", "Hello?"),), (PROBE,))
    if expected is not None and tokens == tuple(tokenizer.encode(expected, special=True)):
        return ""
    verdict = "cannot be rendered for comparison" if expected is None else f"says {expected!r}"
    return (
        f"renderer lfm2: with tools the model's own chat template {verdict}, lfm2 says {tokenizer.decode(tokens)!r}; "
        "for tools, data.renderer: jinja follows the model's own chat template"
    )
