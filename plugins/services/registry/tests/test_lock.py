"""A version keeps the environment that trained it as a lock file, and pip makes the same environment of it."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from finetooth_hooks import UserError
from finetooth_registry import locking
from finetooth_registry.command import registry
from finetooth_registry.locking import Locked
from finetooth_saving.artifact import write_folder

ENVIRONMENT = {"python": platform.python_version()}


class Place:
    """A registry that accepts everything, and its commands."""

    def __init__(self, folder: Path) -> None:
        self.where = folder / "registry"
        assert self("init", str(self.where), bare=True).exit_code == 0
        (self.where / "policy.yaml").write_text("{}")

    def __call__(self, *arguments: str, bare: bool = False) -> Result:
        context = SimpleNamespace(run_folder=lambda text: Path(text))
        where = () if bare else ("--registry", str(self.where))
        return CliRunner().invoke(registry, [*arguments, *where], obj=context)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def write_run(folder: Path, torch: str) -> Path:
    """A run folder that says with which torch it trained."""
    about = {"base_digest": "b" * 64, "plugins": {}, "environment": {**ENVIRONMENT, "torch": torch}}
    write_folder(folder / "artifact", lambda to: (to / "weights").write_text("w") and None, about)
    (folder / "recipe.yaml").write_text("model: tiny\n")
    (folder / "result.json").write_text('{"status": "done", "exit_code": 0}')
    return folder


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages: from an index, from a file with its hash, from a folder of sources."""
    for name, version, source in (
        ("torch", "2.13.0+cpu", None),
        ("Acme_Rewards", "1.2", {"url": "file:///a.whl", "archive_info": {"hashes": {"sha256": "a" * 64}}}),
        ("finetooth-core", "0.1.0", {"url": "file:///src", "dir_info": {"editable": True}}),
    ):
        install(tmp_path / "site", name, version, source)
    monkeypatch.setattr(locking, "distributions", lambda: metadata.distributions(path=[str(tmp_path / "site")]))
    return tmp_path / "site"


def install(site: Path, name: str, version: str, source: Any = None) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if source:
        (folder / "direct_url.json").write_text(json.dumps(source))


def wheel(folder: Path, name: str, version: str, body: str) -> str:
    """Write a wheel; returns its SHA-256."""
    folder.mkdir(exist_ok=True)
    file, about = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(f"{name}.py", body)
        packed.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        packed.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_is_installed_stands_in_it_with_the_hashes_that_pip_recorded() -> None:
    text = locking.text_of(locking.installed())
    assert text.splitlines()[2:] == [
        f"acme-rewards==1.2 --hash=sha256:{'a' * 64}",
        "# from a folder: finetooth-core==0.1.0",
        "torch==2.13.0+cpu",
    ]
    assert locking.read(text, "lock") == locking.installed()
    assert locking.python_of(text) == platform.python_version()


def test_a_version_keeps_the_lock_file_of_its_run(place: Place, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "2.13.0+cpu")
    assert place("add", str(run), "--name", "bot").output == "bot@v0 registered, not signed (--key FILE signs it)\n"
    assert place("lock", "bot@v0").output == locking.text_of(locking.installed())
    assert place("lock").output == place("lock", "bot@v0").output
    assert place("get", "bot@v0", str(tmp_path / "out")).exit_code == 0
    assert (tmp_path / "out/requirements.lock").read_text() == place("lock").output


