"""Finds the entry for a reference (`model: REFERENCE`, `data.train: REFERENCE`), and explains unclaimed or misspelt
ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from finetooth_hooks.claims import Claim
from finetooth_hooks.data.examples import Row
from finetooth_hooks.entries import Loader
from finetooth_hooks.errors import DataError, RecipeError
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import Format
from finetooth_toolbox.files.missing import no_such_file, or_moved
from finetooth_toolbox.text.nearest import nearest, nearest_path

from finetooth_core.plugins.builders import options_model
from finetooth_core.plugins.catalog import Catalog, Registered
from finetooth_core.settings.recipe import Recipe

Claimed = tuple[Registered, Claim]
"""An entry, and its claim."""

_ROOTED = re.compile(r"(/|~|\.\.?(/|$))")
_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,15}\Z")
_SLICED = re.compile(r"(?P<path>.+?)(?P<part>\[[^\[\]]*\])", re.DOTALL)
_INSTEAD = {"file": "write the path alone", "hf": "write org/name"}
_NEXT = {
    "loader": "name the folder of a model, or its id at the hub: OWNER/NAME",
    "source": 'name a file or folder of rows; a row names its pictures itself: "images": ["FILE.png"]',
}
_NO_PATH = re.compile(r"[:*?\[{]")
"""A scheme (`package:x.gguf`) or a pattern (`data/*.jsonl`, `{00..09}.tar`): only its plugin knows its meaning."""

NAMED = 5
"""Number of named files of a folder."""


def unclaimed(catalog: Catalog, kind: str, reference: str, setting: str) -> RecipeError:
    """The error for a reference that no entry of `kind` claims."""
    entries = [registered.entry for registered in catalog.all(kind)]
    # a source may be picked by its bare name; a loader is in model.loader
    names = [name for entry in entries if isinstance(entry, Loader) for name in entry.names]
    near = nearest(reference, names or [entry.name for entry in entries if kind == "source"])
    meant = f"did you mean {near}?" if near else ""
    path = Path(reference)
    if _is_path(reference) and not _exists(reference):
        problem, action = no_such_file(reference)
        action = or_moved(action, reference) if setting == "model" else action
        return RecipeError(setting, problem, action=meant or action)
    scheme, _, rest = reference.partition("://")
    if rest:
        problem = f"no installed {kind} reads {scheme}:// addresses"
        action = _INSTEAD.get(scheme.lower(), "get the file yourself, and name the copy on this machine")
        return RecipeError(setting, problem, action=action)
    whole = _SLICED.fullmatch(reference)
    if kind == "source" and whole is not None and (_is_path(whole["path"]) or _exists(whole["path"])):
        problem = f"{whole['part']} behind {whole['path']} is not a slice of rows"
        return RecipeError(setting, problem, action="write [:500], [100:200], [-50:] or [:10%]")
    if not meant and not _exists(reference) and not _NO_PATH.search(reference) and nearest_path(path) is not None:
        meant = no_such_file(path)[1]
    if kind == "loader" and path.is_file():
        own = path.suffix.lower() in (".yaml", ".yml")
        problem = f"{reference} is {'a recipe' if own else 'a file'}, not a model"
        return RecipeError(setting, problem, action=f"train it first: ft run {reference}" if own else _NEXT[kind])
    installed = ", ".join(sorted(registered.full_name for registered in catalog.all(kind))) or "none"
    if path.expanduser().is_dir():
        problem = f"no installed {kind} reads the folder {reference!r}, {_contents(path.expanduser())}"
        action = meant or _NEXT.get(kind, "name the file in it")
        return RecipeError(setting, f"{problem} (installed: {installed})", action=action)
    return RecipeError(
        setting,
        f"no installed {kind} knows what {reference!r} is (installed: {installed})",
        action=meant or _NEXT.get(kind, "check the spelling"),
    )


def _contents(folder: Path) -> str:
    """The content of a folder, in a few words."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return f"which cannot be read: {error.strerror or error}"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"which holds {', '.join(names[:NAMED])}{more}" if names else "which is empty"


def claimed(recipe: Recipe, catalog: Catalog, kind: str, setting: str, reference: str, framework: str = "") -> Claimed:
    """The entry with the strongest claim on a reference of a recipe.

    Args:
        framework: only entries for it are asked; empty is all.

    Raises:
        RecipeError: no entry claims the reference, or several do equally.
        DataError: the reference is a misspelt file name.
    """
    claims: list[Claimed] = []
    for registered in catalog.speaking(kind, framework):
        claims_of = getattr(registered.entry, "claims", None)
        claim = claims_of(reference) if claims_of is not None else None
        if claim is not None:
            claims.append((registered, claim))
    strongest = max((claim.strength for _, claim in claims), default=0)
    best = [pair for pair in claims if pair[1].strength == strongest]
    if not best:
        raise unclaimed(catalog, kind, reference, setting)
    if len(best) > 1:
        names = " and ".join(sorted(registered.full_name for registered, _ in best))
        raise RecipeError(setting, f"{names} both claim {reference!r}", action="pick one by name")
    entry = best[0][0].entry
    if isinstance(entry, Loader) and reference in entry.names:
        recipe.model_is_name()
    elif strongest > 1:  # a claim by the ending of the file, which may not exist
        refuse_misspelt(reference, setting)
    return best[0]


def refuse_misspelt(reference: str, setting: str) -> None:
    """Refuse a missing file that is claimed by its ending if its folder has a file of a similar name; its source
    reports any other missing file.

    Raises:
        RecipeError: the name is probably misspelt; names the similar file.
    """
    if not _is_path(reference) or _exists(reference):
        return
    if _ENDING.search(reference) and nearest_path(Path(reference).expanduser()) is not None:
        problem, action = no_such_file(reference)
        raise RecipeError(setting, problem, action=action)


def unread(formats: Sequence[Registered], first: Row, build: Callable[[Registered, Pick], Format]) -> DataError:
    """The error for rows with columns that no installed format knows.

    Args:
        build: builds the format of a pick.
    """
    texts = [name for name, value in first.values.items() if isinstance(value, str) and not name.startswith("__")]
    action = "set data.format (or format in the source's mapping), or rename the columns"
    for registered in formats if len(texts) == 1 else ():  # a format may read that column with an option
        if "column" in options_model(registered.entry, registered.distribution).model_fields:
            pick = {"name": registered.entry.name, "column": texts[0]}
            if build(registered, pick).detect(first.values) is not None:
                shown = ", ".join(f"{key}: {value}" for key, value in pick.items())
                action = f"set data.format: {{{shown}}}, or rename the column"
    known = ", ".join(registered.entry.name for registered in formats)
    columns = ", ".join(sorted(map(str, first.values))) or "(none)"
    return DataError(first.id, f"no installed format ({known}) knows a row with the columns {columns}", action=action)


def _is_path(reference: str) -> bool:
    """Whether a reference looks like a local path, not a name."""
    if _NO_PATH.search(reference):
        return False
    in_folder = "/" in reference and _exists(str(Path(reference).parent))
    return bool(_ROOTED.match(reference) or _ENDING.search(reference)) or in_folder


def _exists(reference: str) -> bool:
    try:
        return Path(reference).expanduser().exists()
    except (OSError, RuntimeError):  # too long for a path, or ~ of an unknown user
        return False
