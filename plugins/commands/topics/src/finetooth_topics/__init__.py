"""Topics for coding assistants, and recipes and examples to copy."""

from __future__ import annotations

from finetooth_topics.topics import get_doc, list_topics

__all__ = ["get_doc", "list_topics"]
