"""Write .importlinter: which rooms may import which, over every package of the workspace.

hooks   imports no room and no framework
core    imports hooks
kernels imports hooks
plugins import hooks and kernels, never core and never each other
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FRAMEWORKS = ("torch", "transformers", "datasets", "mlx", "peft", "trl")

PEERS = ["finetooth_hooks.testing.templates -> transformers"]
"""Where the conformance kit compares with a peer: imported when a test calls it."""


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
    hooks, core, kernels = packages("hooks"), packages("core"), packages("kernels")
    plugins = packages("plugins/*/*") + packages("contrib/*")
    forbidden = {"type": "forbidden", "allow_indirect_imports": "False"}
    parts = [
        "# Written by tools/make_importlinter.py; do not edit.\n"
        "[importlinter]\ninclude_external_packages = True\nroot_packages =\n    "
        + "\n    ".join([*hooks, *core, *kernels, *plugins]),
        block(
            "hooks",
            "hooks imports no room and no framework",
            **forbidden,
            source_modules=hooks,
            forbidden_modules=[*core, *kernels, *plugins, *FRAMEWORKS],
            ignore_imports=PEERS,
        ),
        block(
            "core",
            "core imports hooks, and no framework",
            **forbidden,
            source_modules=core,
            forbidden_modules=[*kernels, *plugins, *FRAMEWORKS],
        ),
        block(
            "kernels",
            "kernels imports hooks at most",
            **forbidden,
            source_modules=kernels,
            forbidden_modules=[*core, *plugins],
        ),
        block("plugins", "plugins never import core", **forbidden, source_modules=plugins, forbidden_modules=core),
        block("siblings", "plugins never import each other", type="independence", modules=plugins),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    target = ROOT / ".importlinter"
    if "--check" in sys.argv:
        sys.exit(target.read_text() != render())
    target.write_text(render())
