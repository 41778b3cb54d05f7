"""The YAML of recipes: a strict, safe subset of YAML 1.2.

Differences from PyYAML's defaults (YAML 1.1), with reasons:

* `2e-4` is a number, as in every other language; PyYAML alone reads it as text.
* `on`, `off`, `yes`, `no`, dates and `1:30` stay text; only `true` and `false` are booleans, only `null` and `~` are
null.
* A duplicate key is an error with both line numbers; PyYAML silently keeps the last one.
* `{fraction:0.3}`, a key `fraction:0.3` without a value, is an error, as is any other key without one in braces.
* Every tag (`!!python/name:...`, `!anything`) is an error: nothing in a recipe can make an object.
* Keys are always text, so that a recipe is also JSON. Merge keys (`<<`) do not exist in YAML 1.2 and are an error.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from finetooth_hooks.errors import RecipeError

from finetooth_recipes.yaml_slips import check_key, not_yaml

ROWS = (
    ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".xlsx", ".xls", ".ods", ".docx", ".odt", ".pdf", ".txt",
    ".md",
)  # fmt: skip
"""Endings of files with rows, which a user may pass by mistake as a recipe."""

MAX_VALUES = 100_000
"""Largest number of values in a document with all aliases expanded; it stops a "billion laughs" file."""

Path = tuple[str | int, ...]
"""The place of a value: keys and list indices from the top."""

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_OCTAL = re.compile(r"0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")}


@dataclass(frozen=True)
class Document:
    """The content of a YAML text.

    Attributes:
        value: mappings, lists, texts, numbers, booleans and None.
        lines: 1-based line of every value, by its path.
    """

    value: Any
    lines: Mapping[Path, int] = field(default_factory=dict)


def plain(text: str) -> Any:
    """The value of an unquoted scalar, by the core schema of YAML 1.2
    (https://yaml.org/spec/1.2.2/#103-core-schema)."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text.lower() in _SPECIAL:
        return _SPECIAL[text.lower()]
    try:
        if _INT.fullmatch(text):
            return int(text)
        if _HEX.fullmatch(text):
            return int(text, 16)
        if _OCTAL.fullmatch(text):
            return int(text, 8)
    except ValueError:  # more digits than Python converts
        return text
    return float(text) if _FLOAT.fullmatch(text) else text


def not_rows(path: pathlib.Path) -> pathlib.Path:
    """Check that a path can be a recipe, and return it.

    Raises:
        RecipeError: the file's name is that of a file with rows.
    """
    if path.suffix.lower() in ROWS and path.is_file():
        action = f"ft run --data {path} --model MODEL, or ft init --data {path}"
        raise RecipeError("", f"{path} holds rows, not a recipe", action=action)
    return path


def read_yaml(text: str, source: str) -> Document:
    """Read one document.

    Args:
        source: the name of the text in errors: the path of its file, or the override.

    Raises:
        RecipeError: not YAML, more than one document, a duplicate key, a tag; names the line.
    """
    reader = _Reader(source)
    try:
        loader = _Loader(text)
        loader.source = source
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        value = None if node is None else reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        raise not_yaml(error, text, source) from error
    except yaml.reader.ReaderError as error:
        code = ord(error.character) if isinstance(error.character, str) else error.character
        raise RecipeError("", f"{source}: holds the character #x{code:04x}", action="remove it") from error
    except RecursionError as error:
        raise RecipeError("", f"{source}: nested too deeply", action="a recipe needs only a few levels") from error
    return Document(value, reader.lines)


class _Loader(
    yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer, yaml.resolver.BaseResolver
):
    """PyYAML up to its node tree. `_Reader` makes the values, so a tag has no constructor to call."""

    source = ""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        yaml.resolver.BaseResolver.__init__(self)

    def dispose(self) -> None:
        """Release the parser's data."""
        self.states: list[Any] = []
        self.state = None

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            raise RecipeError(
                "",
                f"{self.source}:{event.start_mark.line + 1}: the tag {shown!r} is not allowed",
                action="write plain texts, numbers, lists and mappings",
            )
        return super().compose_node(parent, index)


class _Reader:
    """Makes values of nodes and remembers their lines."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[Path, int] = {}
        self._open: set[int] = set()

    def value(self, node: Any, path: Path) -> Any:
        line = node.start_mark.line + 1
        if len(self.lines) >= MAX_VALUES:
            raise RecipeError("", f"{self.source}: more than {MAX_VALUES} values", action="write it without aliases")
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.ScalarNode):
            return plain(node.value) if node.style is None else node.value
        if id(node) in self._open:
            raise RecipeError("", f"{self.source}:{line}: an alias refers to what it is part of", action="write it out")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: Any, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "":
                raise RecipeError("", f"{self.source}:{line}: a key must be a text", action="write key: value")
            key = key_node.value
            lone = node.flow_style and isinstance(value_node, yaml.ScalarNode)
            lone = lone and value_node.style is None and value_node.value == ""
            slip = check_key(key, plain=key_node.style is None, lone=lone)
            if slip is not None:
                raise RecipeError("", f"{self.source}:{line}: {slip[0]}", action=slip[1])
            if key == "<<" and key_node.style is None:
                raise RecipeError("", f"{self.source}:{line}: merge keys (<<) are not supported", action="write it out")
            where = (*path, key)
            if key in values:
                setting = dotted(where)
                raise RecipeError(
                    setting,
                    f"given twice, at {self.source}:{self.lines[where]} and {self.source}:{line}",
                    action="keep one of them",
                )
            self.lines[where] = line
            values[key] = self.value(value_node, where)
        return values


def dotted(path: Path) -> str:
    """`("train", "batch_size")` as `train.batch_size`."""
    return ".".join(str(part) for part in path)


_TAGS = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str"}


class _Dumper(yaml.SafeDumper):
    """Quotes by the rules of `plain`, so that a written value is read back unchanged."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return f"tag:yaml.org,2002:{_TAGS[type(plain(value))]}"
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _float(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
    if not math.isfinite(number):
        return dumper.represent_float(number)
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(number))


_Dumper.add_representer(float, _float)


def write_yaml(value: Any) -> str:
    """YAML text that `read_yaml` reads back as an equal value; keys keep their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)
    return text
