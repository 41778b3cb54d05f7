"""Rollouts from a user's Python function, which may sample any number of times and returns the tokens."""

from __future__ import annotations

import inspect
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import Context, Engine, EngineError, FinetoothError, Options, PlanError, RecipeError, Sampling
from finetooth_hooks.bases import SamplerBase
from finetooth_hooks.evaluators import SAMPLED_COLUMNS
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import Sampler
from finetooth_hooks.rollouts import Prompt, Rollout, Sampled
from finetooth_workers.modules import loaded_file
from pydantic import Field, model_validator

GIVEN = ("prompts", "prompt_ids", "generate", "encode", "decode", "max_tokens", "step")
"""Names of a function's possible arguments."""
OWN = "env_mask"
"""An optional result besides ids and log-probabilities: 1 for a token of the policy, 0 for another's."""


class FunctionSamplerOptions(Options):
    """Options of the sampler `python_function`."""

    function: str = Field(min_length=1)
    """Name of the function. It gets those of these arguments that it names: `prompts` (texts) and `prompt_ids`, each
    repeated for every answer; `generate(prompt_ids, max_tokens=None)`, which samples an answer to each; `encode` and
    `decode` of the tokenizer; `max_tokens` of an answer; `step`, the optimizer steps done. It returns a mapping as
    `generate` does: `completion_ids` and `logprobs`, a list for each prompt; `env_mask` if it inserted tokens that the
    policy did not write (0, with a log-probability of 0); and everything that `columns` names."""
    file: str | None = None
    """Python file with the function; it can import modules from its folder."""
    module: str | None = None
    """Or the installed module with the function."""
    columns: list[str] = Field(default_factory=list)
    """Names of further numbers that it returns for each answer: columns for rewards, and metrics `environment/NAME`."""
    sampler: Pick = "engine"
    """The sampler of `generate`: `engine`, or a mapping with another sampler's name and options."""

    @model_validator(mode="after")
    def _one_place(self) -> FunctionSamplerOptions:
        if (self.file is None) == (self.module is None):
            raise ValueError("give either file or module")
        if taken := {"prompt_ids", "logprobs", OWN, *SAMPLED_COLUMNS} & set(self.columns):
            raise ValueError(f"columns: {min(taken)} is a reserved name, so give the column another one")
        return self


@dataclass(frozen=True)
class Asked:
    """The arguments of a call of `generate`."""

    prompt_ids: list[tuple[int, ...]]
    max_tokens: int | None


