"""Renders an example to tokens for `rm`, also in worker processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from finetooth_hooks import DataError, Example, Rendered, Text
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Labelled, Pair
from finetooth_hooks.data.preparation import Render
from finetooth_rows.tally import TOO_LONG
from finetooth_toolbox.messages.answers import has_words, rendered_answer, scored_at_end

Kind = Literal["pairs", "labels"]
PAIRS, LABELS = "pairs of answers", "answers with a number"
SAME = "chosen and rejected are the same"
EMPTY = "an answer is empty"


def kind_of(example: Example) -> Kind:
    """The kind of training for rows like this one.

    Raises:
        DataError: a reward model cannot learn from such a row.
    """
    if isinstance(example, Pair):
        return "pairs"
    if isinstance(example, Labelled):
        return "labels"
    if isinstance(example, Text):
        raise DataError(
            "",
            "the row is a plain text, and method rm learns from pairs or from answers with a number",
            action="set data.format: labelled_text if it has a number in the column label",
        )
    raise DataError(
        "",
        f"the row is neither a pair nor has a number: method rm learns from {PAIRS}, or from {LABELS}",
        action="give rows with chosen and rejected, or with prompt, completion and a numeric label",
    )


def build(options: Mapping[str, Any], context: Context) -> Render:
    """Tokens of an example: two texts of a pair, or one with its label. Unusable rows are refused by name or, with
    `unusable: drop`, left out and counted.

    Args:
        options: `kind`, from `kind_of`; `unusable`, `margin`, `max_length` and `excess_length`, from the recipe.
    """
    kind: Kind = options["kind"]
    drops, longest, excess = options["unusable"] == "drop", options["max_length"], options["excess_length"]

    def refused(problem: str, action: str) -> Rendered:
        if drops:
            return Rendered((), (), left_out=problem)
        raise DataError("", problem, action=f"{action}, or set method.unusable: drop")

    def fitting(rendered: Rendered) -> Rendered:
        """Check that a text fits, since a cut text is not the judged one."""
        parts = (rendered, *rendered.others)
        positions = max(len(part.tokens) - 1 for part in parts)
        if longest is None or positions <= longest:
            return rendered
        if excess == "drop":
            return Rendered((), (), left_out=TOO_LONG)
        raise DataError(
            "",
            f"{positions} tokens, more than train.max_length={longest}",
            action="raise train.max_length, or set train.excess_length to drop",
        )

    def pair(example: Pair) -> Rendered:
        if not has_words(example.chosen) or not has_words(example.rejected):
            return refused(EMPTY, "fill it, or remove the row")
        sides = [
            rendered_answer(example.prompt, side, context, example.tools) for side in (example.chosen, example.rejected)
        ]
        if _same(sides[0], sides[1]):
            return refused(SAME, "remove the row")
        margin = example.margin if options["margin"] and example.margin is not None else 0.0
        if margin < 0:
            return refused("the margin is below 0: the rejected answer is the better one", "swap the answers")
        about = {"margin": float(margin)}
        rejected = scored_at_end(sides[1].tokens, part="rejected", scalars=about, media=sides[1].media)
        return scored_at_end(sides[0].tokens, part="chosen", scalars=about, media=sides[0].media, others=(rejected,))

    def labelled(example: Labelled) -> Rendered:
        if not has_words(example.completion):
            return refused(EMPTY, "fill it, or remove the row")
        read = rendered_answer(example.prompt, example.completion, context, example.tools)
        return scored_at_end(read.tokens, scalars={"label": float(example.label)}, media=read.media)

    def render(example: Example) -> Rendered:
        row_kind = kind_of(example)
        if row_kind != kind:
            is_, are = (PAIRS, LABELS) if row_kind == "pairs" else (LABELS, PAIRS)
            raise DataError("", f"the row is one of {is_}, and others are {are}", action="give rows of one kind")
        rendered = pair(example) if isinstance(example, Pair) else labelled(example)  # type: ignore[arg-type]
        return rendered if rendered.left_out else fitting(rendered)

    return render


def _same(first: Rendered, other: Rendered) -> bool:
    """Whether both have the same tokens, images and sounds."""
    media = [[shown.medium.sha256 for shown in side.media] for side in (first, other)]
    return first.tokens == other.tokens and media[0] == media[1]
