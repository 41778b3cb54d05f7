"""What a reward model expects of the beginnings of answers: where a critic starts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from finetooth_hooks.context import Context
from finetooth_hooks.datum import Datum
from finetooth_hooks.entries import Method
from finetooth_hooks.errors import PlanError, RecipeError
from finetooth_hooks.rollouts import Rollout

from finetooth_ppo.gae import Floats


class CriticStart:
    """A reward model, opened with the first batch.

    Args:
        reference: a run of method `rm`.

    Raises:
        RecipeError: there is none.
        PlanError: it has no scalar head.
    """

    def __init__(self, reference: str, context: Context) -> None:
        self._reference, self._context = reference, context
        self._opened = context.open(reference)
        entry = context.catalog.get("method", self._opened.method).entry if self._opened.method else None
        head = entry.head if isinstance(entry, Method) else None
        if head is None or head.exported_as != "sequence":
            raise PlanError(f"method.critic: {reference} is no reward model", action="name a run of method rm")

    def values(self, data: Sequence[Datum], rollouts: Sequence[Rollout]) -> list[Floats]:
        """(T,) what it says before each token of the policy's own.

        Args:
            data: of the rollouts.

        Raises:
            RecipeError: it has another tokenizer than the policy.
        """
        own, theirs = self._context.tokenizer, self._opened.context.tokenizer
        for one in rollouts:
            tokens = [*one.prompt, *one.tokens]
            if max(tokens) >= self._opened.context.facts.vocab_size or own.decode(tokens) != theirs.decode(tokens):
                raise RecipeError(
                    "method.critic",
                    f"{self._reference} has another tokenizer than the policy",
                    action="train the reward model on the policy's model",
                )
        said = self._opened.engine.forward(data, returns=("values",), train=False).outputs
        return [np.asarray(of["values"][datum.mask], dtype=np.float64) for of, datum in zip(said, data, strict=True)]
