"""A link in a checkpoint's folder is neither served nor followed: whoever put it there, it may lead anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import Sampling, UserError
from finetooth_server.encryption.vault import Vault
from finetooth_server.keys import Caller
from finetooth_server.rest.downloads import artifact

ME = Caller("local", "", frozenset({"train", "sample", "read", "download"}))


@pytest.fixture
def saved(start: Any, ask: SimpleNamespace) -> SimpleNamespace:
    """A service, a model of its, and a checkpoint of that."""
    service = start()
    model = service.create_model(ME, service.open_session(ME), "tiny", {}, face="test").queue
    made = ask.result(service, ME, service.submit(ME, model, "save", {"name": "here"}, face="test"))
    return SimpleNamespace(service=service, model=model, id=made["checkpoint"])


def moved_away(place: Path, elsewhere: Path) -> None:
    """Put a link in the place of a file or folder, to where it lies from now on: whoever follows it finds the same."""
    shutil.move(place, elsewhere)
    place.symlink_to(elsewhere)


@pytest.mark.parametrize("part", ["state", "weights"])
@pytest.mark.parametrize("whole", [False, True])
def test_no_link_is_followed(
    saved: SimpleNamespace, ask: SimpleNamespace, tmp_path: Path, part: str, whole: bool
) -> None:
    service = saved.service
    folder = service.settings.folder / "checkpoints" / saved.id / part
    files = {one.name for one in artifact(service, ME, saved.id)}
    name = folder if whole else next(file for file in sorted(folder.rglob("*.safetensors")))
    moved_away(name, tmp_path / "elsewhere")

    def done(operation: str, **arguments: Any) -> Any:
        return ask.result(service, ME, service.submit(ME, saved.model, operation, arguments, face="test"))

    with pytest.raises(RuntimeError, match=r"user: .*it is a link, and none is followed"):
        done("load", checkpoint=saved.id, optimizer=part == "state")
    with pytest.raises(UserError, match="it is a link"):
        service.checkpoints.copy(service.checkpoint(ME, saved.id), tenant="other", model="other-model")
    if part == "weights":
        service.open_sampler(ME, service.open_session(ME), "sampler-1", checkpoint=saved.id)
        sampling = Sampling(max_tokens=2, temperature=0)
        with pytest.raises(RuntimeError, match=r"user: .*it is a link"):
            ask.result(service, ME, service.sample(ME, "sampler-1", [5, 6], sampling, seeded=True, face="test"))
        if whole:
            with pytest.raises(UserError, match="it is a link"):
                artifact(service, ME, saved.id)
        else:  # what is beside it is served, and it has no name
            assert {one.name for one in artifact(service, ME, saved.id)} == files - {name.name}
    service.delete_checkpoint(ME, saved.id)
    assert (tmp_path / "elsewhere").exists() and not (service.settings.folder / "checkpoints" / saved.id).exists()


def test_what_the_operator_names_may_hold_links(tmp_path: Path) -> None:
    """A folder outside the server's, such as one in a hub's cache, whose files are links."""
    (tmp_path / "blob").write_text("weights")
    outside = tmp_path / "adapter"
    outside.mkdir()
    (outside / "adapter_model.safetensors").symlink_to(tmp_path / "blob")
    with Vault(tmp_path / "server").reading(outside) as folder:
        assert (folder / "adapter_model.safetensors").read_text() == "weights"
