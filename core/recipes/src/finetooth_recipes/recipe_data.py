"""The section `data` of a recipe: where rows come from, which of them train, which are held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from finetooth_hooks.errors import RecipeError
from finetooth_hooks.options import Options
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from finetooth_recipes.incidental import Incidental
from finetooth_recipes.problems import INVALID, parts_of, validate
from finetooth_recipes.recipe_picks import (
    AUTO,
    Checked,
    CheckedOrAuto,
    PickMapping,
    SourceItem,
    checked_named_pick,
    picks,
)
from finetooth_recipes.yaml_text import Path

HELD_OUT = "fraction"
"""The key that tells `data.eval: {fraction: ...}` from the pick of a source."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]


class SourceRows(Options):
    """Which rows of a source are taken: keys in its mapping next to its own options."""

    slice: str | None = None
    """The part of its rows, `[:10%]`, `[:500]`, `[100:200]`, `[-50:]`: as in Python, percentages rounded to the nearest
    row. Behind a reference it is written without a key: `rows.jsonl[:500]`."""
    max_rows: int | None = Field(default=None, ge=1)
    """At most so many rows, the first ones of the slice."""
    weight: float = Field(default=1.0, gt=0)
    """How often an epoch takes these rows: 2 is twice, 0.5 is half of them. Only for training rows."""
    sha256: Sha256 | dict[str, Sha256] | None = None
    """SHA-256 that the source's file must have, of several files that of all, as `ft check` shows it; or one for each
    file: `{a.txt: ...}`. A file that has changed is refused."""
    format: Annotated[str | PickMapping, Checked, picks("format")] | None = None
    """How its rows become examples, in place of `data.format`: sources of a list may each have their own."""


class HeldOut(Options):
    """Held-out rows taken from the training rows, by a hash of their content: equal rows are never parted."""

    fraction: float = Field(gt=0, lt=1)
    """Which share of the different rows is held out, 0.05 is 5 %: rounded, at least one row and not all. Adding rows
    moves few others."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Another seed holds out others."""


class Mix(Options):
    """How much an epoch takes of each of several sources."""

    temperature: float | Literal["even"] = 1.0
    """T: a source of n rows has a share in proportion to weight * n^(1/T). 1 takes all rows as often; more takes small
    sources more often, the largest `weight` times; `even` gives sources of one weight equal shares."""
    rows: int | None = Field(default=None, ge=1)
    """Rows of an epoch, in these shares. Left out: what weights and temperature make of the sources."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides which rows are taken once more, or not at all, where a source is not taken a whole number of times."""

    @model_validator(mode="after")
    def _checks_temperature(self) -> Mix:
        if self.temperature != "even" and self.temperature <= 0:
            raise PydanticCustomError(
                INVALID, "temperature must be more than 0, got {given}",
                {"given": self.temperature, "action": "write 1 for shares by size, 'even' for equal ones"},
            )  # fmt: skip
        return self


class Snapshot(Options):
    """All data files of the recipe, under one name."""

    name: str = Field(min_length=1)
    """What you call these data."""
    sha256: Sha256 | None = None
    """What they must be, as `ft check` shows it for this name; left out, it is only shown."""


def _checked_evaluation(pick: Any) -> Any:
    if isinstance(pick, dict) and "name" not in pick and HELD_OUT in pick:
        return pick  # checked as `HeldOut` when the rows are asked for, with lines of its own
    return checked_named_pick(pick)


Evaluation = Annotated[
    str | PickMapping, AfterValidator(_checked_evaluation), picks("source", auto=False, also="HeldOut")
]


def inner_problems(data: Any, place: Callable[[Path], str]) -> list[RecipeError]:
    """What is wrong inside sources and the held-out part, which the section itself takes as they are: checked here, so
    that all that is wrong with a recipe is told at once.

    Args:
        data: the section as plain data.
        place: where in the file a path is.
    """
    if not isinstance(data, Mapping):
        return []
    errors: list[RecipeError] = []
    for split in ("train", "eval"):
        sources = data.get(split)
        for index, item in enumerate(sources) if isinstance(sources, list) else [(None, sources)]:
            path: Path = ("data", split) if index is None else ("data", split, index)
            if not isinstance(item, Mapping):
                continue
            held_out = split == "eval" and index is None and "name" not in item and HELD_OUT in item
            model: type[Options] = HeldOut if held_out else SourceRows
            own = item if held_out else {key: item[key] for key in SourceRows.model_fields if key in item}
            noun = "setting" if held_out else "option of a source"
            try:
                validate(model, own, prefix=path, noun=noun, place=partial(_placed, place, path))
            except RecipeError as error:
                errors += parts_of(error)
    return errors


def _placed(place: Callable[[Path], str], prefix: Path, path: Path) -> str:
    return place((*prefix, *path))


