"""Makes the test plugins in `plugins/` importable, and engines of the toy."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "plugins"))
