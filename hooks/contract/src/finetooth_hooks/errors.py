"""Errors a user can act on.

Every error states what is wrong, which setting, plugin or row is at fault, and the next action, in one line. The
command line prints that line and exits with `exit_code`; the traceback appears only with `--debug`.

    FinetoothError
    ├── UserError            exit 2: what the user wrote or gave is wrong
    │   ├── RecipeError      a setting of the recipe
    │   ├── DataError        a file or a row of data
    │   ├── PluginError      a plugin is broken, missing or ambiguous
    │   └── PlanError        a combination that cannot work
    ├── EngineError          exit 1: the run failed while training
    │   ├── NotFinite        a loss, a gradient or an output is not finite
    │   ├── Interrupted      an engine call was stopped early because the run is to stop
    │   └── UpstreamError    another server, which the engine asks, failed
    ├── StoreError           exit 1: a store could not save or return a checkpoint
    └── StopRun              a plugin ends a run cleanly, with its own exit code
"""

from __future__ import annotations


class FinetoothError(Exception):
    """Base of all errors that finetooth raises on purpose.

    Args:
        problem: what is wrong, naming the setting, plugin or row.
        action: what to do next, as an imperative sentence; appended to the line.
    """

    exit_code = 1

    def __init__(self, problem: str, *, action: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.action = action

    def __str__(self) -> str:
        return f"{self.problem} ({self.action})" if self.action else self.problem


class UserError(FinetoothError):
    """Something the user wrote or gave is wrong; exit code 2, nothing was changed."""

    exit_code = 2


class RecipeError(UserError):
    """A setting of the recipe is unknown, of the wrong type, out of range or unsafe.

    Args:
        setting: the dotted path of the setting, `train.batch_size`.
    """

    def __init__(self, setting: str, problem: str, *, action: str = "") -> None:
        super().__init__(f"{setting}: {problem}" if setting else problem, action=action)
        self.setting = setting


class DataError(UserError):
    """A data file or a row cannot be used.

    Args:
        where: file and line, or the id of the row: `train.jsonl:17`; empty if the caller adds it.
        shape: what the row looks like instead of what was expected, `text (text)`; rows of each are counted.
    """

    def __init__(self, where: str, problem: str, *, action: str = "", shape: str = "") -> None:
        super().__init__(f"{where}: {problem}" if where else problem, action=action)
        self.where = where
        self.shape = shape


class PluginError(UserError):
    """A plugin is broken, missing, blocked or ambiguous.

    Args:
        plugin: the distribution name, or the local file.
        known: whether the action gives the intended name, or the package that has it.
    """

    def __init__(self, plugin: str, problem: str, *, action: str = "", known: bool = True) -> None:
        super().__init__(f"{plugin}: {problem}" if plugin else problem, action=action)
        self.plugin = plugin
        self.known = known


class PlanError(UserError):
    """Two settings, or a setting and this machine, cannot work together."""


class EngineError(FinetoothError):
    """Training failed while it ran: a non-finite loss, a stale handle, memory; exit code 1."""


class NotFinite(EngineError):
    """A loss, a gradient or an output is not finite. The gradients of the call, or of the step, were dropped; weights
    and optimizer are as before.

    Args:
        rows: ids of the data in that computation, as far as known.
    """

    def __init__(self, problem: str, *, action: str = "", rows: tuple[str, ...] = ()) -> None:
        super().__init__(problem, action=action)
        self.rows = rows


class Interrupted(EngineError):
    """An engine call was stopped between two micro-batches at its caller's request (`Engine.interrupt_when`). The
    gradients that it had accumulated were dropped."""


class UpstreamError(EngineError):
    """A server that the engine uses cannot be reached, ended, or gave a wrong answer. The request was not at fault, so
    a service answers with HTTP status 502, or 504 if the server was too late.

    Args:
        late: it did not answer in time.
    """

    def __init__(self, problem: str, *, action: str = "", late: bool = False) -> None:
        super().__init__(problem, action=action)
        self.late = late


class StoreError(FinetoothError):
    """A store of checkpoints could not complete an operation; exit code 1.

    Args:
        place: the store's folder or URL.
    """

    def __init__(self, place: str, problem: str, *, action: str = "") -> None:
        super().__init__(f"{place}: {problem}" if place else problem, action=action)
        self.place = place


class StopRun(Exception):
    """Raised by an event hook to end a run cleanly: what was trained is saved, the outcome is `stopped`.

    Args:
        reason: shown to the user and written to result.json.
        exit_code: the exit code of the command, 0 to 255.
    """

    def __init__(self, reason: str, exit_code: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.exit_code = exit_code


def install_command(*requirements: str, option: str = "") -> str:
    """The shell command that installs packages here, for the action of an error about a missing package.

    If finetooth runs from a clone, no index has its packages: pip gets their folders, and for an extra of `finetooth`
    the folders of the extra's packages. If the shell would find another environment's pip, the command has the full
    path of pip.

    Args:
        requirements: as pip takes them: `numpy>=2`, `finetooth-raylauncher`, `finetooth[ray]`.
        option: of pip, `--upgrade`.
    """
    import re
    import shutil
    import sys
    from os.path import relpath
    from pathlib import Path

    own = Path(sys.prefix) / ("Scripts" if sys.platform == "win32" else "bin")
    first = shutil.which("pip")
    pip = "pip" if not (own / "pip").exists() or (first and Path(first).parent == own) else relpath(own / "pip")
    words = [word for text in requirements for word in _in_clone(text) or (text,)]
    quoted = (f"'{word}'" if re.search(r"[<>=!~\[; *]", word) else word for word in words)
    return " ".join(filter(None, (pip, "install", option, *quoted)))


def _in_clone(requirement: str) -> list[str]:
    """Arguments of pip for the folders of one of our packages; empty outside a clone and for packages of others."""
    import re
    import tomllib
    from os.path import relpath
    from pathlib import Path

    named = re.match(r"(finetooth(?:-[\w-]+)?)(?:\[([^\]]*)\])?", requirement)
    clone = Path(__file__).resolve().parents[4:5]
    if named is None or not clone or not (clone[0] / "hooks/contract/pyproject.toml").is_file():
        return []
    name, extras = named.groups()
    if name == "finetooth":
        extra = tomllib.loads((clone[0] / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        stood_for = [text for wanted in (extras or "").split(",") for text in extra.get(wanted, ())]
        return [word for text in stood_for for word in _in_clone(text)]
    for file in (*clone[0].glob("*/*/pyproject.toml"), *clone[0].glob("plugins/*/*/pyproject.toml")):
        if f'name = "{name}"' in file.read_text("utf-8"):
            return ["-e", relpath(file.parent) + (f"[{extras}]" if extras else "")]
    return []
