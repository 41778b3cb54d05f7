"""Rounds of a run as files: `rounds/0002.jsonl` holds what round 2 learned from.

The first line says what the round is and the SHA-256 of the file of the round before, so that a model's rounds are a
chain that can be checked; a line for each pair follows. A round that is begun again writes its file again, with the
same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import EngineError
from finetooth_hooks.rollouts import Rollout
from finetooth_rollouts.rollouts_file import ROUNDS


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt.

    Attributes:
        id: of the row.
        prompt, chosen, rejected: token ids.
    """

    id: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def write_round(
    folder: Path, about: Mapping[str, Any], pairs: Sequence[tuple[Rollout, Rollout]], *, parent: str
) -> str:
    """Write the file of a round into a run folder, whole or not at all; returns its SHA-256.

    Args:
        about: the round, JSON-able, its number as `round`.
        parent: the SHA-256 of the round before; empty for the first.

    Raises:
        EngineError: it cannot be written.
    """
    lines = [json.dumps({**about, "parent": parent})]
    for chosen, rejected in pairs:
        lines.append(
            json.dumps(
                {"id": chosen.id, "chosen": chosen.text, "rejected": rejected.text,
                 "scores": [chosen.reward, rejected.reward]}
            )
        )  # fmt: skip
    content = ("\n".join(lines) + "\n").encode()
    path = folder / ROUNDS / f"{about['round']:04d}.jsonl"
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror}", action="make room") from error
    return hashlib.sha256(content).hexdigest()
