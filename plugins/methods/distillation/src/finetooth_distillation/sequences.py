"""Trains on a teacher's answers as rows: sequence-level distillation (Kim and Rush, 2016, arXiv:1606.07947, section
3.2).

Answers are saved in the run folder, `teacher/answers.jsonl`, so that a resumed run learns the same.
"""

from __future__ import annotations

import json
from pathlib import Path

from finetooth_hooks import EngineError, Sampling
from finetooth_hooks.context import Context
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.reports import DataReport
from finetooth_rollouts.prompts import ANSWERS, Prompts, messages_of
from finetooth_rollouts.rollouts_file import write_lines

FILE = Path("teacher") / "answers.jsonl"
Answer = tuple[str, bool]
"""The teacher's text, and whether it is complete."""
AT_ONCE = 64
"""Number of prompts that the teacher answers in one call."""


def learned_answers(
    context: Context, teacher: str, answers: int, *, longest: int, temperature: float
) -> tuple[list[Datum], DataReport]:
    """The rows of the run, which are prompts, each once per answer of the teacher. Truncated answers train without an
    end token, and a note counts them.

    Args:
        teacher: a run, a model's name, folder or hub id; it reads the prompts in its own template.
        answers: number of answers to each prompt.
        longest: largest number of tokens of an answer.
        temperature: sampling temperature; 0 always takes the likeliest token.

    Raises:
        DataError: a row already has an answer, or is longer than the model can read.
        EngineError: the answers cannot be saved.
    """
    prompts = Prompts.read(context)
    prompts.check_room(context, 1)
    path = context.folder / FILE
    replies = _read_answers(path, len(prompts.tokens) * answers)
    if replies is None:
        replies = _teacher_answers(context, prompts, teacher, Sampling(longest, temperature, n=answers,
                      seed=int(context.generator("teacher").integers(2**31))))  # fmt: skip
        write_lines(path, ({"answer": text, "ended": ended} for text, ended in replies))
    ids = [(id_, tokens) for id_, tokens in prompts.tokens for _ in range(answers)]
    stop, data = sorted(context.renderer.stop_ids)[:1], []
    for (id_, tokens), (text, ended) in zip(ids, replies, strict=True):
        answer = [*context.tokenizer.encode(text), *(stop if ended else [])]
        data.append(Datum.from_tokens([*tokens, *answer], [0.0] * len(tokens) + [1.0] * len(answer), id=id_))
    if cut := sum(not ended for _, ended in replies):
        context.note(
            f"the teacher did not finish {cut} of {len(data)} answers: they train without an end-of-text token"
        )
    lengths = [len(datum) + 1 for datum in data]
    return data, DataReport(
        "train", len(data), len(data), tokens=sum(lengths), longest=max(lengths), bounded_by=ANSWERS,
        unbounded=max(len(tokens) for _, tokens in ids),
    )  # fmt: skip


def _teacher_answers(context: Context, prompts: Prompts, teacher: str, sampling: Sampling) -> list[Answer]:
    """Answers, those of a prompt next to each other."""
    opened = context.open(teacher)
    renderer, answers = opened.context.renderer, list[Answer]()
    prompted = [tuple(renderer.prompt(messages_of(prompts.tasks[id_]), prompts.tasks[id_].tools))
             for id_, _ in prompts.tokens]  # fmt: skip
    for first in range(0, len(prompted), AT_ONCE):
        for completions in opened.engine.generate(prompted[first : first + AT_ONCE], sampling):
            answers += [(completion.text, completion.stop == "stop") for completion in completions]
    return answers


def _read_answers(path: Path, count: int) -> list[Answer] | None:
    """The saved answers of a resumed run; None if the file is missing.

    Raises:
        EngineError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        answers = [(str(line["answer"]), bool(line["ended"])) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{path} is damaged: {error}", action="remove it; the run then asks the teacher again"
        ) from error
    if len(answers) != count:
        raise EngineError(f"{path} has {len(answers)} answers, and the rows need {count}", action="remove it")
    return answers
