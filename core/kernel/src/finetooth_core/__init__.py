"""The core of finetooth: plugin manager, recipe, plan, run loop and the command line."""

from __future__ import annotations
