"""Pages of the site that docs/ does not hold as such, for `make site`: called by mkdocs.

The first page is README.md; the order of guides is that of docs/guides/README.md; links out of docs/ lead to the
repository, if its address is known, and are plain text if not.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)]*)?\)")
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
MEASURED = (
    "benchmarks.md",
    "benchmarks-amx.md",
    "benchmarks-gpu.md",
    "learning.md",
    "families.md",
    "strategies.md",
    "torture.md",
    "cookbook.md",
    "tinker.md",
    "attacks.md",
)


def on_config(config: Any) -> Any:
    """The order of pages."""
    guides = dict.fromkeys(
        name
        for _, name, _ in LINK.findall((DOCS / "guides/README.md").read_text(encoding="utf-8"))
        if "/" not in name and name.endswith(".md")
    )
    config.nav = [
        {"Start": "index.md"},
        {"Guides": ["guides/README.md", *(f"guides/{name}" for name in guides)]},
        {"Settings": _pages("recipe")},
        {"Hooks": [*_pages("hooks"), {"Types": _pages("hooks/types")}]},
        {"Measured": [name for name in MEASURED if (DOCS / name).is_file()]},
        {"Decisions": _pages("decisions")},
    ]
    return config


def _pages(folder: str) -> list[str]:
    found = sorted(path.name for path in (DOCS / folder).glob("*.md"))
    found.sort(key=lambda name: name != "README.md")
    return [f"{folder}/{name}" for name in found]


def on_files(files: Any, config: Any) -> Any:
    """README.md as the first page."""
    from mkdocs.structure.files import File

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=text.replace("](docs/", "](").replace('"docs/', '"')))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links out of docs/ made links to the repository, or plain text."""
    here = "" if page.file.src_uri == "index.md" else posixpath.dirname(f"docs/{page.file.src_uri}")
    base = config.repo_url.rstrip("/") if config.repo_url else ""

    def out(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(here, target))
        if page.file.src_uri == "index.md" and (DOCS / target).exists() and not (ROOT / path).exists():
            path = f"docs/{path}"
        if path.startswith("docs/"):
            inside = ROOT / path
            if inside.is_dir() and (inside / "README.md").is_file():
                return f"[{text}]({target.rstrip('/')}/README.md{anchor})"
            if inside.suffix in (".md", ".svg", ".png") or not inside.exists():
                return match[0]
        if not (ROOT / path).exists():
            return match[0]  # mkdocs says that it leads nowhere
        return f"[{text}]({base}/tree/main/{path}{anchor})" if base else text

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(out, part) for part in parts)
