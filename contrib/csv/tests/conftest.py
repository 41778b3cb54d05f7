"""A fake run and reports."""

from __future__ import annotations

from finetooth_kit.run_fixtures import evaluation, outcome, report, run

__all__ = ["evaluation", "outcome", "report", "run"]
