"""What to set instead of an entry that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks.entries import Entry
from finetooth_toolbox.text.nearest import nearest

SETTINGS = {"loader": "model.loader", "quantizer": "quantization"}
"""Settings of entries that are not called by their kind."""


def instead(kind: str, name: str, able: Iterable[Entry]) -> str:
    """The action of a refusal: the usable entry that is most like the refused one and the default, else all.

    Args:
        name: of the refused entry, bare or full; empty: nothing is like it.
        able: entries that can be used, without the refused one.
    """
    by_name = {entry.name: entry for entry in able}
    bare = name.rpartition(":")[2]
    shared = {other: _shared(bare, other) for other in by_name}
    alike = max(shared, key=shared.__getitem__, default="")
    close = alike if shared.get(alike, 0) > 0 else nearest(bare, by_name)
    default = next((other for other, entry in by_name.items() if entry.default), None)
    names = [*dict.fromkeys(other for other in (close, default) if other)] or sorted(by_name)
    return f"set {SETTINGS.get(kind, kind)} to {' or '.join(names)}" if names else f"pick another {kind} or backend"


def runs_on(entry: Entry, device: str) -> bool:
    """Whether an optimizer runs on a device (`cuda:0`): it declares no types of devices, or this one's among others."""
    devices = getattr(entry, "devices", ())
    return not devices or device.partition(":")[0] in devices


def _shared(name: str, other: str) -> int:
    """How many words of another name are in a name, less those that are not: `lion_8bit` is like `lion` rather than
    `galore_8bit`."""
    words = other.split("_")
    return sum(1 if word in name.split("_") else -1 for word in words)
