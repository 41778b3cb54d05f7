"""Draw the rooms of the house: docs/images/rooms.svg, from the imports of every package.

    python tools/make_rooms.py [--check]

A room is a folder of the workspace; an arrow says that its code imports the other's. A room stands above all that it
imports, so an arrow that leads up, or a circle, would be seen at once: a circle is an error.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/images/rooms.svg"

ROOMS: Mapping[str, tuple[str, str]] = {
    "contract": ("hooks/contract", "hookspecs, entries, protocols"),
    "kit": ("hooks/kit", "the conformance kit"),
    "toolbox": ("core/toolbox", "messages, text, files, command-line helpers"),
    "recipes": ("core/recipes", "from the text of a recipe to settings"),
    "rows": ("core/rows", "from a row to its datum"),
    "guards": ("core/guards", "checks of what plugins return"),
    "steps": ("kernels/steps", "what makes a step correct, for any array library"),
    "operations": ("kernels/operations", "named operations and their plain references"),
    "kernel": ("core/kernel", "plugin manager, recipe, plan, loop"),
    "shared": ("plugins/shared/*", "what only plugins share: rollouts, rendering, torch, peft's files"),
    "plugins": ("plugins/*/*", ""),
    "contrib": ("contrib/*", "plugins kept by others"),
}
"""For each room the pattern of its folders, and what it holds."""

WIDTH, HEIGHT, GAP, RISE, MARGIN = 250, 62, 26, 74, 24
"""Sizes of a box and of the space around it, in pixels."""


@dataclass(frozen=True)
class Room:
    """A room, what it says of itself, and which rooms its code imports."""

    name: str
    text: str
    packages: int
    imports: frozenset[str]


def modules_of(pattern: str) -> list[Path]:
    """Import packages in the folders of a room."""
    found = sorted(path.parent for path in ROOT.glob(f"{pattern}/src/*/__init__.py"))
    return [path for path in found if "shared" in pattern or path.parents[2].name != "shared"]


def imported(file: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def read_rooms() -> dict[str, Room]:
    """Every room with its imports."""
    owners = {path.name: name for name, (pattern, _) in ROOMS.items() for path in modules_of(pattern)}

    def room_of(module: str) -> str | None:
        return owners.get(module.partition(".")[0])

    found: dict[str, set[str]] = {name: set() for name in ROOMS}
    for pattern, _ in ROOMS.values():
        for package in modules_of(pattern):
            for file in package.rglob("*.py"):
                here = room_of(".".join(file.relative_to(package.parent).with_suffix("").parts))
                assert here is not None
                found[here] |= {room for name in imported(file) if (room := room_of(name)) is not None} - {here}
    return {
        name: Room(name, text or kinds(), len(modules_of(pattern)), frozenset(found[name]))
        for name, (pattern, text) in ROOMS.items()
    }


def kinds() -> str:
    """The folders of plugins."""
    return ", ".join(sorted({path.parents[2].parent.name for path in ROOT.glob("plugins/*/*/src/*/__init__.py")}))


def floors(rooms: Mapping[str, Room]) -> list[list[str]]:
    """Rooms from the ground up: each one floor above the highest room that it imports.

    Raises:
        ValueError: rooms import each other in a circle.
    """
    height: dict[str, int] = {}

    def climb(name: str, way: tuple[str, ...]) -> int:
        if name in way:
            raise ValueError(f"rooms import each other in a circle: {' -> '.join((*way, name))}")
        if name not in height:
            height[name] = max((climb(other, (*way, name)) + 1 for other in sorted(rooms[name].imports)), default=0)
        return height[name]

    for name in rooms:
        climb(name, ())
    return [[name for name in rooms if height[name] == floor] for floor in range(max(height.values()) + 1)]


def lines_of(text: str, length: int = 38) -> list[str]:
    """A text in lines of at most so many characters."""
    found = [""]
    for word in text.split():
        if found[-1] and len(found[-1]) + len(word) >= length:
            found.append("")
        found[-1] += (" " if found[-1] else "") + word
    return found


def draw(rooms: Mapping[str, Room]) -> str:
    """The picture: one row of boxes a floor, the ground floor at the bottom."""
    rows = list(reversed(floors(rooms)))
    tall = {name: HEIGHT + 13 * (len(lines_of(room.text)) - 1) for name, room in rooms.items()}
    width = 2 * MARGIN + max(len(row) for row in rows) * (WIDTH + GAP) - GAP
    places: dict[str, tuple[float, float]] = {}
    top = float(MARGIN)
    for row in rows:
        left = (width - len(row) * (WIDTH + GAP) + GAP) / 2
        for at, name in enumerate(row):
            places[name] = left + at * (WIDTH + GAP), top
        top += max(tall[name] for name in row) + RISE
    height = top - RISE + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} '
        f'{height:g}" font-family="sans-serif">',
        "<title>Rooms of finetooth and who imports whom</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#789"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
    ]
    for name, room in rooms.items():
        below = sorted(room.imports, key=lambda other: places[other])  # by place: a set has no order of its own
        for at, other in enumerate(below, 1):
            x, y = places[name][0] + WIDTH * at / (len(below) + 1), places[name][1] + tall[name]
            above = sorted((r for r in rooms if other in rooms[r].imports), key=lambda r: places[r][0])
            to_x = places[other][0] + WIDTH * (above.index(name) + 1) / (len(above) + 1)
            parts.append(
                f'<path d="M{x:g} {y:g}C{x:g} {y + RISE / 2:g} {to_x:g} {places[other][1] - RISE / 2:g} '
                f'{to_x:g} {places[other][1]:g}" fill="none" stroke="#789" marker-end="url(#tip)"/>'
            )
    for name, room in rooms.items():
        x, y = places[name]
        count = f" ({room.packages} packages)" if room.packages > 1 else ""
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{tall[name]}" rx="6" fill="#eef3f8" stroke="#456"/>'
        )
        parts.append(
            f'<text x="{x + 12:g}" y="{y + 24:g}" font-size="16" font-weight="bold" fill="#123">{name}'
            f'<tspan font-size="12" font-weight="normal">{count}</tspan></text>'
        )
        parts += [
            f'<text x="{x + 12:g}" y="{y + 44 + 13 * at:g}" font-size="11" fill="#345">{line}</text>'
            for at, line in enumerate(lines_of(room.text))
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    picture = draw(read_rooms())
    if "--check" in sys.argv:
        sys.exit(not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != picture)
    PICTURE.write_text(picture, encoding="utf-8")
