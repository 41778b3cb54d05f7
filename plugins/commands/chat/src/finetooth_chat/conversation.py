"""A conversation with a model: what was said, and the next answer, told as it is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from finetooth_hooks.compute.held import HeldAdapter
from finetooth_hooks.data.examples import Medium, MediumKind, Message, Placed
from finetooth_hooks.engine import Engine
from finetooth_hooks.errors import UserError
from finetooth_hooks.protocols import Renderer
from finetooth_hooks.sampling import Completion, Sampling, ShownPrompt
from finetooth_saving.run_folder import run_of
from finetooth_toolbox.messages.media import MEDIA, chunks

from finetooth_chat.continued_text import TextRenderer

UNFINISHED = "\ufffd"
"""What decoders write for bytes that are not a whole letter, or not yet."""

Say = Callable[[str], None]
"""Takes a piece of an answer, to be shown behind the one before."""


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: without the blanks around it.
        stop: why it ends: the model was done, it is as long as it may be, or somebody stopped it.
    """

    text: str
    stop: Literal["stop", "length", "interrupted"]


class Conversation:
    """Messages so far, and how to get the next one.

    Args:
        engine: whose policy answers; one with the capability `continuous` tells its answer token by token.
        renderer: of the model's family.
        sampling: the seed moves on by one with each answer.
        system: the first message, None for none.
        longest: tokens the model was made for, question and answer together; 0 for no bound.
        look: opens an image, sound or video, and refuses one that is broken or that the model does not take; None
            leaves that to the renderer.
        run_of: the folder of a run that a reference means; None if it means none.
        open_run: an engine of its own for an adapter that is more than a low-rank addition, as DoRA is.
        tools: that the model may call, in OpenAI's shape; a call is shown and not made.

    Attributes:
        adapters: that the engine holds in addition to its own weights, by the names they have here; None for one that
            answers with an engine of its own.
        engines: those of their own.
        adapter: the name of the one that answers; empty: the engine's own weights do.
        shown: images, sounds and videos that stand before what is said next.
        takes_turns: False where messages are pieces of one text, whose blanks count.
    """

    def __init__(
        self, engine: Engine, renderer: Renderer, sampling: Sampling, system: str | None, *, longest: int = 0,
        look: Callable[[Medium], object] | None = None, tools: Sequence[Mapping[str, Any]] = (),
        run_of: Callable[[str], Path | None] = run_of, open_run: Callable[[str], Engine] | None = None,
    ) -> None:  # fmt: skip
        self.look, self.run_of, self.open_run = look, run_of, open_run
        self.engine, self.renderer, self.sampling, self.longest = engine, renderer, sampling, longest
        self.takes_turns = not isinstance(renderer, TextRenderer)
        self.tools = tuple(tools)
        self.adapters: dict[str, HeldAdapter | None] = {}
        self.engines: dict[str, Engine] = {}
        self.adapter = ""
        self.start = (Message("system", system),) if system else ()
        self.messages: list[Message] = list(self.start)
        self.shown: list[Medium] = []

    def show(self, file: Path, kind: MediumKind = "image") -> None:
        """Show an image, or play a sound or video, with what is said next, before the words.

        Raises:
            UserError: it cannot be read, or the model takes none.
        """
        medium = MEDIA[kind](str(file), path=file)
        if self.look is not None:
            self.look(medium)
        self.renderer.shown_prompt([Message("user", "?", media=(Placed(0, medium),))])
        self.shown.append(medium)

    def answer(self, text: str, say: Say = lambda piece: None) -> Answer:
        """Say `text` and return the model's answer; both become part of the conversation, or neither on an error.

        Ctrl-C stops the answer: what was said until then is the answer. If that is nothing, neither is kept.

        Args:
            say: told the answer as it comes; all pieces are its text, behind whatever the model thought aloud.

        Raises:
            UserError: the conversation leaves the model no room to answer.
            EngineError: the engine cannot continue from it.
        """
        messages = [*self.messages, Message("user", text, media=tuple(Placed(0, medium) for medium in self.shown))]
        prompt = self._prompt(messages)
        if 0 < self.longest <= len(prompt):
            raise UserError(
                f"the conversation is {len(prompt)} tokens long, and the model was made for {self.longest}: no room to "
                "answer",
                action="say less",
            )
        telling = Telling(self.renderer, say)
        completion = self._complete(prompt, telling)
        if not telling.tokens:
            return Answer("", "interrupted")
        message = self.renderer.parse(telling.tokens).message
        text = shown(message) or ("" if completion is None else completion.text.strip())
        telling.end(text)
        self.messages, self.shown = [*messages, message], []
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        return Answer(text, "interrupted" if completion is None else completion.stop)

    def _prompt(self, messages: Sequence[Message]) -> Sequence[int]:
        """
        Raises:
            UserError: another adapter than the engine's own shall look or listen.
        """
        if not any(message.media for message in messages):
            return self.renderer.prompt(messages, self.tools)
        if self.adapter:
            raise UserError(
                f"adapter {self.adapter}: only the model's own weights can read images, sounds and videos",
                action="name the adapter, or its run, in place of the model",
            )
        read = self.renderer.shown_prompt(messages, self.tools)
        return ShownPrompt(read.tokens, tuple(chunks(read.media, "the conversation")))

    def _complete(self, prompt: Sequence[int], telling: Telling) -> Completion | None:
        """The whole completion; None if it was stopped. What there is of it is told, and kept in `telling.tokens`."""
        try:
            engine = self.engines.get(self.adapter, self.engine)
            if "continuous" not in engine.capabilities or isinstance(prompt, ShownPrompt):
                completion = engine.generate([prompt], self.sampling)[0][0]
                telling.tokens = list(completion.tokens)
                return completion
            batch = engine.running_batch()
            batch.add(prompt, self.sampling, adapter=self.adapters.get(self.adapter))
            while len(batch):
                for written in batch.step():
                    if written.completion is not None:
                        telling.tokens = list(written.completion.tokens)
                        return written.completion
                    telling.take(written.token)
        except KeyboardInterrupt:
            pass  # the batch goes with all that was half done in it
        return None

    def side_by_side(self, text: str) -> dict[str, Answer]:
        """What each of the adapters, and the model without one (the empty name), answers to `text` here; the
        conversation stays as it was.

        Raises:
            UserError, EngineError: as `answer`.
        """
        before = self.adapter, self.messages, self.sampling
        answers = {}
        try:
            for name in ("", *self.adapters):
                self.adapter, self.messages, self.sampling = name, list(before[1]), before[2]
                answers[name] = self.answer(text)
                if answers[name].stop == "interrupted":
                    break
        finally:
            self.adapter, self.messages, self.sampling = before
        return answers

    def reset(self) -> None:
        """Forget what was said."""
        self.messages, self.shown = list(self.start), []


