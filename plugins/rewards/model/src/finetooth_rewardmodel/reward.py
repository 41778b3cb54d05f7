"""The reward `model`: what a trained reward model says of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from finetooth_hooks import Context, Message, Options
from finetooth_hooks.context import Opened
from finetooth_hooks.data.examples import Side
from pydantic import Field

from finetooth_rewardmodel.scorer import Scorer, Steps, Text


class ModelOptions(Options):
    """Options of the reward `model`."""

    path: str = Field(min_length=1)
    """The reward model: a run of method `rm` or `prm`, by its folder or its name under `runs/`, or the folder or hub id
    of a classifier with one label."""
    markup: Literal["chat", "text"] = "chat"
    """How prompt and completion are written: as a user's and an assistant's message in the model's own markup, or as
    plain text one after the other."""
    steps: Steps = "min"
    """How a process reward model's step scores become one score: their `product`, the `min`, the `last` one, or the
    `mean`."""
    separator: str | None = Field(default=None, min_length=1)
    """Where a process reward model splits an answer into steps. Default: as in its training."""
    quantization: str | dict[str, Any] | None = None
    """Quantisation of its linear weights: a name or a mapping with options, as in a recipe's `quantization`. Left out,
    none."""


@dataclass
class ModelReward:
    """`protocols.Reward`; the model is loaded when it first scores."""

    options: ModelOptions
    opened: Opened

    @cached_property
    def scorer(self) -> Scorer:
        """Returns the opened model as a scorer.

        Raises:
            PlanError: the model gives no scores.
        """
        return Scorer(self.opened, self.options.steps, self.options.separator)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """None for a completion that says nothing. What was asked is the whole conversation, where a method gives
        it."""
        places = [i for i, completion in enumerate(completions) if completion.strip()]
        talks = columns.get("conversation") or [None] * len(completions)
        ids = columns.get("row_id") or [f"completion {i + 1}" for i in range(len(completions))]
        texts = [Text(*self._sides(prompts[i], completions[i], talks[i]), id=str(ids[i])) for i in places]
        scores: list[float | None] = [None] * len(completions)
        for i, scored in zip(places, self.scorer.score(texts) if texts else (), strict=True):
            scores[i] = scored.score
        return scores

    def _sides(self, prompt: str, completion: str, talk: Sequence[Mapping[str, str]] | None) -> tuple[Side, Side]:
        if self.options.markup == "text":
            return prompt, completion
        question = tuple(
            Message(turn["role"], turn["content"]) for turn in talk or [{"role": "user", "content": prompt}]
        )
        return question, (Message("assistant", completion),)


def build(options: ModelOptions, context: Context) -> ModelReward:
    """Builder of the reward `model`.

    Raises:
        RecipeError: nothing is there.
        UserError: the run kept no artifact, or a file of it is damaged.
    """
    changes = None if options.quantization is None else {"quantization": options.quantization}
    return ModelReward(options, context.open(options.path, changes))
