"""Which characters of a rendered conversation train, proved and not guessed.

What the assistant says in a message begins where the template's own prompt for that message ends, and ends with the
end-of-turn token. That holds only if the prompt is a beginning of the whole text (or the content stands exactly where
the two part), if the message's content stands between the two, and if nothing else ends a turn before it: each is
checked for every trained message. A template with
`{% generation %}` blocks says itself what the assistant says; then the blocks must be as many as the messages, and
hold their content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from finetooth_hooks import Conversation, DataError, Message
from finetooth_toolbox.messages.encoding import Encoded, Range

from finetooth_jinja.media import segments
from finetooth_jinja.shapes import Shaper
from finetooth_jinja.template import TemplateRefused

THINK_END = "</think>"
OTHER = "SOMETHING ELSE IS SAID"
ACTION = (
    "set data.renderer to one made for the model's family (ft plugins list --kind renderer), or to {name: jinja, "
    "template: FILE} with a copy of the model's template in which {% generation %} ... {% endgeneration %} stand "
    "around what the assistant says"
)
OPENED = re.compile(r"<think>\s*\Z")
"""A think block that a prompt opens."""
NO_THOUGHT = re.compile(r"<think>\s*</think>\s*\Z")
"""A think block that says nothing."""


@dataclass(frozen=True)
class Whole:
    """A rendered and encoded conversation.

    Attributes:
        beginnings: what its first i messages give alone, by i, as far as that was rendered.
    """

    conversation: Conversation
    text: str
    generated: tuple[Range, ...]
    encoded: Encoded
    beginnings: dict[int, str] = field(default_factory=dict)

    def beginning(self, i: int, shaper: Shaper) -> str:
        """The text of the first i messages alone.

        Raises:
            TemplateRefused: the template cannot render them.
        """
        messages, tools = self.conversation.messages, self.conversation.tools
        if i == len(messages):
            return self.text
        if i not in self.beginnings:
            self.beginnings[i] = shaper.render(messages[:i], tools).text
        return self.beginnings[i]


def text_in_template(content: str, within: str) -> str | None:
    """What a template keeps of a text: all of it without outer blanks, or what stands behind the reasoning embedded in
    it; None if neither is there.

    Args:
        content: a content, or what stands in one between two images or sounds.
        within: text by the template.
    """
    return next((alternative for alternative in _alternatives(content) if alternative in within), None)


def _alternatives(content: str) -> Iterator[str]:
    yield content.strip()
    behind = content.rpartition(THINK_END)[2].strip()
    if THINK_END in content and behind:  # nothing is found everywhere
        yield behind


def _texts(message: Message) -> list[str]:
    """A message's content, cut at its images and sounds."""
    return [message.content[start:stop] for start, stop in segments(message)] or [""]


def trained_spans(whole: Whole, trained: Sequence[bool], shaper: Shaper, stop_ids: Sequence[int]) -> list[Range]:
    """Character ranges that train.

    Args:
        trained: which messages train.
        stop_ids: token ids that end a turn.

    Raises:
        DataError: a range cannot be established.
    """
    messages = whole.conversation.messages
    blocks = _blocks(whole) if whole.generated else {}
    spans = []
    for i, trains in enumerate(trained):
        if not trains:
            continue
        if i in blocks:
            spans.append(_inside_turn(i, whole, shaper, _checked(i, messages[i], whole.text, blocks[i])))
        elif messages[i].role == "assistant":
            spans.append(_turn_range(i, whole, shaper, stop_ids))
        else:
            spans.append(_other(i, whole, shaper, stop_ids))
    return spans


def _blocks(whole: Whole) -> dict[int, Range]:
    """The generation block of each assistant message; blocks that touch may be one answer in two parts."""
    speakers = [i for i, message in enumerate(whole.conversation.messages) if message.role == "assistant"]
    blocks = list(whole.generated)
    if len(blocks) != len(speakers):
        joined = blocks[:1]
        for begin, end in blocks[1:]:
            joined[-1:] = [(joined[-1][0], end)] if joined[-1][1] == begin else [joined[-1], (begin, end)]
        blocks = joined
    if len(blocks) != len(speakers):
        problem = f"the chat template marks {len(blocks)} answers where the conversation has {len(speakers)}"
        raise DataError("messages", problem, action=ACTION)
    return dict(zip(speakers, blocks, strict=True))


