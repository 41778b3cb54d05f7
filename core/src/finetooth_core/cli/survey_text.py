"""What data are like, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks.plan import Decision
from rich.text import Text

from finetooth_core.data.survey import Repeats, Survey

BAR = 40
"""Width of the longest bar, in characters."""


def render(survey: Survey) -> Text:
    """Lengths, and what there is to say of one split."""
    low, median, high, most = survey.quantiles
    lines = [f"Lengths of {survey.split}: {low} to {most} tokens, median {median}, 95 % within {high}"]
    largest = max(count for _, _, count in survey.histogram)
    width = len(str(survey.histogram[-1][1]))
    for start, stop, count in survey.histogram:
        bar = "\u2588" * round(BAR * count / largest) or ("\u258f" if count else "")
        lines.append(f"  {start:>{width}}-{stop:<{width}}  {bar:<{BAR}}  {count:,}")
    if survey.roles:
        by_role = ", ".join(f"{role} {count:,}" for role, count in survey.roles.items())
        lines.append(f"  trained tokens by role: {by_role} (of the first {survey.looked_at:,} rows)")
    if survey.images[1]:
        rows, images, tokens = survey.images
        lines.append(f"  images: {images:,} in {rows:,} {'row' if rows == 1 else 'rows'}, {tokens:,} tokens")
    lines.append(
        f"  padding: {100 * survey.padded:.1f} % if each batch were one rectangle, {100 * survey.budgeted:.1f} % in "
        "micro-batches by length"
        + ("" if survey.laid_out is None else f", {100 * survey.laid_out:.1f} % as it will be laid out")
    )
    return Text("\n".join(lines))


def choice(decisions: Sequence[Decision]) -> Text:
    """Which rows the recipe takes of each source, and why not the others."""
    lines = [f"  {one.setting.removesuffix('.rows')}: {one.value:,} rows: {one.reason}" for one in decisions]
    return Text("\n".join(["Rows taken", *lines]))


def verdict(both: Repeats, surveys: Sequence[Survey], steps: str) -> Text:
    """What a person should look at, and how many steps there are."""
    lines = [f"optimizer steps: {steps}"]
    for survey in surveys:
        if survey.repeats.count:
            lines.append(
                f"note: {_rows(survey.repeats.count, survey.split, 'repeats', 'repeat')} an earlier one"
                f"{_named(survey.repeats)}"
            )
    if both.count:
        lines.append(
            f"note: {_rows(both.count, 'eval', 'is', 'are')} in train too{_named(both)}; its score says little"
        )
    return Text("\n".join(lines))


def _named(repeats: Repeats) -> str:
    shown = ", ".join(f"{id_} = {earlier}" for id_, earlier in repeats.first)
    return f" ({shown}{', ...' if repeats.count > len(repeats.first) else ''})"


def _rows(count: int, split: str, one: str, several: str) -> str:
    return f"1 row of {split} {one}" if count == 1 else f"{count:,} rows of {split} {several}"
