"""Addresses of files, whose secrets never appear in messages."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from finetooth_hooks import RecipeError
from finetooth_toolbox.text.environment import expand, hide

from finetooth_remote.plugin import SCHEMES

SECRET = re.compile(
    r"(?i)^(sig|signature|.*[-_]signature|.*token|.*credential.*|.*secret.*|password|passwd|key|api[-_]?key|"
    r".*access[-_]?key.*)$"
)
"""Names of parameters in an address that give access."""
NAME_BYTES = 200
SETTING = "source remote, path"


@dataclass(frozen=True)
class Address:
    """The address of a file.

    Attributes:
        shown: the recipe's text, with `${NAME}` for values of the environment; for messages and ids of rows.
        scheme: `https`, `s3`.
        name: of the file, which determines its format.
        key: of its place in the cache, 64 hexadecimal digits; the same for every caller.
    """

    shown: str
    scheme: str
    name: str
    key: str

    @property
    def full(self) -> str:
        """As it is requested; holds secrets."""
        return expand(self.shown, SETTING)

    def hide(self, message: str) -> str:
        """A message without the secrets."""
        return hide(message.replace(self.full, self.shown), self.shown)


def read_address(text: str) -> Address:
    """Read the address of a file.

    Raises:
        RecipeError: the text is not an address, names no file, holds a secret, or a variable is missing.
    """
    full = expand(text, SETTING)
    scheme = full.partition("://")[0].lower()
    if "://" not in full or scheme not in SCHEMES:
        raise RecipeError(
            SETTING, "it is not an address of a file", action=f"begin it with {', '.join(SCHEMES)} and ://"
        )
    own, parts = urlsplit(text), urlsplit(full)
    _refuse_secrets(text)
    # object stores take any character in a name
    path = unquote(parts.path) if scheme.startswith("http") else full.partition("://")[2]
    name = PurePosixPath(path).name
    if name in ("", "..") or path.endswith("/") or (not scheme.startswith("http") and "/" not in path):
        raise RecipeError(SETTING, f"{own.scheme}://{own.netloc}{own.path} names no file", action="name one file")
    if len(name.encode()) > NAME_BYTES or not name.isprintable():
        raise RecipeError(SETTING, f"no file here can have the name {name[:50]!a}", action="give the file another name")
    parameters = [part for part in parts.query.split("&") if not SECRET.match(part.partition("=")[0])]
    where = f"{scheme}://{parts.netloc.rpartition('@')[2]}/{path}?{'&'.join(parameters)}"
    return Address(text, scheme, name, hashlib.sha256(where.encode("utf-8", "surrogatepass")).hexdigest())


def _refuse_secrets(text: str) -> None:
    """Refuse secrets in a recipe, since run folders, plans and logs contain its text."""
    parts = urlsplit(text)
    parameters = [part.partition("=") for part in parts.query.split("&")]
    secret = [name for name, _, value in parameters if SECRET.match(name) and value and "${" not in value]
    password = parts.netloc.rpartition("@")[0].partition(":")[2]
    if password and "${" not in password:
        secret.append("a password")
    if secret:
        raise RecipeError(
            SETTING,
            f"the address holds {secret[0]}, which a recipe must not keep",
            action="put the value in an environment variable and write ${NAME} in its place",
        )
