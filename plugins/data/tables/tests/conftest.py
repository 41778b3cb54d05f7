"""Shared data."""

from __future__ import annotations

from finetooth_kit.shared_data import shared

__all__ = ["shared"]
