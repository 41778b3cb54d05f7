"""Adapters that a conversation holds in addition to its model: by name, and stacked (`first+second*0.5`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from finetooth_hooks.errors import FinetoothError, PlanError, UserError

if TYPE_CHECKING:
    from finetooth_hooks.models import ModelInfo

    from finetooth_chat.conversation import Conversation


def hold_adapters(chat: Conversation, references: Sequence[str], base: ModelInfo) -> None:
    """Hold adapters in addition to the engine's own weights; the first answers.

    Args:
        references: runs, folders of adapters, and stacks of them.
        base: what they must have been trained over.

    Raises:
        UserError: a reference is not an adapter of this base, or a sum of more than low-rank additions.
        PlanError: the engine holds none.
    """
    if references and not {"adapters", "continuous"} <= chat.engine.capabilities:
        raise PlanError(
            "--adapter: this model's weights cannot take another adapter",
            action="name the adapter, or its run, instead of the model",
        )
    for reference in references:
        hold(chat, reference, base, setting="--adapter")
    chat.adapter = next(iter(chat.adapters), "")


def of_the_next_stage(run: Path, references: Sequence[str], run_of: Callable[[str], Path | None]) -> bool:
    """Whether one of these adapters was trained over what a run had become, which is their base then.

    Args:
        run_of: the folder of the run that a reference means; None if it means none.
    """
    from finetooth_saving.artifact import digest_of
    from finetooth_saving.run_folder import ARTIFACT
    from finetooth_toolbox.files.manifests import MANIFEST
    from finetooth_toolbox.files.trained_over import base_revision

    if not references or not (run / ARTIFACT / MANIFEST).is_file():  # opening the run says that it is missing
        return False
    here = digest_of(run / ARTIFACT)
    for reference in references:
        for name, _ in _parts(reference, "--adapter", run_of):
            folder = run_of(name)
            if base_revision(Path(name) if folder is None else folder / ARTIFACT) == here:
                return True
    return False


def _parts(reference: str, setting: str, run_of: Callable[[str], Path | None]) -> list[tuple[str, float]]:
    """The adapters that a name stands for, each with its weight."""
    from finetooth_toolbox.text.stacked_names import is_stack, parts_of

    if not is_stack(reference):
        return [(reference, 1.0)]

    def known(name: str) -> bool:
        return folder_of(name, run_of) is not None or Path(name).is_dir()

    return parts_of(reference, known, setting=setting)


def folder_of(name: str, run_of: Callable[[str], Path | None]) -> Path | None:
    """The folder of the run that a name means; None if it means none, as a sum of runs does.

    Raises:
        UserError: where the run is kept, it is not.
    """
    from finetooth_toolbox.text.stacked_names import is_stack

    try:
        return run_of(name)
    except UserError:
        if is_stack(name):  # each of its parts is looked for by itself
            return None
        raise


def hold(chat: Conversation, reference: str, base: ModelInfo, *, setting: str) -> None:
    """Hold one adapter, or the sum of a stack, by the name that was given.

    Raises:
        UserError: as `hold_adapters`.
    """
    from finetooth_saving.run_folder import artifact_of
    from finetooth_toolbox.files.trained_over import check_base

    stack = []
    for name, weight in _parts(reference, setting, chat.run_of):
        run = chat.run_of(name)
        folder = Path(name) if run is None else artifact_of(run)
        check_base(folder, base, named=f"{setting} {name}")
        stack.append((folder, weight))
    adapter = chat.engine.hold(stack)
    if adapter is None:
        if len(stack) > 1 or stack[0][1] != 1.0 or chat.open_run is None:
            raise UserError(
                f"{setting} {reference}: a sum needs low-rank additions to linear modules only",
                action="name each adapter by itself",
            )
        chat.engines[reference] = chat.open_run(reference)
    chat.adapters[reference] = adapter


def swap(name: str, chat: Conversation, base: ModelInfo | None = None) -> None:
    """List the adapters, or let another one answer from now on; what was said stays. A stack of those that are held is
    held from then on too."""
    from finetooth_toolbox.text.nearest import nearest
    from finetooth_toolbox.text.stacked_names import is_stack

    if name == "none":
        chat.adapter = ""
    elif name in chat.adapters:
        chat.adapter = name
    elif base is not None and is_stack(name):
        try:
            hold(chat, name, base, setting="/adapter")
            chat.adapter = name
        except FinetoothError as error:
            click.echo(f"error: {error}", err=True)
    elif name:
        near = nearest(name, chat.adapters)
        click.echo(f"error: no adapter has the name {name}" + (f" (did you mean {near}?)" if near else ""), err=True)
    for adapter in ("", *chat.adapters):
        click.echo(f"{'*' if adapter == chat.adapter else ' '} {adapter or 'none'}", err=True)
