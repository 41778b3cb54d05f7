"""Finds the name that a user most likely meant by an unknown one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

PLUGIN_PREFIX = "finetooth-"
"""The common beginning of most plugins' names, which does not help to identify one."""

_CUTOFF = 0.6
_CUTOFF_OF_FEW = 0.5


def nearest(name: str, choices: Iterable[str], *, prefix: str = "") -> str | None:
    """The choice a user most likely meant, None if none is close.

    Args:
        prefix: removed from the name and the choices before the comparison, since a common beginning makes any two
            names similar.
    """
    by_rest: dict[str, str] = {}
    for choice in sorted(set(choices), reverse=True):
        by_rest[_rest(choice, prefix)] = choice
    wanted = _rest(name, prefix)
    by_form = {form(rest): choice for rest, choice in by_rest.items()}
    if form(wanted) in by_form:
        return by_form[form(wanted)]
    from difflib import get_close_matches  # imported here: a start without mistakes does not need it

    close = get_close_matches(wanted.lower(), sorted(by_rest), n=1, cutoff=_CUTOFF)
    return by_rest[close[0]] if close else None


def nearest_slip(name: str, choices: Iterable[str], cutoff: float) -> str | None:
    """The choice of which a name is a misspelling; None if none is similar enough.

    Args:
        cutoff: smallest similarity, from 0 to 1.
    """
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, list(choices), n=1, cutoff=cutoff)), None)


def nearest_few(name: str, choices: Iterable[str], count: int) -> list[str]:
    """At most `count` choices that are similar to a name, the nearest first; they may be less similar than those of
    `nearest`."""
    from difflib import get_close_matches

    return get_close_matches(name, sorted(set(choices)), n=count, cutoff=_CUTOFF_OF_FEW)


def nearest_path(path: Path, endings: Sequence[str] = ()) -> Path | None:
    """The existing file or folder that a user most likely meant by a missing `path`.

    Args:
        endings: allowed endings; default is that of `path`, or any if it has none.
    """
    endings = endings or ((path.suffix,) if path.suffix else ())
    try:
        there = sorted(sibling for sibling in path.parent.iterdir() if not endings or sibling.suffix in endings)
    except OSError:
        return None
    # the common ending would make any two names similar
    by_stem = {sibling.stem if endings else sibling.name: sibling.name for sibling in reversed(there)}
    close = nearest(path.stem if endings else path.name, by_stem)
    return None if close is None else path.parent / by_stem[close]


def is_in_folder(reference: str) -> bool:
    """Whether a reference that could be an external name (`org/name`) is inside an existing local folder, so that the
    user probably meant a path."""
    try:
        return "/" in reference and Path(reference).parent.is_dir()
    except OSError:  # too long for a path
        return False


def form(name: str) -> str:
    """A name without commonly confused characters: case, `-`, `_` and spaces."""
    return re.sub(r"[-_ ]", "", name).lower()


def _rest(name: str, prefix: str) -> str:
    return name.removeprefix(prefix) or name
