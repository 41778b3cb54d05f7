"""The `family` task: name the relationship between two members of a small family told in three or four sentences.

The family is a couple, their one or two children, the spouse of the first child, and that couple's one or two children:

    Ruth is married to Edward. Their children are Brian and Amy. Brian is married to Linda. Their child is Kyle.
    What is Amy to Kyle? -> aunt

Nothing but the names tells who is a man and who is a woman, so an answer takes both the structure and the name. The
relationship is drawn first, uniformly, so the most frequent answer is right in about one row out of 22.
"""

from __future__ import annotations

from finetooth_tasks.question import Draws, Question

MEN = (
    *("Adam", "Brian", "Charles", "Daniel", "David", "Edward", "Eric", "Frank", "George", "Henry", "Jack", "James"),
    *("John", "Kevin", "Mark", "Martin", "Michael", "Paul", "Peter", "Richard", "Robert", "Simon", "Thomas", "William"),
)
WOMEN = (
    *("Alice", "Amy", "Anna", "Barbara", "Carol", "Diana", "Elizabeth", "Emily", "Emma", "Helen", "Jane", "Julia"),
    *("Karen", "Laura", "Linda", "Lisa", "Lucy", "Margaret", "Maria", "Mary", "Rachel", "Rose", "Sarah", "Susan"),
)

# Places in the family. The first of each pair of spouses in the text may be either of the two.
ELDER, ELDER_SPOUSE, CHILD, SIBLING, SPOUSE, GRANDCHILD, GRANDCHILD_SIBLING = range(7)

# relationship -> (word for a man, word for a woman, the places (X, Y) for which "X is the ... of Y")
_ELDERS, _CHILDREN, _GRANDCHILDREN = (ELDER, ELDER_SPOUSE), (CHILD, SIBLING), (GRANDCHILD, GRANDCHILD_SIBLING)
_PARENTS = (CHILD, SPOUSE)
RELATIONSHIPS: tuple[tuple[str, str, tuple[tuple[int, int], ...]], ...] = (
    ("husband", "wife", ((ELDER, ELDER_SPOUSE), (ELDER_SPOUSE, ELDER), (CHILD, SPOUSE), (SPOUSE, CHILD))),
    (
        "father",
        "mother",
        (
            *((elder, child) for elder in _ELDERS for child in _CHILDREN),
            *((parent, child) for parent in _PARENTS for child in _GRANDCHILDREN),
        ),
    ),
    (
        "son",
        "daughter",
        (
            *((child, elder) for elder in _ELDERS for child in _CHILDREN),
            *((child, parent) for parent in _PARENTS for child in _GRANDCHILDREN),
        ),
    ),
    (
        "brother",
        "sister",
        ((CHILD, SIBLING), (SIBLING, CHILD), (GRANDCHILD, GRANDCHILD_SIBLING), (GRANDCHILD_SIBLING, GRANDCHILD)),
    ),
    ("grandfather", "grandmother", tuple((elder, child) for elder in _ELDERS for child in _GRANDCHILDREN)),
    ("grandson", "granddaughter", tuple((child, elder) for elder in _ELDERS for child in _GRANDCHILDREN)),
    ("uncle", "aunt", tuple((SIBLING, child) for child in _GRANDCHILDREN)),
    ("nephew", "niece", tuple((child, SIBLING) for child in _GRANDCHILDREN)),
    ("father-in-law", "mother-in-law", tuple((elder, SPOUSE) for elder in _ELDERS)),
    ("son-in-law", "daughter-in-law", tuple((SPOUSE, elder) for elder in _ELDERS)),
    ("brother-in-law", "sister-in-law", ((SIBLING, SPOUSE), (SPOUSE, SIBLING))),
)


def generate(draws: Draws) -> Question:
    """Draw a relationship and the gender of who is asked about, then a family in which it holds."""
    man_word, woman_word, places = draws.choice(RELATIONSHIPS)
    asked, other = draws.choice(places)
    asked_is_woman = draws.below(2) == 1
    women = {asked} if asked_is_woman else set()
    for first, second in ((ELDER, ELDER_SPOUSE), (CHILD, SPOUSE)):
        if asked in (first, second):
            wife = asked if asked_is_woman else first + second - asked
        else:
            wife = draws.choice((first, second))
        women.add(wife)
    for place in (SIBLING, GRANDCHILD, GRANDCHILD_SIBLING):
        if place != asked and draws.below(2) == 1:
            women.add(place)
    names = _draw_names(draws, women)
    needed = {asked, other}
    people = {place for place in (SIBLING, GRANDCHILD_SIBLING) if place in needed or draws.below(2) == 1}
    prompt = f"{_tell(names, people)}\nWhat is {names[asked]} to {names[other]}? Answer with one word."
    return Question(prompt, woman_word if asked_is_woman else man_word)


def _draw_names(draws: Draws, women: set[int]) -> list[str]:
    """A name per place, all different, fitting each person's gender."""
    men_names, women_names = draws.sample(MEN, 7), draws.sample(WOMEN, 7)
    return [women_names[place] if place in women else men_names[place] for place in range(7)]


def _tell(names: list[str], siblings: set[int]) -> str:
    """The family in four sentences; `siblings` holds which of SIBLING and GRANDCHILD_SIBLING exist."""
    children = f"child is {names[CHILD]}"
    if SIBLING in siblings:
        children = f"children are {names[CHILD]} and {names[SIBLING]}"
    grandchildren = f"child is {names[GRANDCHILD]}"
    if GRANDCHILD_SIBLING in siblings:
        grandchildren = f"children are {names[GRANDCHILD]} and {names[GRANDCHILD_SIBLING]}"
    return (
        f"{names[ELDER]} is married to {names[ELDER_SPOUSE]}. Their {children}. "
        f"{names[CHILD]} is married to {names[SPOUSE]}. Their {grandchildren}."
    )
