"""The reward `python_function`: scores by a Python function, called in worker processes."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from importlib.util import find_spec
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal

from finetooth_hooks import Context, DataError, Options, PluginError, RecipeError
from finetooth_workers.workers import Failure, WorkerError, Workers
from pydantic import Field, model_validator

Answer = Literal["raise", "none", "zero"]
MOST_LATE = 8
"""Calls of a batch that may run into the time limit before what is left of it counts as late too."""
NEVER = 3
"""Batches without any answer in time, before there was one, after which the run ends instead of waiting for hours."""
MAKING_NAMES = frozenset({"exec", "eval", "globals", "vars", "setattr", "__getattr__", "modules"})
"""With which a file may make names that do not stand in it."""
GIVEN = frozenset({"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"})
"""Parameters that are filled in whatever columns the rows have."""
INSTEAD: Mapping[str, float | None] = {"none": None, "zero": 0.0}


class FunctionOptions(Options):
    """Options of the reward `python_function`."""

    function: str = Field(min_length=1)
    """Name of the function. It gets keyword arguments: `prompts`, `completions`, and a list for each other column of
    the rows. It returns a number or None for each completion. Functions written for TRL work."""
    file: str | None = None
    """Python file with the function; it can import modules from its folder."""
    module: str | None = None
    """Or the installed module with the function."""
    conversational: bool | None = None
    """Whether completions are lists of one message, `completions[0][0]["content"]`, and prompts are messages. Default:
    as in TRL, if the rows' prompts are messages."""
    failed: Answer = "raise"
    """What happens to a row for which the function raises, or returns something other than a finite number: the run
    ends (`raise`), or the row is left out (`none`) or scores 0 (`zero`). If a call returns the wrong number of scores,
    it fails for all of its rows."""
    timed_out: Answer = "none"
    """The same for a row that takes longer than `time_limit` or ends the process."""
    time_limit: float = Field(default=60.0, gt=0)
    """Seconds for a call. A process that takes longer is killed and replaced."""
    workers: int = Field(default=1, ge=1)
    """Number of processes that share the rows of a call; answers to one prompt stay together."""

    @model_validator(mode="after")
    def _one_place(self) -> FunctionOptions:
        if (self.file is None) == (self.module is None):
            raise ValueError("give either file or module")
        return self


@dataclass(frozen=True)
class Rows:
    """What a call scores.

    Attributes:
        ids: of the rows, for messages.
    """

    ids: Sequence[str]
    request: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, low: int, high: int) -> Rows:
        """Some of them."""
        request = dict(self.request)
        for name in ("prompts", "completions", "completion_ids"):
            request[name] = request[name][low:high]
        request["columns"] = {name: values[low:high] for name, values in request["columns"].items()}
        return Rows(self.ids[low:high], request)


