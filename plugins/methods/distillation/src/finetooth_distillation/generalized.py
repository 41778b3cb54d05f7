"""The method `gkd` learns the teacher's distributions over rows, and over the policy's own answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from finetooth_hooks import Engine, Options, Pick, Prepared, StepReport
from finetooth_hooks.capabilities import METHOD
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import RoleModel
from finetooth_hooks.protocols import Method
from finetooth_hooks.rollouts import Prompt, Rollout
from finetooth_hooks.sampling import Sampling
from finetooth_methods.batched import BatchedMethod, train_step
from finetooth_rollouts.checked_sampler import CheckedSampler
from finetooth_rollouts.data import learned, prompt_and_answer
from pydantic import Field

from finetooth_distillation.loss import loss_of
from finetooth_distillation.sequences import learned_answers
from finetooth_distillation.teacher import Teacher, held, with_teacher


class GkdOptions(Options):
    """Options of `gkd`."""

    teacher: Teacher
    """The teacher model; a mapping, or only its `policy`."""
    lmbda: float = Field(default=0.5, ge=0, le=1)
    """Share of the steps, drawn at random, in which the policy writes the answers itself. 0 is `distill`; 1 trains only
    on the policy's own answers."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """The teacher's share of the mixture with which both models are compared. Towards 0 the divergence is the forward
    KL, which covers all of the teacher's answers; towards 1 the reverse KL, which concentrates on the likeliest
    ones."""
    seq_kd: bool = False
    """Whether the teacher writes the answers in the other steps. Rows are then prompts, and each gets one answer,
    sampled once at the beginning of the run."""
    temperature: float = Field(default=0.9, gt=0)
    """Temperature at which answers are sampled."""
    divergence_temperature: float = Field(default=1.0, gt=0)
    """Temperature of both distributions in the loss."""
    top_k: int = Field(default=64, ge=0)
    """Number of likeliest tokens for which the teacher gives probabilities; all others count as one. 0 is the whole
    vocabulary, and then the logits of a micro-batch are held twice."""
    max_completion_length: int = Field(default=128, ge=1)
    """Most tokens of a sampled answer."""
    sampler: Pick = "engine"
    """Samples the policy's answers."""


class Gkd(BatchedMethod):
    """Generalized knowledge distillation (Agarwal et al., 2023, arXiv:2306.13649, algorithm 1).

    A random draw decides for each step whether the rows of the batch train, or the policy's answers to their prompts. A
    prompt is the part of a row before its last trained stretch.
    """

    def __init__(self, options: GkdOptions, context: Context) -> None:
        ways = {0.0: "forward", 1.0: "reverse"}
        mixed = {} if options.beta in ways else {"js_beta": options.beta}
        loss = loss_of(
            context, options.top_k, divergence=ways.get(options.beta, "js"),
            temperature=options.divergence_temperature, **mixed,
        )  # fmt: skip
        super().__init__(context, loss)
        self._options = options
        self._rows: Method = context.build("method", {"name": "sft", "train_on": "last"}, setting="method")
        self._sampler = CheckedSampler.of(context, options.sampler)

    @property
    def capabilities(self) -> frozenset[str]:
        """`own_engine`, if its sampler uses the engine and some steps sample."""
        return self._sampler.capabilities & frozenset(METHOD if self._options.lmbda else ())

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """See `protocols.Method.roles`: the teacher."""
        return held(self._options.teacher)

    def prepare(self) -> Prepared:
        """Read and tokenise the rows; with `seq_kd` let the teacher answer them, or read its earlier answers.

        Raises:
            DataError: a row is broken, or has no prompt.
        """
        options = self._options
        if options.seq_kd:
            data, report = learned_answers(
                self._context, options.teacher.policy, 1, longest=options.max_completion_length,
                temperature=options.temperature,
            )  # fmt: skip
            batches = self.begin(data)
            return Prepared(batches.total_steps, batches.steps_per_epoch, report)
        prepared = self._rows.prepare()
        self.begin(self._rows.data)
        return prepared

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step for each batch."""
        options, batches, size = self._options, self._begun(), self._context.facts.vocab_size
        for indices in batches:
            data, metrics, flops = [self._data[row] for row in indices], {"on_policy": 0.0}, 0.0
            if self._context.generator("gkd", batches.step).random() < options.lmbda:
                answers, flops = self._answers(engine, data, batches.step)
                data = [learned(answer) for answer in answers]
                mean = sum(answer.length for answer in answers) / len(answers)
                metrics = {"on_policy": 1.0, "completions/mean_length": mean}
            if options.top_k:
                taken_at = options.divergence_temperature
                data = with_teacher(engine, data, options.top_k, temperature=taken_at, vocabulary=size)
            report = train_step(engine, data, self._loss, batches.epoch)
            yield replace(report, metrics={**report.metrics, **metrics}, flops=report.flops + flops)

    def _answers(self, engine: Engine, data: Sequence[Datum], step: int) -> tuple[tuple[Rollout, ...], float]:
        """One answer of the policy to each row, and the number of floating-point operations."""
        seed = int(self._context.generator("answers", step).integers(2**31))
        sampling = Sampling(self._options.max_completion_length, self._options.temperature, seed=seed)
        prompts = [
            Prompt(datum.id, f"{datum.id}@{step}.{place}", prompt_and_answer(datum)[0])
            for place, datum in enumerate(data)
        ]
        sampled = self._sampler.sample(engine, prompts, sampling)
        return tuple(sampled.rollouts), sampled.flops
