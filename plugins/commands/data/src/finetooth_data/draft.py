"""`ft data draft`: questions and answers that a model makes of texts, each judged and marked as made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from finetooth_hooks.context import CommandContext
from finetooth_hooks.data.examples import Message, Text
from finetooth_hooks.errors import DataError, UserError

from finetooth_data.convert import section_of, write_rows

ASK = (
    "Read this text.\n\n{text}\n\nWrite one question that somebody could ask and that this text answers. Write the "
    "question alone."
)
ANSWER = "Read this text.\n\n{text}\n\nAnswer from this text alone, in one or two sentences.\n\nQuestion: {question}"
JUDGE = (
    "Read this text.\n\n{text}\n\nQuestion: {question}\nAnswer: {answer}\n\nDoes the text say what the answer says, "
    "and does the answer fit the question? Reply with yes or no alone."
)
QUESTION_TOKENS, ANSWER_TOKENS, VERDICT_TOKENS = 64, 160, 4
WARM = 0.7
"""Temperature of questions, so that a passage gives several; answers and verdicts take the likeliest tokens."""
BATCH = 8
"""Passages that are asked together."""

Ask = Callable[[Sequence[str], float, int, int], list[str]]
"""Prompts, temperature, tokens at most, seed -> what the model says to each."""


@dataclass(frozen=True)
class Passage:
    """Part of a text.

    Attributes:
        id: of the row it is from, with its number there.
        text: some paragraphs.
    """

    id: str
    text: str


@click.command()
@click.argument("data", metavar="DATA")
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--format", "format_", metavar="FORMAT", help="Format of DATA, as data.format; default: by its columns.")
@click.option("--model", required=True, metavar="RUN_OR_MODEL", help="Writing model; with --server its name there.")
@click.option(
    "--server", metavar="URL", help="An OpenAI-compatible server, http://HOST:PORT/v1; its key is OPENAI_API_KEY."
)
@click.option("--judge", metavar="RUN_OR_MODEL", help="Judging model; default: the writing one.")
@click.option("--unjudged", is_flag=True, help="Judge no row: keep every row.")
@click.option("--rows", "most", type=click.IntRange(min=1), default=200, show_default=True, help="Most rows.")
@click.option("--each", type=click.IntRange(1, 20), default=1, show_default=True, help="Questions per passage.")
@click.option(
    "--words", type=click.IntRange(min=20), default=200, show_default=True, help="Words of a passage, roughly."
)
@click.option("--system", default="", metavar="TEXT", help="A system message for all rows.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the questions.")
@click.pass_obj
def draft(
    context: CommandContext, data: str, output: Path, format_: str | None, model: str, server: str | None,
    judge: str | None, unjudged: bool, most: int, each: int, words: int, system: str, seed: int,
) -> None:  # fmt: skip
    """Draft question-answer rows from the texts of DATA into OUTPUT (.jsonl): a model asks, answers, and judges.

    DATA is what data.train may be, with documents in it: text files, Markdown, PDF, DOCX, a folder. Each row says in
    its column `made` who wrote it, who judged it, and from which text. Read them before you train on them.
    """
    if output.suffix != ".jsonl":
        raise UserError(f"{output}: rows are written as .jsonl", action="name OUTPUT with that ending")
    if output.exists():
        raise UserError(f"{output} exists", action="name another file; nothing was changed")
    if unjudged and judge:
        raise UserError("--judge and --unjudged exclude each other", action="leave one of them out")
    passages = list(passages_of(context, data, words, format_))
    click.echo(f"{len(passages)} passages of {data}; loading {model} ...", err=True)
    writes = _asker(context, model, server)
    judges = None if unjudged else writes if judge in (None, model) else _asker(context, judge or "", server)
    made = {"by": model, "judge": None if unjudged else judge or model}
    rows, out = drafted(passages, writes, judges, most=most, each=each, seed=seed)
    if not rows:
        reasons = ", ".join(f"{count} {why}" for why, count in out.items())
        raise DataError(
            data, f"no row was drafted ({reasons})", action="name a larger --judge or --model, or add --unjudged"
        )
    begins = [{"role": "system", "content": system}] if system else []
    write_rows(output, [
        {"messages": [*begins, {"role": "user", "content": question}, {"role": "assistant", "content": answer}],
         "made": {**made, "from": passage.id}}
        for passage, question, answer in rows
    ])  # fmt: skip
    left = "".join(f"; {count} {why}" for why, count in out.items())
    click.echo(f"{len(rows)} row{'s' * (len(rows) != 1)} drafted to {output}{left}")
    click.echo(f"Read them, then: ft init --data {output}")


def passages_of(context: CommandContext, data: str, words: int, format_: str | None = None) -> Iterator[Passage]:
    """The texts in pieces of whole paragraphs; a paragraph that is longer is cut between sentences.

    Raises:
        DataError: a row is not a text.
    """
    examples, _ = context.rows({"model": "none", "data": section_of(data, format_)}).read("train")
    for id_, example in examples:
        if not isinstance(example, Text):
            raise DataError(id_, f"it is {example.called}, not a text to draft from", action="name documents")
        for number, text in enumerate(pieces(example.text, words), start=1):
            yield Passage(f"{id_}#{number}", text)


def pieces(text: str, words: int) -> Iterator[str]:
    """A text in pieces of about so many words."""
    pending: list[str] = []
    count = 0
    for part in _parts(text, words):
        length = len(part.split())
        if pending and count + length > words:
            yield "\n\n".join(pending)
            pending, count = [], 0
        pending.append(part)
        count += length
    if pending:
        yield "\n\n".join(pending)


def _parts(text: str, words: int) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = paragraph.strip()
        if paragraph:
            yield from (paragraph,) if len(paragraph.split()) <= words else re.split(r"(?<=[.!?])\s+", paragraph)


def drafted(
    passages: Sequence[Passage], writes: Ask, judges: Ask | None, *, most: int, each: int, seed: int
) -> tuple[list[tuple[Passage, str, str]], Counter[str]]:
    """Questions with answers, and how many were left out, by the reason.

    Args:
        judges: keeps what it says yes to; None keeps all.
        most: rows.
        each: questions to a passage.
        seed: of the first question to each passage; the next ones count on.
    """
    rows: list[tuple[Passage, str, str]] = []
    out: Counter[str] = Counter()
    known: set[str] = set()
    for turn in range(each):
        for begin in range(0, len(passages), BATCH):
            batch = passages[begin : begin + BATCH]
            questions = writes([ASK.format(text=passage.text) for passage in batch], WARM, QUESTION_TOKENS, seed + turn)
            pairs: list[tuple[Passage, str]] = []
            for passage, reply in zip(batch, questions, strict=True):
                question = _question(reply)
                why = "without a question" if not question else "asked before" if question.lower() in known else ""
                if why:
                    out[why] += 1
                    continue
                known.add(question.lower())
                pairs.append((passage, question))
            answers = _replies(writes, ANSWER, [{"text": p.text, "question": q} for p, q in pairs], ANSWER_TOKENS)
            triples = [(p, q, a) for (p, q), a in zip(pairs, answers, strict=True)]
            out["without an answer"] += sum(not answer for _, _, answer in triples)
            triples = [triple for triple in triples if triple[2]]
            if judges is not None:
                cases = [{"text": p.text, "question": q, "answer": a} for p, q, a in triples]
                verdicts = _replies(judges, JUDGE, cases, VERDICT_TOKENS)
                good = [verdict.lower().lstrip("*\"' ").startswith("yes") for verdict in verdicts]
                out["refused by the judge"] += good.count(False)
                triples = [triple for triple, passes in zip(triples, good, strict=True) if passes]
            rows += triples
            click.echo(
                f"{len(rows)} row{'s' * (len(rows) != 1)} after {begin + len(batch)} of {len(passages)} passages",
                err=True,
            )
            if len(rows) >= most:
                return rows[:most], +out
    return rows, +out


def _replies(ask: Ask, prompt: str, cases: Sequence[dict[str, str]], tokens: int) -> list[str]:
    return ask([prompt.format(**values) for values in cases], 0.0, tokens, 0) if cases else []


def _question(reply: str) -> str:
    """The question of a reply, empty if it has none: its first line that ends in a question mark."""
    lines = (re.sub(r"^(question|q)\s*:\s*|^[-*\d.) ]+", "", line.strip().strip("\"*'"), flags=re.IGNORECASE)
             for line in reply.splitlines())  # fmt: skip
    return next((line for line in lines if line.endswith("?") and len(line.split()) > 2), "")


def _asker(context: CommandContext, model: str, server: str | None) -> Ask:
    """A model of this machine, or of a server.

    Raises:
        UserError: the address is not one.
    """
    if server is not None:
        from finetooth_wire.asked import next_message

        if not server.startswith(("http://", "https://")):
            raise UserError(f"--server: {server!r} is not an address", action="begin with http://")

        def there(prompts: Sequence[str], temperature: float, tokens: int, seed: int) -> list[str]:
            messages: list[list[dict[str, Any]]] = [[{"role": "user", "content": prompt}] for prompt in prompts]
            return [
                next_message(server, model, conversation, tokens=tokens, temperature=temperature, seed=seed)
                for conversation in messages
            ]

        return there
    from finetooth_hooks.sampling import Sampling

    talk = context.talk(model)
    engine, renderer = talk.engine, talk.context.renderer

    def here(prompts: Sequence[str], temperature: float, tokens: int, seed: int) -> list[str]:
        read = [renderer.prompt([Message("user", prompt)]) for prompt in prompts]
        generated = engine.generate(read, Sampling(tokens, temperature, seed=seed))
        return [renderer.parse(completions[0].tokens).message.content.strip() for completions in generated]

    return here