@dataclass
class FunctionReward:
    """`protocols.Reward`."""

    options: FunctionOptions
    context: Context
    workers: Workers
    needed_columns: tuple[str, ...] = ()
    _late: int = field(default=0, init=False)
    _never: int | None = field(default=0, init=False)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """
        Raises:
            PluginError: the function cannot be loaded; or fails for a row, and the options say `raise`.
            DataError: a column holds something that JSON has not.
        """
        rows = self._rows(prompts, completions, columns)
        all_scores: list[float | None] = [None] * len(rows)
        self._late = 0
        parts = [(low, high) for low, high in pairwise(_cuts(rows.ids, self.options.workers)) if low < high]
        while parts:
            results = self._call([rows.part(*part) for part in parts])
            halves: list[tuple[int, int]] = []
            for (low, high), result in zip(parts, results, strict=True):
                scores = self._scores(rows.part(low, high), result)
                if scores is None:
                    middle = _middle(rows.ids, low, high)
                    halves += [(low, middle), (middle, high)]
                else:
                    all_scores[low:high] = scores
            parts = halves
        self._watch(len(rows))
        return all_scores

    def _watch(self, rows: int) -> None:
        """
        Raises:
            PluginError: the function has answered no call of the run's first batches in time.
        """
        if self._never is None or not rows:
            return
        self._never += 1
        if self._never == NEVER:
            raise PluginError(
                self.name,
                f"the function returned nothing within {self.options.time_limit:g} seconds in the first {NEVER} "
                "batches",
                action="fix it, or raise the reward's time_limit",
            )

    def _rows(self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Rows:
        count = len(completions)
        ids = [str(id_) for id_ in columns.get("row_id") or [f"completion {i + 1}" for i in range(count)]]
        talks = columns.get("conversation") or [None] * count
        wrap = self.options.conversational
        wrap = any(talk is not None for talk in talks) if wrap is None else wrap
        questions: list[Any] = list(prompts)
        answers: list[Any] = list(completions)
        if wrap:
            questions = [talk or [{"role": "user", "content": text}] for talk, text in zip(talks, prompts, strict=True)]
            answers = [[{"role": "assistant", "content": text}] for text in completions]
        versions = columns.get("version") or [0]
        request = {
            "prompts": questions,
            "completions": answers,
            "completion_ids": [list(tokens) for tokens in columns.get("completion_ids") or [()] * count],
            "columns": {name: list(values) for name, values in columns.items() if name != "completion_ids"},
            "state": {"global_step": max(versions), "max_steps": self.context.train.max_steps},
        }
        try:
            json.dumps(request)
        except (TypeError, ValueError) as error:
            raise DataError(f"reward {self.name}", f"a column is not JSON: {error}", action="remove it") from error
        return Rows(ids, request)

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"{self.options.file or self.options.module}:{self.options.function}"

    def _call(self, parts: Sequence[Rows]) -> list[Any]:
        if self._late >= MOST_LATE:
            return [Failure("time", f"took longer than {self.options.time_limit:g} seconds")] * len(parts)
        try:
            return self.workers([part.request for part in parts])
        except WorkerError as error:
            raise PluginError(self.name, f"the function cannot be loaded: {error}", action="fix the file") from None

    def _scores(self, part: Rows, result: Any) -> list[float | None] | None:
        """The scores of a part; None if it is to be called in halves, to find the row that fails."""
        if isinstance(result, Failure):
            self._late += result.kind == "time"
            if result.kind != "time":
                self._never = None
            if len(part) > 1 and (result.kind != "time" or self._late < MOST_LATE):
                return None
            slow = result.kind != "raised"
            return [self._failed(row, result.text if slow else f"raised {result.text}", slow=slow) for row in part.ids]
        self._never = None
        scores = result["scores"]
        if not isinstance(scores, list) or len(scores) != len(part):
            what = f"{len(scores)} score{'' if len(scores) == 1 else 's'}" if isinstance(scores, list) else repr(scores)
            many = f"{len(part)} completions" if len(part) > 1 else "1 completion"
            # nobody can say which score is whose, and what it says of a single row would hide that
            return [self._failed(part.ids[0], f"returned {what} for {many}")] * len(part)
        self._keep(part, result)
        return [self._checked(row, score) for row, score in zip(part.ids, scores, strict=True)]

    def _checked(self, row: str, score: Any) -> float | None:
        if score is None:
            return None
        if isinstance(score, dict | str):
            shown = score["is"] if isinstance(score, dict) else repr(score)
            return self._failed(row, f"returned {shown}, which is not a number")
        return float(score) if math.isfinite(score) else self._failed(row, f"returned {score}")

    def _failed(self, row: str, problem: str, *, slow: bool = False) -> float | None:
        setting = "timed_out" if slow else "failed"
        how = self.options.timed_out if slow else self.options.failed
        if how == "raise":
            raise PluginError(
                self.name, f"{row}: the function {problem}", action=f"fix it, or set the reward's {setting}: none"
            )
        text = f"{self.name}: {row}: the function {problem}; the row scores {'None' if how == 'none' else 0}"
        self.context.note(text, topic=f"reward {self.name} {setting}")
        return INSTEAD[how]

    def _keep(self, part: Rows, result: Mapping[str, Any]) -> None:
        """What the function logged, as a line of the run folder's `rewards/FUNCTION.jsonl`."""
        if not result["extra"] and not result["metrics"]:
            return
        folder = self.context.folder / "rewards"
        folder.mkdir(parents=True, exist_ok=True)
        line = {"step": part.request["state"]["global_step"], "rows": list(part.ids)}
        line |= {"extra": result["extra"], "metrics": result["metrics"]}
        with (folder / f"{self.options.function}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _cuts(ids: Sequence[str], parts: int) -> list[int]:
    """Where rows are divided into `parts` nearly equal ones, groups kept whole."""
    ends = [0]
    for _, group in groupby(ids):
        ends.append(ends[-1] + len(list(group)))
    return sorted({ends[round(i * (len(ends) - 1) / parts)] for i in range(parts + 1)})


def _middle(ids: Sequence[str], low: int, high: int) -> int:
    """Where a part is halved: between groups, if it has several."""
    between = [i for i in range(low + 1, high) if ids[i] != ids[i - 1]]
    return min(between or range(low + 1, high), key=lambda i: abs(2 * i - low - high))


def _read_function(file: Path, function: str) -> tuple[str, ...]:
    """Look for the function without running the file, so that a plan tells what a run would only find out once its
    model is loaded. A name that the file may make is left to the run.

    Returns:
        The columns that its parameters name and it cannot do without; none where a decorator may change them.

    Raises:
        RecipeError: the file is not Python, or does not have the name.
    """
    try:
        source = file.read_bytes()
        tree = ast.parse(source, str(file))
    except (OSError, SyntaxError, ValueError) as error:
        where = f"{file.name}:{error.lineno}" if isinstance(error, SyntaxError) else file.name
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise RecipeError("method.rewards", f"python_function: {where}: {reason}", action="fix the file") from None
    nodes = list(ast.walk(tree))
    named = {value for node in nodes for value in vars(node).values() if isinstance(value, str)}
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    if function in named or any(isinstance(node, ast.alias) and node.name == "*" for node in nodes):
        plain = [node.args for node in definitions if node.name == function and not node.decorator_list]
        return _needed(plain[0]) if len(plain) == 1 else ()
    if named & MAKING_NAMES:
        return ()
    there = ", ".join(node.name for node in definitions if not node.name.startswith("_")) or "none"
    raise RecipeError(
        "method.rewards", f"python_function: {file.name} has no function {function!r}; there are: {there}",
        action="check its name",
    )  # fmt: skip


def _needed(parameters: ast.arguments) -> tuple[str, ...]:
    """Names of parameters without a default that only a column can fill."""
    places = parameters.args[: len(parameters.args) - len(parameters.defaults)]
    words = zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True)
    needed = (*places, *(word for word, default in words if default is None))
    return tuple(parameter.arg for parameter in needed if parameter.arg not in GIVEN)


def _is_importable(module: str) -> bool:
    """Whether a worker, which starts in this folder, has the package of this name. Nothing of it runs."""
    package = module.partition(".")[0]
    return bool(find_spec(package) or PathFinder.find_spec(package, [str(Path.cwd())]))


def build(options: FunctionOptions, context: Context) -> FunctionReward:
    """Builder of the reward `python_function`.

    Raises:
        RecipeError: the file or the module is missing; or the file is not Python, or does not have the function.
    """
    file, needed = None, tuple[str, ...]()
    if options.file is not None:
        file = Path(options.file).expanduser().resolve()
        if not file.is_file():
            raise RecipeError("method.rewards", f"python_function: no file {options.file}", action="check the path")
        needed = _read_function(file, options.function)
    elif not _is_importable(str(options.module)):
        raise RecipeError(
            "method.rewards", f"python_function: no module {options.module!r} is installed or in this folder",
            action="check its name, or name a file instead of a module",
        )  # fmt: skip
    settings = {"file": None if file is None else str(file), "module": options.module, "function": options.function}
    workers = Workers("finetooth_function.calling:serve", settings, options.workers, options.time_limit)
    return FunctionReward(options, context, workers, needed)
