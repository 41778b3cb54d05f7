"""Draw the page of `ft data preview --html`: docs/images/preview.png, for the first row of docs/guides/masks.md.

    python tools/make_page_picture.py [--browser chromium]

Needs a browser of Chromium's kind. The picture is committed; nothing checks that it is new.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from make_picture import IMAGES, ROOT

GUIDE = ROOT / "docs/guides/masks.md"
SIZE = "960,520"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", default="chromium")
    browser = parser.parse_args().browser
    files = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files:
            (Path(folder) / name).write_text(text, encoding="utf-8")
        preview = ["ft", "data", "preview", "recipe.yaml", "--row", "1", "--html", "page.html"]
        subprocess.run(preview, cwd=folder, check=True)
        shot = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={SIZE}"]
        target = f"--screenshot={IMAGES / 'preview.png'}"
        page = (Path(folder) / "page.html").as_uri()
        subprocess.run([browser, *shot, f"--user-data-dir={folder}/browser", target, page], check=True)


if __name__ == "__main__":
    main()
