"""Write core's index: which package of this workspace brings which entry, for the hint in "no loss 'x' is installed".

    python tools/make_index.py [--check]

`--check` changes nothing and fails if the file is not up to date. The packages need not be installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "core/kernel/src/finetooth_core/index.json"
WORKSPACE = ("plugins/*/*/pyproject.toml",)
"""First-party packages only: contrib is kept by others, and may break."""


def make_index(root: Path = ROOT) -> dict[str, dict[str, list[str]]]:
    """Distributions by kind and entry name, sorted.

    Raises:
        SystemExit: a package of the workspace is no valid plugin.
    """
    from finetooth_core.plugins import registration

    found: dict[str, dict[str, list[str]]] = {}
    for pattern in WORKSPACE:
        for file in sorted(root.glob(pattern)):
            project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
            source = str(file.parent / "src")
            sys.path.insert(0, source)
            try:
                for module in project.get("entry-points", {}).get("finetooth", {}).values():
                    registered = registration.read(import_module(module))
                    if registered.problems:
                        raise SystemExit(f"{project['name']}: {registered.problems[0].text}")
                    for entry in registered.entries:
                        found.setdefault(entry.kind, {}).setdefault(entry.name, []).append(project["name"])
            finally:
                sys.path.remove(source)
    return {kind: dict(sorted(names.items())) for kind, names in sorted(found.items())}


def render(index: dict[str, dict[str, list[str]]]) -> str:
    """The text of the file."""
    return json.dumps(index, indent=1) + "\n"


def main() -> int:
    """Write or check the index; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = render(make_index())
    if arguments.check:
        fresh = INDEX.is_file() and INDEX.read_text(encoding="utf-8") == text
        if not fresh:
            print(f"{INDEX.relative_to(ROOT)} is not up to date: run python tools/make_index.py", file=sys.stderr)
        return 0 if fresh else 1
    INDEX.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