def shown(message: Message) -> str:
    """What a message says, with its calls of tools as one line of JSON each."""
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in message.tool_calls]
    return "\n".join(part for part in (message.content.strip(), *calls) if part)


class Telling:
    """Tells an answer while it is written: whole letters only, and no blanks at its ends.

    What the renderer reads as the content so far is told. Where that turns out to be no content (a thought or a call
    that has closed), the rest begins a paragraph of its own.

    Attributes:
        tokens: of the answer so far.
    """

    def __init__(self, renderer: Renderer, say: Say) -> None:
        self.tokens: list[int] = []
        self._renderer, self._say = renderer, say
        self._told = ""
        self._breaks = False

    def take(self, token: int) -> None:
        """One token more."""
        self.tokens.append(token)
        content = self._renderer.parse(self.tokens).message.content
        self._tell(content.strip().rstrip(UNFINISHED).rstrip())

    def end(self, text: str) -> None:
        """The answer is complete, and this is all of it."""
        self._tell(text)

    def _tell(self, content: str) -> None:
        if not content.startswith(self._told):
            self._told = _shared(self._told, content)
            self._breaks = True
        piece = content[len(self._told) :]
        if not piece:
            return
        self._say(f"\n\n{piece.lstrip()}" if self._breaks else piece)
        self._told, self._breaks = content, False


def _shared(first: str, other: str) -> str:
    """The beginning that two texts have in common."""
    length = next(
        (i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(len(first), len(other))
    )
    return first[:length]
