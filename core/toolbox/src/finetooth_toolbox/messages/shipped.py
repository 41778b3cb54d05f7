"""Files next to weights and tokenizer with which other tools prompt a model as its run does.

A run may train with another markup than its base's. Its chat template, the tokens that end its answers and its usual
opening are then written to the files that other tools read: `chat_template.jinja`, `tokenizer_config.json` and
`generation_config.json`, in transformers' layout.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import DataError, UserError
from finetooth_hooks.protocols import Renderer, Tokenizer
from finetooth_toolbox.messages import openings
from finetooth_toolbox.messages.chat_templates import shaped
from finetooth_toolbox.messages.openings import Opening
from finetooth_toolbox.messages.written_templates import PROBES

TEMPLATE, TOKENIZER, GENERATION = "chat_template.jinja", "tokenizer_config.json", "generation_config.json"


def ship(
    folder: Path, template: str | None, renderer: Renderer, tokenizer: Tokenizer, opening: Opening, *, ends: bool,
    text: bool,
) -> str:  # fmt: skip
    """Write these files into the folder of a saved tokenizer.

    Args:
        template: a template with the renderer's tokens; None without one.
        opening: the common beginning of the rows.
        ends: whether the model writes answers; a model that gives scores has no end tokens.
        text: rows without messages train too: they end with the tokenizer's own end-of-text token, which then stays.

    Returns:
        One sentence about the missing information for other tools; empty if complete.
    """
    for name in (TEMPLATE, TOKENIZER):  # the base's template would have another markup than the training
        _drop_template(folder / name)
    if template is not None:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
    opening.write(folder)
    if ends and renderer.stop_ids:
        _write_ends(folder, renderer.stop_ids, "" if text else tokenizer.decode(renderer.stop_ids[:1]))
    if template is not None:
        return ""
    return (
        "no chat template can express what the run's renderer writes, so the model is saved without one: other "
        "tools do not know its prompts; ft chat and ft serve do"
    )


def carry(artifact: Path, folder: Path) -> None:
    """Copy these files, and the settings of the media processor, from an artifact to a model that was made from it."""
    speaks = (artifact / openings.FILE).is_file()  # otherwise a foreign artifact, or one from rows without messages
    for name in (TEMPLATE, TOKENIZER) if speaks else ():
        _drop_template(folder / name)
    for pattern in ("*processor_config.json", *((TEMPLATE, openings.FILE) if speaks else ())):
        for file in artifact.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    if speaks and (stops := stops_of(artifact)):
        _write_ends(folder, stops, str(_spelling(_read(artifact / TOKENIZER).get("eos_token")) or ""))


def check(
    artifact: Path, renderer: Renderer, prompt: Callable[[Sequence[Mapping[str, Any]]], Sequence[int] | None],
    stops: Sequence[int],
) -> str:  # fmt: skip
    """Compare the files with the run, by reading them as other tools do.

    Args:
        prompt: returns tokens of a question by the written template; None if the template refuses it.
        stops: the ids at which other tools end an answer.

    Returns:
        The comparison in one clause; empty for a run without conversations.

    Raises:
        UserError: other tools would prompt with other tokens than the run, or end answers at other tokens.
    """
    if not (artifact / openings.FILE).is_file():
        return ""
    missing = [stop for stop in renderer.stop_ids if stop not in stops]
    if missing and stops_of(artifact):
        raise UserError(f"token {missing[0]} ends answers of the run, but not of the written model", action="report it")
    if not (artifact / TEMPLATE).is_file():
        return "it has no chat template: none can express what the run's renderer writes"
    opening, compared = openings.read_opening(artifact), 0
    for probe in PROBES:
        try:
            wanted = tuple(renderer.prompt(opening.before(probe)))
        except DataError:
            continue  # the markup has no system message
        tokens = prompt([shaped(message) for message in probe])
        if tokens is None and probe[0].role == "system" and not opening.system:
            continue  # a refusal misleads nobody
        if tuple(tokens or ()) != wanted:
            raise UserError("the written chat template opens an answer differently from the run", action="report it")
        compared += 1
    return f"{compared} conversations begin and end with its own chat template and end tokens as in the run"


def stops_of(folder: Path) -> tuple[int, ...]:
    """Ids of the tokens that end an answer, by `generation_config.json`; none if it names none."""
    path = folder / GENERATION
    ends = _read(path).get("eos_token_id") if path.is_file() else None
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),)


def _write_ends(folder: Path, stops: Sequence[int], spelling: str) -> None:
    """Write the end tokens of answers to the files that libraries read; change the tokenizer's own end of text only if
    `spelling` is given."""
    generation = folder / GENERATION
    known = _read(generation) if generation.is_file() else {}
    _write(generation, {**known, "eos_token_id": stops[0] if len(stops) == 1 else list(stops)})
    for name in (TOKENIZER, "special_tokens_map.json"):
        if spelling and (folder / name).is_file():
            content = _read(folder / name)
            if _spelling(content.get("eos_token")) != spelling:
                _write(folder / name, {**content, "eos_token": spelling})


def _drop_template(path: Path) -> None:
    if path.name == TEMPLATE:
        path.unlink(missing_ok=True)
    elif path.is_file() and "chat_template" in (content := _read(path)):
        _write(path, {name: value for name, value in content.items() if name != "chat_template"})


def _spelling(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
