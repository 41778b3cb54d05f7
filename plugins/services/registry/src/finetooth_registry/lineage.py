"""Lineage: the origins of a version, down to the raw data, as a tree and as a drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import UserError
from finetooth_toolbox.text.controls import escape_controls
from markupsafe import Markup

from finetooth_registry import records
from finetooth_registry.anywhere import AnyRegistry, Version, files_of
from finetooth_registry.verifying import parent_record, record_of

WIDTH, HEIGHT, LETTERS = 230, 52, 26
"""Size of a box of the drawing, in pixels, and characters per line."""


@dataclass(frozen=True)
class Node:
    """An origin of a version.

    Attributes:
        kind: `weights` (merged or exported), `version`, `run` (not registered), `base`, `data` or `recipe`.
        digest: SHA-256; empty: there is none.
        facts: from the record, by name.
        version: in the registry; None for other kinds.
    """

    kind: str
    title: str
    digest: str
    facts: tuple[tuple[str, str], ...] = ()
    sources: tuple[Node, ...] = ()
    version: Version | None = None


Load = Callable[[str], tuple[bytes, str, Version | None]]
"""From a version's name to its record, its digest, and the registry's version."""


def lineage(registry: AnyRegistry, version: Version) -> Node:
    """The origins of a version, from its record and those of its parents.

    Raises:
        UserError: a record cannot be read.
    """

    def load(called: str) -> tuple[bytes, str, Version | None]:
        made = version if called == version.called else registry.version(called)
        return registry.record(made), made.record, made

    return _node(load, version.called, frozenset())


def lineage_of_folder(folder: Path) -> Node:
    """The lineage of a folder that a registry wrote.

    Raises:
        UserError: it has no record, or one that cannot be read.
    """
    whole = record_of(folder)
    about = records.read(whole)["predicate"]
    own = f"{about['name']}@v{about['number']}"

    def load(called: str) -> tuple[bytes, str, Version | None]:
        record = whole if called == own else parent_record(folder, called)
        return record, records.digest(record), None

    return _node(load, own, frozenset())


def _node(load: Load, called: str, inside: frozenset[str]) -> Node:
    """
    Args:
        inside: versions whose lineage contains this one.
    """
    record, digest, version = load(called)
    content = records.read(record)
    about = content["predicate"]
    parents = tuple(_parent(load, parent, inside | {called}) for parent in about.get("parents") or ())
    files = tuple(sorted(files_of(content).items()))
    earlier = tuple(
        Node("run", str(run.get("run")), str(run.get("recipe_sha256", "")), sources=tuple(_data(run)))
        for run in about.get("earlier") or ()
    )
    sources = (*_data(about), _recipe(about), *earlier, *(parents or (_base(about),)))
    return Node("version", called, digest, files, sources, version)


def _parent(load: Load, parent: Mapping[str, Any], inside: frozenset[str]) -> Node:
    called = f"{parent.get('name')}@v{parent.get('number')}"
    missing = Node("version", called, str(parent.get("statement", "")), (("missing", "its record is not there"),))
    if called in inside:  # no registry writes such a record
        return missing
    try:
        return _node(load, called, inside)
    except (UserError, OSError):
        return missing


def _data(about: Mapping[str, Any]) -> Iterator[Node]:
    classification = about.get("classification") or {}
    facts = tuple((name, str(value)) for name, value in classification.items())
    for name, digest in (about.get("data") or {}).items():
        yield Node("data", name.removesuffix(".sha256"), str(digest), facts)


def _recipe(about: Mapping[str, Any]) -> Node:
    facts = (("method", about.get("method")), ("run", about.get("run")), *(about.get("picks") or {}).items())
    return Node("recipe", "recipe", str(about.get("recipe_sha256", "")), tuple((n, str(v)) for n, v in facts if v))


def _base(about: Mapping[str, Any]) -> Node:
    files = tuple((name, str(digest)) for name, digest in (about.get("base") or {}).items())
    return Node("base", str(about.get("model", "base")), str(about.get("base_digest", "")), files)


def drawing(root: Node, address_of: Callable[[Version], str]) -> Markup:
    """A lineage as SVG: origins are on the left of their results.

    Args:
        address_of: the page of a version.
    """
    placed = list(_placed(root, 0, [0]))
    deepest, lowest = max(depth for _, depth, _, _ in placed), max(row for _, _, row, _ in placed)
    size = (deepest + 1) * (WIDTH + 40), (lowest + 1) * (HEIGHT + 14)

    def at(depth: int, row: float) -> tuple[float, float]:
        return (deepest - depth) * (WIDTH + 40), row * (HEIGHT + 14) + 2

    drawn: list[Markup] = []
    for node, depth, row, above in placed:
        x, y = at(depth, row)
        if depth:
            to_x, to_y = at(depth - 1, above)
            line = Markup('<path d="M{} {}L{} {}" stroke="currentColor" fill="none"/>')
            drawn.append(line.format(x + WIDTH, y + HEIGHT / 2, to_x, to_y + HEIGHT / 2))
        box = Markup(
            '<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="transparent" stroke="currentColor"/>'
            '<text x="{left}" y="{one}" fill="currentColor" font-size="14">{title}</text>'
            '<text x="{left}" y="{two}" fill="currentColor" font-size="12">{below}</text>'
        ).format(
            x=x, y=y, w=WIDTH, h=HEIGHT, left=x + 10, one=y + 21, two=y + 40, title=_short(node.title),
            below=f"{node.kind} {node.digest[:12]}",
        )  # fmt: skip
        version = node.version
        drawn.append(box if version is None else Markup('<a href="{}">{}</a>').format(address_of(version), box))
    frame = Markup('<svg viewBox="0 0 {} {}" width="{}" height="{}" xmlns="http://www.w3.org/2000/svg">{}</svg>')
    return frame.format(*size, *size, Markup("").join(drawn))


def _placed(node: Node, depth: int, free: list[int]) -> Iterator[tuple[Node, int, float, float]]:
    """Each node with its column, its row, and the row of its result."""
    rows: list[float] = []
    below: list[tuple[Node, int, float, float]] = []
    direct: list[int] = []
    for source in node.sources:
        inner = list(_placed(source, depth + 1, free))
        direct.append(len(below))
        below += inner
        rows.append(inner[0][2])
    if not rows:
        rows = [float(free[0])]
        free[0] += 1
    mine = (rows[0] + rows[-1]) / 2
    yield node, depth, mine, mine
    for place, (inner_node, inner_depth, row, above) in enumerate(below):
        yield inner_node, inner_depth, row, mine if place in direct else above


def _short(text: str) -> str:
    shown = escape_controls(text)
    return shown if len(shown) <= LETTERS else f"{shown[: LETTERS - 2]}…"
