"""Runs a TRL trainer in a separate thread, alternating with the run.

The trainer has its own loop and the run is a generator, so neither can call the other. Therefore the trainer has a
thread, and exactly one of the two threads runs at any time: the trainer until it has logged a step, the run until it
requests the next one.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from finetooth_hooks.context import Context
from finetooth_hooks.engine import Engine, Stepped
from finetooth_hooks.errors import EngineError, FinetoothError, PlanError
from finetooth_hooks.reports import StepReport
from finetooth_rollouts.scoring import WeightedReward
from torch import nn
from transformers import AutoTokenizer, TrainerCallback

from finetooth_trl.resuming import Place, draw_from, go_on, put_back, random_state, trained_weights
from finetooth_trl.trainers import IN_ORDER, config_class, takes


class _Stopped(Exception):
    """The run requests no more steps."""


class Turns:
    """Passes control between the run and the trainer's thread."""

    def __init__(self) -> None:
        self._run, self._trainer = threading.Semaphore(0), threading.Semaphore(0)
        self.reports: list[tuple[StepReport, Place]] = []
        self.failure: BaseException | None = None
        self.ended = self.stopping = False
        self._run_draws = random_state()

    def hand_over(self, report: StepReport, place: Place) -> None:
        """In the trainer's thread: a step is done; wait until the run requests another one. Each of the two has its own
        random state."""
        self.reports.append((report, place))
        draw_from(self._run_draws)
        self._run.release()
        self._trainer.acquire()
        self._run_draws = random_state()
        draw_from(place.random)
        if self.stopping:
            raise _Stopped

    def end(self, failure: BaseException | None) -> None:
        """In the trainer's thread: nothing more comes."""
        self.failure, self.ended = failure, True
        draw_from(self._run_draws)
        self._run.release()

    def wait(self) -> None:
        """In the run: wait until a step is done or training has ended."""
        self._run.acquire()

    def go_on(self, *, stop: bool = False) -> None:
        """In the run: pass control to the trainer."""
        self.stopping = stop
        self._trainer.release()


