"""The evaluator `lm_eval`: tasks of lm-eval in a folder of yours, scored by lm-eval, answered by the engine.

lm-eval's own `TemplateLM` cuts texts into tokens, as its model `hf` does, and its metrics judge the answers; the engine
gives log-probabilities and greedy completions. Tasks that lm-eval brings are not read, since their rows lie on a hub.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import (
    Context,
    DataError,
    DataReport,
    Datum,
    Engine,
    Evaluation,
    Message,
    Options,
    Sample,
    Sampling,
    UserError,
)
from finetooth_hooks.bases import EvaluatorBase
from finetooth_hooks.errors import install_command
from finetooth_rendering.asking import settings
from finetooth_toolbox.files.own_python import CONSENT, consented
from pydantic import Field

SETTING = "evaluate.evaluators.lm_eval"


class LmEvalOptions(Options):
    """Options of the evaluator `lm_eval`."""

    folder: str = Field(min_length=1)
    """The folder with tasks of lm-eval: its YAML files, with rows in local files. Templates and Python code of a task
    run, so it needs `--trust-code`."""
    tasks: tuple[str, ...] = ()
    """Names of tasks; empty: all tasks in the folder."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Number of examples before each question; null: as the task says."""
    chat: bool = False
    """Ask through the model's chat template, as lm-eval's `--apply_chat_template` does."""
    limit: int | None = Field(default=None, ge=1)
    """Use only this many rows of each task, the first ones; null: all."""
    samples: int = Field(default=3, ge=0)
    """Number of rows to show with their answers, the first ones."""


