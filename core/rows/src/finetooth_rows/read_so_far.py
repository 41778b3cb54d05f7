"""Results of reading rows, portion by portion, before rendering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetooth_hooks.data.problems import Problems

from finetooth_rows.columns import Columns, merge
from finetooth_rows.tally import Tally


@dataclass
class Reading:
    """Results of reading some rows; `merge` adds those of later rows.

    Attributes:
        good: number of rows read, by source.
        broken: unreadable rows, by source.
        malformed: rows that are not of the format.
        digests: `DIGEST_BYTES` of a hash of each id, to find two rows with the same id.
        left: rows that the format left out, and the difference between the numbers of rows and examples; to be added to
            the counts of `render_rows`.
        columns: of the rows of each source.
    """

    good: dict[int, int] = field(default_factory=dict)
    broken: dict[int, Problems] = field(default_factory=dict)
    malformed: Problems = field(default_factory=Problems)
    digests: bytearray = field(default_factory=bytearray)
    left: Tally = field(default_factory=Tally)
    columns: dict[int, Columns] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """All rows read."""
        return sum(self.good.values())

    @property
    def failed(self) -> bool:
        """A row is unreadable, so the run cannot use the others."""
        return bool(self.broken or self.malformed.count)

    def merge(self, later: Reading) -> None:
        """Add the results of later rows."""
        for source, count in later.good.items():
            self.good[source] = self.good.get(source, 0) + count
        for source, problems in later.broken.items():
            self.broken.setdefault(source, Problems()).merge(problems)
        self.malformed.merge(later.malformed)
        self.digests += later.digests
        self.left.merge(later.left)
        for source, columns in later.columns.items():
            merge(self.columns.setdefault(source, {}), columns)

    def as_json(self) -> dict[str, Any]:
        """Plain data, without the digests and without `left`, which is by then part of another tally."""
        return {
            "good": list(self.good.items()),
            "broken": [(source, problems.as_json()) for source, problems in self.broken.items()],
            "malformed": self.malformed.as_json(),
            "columns": list(self.columns.items()),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], digests: bytes) -> Reading:
        """From `as_json`."""
        broken = {source: Problems.from_json(problems) for source, problems in content["broken"]}
        malformed, columns = Problems.from_json(content["malformed"]), dict(content["columns"])
        return cls(dict(content["good"]), broken, malformed, bytearray(digests), columns=columns)
