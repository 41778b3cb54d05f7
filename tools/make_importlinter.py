"""Write import-linter's configuration: which rooms may import which, over every package of the workspace.

    python tools/make_importlinter.py FILE

contract    imports no room and no framework
toolbox     imports the contract
steps       imports the contract
operations  imports the contract
recipes     imports the contract and toolbox
rows        imports the contract and toolbox
saving      imports the contract, toolbox and recipes
guards      imports the contract and toolbox
kernel      imports the contract, toolbox, recipes, rows, saving and guards
kit         imports the contract, toolbox, rows, operations and steps
shared      imports the contract, toolbox, rows, operations and steps, and of its own kind
plugins     import all of these but the kernel, and never each other
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FRAMEWORKS = ("torch", "transformers", "datasets", "mlx", "peft", "trl")

ROOMS = {
    "contract": "hooks/contract",
    "toolbox": "core/toolbox",
    "steps": "kernels/steps",
    "operations": "kernels/operations",
    "recipes": "core/recipes",
    "rows": "core/rows",
    "saving": "core/saving",
    "guards": "core/guards",
    "kernel": "core/kernel",
    "kit": "hooks/kit",
    "shared": "plugins/shared/*",
}
"""The folder of each room that is no plugin."""

MAY = {
    "contract": (),
    "toolbox": ("contract",),
    "steps": ("contract",),
    "operations": ("contract",),
    "rows": ("contract", "toolbox"),
    "recipes": ("contract", "toolbox"),
    "saving": ("contract", "toolbox", "recipes"),
    "guards": ("contract", "toolbox"),
    "kernel": ("contract", "toolbox", "recipes", "rows", "saving", "guards"),
    "kit": ("contract", "toolbox", "rows", "steps", "operations"),
    "shared": ("contract", "toolbox", "rows", "steps", "operations"),
}
"""What each room may import."""

NO_FRAMEWORK = ("contract", "toolbox", "steps", "recipes", "rows", "saving", "guards", "kernel")

IGNORED = {
    "kit": [
        "finetooth_kit.templates -> transformers",
        "finetooth_kit.entries.kernel -> torch",
    ],
}
"""Imports that stand inside functions for a reason: the kit compares with peers."""


def packages(pattern: str) -> list[str]:
    """Import packages under the folders that match."""
    return sorted(path.parent.name for path in ROOT.glob(f"{pattern}/src/*/__init__.py"))


def block(name: str, title: str, **settings: list[str] | str) -> str:
    """One contract in import-linter's INI form."""
    lines = [f"[importlinter:contract:{name}]", f"name = {title}"]
    for key, value in settings.items():
        lines.append(f"{key} = {value}" if isinstance(value, str) else f"{key} =\n    " + "\n    ".join(value))
    return "\n".join(lines)


def render() -> str:
    """The whole file."""
    rooms = {room: packages(folder) for room, folder in ROOMS.items()}
    rooms = {room: modules for room, modules in rooms.items() if modules}
    shared = rooms["shared"]
    plugins = [name for name in packages("plugins/*/*") if name not in shared] + packages("contrib/*")
    everything = [module for modules in rooms.values() for module in modules] + plugins
    forbidden = {"type": "forbidden", "allow_indirect_imports": "False"}
    parts = [
        "[importlinter]\ninclude_external_packages = True\nroot_packages =\n    " + "\n    ".join(everything),
    ]
    for room, modules in rooms.items():
        allowed = {module for other in MAY[room] for module in rooms.get(other, ())} | {*modules}
        banned = [module for module in everything if module not in allowed]
        banned += [*FRAMEWORKS] if room in NO_FRAMEWORK else []
        ignored = {"ignore_imports": IGNORED[room]} if room in IGNORED else {}
        title = f"{room} imports {', '.join(MAY[room]) or 'no room'}"
        parts.append(block(room, title, **forbidden, source_modules=modules, forbidden_modules=banned, **ignored))
    parts += [
        block(
            "plugins",
            "plugins never import the kernel",
            **forbidden,
            source_modules=plugins,
            forbidden_modules=rooms["kernel"],
        ),
        block("siblings", "plugins never import each other", type="independence", modules=plugins),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/make_importlinter.py FILE")
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
