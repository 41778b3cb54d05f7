"""The topics: Markdown files in this folder, the first heading of each its title."""

from __future__ import annotations

from pathlib import Path

from finetooth_hooks.errors import UserError

TEXTS = Path(__file__).with_name("texts")
OVERVIEW = "overview"
"""What is shown where no topic is named."""


def list_topics() -> dict[str, str]:
    """Titles by topic, the overview first."""
    files = sorted(TEXTS.glob("*.md"), key=lambda path: (path.stem != OVERVIEW, path.stem))
    return {path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for path in files}


def get_doc(topic: str = OVERVIEW) -> str:
    """The text of a topic, Markdown.

    Raises:
        UserError: no topic has this name; lists the topics.
    """
    topics = list_topics()
    if topic not in topics:
        raise UserError(f"no topic {topic!r}", action=f"choose of {', '.join(topics)}")
    return (TEXTS / f"{topic}.md").read_text(encoding="utf-8")