def _inside_turn(i: int, whole: Whole, shaper: Shaper, span: Range) -> Range:
    """A marked range, which must not reach into what was said before; told where the text before is its beginning."""
    before = _text_before(i, whole, shaper) if i else ""
    if whole.text.startswith(before) and span[0] < len(before):
        raise _unproved(i, "the chat template marks what others say")
    return span


def _turn_range(i: int, whole: Whole, shaper: Shaper, stop_ids: Sequence[int]) -> Range:
    """From the end of the prompt for message i to the end of its turn."""
    message = whole.conversation.messages[i]
    prompt = _text_before(i, whole, shaper, prompt=True)
    begin = len(prompt)
    if not whole.text.startswith(prompt):
        begin = _begins(i, whole, shaper, prompt)
    stop = _first_stop(whole.encoded, begin, stop_ids)
    if stop is None:
        raise _unproved(i, "no end-of-turn token follows it")
    after = _text_before(i + 1, whole, shaper)
    leads = whole.text.startswith(after)
    if stop[1] > (len(after) if leads else _changes(i + 1, whole, shaper, reported=i)):
        raise _unproved(i, "its turn has no end-of-turn token of its own, only a later message has one")
    span = _checked(i, message, whole.text, (begin, stop[1]))
    if leads and i + 1 < len(whole.conversation.messages) and _first_stop(whole.encoded, stop[1], stop_ids, len(after)):
        raise _unproved(i, "behind the token that ends its turn stands another one, which would not train")
    if leads and _says_more(whole.encoded, whole.text, stop[1], len(after)):
        raise _unproved(i, "its turn continues behind the first end-of-turn token")
    return span


def has_untrained_end(whole: Whole, trained: Sequence[bool], spans: Sequence[Range], shaper: Shaper) -> bool:
    """Behind the end of an answer that trains stands a further special token of the same turn, which does not.

    Only where messages follow: what ends a conversation is not the end of a turn.

    Args:
        spans: of the messages that train.
    """
    messages = whole.conversation.messages
    for i, (_, end) in zip((i for i, trains in enumerate(trained) if trains), spans, strict=True):
        if messages[i].role != "assistant" or i + 1 == len(messages):
            continue
        after = _text_before(i + 1, whole, shaper)
        if whole.text.startswith(after) and any(
            special and end <= start < len(after)
            for (start, _), special in zip(whole.encoded.offsets, whole.encoded.special, strict=True)
        ):
            return True
    return False


def _says_more(encoded: Encoded, text: str, begin: int, end: int) -> bool:
    """Between two characters stands more than blanks and special tokens."""
    for (start, stop), special in zip(encoded.offsets, encoded.special, strict=True):
        if not special and begin < stop and start < end and text[max(start, begin) : min(stop, end)].strip():
            return True
    return False


def _changes(i: int, whole: Whole, shaper: Shaper, *, reported: int) -> int:
    """The first character of the text that is another if message i says something else; nothing of what it says stands
    before.

    Args:
        reported: the message that an error names.
    """
    messages = list(whole.conversation.messages)
    messages[i] = replace(messages[i], content=OTHER, media=())
    try:
        other = shaper.render(messages, whole.conversation.tools).text
    except TemplateRefused as error:
        raise _unproved(reported, f"where messages[{i}] begins cannot be found: {error}") from error
    if other == whole.text:
        raise _unproved(reported, f"the chat template leaves messages[{i}] out")
    return _common_length(other, whole.text)


def _begins(i: int, whole: Whole, shaper: Shaper, prompt: str) -> int:
    """Where what message i says begins, in a text that does not begin with the prompt for it.

    Raises:
        DataError: it is not to be told.
    """
    try:
        return _directly_after(i, whole, _common_length(prompt, whole.text), shaper)
    except DataError:
        begin = _behind_header(i, whole, shaper, prompt)
        if begin is None:
            raise
        return begin


def _directly_after(i: int, whole: Whole, agreed: int, shaper: Shaper) -> int:
    """Where the content of message i begins, if it stands right where text and prompt part.

    Some templates end a prompt with more than stands before an answer in the past (`<think>`, a line feed more). It has
    to be that content, and not the same words of another message.

    Args:
        agreed: length of what text and prompt share; it may reach into the content.
    """
    for content in _alternatives(_texts(whole.conversation.messages[i])[0]):
        begin = whole.text.rfind(content, 0, agreed + len(content))
        if not content or begin < 0 or begin + len(content) <= agreed:
            continue
        first = _changes(i, whole, shaper, reported=i)
        if not whole.text[first:begin].strip() and first <= begin + _common_length(OTHER, content):
            return begin
    raise _unproved(i, "the chat template renders the messages before it another way")


