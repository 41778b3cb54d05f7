"""Rollouts of a run as files: `rollouts/000012.jsonl` holds those that step 12 learned from first, one a line; of a
method that makes pairs of them, `rounds/0002.jsonl` holds the pairs that round 2 learned from.

A step or round that is done again after a crash writes its file again, with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import EngineError, UserError
from finetooth_hooks.rollouts import Rollout

FOLDER = "rollouts"
"""In the run folder."""

ROUNDS = "rounds"
"""In the run folder, in its place: pairs by round, of a method that makes rollouts into pairs and learns from those."""


def as_json(rollout: Rollout) -> dict[str, Any]:
    """JSON-able; numbers come back as they were. Sets of kept tokens, many of them alike, are written once each."""
    sets = {ids: place for place, ids in enumerate(dict.fromkeys(rollout.kept))}
    content = asdict(replace(rollout, kept=()))
    return {**content, "kept": [sets[ids] for ids in rollout.kept], "kept_sets": [list(ids) for ids in sets]}


def from_json(content: Mapping[str, Any]) -> Rollout:
    """Back from `as_json`, also after a way through JSON."""
    values = dict(content)
    for name in ("prompt", "tokens", "logprobs", "versions", "advantages", "own"):
        values[name] = tuple(values.get(name, ()))
    sets = [tuple(ids) for ids in values.pop("kept_sets", ())]
    values["kept"] = tuple(sets[ids] if isinstance(ids, int) else tuple(ids) for ids in values["kept"])
    values["fields"] = {name: tuple(numbers) for name, numbers in values.get("fields", {}).items()}
    return Rollout(**values)


def write_rollouts(folder: Path, step: int, rollouts: Sequence[Rollout]) -> None:
    """Write the file of a step into a run folder; it is there whole or not at all.

    Raises:
        EngineError: it cannot be written.
    """
    action = "make room, or set method.keep_rollouts=false"
    write_lines(folder / FOLDER / f"{step:06d}.jsonl", map(as_json, rollouts), action=action)


def write_lines(path: Path, lines: Iterable[Any], *, action: str = "make room") -> bytes:
    """Write a file with a line of JSON for each of `lines`; it is there whole or not at all. Returns its content.

    Args:
        action: what to do if the file cannot be written.

    Raises:
        EngineError: it cannot be written.
    """
    content, part = "".join(json.dumps(line) + "\n" for line in lines).encode(), path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror}", action=action) from error
    return content


def write_round(folder: Path, number: int, about: Mapping[str, Any], pairs: Iterable[tuple[Rollout, Rollout]]) -> str:
    """Write the file of a round into a run folder, and return its SHA-256.

    Args:
        about: for the first line; with the SHA-256 of the file before, the rounds are a chain that can be checked.
        pairs: an answer and the one that it is preferred to, for a line each.

    Raises:
        EngineError: it cannot be written.
    """
    lines = [{"id": a.id, "chosen": a.text, "rejected": b.text, "scores": [a.reward, b.reward]} for a, b in pairs]
    content = write_lines(folder / ROUNDS / f"{number:04d}.jsonl", [{"round": number, **about}, *lines])
    return hashlib.sha256(content).hexdigest()


def read_rollouts(folder: Path) -> Iterator[tuple[int, list[Rollout]]]:
    """Steps of a run folder with their rollouts, in order; nothing where none were kept.

    Raises:
        UserError: a file is damaged.
    """
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            yield int(path.stem), [from_json(json.loads(line)) for line in lines]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}", action="remove it") from error
