"""A context over given examples."""

from __future__ import annotations

from finetooth_kit.evaluator_fixtures import make_context

__all__ = ["make_context"]
