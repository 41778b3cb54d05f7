"""Environments that need nothing else: a question, a conversation, number guessing, a calculator, search in texts."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Environment, hookimpl


@hookimpl
def ft_environments() -> Iterator[Environment]:
    yield Environment(
        name="single_turn",
        build="finetooth_basicenvironments.single_turn:SingleTurn",
        summary="the row's prompt, answered in one turn; the recipe's rewards judge the answer",
    )
    yield Environment(
        name="conversation",
        build="finetooth_basicenvironments.conversation:Conversation",
        summary="the row's conversation, with the policy in the assistant's turns; rewards or features judge it",
        example_task={
            "prompt": "Name a fruit.",
            "remaining_turns": [{"role": "user", "content": "And one more."}, {"role": "assistant", "content": "Fig."}],
        },
    )
    yield Environment(
        name="guess_number",
        build="finetooth_basicenvironments.guess:Guess",
        summary="a hidden number to guess; each reply says whether the guess is too low or too high",
        example_task={"prompt": "Guess my number.", "number": 7},
    )
    yield Environment(
        name="calculator",
        build="finetooth_basicenvironments.calculator:Calculator",
        summary="questions whose answer is a number, and a calculator as a tool",
        example_task={"prompt": "What is 2 plus 3?", "answer": "5"},
    )
    yield Environment(
        name="search",
        build="finetooth_basicenvironments.search:Search",
        summary="questions about texts in a folder, and a tool that searches them",
        example={"folder": "{folder}/texts"},
        example_files={"texts/a.txt": "The lamp is in the cellar.\n\nThe key is under the stone.\n"},
        example_task={"prompt": "Where is the key?", "answer": "under the stone"},
    )
