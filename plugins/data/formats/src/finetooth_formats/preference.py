"""The format `preference`: a preferred and a rejected answer to one prompt, or several answers that were judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from finetooth_hooks import DataError, Row
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Labelled, LeftOut, Pair, ReadRow, Side
from pydantic import model_validator

from finetooth_formats import columns, ranked, swift
from finetooth_formats.media import RowMedia
from finetooth_formats.message_options import MessageOptions
from finetooth_formats.messages import MessageReader
from finetooth_formats.sides import SideReader, common, common_text, number
from finetooth_formats.unusable import NO_PROMPT, Policy, answer_problem, left_out, no_prompt

PROMPTS = ("prompt", "question", "instruction", "input", "messages")
"""Columns that are found by themselves, in this order."""
SAME = "chosen and rejected are the same"


class PreferenceOptions(MessageOptions):
    """Options of `preference`."""

    aliases: ClassVar[Mapping[str, str]] = {
        **MessageOptions.aliases,
        "field_messages": "prompt",
        "field_prompt": "prompt",
        "field_chosen": "chosen",
        "field_rejected": "rejected",
        "field_system": "system_column",
        "field_tools": "tools",
    }

    prompt: str = ""
    """Column with the prompt; empty takes `prompt`, `question`, `instruction`, `input` or `messages`. If a row has
    none, the prompt is the messages with which both answers begin."""
    input: str = ""
    """Column with the input of a text prompt, which is appended to it; empty for none. It may be missing in a row."""
    separator: str = "\n\n"
    """Text between a prompt and its `input`."""
    chosen: str = "chosen"
    """Column with the preferred answer: text, a message, messages, or a transcript of turns that begin with `Human:`
    and `Assistant:` after an empty line."""
    rejected: str = "rejected"
    """Column with the other answer."""
    margin: str = "margin"
    """Column that says by how much the preferred answer is better; may be missing."""
    chosen_score: str = "score_chosen"
    """Column with the rating of the preferred answer. Without a margin column, the margin is the difference of the two
    ratings. Rows whose ratings are equal, or contradict the preference, cannot be used."""
    rejected_score: str = "score_rejected"
    """Column with the rating of the other answer."""
    responses: str = "responses"
    """For rows without `chosen` and `rejected`: column with several answers, which `pairs` combines into pairs. The
    margin of a pair is the difference of its two numbers."""
    scores: str = "scores"
    """Column with a number for each of `responses`; higher is better."""
    ranks: str = "ranks"
    """Column with a number for each of `responses`; lower is better. Read if the row has no scores."""
    ordered: bool = False
    """`responses` are sorted, the best first; no numbers are read."""
    pairs: ranked.Pairs = "best-worst"
    """Which of `responses` form pairs: the best with the worst, each with the next worse one (`adjacent`), or each with
    each (`all`). Two equally good ones form no pair, and are counted."""
    unpair: bool = False
    """Make two labelled answers of each pair, the preferred one true and the other false, for methods that learn from
    labels."""
    style: Literal["chat", "raw"] = "chat"
    """`chat` reads texts as messages; `raw` keeps them without any markup. If a raw row has no column for its prompt,
    the prompt is the text with which both answers begin, up to the last space."""
    unusable: Policy = "drop"
    """What happens to a pair that teaches nothing (both answers are the same, one is empty or not the assistant's, the
    prompt is missing, neither is better): `drop` leaves it out and counts it by reason, `raise` is an error."""
    system_column: str = "system"
    """Column with a system message; may be missing."""
    tools: str = "tools"
    """Column with tool schemas; may be missing."""

    @model_validator(mode="after")
    def _fits(self) -> PreferenceOptions:
        if self.input and self.style == "raw":
            raise ValueError("input needs style: chat; style raw leaves texts as they are")
        if self.unpair and self.pairs != "best-worst":
            raise ValueError("unpair needs pairs: best-worst; with other pairs an answer could be true in one pair "
                "and false in the next")  # fmt: skip
        return self


def build(options: PreferenceOptions, context: Context) -> Preference:
    options.tell(context)
    reader = MessageReader(
        **options.about_messages(), note=context.note, format_="preference", may_be_empty=("system", "assistant")
    )
    return Preference(options, reader)


class Preference:
    """Rows with two answers, or with several that were judged."""

    def __init__(self, options: PreferenceOptions, reader: MessageReader) -> None:
        self._options, self._reader = options, reader
        self._sides = SideReader(reader, "preference", (options.input, options.separator))
        self._prompts = (options.prompt,) if options.prompt else PROMPTS

    def detect(self, values: Mapping[str, Any]) -> str | None:
        if self._as_pair(values) is not values:
            return f"has the column {swift.REJECTED!r} next to the preferred answer (as ms-swift has it)"
        chosen, rejected = self._options.chosen, self._options.rejected
        if columns.present(values, chosen, rejected):
            prompt = "" if self._prompt(values) else "; the prompt is what both begin with"
            return f"has the columns {chosen!r} and {rejected!r}{prompt}"
        judged = self._detect_judgements(values)
        if judged is None or not self._prompt(values):
            return None
        by = f" with {judged[0]!r}" if judged[0] else ", the best first"
        made = {
            "best-worst": "the best and the worst answer of a row make a pair",
            "adjacent": "each answer and the next worse one make a pair",
            "all": "any two answers of a row make a pair",
        }
        return f"has {self._options.responses!r}{by}: {made[self._options.pairs]}"

    def read(self, row: Row) -> ReadRow:
        """Reads a pair of a chosen and a rejected answer.

        Raises:
            DataError: a column is missing or wrong, or an image or sound has no place; with `unusable: raise`, a pair
                teaches nothing.
        """
        options = self._options
        row = Row(row.id, self._as_pair(row.values), row.folder)
        media = RowMedia(row, options.media_columns)
        if media.present and options.style == "raw":
            raise DataError(row.id, "it has images or sounds, and style raw reads text only", action="set style: chat")
        column = self._prompt(row.values)
        prompt = self._prompt_side(row, column, media) if column else None
        made = self._made(row, prompt, media)
        media.finish()
        return self._unpaired(made)

    def _made(self, row: Row, prompt: Side | None, media: RowMedia) -> list[Pair | LeftOut]:
        options = self._options
        if (
            columns.present(row.values, options.chosen, options.rejected)
            or (judged := self._detect_judgements(row.values)) is None
        ):
            sides = []
            for name in (options.chosen, options.rejected):
                value = columns.value(row.values, name)
                if value is None:
                    raise columns.missing(row, name, "preference")
                sides.append(self._answer(row, name, value, media))
            margin, problem = self._margin(row)
            return [left_out(row, problem, options) if problem else self._pair(row, prompt, sides[0], sides[1], margin)]
        return list(self._pairs_by_rank(row, prompt, media, *judged))

    def _margin(self, row: Row) -> tuple[float | None, str]:
        """The margin of the first answer, and the fault of it."""
        options = self._options
        margin = number(row, options.margin)
        scores = [number(row, column) for column in (options.chosen_score, options.rejected_score)]
        if scores[0] is None or scores[1] is None:
            return margin, ""
        gap = scores[0] - scores[1]
        if gap <= 0:
            return None, "rejected is rated higher than chosen" if gap else "chosen and rejected are rated the same"
        return gap if margin is None else margin, ""

    def _pairs_by_rank(
        self, row: Row, prompt: Side | None, media: RowMedia, judgements: str, order: ranked.Order
    ) -> Iterator[Pair | LeftOut]:
        options = self._options
        answers, numbers = ranked.read_ranking(row, options.responses, judgements)
        read = [self._answer(row, f"{options.responses}[{i}]", answer, media) for i, answer in enumerate(answers)]
        margin = number(row, options.margin) if options.pairs == "best-worst" else None
        for two in ranked.ranked_pairs(numbers, order, options.pairs):
            if not two.margin:
                best_worst = options.pairs == "best-worst"
                yield left_out(row, ranked.NO_BETTER if best_worst else ranked.TIE, options)
                continue
            yield self._pair(row, prompt, read[two.better], read[two.worse], two.margin if margin is None else margin)

    def _pair(
        self, row: Row, prompt: Side | None, chosen: Side, rejected: Side, margin: float | None
    ) -> Pair | LeftOut:
        """The two answers without the prompt, and the prompt.

        Args:
            prompt: of the row's column; None: it has none.
        """
        options = self._options
        if chosen == rejected:
            return left_out(row, SAME, options)
        if prompt is not None:
            chosen, rejected = _after(prompt, chosen), _after(prompt, rejected)
        else:
            prompt, chosen, rejected = _shared_prompt(chosen, rejected)
            if not prompt:
                reason = f"{options.chosen} and {options.rejected} have no prompt in common"
                return left_out(row, reason, options, f"add a column {self._prompts[0]!r}, or remove the row")
        problem = answer_problem(chosen, "chosen") or answer_problem(rejected, "rejected")
        if no_prompt(prompt):
            problem = NO_PROMPT
        if problem:
            return left_out(row, problem, options)
        if isinstance(prompt, str):
            return Pair(prompt, chosen, rejected, margin)
        tools = self._reader.tools(row.id, columns.value(row.values, options.tools))
        prompt = self._sides.with_system(row, options.system_column, prompt)
        return Pair(prompt, chosen, rejected, margin, tools)

    def _unpaired(self, made: list[Pair | LeftOut]) -> ReadRow:
        if not self._options.unpair:
            return made if len(made) > 1 else made[0]
        rows: list[Labelled | LeftOut] = []
        for pair in made:
            if isinstance(pair, LeftOut):
                rows.append(pair)
                continue
            sides = ((pair.chosen, True), (pair.rejected, False))
            rows += [Labelled(pair.prompt, answer, label, pair.tools) for answer, label in sides]
        return rows if len(rows) > 1 else rows[0]

    def _prompt_side(self, row: Row, column: str, media: RowMedia) -> Side:
        if self._options.style == "raw":
            return self._sides.text(row, column)
        return self._sides.messages(row, column, "user", media)

    def _answer(self, row: Row, path: str, value: Any, media: RowMedia) -> Side:
        if self._options.style == "raw":
            if not isinstance(value, str):
                raise DataError(
                    row.id, f"{path} is {columns.kind(value)}, and style raw reads texts", action="set style: chat"
                )
            return value
        return self._sides.answer_of(row, path, value, media)

    def _as_pair(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        named = self._options.model_fields_set & {"prompt", "chosen", "rejected"}
        return values if named else swift.as_pair(values)

    def _prompt(self, values: Mapping[str, Any]) -> str:
        return next((name for name in self._prompts if columns.present(values, name)), "")

    def _detect_judgements(self, values: Mapping[str, Any]) -> tuple[str, ranked.Order] | None:
        """The column that judges several answers (empty: their order does), and which of its numbers are better."""
        options = self._options
        orders: tuple[tuple[str, ranked.Order], ...] = ((options.scores, "high"), (options.ranks, "low"))
        if options.ordered:
            orders = (("", "low"),)
        return next((order for order in orders if ranked.is_ranked(values, options.responses, order[0])), None)


def _shared_prompt(chosen: Side, rejected: Side) -> tuple[Side, Side, Side]:
    """The common beginning of both, and both without it."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        end = common_text(chosen, rejected)
        return chosen[:end], chosen[end:], rejected[end:]
    assert not isinstance(chosen, str) and not isinstance(rejected, str)
    shared = common(chosen, rejected)
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _after(prompt: Side, answer: Side) -> Side:
    """The answer without the prompt, where it repeats it."""
    if isinstance(prompt, str) or isinstance(answer, str):
        return answer
    begins = len(answer) > len(prompt) and answer[: len(prompt)] == prompt
    return answer[len(prompt) :] if begins else answer
