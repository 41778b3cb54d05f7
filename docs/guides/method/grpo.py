"""A method as an outsider writes one: GRPO on policy (Shao et al., 2024, arXiv:2402.03300, section 4.1).

Each prompt is answered several times, a reward judges the answers, and an answer's advantage is its reward beside the
others of its prompt: A = (r - mean) / (deviation + 1e-4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from finetooth_hooks import DataError, DataReport, Datum, Method, Options, Pick, Prepared, Sample, StepReport, hookimpl
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Message, Task
from finetooth_hooks.engine import Engine
from finetooth_hooks.protocols import Reward
from finetooth_hooks.sampling import Completion, Sampling
from finetooth_methods.batched import BatchedMethod, train_step
from pydantic import Field


class GrpoOptions(Options):
    """Options of `group_advantage`."""

    reward: Pick = "exact_match"
    """What judges an answer: the name of a reward, or a mapping with `name` and its options."""
    loss: Pick = "ppo"
    """A loss that reads the fields `advantages` and `old_logprobs`."""
    answers: int = Field(default=4, ge=2)
    """To each prompt."""
    max_tokens: int = Field(default=32, ge=1)
    """Of an answer."""


class Grpo(BatchedMethod):
    """One batch of prompts a step; the answers to a prompt are one group."""

    noun = "answer"

    def __init__(self, options: GrpoOptions, context: Context) -> None:
        super().__init__(context, context.loss(options.loss, setting="method.loss"))
        self._options = options
        self._reward: Reward = context.build("reward", options.reward, setting="method.reward")

    def prepare(self) -> Prepared:
        rows = self._context.examples("train").rows
        tasks = [(id_, example) for id_, example in rows if isinstance(example, Task)]
        if len(tasks) < len(rows):
            raise DataError("data.train", "a row has an answer already", action="set data.format: task")
        self._asked = [(id_, self._context.renderer.prompt(_messages(task), task.tools), task) for id_, task in tasks]
        batches = self.begin_count(len(tasks))
        lengths = [len(prompt) + self._options.max_tokens for _, prompt, _ in self._asked]
        report = DataReport("train", len(rows), len(tasks), tokens=sum(lengths), longest=max(lengths))
        return Prepared(batches.total_steps, batches.steps_per_epoch, report)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        batches = self._begun()
        for indices in batches:
            asked = [self._asked[index] for index in indices]
            sampling = Sampling(self._options.max_tokens, n=self._options.answers, seed=batches.step)
            answered = engine.generate([prompt for _, prompt, _ in asked], sampling)
            rewards = [self._judge(task, answers) for (_, _, task), answers in zip(asked, answered, strict=True)]
            data = [
                datum
                for (id_, prompt, _), answers, of_group in zip(asked, answered, rewards, strict=True)
                for datum in _group(id_, prompt, answers, of_group)
            ]
            report = train_step(engine, data, self._loss, batches.epoch)
            sample = Sample(asked[0][0], _text(asked[0][2]), "", answered[0][0].text, float(rewards[0][0]))
            metrics = {**report.metrics, "reward": float(np.mean(rewards))}
            yield replace(report, metrics=metrics, samples=(sample,), flops=report.flops + answered.flops)

    def _judge(self, task: Task, answers: Sequence[Completion]) -> np.ndarray:
        """Rewards of a prompt's answers, (A,); an answer that the reward leaves out has none."""
        columns = {name: [value] * len(answers) for name, value in task.columns.items()}
        found = self._reward([_text(task)] * len(answers), [answer.text for answer in answers], columns)
        return np.array([reward or 0.0 for reward in found])


def _group(id_: str, prompt: Sequence[int], answers: Sequence[Completion], rewards: np.ndarray) -> Iterator[Datum]:
    """A datum for each answer: what was asked has weight 0."""
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    before = np.zeros(len(prompt) - 1)  # a datum predicts all of its tokens but the first
    for answer, advantage in zip(answers, advantages, strict=True):
        weights = [0.0] * len(prompt) + [1.0] * len(answer.tokens)
        datum = Datum.from_tokens([*prompt, *answer.tokens], weights, group=id_, id=id_)
        fields = {
            "advantages": np.concatenate([before, np.full(len(answer.tokens), advantage)]),
            "old_logprobs": np.concatenate([before, answer.logprobs]),
        }
        yield replace(datum, fields={**datum.fields, **fields})


def _messages(task: Task) -> tuple[Message, ...]:
    return (Message("user", task.prompt),) if isinstance(task.prompt, str) else task.prompt


def _text(task: Task) -> str:
    """The prompt as rewards read it."""
    return _messages(task)[-1].content


@hookimpl
def ft_methods() -> Iterable[Method]:
    yield Method(
        name="group_advantage",
        build=f"{__name__}:Grpo",
        summary="answers to a prompt beside each other",
        needs=frozenset({"generate"}),
    )
