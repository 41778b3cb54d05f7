"""Initial values of a critic: the expectations of a reward model, or of another run's critic, for beginnings of
answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.entries import Method
from finetooth_hooks.errors import PlanError, RecipeError
from finetooth_hooks.rollouts import Rollout
from finetooth_modelfiles.classifiers import CRITIC_FILE

from finetooth_ppo.gae import Floats


class CriticStart:
    """A model with a scalar head, opened with the first batch. A critic that itself started from another one adds the
    values of both.

    Args:
        reference: a run of method `rm`, or of one with a critic.

    Raises:
        RecipeError: the run does not exist.
        UserError: the run has no artifact.
        PlanError: the model has no scalar head.
    """

    def __init__(self, reference: str, context: Context) -> None:
        self._reference, self._context = reference, context
        self._opened = context.open(reference)
        entry = context.catalog.get("method", self._opened.method).entry if self._opened.method else None
        head = entry.head if isinstance(entry, Method) else None
        if head is None or head.exported_as == "token":
            raise PlanError(
                f"method.critic: {reference} is not a reward model, and has no critic",
                action="name a run of method rm, or of ppo",
            )
        artifact = self._opened.artifact
        if head.exported_as == "none" and not (artifact is not None and (artifact / CRITIC_FILE).is_file()):
            raise PlanError(
                f"method.critic: the artifact of {reference} has no critic",
                action="train it again, or name a run of method rm",
            )
        before = str(self._opened.options.get("critic") or "") if head.exported_as == "none" else ""
        self._before = CriticStart(before, context) if before else None

    def values(self, data: Sequence[Datum], rollouts: Sequence[Rollout]) -> list[Floats]:
        """Its value before each of the policy's own tokens, (T,) of each rollout.

        Args:
            data: of the rollouts.

        Raises:
            RecipeError: its tokenizer differs from the policy's.
        """
        own, theirs = self._context.tokenizer, self._opened.context.tokenizer
        for rollout in rollouts:
            tokens = [*rollout.prompt, *rollout.tokens]
            if max(tokens) >= self._opened.context.facts.vocab_size or own.decode(tokens) != theirs.decode(tokens):
                raise RecipeError(
                    "method.critic",
                    f"{self._reference} has another tokenizer than the policy",
                    action="train the reward model on the policy's model",
                )
        outputs = self._opened.engine.forward(data, returns=("values",), train=False).outputs
        critic_values = [
            np.asarray(of["values"][datum.mask], dtype=np.float64) for of, datum in zip(outputs, data, strict=True)
        ]
        if self._before is None:
            return critic_values
        return [mine + of for mine, of in zip(critic_values, self._before.values(data, rollouts), strict=True)]
