"""An `Env` of the Tinker cookbook: `initial_observation` and `step` over tokens, as it is.

Its observations are whole prompts in tokens; where one begins with the prompt and the turn before it, one sequence
trains both turns, else each its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from finetooth_hooks import Context, DataError, Options
from finetooth_hooks.bases import EnvironmentBase, EpisodeBase
from finetooth_hooks.data.examples import Task
from finetooth_hooks.environments import Answer, Observation, Turn
from finetooth_rollouts.prompts import messages_of

from finetooth_gyms.loading import load
from finetooth_gyms.loops import Loop


class CookbookOptions(Options):
    """Options of `cookbook`."""

    env: str
    """Function that makes an `Env`: `package.module:name` or `./file.py:name`. It gets the keyword arguments `row`
    (columns of the row, with `prompt` as messages in OpenAI's format), `seed`, and `tokenizer` (with `encode` and
    `decode`)."""


class Cookbook(EnvironmentBase):
    """Makes an `Env` for each episode. Whether it can be done again the same is for the function to say, with an
    attribute `seeded`."""

    def __init__(self, make: Callable[..., Any], context: Context) -> None:
        seeded = bool(vars(make).get("seeded")) if hasattr(make, "__dict__") else False
        self._words = frozenset({"seeded", "concurrent"} if seeded else {"concurrent"})
        self._make, self._context, self._loop = make, context, Loop("cookbook")

    @property
    def capabilities(self) -> frozenset[str]:
        """`concurrent`, and `seeded` where the function says so."""
        return self._words

    def episode(self, task: Task, seed: int) -> CookbookEpisode:
        """Returns an episode of the `Env` that the recipe's function makes of the row.

        Raises:
            DataError: the function cannot make an `Env` of the row.
        """
        prompt = [{"role": message.role, "content": message.content} for message in messages_of(task)]
        row = {**task.columns, "prompt": prompt}
        try:
            env = self._make(row=row, seed=seed, tokenizer=self._context.tokenizer)
        except Exception as error:
            raise DataError("method.environment.env", f"{type(error).__name__}: {error}", action="fix it") from error
        return CookbookEpisode(env, self._loop)


class CookbookEpisode(EpisodeBase):
    """One `Env`."""

    def __init__(self, env: Any, loop: Loop) -> None:
        self._env, self._loop = env, loop
        self._extra = "extra" in inspect.signature(env.step).parameters

    def begin(self) -> Observation:
        """Returns the first observation of the `Env`.

        Raises:
            ValueError: the prompt is longer than the `Env` allows.
        """
        begun = self._loop.run(self._env.initial_observation())
        if not isinstance(begun, tuple):
            raise ValueError("the Env says that its prompt is too long (InitialObservationOverflow)")
        return _observation(*begun)

    def answer(self, turn: Turn) -> Answer:
        """Of `step`."""
        extra = {"extra": {"stop_reason": turn.stop}} if self._extra else {}
        result = self._loop.run(self._env.step(list(turn.tokens), **extra))
        metrics = {str(name): float(value) for name, value in dict(result.metrics).items()}
        if result.episode_done:
            return Answer(None, float(result.reward), metrics)
        return Answer(_observation(result.next_observation, result.next_stop_condition), float(result.reward), metrics)


def _observation(prompt: Any, stop: Sequence[str] | Sequence[int]) -> Observation:
    tokens = tuple(int(token) for token in prompt.to_ints())
    texts = tuple(text for text in stop if isinstance(text, str))
    ids = tuple(id_ for id_ in stop if isinstance(id_, int))
    return Observation(tokens=tokens, stop=texts, stop_ids=ids if ids else None)


def build(options: CookbookOptions, context: Context) -> Cookbook:
    """Builder of the environment `cookbook`."""
    return Cookbook(load(options.env, "method.environment.env"), context)
