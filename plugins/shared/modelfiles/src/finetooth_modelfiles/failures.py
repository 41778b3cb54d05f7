"""Turns exceptions of transformers and the hub client into one line for the user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import SimpleNamespace

from finetooth_hooks import FinetoothError, RecipeError, install_command
from finetooth_toolbox import blame
from finetooth_toolbox.files.hub import why_unreachable
from finetooth_toolbox.text.nearest import is_in_folder, nearest_path

OFFLINE = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "ConnectTimeout"}
OFFLINE |= {"ReadTimeout", "Timeout", "TimeoutException", "ProxyError", "SSLError"}
ABSENT = {"RepositoryNotFoundError", "HFValidationError"}
CAUSES = (
    (
        {"GatedRepoError"},
        "needs an agreement on the hub",
        "accept its terms on its page and log in: hf auth login",
    ),
    ({"RevisionNotFoundError"}, "has no such revision", "check model.loader.revision"),
    (
        OFFLINE,
        "is not on this machine, and the model hub cannot be reached{why}",
        "name a local folder; or where there is a network: hf download {reference} --local-dir FOLDER, and here "
        "model: FOLDER",
    ),
    (ABSENT, "is not a model of the hub", "check the spelling; for a local folder, its path"),
    ({"EntryNotFoundError", "RemoteEntryNotFoundError"}, "has no {part}", "choose another model"),
)
"""Names of the exceptions at the root, most telling first; the hub client moved them between modules and versions."""


@contextmanager
def explained(reference: str, *, part: str = "config.json") -> Iterator[None]:
    """Turn any failure inside into a `RecipeError` about `model`.

    Args:
        part: the part that was read.
    """
    try:
        yield
    except FinetoothError:
        raise
    except Exception as error:  # the libraries raise OSError, ValueError, KeyError, ... for what a user can fix
        if _is_of_another_plugin(error):
            raise
        raise _explain(reference, part, error) from error


def _explain(reference: str, part: str, error: BaseException) -> RecipeError:
    names = _names(error)
    for known, problem, action in CAUSES:
        if names & known:
            why = why_unreachable() if known is OFFLINE else ""
            fill = {"part": part, "reference": reference, "why": f" ({why})" if why else ""}
            close = nearest_path(Path(reference)) if known in (OFFLINE, ABSENT) else None
            if known in (OFFLINE, ABSENT) and is_in_folder(reference):  # a path is meant
                action = f"did you mean {close.as_posix()}?" if close else "check the path"
                problem = f"no such folder: {reference}; as a name of the hub it {problem.format(**fill)}"
                return RecipeError("model", problem, action=action)
            meant = f"did you mean {close.as_posix()}? Else " if close else ""
            return RecipeError("model", f"{reference} {problem.format(**fill)}", action=meant + action.format(**fill))
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return RecipeError(
            "model",
            f"{reference} comes with Python code of its own, which is not run",
            action="read that code, then set model.loader: {name: transformers, trust_remote_code: true}",
        )
    if "Should have a `model_type` key" in text:
        action = "write its model_type into config.json, such as llama, or choose another model"
        return RecipeError("model", f"{reference}: its config.json names no model_type", action=action)
    sentence = text.split(". ")[0][:200] or type(error).__name__
    action = "check that it is whole"
    if "does not recognize this architecture" in text:
        action = "install a plugin whose family registers it, or load one with --plugins (see ft plugins new)"
    if missing := re.search(r"requires the ([\w-]+) library", text):
        action = f"install it: {install_command(missing[1])}"
    return RecipeError("model", f"{reference}: its {part} cannot be read: {sentence}", action=action)


def _is_of_another_plugin(error: Exception) -> bool:
    """Whether it was raised by another plugin than the loader that reads: by a quantizer that it called, say."""
    culprit = blame.blamed(error)
    codes = (SimpleNamespace(__code__=frame.f_code) for frame, _ in walk_tb(error.__traceback__))
    return culprit is not None and culprit.plugin != next(filter(None, map(blame.owner_of, codes)), culprit.plugin)


def _names(error: BaseException) -> set[str]:
    """Class names of an exception, its causes, and their bases."""
    names: set[str] = set()
    seen: BaseException | None = error
    while seen is not None:
        names |= {cls.__name__ for cls in type(seen).__mro__}
        seen = seen.__cause__ or seen.__context__
    return names
