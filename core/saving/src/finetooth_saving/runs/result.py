"""What `finetooth.run` returns: the outcome of a run, with its numbers as a table."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from finetooth_hooks.errors import UserError, install_command
from finetooth_hooks.reports import Outcome

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Result(Outcome):
    """What `finetooth.run` returns: the outcome, and its numbers as a table."""

    @staticmethod
    def of(outcome: Outcome) -> Result:
        """The same outcome."""
        return Result(**{field.name: getattr(outcome, field.name) for field in fields(Outcome)})

    @property
    def frame(self) -> pandas.DataFrame:
        """Every step with its metrics as a pandas data frame, `rows()` by `step`. This call imports pandas.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError(
                "a data frame needs pandas", action=f"{install_command('pandas')}, or take rows()"
            ) from error
        rows = self.rows()
        return pandas.DataFrame(rows, columns=None if rows else ["step"]).set_index("step")
