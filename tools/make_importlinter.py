"""Write .importlinter: which rooms may import which, over every package of the workspace.

hooks   imports no room and no framework; its conformance kit imports toolbox, steps and the kernels' references
toolbox imports hooks
steps   imports hooks
core    imports hooks and toolbox
kernels imports hooks
plugins import hooks, toolbox, steps and kernels, never core and never each other
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FRAMEWORKS = ("torch", "transformers", "datasets", "mlx", "peft", "trl")

KIT = [
    "finetooth_hooks.testing.** -> finetooth_steps.**",
    "finetooth_hooks.testing.** -> finetooth_toolbox.**",
    "finetooth_hooks.testing.templates -> transformers",
    "finetooth_hooks.testing.kernel_checks -> finetooth_kernels.**",
    "finetooth_hooks.testing.kernel_checks -> torch",
]
"""What the conformance kit alone may import: what engines and methods share, and a peer that it compares with."""


DOCTOR = ["finetooth_core.doctor -> finetooth_hooks.testing.**", "finetooth_core.doctor -> finetooth_hooks.testing"]
"""`ft plugins doctor` runs the conformance kit, and the kit's engine needs steps."""


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
    toolbox, steps = packages("toolbox"), packages("steps")
    plugins = packages("plugins/*/*") + packages("contrib/*")
    forbidden = {"type": "forbidden", "allow_indirect_imports": "False"}
    parts = [
        "# Written by tools/make_importlinter.py; do not edit.\n"
        "[importlinter]\ninclude_external_packages = True\nroot_packages =\n    "
        + "\n    ".join([*hooks, *toolbox, *steps, *core, *kernels, *plugins]),
        block(
            "hooks",
            "hooks imports no room and no framework",
            **forbidden,
            source_modules=hooks,
            forbidden_modules=[*toolbox, *steps, *core, *kernels, *plugins, *FRAMEWORKS],
            ignore_imports=KIT,
        ),
        block(
            "toolbox",
            "toolbox imports hooks",
            **forbidden,
            source_modules=toolbox,
            forbidden_modules=[*steps, *core, *kernels, *plugins],
        ),
        block(
            "steps",
            "steps imports hooks, and no framework",
            **forbidden,
            source_modules=steps,
            forbidden_modules=[*toolbox, *core, *kernels, *plugins, *FRAMEWORKS],
        ),
        block(
            "core",
            "core imports hooks and toolbox, and no framework",
            **forbidden,
            source_modules=core,
            forbidden_modules=[*steps, *kernels, *plugins, *FRAMEWORKS],
            ignore_imports=DOCTOR,
        ),
        block(
            "kernels",
            "kernels imports hooks at most",
            **forbidden,
            source_modules=kernels,
            forbidden_modules=[*toolbox, *steps, *core, *plugins],
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
