"""What to say of a reference (`model: REFERENCE`, `data.train: REFERENCE`) that nobody claims, or that is misspelt."""

from __future__ import annotations

import re
from pathlib import Path

from finetooth_hooks.entries import Loader
from finetooth_hooks.errors import RecipeError

from finetooth_core.catalog import Catalog
from finetooth_core.nearest import nearest, nearest_path

_ROOTED = re.compile(r"(/|~|\.\.?(/|$))")
_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,15}\Z")
_NO_PATH = re.compile(r"[:*?\[{]")
"""A scheme (`package:x.gguf`) or a pattern (`data/*.jsonl`, `{00..09}.tar`): only its plugin knows what it means."""


def unclaimed(catalog: Catalog, kind: str, reference: str, setting: str) -> RecipeError:
    """The error for a reference that no entry of `kind` knows."""
    entries = [registered.entry for registered in catalog.all(kind)]
    # a source may be picked by its bare name; a loader stands under model.loader
    names = [name for entry in entries if isinstance(entry, Loader) for name in entry.names]
    near = nearest(reference, names or [entry.name for entry in entries if kind == "source"])
    meant = f"did you mean {near}?" if near else ""
    path = Path(reference)
    if _is_path(reference) and not _exists(reference):
        close = nearest_path(path)
        meant = meant or (f"did you mean {close}?" if close else "check the path")
        return RecipeError(setting, f"no such {'file' if path.suffix else 'folder or file'}: {reference}", action=meant)
    installed = ", ".join(sorted(registered.full_name for registered in catalog.all(kind))) or "none"
    return RecipeError(
        setting,
        f"no installed {kind} knows what {reference!r} is (installed: {installed})",
        action=meant or "check the spelling, or give a mapping with name: NAME",
    )


def refuse_misspelt(reference: str, setting: str) -> None:
    """A file that is claimed by its ending and is not there, with one of nearly its name beside it; what else may be
    missing, whoever claimed it says.

    Raises:
        RecipeError: names the file that was probably meant.
    """
    if not _is_path(reference) or _exists(reference):
        return
    close = nearest_path(Path(reference).expanduser()) if _ENDING.search(reference) else None
    if close is not None:
        raise RecipeError(setting, f"no such file: {reference}", action=f"did you mean {close}?")


def _is_path(reference: str) -> bool:
    """Whether a reference looks like a path on this machine rather than a name."""
    if _NO_PATH.search(reference):
        return False
    in_folder = "/" in reference and _exists(str(Path(reference).parent))
    return bool(_ROOTED.match(reference) or _ENDING.search(reference)) or in_folder


def _exists(reference: str) -> bool:
    try:
        return Path(reference).expanduser().exists()
    except (OSError, RuntimeError):  # too long for a path; ~ of nobody
        return False
