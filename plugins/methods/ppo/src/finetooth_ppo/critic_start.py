"""What a reward model, or the critic of another run, expects of the beginnings of answers: where a critic starts."""

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
    """A model with a head, opened with the first batch. The critic of a run that started from another one is both.

    Args:
        reference: a run of method `rm`, or of one with a critic.

    Raises:
        RecipeError: there is none.
        UserError: the run kept no artifact.
        PlanError: it has no scalar head.
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
        """(T,) what it says before each token of the policy's own.

        Args:
            data: of the rollouts.

        Raises:
            RecipeError: it has another tokenizer than the policy.
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
