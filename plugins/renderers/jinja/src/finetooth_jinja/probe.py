"""What a template does around an answer, found once by rendering a conversation made for it."""

from __future__ import annotations

from dataclasses import dataclass

from finetooth_hooks import Message
from finetooth_toolbox.rendering.encoding import Encoder

from finetooth_jinja.shapes import Shaper
from finetooth_jinja.template import TemplateRefused

ANSWERS = ("First answer.", "Second answer.")
MESSAGES = (
    Message("user", "First question?"),
    Message("assistant", ANSWERS[0]),
    Message("user", "Second question?"),
    Message("assistant", ANSWERS[1]),
)


@dataclass(frozen=True)
class Habits:
    """How a template ends and pads an answer.

    Attributes:
        stop_ids: special tokens that follow an answer, in the middle and at the end of a conversation.
        before: blanks between the prompt and the answer.
        after: blanks between the answer and the token that ends it.
        leads_on: a conversation begins with the prompt that asks for its last answer; else a model is asked in
            another way than it is trained.
        thinks: the prompt opens a think block, so an answer begins inside it.
    """

    stop_ids: tuple[int, ...] = ()
    before: str = ""
    after: str = ""
    leads_on: bool = True
    thinks: bool = False


def habits(shaper: Shaper, encoder: Encoder) -> Habits:
    """Render and look; a template that cannot render the probe shows no habits."""
    try:
        text = shaper.render(MESSAGES).text
        prompt = shaper.render(MESSAGES[:3], prompt=True).text
    except TemplateRefused:
        return Habits()
    encoded = encoder.encode(text)
    stops: list[int] = []
    after = ""
    for answer in ANSWERS:
        end = text.find(answer) + len(answer)
        for id_, (start, _), special in zip(encoded.ids, encoded.offsets, encoded.special, strict=True):
            # a token that swallows the blanks before it begins with them
            if special and start >= end and not text[end:start].strip():
                stops.append(id_)
                after = text[end:start]
                break
    leads_on = text.startswith(prompt)
    before = text[len(prompt) : text.find(ANSWERS[1])] if leads_on else ""
    thinks = prompt.rstrip().endswith("<think>")
    return Habits(tuple(dict.fromkeys(stops)), before if before.isspace() else "", after, leads_on, thinks)
