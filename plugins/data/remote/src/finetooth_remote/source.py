"""The source `remote`: a file is fetched, then the source for its kind reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetooth_hooks import DataError, Options, RecipeError, Row, entries
from finetooth_hooks.bases import SourceBase
from finetooth_hooks.context import Context
from finetooth_hooks.data.problems import Problems
from finetooth_hooks.protocols import Portion, Source

from finetooth_remote.address import Address, read_address
from finetooth_remote.download import Downloads


class RemoteOptions(Options):
    """Options of `remote`."""

    path: str
    """Address of a file: `https://`, `http://`, `s3://` (`gs://` and `az://` are untested). `${NAME}` in it stands for
    an environment variable, for secrets that must not be in a recipe. Credentials of a store also come from the
    environment."""
    source: str | dict[str, Any] | None = None
    """The source that reads the file, with its options. Default: the one that claims its name."""


def build(options: RemoteOptions, context: Context) -> RemoteRows:
    address = read_address(options.path)
    path = Downloads(context.cache / "remote", context.note).fetch(address)
    context.hold(path)
    pick = _reader(options.source, path, address, context)
    registered = context.catalog.get("source", pick["name"])
    inner: Source = context.build("source", pick)
    return RemoteRows(inner, path, address, registered.full_name)


def _reader(pick: str | dict[str, Any] | None, path: Path, address: Address, context: Context) -> dict[str, Any]:
    """The pick of the source for a downloaded file."""
    if pick is not None:
        named = {"name": pick} if isinstance(pick, str) else pick
        if not isinstance(named.get("name"), str):
            raise RecipeError("source remote, source", "the mapping has no 'name'", action="add name: NAME")
        return {**named, "path": str(path)}
    claims = []
    for registered in context.catalog.all("source"):
        entry = registered.entry
        claim = entry.claims(str(path)) if isinstance(entry, entries.Source) and entry.claims else None
        if claim is not None:
            claims.append((claim.strength, registered.full_name))
    best = sorted(name for strength, name in claims if strength == max(claims)[0])
    if len(best) != 1:
        problem = f"{' and '.join(best)} both claim" if best else "no installed source claims"
        raise RecipeError("source remote", f"{problem} {address.name!r}", action="pick one with source: NAME")
    return {"name": best[0], "path": str(path)}


class RemoteRows(SourceBase):
    """Rows of a fetched file; their ids and errors name the address.

    Args:
        inner: reads the file.
        path: where it is here.
        entry: full name of the entry that made `inner`.
    """

    def __init__(self, inner: Source, path: Path, address: Address, entry: str) -> None:
        self._inner, self._path, self._address = inner, path, address
        self.relies_on = (entry,)

    @property
    def capabilities(self) -> frozenset[str]:
        """Those of the inner source."""
        return self._inner.capabilities

    def files(self) -> tuple[Path, ...] | None:
        """The inner source's answer; the hash of the content names the file."""
        return self._inner.files()

    def rows(self) -> Iterator[Row]:
        """Yields the inner source's rows under the remote address.

        Raises:
            DataError: what the inner source says.
        """
        try:
            for row in self._inner.rows():
                yield self._with_address(row)
        except DataError as error:
            raise self._renamed(error) from error

    def _with_address(self, row: Row) -> Row:
        return replace(row, id=self._readdressed(row.id))

    def _renamed(self, error: DataError) -> DataError:
        where = error.where
        problem = error.problem.removeprefix(f"{where}: ") if where else error.problem
        return DataError(self._readdressed(where), self._readdressed(problem), action=self._readdressed(error.action))

    def _readdressed(self, text: str) -> str:
        return text.replace(self._path.as_posix(), self._address.shown)

    def portions(self) -> Iterator[Portion]:
        """Those of the inner source.

        Raises:
            DataError: what the inner source says.
        """
        try:
            yield from self._inner.portions()
        except DataError as error:
            raise self._renamed(error) from error

    def read(self, portion: Portion) -> Iterator[Row | DataError]:
        """The rows of a portion."""
        for item in self._inner.read(portion):
            yield self._with_address(item) if isinstance(item, Row) else self._renamed(item)

    def refusal(self, broken: Problems, good: int) -> DataError:
        """The inner source's error."""
        local = Problems(broken.count, [self._localised(error) for error in broken.first])
        return self._renamed(self._inner.refusal(local, good))

    def _localised(self, error: DataError) -> DataError:
        """An error of `read` as the inner source made it, which takes its own name off."""
        where = error.where
        problem = error.problem.removeprefix(f"{where}: ") if where else error.problem
        return DataError(where.replace(self._address.shown, self._path.as_posix()), problem, action=error.action)
