"""Small wrong changes to the code, by name, and which tests have to notice them.

A list is a TOML file beside this one, named for its part of the house:

    [[mutant]]
    name = "one nonce for all values"
    file = "plugins/services/server/src/finetooth_server/encryption/values.py"
    old = "nonce = secrets.token_bytes(NONCE)"
    new = "nonce = bytes(NONCE)"
    tests = ["plugins/services/server/tests/test_server_encryption.py"]
    only = "nonce"              # optional: pytest's -k
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Mutant:
    """One small wrong change.

    Attributes:
        part: name of its list.
        file: from the workspace's root.
        old: stands in the file once.
        new: what it becomes.
        tests: files or folders that have to notice it, from the root.
        only: which of their tests, as pytest's `-k` takes it; empty for all.
    """

    part: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    only: str = ""

    def applied(self, text: str) -> str:
        """The file's text with the change in it.

        Raises:
            ValueError: the place is not there, or not only once, so that the list has to follow the code.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.part}: {self.name}: {self.file} has its place {count} times, not once")
        return text.replace(self.old, self.new)


def read(folder: Path = LISTS) -> list[Mutant]:
    """All lists, in the order of their names.

    Raises:
        ValueError: an entry has a key too many or too few, or a name stands twice.
    """
    found: dict[tuple[str, str], Mutant] = {}
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text())["mutant"]:
            try:
                mutant = Mutant(path.stem, **{**entry, "tests": tuple(entry["tests"])})
            except (TypeError, KeyError) as error:
                raise ValueError(f"{path.name}: {entry.get('name', entry)}: {error}") from error
            if (mutant.part, mutant.name) in found:
                raise ValueError(f"{path.name}: {mutant.name} stands twice")
            found[mutant.part, mutant.name] = mutant
    return list(found.values())
