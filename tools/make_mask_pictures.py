"""Draw what trains: docs/images/mask-*.svg, from what `ft data preview` prints in colour for the rows of the guide.

    python tools/make_mask_pictures.py

The rows and the recipe are those of docs/guides/masks.md. The pictures are committed; nothing checks that they are new.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from make_picture import IMAGES, ROOT, draw, record

GUIDE = ROOT / "docs/guides/masks.md"
PICTURES = {
    "assistant": ["--row", "1"],
    "last": ["method.train_on=last", "--row", "1"],
    "parts": ["--row", "2"],
}
"""What `ft data preview recipe.yaml` is asked for, by the picture's name."""


def main() -> None:
    files = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files:
            (Path(folder) / name).write_text(text, encoding="utf-8")
        os.chdir(folder)
        for name, arguments in PICTURES.items():
            command = ["ft", "data", "preview", "recipe.yaml", *arguments]
            log = Path(folder) / f"{name}.log"
            if record(command, log):
                sys.exit(f"{' '.join(command)} failed")
            shown = log.read_bytes().decode("utf-8", "replace")
            (IMAGES / f"mask-{name}.svg").write_text(draw(" ".join(command), shown), encoding="utf-8")


if __name__ == "__main__":
    main()
