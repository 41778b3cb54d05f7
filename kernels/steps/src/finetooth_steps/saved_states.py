"""Checks of a saved engine state that need no array library: the model, the precision, the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from finetooth_hooks.errors import UserError
from finetooth_hooks.protocols import EngineRequest


def identity(request: EngineRequest) -> dict[str, Any]:
    """What a state must have been saved from."""
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
