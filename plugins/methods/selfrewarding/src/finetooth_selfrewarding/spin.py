"""The method `spin`: the policy learns to prefer the answers of rows to its own, round after round."""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks import Context, Prepared, Rollout
from finetooth_hooks.protocols import Method
from finetooth_rollouts.data import prompt_and_answer

from finetooth_selfrewarding.preferring import RoundMethod, RoundOptions


class SpinOptions(RoundOptions):
    """Options of `spin`."""


class Spin(RoundMethod):
    """Self-play fine-tuning (Chen et al., 2024, arXiv:2401.01335, algorithm 1): the opponent, which is the model at the
    start of a round, answers the prompt of every row. The policy learns to prefer the row's answer with DPO's loss and
    the opponent as reference (equation 4.7). A pair of equal answers is left out."""

    nothing = (
        "data.train",
        "the model answers every prompt with the row's own answer",
        "give other rows, or a higher method.temperature",
    )

    def __init__(self, options: SpinOptions, context: Context) -> None:
        super().__init__(options, context)
        self._rows: Method = context.build("method", {"name": "sft", "train_on": "last"}, setting="method")
        self._answers: list[tuple[int, ...]] = []

    def prepare(self) -> Prepared:
        """Read and tokenise the rows.

        Raises:
            DataError: a row is broken, or has no prompt.
        """
        self._rows.prepare()
        prompts = []
        for datum in self._rows.data:
            prompt, answer = prompt_and_answer(datum)
            prompts.append((datum.id, prompt))
            self._answers.append(answer)
        return self.begin(prompts, len(prompts))

    def preferred(self, rollouts: Sequence[Rollout]) -> tuple[list[tuple[Rollout, Rollout]], dict[str, float]]:
        """Pairs of a row's answer and the policy's."""
        both = [(self._row(rollout, answer), rollout) for rollout, answer in zip(rollouts, self._answers, strict=True)]
        return [(row, rollout) for row, rollout in both if row.tokens != rollout.tokens], {}

    def _row(self, rollout: Rollout, answer: tuple[int, ...]) -> Rollout:
        """The row's answer to the same prompt."""
        nobody = (-1,) * len(answer)
        text = self._context.tokenizer.decode(answer)
        return Rollout(
            rollout.id, rollout.group, rollout.prompt, answer, (0.0,) * len(answer), nobody, text, outcome="stop"
        )
