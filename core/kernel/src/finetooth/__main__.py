"""`python -m finetooth` is `ft`."""

from __future__ import annotations

import sys

from finetooth_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
