"""A run or a model for sampling: its engine has the run's weights, generates text, and fits into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from finetooth_hooks.errors import PlanError
from finetooth_saving.run_folder import artifact_of, run_of
from finetooth_saving.run_recipe import without_training

from finetooth_core.models.opened_model import OpenedModel, open_model
from finetooth_core.planning.memory_check import OF_TRAINING
from finetooth_core.session import Session


class TalkedTo(OpenedModel):
    """An opened model whose engine generates."""

    session: Session

    @cached_property
    def engine(self) -> Any:
        """Returns an engine that can generate text with the model.

        Raises:
            PlanError: the backend cannot generate, the model gives scores and no text, or it does not fit into memory.
        """
        session = self.session
        head = session.job.request.trains.head
        if head is not None and head.exported_as != "none":
            raise PlanError(
                f"model: {self.reference} is a reward model: it gives scores, not answers",
                action="name a run or a model that writes text; ft --help lists the commands that score with it",
            )
        session.check_memory(OF_TRAINING)
        if "generate" not in session.engine.capabilities:
            raise PlanError(f"backend: {session.plan.picks['backend']} cannot generate", action="pick another backend")
        return super().engine


def talk_to(reference: str, session: Callable[[Mapping[str, Any]], Session], *, as_base: bool) -> TalkedTo:
    """Open a run or a model to talk to it.

    Args:
        session: makes one for a recipe, without training data.
        as_base: use the run's merged model, without its adapter's recipe.

    Raises:
        UserError: the run kept no artifact, or a file of it is damaged.
    """
    run = run_of(reference) if as_base else None
    if run is not None:
        artifact_of(run)  # before the base is loaded
        reference = str(run)
        return TalkedTo(reference, None, session(without_training({"model": reference})))
    opened = open_model(reference, session)
    return TalkedTo(opened.reference, opened.folder, opened.session)
