"""The page of a run on disk, with its curves as a picture where Pillow is there."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_hooks import Outcome, Run
from finetooth_saving.runs.recorded import Recorded, read_run

from finetooth_report.page import page, pictures

PAGE = "report.html"
PICTURE = "curves.png"


def write(run: Recorded, place: Path) -> list[Path]:
    """Write a run's page to a temporary file and move it into place; returns what was written.

    Raises:
        OSError: it cannot be written.
    """
    beside = place.with_name(f".{place.name}.tmp")
    try:
        beside.write_text(page(run), encoding="utf-8")
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)  # half a page, where the disk is full
    return [place, *_picture(run, place.with_name(PICTURE))]


def write_at_end(run: Run, outcome: Outcome) -> None:
    """Write the page of a run that ends: its reports come from the outcome, which has them whole, also where no tracker
    wrote them."""
    recorded = read_run(run.folder)
    content = {f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome)}
    history, evaluations = content.pop("history"), content.pop("evaluations")
    content["rows"] = content.pop("data")  # as result.json has it
    result: Mapping[str, Any] = json.loads(json.dumps(_plain(content)))
    write(
        dataclasses.replace(
            recorded,
            status=outcome.status,
            reason=outcome.reason,
            result=result,
            steps=tuple(_plain(report) for report in history),
            evaluations=tuple(_plain(evaluation) for evaluation in evaluations),
        ),
        run.folder / PAGE,
    )


def _picture(run: Recorded, place: Path) -> list[Path]:
    try:
        import PIL  # noqa: F401  - optional: without it the page has the curves all the same
    except ImportError:
        return []
    from finetooth_report.png import draw

    charts = pictures(run)
    return [draw(charts, place)] if charts else []


def _plain(value: Any) -> Any:
    """What JSON can say of a report; numbers that are not finite become None, as in metrics.jsonl."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "rollouts"}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Path):
        return str(value)
    number = float(value)
    return number if math.isfinite(number) else None