class FunctionSampler(SamplerBase):
    """See `finetooth_hooks.protocols.Sampler`.

    Args:
        sampler: the sampler of `generate`.
    """

    def __init__(
        self, options: FunctionSamplerOptions, context: Context, function: Callable[..., Any], sampler: Sampler
    ) -> None:
        self._options, self._context, self._function, self._sampler = options, context, function, sampler
        self.columns = tuple(options.columns)

    @property
    def capabilities(self) -> frozenset[str]:
        """The other sampler's, except `own_engine`, since a function may return any tokens."""
        return self._sampler.capabilities - {"own_engine"}

    def sample(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        """Call the function at the first rank, and check its result. All ranks take part in its calls of `generate`.

        Raises:
            PlanError: sampling excludes tokens, which the function does not report.
            EngineError: the function fails, or returns a wrong result.
        """
        if sampling.leaves_out or sampling.form:
            raise PlanError(
                "method.sampler: python_function does not say which tokens top_k, top_p, min_p and guided allowed",
                action="remove them from method",
            )
        each, flops = [prompt for prompt in prompts for _ in range(sampling.n)], [0.0]
        ids, decode = [list(prompt.tokens) for prompt in each], self._context.tokenizer.decode
        answered = self._answers(engine, sampling, flops)
        if engine.leads:
            given = {
                "prompts": [decode(tokens) for tokens in ids], "prompt_ids": ids, "decode": decode,
                "encode": self._context.tokenizer.encode, "max_tokens": sampling.max_tokens,
                "step": engine.weights_version,
            }  # fmt: skip
            lists = self._called(engine, given, answered)
        else:
            while isinstance(lists := engine.first(dict), Asked):
                with suppress(FinetoothError):  # the function also gets the error, and decides the result
                    answered(lists)
        rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
        pairs = zip(each, rows, strict=True)
        return Sampled(tuple(self._rollout(p, row, sampling, engine.weights_version) for p, row in pairs), flops[0])

    def _called(
        self, engine: Engine, given: dict[str, Any], answered: Callable[[Asked], dict[str, list[Any]]]
    ) -> dict[str, list[Any]]:
        """The function's result, at all ranks; during the call they take part in its sampling.

        Args:
            given: its possible arguments, except `generate`.
        """

        def generate(prompt_ids: Sequence[Sequence[int]], max_tokens: int | None = None) -> dict[str, list[Any]]:
            asked = Asked([tuple(map(index, tokens)) for tokens in prompt_ids], max_tokens)
            return answered(engine.first(lambda: asked))

        taken = {name: generate if name == "generate" else given[name] for name in _wanted(self._function)}
        lists: dict[str, list[Any]] = {}
        wrong: FinetoothError | None = None
        try:
            lists = self._lists(self._function(**taken), [list(tokens) for tokens in given["prompt_ids"]])
        except FinetoothError as error:
            wrong = error
        except Exception as error:
            wrong = self._wrong(f"raised {type(error).__name__}: {error}")
            wrong.__cause__ = error

        def returned() -> dict[str, list[Any]]:
            if wrong is not None:
                raise wrong
            return lists

        return engine.first(returned)

    def _answers(
        self, engine: Engine, sampling: Sampling, flops: list[float]
    ) -> Callable[[Asked], dict[str, list[Any]]]:
        """The answers of `generate`: equal prompts get different answers, and each call samples anew."""
        calls = 0

        def answered(asked: Asked) -> dict[str, list[Any]]:
            nonlocal calls
            most = min(asked.max_tokens or sampling.max_tokens, sampling.max_tokens)
            seed = int(np.random.default_rng([sampling.seed, calls]).integers(2**31)) if calls else sampling.seed
            calls += 1
            counts, answers = Counter(asked.prompt_ids), dict[tuple[int, ...], deque[Rollout]]()
            for n in sorted(set(counts.values())):
                some = [Prompt(str(i), str(i), tokens) for i, (tokens, m) in enumerate(counts.items()) if m == n]
                settings = replace(sampling, n=n, max_tokens=most, seed=seed)
                sampled = self._sampler.sample(engine, some, settings)
                flops[0] += sampled.flops
                for i, prompt in enumerate(some):
                    answers[prompt.tokens] = deque(sampled.rollouts[i * n : (i + 1) * n])
            drawn = [answers[tokens].popleft() for tokens in asked.prompt_ids]
            return {
                "prompt_ids": [list(tokens) for tokens in asked.prompt_ids],
                "completion_ids": [list(rollout.tokens) for rollout in drawn],
                "logprobs": [list(rollout.logprobs) for rollout in drawn],
            }

        return answered

    def _lists(self, returned: Any, prompts: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
        """Its results by name: a list with one item per prompt.

        Raises:
            EngineError: a result is missing, unknown, or has a wrong length.
        """
        if not isinstance(returned, Mapping):
            raise self._wrong(f"returned {type(returned).__name__}, not a mapping of lists")
        needed = {"completion_ids", "logprobs", *self.columns}
        if missing := sorted(needed - set(returned)):
            raise self._wrong(f"returned no {missing[0]}")
        if unknown := sorted(set(returned) - needed - {"prompt_ids", OWN}):
            raise self._wrong(f"returned {unknown[0]} too", "name it in method.sampler.columns, or leave it out")
        lists = {str(name): list(values) for name, values in returned.items()}
        for name, values in lists.items():
            if len(values) != len(prompts):
                raise self._wrong(f"returned {len(values)} {name} for {len(prompts)} prompts")
        given = lists.pop("prompt_ids", prompts)
        if any(list(map(int, of)) != list(tokens) for of, tokens in zip(given, prompts, strict=True)):
            raise self._wrong("returned other prompt_ids than it got")
        return lists

    def _rollout(self, prompt: Prompt, row: Mapping[str, Any], sampling: Sampling, version: int) -> Rollout:
        """One answer as a rollout. A token that the policy did not write has version -1.

        Raises:
            EngineError: an id, a log-probability or another number is invalid.
        """
        try:
            tokens, logprobs = tuple(map(index, row["completion_ids"])), tuple(map(float, row["logprobs"]))
            own = tuple(map(bool, row.get(OWN, ())))
            metrics = {name: float(row[name]) for name in self.columns}
        except (TypeError, ValueError) as error:
            raise self._wrong(f"returned something that is not a number ({error})") from error
        if not len(tokens) == len(logprobs) == len(own or tokens) or (own and not any(own)) or not tokens:
            raise self._wrong(
                f"returned {len(tokens)} completion_ids with {len(logprobs)} logprobs"
                + (f" and {len(own)} {OWN}, {sum(own)} of them 1" if own else "")
            )
        ends = self._context.renderer.stop_ids if sampling.stop_ids is None else sampling.stop_ids
        ended = tokens[-1] in ends
        text = self._context.tokenizer.decode(list(tokens[:-1] if ended else tokens))
        at = min((place for end in sampling.stop if (place := text.find(end)) >= 0), default=None)
        text, cut = text if at is None or own else text[:at], len(tokens) >= sampling.max_tokens
        return Rollout(
            prompt.id, prompt.group, tuple(prompt.tokens), tokens, logprobs,
            tuple(version if mine else -1 for mine in own or [True] * len(tokens)), text,
            "length" if cut and not ended and at is None else "stop", own=own, metrics=metrics,
        )  # fmt: skip

    def _wrong(self, problem: str, action: str = "fix it, then ft resume RUN") -> EngineError:
        where = self._options.file or self._options.module
        return EngineError(f"method.sampler: {self._options.function} of {where} {problem}", action=action)


def _wanted(function: Callable[..., Any]) -> list[str]:
    """Names in `GIVEN` that a function takes; all if it has `**kwargs`.

    Raises:
        RecipeError: the function has an unknown argument.
    """
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return list(GIVEN)
    for parameter in parameters:
        if parameter.name not in GIVEN and parameter.default is parameter.empty:
            raise RecipeError(
                "method.sampler.function", f"it takes {parameter.name!r}", action=f"take some of {', '.join(GIVEN)}"
            )
    return [parameter.name for parameter in parameters if parameter.name in GIVEN]


def build(options: FunctionSamplerOptions, context: Context) -> FunctionSampler:
    """Builder of the sampler `python_function`.

    Raises:
        RecipeError: the file or module cannot be loaded, has no such function, or the function has an unknown argument.
    """
    where = options.file or str(options.module)
    try:
        file = Path(options.file or "").expanduser().resolve()
        module = import_module(where) if options.file is None else loaded_file(file)
        function = vars(module)[options.function]
    except KeyError:
        raise RecipeError(
            "method.sampler.function", f"{where} has no {options.function!r}", action="check its name"
        ) from None
    except Exception as error:
        problem = f"{where} cannot be loaded: {type(error).__name__}: {error}"
        raise RecipeError("method.sampler", problem, action="fix it, or check the path") from error
    _wanted(function)
    sampler: Sampler = context.build("sampler", options.sampler, setting="method.sampler.sampler")
    return FunctionSampler(options, context, function, sampler)
