"""The renderer `jinja`: messages to tokens by the tokenizer's own chat template.

The tokens are those of the rendered text, special tokens in the markup included. What trains is the text from the end
of the prompt for a message to the token that ends its turn, that token included; how it is proved stands in `spans`.
A token that reaches over an end of a trained span does not train. Text in a message that spells a special token stays
plain text, which chat templates alone cannot promise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from finetooth_hooks import Conversation, DataError, Message, Options, Parsed, RecipeError, Rendered
from finetooth_hooks.bases import RendererBase
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Placed, TrainOn
from finetooth_hooks.protocols import Processor, Tokenizer
from finetooth_toolbox.messages.encoding import Encoder, Range
from finetooth_toolbox.messages.markup import token_weights, trained_messages
from pydantic import Field

from finetooth_jinja.calls import learned
from finetooth_jinja.extension import extends
from finetooth_jinja.media import Media, segments, with_media
from finetooth_jinja.omissions import THINK, check_nothing_omitted, remarks
from finetooth_jinja.probe import habits
from finetooth_jinja.shapes import Shaper
from finetooth_jinja.spans import Whole, has_untrained_end, trained_spans
from finetooth_jinja.template import ChatTemplate, TemplateRefused
from finetooth_jinja.untemplated import WithoutTemplate

MARK = "PLACE{}OF{}TEXT"
HALF = (
    "behind the token that ends an answer the chat template writes a further special token, which does not train; a "
    "template with {% generation %} marks says what does (data.renderer: {name: jinja, template: FILE})"
)


class JinjaOptions(Options):
    """Options of `jinja`."""

    template: str | None = None
    """A Jinja file to use instead of the tokenizer's template, or the template itself, recognised by its `{`."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further variables for the template, such as `{enable_thinking: false}`."""
    today: date = date(2026, 1, 15)
    """Date for templates that ask for today's; fixed, so that a run gives the same tokens tomorrow."""


def build(options: JinjaOptions, context: Context) -> JinjaRenderer | WithoutTemplate:
    """Builds a renderer from the given chat template, else from the tokenizer's.

    Raises:
        RecipeError: the template is not Jinja, or the tokenizer has neither a template nor an end-of-text token.
    """
    tokenizer = context.tokenizer
    source = tokenizer.chat_template
    if options.template is not None:
        source = _source(options.template)
    if not source:
        return WithoutTemplate(tokenizer)
    variables = {**_named_tokens(tokenizer), **options.arguments}
    try:
        template = ChatTemplate(source, datetime.combine(options.today, time(12)), variables)
    except TemplateRefused as error:
        raise RecipeError(
            "data.renderer", f"the chat template is not Jinja: {error}", action="fix the template"
        ) from error
    renderer = JinjaRenderer(tokenizer, template, lambda: context.processor)
    renderer.template = _with_arguments(source, options.arguments)
    if not renderer.leads_on:
        context.note(
            "renderer jinja: the chat template writes a prompt for an answer differently from the conversation "
            "with that answer, so the model is asked in a slightly different way than it is trained"
        )
    if renderer.loses_calls:
        context.note(
            "renderer jinja: the chat template writes tool calls in a form of its own, so the model's calls "
            "cannot be read from its answers and stay text"
        )
    return renderer


def _with_arguments(source: str, arguments: Mapping[str, Any]) -> str:
    """The template with its variables set in it."""
    values = {
        name: "none" if value is None else json.dumps(value, ensure_ascii=False) for name, value in arguments.items()
    }
    return "".join("{% set " + name + " = " + value + " %}" for name, value in values.items()) + source


def _source(template: str) -> str:
    """The template, or what is in the file.

    Raises:
        RecipeError: it cannot be read.
    """
    if "{" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            "data.renderer.template", f"{template} cannot be read: {error}", action="name a Jinja file"
        ) from error


def _no_processor() -> Processor:
    raise DataError("", "it has images or sound, and the model has no processor for them", action="remove the row")


