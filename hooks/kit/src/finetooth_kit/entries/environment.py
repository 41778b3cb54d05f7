"""Checks of environments, spoken to without a model."""

from __future__ import annotations

import math
from typing import cast

from finetooth_hooks.capabilities import ENVIRONMENT
from finetooth_hooks.data.examples import Message, Task
from finetooth_hooks.entries import Environment as Entry
from finetooth_hooks.environments import Answer, Environment, Observation, Turn

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for, expect, expect_instance

_MOST = 50
"""Turns after which an episode of the kit is left."""


def _built(case: EntryCase) -> Environment:
    """
    Raises:
        CheckSkipped: it asks a server.
    """
    if cast(Entry, case.entry).remote:
        raise CheckSkipped("it calls a server: test it together with one")
    environment: Environment = case.build()
    return environment


def _task(case: EntryCase) -> Task:
    row = dict(cast(Entry, case.entry).example_task)
    return Task(row.pop("prompt"), row)


def _turn(text: str) -> Turn:
    return Turn(tuple(text.encode()), text, Message("assistant", text), "stop")


def _played(environment: Environment, case: EntryCase, seed: int) -> list[Observation | Answer]:
    """All that an episode says to somebody who counts."""
    episode = environment.episode(_task(case), seed)
    begun = episode.begin()
    expect_instance(begun, Observation, "episode.begin()")
    expect(
        bool(begun.messages) != bool(begun.tokens), "episode.begin()", begun, "messages or tokens, and not both of them"
    )
    observed: list[Observation | Answer] = [begun]
    for number in range(1, _MOST + 1):
        answer = episode.answer(_turn(str(number)))
        expect_instance(answer, Answer, "episode.answer(turn)")
        observed.append(answer)
        if answer.observation is None:
            break
    episode.close()
    return observed


@check_for("environment")
def an_episode_shows_and_answers(case: EntryCase) -> None:
    """Begins with something to read, answers every turn, and rewards are finite numbers or None."""
    environment = _built(case)
    words = sorted(environment.capabilities - set(ENVIRONMENT))
    expect(not words, "environment.capabilities", words, f"of {sorted(ENVIRONMENT)}")
    for answer in _played(environment, case, 7):
        if isinstance(answer, Answer):
            expect(
                answer.reward is None or math.isfinite(answer.reward),
                "answer.reward",
                answer.reward,
                "a finite number or None",
            )
            shown = answer.observation
            expect(shown is None or shown.messages or shown.tokens, "answer.observation", shown, "something to read")


@check_for("environment")
def a_seeded_episode_says_the_same_again(case: EntryCase) -> None:
    """Capability `seeded`: the same task, seed and turns, and other episodes between, give the same answers."""
    environment = _built(case)
    if "seeded" in environment.capabilities:
        first = _played(environment, case, 7)
        _played(environment, case, 8)
        expect(_played(environment, case, 7) == first, "the same episode again", "other answers", "the same")


@check_for("environment")
def episodes_are_apart(case: EntryCase) -> None:
    """Two episodes that are played in turns are what each is alone."""
    environment = _built(case)
    if "seeded" not in environment.capabilities:
        return
    alone = _played(environment, case, 7)
    first, second = (environment.episode(_task(case), 7) for _ in range(2))
    in_turns: list[list[Observation | Answer]] = [[first.begin()], [second.begin()]]
    for number in range(1, len(alone)):
        in_turns[0].append(first.answer(_turn(str(number))))
        in_turns[1].append(second.answer(_turn(str(number))))
    first.close()
    second.close()
    expect(in_turns == [alone, alone], "two episodes side by side", "other answers than alone", "the same")
