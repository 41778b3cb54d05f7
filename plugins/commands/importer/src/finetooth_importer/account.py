"""The recipe made of another tool's configuration, and what it does with each key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from finetooth_toolbox.text.nearest import nearest

Outcome = Literal["taken", "otherwise", "default", "no effect", "not taken"]
"""The result for a key: it means the same here; it is taken with another meaning, which its note says; it was left
out, and its tool's default, which differs, is set; it changes nothing here; or there is nothing like it."""

COMPUTED = "(computed)"
"""Stands for a value that a script computes."""

TAKEN = frozenset({"taken", "otherwise", "no effect"})
"""Outcomes of given keys that lose nothing."""


@dataclass(frozen=True)
class Packs:
    """What an optimizer step of the tool is made of, where it is not rows.

    Attributes:
        count: packs of a step.
        length: tokens of a pack.
        note: what its line in the account says, for as long as nobody has counted the rows.
    """

    count: int
    length: int
    note: str

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.count * self.length


@dataclass(frozen=True)
class Line:
    """The result for one key.

    Attributes:
        key: as the tool calls it; `a.b` inside another.
        value: as it was given; for a default, the tool's.
        setting: of the recipe; empty if none was set.
        note: what differs, why it has no effect, or what to do.
    """

    key: str
    value: Any
    outcome: Outcome
    setting: str = ""
    note: str = ""


def says_nothing(value: Any) -> bool:
    """Whether a value stands for one that was left out."""
    return value is None or value == "" or value == [] or value == {}