class EngineOptimizer(torch.optim.Optimizer):
    """An optimizer whose step is the engine's, with the recipe's clipping, optimizer and schedule."""

    def __init__(self, engine: Engine, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self._engine = engine
        self.stepped: Stepped | None = None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply the gradients of the backward pass."""
        self.stepped = self._engine.step()
        for group in self.param_groups:
            group["lr"] = self.stepped.learning_rate


class _Reporter(TrainerCallback):
    """Passes on every step when it is logged."""

    def __init__(self, turns: Turns, optimizer: EngineOptimizer, batch: int, reference: Mapping[str, Any]) -> None:
        self._turns, self._optimizer, self._batch = turns, optimizer, batch
        self._reference = reference
        self._tokens = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **more: Any) -> None:
        stepped, self._optimizer.stepped = self._optimizer.stepped, None
        if stepped is None or logs is None:
            return
        numbers = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
        loss = numbers.pop("loss", math.nan)
        seen = numbers.pop("num_tokens", self._tokens)
        tokens, self._tokens = int(max(0.0, seen - self._tokens)), seen
        for name in ("learning_rate", "grad_norm", "epoch"):
            numbers.pop(name, None)
        self._turns.hand_over(
            report=StepReport(
                step=stepped.step,
                epoch=float(state.epoch or 0.0),
                loss=loss,
                tokens=tokens,
                targets=tokens,
                rows=self._batch,
                learning_rate=stepped.learning_rate,
                grad_norm=stepped.grad_norm,
                skipped=stepped.skipped,
                metrics=numbers,
            ),
            place=Place(int(state.global_step), float(state.epoch or 0.0), random_state(), self._reference),
        )


def training(
    engine: Engine,
    context: Context,
    trainer: type[Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    arguments: Mapping[str, Any],
    rewards: Sequence[WeightedReward],
    teacher: str | None,
    portion: int,
    total: int,
    begin: Place | None,
) -> Iterator[tuple[StepReport, Place]]:
    """Steps of a trainer over the engine's model, each with the place after it.

    Args:
        rows: with the trainer's columns.
        teacher: the teacher of a distilling trainer, a path or id for transformers.
        portion: rows that go through the model at once.
        total: optimizer steps.
        begin: the place to resume from; None for a new run.

    Raises:
        EngineError: the trainer failed.
    """
    model: nn.Module = engine.module()
    optimizer = EngineOptimizer(engine, [parameter for parameter in model.parameters() if parameter.requires_grad])
    turns = Turns()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            made = _trainer(
                context, trainer, model, optimizer, rows, turns,
                arguments=_arguments(context, trainer, arguments, rewards, Path(scratch), model, portion, total),
                rewards=rewards, teacher=teacher, scratch=Path(scratch), begin=begin,
            )  # fmt: skip
        except Exception as error:  # the trainer's checks of settings and columns raise various exceptions
            reason = " ".join(str(error).split())
            raise PlanError(
                f"{trainer.__name__} of TRL cannot be made: {type(error).__name__}: {reason}",
                action="see method.arguments and the rows' columns; ft --debug shows where",
            ) from error

        def run() -> None:
            failure: BaseException | None = None
            try:
                if begin is None:
                    made.train()
                else:
                    go_on(made, begin, Path(scratch) / "place")
            except _Stopped:  # the run requests no further step: the only way to end some trainers
                pass
            except BaseException as error:  # passed to the run, which raises it in its own thread
                failure = error
            turns.end(failure)

        thread = threading.Thread(target=run, name="trl", daemon=True)
        thread.start()
        try:
            turns.wait()
            while not turns.ended:
                yield turns.reports.pop()
                turns.go_on()
                turns.wait()
        finally:
            if not turns.ended:
                turns.go_on(stop=True)
            thread.join()
    if isinstance(turns.failure, FinetoothError):
        raise turns.failure
    if turns.failure is not None:
        raise EngineError(
            f"{trainer.__name__} of TRL failed: {type(turns.failure).__name__}: {turns.failure}",
            action="see method.arguments and the rows' columns; ft --debug shows where",
        ) from turns.failure


def _trainer(
    context: Context,
    trainer: type[Any],
    model: nn.Module,
    optimizer: EngineOptimizer,
    rows: Sequence[Mapping[str, Any]],
    turns: Turns,
    *,
    arguments: Any,
    rewards: Sequence[WeightedReward],
    teacher: str | None,
    scratch: Path,
    begin: Place | None,
) -> Any:
    context.tokenizer.save(scratch / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(scratch / "tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    more: dict[str, Any] = {}
    reference: Mapping[str, Any] = {}
    if takes(trainer, "ref_model"):
        reference = begin.reference if begin else trained_weights(model)
        more["ref_model"] = copy.deepcopy(model)
        put_back(more["ref_model"], reference)
        more["ref_model"].requires_grad_(False).eval()
    if teacher is not None:
        more["teacher_model"] = teacher
    if rewards:
        more["reward_funcs"] = [_function(reward) for reward in rewards]
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=tokenizer,
        optimizers=(optimizer, constant),
        callbacks=[_Reporter(turns, optimizer, context.train.batch_size, reference)],
        **more,
    )


def _arguments(
    context: Context,
    trainer: type[Any],
    arguments: Mapping[str, Any],
    rewards: Sequence[WeightedReward],
    scratch: Path,
    model: nn.Module,
    portion: int,
    total: int,
) -> Any:
    """The trainer's configuration: the recipe's arguments, and those of finetooth."""
    train, config = context.train, config_class(trainer)
    fields = {field.name for field in dataclasses.fields(config)}
    made: dict[str, Any] = {
        "output_dir": str(scratch / "trainer"),
        "per_device_train_batch_size": portion,
        "gradient_accumulation_steps": train.batch_size // portion,
        "max_steps": total,
        "max_grad_norm": 0.0,  # the engine clips
        "learning_rate": 1.0,  # the engine's optimizer has its own
        "seed": int(context.generator("trl").integers(2**31)),
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,  # the model already has its precision
        "fp16": False,
        "gradient_checkpointing": train.gradient_checkpointing is True,
        "use_cpu": next(model.parameters()).device.type == "cpu",
        "max_length": train.max_length,
        "neftune_noise_alpha": train.embedding_noise or None,
        "dataloader_pin_memory": False,
    }
    if not train.shuffle:
        made.update(IN_ORDER)
    if "disable_dropout" in fields and "disable_dropout" not in arguments:
        made["disable_dropout"] = False  # it would turn off the adapter's dropout, which the recipe sets
        if getattr(config, "disable_dropout", False):
            _drop_nothing(model)
    if rewards:
        made["reward_weights"] = [reward.weight for reward in rewards]
    return config(**{**{name: value for name, value in made.items() if name in fields}, **arguments})


def _drop_nothing(model: nn.Module) -> None:
    """Turn off the dropout of a model, as trainers of TRL do, except that of an adapter, whose layers hold it by
    name."""
    own = {id(module) for held in model.modules() if isinstance(held, nn.ModuleDict) for module in held.modules()}
    for module in model.modules():
        if isinstance(module, nn.Dropout) and id(module) not in own:
            module.p = 0.0


def _function(reward: WeightedReward) -> Any:
    """A reward as a function for TRL."""

    def judge(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        lists = {name: list(values) for name, values in columns.items() if isinstance(values, list)}
        texts = [_text(prompt) for prompt in prompts], [_text(answer) for answer in completions]
        return list(reward.reward(*texts, lists))

    judge.__name__ = reward.name
    return judge


def _text(side: Any) -> str:
    return side if isinstance(side, str) else str(side[-1]["content"])


__all__ = ["EngineOptimizer", "training"]
