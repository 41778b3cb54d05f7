"""The table of plugins in README.md."""

from __future__ import annotations

from finetooth_hooks import ENTRY_TYPES

from reference.workspace import Workspace

BEGIN, END = "<!-- plugins, written by tools/make_reference.py -->", "<!-- end of plugins -->"


def with_table(text: str, workspace: Workspace) -> str:
    """The page with the table between its marks.

    Raises:
        SystemExit: a mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md lacks {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table(workspace)}\n{END}{after}"


def table(workspace: Workspace) -> str:
    """Entries by kind, each a link to its package; the default one is bold."""
    lines = ["| kind | first-party entries |", "|---|---|"]
    for kind in ENTRY_TYPES:
        links = []
        for offer in workspace.of_kind(kind):
            link = f"[{offer.entry.name}]({offer.folder})"
            links.append(f"**{link}**" if offer.entry.default else link)
        lines.append(f"| [{kind}](docs/hooks/{hook_of(kind)}.md) | {', '.join(links)} |")
    return "\n".join(lines)


def hook_of(kind: str) -> str:
    """The hook that yields a kind."""
    from finetooth_hooks.specs import REGISTRATION_HOOKS

    return next(hook for hook, cls in REGISTRATION_HOOKS.items() if cls is ENTRY_TYPES[kind])
