"""Folders that are whole or absent, whatever happens in between."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from finetooth_disk.plugin import claims
from finetooth_disk.store import DiskOptions, DiskStore, build
from finetooth_hooks import RecipeError, StoreError
from finetooth_kit import FakeContext
from finetooth_kit.entries.store import whole_checkpoint


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def hidden(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".")]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "kept"


@pytest.fixture
def store(root):
    return DiskStore(root)


def test_what_the_core_staged_is_renamed(store, root):
    """No copy: the same file, and the staging folder is gone."""
    staged = whole_checkpoint(root / ".step-1.abc")
    before, inode = content(staged), (staged / "state.json").stat().st_ino
    store.put("step-1", staged)
    assert (root / "step-1/state.json").stat().st_ino == inode
    assert content(root / "step-1") == before
    assert hidden(root) == []
    assert (root / "step-1").stat().st_mode & 0o777 == 0o755


def test_a_staged_folder_that_is_broken_stays_where_it_is(store, root):
    staged = whole_checkpoint(root / ".step-1.abc")
    (staged / "state.json").write_text("{}")
    with pytest.raises(StoreError, match=r"step-1 cannot be kept: state\.json has 2 bytes"):
        store.put("step-1", staged)
    assert store.names() == []
    assert staged.is_dir()


def test_a_kept_checkpoint_is_no_staging_folder(store, root, tmp_path):
    store.put("step-1", whole_checkpoint(tmp_path / "made"))
    store.put("step-2", root / "step-1")
    assert sorted(store.names()) == ["step-1", "step-2"]


@pytest.mark.parametrize("link", [True, False])
def test_files_are_linked_if_wanted(link, root, tmp_path):
    made = whole_checkpoint(tmp_path / "made")
    DiskStore(root, link=link).put("step-1", made)
    assert (made / "state.json").samefile(root / "step-1/state.json") == link
    assert not (made / "manifest.json").samefile(root / "step-1/manifest.json")


def test_without_links_it_copies(store, root, tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    made = whole_checkpoint(tmp_path / "made")
    store.put("step-1", made)
    assert content(root / "step-1") == content(made)


def test_only_folders_with_a_manifest_are_named(store, root, tmp_path):
    store.put("step-1", whole_checkpoint(tmp_path / "made"))
    whole_checkpoint(root / ".hidden")
    whole_checkpoint(root / "half")
    (root / "half/manifest.json").unlink()
    (root / "latest").symlink_to(root / "step-1")
    (root / "notes.txt").write_text("mine")
    assert store.names() == ["step-1"]


def test_a_damaged_one_is_replaced_by_the_same(store, root, tmp_path):
    made = whole_checkpoint(tmp_path / "made")
    DiskStore(root, link=False).put("step-1", made)
    (root / "step-1/state.json").write_text("{}")
    store.put("step-1", made)
    assert content(root / "step-1") == content(made)
    assert hidden(root) == []


def test_a_damaged_one_is_not_given_up_for_another_damaged_one(store, root, tmp_path):
    made = whole_checkpoint(tmp_path / "made")
    DiskStore(root, link=False).put("step-1", made)
    (root / "step-1/state.json").write_text("{}")
    (made / "engine/fake.txt").write_text("1")
    with pytest.raises(StoreError, match=r"engine/fake\.txt differs"):
        store.put("step-1", made)
    assert store.names() == ["step-1"]


def test_what_is_in_the_way_is_not_touched(store, root, tmp_path):
    (root / "step-1").mkdir(parents=True)
    (root / "step-1/mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="in the way and no checkpoint"):
        store.put("step-1", whole_checkpoint(tmp_path / "made"))
    assert (root / "step-1/mine.txt").read_text() == "mine"


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../b", "a\\b", "c:/d", ".x", "manifest.json"])
def test_a_hostile_manifest_reads_and_writes_nothing(path, store, root, tmp_path):
    (tmp_path / "out").write_text("secret")
    folder = whole_checkpoint(root / "step-1")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    target = tmp_path / "deep/target"
    target.mkdir(parents=True)
    with pytest.raises(StoreError, match="step-1 cannot be read"):
        store.fetch("step-1", target)
    assert list((tmp_path / "deep").rglob("*")) == [target]


@pytest.mark.parametrize("where", ["state.json", "engine"])
def test_links_in_a_kept_folder_are_not_followed(where, store, root, tmp_path):
    """Put there by somebody afterwards: a file, or the folder it lies in."""
    store.put("step-1", whole_checkpoint(tmp_path / "made"))
    (root / "step-1" / where).rename(tmp_path / "elsewhere")
    (root / "step-1" / where).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "target").mkdir()
    with pytest.raises(StoreError, match="is missing"):
        store.fetch("step-1", tmp_path / "target")


def test_a_full_disk_leaves_nothing_behind(root, tmp_path):
    """A limit on the size of files: the system refuses in the middle of one."""
    made = whole_checkpoint(tmp_path / "made", files={"engine/big.bin": bytes(300_000)})
    store = DiskStore(root, link=False)
    store.put("step-0", whole_checkpoint(tmp_path / "small"))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StoreError, match=r"step-1 cannot be kept: .*\(make room"):
            store.put("step-1", made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert store.names() == ["step-0"]
    assert hidden(root) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_an_unwritable_folder_is_told(store, root, tmp_path):
    root.mkdir(mode=0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        store.put("step-1", whole_checkpoint(tmp_path / "made"))


def test_a_file_in_place_of_the_folder_is_told(root, store, tmp_path):
    root.write_text("mine")
    with pytest.raises(StoreError, match=r"step-1 cannot be kept: .*exists"):
        store.put("step-1", whole_checkpoint(tmp_path / "made"))


def killed_at(point: str, work: Callable[[], object]) -> None:
    """Do it in a child process that ends at once, without any clean-up, where it comes to call `point`."""
    child = os.fork()
    if not child:
        with mock.patch(point, side_effect=lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)):
            work()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    "point",
    [
        "finetooth_disk.store.shutil.copyfile",
        "finetooth_disk.store.check_folder",
        "finetooth_disk.store.flush",
        "pathlib.Path.rename",
    ],
)
def test_a_kill_at_any_point_names_nothing_half(point, root, tmp_path):
    """The next process keeps the checkpoint and sweeps what was left."""
    made = whole_checkpoint(tmp_path / "made")
    DiskStore(root).put("step-0", made)
    killed_at(point, lambda: DiskStore(root, link=False).put("step-1", made))
    assert DiskStore(root).names() == ["step-0"]
    assert len(hidden(root)) == 1
    DiskStore(root).put("step-1", made)
    assert content(root / "step-1") == content(made)
    assert hidden(root) == []


def test_a_kill_while_it_is_removed_names_nothing_half(root, tmp_path):
    made = whole_checkpoint(tmp_path / "made")
    DiskStore(root).put("step-1", made)
    killed_at("os.unlink", lambda: DiskStore(root).remove("step-1"))
    assert DiskStore(root).names() == []
    DiskStore(root).put("step-1", made)
    assert hidden(root) == []


def test_a_folder_that_another_process_is_filling_is_not_swept(root, tmp_path):
    from finetooth_disk.staging import Staging

    root.mkdir()
    with Staging(root, "step-1") as staging:
        DiskStore(root).put("step-2", whole_checkpoint(tmp_path / "made"))
        assert staging.is_dir()
    assert hidden(root) == []


def test_everything_is_flushed_before_the_name(store, root, tmp_path, monkeypatch):
    """Files, then the manifest, then folders, then the rename, then the folder that holds the name."""
    done: list[str] = []
    rename, sync = Path.rename, os.fsync
    monkeypatch.setattr(Path, "rename", lambda self, to: (done.append("rename"), rename(self, to))[1])
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(Path(f"/proc/self/fd/{fd}").readlink().name), sync(fd))[1])
    store.put("step-1", whole_checkpoint(tmp_path / "made"))
    before = done[: done.index("rename")]
    assert set(before[:4]) == {"fake.txt", "weights.bin", "state.json", "history.jsonl"}
    assert before[4:6] == ["manifest.json", "engine"]
    assert before[6].startswith(".put-step-1.")
    assert done[done.index("rename") :] == ["rename", "kept"]


def test_the_place_is_the_run_folder_unless_said_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    context = FakeContext(tmp_path / "run")

    def place(**options):
        return build(DiskOptions(**options), context).place

    assert place() == str(tmp_path / "run/checkpoints")
    assert place(path="elsewhere/x") == str(tmp_path / "elsewhere/x")
    assert place(url="~/x") == str(tmp_path / "home/x")
    assert place(url="file:///mnt/x") == place(url="file://localhost/mnt/x") == "/mnt/x"
    with pytest.raises(RecipeError, match="both `path` and `url`"):
        place(path="a", url="b")
    with pytest.raises(RecipeError, match="write file:///FOLDER"):
        place(url="file://server/x")
    (tmp_path / "taken").write_text("")
    for path in ("taken", "taken/x/y"):
        with pytest.raises(RecipeError, match=r"taken is a file, not a folder \(choose another path\)"):
            place(path=path)


@pytest.mark.parametrize("place", ["/backup", "./x", "../x", "~/x", "runs/x", "file:///x", "."])
def test_paths_are_claimed(place):
    assert claims(place)


@pytest.mark.parametrize("place", ["disk", "host", "s3://bucket/x", "gs://b/x", ""])
def test_names_and_addresses_are_not(place):
    assert claims(place) is None
