"""What a run trains with: adapters, optimizers, schedules, methods, rewards, evaluators and trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetooth_hooks.datum import Datum
from finetooth_hooks.engine import Engine, RoleModel
from finetooth_hooks.models import LowRank, ModelFacts, ModelInfo
from finetooth_hooks.reports import DataReport, Evaluation, Outcome, Prepared, StepReport
from finetooth_hooks.run import Run


class Adapter(Protocol):
    """Decides which parameters of a model train.

    An adapter derives from `finetooth_hooks.AdapterBase`, where `low_rank` says None and what has a capability of its
    own refuses.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can do beyond the least: words of `finetooth_hooks.capabilities.ADAPTER`."""
        ...

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
        """While entered, the model computes as the base does. Capability `disable`, which the
        entry states as `can_disable`."""
        ...

    def low_rank(self, module: Any) -> LowRank | None:
        """What a module of the adapted model computes, if it is at this moment (dropout, switched off) nothing but its
        base and a low-rank addition; then a backend may compute it together with its neighbours. None: the module is
        called as it is."""
        ...

    def fold(self, model: Any, folder: Path, *, precision: str, device: str, pad_id: int | None = None) -> Any:
        """`model`, a base in fp32 as the loader gives it, with the artifact in `folder` folded in and nothing left of
        the adapter, in a precision and on a device; then a run with the adapter can be the model of another. Capability
        `fold`.

        Args:
            pad_id: of the tokenizer. Of an artifact with a scalar head the result is a language model that carries the
                head as `score`.

        Raises:
            UserError: the artifact was made for another model, or its file is damaged.
        """
        ...

    def folded_config(self, folder: Path) -> Mapping[str, Any]:
        """What the config of a folded model says otherwise than the base's, such as `architectures` and `id2label` of
        a classifier; read from the artifact, without weights."""
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
        """The framework's optimizer over the parameters that train (for torch: a torch.optim.Optimizer).

        Its parameter groups may have learning rates of their own, one of them `learning_rate`: each keeps its share of
        what the schedule, or a step, sets. Groups that are all alike take the rate as it is.
        """
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

    What outlives a `yield` (cursor, replay buffer, controllers) is in `state()`. A method derives from
    `finetooth_hooks.MethodBase`, where `noun`, `data`, `roles` and `read_beginning` have the answers of one that needs
    none of them.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Words of `finetooth_hooks.capabilities`; for methods there are none yet."""
        ...

    @property
    def noun(self) -> str:
        """What a datum is, in reports: `row`, `window`, `pair`."""
        ...

    @property
    def data(self) -> Sequence[Datum]:
        """What it trains, in the order of the rows, if that is known once it is prepared, and stays the same; else
        empty. Lengths are asked for with `token_rows.positions_of`."""
        ...

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """What the engine shall hold for each role; None: nothing, the method gives the role's numbers with the data.
        A role that is not named is the policy without its adapter."""
        ...

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

    def read_beginning(self, engine: Engine) -> None:
        """Take what is needed from the weights as they are before the first step of a run, which is in no checkpoint.

        Called when a run goes on, after `prepare` and before the saved state is loaded; not in a run that begins,
        whose first step or evaluation finds the weights as they are.

        Raises:
            FinetoothError: it could not be had.
        """
        ...


class Reward(Protocol):
    """Scores completions: one finite float a completion, or None to leave it out. Whoever builds one through the
    context gets it with a check around it: another number of scores, or anything that is no number, ends the run and
    names the plugin."""

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
    """Measures the engine on held-out examples.

    An evaluator derives from `finetooth_hooks.EvaluatorBase`, where `noun`, `data`, `metrics` and `read_beginning` have
    the answers of one that needs none of them.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Words of `finetooth_hooks.capabilities`; for evaluators there are none yet."""
        ...

    @property
    def noun(self) -> str:
        """What a datum is, in reports: `row`, `window`, `pair`."""
        ...

    @property
    def data(self) -> Sequence[Datum]:
        """What it scores, in the order of the rows, if that is known once it is prepared; else empty."""
        ...

    @property
    def metrics(self) -> frozenset[str] | None:
        """Names of all metrics that `evaluate` may give, as they stand in `Evaluation.metrics`, once it is prepared; so
        that a recipe that waits for another one (`checkpoint.select_on`) is refused before it trains. None: they are
        not known ahead."""
        ...

    def read_beginning(self, engine: Engine) -> None:
        """As `Method.read_beginning`."""
        ...

    def prepare(self) -> DataReport | None:
        """Read the held-out examples once, before training; None if it reads none."""
        ...

    def evaluate(self, engine: Engine, step: int) -> Evaluation: ...


class Tracker(Protocol):
    """Receives the steps and evaluations of a run; must be cheap.

    A tracker derives from `finetooth_hooks.TrackerBase`, where `resume` calls `start`.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can do beyond the least: words of `finetooth_hooks.capabilities.TRACKER`."""
        ...

    def start(self, run: Run) -> None: ...

    def resume(self, run: Run, history: Sequence[StepReport | Evaluation]) -> None:
        """Called in place of `start`, when a run goes on after `run.step`. With the capability `resume`, what an
        earlier process wrote beyond it goes, and what is missing is in `history`, so that no step is there twice and
        none is missing; such a tracker is also called when a run goes back to an earlier step. Without it: `start`.

        Args:
            history: every report of the run up to and with `run.step`, in the order in which they came.
        """
        ...

    def step(self, run: Run, report: StepReport) -> None: ...
    def evaluated(self, run: Run, evaluation: Evaluation) -> None: ...
    def end(self, run: Run, outcome: Outcome) -> None: ...
