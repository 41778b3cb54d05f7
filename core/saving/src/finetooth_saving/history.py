"""All reports of a run as a file: `history.jsonl.gz`, one report per line, in order.

A number that is not finite is a text (`"NaN"`), since JSON has no such number. Each report becomes text once, on
arrival, so that a long history adds little time to a checkpoint.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from finetooth_hooks.errors import UserError
from finetooth_hooks.reports import Evaluation, Sample, StepReport

FILE = "history.jsonl.gz"

Report = StepReport | Evaluation


class History:
    """Reports in order."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._lines: list[bytes] = []

    def add(self, report: Report) -> None:
        """Append a report."""
        kind = "step" if isinstance(report, StepReport) else "evaluation"
        self.reports.append(report)
        values = asdict(report)
        if kind == "step":
            del values["rollouts"]
            if not report.samples:
                del values["samples"]
        self._lines.append(json.dumps({kind: plain(values)}, allow_nan=False).encode() + b"\n")

    def cut(self, step: int) -> None:
        """Remove the reports after `step`."""
        indices = [index for index, report in enumerate(self.reports) if report.step <= step]
        self.reports = [self.reports[index] for index in indices]
        self._lines = [self._lines[index] for index in indices]

    def lines(self) -> Sequence[bytes]:
        """The current lines for `write`, which another thread may call."""
        return tuple(self._lines)


def write(path: Path, lines: Sequence[bytes]) -> None:
    """Write the lines of a history; the same lines give the same bytes."""
    with path.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
        packed.write(b"".join(lines))


def read(path: Path) -> History:
    """Read a file from `write`.

    Raises:
        UserError: the file is not a history.
    """
    history = History()
    try:
        packed = path.read_bytes()
        if not packed:
            raise ValueError("it is empty")
        for report in _reports(gzip.decompress(packed)):
            history.add(report)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold the history of a run: {error}", action="use another checkpoint"
        ) from error
    return history


def _reports(content: bytes) -> Iterator[Report]:
    for line in content.splitlines():
        for kind, values in json.loads(line).items():
            yield report_of(kind, values)


def report_of(kind: str, plain_values: Mapping[str, Any]) -> Report:
    """A `step` or an `evaluation` from its fields in JSON."""
    values = {key: unplain(value) for key, value in plain_values.items() if key != "samples"}
    samples = _samples(plain_values.get("samples", ()))
    if kind == "step":
        return StepReport(**values, samples=samples)
    return Evaluation(**{**values, "name": plain_values["name"], "samples": samples})


def _samples(records: Sequence[Mapping[str, Any]]) -> tuple[Sample, ...]:
    """Samples; their scores are the only numbers in them."""
    made = (Sample(**sample) for sample in records)
    return tuple(replace(sample, score=unplain(sample.score)) for sample in made)


def plain(value: Any) -> Any:
    """JSON for numbers, texts, lists and mappings; numbers that are not finite become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)  # NumPy scalars too
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def unplain(value: Any) -> Any:
    """Undo `plain`, for values without other texts."""
    if isinstance(value, dict):
        return {key: unplain(inner) for key, inner in value.items()}
    return float(cast(str, value)) if value in ("NaN", "Infinity", "-Infinity") else value