def _behind_header(i: int, whole: Whole, shaper: Shaper, prompt: str) -> int | None:
    """Where message i begins, if its content (of one that only calls, what stands where a content would) follows what a
    prompt adds to the messages before it; None if it does not.

    A prompt may open a think block that an answer in the past has not, or has with nothing in it: then what the model
    says begins where the two part. For templates that write earlier messages otherwise as the conversation grows.
    """
    before, message = _text_before(i, whole, shaper), whole.conversation.messages[i]
    header = prompt.removeprefix(before)
    base = OPENED.sub("", header)
    if not prompt.startswith(before) or not base.strip():
        return None
    content = next(_alternatives(_texts(message)[0]))
    first = _changes(i, whole, shaper, reported=i)
    if whole.text.startswith(content, first - _common_length(OTHER, content)):
        first -= _common_length(OTHER, content)
    elif not whole.text[first:].lstrip().startswith(content):  # a content may be written with the blanks around it
        return None
    if not content and not message.tool_calls:
        return None
    if whole.text.endswith((header, base), 0, first):
        return first
    thought = NO_THOUGHT.search(whole.text, 0, first)
    if thought is None or not whole.text.endswith(base, 0, thought.start()):
        return None
    return thought.start() + _common_length(header[len(base) :], thought.group())


def _other(i: int, whole: Whole, shaper: Shaper, stop_ids: Sequence[int]) -> Range:
    """The content of message i, which the template must keep and which must stand there once, to the end of its turn
    if it has one."""
    message = whole.conversation.messages[i]
    begin = _beginning(i, whole, shaper) if i else 0
    end = _beginning(i + 1, whole, shaper)
    content, *more = (text.strip() for text in _texts(message))
    position = whole.text.find(content, begin, end)
    if not content or position < 0:
        raise _unproved(i, "the chat template does not keep its content")
    if whole.text.find(content, position + 1, end) >= 0:
        raise _unproved(i, "its content occurs more than once in its turn")
    until = position + len(content)
    if (said := _texts(message)[0])[:1].isspace():  # blanks that the template keeps are the message's own
        first = _changes(i, whole, shaper, reported=i)
        if begin <= first < position and said.startswith(whole.text[first:position]):
            position = first
    for text in more:
        until = whole.text.find(text, until, end) + len(text)
    if not position < until <= end:
        raise _unproved(i, "the chat template does not keep its content")
    stop = _first_stop(whole.encoded, until, stop_ids)
    return (position, stop[1] if stop is not None and stop[1] <= end else until)


def _beginning(i: int, whole: Whole, shaper: Shaper) -> int:
    """Length of the text of the first i messages, which must be a beginning of the whole text."""
    text = _text_before(i, whole, shaper)
    if not whole.text.startswith(text):
        raise _unproved(max(i - 1, 0), "the chat template renders it another way when messages follow")
    return len(text)


def _text_before(i: int, whole: Whole, shaper: Shaper, *, prompt: bool = False) -> str:
    conversation = whole.conversation
    try:
        if not prompt:
            return whole.beginning(i, shaper)
        return shaper.render(conversation.messages[:i], conversation.tools, prompt=True).text
    except TemplateRefused as error:
        raise _unproved(i, f"the messages before it do not render: {error}") from error


def _common_length(first: str, second: str) -> int:
    """How many characters two texts begin with in common."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _first_stop(encoded: Encoded, begin: int, stop_ids: Sequence[int], end: int | None = None) -> Range | None:
    """The first token that ends a turn and begins at a character or behind it, before another one."""
    return next(
        (
            offset
            for id_, offset in zip(encoded.ids, encoded.offsets, strict=True)
            if id_ in stop_ids and offset[0] >= begin and (end is None or offset[0] < end)
        ),
        None,
    )


def _checked(i: int, message: Message, text: str, span: Range) -> Range:
    if any(text_in_template(content, text[slice(*span)]) is None for content in _texts(message)):
        raise _unproved(i, "the chat template does not keep its content")
    return span


def _unproved(i: int, why: str) -> DataError:
    return DataError(f"messages[{i}]", f"what trains cannot be established: {why}", action=ACTION)
