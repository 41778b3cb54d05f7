"""The method `sdft`: the model teaches itself. It answers without a demonstration, and learns from the probabilities
that it gives to the same tokens after reading the demonstration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.data.examples import Message, Task
from finetooth_hooks.engine import Engine, RoleModel
from finetooth_hooks.errors import DataError
from finetooth_hooks.reports import Prepared
from finetooth_hooks.rollouts import Rollout
from finetooth_methods.reference import ROLE
from finetooth_rollouts.advantages import rewards_of
from finetooth_rollouts.data import learned
from finetooth_rollouts.method import RolloutMethod
from finetooth_rollouts.prompts import filled, messages_of, shows
from pydantic import Field

from finetooth_distillation.loss import loss_of
from finetooth_distillation.on_policy import DistributionOptions
from finetooth_distillation.teacher import with_teacher

SHOWN = "{prompt}\n\nA good answer to this is:\n{demonstration}\n\nGive an answer of your own."
"""The prompt with a demonstration; after Shenfeld et al., section 3, in our own words."""


class SelfDistilledOptions(DistributionOptions):
    """Options of `sdft`. The teacher is `reference`: the policy without its adapter, or with `sync_every` a copy that
    follows the policy by the share `mix` each time."""

    reference_is_for_kl: ClassVar[bool] = False
    demonstration: str = Field(default="answer", min_length=1)
    """Column of the row that holds the demonstration, an answer as text."""
    shown: Annotated[str, shows("prompt", "demonstration")] = SHOWN
    """What the teacher reads instead of the last message, with `{prompt}` and `{demonstration}`."""
    teacher_top_k: int = Field(default=64, ge=1)
    """Number of likeliest tokens for which the teacher gives probabilities; all others count as one."""


class SelfDistilled(RolloutMethod):
    """Self-distillation fine-tuning (Shenfeld et al., 2026, arXiv:2601.19897): on the policy's own answers, the
    divergence of its distributions from those of a teacher that has read a demonstration."""

    own_ratios = False

    def __init__(self, options: SelfDistilledOptions, context: Context) -> None:
        loss = loss_of(context, options.teacher_top_k, divergence=options.divergence, js_beta=options.js_beta)
        super().__init__(options, context, rewards_of, loss=replace(loss, temperature=options.temperature))
        self._own = options

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """See `protocols.Method.roles`: the teacher."""
        return self._reference.roles

    def prepare(self) -> Prepared:
        """Read prompts and demonstrations.

        Raises:
            DataError: a row has no demonstration, or the model cannot read a demonstration and an answer of that
                length.
        """
        prepared = super().prepare()
        tasks, rendered = self._prompts.tasks, self.context.renderer.prompt
        shown = [(id_, tuple(rendered(self._with_shown(id_, task), task.tools))) for id_, task in tasks.items()]
        self._shown = replace(self._prompts, tokens=shown)
        answer = self._own.max_completion_length
        self._shown.check_room(self.context, answer, of="the prompt with its demonstration")
        return prepared

    def _with_shown(self, id_: str, task: Task) -> tuple[Message, ...]:
        """The messages of a prompt, the demonstration in the last one."""
        column = self._own.demonstration
        answer = task.columns.get(column)
        if not isinstance(answer, str) or not answer:
            columns = ", ".join(sorted(task.columns)) or "no other column than the prompt"
            raise DataError(
                id_,
                f"the column {column!r} holds no demonstration; the row has {columns}",
                action="give every row one as text, or name its column in method.demonstration",
            )
        *before, last = messages_of(task)
        return (*before, replace(last, content=filled(self._own.shown, prompt=last.content, demonstration=answer)))

    def with_advantages(self, engine: Engine, rollouts: Sequence[Rollout]) -> tuple[list[Rollout], dict[str, float]]:
        """All tokens have the same weight."""
        return [replace(rollout, advantages=(1.0,) * len(rollout.tokens)) for rollout in rollouts], {}

    def training_data(self, engine: Engine, rollouts: Sequence[Rollout], weights: Sequence[float]) -> list[Datum]:
        """Prompts with their answers, and the teacher's distribution of each token after the demonstration."""
        pairs = list(zip(rollouts, weights, strict=True))
        shown = [learned(replace(rollout, prompt=self._shown.by_id[rollout.id]), weight) for rollout, weight in pairs]
        taught = with_teacher(
            engine, shown, self._own.teacher_top_k, temperature=self._own.temperature,
            vocabulary=self.context.facts.vocab_size, role=ROLE,
        )  # fmt: skip
        return [_moved(of, learned(rollout, weight)) for of, (rollout, weight) in zip(taught, pairs, strict=True)]


def _moved(taught: Datum, datum: Datum) -> Datum:
    """The datum with the teacher's distributions of the same tokens after another prompt."""
    width = taught.targets.shape[1]
    targets = np.repeat(np.asarray(datum.targets)[:, None], width, axis=1)
    teacher_logprobs = np.zeros(targets.shape)
    targets[datum.mask] = taught.targets[taught.mask]
    teacher_logprobs[datum.mask] = taught.fields["teacher_logprobs"][taught.mask]
    return replace(datum, targets=targets, fields={**datum.fields, "teacher_logprobs": teacher_logprobs})
