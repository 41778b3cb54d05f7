"""The section `data` of a recipe: sources of rows, training rows and held-out rows."""

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
    """Which rows of a source are used: keys in its mapping next to its own options."""

    slice: str | None = None
    """Part of the rows, as in Python: `[:10%]`, `[:500]`, `[100:200]`, `[-50:]`. Percentages are rounded to the nearest
    row. After a path or id it needs no key: `rows.jsonl[:500]`."""
    max_rows: int | None = Field(default=None, ge=1)
    """Use at most this many rows, the first ones of the slice."""
    weight: float = Field(default=1.0, gt=0)
    """How often an epoch uses these rows: 2 is twice, 0.5 uses half of them. For training rows only."""
    sha256: Sha256 | dict[str, Sha256] | None = None
    """SHA-256 of the source's file, as `ft check` shows it; of several files, their common one or one for each:
    `{a.txt: ...}`. A changed file is refused."""
    format: Annotated[str | PickMapping, Checked, picks("format")] | None = None
    """How these rows become examples, instead of `data.format`; each source of a list may have its own."""


class HeldOut(Options):
    """Held-out rows taken from the training rows, by a hash of their content: equal rows stay together."""

    fraction: float = Field(gt=0, lt=1)
    """Share of the distinct rows to hold out (0.05 is 5 %), rounded; at least one row, never all. Added rows move few
    others."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Another seed holds out other rows."""


class Mix(Options):
    """How much an epoch takes from each of several sources."""

    temperature: float | Literal["even"] = 1.0
    """T: the share of a source of n rows is proportional to weight * n^(1/T). 1 takes all rows equally often; a higher
    T takes small sources more often, and the largest one `weight` times. `even` gives sources of the same weight equal
    shares."""
    rows: int | None = Field(default=None, ge=1)
    """Rows in an epoch, divided into these shares. Default: the number that follows from weights and temperature."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Draws the remaining rows of a source whose share is not a whole multiple of its rows."""

    @model_validator(mode="after")
    def _checks_temperature(self) -> Mix:
        if self.temperature != "even" and self.temperature <= 0:
            raise PydanticCustomError(
                INVALID, "temperature must be more than 0, got {given}",
                {"given": self.temperature, "action": "write 1 for shares by size, 'even' for equal ones"},
            )  # fmt: skip
        return self


class Snapshot(Options):
    """Pins all data files of the recipe under one name."""

    name: str = Field(min_length=1)
    """Your name for this data."""
    sha256: Sha256 | None = None
    """The SHA-256 that `ft check` shows for this name. Left out, it is shown but not checked."""


def _checked_evaluation(pick: Any) -> Any:
    if isinstance(pick, dict) and "name" not in pick and HELD_OUT in pick:
        return pick  # checked later as `HeldOut`, with its own lines
    return checked_named_pick(pick)


Evaluation = Annotated[
    str | PickMapping, AfterValidator(_checked_evaluation), picks("source", auto=False, also="HeldOut")
]


def inner_problems(data: Any, place: Callable[[Path], str]) -> list[RecipeError]:
    """Errors inside sources and the held-out part, which the section itself does not check. The check here lets the
    user see all errors of a recipe at once.

    Args:
        data: the section as plain data.
        place: returns the position of a path in the file.
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
    """Facts about the rows that decide where a model trained on them may go."""

    customer_data: bool | None = None
    """Whether any row came from a customer; null: unknown, and a registry may then refuse the run."""
    licence: str = ""
    """The licence of the rows, such as `CC-BY-4.0`."""
    pii: Literal["none", "removed", "present"] | None = None
    """Whether rows hold personal data; null: unknown."""
    egress: Literal["never"] | None = None
    """`never`: the run has no network. It trains in a process with only the loopback device, and records that. If this
    machine cannot isolate the process, the run does not begin."""


class DataSection(Options):
    """The rows to train on and the held-out rows."""

    train: SourceItem | list[SourceItem] | None = None
    """Training rows: a path, a hub id, `{name: SOURCE, ...}`, or a list of them. A path or id may end with a slice
    (`rows.jsonl[:10%]`); a mapping may have `slice`, `max_rows`, `weight`, `sha256`, `format`."""
    eval: Evaluation | list[SourceItem] | None = None
    """Held-out rows: as in `train`, or `{fraction: 0.05, seed: 0}` of the training rows. Without them nothing is
    evaluated by default."""
    max_rows: int | None = Field(default=None, ge=1)
    """Use at most this many rows of each training source, the first ones; a source's own `max_rows` overrides it."""
    examples: int | None = Field(default=None, ge=1)
    """Expected number of training rows, held-out ones included; the run refuses any other number. Streamed data is not
    counted."""
    deduplicate: Literal["off", "exact", "near"] = "off"
    """Whether to leave out a training row that repeats an earlier one, from any source: `exact` if both give the same
    example, `near` also if they share most of their words. Rows left out are counted."""
    near_threshold: float = Field(default=0.8, gt=0, le=1)
    """For `near`: rows count as duplicates from this Jaccard similarity of their three-word sequences, estimated by
    MinHash."""
    mix: Mix | None = None
    """How much an epoch takes from each of several training sources: `{temperature: 2}`, `{temperature: even}`."""
    snapshot: Snapshot | None = None
    """Pins all data files at once: `{name: NAME, sha256: ...}`. A changed file is refused."""
    classification: Classification | None = None
    """Facts about the rows: customer data, licence, personal data. They do not change training; a registry's policy
    reads them."""
    format: Annotated[str | PickMapping, Checked, picks("format")] = AUTO
    """How a row becomes an example. `auto` decides by the columns of each source's first row, so a list may hold
    sources of several formats."""
    renderer: Annotated[str | PickMapping, Checked, picks("renderer")] = AUTO
    """Turns messages into tokens; `auto` takes the one that recognises the model's chat template, else that of the
    model's family."""
    markup: Literal["plain", "special"] = "plain"
    """How control tokens (`<|im_start|>`) in texts outside of messages (documents, raw prompts and completions) are
    read: as `plain` characters, or as `special` tokens, as TRL and Unsloth read a column of rendered chats. Messages
    are always plain, segments always special."""
    opening: Incidental[Literal["auto", "off"]] = "auto"
    """Whether to save the system message and the tools that 19 of 20 training rows share with the trained model. Chats,
    services and exports then begin with them unless others are given."""
    processor: Annotated[str | PickMapping, CheckedOrAuto, picks("processor")] = AUTO
    """Turns images, sounds and videos into inputs of the model; needed only if the first row has one."""
    accept_dropped: Incidental[bool] = False
    """Whether to train although more than half of the training rows are left out, because they are too long or for
    another reason that `ft check` names. `ft run --accept-dropped` sets it."""
    cache: Incidental[Literal["auto", "off"]] = "auto"
    """Whether to keep the tokens of large data (more than 2,000 rows) for the next run with the same data and settings.
    The folder is `FT_CACHE`, by default `finetooth/data` in the platform's cache folder."""
    cache_gb: Incidental[float] = Field(default=20.0, ge=0)
    """Limit of the cache in GB (10^9 bytes). A run that adds to it then removes the data that was used longest ago, but
    never data that a run is using."""
    workers: Incidental[Literal["auto"] | Annotated[int, Field(ge=0)]] = "auto"
    """Processes that tokenise large data. 0 uses only the run's own process; `auto` uses one for each core if there is
    enough to do. The result is always the same."""

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
