"""Random streams that are owned: keyed by what they are for, never left over from what ran before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream_key(*keys: object) -> int:
    """A 63-bit seed from any keys; the same keys give the same seed on every machine."""
    text = "\x1f".join(str(key) for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@contextmanager
def seeded(device: torch.device, *keys: object) -> Iterator[None]:
    """torch's generators of the host and of `device` start from `keys` inside, and are as before afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed = stream_key(*keys)
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