class Classification(Options):
    """What the rows are, as far as that decides where a model that learnt them may go."""

    customer_data: bool | None = None
    """Whether any row came from a customer; null: it is not said, and a registry may then refuse the run."""
    licence: str = ""
    """The licence of the rows, such as `CC-BY-4.0`."""
    pii: Literal["none", "removed", "present"] | None = None
    """Whether rows hold personal data; null: it is not said."""
    egress: Literal["never"] | None = None
    """`never`: the run has no network. It trains in a process that has the loopback device alone, and its record says
    so; where this machine cannot do that, it does not begin."""


class DataSection(Options):
    """Rows to train on and rows held out."""

    train: SourceItem | list[SourceItem] | None = None
    """Where training rows come from: a path, a hub id, `{name: SOURCE, ...}`, or a list of them. Behind a path or id a
    slice may stand (`rows.jsonl[:10%]`); in a mapping also `slice`, `max_rows`, `weight`, `sha256`, `format`."""
    eval: Evaluation | list[SourceItem] | None = None
    """Where held-out rows come from: as `train`, or `{fraction: 0.05, seed: 0}` of the training rows; without it
    nothing is evaluated by default."""
    max_rows: int | None = Field(default=None, ge=1)
    """At most so many rows of each training source that says nothing of its own, the first ones."""
    examples: int | None = Field(default=None, ge=1)
    """How many training rows there must be, those held out of them included; another number is refused. Data that are
    streamed are not counted."""
    deduplicate: Literal["off", "exact", "near"] = "off"
    """Whether a training row that repeats an earlier one, of any source, is left out: `exact` if they say the same,
    `near` if they share most of their words too. Rows left out are counted."""
    near_threshold: float = Field(default=0.8, gt=0, le=1)
    """For `near`: the share of three-word sequences, of those that either row has, from which on two rows count as one
    (Jaccard similarity, estimated by MinHash)."""
    mix: Mix | None = None
    """How much an epoch takes of each of several training sources: `{temperature: 2}`, `{temperature: even}`."""
    snapshot: Snapshot | None = None
    """Pins all data files at once: `{name: NAME, sha256: ...}`; a file that has changed is refused."""
    classification: Classification | None = None
    """What the rows are: customer data, licence, personal data. It trains nothing; a registry's policy reads it."""
    format: Annotated[str | PickMapping, Checked, picks("format")] = AUTO
    """How a row becomes an example; `auto` goes by the columns of the first row of each source, so that a list may hold
    sources of several formats."""
    renderer: Annotated[str | PickMapping, Checked, picks("renderer")] = AUTO
    """How messages become tokens; `auto` takes the renderer of the model's family."""
    markup: Literal["plain", "special"] = "plain"
    """How texts outside of messages (documents, raw prompts and completions) are read where they spell control tokens
    (`<|im_start|>`): as `plain` characters, or as `special` tokens, as TRL and Unsloth read a column of rendered chats.
    Messages are always plain, segments always special."""
    opening: Incidental[Literal["auto", "off"]] = "auto"
    """Whether the system message and the tools that nearly all training rows share (19 of 20) are kept with what is
    trained, as what chats, services and exports begin with where nobody gives others."""
    processor: Annotated[str | PickMapping, CheckedOrAuto, picks("processor")] = AUTO
    """What turns images, sounds and videos into inputs of the model; asked for when the first row has one."""
    accept_dropped: Incidental[bool] = False
    """Whether to train although more than half of the training rows are left out, because they are too long or for
    another reason that `ft check` names; `ft run --accept-dropped` sets it."""
    cache: Incidental[Literal["auto", "off"]] = "auto"
    """Whether tokens of large data (more than 2,000 rows) are kept for the next run with the same data and settings;
    they lie in the folder `FT_CACHE`, by default `finetooth/data` in the cache folder of the platform."""
    cache_gb: Incidental[float] = Field(default=20.0, ge=0)
    """Bound on all that is kept there, in GB (10^9 bytes): when a run has added to it, the data used longest ago are
    removed, never those that a run is using."""
    workers: Incidental[Literal["auto"] | Annotated[int, Field(ge=0)]] = "auto"
    """Processes that make tokens of large data; 0 is none but the run itself, `auto` takes one for each core if
    there is enough to do. The result is the same in every way."""

    @property
    def no_egress(self) -> bool:
        """Whether the run may reach no network."""
        return self.classification is not None and self.classification.egress == "never"

    @property
    def held_out(self) -> dict[str, Any] | None:
        """`eval` if it is a part of the training rows."""
        return self.eval if isinstance(self.eval, dict) and "name" not in self.eval else None

    @model_validator(mode="after")
    def _fits(self) -> DataSection:
        if "near_threshold" in self.model_fields_set and self.deduplicate != "near":
            raise PydanticCustomError(
                INVALID, "'near_threshold' is set, but rows are not compared for nearness",
                {"action": "set data.deduplicate: near, or leave data.near_threshold out"},
            )  # fmt: skip
        return self
