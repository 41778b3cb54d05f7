"""finetooth from a checkout, for an interpreter that has torch for its GPU and no finetooth: a container's."""

from __future__ import annotations

import os
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("hooks/*", "core/*", "kernels/*", "plugins/*/*")


def environment(folder: Path, wheels: Path | None = None) -> dict[str, str]:
    """Variables with which this interpreter finds finetooth: this process's own where it is installed.

    Args:
        folder: in which entries of a `site-packages` are written.
        wheels: a folder of wheels that are unpacked in addition, before what is installed; None: none.
    """
    paths = [*_checkout(folder / "checkout")] if find_spec("finetooth") is None else []
    site = folder / "wheels/site-packages"  # by this name dill knows that modules need not be pickled
    if wheels is not None:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as content:
                content.extractall(site)
        paths.append(str(site))
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    return {**os.environ, "HF_HUB_OFFLINE": "1", **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}


def _checkout(folder: Path) -> list[str]:
    """Folders of the sources, and one with what an installation would say about them."""
    paths = [str(folder)]
    for file in sorted(file for pattern in PACKAGES for file in ROOT.glob(f"{pattern}/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        name, version = project["name"], project["version"]
        about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir(parents=True, exist_ok=True)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in project.get("dependencies", ())]
        (about / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        groups = {**project.get("entry-points", {}), "console_scripts": project.get("scripts", {})}
        text = "".join(
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
            for group, points in groups.items()
        )
        (about / "entry_points.txt").write_text(text, encoding="utf-8")
        paths.append(str(file.parent / "src"))
    return paths
