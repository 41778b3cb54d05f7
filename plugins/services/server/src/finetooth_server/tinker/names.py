"""Ids and paths of the Tinker protocol, which the client also builds and parses.

SESSION:train:N                             a model
SESSION:sample:N                            weights to sample from
tinker://MODEL/weights/NAME                 everything that trains
tinker://MODEL/sampler_weights/NAME         enough to sample from
tinker://MODEL/external_weights/NAME        files for programs elsewhere
"""

from __future__ import annotations

from finetooth_server.faults import Unknown
from finetooth_server.keeping.checkpoints import EXTERNAL, STATE, WEIGHTS, Checkpoint
from finetooth_server.keys import Caller
from finetooth_server.service import Service

SCHEME = "tinker://"
PARTS = {"weights": STATE, "sampler_weights": WEIGHTS, "external_weights": EXTERNAL}
"""Kinds of checkpoints by the middle part of a path."""


def model_id(session: str, number: int) -> str:
    """The id, which the client computes too."""
    return f"{session}:train:{number}"


def sampler_id(session: str, number: int) -> str:
    """The id of a sampling session."""
    return f"{session}:sample:{number}"


def path_of(model: str, kind: str, name: str) -> str:
    """A checkpoint's path."""
    part = next(part for part, ours in PARTS.items() if ours == kind)
    return f"{SCHEME}{model}/{part}/{name}"


def find(service: Service, caller: Caller, path: object, *, public: bool = True) -> Checkpoint:
    """The checkpoint at a path: the caller's own, or a public one.

    Args:
        public: False finds only the caller's own.

    Raises:
        Unknown: there is none, or it is another tenant's.
    """
    parts = path.removeprefix(SCHEME).split("/") if isinstance(path, str) and path.startswith(SCHEME) else []
    if len(parts) != 3 or parts[1] not in PARTS:
        raise Unknown(f"no checkpoint {path!r}", action=f"give a path {SCHEME}MODEL/weights/NAME")
    return service.named_checkpoint(caller, parts[0], PARTS[parts[1]], parts[2], public=public)
