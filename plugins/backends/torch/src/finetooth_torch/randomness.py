"""Random streams keyed by their purpose, independent of what ran before.

finetooth never draws from torch's global generators. A user's loss or hook may, so they are seeded when an engine is
built, and their states are part of its state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from finetooth_hooks import UserError
from finetooth_steps.draws import stream_key
from torch import Tensor

HOST = "cpu"
SEEDED = ("cuda", "mps")
"""Kinds of accelerators with their own generators."""


@contextmanager
def seeded(device: torch.device, *keys: object) -> Iterator[None]:
    """Seed torch's generators of the host and of `device` from `keys` inside the `with` block, and restore them
    afterwards."""
    kind = device.type if device.type in SEEDED else HOST
    with torch.random.fork_rng(devices=[] if kind == HOST else [device], device_type="cuda" if kind == HOST else kind):
        seed = stream_key(*keys)
        torch.default_generator.manual_seed(seed)
        if kind == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif kind == "mps":
            torch.mps.manual_seed(seed)
        yield


def seed_global(device: torch.device, seed: int) -> None:
    """Seed torch's global generators: that of the host, and with an accelerator those of every device."""
    key = stream_key("global", seed)
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(key)
    elif device.type == "mps":
        torch.mps.manual_seed(key)


def global_states(device: torch.device) -> dict[str, Tensor]:
    """States of torch's global generators by device, (bytes,) uint8, copied to host memory."""
    states = {HOST: torch.get_rng_state()}
    if device.type == "cuda":
        states |= {f"cuda:{index}": torch.cuda.get_rng_state(index) for index in range(torch.cuda.device_count())}
    elif device.type == "mps":
        states["mps:0"] = torch.mps.get_rng_state()
    return states


def check_states(where: str, states: Mapping[str, Tensor], device: torch.device) -> None:
    """Check that `set_global` can load the states.

    Raises:
        UserError: one is not.
    """
    now = global_states(device)
    for name, state in states.items():
        kind, _, index = name.partition(":")
        known = name == HOST or (kind in SEEDED and index.isdigit())
        shape = now[name].shape if name in now else state.shape
        try:
            if not known or state.dtype != torch.uint8 or state.dim() != 1 or state.shape != shape:
                raise RuntimeError("its shape or type is not that of one")
            if name == HOST:
                torch.Generator().set_state(state)  # refuses anything else
        except (RuntimeError, TypeError) as error:
            problem = str(error).splitlines()[0]
            raise UserError(
                f"{where}: {name!r} is not a state of a random generator: {problem}", action="use another checkpoint"
            ) from error


def set_global(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore the states that `global_states` returned. States of missing devices are ignored: another machine does not
    have bit-identical random numbers anyway."""
    for name in global_states(device).keys() & states.keys():
        if name == HOST:
            torch.set_rng_state(states[name].cpu())
        elif name == "mps:0":
            torch.mps.set_rng_state(states[name].cpu())
        else:
            torch.cuda.set_rng_state(states[name].cpu(), int(name.partition(":")[2]))
