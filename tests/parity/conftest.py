"""Shared data."""

from __future__ import annotations

from finetooth_hooks.testing.shared_data import shared

__all__ = ["shared"]