class JinjaRenderer(RendererBase):
    """Renders with one chat template.

    Args:
        processor: turns images, sounds and videos into text; asked for with the first one.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, processor: Callable[[], Processor] = _no_processor
    ) -> None:
        self._tokenizer = tokenizer
        self._media = Media(processor)
        self._shaper = Shaper(template, self._media)
        self._encoder = Encoder(tokenizer)
        self._habits = habits(self._shaper, self._encoder, tokenizer.eos_id)
        self.leads_on = self._habits.leads_on
        """The prompt for an answer is how the conversation with that answer begins."""
        ends = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((*self._habits.stop_ids, *ends)))
        self._calls = learned(self._shaper, self._answer)
        self.reads_calls = self._calls.read is not None
        """`parse` reads calls of tools."""
        self.extension = extends(self._shaper, self._encoder, self.stop_ids)
        """The prompt for turn k + 1 begins with the tokens of the conversation up to and with turn k: true if it does
        in every conversation that was tried when the renderer was made, one of each shape."""

    @property
    def loses_calls(self) -> bool:
        """The template writes calls in a way that `parse` cannot read back."""
        return self._calls.writes and not self.reads_calls

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """Tokens of the conversation; what trained messages say and the token that ends them weigh 1, images and
        sounds never.

        Raises:
            DataError: the template refuses the conversation, an image or sound cannot be used, or what trains cannot be
                established.
        """
        self._media.forget()
        rendered = self._rendered(conversation.messages, conversation.tools)
        check_nothing_omitted(conversation, rendered.text, self._shaper, self._encoder)
        notes = remarks(conversation, self._shaper)
        plain = self._plain(conversation.messages, conversation.tools, rendered.text)
        encoded = self._encoder.encode(rendered.text, plain)
        whole = Whole(conversation, rendered.text, rendered.generated, encoded)
        trained = trained_messages(conversation.messages, train_on)
        spans = trained_spans(whole, trained, self._shaper, self.stop_ids)
        weights = self._weights(whole, spans)
        half = not whole.generated and has_untrained_end(whole, trained, spans, self._shaper)
        notices = (HALF,) * half
        tokenised = Rendered(encoded.ids, weights, self._token_ranges(whole), remarks=notes, notices=notices)
        return with_media(tokenised, encoded, rendered.media)

    def _weights(self, whole: Whole, spans: Sequence[Range]) -> tuple[float, ...]:
        """1 for tokens inside a trained span; where a message's own ranges say otherwise, the least of its characters.

        Raises:
            DataError: the place of such a message in the text is not known.
        """
        offsets, messages = whole.encoded.offsets, whole.conversation.messages
        if not any(message.weights or message.reasoning_weights for message in messages):
            return tuple(float(any(begin <= start and stop <= end for begin, end in spans)) for start, stop in offsets)
        of_characters = [0.0] * len(whole.text)
        for begin, end in spans:
            of_characters[begin:end] = [1.0] * (end - begin)
        for field in ("content", "reasoning"):
            for begin, end, weight in self._own_ranges(whole, field):
                of_characters[begin:end] = [weight] * (end - begin)
        return tuple(token_weights(offsets, of_characters))

    def _own_ranges(self, whole: Whole, field: str) -> Iterator[tuple[int, int, float]]:
        """Where in the text the ranges stand that messages give a weight of their own."""
        conversation = whole.conversation
        weighted = {
            i: ranges
            for i, message in enumerate(conversation.messages)
            if (ranges := message.weights if field == "content" else message.reasoning_weights)
        }
        places = self._places(conversation.messages, conversation.tools, whole.text, list(weighted), field=field)
        if weighted and places is None:
            raise DataError(
                f"messages[{next(iter(weighted))}]",
                f"parts of its {field} have weights of their own, and the chat template changes its text",
                action="flag whole messages, or set data.renderer to one made for the model's family",
            )
        for i, first, (begin, end) in places or ():
            for part in weighted[i]:
                start, stop = max(begin, begin + part.start - first), min(end, begin + part.stop - first)
                if start < stop:
                    yield start, stop, part.weight

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        """Tokens of the messages and of the template's prompt for an answer.

        Raises:
            DataError: the template refuses the messages, or one has more than text.
        """
        if any(message.media for message in messages):
            raise DataError(
                "messages", "they contain images or sound, and this caller supports text only", action="ask in text"
            )
        return self.shown_prompt(messages, tools).tokens

    def shown_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        """As `prompt`, with the places of the messages' images, sounds and videos.

        Raises:
            DataError: the template refuses the messages, or an image or sound cannot be used.
        """
        self._media.forget()
        rendered = self._rendered(messages, tools, prompt=True)
        check_nothing_omitted(
            Conversation(tuple(messages), tuple(tools)), rendered.text, self._shaper, self._encoder, prompt=True
        )
        encoded = self._encoder.encode(rendered.text, self._plain(messages, tools, rendered.text, prompt=True))
        tokenised = Rendered(encoded.ids, (0.0,) * len(encoded.ids))
        return with_media(tokenised, encoded, rendered.media)

    def parse(self, tokens: Sequence[int]) -> Parsed:
        """The assistant message that `tokens`, what came after a prompt, say: all up to the first stop token, without
        the blanks the template itself puts around an answer. A leading `<think>` block, also one that the prompt
        opened, is its reasoning, and so is what the template marks otherwise as reasoning by special tokens. Calls are
        read as the template writes them; if `reads_calls` is false, they stay text in the content."""
        end = next((i for i, token in enumerate(tokens) if token in self.stop_ids), None)
        reasoning, text = self._reasoning_and_text(tokens[:end], stopped=end is not None)
        content, calls = self._calls.read(text) if self._calls.read else (text, ())
        message = Message("assistant", content, reasoning=reasoning, tool_calls=calls)
        return Parsed(message, "length" if end is None else "stop")

    def _reasoning_and_text(self, tokens: Sequence[int], *, stopped: bool) -> tuple[str, str]:
        """Reasoning, and all else that an answer says.

        Args:
            stopped: a stop token follows.
        """
        text, (begin, end) = self._tokenizer.decode(tokens).removeprefix(self._habits.opening), self._habits.thought
        of_its_own = ""
        if begin and text.startswith(begin) and end in text:
            of_its_own, _, text = text.removeprefix(begin).partition(end)
        text = text.removeprefix(self._habits.before)
        if stopped and self._habits.after:
            text = text.removesuffix(self._habits.after)
        if of_its_own:
            return of_its_own, text
        opened = text.lstrip().startswith(THINK[0])
        if THINK[1] not in text or not (opened or self._habits.thinks):
            return "", text
        thought, _, text = text.lstrip().removeprefix(THINK[0]).partition(THINK[1])
        return thought.strip("\n"), text.lstrip("\n")

    def _answer(self, prompt: str, whole: str) -> str:
        """What the answer at the end of a text says, besides its reasoning."""
        before, after = self._encoder.encode(prompt).ids, self._encoder.encode(whole).ids
        begin = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before))
        end = next((i for i in range(begin, len(after)) if after[i] in self.stop_ids), None)
        return self._reasoning_and_text(after[begin:end], stopped=end is not None)[1]

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, prompt: bool = False
    ) -> Any:
        try:
            return self._shaper.render(messages, tools, prompt=prompt)
        except TemplateRefused as error:
            raise DataError(
                "messages", f"the chat template refuses the conversation: {error}", action="fix or remove the row"
            ) from error

    def _plain(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], text: str, *, prompt: bool = False
    ) -> list[Range]:
        """Where in the text the contents stand that spell a special token.

        Raises:
            DataError: a content does, and the template changes it, so that its place is not known.
        """
        spelling = {
            i: token for i, message in enumerate(messages) if (token := self._encoder.spells_special(message.content))
        }
        if not spelling:
            return []
        places = self._places(messages, tools, text, list(spelling), prompt=prompt)
        if places is not None:
            return [place for _, _, place in places]
        i, token = next(iter(spelling.items()))
        raise DataError(
            f"messages[{i}]",
            f"it spells the special token {token!r}, and the chat template changes its text, so it cannot stay plain",
            action="remove the row, or set data.renderer to one made for the model's family",
        )

    def _places(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], text: str, wanted: Sequence[int], *,
        field: str = "content", prompt: bool = False,
    ) -> list[tuple[int, int, Range]] | None:  # fmt: skip
        """Where the content (or reasoning) of the `wanted` messages stands in the text, as it is or without its outer
        blanks, cut at images and sounds: the message, the character of the content that stands first, and the range;
        None if the template does something else with it."""
        if not wanted:
            return []
        stood, marks = list(messages), {}
        for i in wanted:
            parts = segments(messages[i]) if field == "content" else [(0, len(getattr(messages[i], field)))]
            named = {MARK.format(f"{i}_{start}", len(text)): (i, start, stop) for start, stop in parts}
            stood[i] = _stood(messages[i], field, named)
            marks.update(named)
        frame = self._rendered(stood, tools, prompt=prompt).text
        for change in (str, str.strip):
            texts = {mark: getattr(messages[i], field)[start:stop] for mark, (i, start, stop) in marks.items()}
            ranges = _find_ranges(frame, {mark: change(part_text) for mark, part_text in texts.items()}, text)
            if ranges is not None and len(ranges) == len(marks):
                cut = [
                    len(part_text) - len(part_text.lstrip()) if change is str.strip else 0
                    for part_text in texts.values()
                ]
                return [(i, start + n, at) for (i, start, _), n, at in zip(marks.values(), cut, ranges, strict=True)]
        return None

    def _token_ranges(self, whole: Whole) -> tuple[Range, ...]:
        """Token ranges by message; none if the messages before one render another way than in the whole."""
        ends = []
        for i in range(1, len(whole.conversation.messages)):
            try:
                text = whole.beginning(i, self._shaper)
            except TemplateRefused:
                return ()
            if not whole.text.startswith(text):
                return ()
            ends.append(sum(1 for start, _ in whole.encoded.offsets if start < len(text)))
        return tuple(zip([0, *ends], [*ends, len(whole.encoded.ids)], strict=True))


def _stood(message: Message, field: str, marks: Mapping[str, tuple[int, int, int]]) -> Message:
    """The message with marks in place of its text, between the same images and sounds."""
    ends: dict[int, int] = {0: 0}
    text = ""
    for mark, (_, _, stop) in marks.items():
        text += mark
        ends[stop] = len(text)
    if field != "content":
        return replace(message, reasoning=text)
    return replace(
        message, content=text, media=tuple(Placed(ends[placed.at], placed.medium) for placed in message.media)
    )


def _find_ranges(frame: str, contents: Mapping[str, str], text: str) -> list[Range] | None:
    """Where contents stand when they take the place of their marks, if that gives the text; else None."""
    ranges: list[Range] = []
    built = ""
    while frame:
        at = {frame.find(mark): mark for mark in contents if mark in frame}
        if not at:
            break
        position = min(at)
        mark = at[position]
        built += frame[:position]
        ranges.append((len(built), len(built) + len(contents[mark])))
        built += contents[mark]
        frame = frame[position + len(mark) :]
    return ranges if built + frame == text else None


def _named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Special tokens that templates know by name."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    return {name: tokenizer.decode([id_]) for name, id_ in ids.items() if id_ is not None}
