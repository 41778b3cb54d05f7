"""`ft chat`: talk to a trained run or to a model."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from finetooth_hooks.errors import EngineError, UserError
from finetooth_toolbox.cli.options import accept_memory_option, accepting
from finetooth_toolbox.cli.streams import is_text
from finetooth_toolbox.text.controls import escape_controls

from finetooth_chat.held_adapters import folder_of, hold_adapters, of_the_next_stage, swap
from finetooth_chat.kept_talk import append_row, read_tools

if TYPE_CHECKING:
    from finetooth_hooks.context import CommandContext
    from finetooth_hooks.data.examples import MediumKind
    from finetooth_hooks.models import ModelInfo
    from finetooth_toolbox.messages.openings import Opening

    from finetooth_chat.conversation import Conversation

WORDS = {
    "/help": "show these words",
    "/reset": "start a new conversation",
    "/adapter": "list the adapters of --adapter; /adapter NAME: that adapter answers, /adapter A+B*0.5: a weighted "
    "sum, /adapter none: the model itself",
    "/compare": "/compare TEXT asks the model itself and each adapter, side by side; the conversation stays as it was",
    "/save": "/save FILE adds the conversation to FILE as a training row",
    "/image": "/image FILE shows the model an image with your next message",
    "/audio": "/audio FILE plays it a sound",
    "/video": "/video FILE shows it a video",
    "/quit": "end; so do /exit and Ctrl-D",
}
"""What can be typed in place of a message, and what it does."""
SHOWING: Mapping[str, MediumKind] = {"/image": "image", "/audio": "audio", "/video": "video"}
"""What shows the model something with what is said next."""
LEAVE = ("/quit", "/exit", "/bye")
TEXT_WELCOME = "Type a text; the model continues it. /reset begins another, /help lists more, /quit or Ctrl-D ends."
WELCOME = "Type a message. Ctrl-C stops an answer, /reset starts again, /help lists more, /quit or Ctrl-D ends."


@click.command("chat")
@click.argument("model", metavar="RUN_OR_MODEL", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--prompt", help="Say this, print the answer and end; - reads it from standard input.")
@click.option(
    "--system", help="A system message to begin with; default: the one that nearly all training rows begin with."
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer, in tokens."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 always takes the likeliest token.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Sample from the likeliest tokens, whose probabilities add up to this.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(min=0, max=1),
    default=0.0,
    show_default=True,
    help="Leave out tokens whose probability is below this share of the likeliest token's.",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Above 1, tokens that occurred already become less likely.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sampling.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="RUN_OR_FOLDER",
    help="An adapter of the same base, used instead of RUN_OR_MODEL's own; may be repeated, and /adapter chooses; "
    "A+B*0.5 is a weighted sum.",
)
@click.option("--compare", is_flag=True, help="With --prompt: the model itself and each adapter answer, side by side.")
@click.option("--save", type=click.Path(path_type=Path), help="With --prompt: append it and its answer to this file.")
@click.option(
    "--tools", type=click.Path(path_type=Path), help="Tools the model may call, a JSON list; calls are shown."
)
@click.option("--text", is_flag=True, help="Continue your text without turns, as base models do.")
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="FILE",
    help="An image for the first message; may be repeated.",
)
@click.option("--audio", "sounds", multiple=True, metavar="FILE", help="A sound; may be repeated.")
@click.option("--video", "videos", multiple=True, metavar="FILE", help="A video: GIF, WebP, MP4, WebM or AVI.")
@accept_memory_option
@click.pass_obj
def command(
    commands: CommandContext,
    model: str,
    overrides: tuple[str, ...],
    prompt: str | None,
    system: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int,
    adapters: tuple[str, ...],
    compare: bool,
    save: Path | None,
    tools: Path | None,
    text: bool,
    images: tuple[str, ...],
    sounds: tuple[str, ...],
    videos: tuple[str, ...],
    accept_memory: bool,
) -> None:
    """Talk to RUN_OR_MODEL: a run by its folder or by its name under runs/, an adapter's folder, or anything that can
    stand under model: in a recipe.

    The answer is shown as it is written; Ctrl-C stops it and leaves the conversation open.
    """
    if prompt is None and (compare or save is not None):
        word = "compare TEXT" if compare else "save FILE"
        raise UserError(f"--{word.split()[0]} needs --prompt", action=f"type /{word} in the conversation")
    _check_typed(model, overrides)
    offered = () if tools is None else read_tools(tools)
    click.echo(f"loading {model} ...", err=True)
    from finetooth_hooks.sampling import Sampling
    from finetooth_toolbox.messages.media import MEDIA

    from finetooth_chat.continued_text import TextRenderer, renderer_for
    from finetooth_chat.conversation import Conversation

    question = _readable(sys.stdin.read()) if prompt == "-" else prompt
    run = commands.run_folder(model)
    as_base = run is not None and of_the_next_stage(run, adapters, commands.run_folder)
    talk = commands.talk(model, settings := accepting(overrides, accept_memory), as_base=as_base)
    context = talk.context
    media: dict[MediumKind, tuple[str, ...]] = {"image": images, "audio": sounds, "video": videos}
    shown = {f"--{kind}": files for kind, files in media.items()}
    renderer = renderer_for(context, text, {"--system": system, "--tools": tools, "--save": save, **shown})
    begins = () if isinstance(renderer, TextRenderer) else (model, *adapters)
    opening = begun([str(folder_of(name, commands.run_folder) or name) for name in begins], system, offered)
    for kind, files in media.items():
        for file in files:  # before weights are loaded
            context.processor.place(MEDIA[kind](file, path=Path(file)))
    sampling = Sampling(
        max_tokens, temperature, top_p=top_p, seed=seed, min_p=min_p, repetition_penalty=repetition_penalty
    )
    chat = Conversation(
        talk.engine, renderer, sampling, opening.system,
        longest=context.facts.max_positions, look=lambda medium: context.processor.place(medium),
        tools=opening.tools, run_of=commands.run_folder, open_run=lambda name: commands.talk(name, settings).engine,
    )  # fmt: skip
    hold_adapters(chat, adapters, context.model)
    for kind, files in media.items():
        for file in files:
            chat.show(Path(file), kind)
    if question is None:
        click.echo(WELCOME if begins else TEXT_WELCOME, err=True)
        converse(chat, context.model)
        return
    if compare:
        beside(chat, question, model)
        return
    stopped = show(chat, question) if sys.stdout.isatty() else whole(chat, question)
    if stopped:
        raise KeyboardInterrupt
    if save is not None:
        added = append_row(save, chat.messages, chat.tools)
        if added.blank:
            click.echo(added.told(save), err=True)


def _check_typed(model: str, overrides: Sequence[str]) -> None:
    """
    Raises:
        UserError: a question stands among settings.
    """
    if words := [word for word in overrides if "=" not in word]:
        action = f"ft chat {model} --prompt {shlex.quote(' '.join(words))}"
        raise UserError(f"{words[0]!r} is not a setting; give a question with --prompt", action=action)


def begun(references: Sequence[str], system: str | None, tools: Sequence[Mapping[str, Any]]) -> Opening:
    """What a conversation begins with: what the user gives, else what nearly all training rows of the first model or
    adapter that keeps it begin with, which is said."""
    from finetooth_saving.run_folder import opening_of
    from finetooth_toolbox.messages.openings import NONE

    opening = next(filter(None, map(opening_of, references)), NONE)
    own = replace(opening, system=opening.system if system is None else "", tools=() if tools else opening.tools)
    if own:
        rows = f"{own.rows:,} of {own.of:,} training rows"
        click.echo(f"begins with {own.told()}, as {rows} do; --system and --tools replace it", err=True)
    return replace(own, system=own.system if system is None else system, tools=tuple(tools) or own.tools)


def whole(chat: Conversation, text: str) -> bool:
    """Say `text` and print the answer, and nothing but the answer; returns whether it was stopped."""
    answer = chat.answer(text)
    click.echo(answer.text)
    return answer.stop == "interrupted"


def show(chat: Conversation, text: str) -> bool:
    """Say `text` and show the answer as it comes; returns whether it was stopped."""
    answer = chat.answer(text, _say)
    click.echo()
    if answer.stop == "interrupted":
        note = "the conversation is kept" if answer.text else "nothing was said"
        click.echo(f"(stopped; {note})", err=True)
    elif answer.stop == "length":
        click.echo(f"(cut at --max-tokens {chat.sampling.max_tokens})", err=True)
    return answer.stop == "interrupted"


def beside(chat: Conversation, text: str, model: str = "the model itself") -> None:
    """Ask the model and each adapter the same, and print the answers below their names."""
    for name, answer in chat.side_by_side(text).items():
        click.echo(f"{click.style(name or model, bold=True)}:\n{escape_controls(answer.text)}\n")


def converse(chat: Conversation, base: ModelInfo | None = None) -> None:
    """Read, answer, until the user leaves; what cannot be answered is said, and the conversation stays as it was.

    Args:
        base: of the adapters that `/adapter FIRST+SECOND` stacks; None: none can be.
    """
    while True:
        try:
            typed = click.prompt(click.style("you", bold=True), prompt_suffix="> ", err=True)
        except click.Abort:  # Ctrl-D, or Ctrl-C where nothing is being answered
            click.echo()
            return
        text = typed.strip()
        if text in LEAVE:
            return
        if text.split()[:1] == ["/adapter"]:
            swap(text.partition(" ")[2].strip(), chat, base)
            continue
        if text.split()[:1] in (["/compare"], ["/save"], *([name] for name in SHOWING)):
            _apart(text, chat)
            continue
        if re.fullmatch(r"/[\w?]+", text):
            _obey(text, chat)
        elif text:
            try:
                show(chat, _readable(text if chat.takes_turns else typed))
            except (EngineError, UserError) as error:
                problem = escape_controls(str(error))
                click.echo(f"error: {problem}; /reset starts a new conversation", err=True)


def _apart(text: str, chat: Conversation) -> None:
    """`/compare TEXT`, `/save FILE`, and `/image FILE` with those like it; what does not work is said."""
    from finetooth_chat.continued_text import ONLY_TURNS

    word, _, rest = text.partition(" ")
    try:
        if not rest.strip():
            raise UserError(f"{word} needs {'a text' if word == '/compare' else 'a file'}", action="/help says how")
        if word == "/compare":
            beside(chat, _readable(rest.strip()))
        elif not chat.takes_turns:
            raise UserError(f"{word}: {ONLY_TURNS}", action="type a text; /reset begins another")
        elif word in SHOWING:
            chat.show(Path(rest.strip()).expanduser(), SHOWING[word])
            click.echo(f"({rest.strip()} is shown with your next message)", err=True)
        else:
            added = append_row(Path(rest.strip()).expanduser(), chat.messages, chat.tools)
            click.echo(added.told(rest.strip()), err=True)
    except (EngineError, UserError, RuntimeError) as error:
        click.echo(f"error: {escape_controls(str(error))}", err=True)


def _obey(word: str, chat: Conversation) -> None:
    """Do what a word with a slash asks for; an unknown word is an error and never sent to the model."""
    from finetooth_toolbox.text.nearest import nearest

    if word == "/reset":
        chat.reset()
        click.echo("(started again)", err=True)
        return
    if word not in ("/help", "/?"):
        near = nearest(word, WORDS)
        click.echo(f"error: unknown word {word}" + (f" (did you mean {near}?)" if near else ""), err=True)
    for known, meaning in WORDS.items():
        click.echo(f"  {known:<8} {meaning}", err=True)
    click.echo("  Ctrl-C   stop an answer; the words until then are kept", err=True)


def _say(piece: str) -> None:
    click.echo(escape_controls(piece), nl=False)  # which flushes


def _readable(text: str) -> str:
    """
    Raises:
        UserError: some of it is not in the encoding of the terminal.
    """
    if not is_text(text):
        raise UserError(
            f"the message is not {sys.stdin.encoding or 'valid'} text", action="set PYTHONIOENCODING to its encoding"
        )
    return text