class Account:
    """Reads keys one after the other, and writes down the result for each.

    Args:
        given: the configuration, as it was read.
        folder: where files that it names are looked for; None: nowhere.

    Attributes:
        compared: which tokens train was held against the tool itself, for rows and a template like these.
        packs: what a step of the tool is made of, where it is not rows.
    """

    def __init__(self, keys: Mapping[str, Any], folder: Path | None = None) -> None:
        self.given, self.folder = keys, folder
        self.compared = False
        self.packs: Packs | None = None
        self.recipe: dict[str, Any] = {}
        self.lines: list[Line] = []
        self._seen: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """A key's value; `default` if it says nothing. Nothing is written down."""
        value = self.given.get(key)
        return default if says_nothing(value) or value == COMPUTED else value

    def whole(self, key: str, default: int) -> int:
        """A key's value as a whole number; `default` if it is none."""
        try:
            return int(self.get(key, default))
        except (ValueError, TypeError):
            return default

    def has(self, key: str) -> bool:
        """Whether a key is there and says something."""
        return not says_nothing(self.given.get(key))

    def set(self, setting: str, value: Any) -> None:
        """Set a setting of the recipe, `train.max_length`; mappings are made on the way. A pick that is a bare
        name becomes a mapping when it gets an option. The value is copied, so that later options do not change the
        table that it is from."""
        *way, last = setting.split(".")
        place = self.recipe
        for part in way:
            inside = place.get(part)
            if not isinstance(inside, dict):
                inside = place[part] = {} if inside is None else {"name": inside}
            place = inside
        if isinstance(place.get(last), dict) and not isinstance(value, dict):
            place[last] = {"name": value, **place[last]}  # options came before the name
        else:
            place[last] = deepcopy(value)

    def take(
        self, key: str, setting: str, convert: Callable[[Any], Any] | None = None, *, note: str = "", value: Any = None
    ) -> bool:
        """Take a key, if it says something.

        Args:
            setting: of the recipe.
            convert: its value to ours.
            note: how its meaning differs, if it does.
            value: what is set in place of what was given.

        Returns:
            Whether it was there.
        """
        if not self._first(key):
            return False
        original = self.given[key]
        taken = original if value is None else value
        try:
            made = taken if convert is None else convert(taken)
        except (ValueError, TypeError, AttributeError):
            self._write(Line(key, original, "not taken", note=f"{setting} cannot have this value: set it by hand"))
            return True
        self.set(setting, made)
        self._write(Line(key, original, "otherwise" if note else "taken", setting, note))
        return True

    def passes(self, key: str, note: str = "") -> bool:
        """A key that changes nothing here, or that another one already covers; whether it was there."""
        if not self._first(key):
            return False
        self._write(Line(key, self.given[key], "no effect", note=note))
        return True

    def covered(self, key: str, setting: str, note: str = "") -> bool:
        """A key whose value went into a setting that was set by hand; whether it was there."""
        if not self._first(key):
            return False
        self._write(Line(key, self.given[key], "otherwise" if note else "taken", setting, note))
        return True

    def refuse(self, key: str, note: str, *, unless: Any = False) -> bool:
        """A key that nothing here can do; its value `unless` asks for nothing. Whether it asked for something."""
        if not self._first(key):
            return False
        original = self.given[key]
        nothing = original == unless
        self._write(Line(key, original, "no effect" if nothing else "not taken", note="it is off" if nothing else note))
        return not nothing

    def inside(self, key: str, value: Any, outcome: Outcome, setting: str = "", note: str = "") -> None:
        """The result for a key inside another one's value."""
        self._write(Line(key, value, outcome, setting, note))

    def continued(self, other: Account, names: Mapping[str, str]) -> None:
        """Take over what another account says of the same recipe.

        Args:
            names: keys here by those there, where they differ.
        """
        self.compared, self.packs = other.compared, other.packs
        self.lines += [replace(line, key=names.get(line.key, line.key)) for line in other]

    def default(self, key: str, setting: str, value: Any, note: str = "") -> None:
        """Their default for a key that was left out differs from ours: it is set."""
        if not self.has(key):
            self.set(setting, value)
            self._write(Line(key, value, "default", setting, note))

    def finish(self, known: Mapping[str, str] | None = None) -> None:
        """Write down what was not asked for.

        Args:
            known: keys of the tool that nothing here can do, and what to do.
        """
        for key, note in (known or {}).items():
            self.refuse(key, note)
        names = [*self._seen]
        for key in self.given:
            if self._first(key):
                near = nearest(str(key), names)
                hint = f"; did you mean {near}?" if near else ""
                self._write(
                    Line(
                        key,
                        self.given[key],
                        "not taken",
                        note=f"finetooth knows no such key of the tool{hint}",
                    )
                )

    def shares(self) -> tuple[int, int]:
        """How many keys were taken, and how many the file has, keys inside others included. A key that was taken in
        part counts as not taken; a setting that is left to a default is not a key."""
        by_key: dict[str, bool] = {}
        for line in self.lines:
            if line.outcome != "default":
                by_key[line.key] = by_key.get(line.key, True) and line.outcome in TAKEN
        return sum(by_key.values()), len(by_key)

    def _first(self, key: str) -> bool:
        """Whether a key is asked for the first time and says something; one that says nothing is written down so."""
        if key in self._seen or key not in self.given:
            self._seen.add(key)
            return False
        self._seen.add(key)
        if says_nothing(self.given[key]):
            self._write(Line(key, self.given[key], "no effect", note="it is empty"))
            return False
        if self.given[key] == COMPUTED:
            self._write(
                Line(
                    key, COMPUTED, "not taken", note="the script computes it or takes it as an argument: set it by hand"
                )
            )
            return False
        return True

    def _write(self, line: Line) -> None:
        self.lines.append(line)

    def __iter__(self) -> Iterator[Line]:
        return iter(self.lines)


def name_of(pick: Any) -> str:
    """The name of a pick, which stands alone or in a mapping with its options; empty if there is none."""
    return str(pick.get("name", "")) if isinstance(pick, Mapping) else str(pick or "")


def flattened(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys of mappings inside mappings as `a.b`; each is one key of an account then. Lists stay."""
    made: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            made |= flattened(value, f"{name}.")
        else:
            made[name] = value
    return made


def number(value: Any) -> Any:
    """A number that YAML read as a text, `5e-5`; anything else as it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
