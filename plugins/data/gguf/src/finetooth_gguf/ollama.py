"""The exporter `ollama`: a GGUF file, and a Modelfile whose template writes the same text as the run's renderer.

Ollama (https://docs.ollama.com/modelfile) renders chats by a Go template. A renderer has no template: its markup is
learnt from what it writes around marked messages, and the template is used only if it gives the renderer's own text of
whole conversations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetooth_hooks import DataError, Exported, ExportSource, Message, UserError
from finetooth_hooks.protocols import Renderer, Tokenizer
from finetooth_toolbox.messages.openings import read_opening

from finetooth_gguf.exporter import FILE, GgufExporter

MODELFILE = "Modelfile"
MARKS = {"system": "SYSTEMTEXT", "user": "USERTEXT", "assistant": "ANSWERTEXT"}


class OllamaExporter(GgufExporter):
    """As `gguf`, with a Modelfile next to the file."""

    def check(self, source: ExportSource) -> None:
        """Checks that the model and its chat markup can be written for Ollama.

        Raises:
            UserError: as `gguf`, or a template cannot express the renderer's markup.
        """
        super().check(source)
        markup_of(source.context.renderer, source.context.tokenizer)

    def export(self, source: ExportSource, folder: Path) -> Exported:
        """Write `model.gguf` and `Modelfile`."""
        exported = super().export(source, folder)
        context = source.context
        markup = markup_of(context.renderer, context.tokenizer)
        stops = [context.tokenizer.decode([index]) for index in context.renderer.stop_ids]
        if opening := read_opening(source.artifact).system:
            markup = replace(markup, system=opening)
        (folder / MODELFILE).write_text(modelfile(markup, stops), encoding="utf-8")
        checks = (*exported.checks, "the template writes the renderer's text of a conversation of five messages")
        return replace(exported, use="ollama create mine -f {folder}/" + MODELFILE, checks=checks)


@dataclass(frozen=True)
class Markup:
    """A renderer's markup around messages.

    Attributes:
        begin: before everything.
        around: text before and after a message, by role.
        ask: before an answer that is to come.
        system: the default system message; None: none.
    """

    begin: str
    around: Mapping[str, tuple[str, str]]
    ask: str
    system: str | None = None

    def write(self, messages: Sequence[Message]) -> str:
        """Messages and the question for an answer, as the template writes them."""
        conversation = list(messages)
        if self.system is not None and (not conversation or conversation[0].role != "system"):
            conversation.insert(0, Message("system", self.system))
        parts = [self.begin]
        for message in conversation:
            before, behind = self.around[message.role]
            parts += [before, str(message.content), behind]
        return "".join([*parts, self.ask])


def markup_of(renderer: Renderer, tokenizer: Tokenizer) -> Markup:
    """Learns the text that a renderer writes around each role's messages.

    Raises:
        UserError: the renderer writes different texts around messages of the same role.
    """
    system, user, assistant = (Message(role, mark) for role, mark in MARKS.items())

    def text(*messages: Message) -> str:
        return tokenizer.decode(renderer.prompt(messages))

    refused = UserError(
        f"the markup of {type(renderer).__name__} cannot be written as a template for Ollama",
        action="export it with --to gguf: llama.cpp reads the chat template in the file",
    )
    try:
        prompt, longer, alone = text(system, user), text(system, user, assistant, user), text(user)
    except DataError as error:
        raise refused from error
    before_system, _, rest = prompt.partition(MARKS["system"])
    between, _, to_answer = rest.partition(MARKS["user"])
    to_user, _, last = longer.partition(MARKS["assistant"])[2].partition(MARKS["user"])
    markup = _cut(before_system, between, to_answer, to_user, alone) if last == to_answer else None
    five = (system, user, assistant, Message("user", "and then?"))
    trials = ((system, user), (user,), five, (user, assistant, user))
    if markup is None or any(markup.write(messages) != text(*messages) for messages in trials):
        raise refused
    return markup


def _cut(before_system: str, between: str, to_answer: str, to_user: str, alone: str) -> Markup | None:
    """Cut the markup between two messages into what ends the first and what begins the second: where the beginning is
    one that a system message at the start of a text has too.

    Args:
        between: stands between a system message and a user's; `to_answer` between a user's and an answer, `to_user`
            between that and the next one of a user.
        alone: the text of one question without a system message.
    """
    for end in sorted(range(len(to_user)), key=lambda end: -_shared(to_user[end:], before_system)):
        behind, opening = to_user[:end], to_user[end:]
        if not between.endswith(opening) or not to_answer.startswith(behind):
            continue
        behind_system, ask = between[: len(between) - len(opening)], to_answer[len(behind) :]
        begin = before_system[: before_system.find(opening[: _shared(opening, before_system)])]
        around = {
            "system": (before_system[len(begin) :], behind_system),
            "user": (opening, behind),
            "assistant": (ask, behind),
        }
        if alone == begin + opening + MARKS["user"] + to_answer:
            return Markup(begin, around, ask)
        head, separator, _ = alone.partition(opening + MARKS["user"])
        if separator and head.startswith(before_system) and head.endswith(behind_system):
            return Markup(begin, around, ask, system=head[len(before_system) : len(head) - len(behind_system)])
    return None


def _shared(opening: str, text: str) -> int:
    """How long a beginning of the first is somewhere in the second."""
    return next((length for length in range(len(opening), 0, -1) if opening[:length] in text), 0)


def modelfile(markup: Markup, stops: Sequence[str]) -> str:
    """The text of a Modelfile.

    Raises:
        UserError: markup has three quotation marks, which end a text there.
    """
    roles = [
        f'{{{{ {"if" if place == 0 else "else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{behind}'
        for place, (role, (before, behind)) in enumerate(markup.around.items())
    ]
    template = f"{markup.begin}{{{{ range .Messages }}}}{''.join(roles)}{{{{ end }}}}{{{{ end }}}}{markup.ask}"
    if '"""' in template or '"""' in (markup.system or ""):
        raise UserError('the markup holds """, which a Modelfile cannot hold', action="export it with --to gguf")
    lines = [f"FROM ./{FILE}", f'TEMPLATE """{template}"""']
    if markup.system is not None:
        lines.append(f'SYSTEM """{markup.system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys(stops)]
    return "\n".join(lines) + "\n"