class LmEvalEvaluator(EvaluatorBase):
    """`protocols.Evaluator`: what lm-eval measures, as `TASK/METRIC`."""

    def __init__(self, options: LmEvalOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._tasks: dict[str, Any] = {}

    def prepare(self) -> DataReport:
        """Read the tasks.

        Raises:
            DataError: the folder holds no such task, or the rows of one lie elsewhere.
        """
        from lm_eval.tasks import TaskManager

        folder = Path(self._options.folder)
        if not folder.is_dir():
            raise DataError(f"{SETTING}.folder", f"{folder} is not a folder", action="name one with lm-eval's tasks")
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        known = sorted(manager.all_tasks)
        names = list(self._options.tasks) or known
        if unknown := [name for name in names if name not in known] or ([] if known else ["none"]):
            there = ", ".join(known) or "none"
            raise DataError(f"{SETTING}.tasks", f"{folder} has no task {unknown[0]!r}", action=f"tasks: {there}")
        with _offline():
            try:
                self._tasks = dict(manager.load(names)["tasks"])
            except (OSError, ValueError) as error:
                text = " ".join(str(error).split())
                raise DataError(f"{SETTING}.tasks", text, action="rows of a task must be local files") from error
        count = sum(len(task.eval_docs) for task in self._tasks.values())
        return DataReport(split="lm_eval", rows=count, used=count)

    def evaluate(self, engine: Engine, step: int) -> Evaluation:
        """Let lm-eval ask the engine."""
        from lm_eval import simple_evaluate

        if not self._tasks:
            self.prepare()
        with _offline():
            report: Any = simple_evaluate(
                model=_model(engine, self._context),
                tasks=list(self._tasks.values()),
                num_fewshot=self._options.num_fewshot,
                apply_chat_template=self._options.chat,
                limit=self._options.limit,
                bootstrap_iters=0,
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
            )
        metrics = dict(_metrics(report["results"]))
        first = next(iter(metrics)).split("/")
        higher = report["higher_is_better"].get(first[0], {}).get(first[1], True)
        samples = [_sample(task, row) for task, rows in report["samples"].items() for row in rows]
        return Evaluation(
            name="lm_eval",
            step=step,
            metrics=metrics,
            samples=tuple(samples[: self._options.samples]),
            rows=len(samples),
            higher_is_better=bool(higher),
            settings={
                "num_fewshot": dict(sorted(report["n-shot"].items())),
                **_settings(report["configs"]),
                "chat_template": settings(self._context, 0, chat=True)["template"] if self._options.chat else "",
            },
        )


def build(options: LmEvalOptions, context: Context) -> LmEvalEvaluator:
    """Builder of the evaluator `lm_eval`.

    Raises:
        UserError: lm-eval is not installed, or consent is missing for what tasks run.
    """
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise UserError("lm_eval needs the package lm-eval", action=install_command("lm-eval"))
    if not consented():
        raise UserError(f"{SETTING}: templates and Python of the tasks in {options.folder} would run", action=CONSENT)
    return LmEvalEvaluator(options, context)


def _metrics(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """`TASK/METRIC`, with `/FILTER` behind it where a filter has a name."""
    for task, values in results.items():
        for name, value in values.items():
            metric, _, filtered = name.partition(",")
            if filtered and not metric.endswith("_stderr") and isinstance(value, int | float):
                yield f"{task}/{metric}{'' if filtered == 'none' else f'/{filtered}'}", float(value)


def _settings(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the answers depend on, by task: template of a question, texts that end an answer, longest answer."""
    ways = {task: config.get("generation_kwargs") or {} for task, config in sorted(tasks.items())}
    return {
        "template": {task: str(tasks[task].get("doc_to_text", "")) for task in ways},
        "stop": {task: list(_ends(way)) for task, way in ways.items() if way},
        "max_tokens": {task: _longest(way) for task, way in ways.items() if way},
    }


def _ends(way: Mapping[str, Any]) -> tuple[str, ...]:
    until = way.get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)


def _longest(way: Mapping[str, Any]) -> int:
    return int(way.get("max_gen_toks", 256))


def _sample(task: str, row: Mapping[str, Any]) -> Sample:
    prompt = next(iter(row["arguments"].values())) if isinstance(row["arguments"], Mapping) else row["arguments"][0]
    question = next(iter(prompt.values())) if isinstance(prompt, Mapping) else prompt[0]
    score = next((row[name] for name in row["metrics"] if isinstance(row.get(name), int | float)), 0.0)
    answer = row["filtered_resps"]
    answer_text = str(answer[0]) if len(answer) == 1 else str(answer)
    return Sample(f"{task}:{row['doc_id']}", str(question), str(row["target"]), answer_text, float(score))


@contextmanager
def _offline() -> Iterator[None]:
    """Inside the `with` block, the library that tasks read rows with asks no hub, and lm-eval says errors alone."""
    import datasets.config  # type: ignore[import-untyped]

    logger = logging.getLogger("lm_eval")
    before = datasets.config.HF_HUB_OFFLINE, logger.level
    datasets.config.HF_HUB_OFFLINE = True
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before[0]
        logger.setLevel(before[1])


def _model(engine: Engine, context: Context) -> Any:
    """The engine as a model of lm-eval."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokenizer, most = context.tokenizer, context.facts.max_positions

    class EngineModel(TemplateLM):  # type: ignore[misc]  # its package may be missing, and has no types
        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_id or 0)

        @property
        def prefix_token_id(self) -> int:
            return self.eot_token_id if tokenizer.bos_id is None else int(tokenizer.bos_id)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
            begin = [int(tokenizer.bos_id or 0)] if tokenizer.adds_bos and add_special_tokens is not False else []
            written = bool(begin) and string.startswith(tokenizer.decode(begin))  # by the chat template
            return [*([] if written else begin), *tokenizer.encode(string, special=True)]

        @property
        def tokenizer_name(self) -> str:
            return "finetooth"

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:
                raise UserError("lm_eval: gen_prefix is not taken with `chat`", action="remove it from the task")
            messages = tuple(Message(turn["role"], turn["content"]) for turn in chat_history)
            return tokenizer.decode(context.renderer.prompt(messages))

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], **more: Any
        ) -> list[tuple[float, bool]]:
            rows = [(before[-max(1, most - len(after)) :], after) for _, before, after in requests]
            scores = engine.logprobs([Datum.from_tokens([*before, *after]) for before, after in rows])
            longest = max(len(after) for _, after in rows)
            wanted = Sampling(max_tokens=longest, temperature=0.0, stop_ids=())
            greedy = [group[0].tokens for group in engine.generate([before for before, _ in rows], wanted)]
            return [
                (float(np.sum(score[-len(after) :], dtype=np.float64)), list(generated[: len(after)]) == list(after))
                for (_, after), score, generated in zip(rows, scores, greedy, strict=True)
            ]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            sums = []
            for request in requests:
                tokens = self.tok_encode(request.args[0])
                windows = get_rolling_token_windows(tokens, self.prefix_token_id, most, 1)
                pairs = [make_disjoint_window(pair) for pair in windows]
                scores = engine.logprobs([Datum.from_tokens([*before, *after]) for before, after in pairs])
                sums.append(
                    sum(
                        float(np.sum(score[-len(after) :], dtype=np.float64))
                        for (_, after), score in zip(pairs, scores, strict=True)
                    )
                )
            return sums

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            texts = []
            for request in requests:
                text, wishes = request.args
                if wishes.get("do_sample") or wishes.get("temperature"):
                    raise UserError("lm_eval: a task wants sampled answers", action="set do_sample: false in the task")
                length = _longest(wishes)
                prompt = self.tok_encode(text)[-(most - length) :]
                wanted = Sampling(max_tokens=length, temperature=0.0, stop=_ends(wishes))
                texts.append(engine.generate([prompt], wanted)[0][0].text)
            return texts

    return EngineModel()
