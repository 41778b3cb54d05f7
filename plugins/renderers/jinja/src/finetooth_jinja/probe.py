"""What a template does around an answer, found once by rendering a conversation made for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from finetooth_hooks import Message
from finetooth_toolbox.messages.encoding import Encoded, Encoder

from finetooth_jinja.extension import TOOL, TOOLS
from finetooth_jinja.omissions import THINK
from finetooth_jinja.shapes import Shaper
from finetooth_jinja.template import TemplateRefused

ANSWERS = ("First answer.", "Second answer.")
REASONING = "So it is."
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
        stop_ids: special tokens that end an answer, in the middle and at the end of a conversation: the first behind
            it, or a later one where every turn continues to that (Command R7B closes an answer with
            `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`): the tokenizer's end-of-text token, or the last of the
            conversation.
        before: what stands between the prompt and the answer, if that is blanks and special tokens, or a header that a
            special token ends (`to=user<|message|>`).
        opening: what begins an answer in a prompt, if it begins with a special token: one template (DiffusionGemma's)
            writes it behind results of tools only once the answer is there.
        after: blanks and special tokens between the answer and the token that ends it.
        leads_on: a conversation begins with the prompt that asks for its last answer; else a model is asked in
            another way than it is trained.
        thinks: the prompt opens a think block, so an answer begins inside it.
        thought: what stands before and behind reasoning where it is not a think block, as in a message to itself
            (Muse's); what follows begins as an answer without reasoning does.
    """

    stop_ids: tuple[int, ...] = ()
    before: str = ""
    opening: str = ""
    after: str = ""
    leads_on: bool = True
    thinks: bool = False
    thought: tuple[str, str] = ("", "")


def habits(shaper: Shaper, encoder: Encoder, eos_id: int | None) -> Habits:
    """Render and look; a template that cannot render the probe shows no habits.

    Args:
        eos_id: the tokenizer's end-of-text token, which most models end a turn with.
    """
    try:
        text = shaper.render(MESSAGES).text
        prompt = shaper.render(MESSAGES[:3], prompt=True).text
        asked = shaper.render(MESSAGES[:3]).text
    except TemplateRefused:
        return Habits()
    encoded = encoder.encode(text)
    middle, last = (_closing(text, text.find(answer) + len(answer), encoded, eos_id) for answer in ANSWERS)
    ending = _ending(middle, last, eos_id)
    stops = ending[-1:] or [*middle[:1], *last[:1]]
    after = ""
    for answer, stop in zip(ANSWERS, (middle[:1], ending[-1:] or last[:1]), strict=True):
        after = text[text.find(answer) + len(answer) : stop[0].start] if stop else after
    leads_on = text.startswith(prompt)
    before = text[len(prompt) : text.find(ANSWERS[1])] if leads_on else ""
    thinks = prompt.rstrip().endswith("<think>")
    stop_ids = tuple(dict.fromkeys(stop.id for stop in stops))
    stop_ids += _call_stops(shaper, encoder, (*stop_ids, *([] if eos_id is None else [eos_id])))
    header = _is_markup(before, encoder) or encoder.encode(before).special[-1]
    opening = prompt[len(asked) :] if prompt.startswith(asked) else ""
    opening = opening if opening and encoder.encode(opening).special[0] else ""
    before = before if header else ""
    return Habits(stop_ids, before, opening, after, leads_on, thinks, _thought(shaper, encoder, prompt, before))


def _thought(shaper: Shaper, encoder: Encoder, prompt: str, before: str) -> tuple[str, str]:
    """What stands before and behind the reasoning of an answer, if both hold a special token; else nothing."""
    try:
        text = shaper.render((*MESSAGES[:3], replace(MESSAGES[3], reasoning=REASONING))).text
    except TemplateRefused:
        return "", ""
    begin, found, rest = text.removeprefix(prompt).partition(REASONING)
    end, answered, _ = rest.partition(ANSWERS[1])
    end = end.removesuffix(before)
    whole = text.startswith(prompt) and found and answered and THINK[0] not in begin
    return (begin, end) if whole and all(any(encoder.encode(part).special) for part in (begin, end)) else ("", "")


class _Stop(NamedTuple):
    """A special token behind an answer, and its characters."""

    id: int
    start: int
    stop: int


def _closing(text: str, at: int, encoded: Encoded, eos_id: int | None) -> list[_Stop]:
    """The special tokens behind a character, as far as nothing but blanks stands between them."""
    stops: list[_Stop] = []
    for id_, (start, stop), special in zip(encoded.ids, encoded.offsets, encoded.special, strict=True):
        if start < at:
            continue
        # a token that swallows the blanks before it begins with them
        if (special or id_ == eos_id) and not text[at:start].strip():
            stops.append(_Stop(id_, start, stop))
            at = stop
        elif text[start:stop].strip():
            break
    return stops


def _ending(middle: Sequence[_Stop], last: Sequence[_Stop], eos_id: int | None) -> list[_Stop]:
    """What closes every turn: the tokens behind the last answer up to the tokenizer's end-of-text token, or else all of
    them, if the same ones stand behind the answer in the middle; else nothing."""
    ids = [stop.id for stop in last]
    count = ids.index(eos_id) + 1 if eos_id in ids else len(ids)
    return list(last[:count]) if [stop.id for stop in middle[:count]] == ids[:count] else []


def _call_stops(shaper: Shaper, encoder: Encoder, known: Sequence[int]) -> tuple[int, ...]:
    """The special token that ends an answer which only calls, where none of those known does (`<|eom_id|>`)."""
    question, calling, result, reply = TOOLS[:4]
    twice = replace(calling, tool_calls=calling.tool_calls * 2)
    try:
        alone = shaper.render((question, calling), (TOOL,)).text
        longer = shaper.render((question, calling, result, reply), (TOOL,)).text
        double = shaper.render((question, twice), (TOOL,)).text
    except TemplateRefused:
        return ()
    if not longer.startswith(alone):
        return ()
    encoded = encoder.encode(alone)
    tail: list[int] = []
    for id_, place, special in zip(*map(reversed, (encoded.ids, encoded.offsets, encoded.special)), strict=True):
        if not special and alone[slice(*place)].strip():
            break
        tail += [id_] if special else []
    # what comes once more with every call is the markup of calls
    of_calls = Counter(encoder.encode(double).ids) - Counter(encoded.ids)
    if any(id_ in known for id_ in tail):
        return ()
    return tuple(id_ for id_ in tail[:1] if not of_calls[id_])


def _is_markup(text: str, encoder: Encoder) -> bool:
    """Nothing but blanks and special tokens."""
    encoded = encoder.encode(text)
    plain = (
        text[slice(*place)] for place, special in zip(encoded.offsets, encoded.special, strict=True) if not special
    )
    return not "".join(plain).strip()
