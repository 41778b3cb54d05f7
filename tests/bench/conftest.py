"""The harness is no installed package: its tests see it beside them."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE / "contenders"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