def test_a_lock_file_that_is_not_the_run_s_is_not_kept(place: Place, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", "2.12.0")
    said = place("add", str(other), "--name", "bot")
    assert "no lock file: torch is 2.13.0+cpu, and the run had 2.12.0" in said.output and not said.exit_code
    assert "was registered without a lock file" in str(place("lock", "bot@v0").exception)
    (tmp_path / "mine").write_text("torch==2.13.0+cpu\n")
    said = place("add", str(other), "--name", "bot", "--lock", str(tmp_path / "mine"))
    assert isinstance(said.exception, UserError) and "torch is 2.13.0+cpu, and the run had 2.12.0" in str(
        said.exception
    )
    (tmp_path / "mine").write_text(f"# Python {platform.python_version()} on x\ntorch==2.12.0\n")
    assert place("add", str(other), "--name", "bot", "--lock", str(tmp_path / "mine")).exit_code == 0
    assert place("lock", "bot@v1").output.endswith("torch==2.12.0\n")


@pytest.mark.parametrize("line", ["-r other.txt", "torch", "torch>=2", "torch==2 --hash=sha256:00", "--index-url x"])
def test_a_line_that_pip_would_read_otherwise_is_refused(line: str) -> None:
    with pytest.raises(UserError, match="lock:2: not NAME==VERSION"):
        locking.read(f"a==1\n{line}\n", "lock")


def test_a_file_without_a_distribution_is_no_lock_file() -> None:
    with pytest.raises(UserError, match=r"lock names no distribution \(take a file that ft registry lock wrote\)"):
        locking.read("# a comment\n", "lock")


@pytest.mark.parametrize("recipe", [b"model: [\n", b"model: caf\xe9\n"])
def test_a_damaged_recipe_is_one_line(place: Place, tmp_path: Path, recipe: bytes) -> None:
    run = write_run(tmp_path / "run", "2.13.0+cpu")
    (run / "recipe.yaml").write_bytes(recipe)
    said = str(place("add", str(run), "--name", "bot").exception)
    assert "recipe.yaml: cannot be read" in said and "\n" not in said


def test_a_changed_environment_is_named(site: Path) -> None:
    before = locking.installed()
    install(site, "numpy", "2.1")
    (site / "torch-2.13.0+cpu.dist-info").rename(site / "torch-2.14.0.dist-info")
    (site / "torch-2.14.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.14.0\n")
    assert locking.differing(before, locking.installed()) == {
        "numpy": ("", "2.1"), "torch": ("2.13.0+cpu", "2.14.0")
    }  # fmt: skip
    changed = [Locked("acme-rewards", "1.2", "b" * 64)]
    assert locking.differing(before[:1], changed) == {"acme-rewards": ("1.2 aaaaaaaaaaaa", "1.2 bbbbbbbbbbbb")}
    assert not locking.differing(before[:1], [Locked("acme-rewards", "1.2")]), "an unknown hash differs from none"


def test_what_cannot_be_installed_is_one_line(tmp_path: Path) -> None:
    text = locking.text_of([Locked("torch", "2")])
    for given, said in (
        (text, "no hash of torch"),
        (text.replace(platform.python_version(), "2.7.1"), "is of Python 2.7.1"),
    ):
        with pytest.raises(UserError, match=said):
            locking.install(given, "bot@v0", tmp_path / "env")
    assert not (tmp_path / "env").exists()
    with pytest.raises(UserError, match="exists"):
        locking.install(text, "bot@v0", tmp_path)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of wheels that pip takes for its index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    yield tmp_path / "wheels"


@pytest.mark.slow
def test_pip_makes_the_environment_of_it_and_refuses_a_changed_archive(index: Path, tmp_path: Path) -> None:
    sha256 = wheel(index, "acme", "1.0", "answer = 42\n")
    here = [Locked("acme", "1.0"), Locked("lacking", "3"), Locked("own", "0.1", folder=True)]
    known = locking.with_index_hashes(here)
    assert known == (Locked("acme", "1.0", sha256), *here[1:])
    text = locking.text_of([known[0], known[2]])
    assert locking.install(text, "bot@v0", tmp_path / "env") == (here[2],)
    done = subprocess.run(
        [tmp_path / "env/bin/python", "-c", "import acme; print(acme.answer)"], capture_output=True, text=True
    )
    assert done.stdout == "42\n"
    wheel(index, "acme", "1.0", "answer = 43\n")
    with pytest.raises(UserError, match=r"the archive of acme==1.0 has not the hash"):
        locking.install(text, "bot@v0", tmp_path / "other")
