"""Common code of saved engine states without an array library: their folder, and checks before restoring."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import UserError
from finetooth_hooks.protocols import EngineRequest

STATE = "state.json"
"""The file that describes the other files of a state."""
LARGEST_JSON = 2**28
"""Bytes of it; one of a model with a hundred thousand trained tensors has a tenth of that."""
OTHER = "use another checkpoint"


@contextmanager
def taking_its_place(path: Path, is_ours: Callable[[str], bool]) -> Iterator[Path]:
    """A temporary folder to write a state into, with `STATE` among its files; afterwards it stands at `path`.

    A folder that is there already keeps its other files. `STATE` is replaced last, so that a torn state is never read.

    Args:
        is_ours: by a file's name, whether it is of a state: such a file goes if the new state has none of this name.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        if not path.exists():
            staging.rename(path)
            return
        new = {file.name for file in staging.iterdir()}
        for old in [file for file in path.iterdir() if is_ours(file.name) and file.name not in new]:
            old.unlink()
        for name in (*sorted(new - {STATE}), STATE):
            (staging / name).replace(path / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_content(path: Path) -> dict[str, Any]:
    """The content of `STATE` in a state's folder.

    Raises:
        UserError: the file is missing, or not a JSON object.
    """
    try:
        file = plain_file(path / STATE)
        if file.stat().st_size > LARGEST_JSON:
            raise ValueError(f"{STATE} has {file.stat().st_size:,} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{STATE} holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} does not hold a saved engine state: {error}", action="give the folder that was saved"
        ) from error
    return content


def plain_file(file: Path) -> Path:
    """The file itself.

    Raises:
        OSError: it is missing, or a link or device: nothing that an engine writes.
    """
    if not stat.S_ISREG(file.lstat().st_mode):
        raise OSError(f"{file.name} is not a plain file")
    return file


def check_counters(where: str, content: Mapping[str, Any]) -> None:
    """Check that counters are numbers that an engine can have come to, and that the schedule has a state.

    Raises:
        UserError: they are not.
    """
    counters, schedule = content.get("counters"), content.get("schedule")
    wrong = (
        not isinstance(counters, dict)
        or counters.keys() != {"step", "accumulated", "loss", "rows"}
        or not all(type(counters[name]) is int and counters[name] >= 0 for name in ("step", "accumulated"))
        or not is_finite(counters["loss"])
        or not isinstance(counters["rows"], list)
        or not all(isinstance(row, str) for row in counters["rows"])
    )
    if wrong:
        raise UserError(f"{where}/{STATE}: counters are {counters!r:.200}", action=OTHER)
    if not isinstance(schedule, dict):
        raise UserError(f"{where}/{STATE}: the schedule's state is {schedule!r:.200}", action=OTHER)


def is_finite(value: Any) -> bool:
    """Whether it is a number, neither infinite nor NaN."""
    return type(value) in (int, float) and math.isfinite(value)


def identity(request: EngineRequest) -> dict[str, Any]:
    """The facts that a state must have been saved with."""
    model = request.base.model
    return {"model_type": model.model_type, "parameters": model.parameters, "revision": model.revision}


def check_identity(where: str, content: Mapping[str, Any], request: EngineRequest) -> None:
    """Check that a state was saved from this model in this precision.

    Args:
        where: the state comes from, for messages.
        content: the state's description.

    Raises:
        UserError: another model, or another precision.
    """
    saved_model = content.get("model")
    for name, value in identity(request).items():
        saved = saved_model.get(name) if isinstance(saved_model, dict) else None
        if saved != value and saved and value:
            raise UserError(
                f"{where} was saved with the model's {name} {saved!r}, this one has {value!r}",
                action="load it into the model it was saved from",
            )
    if content.get("precision") != request.plan.train.precision:
        raise UserError(
            f"{where} was saved with train.precision={content.get('precision')}, this run has "
            f"{request.plan.train.precision}",
            action=f"set train.precision to {content.get('precision')}",
        )


def restore_schedule(request: EngineRequest, saved: Any, where: str) -> None:
    """Give the schedule its saved state; if that fails, it keeps the state that it had.

    Raises:
        UserError: the state is not one of this schedule.
    """
    before = deepcopy(dict(request.updates.schedule.state()))
    try:
        request.updates.schedule.restore(deepcopy(saved))
    except UserError:
        request.updates.schedule.restore(before)
        raise
    except Exception as error:
        request.updates.schedule.restore(before)
        raise UserError(
            f"{where}: its state of the schedule does not fit this schedule ({type(error).__name__}: {error})",
            action="use the schedule of the saved run",
        ) from error
