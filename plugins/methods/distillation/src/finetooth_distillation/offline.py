"""The method `distill`: the rows of `sft`, with the teacher's distribution at every trained token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from finetooth_hooks import Engine, Options, Prepared, StepReport
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import TrainOn
from finetooth_hooks.engine import RoleModel
from finetooth_hooks.protocols import Method
from finetooth_methods.batched import BatchedMethod, train_step
from pydantic import Field, model_validator

from finetooth_distillation.loss import Divergence, loss_of
from finetooth_distillation.sequences import learned_answers
from finetooth_distillation.teacher import Teacher, held, with_teacher


class DistillOptions(Options):
    """Options of `distill`."""

    teacher: Teacher
    """The teacher model; a mapping, or only its `policy`."""
    top_k: int = Field(default=64, ge=0)
    """Number of likeliest tokens for which the teacher gives probabilities; all others count as one. 0 is the whole
    vocabulary, and then the logits of a micro-batch are held twice."""
    divergence: Divergence = "forward"
    """Divergence between the two distributions: `forward` covers all of the teacher's answers, `reverse` concentrates
    on the likeliest ones, `js` is between."""
    js_beta: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's share of the mixture, for `js`."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both distributions."""
    cross_entropy: float = Field(default=0.0, ge=0)
    """Weight of the cross entropy of the rows' own tokens, added to the distillation loss."""
    sequences: int = Field(default=0, ge=0)
    """Number of teacher answers for each row (a prompt) to train on as text, instead of the teacher's distributions. 1
    is its likeliest answer; several are sampled at `temperature`. 0 learns distributions."""
    max_completion_length: int = Field(default=256, ge=1)
    """With `sequences`: most tokens of a teacher's answer. An answer that is cut off trains without its end token."""
    train_on: TrainOn = "assistant"
    """Which messages train, as for `sft`."""

    @model_validator(mode="after")
    def _one_temperature(self) -> DistillOptions:
        if self.cross_entropy and self.temperature != 1.0:
            raise ValueError(
                "cross_entropy is computed at temperature 1: leave out either temperature or cross_entropy"
            )
        if self.sequences and self.cross_entropy:
            raise ValueError("with sequences, cross entropy is the whole loss: leave cross_entropy out")
        return self


class Distill(BatchedMethod):
    """One optimizer step for each batch of rows; the teacher reads each batch before it."""

    def __init__(self, options: DistillOptions, context: Context) -> None:
        if options.sequences:
            spec = context.loss("cross_entropy", setting="method")
        else:
            spec = loss_of(
                context, options.top_k, divergence=options.divergence, js_beta=options.js_beta,
                cross_entropy=options.cross_entropy, temperature=options.temperature, scale=options.temperature,
            )  # fmt: skip
        super().__init__(context, spec)
        self._options = options
        self._rows: Method = context.build("method", {"name": "sft", "train_on": options.train_on}, setting="method")

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """See `protocols.Method.roles`: the teacher."""
        return {} if self._options.sequences else held(self._options.teacher)

    def prepare(self) -> Prepared:
        """Read and tokenise the training rows, as `sft` does.

        Raises:
            DataError: a row is broken, or has no trained token.
        """
        if self._options.sequences:
            return self._prepare_sequences()
        prepared = self._rows.prepare()
        self.begin(self._rows.data)
        return prepared

    def _prepare_sequences(self) -> Prepared:
        options = self._options
        drawn = options.temperature if options.sequences > 1 else 0.0
        data, report = learned_answers(
            self._context, options.teacher.policy, options.sequences, longest=options.max_completion_length,
            temperature=drawn,
        )  # fmt: skip
        batches = self.begin(data)
        return Prepared(batches.total_steps, batches.steps_per_epoch, report)

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step for each batch."""
        options, batches = self._options, self._begun()
        for indices in batches:
            data = [self._data[row] for row in indices]
            if options.top_k and not options.sequences:
                size = self._context.facts.vocab_size
                data = with_teacher(engine, data, options.top_k, temperature=options.temperature, vocabulary=size)
            yield train_step(engine, data, self._loss, batches.epoch)
