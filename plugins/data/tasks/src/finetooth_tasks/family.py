"""The `family` task: name the relationship between two members of a small family told in four sentences.

The family is a couple, their two children, the spouse of the first child, and that couple's child:

    Ruth is married to Edward. Their children are Brian and Amy. Brian is married to Linda. Their child is Kyle.
    What is Amy to Kyle? -> aunt

Nothing but the names tells who is a man and who is a woman, so an answer takes both the structure and the name. The
relationship is drawn first, uniformly, so the most frequent answer is right in about one row out of 22.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from finetooth_tasks.question import Draws, Question

MEN = (
    *("Adam", "Brian", "Charles", "Daniel", "David", "Edward", "Eric", "Frank", "George", "Henry", "Jack", "James"),
    *("John", "Kevin", "Mark", "Martin", "Michael", "Paul", "Peter", "Richard", "Robert", "Simon", "Thomas", "William"),
)
WOMEN = (
    *("Alice", "Amy", "Anna", "Barbara", "Carol", "Diana", "Elizabeth", "Emily", "Emma", "Helen", "Jane", "Julia"),
    *("Karen", "Laura", "Linda", "Lisa", "Lucy", "Margaret", "Maria", "Mary", "Rachel", "Rose", "Sarah", "Susan"),
)

# places in the family, in the order of the story
ELDER, ELDER_SPOUSE, CHILD, SIBLING, SPOUSE, GRANDCHILD = range(6)
_COUPLES = ((ELDER, ELDER_SPOUSE), (CHILD, SPOUSE))
_ELDERS, _CHILDREN, _PARENTS = (ELDER, ELDER_SPOUSE), (CHILD, SIBLING), (CHILD, SPOUSE)


@dataclass(frozen=True)
class Relationship:
    """One relationship: the word for a man, the word for a woman, and the places (X, Y) for which "X is Y's ...".

    Attributes:
        man: `uncle`.
        woman: `aunt`.
        places: pairs of places that are so related.
    """

    man: str
    woman: str
    places: tuple[tuple[int, int], ...]


RELATIONSHIPS = (
    Relationship("husband", "wife", tuple(pair for a, b in _COUPLES for pair in ((a, b), (b, a)))),
    Relationship("father", "mother", (*product(_ELDERS, _CHILDREN), *product(_PARENTS, (GRANDCHILD,)))),
    Relationship("son", "daughter", (*product(_CHILDREN, _ELDERS), *product((GRANDCHILD,), _PARENTS))),
    Relationship("brother", "sister", ((CHILD, SIBLING), (SIBLING, CHILD))),
    Relationship("grandfather", "grandmother", tuple(product(_ELDERS, (GRANDCHILD,)))),
    Relationship("grandson", "granddaughter", tuple(product((GRANDCHILD,), _ELDERS))),
    Relationship("uncle", "aunt", ((SIBLING, GRANDCHILD),)),
    Relationship("nephew", "niece", ((GRANDCHILD, SIBLING),)),
    Relationship("father-in-law", "mother-in-law", tuple(product(_ELDERS, (SPOUSE,)))),
    Relationship("son-in-law", "daughter-in-law", tuple(product((SPOUSE,), _ELDERS))),
    Relationship("brother-in-law", "sister-in-law", ((SIBLING, SPOUSE), (SPOUSE, SIBLING))),
)
"""All relationships of the family: every ordered pair of its members has exactly one."""


def generate(draws: Draws) -> Question:
    """Draw a relationship and the gender of who is asked about, then a family in which it holds."""
    relationship = draws.choice(RELATIONSHIPS)
    subject, other = draws.choice(relationship.places)
    woman_asked = draws.below(2) == 1
    names = _draw_names(draws, _draw_women(draws, subject, woman_asked))
    elder, elder_spouse, child, sibling, spouse, grandchild = names
    prompt = (
        f"{elder} is married to {elder_spouse}. Their children are {child} and {sibling}. "
        f"{child} is married to {spouse}. Their child is {grandchild}.\n"
        f"What is {names[subject]} to {names[other]}? Answer with one word."
    )
    return Question(prompt, relationship.woman if woman_asked else relationship.man)


def _draw_women(draws: Draws, subject: int, woman_asked: bool) -> set[int]:
    """The places of women: of each couple one, and `subject` only if wanted."""
    women = set()
    for couple in _COUPLES:
        wife = draws.choice(couple)
        if subject in couple and (wife == subject) != woman_asked:
            wife = couple[0] + couple[1] - wife
        women.add(wife)
    for single in (SIBLING, GRANDCHILD):
        if woman_asked if single == subject else draws.below(2) == 1:
            women.add(single)
    return women


def _draw_names(draws: Draws, women: set[int]) -> list[str]:
    """A name per place, all different, fitting each person's gender."""
    men_names, women_names = draws.sample(MEN, 6), draws.sample(WOMEN, 6)
    return [women_names[place] if place in women else men_names[place] for place in range(6)]
