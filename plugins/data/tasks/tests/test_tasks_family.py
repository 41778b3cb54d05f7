"""The family task against an independent solver that knows only the text, the names' genders and graph distances."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from finetooth_tasks.family import MEN, RELATIONSHIPS, WOMEN, generate
from finetooth_tasks.question import Draws

# (steps up to a parent, steps across a marriage, steps down to a child) by path -> (man, woman)
WORDS = {
    "m": ("husband", "wife"),
    "d": ("father", "mother"),
    "u": ("son", "daughter"),
    "ud": ("brother", "sister"),
    "dd": ("grandfather", "grandmother"),
    "uu": ("grandson", "granddaughter"),
    "udd": ("uncle", "aunt"),
    "uud": ("nephew", "niece"),
    "dm": ("father-in-law", "mother-in-law"),
    "mu": ("son-in-law", "daughter-in-law"),
    "udm": ("brother-in-law", "sister-in-law"),
    "mud": ("brother-in-law", "sister-in-law"),
}


def solve(prompt: str) -> str:
    """Walk from the person asked about to the other: d to a child, u to a parent, m to the spouse; shortest path."""
    story, asked = prompt.split("\n")
    edges: dict[str, dict[str, str]] = {}
    couple: tuple[str, str] = ("", "")
    for sentence in story.rstrip(".").split(". "):
        if married := re.fullmatch(r"(\w+) is married to (\w+)", sentence):
            couple = (married[1], married[2])
            edges.setdefault(couple[0], {})[couple[1]] = "m"
            edges.setdefault(couple[1], {})[couple[0]] = "m"
            continue
        children = re.fullmatch(r"Their (?:child is (\w+)|children are (\w+) and (\w+))", sentence)
        assert children is not None, sentence
        siblings = [name for name in children.groups() if name]
        for child in siblings:
            for parent in couple:
                edges[parent][child] = "d"
                edges.setdefault(child, {})[parent] = "u"
    question = re.fullmatch(r"What is (\w+) to (\w+)\? Answer with one word\.", asked)
    assert question is not None, asked
    start, goal = question[1], question[2]
    assert start in edges and goal in edges, "the question names somebody the story does not"
    # shortest path by letters; a marriage counts as much as a parent and child
    frontier = [(start, "")]
    seen = {start}
    while frontier:
        name, path = frontier.pop(0)
        if name == goal:
            return WORDS[path][start in WOMEN]
        # a child of one spouse is a child of the other: prefer blood to marriage at equal length
        for other, step in sorted(edges[name].items(), key=lambda edge: edge[1] == "m"):
            if other not in seen:
                seen.add(other)
                frontier.append((other, path + step))
    raise AssertionError("not related")


def test_an_independent_solver_gives_the_same_answers() -> None:
    draws = Draws("solver")
    for _ in range(2000):
        question = generate(draws)
        assert solve(question.prompt) == question.answer, question.prompt


def test_every_word_occurs_about_equally_often() -> None:
    draws = Draws("balance")
    counts = Counter(generate(draws).answer for _ in range(4400))
    assert set(counts) == {word for kind in RELATIONSHIPS for word in (kind.man, kind.woman)}
    assert len(counts) == 22
    # 200 expected of each; 5 standard deviations of a binomial are 69
    assert all(130 < count < 270 for count in counts.values()), counts


def test_every_ordered_pair_of_members_stands_in_one_relationship() -> None:
    places = [pair for kind in RELATIONSHIPS for pair in kind.places]
    assert sorted(places) == [(one, two) for one in range(6) for two in range(6) if one != two]


def test_names_tell_the_gender_and_couples_are_mixed() -> None:
    assert len(set(MEN) | set(WOMEN)) == len(MEN) + len(WOMEN)
    draws = Draws("couples")
    for _ in range(300):
        for first, second in re.findall(r"(\w+) is married to (\w+)", generate(draws).prompt):
            assert (first in WOMEN) != (second in WOMEN)


@pytest.mark.parametrize("stop", [1, 2, 7, 48])
def test_draws_below_stay_below_and_reach_everything(stop: int) -> None:
    draws = Draws("below")
    assert {draws.below(stop) for _ in range(stop * 60)} == set(range(stop))
