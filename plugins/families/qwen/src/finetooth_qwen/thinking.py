"""Where reasoning stands in a message, as the templates of Qwen3 and Qwen3.5 read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetooth_hooks import Message
from finetooth_rendering.turns import trimmed

BEGIN, END = "<think>", "</think>"


@dataclass(frozen=True)
class Thought:
    """The reasoning of a message and where its answer begins.

    Attributes:
        present: there is reasoning, be it nothing but line feeds.
        reasoning: range of `Message.reasoning`, or of the content if `inline`, without line feeds around it.
        inline: it stands in the content, in a think block.
        content: range of the content that is the answer.
        stripped: the same without the line feeds before it.
        lost: the content has more text than reasoning and answer, which the template would drop.
    """

    present: bool
    reasoning: tuple[int, int]
    inline: bool
    content: tuple[int, int]
    stripped: tuple[int, int]
    lost: bool = False

    @property
    def says(self) -> bool:
        """There is more to the reasoning than line feeds."""
        return self.reasoning[0] < self.reasoning[1]

    @property
    def has_content(self) -> bool:
        return self.content[0] < self.content[1]


def thought_of(message: Message) -> Thought:
    """Reasoning and answer of an assistant message. A think block in the content counts if the message has no reasoning
    of its own."""
    content, end = message.content, len(message.content)
    if message.reasoning or END not in content:
        reasoning = _stripped(message.reasoning, 0, len(message.reasoning))
        first = end - len(content.lstrip("\n"))
        return Thought(bool(message.reasoning), reasoning, False, (0, end), (first, end))
    before = content[: content.index(END)].rstrip("\n")
    opened = before.rfind(BEGIN)
    begin = opened + len(BEGIN) if opened >= 0 else 0
    answer = end - len(content[content.rindex(END) + len(END) :].lstrip("\n"))
    reasoning = _stripped(content, begin, len(before))
    lost = bool(before[: max(opened, 0)].strip()) or content.count(END) > 1
    return Thought(reasoning[0] < reasoning[1], reasoning, True, (answer, end), (answer, end), lost)


def trimmed_thought(message: Message) -> Thought:
    """The same without any blanks around reasoning and answer, as Qwen3.5's template reads it."""
    thought, content = thought_of(message), message.content
    text = content if thought.inline else message.reasoning
    begin, stop = thought.reasoning
    inside, behind = trimmed(text[begin:stop])
    end = len(content.rstrip())
    first = thought.stripped[0] if thought.inline else trimmed(content)[0]
    answer = (min(first, end), end)
    return replace(
        thought, present=inside < behind, reasoning=(begin + inside, begin + behind), content=answer, stripped=answer
    )


def last_query(messages: Sequence[Message], *, trim: bool = False) -> int:
    """Index of the last message of the user that is a question, not the result of a tool; if there is none, of the last
    message.

    Args:
        trim: blanks around contents count for nothing.
    """
    for i in range(len(messages) - 1, -1, -1):
        content = messages[i].content.strip() if trim else messages[i].content
        result = content.startswith("<tool_response>") and content.endswith("</tool_response>")
        if messages[i].role == "user" and not result:
            return i
    return len(messages) - 1


def _stripped(text: str, begin: int, end: int) -> tuple[int, int]:
    """A range of a text without line feeds around it."""
    while begin < end and text[begin] == "\n":
        begin += 1
    while end > begin and text[end - 1] == "\n":
        end -= 1
    return begin, end
