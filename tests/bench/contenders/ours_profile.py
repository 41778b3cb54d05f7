"""Where a warm step's time goes: two steps recorded by finetooth itself, `profile: {start: 2, steps: 2}`."""

from __future__ import annotations

from pathlib import Path

from meter import Meter
from ours import recipe


def main() -> None:
    """Run, and report the table that the run wrote."""
    meter = Meter()
    import finetooth

    session = finetooth.session({**recipe(meter.spec), "profile": {"start": 2, "steps": 2}})
    session.run()
    meter.write(table=(Path(session.folder) / "profile" / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
