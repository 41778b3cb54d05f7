"""A registry with one trusted key, its commands, and the runs that it gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from click.testing import CliRunner, Result
from finetooth_registry import release_gates
from finetooth_registry.command import registry as command
from finetooth_registry.registry import Registry
from finetooth_saving.artifact import write_folder

GATES = {
    "at_least": (release_gates.AtLeast, release_gates.AtLeastOptions),
    "not_worse": (release_gates.NotWorse, release_gates.NotWorseOptions),
    "signed": (release_gates.Signed, release_gates.SignedOptions),
}


def write_run(
    folder: Path,
    content: str,
    *,
    loss: float = 1.0,
    customer_data: bool | None = False,
    model: str = "tiny",
    **more: Any,
) -> Path:
    """A run folder as a run leaves it."""
    about = {"base_digest": "b" * 64, "model": model, "data": {"data.train.sha256": "d" * 64}, "plugins": {}}
    write_folder(folder / "artifact", lambda place: (place / "weights").write_text(content) and None, about)
    said = "" if customer_data is None else f", classification: {{customer_data: {str(customer_data).lower()}}}"
    (folder / "recipe.yaml").write_text(f"model: tiny\nmethod: sft\ndata: {{train: rows.jsonl{said}}}\n")
    (folder / "plan.json").write_text('{"recipe": {}}')
    (folder / "run.json").write_text('{"id": "1"}')
    result = {"status": "done", "exit_code": 0, "reason": "", "metrics": {"eval/loss": loss}, **more}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def build(kind: str, pick: Any, *, setting: str) -> Any:
    options = {} if isinstance(pick, str) else {name: value for name, value in pick.items() if name != "name"}
    make, model = GATES[pick if isinstance(pick, str) else pick["name"]]
    return make(model(**options))  # type: ignore[operator, arg-type]


class Place:
    """A registry with one trusted key, and its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder / "registry", folder / "ci.pem"
        self.runs = folder
        assert self("init", str(self.folder), bare=True).exit_code == 0
        assert self("key", str(self.key), bare=True).exit_code == 0
        assert self("trust", "ci", f"{self.key}.pub").exit_code == 0

    def __call__(self, *arguments: str, bare: bool = False) -> Result:
        context = SimpleNamespace(run_folder=lambda text: Path(text) if Path(text).is_dir() else None, build=build)
        where = () if bare else ("--registry", str(self.folder))
        return CliRunner().invoke(command, [*arguments, *where], obj=context)

    def add(self, content: str, *, sign: bool = True, **about: Any) -> Result:
        run = write_run(self.runs / f"run-{len(list(self.runs.glob('run-*')))}", content, **about)
        return self("add", str(run), "--name", "bot", *(("--key", str(self.key)) if sign else ()))

    @property
    def registry(self) -> Registry:
        return Registry(self.folder)

    def policy(self, text: str) -> None:
        (self.folder / "policy.yaml").write_text(text)


def holds(links: Iterator[Any]) -> dict[str, bool]:
    return {link.what: link.holds for link in links}
