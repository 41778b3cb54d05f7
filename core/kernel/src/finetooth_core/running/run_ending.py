"""How a run ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from finetooth_hooks.errors import FinetoothError, StopRun
from finetooth_hooks.reports import Outcome
from finetooth_toolbox import blame


@dataclass(frozen=True)
class Ending:
    """Why the steps ended."""

    status: Literal["done", "stopped", "interrupted", "failed"] = "done"
    reason: str = ""
    exit_code: int = 0
    error: Exception | None = None

    def stopped(self, stop: StopRun) -> Ending:
        """The ending after a plugin asked to stop: a run that failed or was interrupted stays that."""
        return Ending("stopped", stop.reason, stop.exit_code) if self.status in ("done", "stopped") else self


LEFT = Ending("interrupted", "interrupted twice; the step under way was dropped", 130)


def failed(error: Exception) -> Ending:
    """The ending for an exception."""
    if isinstance(error, FinetoothError):
        return Ending("failed", str(error), error.exit_code, error)
    return Ending("failed", blame.line(error), 1, error)


def result(outcome: Outcome, manifest: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The content of result.json; a number that is not finite becomes null, since JSON has none."""
    content = asdict(replace(outcome, history=(), evaluations=()))
    del content["history"], content["evaluations"], content["data"]  # checkpoints keep two, `more` has the third
    content["artifact"] = outcome.artifact.name if outcome.artifact else None
    for group in ("metrics", "best"):
        content[group] = {k: v if math.isfinite(v) else None for k, v in content[group].items()}
    return {**content, **more, **manifest}
