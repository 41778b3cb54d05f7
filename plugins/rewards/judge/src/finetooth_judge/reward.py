"""The reward `llm_judge`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import openai
from finetooth_hooks import Context, Options, PluginError, RecipeError
from finetooth_toolbox.text.column_names import column_of
from pydantic import Field, model_validator

from finetooth_judge.asking import Messages, better_of, score_of, to_compare, to_score

WINS = {"a": 1.0, "tie": 0.5, "b": 0.0}
"""What the first of two answers scores."""


class JudgeOptions(Options):
    """Options of the reward `llm_judge`."""

    base_url: str = Field(min_length=1)
    """URL of an OpenAI-compatible server, such as `https://judge.example.org/v1` or that of `ft serve openai`."""
    model: str = Field(min_length=1)
    """The server's name for the judge."""
    rubric: str = Field(min_length=1)
    """Description of a good answer, which the judge reads."""
    against: str | None = None
    """Column with an answer to compare with. The judge is asked twice, with each answer first once, which cancels out a
    preference for the first or the second. An answer scores 1 if it is better both times, 0 if it never is."""
    low: float = 0.0
    """The judge's lowest score, which counts as 0."""
    high: float = 10.0
    """The judge's highest score, which counts as 1."""
    api_key: str = Field(default="OPENAI_API_KEY", min_length=1)
    """Name of the environment variable with the key, if the server needs one."""
    temperature: float | None = Field(default=0.0, ge=0)
    """Sampling temperature of the judge; null leaves it to the server."""
    max_tokens: int = Field(default=512, ge=1)
    """Most tokens of the judge's reply."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request's body."""
    concurrency: int = Field(default=8, ge=1)
    """Number of requests at the same time."""
    retries: int = Field(default=3, ge=0)
    """How often a request is retried after a temporary failure: no connection, time-out, status 429 or 5xx."""
    time_limit: float = Field(default=60.0, gt=0)
    """Seconds for a request."""
    failed: Literal["raise", "none"] = "raise"
    """What happens when a request fails for good: the run ends, or the answer scores None. A reply without a score
    always scores None."""

    @model_validator(mode="after")
    def _range(self) -> JudgeOptions:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}: high must be above")
        return self


@dataclass(frozen=True)
class Judge:
    """`protocols.Reward`."""

    options: JudgeOptions
    context: Context

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """See `protocols.Reward`."""
        return () if self.options.against is None else (self.options.against,)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """
        Raises:
            PluginError: a request failed for good, and the options say `raise`.
            DataError: the column to compare with is missing.
        """
        others = self._others(columns, len(completions))
        ids = columns.get("row_id") or [f"completion {i + 1}" for i in range(len(completions))]
        rows = list(zip(prompts, completions, others, ids, strict=True))
        with ThreadPoolExecutor(1) as pool:  # the caller's thread may be running a loop, as notebooks do
            try:
                return pool.submit(asyncio.run, self._all(rows)).result()
            except ExceptionGroup as group:
                raise group.exceptions[0] from None

    def _others(self, columns: Mapping[str, Sequence[Any]], count: int) -> Sequence[Any]:
        column = self.options.against
        if column is None:
            return [None] * count
        return column_of(columns, column, "llm_judge", "set its option against")

    async def _all(self, rows: Sequence[tuple[str, str, Any, Any]]) -> list[float | None]:
        options = self.options
        places = asyncio.Semaphore(options.concurrency)
        key = os.environ.get(options.api_key) or "none"
        async with openai.AsyncOpenAI(
            base_url=options.base_url, api_key=key, max_retries=options.retries, timeout=options.time_limit
        ) as client:

            async def judged(prompt: str, answer: str, other: Any, row: Any) -> float | None:
                async def asked(messages: Messages) -> str:
                    async with places:
                        return await self._ask(client, messages)

                try:
                    return await self._judged(asked, prompt, answer, other)
                except openai.OpenAIError as error:
                    return self._failed(str(row), error)

            async with asyncio.TaskGroup() as tasks:
                waiting = [tasks.create_task(judged(*row)) for row in rows]
        return [task.result() for task in waiting]

    async def _judged(self, asked: Any, prompt: str, answer: str, other: Any) -> float | None:
        options = self.options
        if options.against is None:
            reply = await asked(to_score(options.rubric, options.low, options.high, prompt, answer))
            return score_of(reply, options.low, options.high)
        if other is None:
            return None
        there = better_of(await asked(to_compare(options.rubric, prompt, answer, str(other))))
        back = better_of(await asked(to_compare(options.rubric, prompt, str(other), answer)))
        return None if there is None or back is None else (WINS[there] + 1 - WINS[back]) / 2

    async def _ask(self, client: openai.AsyncOpenAI, messages: Messages) -> str:
        options = self.options
        sampling: dict[str, Any] = {} if options.temperature is None else {"temperature": options.temperature}
        reply = await client.chat.completions.create(
            model=options.model,
            messages=messages,  # type: ignore[arg-type]  # mappings with role and content
            max_tokens=options.max_tokens,
            extra_body=options.extra or None,
            **sampling,
        )
        return reply.choices[0].message.content or "" if reply.choices else ""

    def _failed(self, row: str, error: openai.OpenAIError) -> float | None:
        problem = f"llm_judge: {row}: {self.options.base_url} answered: {' '.join(str(error).split())[:200]}"
        if self.options.failed == "raise":
            action = "see that the server runs and knows the model, or set the reward's failed: none"
            raise PluginError("finetooth-judge", problem, action=action) from error
        self.context.note(f"{problem}; the row scores None", topic="reward llm_judge failed")
        return None


def build(options: JudgeOptions, context: Context) -> Judge:
    """Builder of the reward `llm_judge`.

    Raises:
        RecipeError: the address is none.
    """
    if not options.base_url.startswith(("http://", "https://")):
        raise RecipeError(
            "method.rewards", f"llm_judge: {options.base_url!r} is not an address", action="begin with http://"
        )
    return Judge(options, context)
