"""Solutions whose steps people judged, in the shapes in which such data are published.

- a list of steps and the index of the first mistake (BIG-Bench Mistake, MR-GSM8K): the steps before it are right, the
  one there is wrong, and what follows is left out, since nothing is known of it;
- PRM800K: for each step one or more completions with a rating, of which one was chosen to continue from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import DataError, Row

from finetooth_formats import columns
from finetooth_formats.columns import kind, shown

Note = Callable[[str, str], None]
"""Told a topic and a text."""


@dataclass(frozen=True)
class MistakeColumns:
    """The places of information in such rows.

    Attributes:
        steps: the column with the steps.
        mistake: the column with the index of the first mistake, null without one.
        first: the number of the first step.
        prompts: columns with the problem.
    """

    steps: str
    mistake: str
    first: int
    prompts: tuple[str, ...] = ("prompt", "question", "problem", "input")


MISTAKES = (
    MistakeColumns("steps", "mistake_index", 0),
    MistakeColumns("model_output_steps", "model_output_solution_first_error_step", 1),
)
PRM800K = ("question.problem", "label.steps")


@dataclass(frozen=True)
class Steps:
    """Steps with their labels.

    Attributes:
        prompt: the column with the problem.
        others: completions that were rated but not continued: the steps up to each, and its label.
        problem: why nothing can be learned from the row; empty if something can.
    """

    prompt: str
    steps: tuple[str, ...]
    labels: tuple[bool, ...]
    others: tuple[tuple[tuple[str, ...], bool], ...] = ()
    problem: str = ""


NO_RATING = "no step has a rating"
NO_STEP = "it has no step"


def detect(values: Mapping[str, Any]) -> str | None:
    """Which of the shapes a row has, in words."""
    if isinstance(columns.value(values, PRM800K[1]), list | tuple) and columns.present(values, PRM800K[0]):
        return "has rated completions of steps in 'label.steps', as PRM800K"
    shape = _mistakes(values)
    return (
        None if shape is None else f"has a list {shape.steps!r} and the place of the first mistake in {shape.mistake!r}"
    )


def read(row: Row, neutral: bool, note: Note, others_note: Note | None) -> Steps:
    """Reads graded steps from a row in one of the known shapes.

    Args:
        neutral: the label of a step that was rated neither right nor wrong.
        note: receives notes about unused values.
        others_note: likewise about completions that were not continued; None where they are used.

    Raises:
        DataError: the row has none of the shapes, or has wrong values.
    """
    shape = _mistakes(row.values)
    return _prm800k(row, neutral, note, others_note) if shape is None else _up_to_mistake(row, shape)


def _mistakes(values: Mapping[str, Any]) -> MistakeColumns | None:
    return next(
        (shape for shape in MISTAKES if isinstance(values.get(shape.steps), list | tuple) and shape.mistake in values),
        None,
    )


def _up_to_mistake(row: Row, shape: MistakeColumns) -> Steps:
    steps = row.values[shape.steps]
    for i, step in enumerate(steps):
        _text(row, f"{shape.steps}[{i}]", step)
    prompt = next((name for name in shape.prompts if columns.present(row.values, name)), shape.prompts[0])
    place = row.values[shape.mistake]
    if not steps:
        return Steps(prompt, (), (), problem=NO_STEP)
    if place is None:
        return Steps(prompt, tuple(steps), (True,) * len(steps))
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place - shape.first < len(steps):
        last = len(steps) - 1 + shape.first
        raise DataError(
            row.id,
            f"{shape.mistake} is {shown(place)}, not a step ({shape.first} to {last}) and not null",
            action="fix it",
        )
    right = place - shape.first
    return Steps(prompt, tuple(steps[: right + 1]), (True,) * right + (False,))


def _prm800k(row: Row, neutral: bool, note: Note, others_note: Note | None) -> Steps:
    """The solution that was continued: of each step the chosen completion, or the one a person wrote; where neither
    is, the first one with a rating, which ends it."""
    steps = columns.value(row.values, PRM800K[1])
    if not isinstance(steps, list | tuple):
        raise columns.missing(row, "completions", "stepwise")
    texts: list[str] = []
    labels: list[bool] = []
    alternatives: list[tuple[tuple[str, ...], bool]] = []
    for i, step in enumerate(steps):
        path = f"{PRM800K[1]}[{i}]"
        chosen, ends, others = _step(row, path, step)
        for k, other in others if others_note is None else ():
            text = _text(row, f"{path}.completions[{k}].text", other.get("text"))
            label = _label(row, f"{path}.completions[{k}].rating", other.get("rating"), neutral)
            alternatives.append(((*texts, text), label))
        if others and others_note is not None:
            others_note(
                "alternatives",
                f"{path} of {row.id} has completions that the solution does not continue, and other rows may have "
                "them too; they are not used",
            )
        if chosen is None:
            note(
                "no rating",
                f"{path} of {row.id} has no rated completion, and other rows may have such a step too; the "
                "solution ends before it",
            )
            break
        texts.append(_text(row, f"{path}.text", chosen.get("text")))
        labels.append(_label(row, f"{path}.rating", chosen.get("rating"), neutral))
        if ends:
            break
    problem = "" if texts else NO_RATING
    return Steps(PRM800K[0], tuple(texts), tuple(labels), tuple(alternatives), problem)


Others = list[tuple[int, Mapping[str, Any]]]
"""Further completions with a rating, and their places."""


def _step(row: Row, path: str, step: Any) -> tuple[Mapping[str, Any] | None, bool, Others]:
    """The completion of a step, whether the solution ends with it, and the others with a rating."""
    completions = step.get("completions") if isinstance(step, Mapping) else None
    if not isinstance(completions, list | tuple) or not all(isinstance(item, Mapping) for item in completions):
        raise DataError(row.id, f"{path}.completions is not a list of objects", action="fix or remove the row")
    rated = [(i, item) for i, item in enumerate(completions) if item.get("rating") is not None]
    place, human = step.get("chosen_completion"), step.get("human_completion")
    if isinstance(place, int) and not isinstance(place, bool) and 0 <= place < len(completions):
        chosen = completions[place]
        others = [(i, item) for i, item in rated if i != place]
        return (None, True, others) if chosen.get("rating") is None else (chosen, False, others)
    if place is not None:
        raise DataError(
            row.id,
            f"{path}.chosen_completion is {shown(place)}; there are {len(completions)}",
            action="fix or remove the row",
        )
    if isinstance(human, Mapping):
        return {"rating": 1, **{k: v for k, v in human.items() if v is not None}}, False, rated
    return (rated[0][1], True, rated[1:]) if rated else (None, True, [])


def _label(row: Row, path: str, rating: Any, neutral: bool) -> bool:
    if isinstance(rating, bool) or rating not in (-1, 0, 1):
        raise DataError(row.id, f"{path} is {shown(rating)}, accepted are 1, 0 and -1", action="fix or remove the row")
    return neutral if rating == 0 else bool(rating == 1)


def _text(row: Row, path: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        what = "empty" if value == "" else f"{kind(value)}, not text"
        raise DataError(row.id, f"{path} is {what}", action="fix or remove the row")
    if problem := columns.unspeakable(value):
        raise DataError(row.id, f"{path} {problem}", action="write the whole character, or remove the row")
    return value


def lists(values: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether all the columns hold lists."""
    return all(isinstance(columns.value(values, name), list | tuple) for name in names)
