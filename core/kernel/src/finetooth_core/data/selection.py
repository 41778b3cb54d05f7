"""From the recipe to a choice of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks.errors import RecipeError
from finetooth_recipes.problems import plain_data, validate
from finetooth_recipes.recipe_data import DataSection, HeldOut, SourceRows
from finetooth_rows.choices.choice import Choice, SourceChoice
from finetooth_rows.choices.slices import Slice, split_reference
from finetooth_rows.picked import PickedSource


def source_choice(item: Any, setting: str, data: DataSection) -> tuple[Any, SourceChoice, SourceRows]:
    """A source of the recipe without the keys common to all sources; its selected rows; and those keys.

    Raises:
        RecipeError: a common key has a wrong value, or a slice without rows.
    """
    options: dict[str, Any] = {}
    if isinstance(item, Mapping):
        options = {key: item[key] for key in SourceRows.model_fields if key in item}
        item = {key: value for key, value in item.items() if key not in options}
        path, text = split_reference(item["path"]) if isinstance(item.get("path"), str) else ("", "")
        item = {**item, "path": path} if text else item
    else:
        item, text = split_reference(item)
    if text and "slice" in options:
        raise RecipeError(f"{setting}.slice", f"{text} is a slice too", action="give one of them")
    if text:
        options["slice"] = text
    prefix = tuple(setting.split("."))
    rows = validate(SourceRows, plain_data(options, prefix), prefix=prefix, noun="option of a source")
    held_out = setting.partition(".")[2].partition(".")[0] == "eval"
    if held_out and rows.weight != 1:
        raise RecipeError(f"{setting}.weight", "held-out rows are each taken once", action="remove it")
    part = None if rows.slice is None else Slice.parse(rows.slice, f"{setting}.slice")
    if part is not None and part.is_empty:
        raise RecipeError(
            f"{setting}.slice",
            f"{part.text} takes no rows of any source: its end is not after its beginning",
            action="write the first row and the row after the last, such as [100:200]",
        )
    most = rows.max_rows if held_out or rows.max_rows is not None else data.max_rows
    return item, SourceChoice(setting, part, most, rows.weight), rows


def choice_of(data: DataSection, split: str, sources: Sequence[PickedSource]) -> Choice:
    """The recipe's selection of rows for a split.

    Raises:
        RecipeError: `data.mix` has only one source to mix.
    """
    choices = tuple(picked.choice or SourceChoice(picked.setting) for picked in sources)
    if split == "eval":
        return Choice(choices)
    held_out = data.held_out
    settings = None if held_out is None else validate(HeldOut, held_out, prefix=("data", "eval"))
    mix = data.mix
    if mix is not None and len(sources) == 1 and mix.rows is None:
        raise RecipeError(
            "data.mix", "data.train is one source, so there is nothing to mix", action="remove it, or give a list"
        )
    return Choice(
        choices,
        deduplicate=data.deduplicate,
        near_threshold=data.near_threshold,
        fraction=settings.fraction if settings else 0.0,
        fraction_seed=settings.seed if settings else 0,
        temperature=1.0 if mix is None else None if mix.temperature == "even" else float(mix.temperature),
        mix_rows=mix.rows if mix else None,
        mix_seed=mix.seed if mix else 0,
    )
