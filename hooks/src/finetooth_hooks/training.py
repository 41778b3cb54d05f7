"""What a run trains with: adapters, optimizers, schedules, methods, rewards, evaluators and trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from finetooth_hooks.datum import Datum
from finetooth_hooks.engine import Engine, RoleModel
from finetooth_hooks.models import ModelFacts, ModelInfo
from finetooth_hooks.reports import DataReport, Evaluation, Outcome, Prepared, StepReport
from finetooth_hooks.run import Run


class Adapter(Protocol):
    """Decides which parameters of a model train.

    An adapter may also have `low_rank(module) -> LowRank | None`: what a module of the adapted model computes, if it is
    at this moment (dropout, switched off) nothing but its base and a low-rank addition; then a backend may compute it
    together with its neighbours. Without the method, or where it says None, the module is called as it is.

    And it may have `fold(model, folder, *, precision, device, pad_id) -> Any`: `model`, a base in fp32 as the loader
    gives it, with the artifact in `folder` folded in, nothing left of the adapter, in a precision and on a device. Then
    a run with the adapter can be the model of another. Of an artifact with a scalar head the result is a language model
    that carries the head as `score`; `pad_id` is that of the tokenizer. Such an adapter may also have
    `folded_config(folder) -> Mapping[str, Any]`: what the config of that result says otherwise than the base's, such as
    `architectures` and `id2label` of a classifier; read from the artifact, without weights.
    """

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """How many will train, for the memory estimate; `parameters` is the size of the base."""
        ...

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """The model to train: trained parameters require gradients, all others do not. New parameters are drawn from
        `generator`.

        Raises:
            RecipeError: a target matches nothing.
        """
        ...

    def disabled(self, model: Any) -> AbstractContextManager[None]:
        """While entered, the model computes as the base does. Only with `can_disable`."""
        ...

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write the artifact: peft's layout for an adapter, transformers' for whole weights.

        Args:
            model: what `apply` made; of an engine with a scalar head, a classifier of the same modules with the head
                beside them (`finetooth_toolbox.torch.classifiers`).
        """
        ...

    def restore(self, model: Any, folder: Path) -> None:
        """Take the trained weights back from an artifact that `export` wrote, into a model that `apply` made.

        Args:
            model: as for `export`.

        Raises:
            UserError: the artifact is of another adapter or another shape; the message names what differs.
        """
        ...


class Optimizer(Protocol):
    """Makes the framework's optimizer."""

    @property
    def learning_rate(self) -> float:
        """The base rate, which the schedule's factor multiplies."""
        ...

    def create(self, named_parameters: Sequence[tuple[str, Any]]) -> Any:
        """The framework's optimizer over the parameters that train (for torch: a torch.optim.Optimizer)."""
        ...


class Schedule(Protocol):
    """Learning-rate factor by step."""

    def factor(self, step: int, total: int | None) -> float:
        """Factor for the update number `step` (0-based) of `total`.

        Raises:
            RecipeError: it needs a total and there is none.
        """
        ...

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Called after every step with the latest metrics (`loss`, `eval/loss`, ...)."""
        ...

    def state(self) -> Mapping[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


class Method(Protocol):
    """Turns examples into data and drives the engine: a generator of steps.

    What outlives a `yield` (cursor, replay buffer, controllers) is in `state()`.
    """

    def prepare(self) -> Prepared:
        """Read and tokenise the data. Called once, before the engine is built, so that bad data fail early."""
        ...

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step per item; the run loop may log, evaluate, save or stop between two."""
        ...

    def state(self) -> Mapping[str, Any]:
        """JSON, and NumPy arrays of any type but objects at any place in its mappings (with text keys) and lists;
        `restore` gets them back with dtype, shape and content. Asked for after every step, so that the state before a
        failed one is known: keep it cheap. Arrays are copied, but for those that are read-only.

        After a step that failed it is behind the data of that step: a run that passes them over restores it, and a new
        `steps` goes on with the next ones. So take the cursor on before the engine is called.
        """
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class KnownData(Protocol):
    """A method or an evaluator whose data are known once they are prepared, and stay the same."""

    @property
    def data(self) -> Sequence[Datum]:
        """What it trains or scores, in the order of the rows; empty before `prepare`. Lengths are asked for with
        `token_rows.positions_of`."""
        ...


@runtime_checkable
class ReadsBeginning(Protocol):
    """A method or an evaluator that takes something from the weights as they are before the first step of a run. What
    it takes is in no checkpoint, so a run that goes on lets it look again."""

    def read_beginning(self, engine: Engine) -> None:
        """Called when a run goes on, after `prepare` and before the saved state is loaded; not in a run that begins,
        whose first step or evaluation finds the weights as they are.

        Raises:
            FinetoothError: it could not be had.
        """
        ...


@runtime_checkable
class BringsRoles(Protocol):
    """A method that says by its options which models it needs beside the policy."""

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """What the engine shall hold for each role; None: nothing, the method gives the role's numbers with the data.
        A role that is not named is the policy without its adapter."""
        ...


class Reward(Protocol):
    """Scores completions: one float a completion, or None to leave it out."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """
        Args:
            columns: further columns by name, as long as `completions`; `answer` holds the expected text where there
                is one.
        """
        ...


class Evaluator(Protocol):
    """Measures the engine on held-out examples."""

    def prepare(self) -> DataReport | None:
        """Read the held-out examples once, before training; None if it reads none."""
        ...

    def evaluate(self, engine: Engine, step: int) -> Evaluation: ...


class Tracker(Protocol):
    """Receives the steps and evaluations of a run; must be cheap."""

    def start(self, run: Run) -> None: ...
    def step(self, run: Run, report: StepReport) -> None: ...
    def evaluated(self, run: Run, evaluation: Evaluation) -> None: ...
    def end(self, run: Run, outcome: Outcome) -> None: ...
