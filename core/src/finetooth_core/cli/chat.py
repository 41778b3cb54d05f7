"""`ft chat`: talk to a trained run or to a model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from finetooth_hooks.engine import Engine
    from finetooth_hooks.examples import Message
    from finetooth_hooks.protocols import Renderer
    from finetooth_hooks.sampling import Sampling

    from finetooth_core.api import Session
    from finetooth_core.cli.state import State

WELCOME = "Type a message. /reset begins anew, /quit or Ctrl-D ends."


@click.command("chat")
@click.argument("model", metavar="RUN_OR_MODEL", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--prompt", help="Say this, print the answer and end; - reads it from standard input.")
@click.option("--system", help="A system message to begin with.")
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
    help="Sample from this share of the probability.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the sampling.")
@click.pass_obj
def command(
    state: State,
    model: str,
    overrides: tuple[str, ...],
    prompt: str | None,
    system: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> None:
    """Talk to RUN_OR_MODEL: a run by its folder or by its name under runs/, or anything that can stand under model: in
    a recipe."""
    from finetooth_hooks.sampling import Sampling

    session = open_session(state, model, overrides)
    engine = trained_engine(session, model)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    context = session.job.context
    chat = Conversation(engine, context.renderer, sampling, system, longest=context.facts.max_positions)
    if prompt is not None:
        click.echo(chat.answer(sys.stdin.read() if prompt == "-" else prompt))
        return
    click.echo(WELCOME, err=True)
    talk(chat)


class Conversation:
    """Messages so far, and how to get the next one.

    Args:
        engine: whose policy answers.
        renderer: of the model's family.
        sampling: the seed moves on by one with each answer.
        system: the first message, None for none.
        longest: tokens the model was made for, question and answer together; 0 is no bound.
    """

    def __init__(
        self, engine: Engine, renderer: Renderer, sampling: Sampling, system: str | None, *, longest: int = 0
    ) -> None:
        from finetooth_hooks.examples import Message

        self.engine, self.renderer, self.sampling, self.longest = engine, renderer, sampling, longest
        self.start = (Message("system", system),) if system else ()
        self.messages: list[Message] = list(self.start)

    def answer(self, text: str) -> str:
        """Say `text` and return the model's answer; both become part of the conversation, or neither on an error.

        Raises:
            UserError: the conversation leaves the model no room to answer.
            EngineError: the engine cannot go on from it.
        """
        from dataclasses import replace

        from finetooth_hooks.errors import UserError
        from finetooth_hooks.examples import Message

        asked = [*self.messages, Message("user", text)]
        tokens = self.renderer.prompt(asked)
        if 0 < self.longest <= len(tokens):
            raise UserError(
                f"the conversation is {len(tokens)} tokens long, and the model was made for {self.longest}: no room to "
                "answer",
                action="say less",
            )
        completion = self.engine.generate([tokens], self.sampling)[0][0]
        message = self.renderer.parse(completion.tokens).message
        self.messages = [*asked, message]
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        return message.content.strip() or completion.text.strip()

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = list(self.start)


def talk(chat: Conversation) -> None:
    """Read, answer, until the user leaves; what cannot be answered is said, and the conversation stays as it was."""
    from finetooth_hooks.errors import EngineError, UserError

    while True:
        try:
            text = click.prompt(click.style("you", bold=True), prompt_suffix="> ", err=True).strip()
        except click.Abort:  # Ctrl-D, Ctrl-C
            click.echo()
            return
        if text in ("/quit", "/exit"):
            return
        if text == "/reset":
            chat.reset()
            continue
        if not text:
            continue
        try:
            click.echo(chat.answer(text))
        except (EngineError, UserError) as error:
            click.echo(f"error: {error}; /reset begins anew without what was said so far", err=True)


def open_session(state: State, model: str, overrides: tuple[str, ...]) -> Session:
    """A session without data: of the run's own recipe, or of a recipe that names only the model."""
    from finetooth_core.run_folder import artifact_of, recipe_of, run_of

    recipe: dict[str, Any] = {"model": model}
    run = run_of(model)
    if run is not None:
        artifact_of(run)  # before the base is loaded
        recipe = recipe_of(run)
    recipe |= {"trackers": [], "evaluate": {"evaluators": []}}
    return state.session(recipe, overrides, data=False)


def trained_engine(session: Session, model: str) -> Engine:
    """The engine, with what the run trained if `model` is a run.

    Raises:
        PlanError: the backend cannot generate.
    """
    from finetooth_hooks.errors import PlanError

    from finetooth_core.run_folder import artifact_of, run_of

    engine = session.engine
    if "generate" not in engine.capabilities:
        raise PlanError(f"backend: {session.plan.picks['backend']} cannot generate", action="pick another backend")
    run = run_of(model)
    if run is not None:
        engine.restore(artifact_of(run))
    return engine
