"""What networks and servers do, done by a proxy between boto3 and the server: nothing half is ever named."""

from __future__ import annotations

import pytest
from finetooth_hooks import StoreError

PART = 64 * 1024
BIG = "trained.safetensors"
ALWAYS = 10**9
PARTS = 5  # of the big file

PASSING = [
    (500, "put", "state.json"),
    (503, "begin", BIG),
    (503, "part 2", BIG),
    ("reset", "part 3", BIG),
    ("lost", "part 3", BIG),
    ("cut", "part 4", BIG),
    ("hang", "part 1", BIG),
    ("wrong", "part 5", BIG),
    ("wrong", "put", "state.json"),
    (500, "complete", BIG),
    ("lost", "complete", BIG),
    ("hang", "complete", BIG),
    ("lost", "put", "manifest.json"),
    ("wrong", "put", "manifest.json"),
    (503, "head", BIG),
    ("reset", "list uploads", BIG),
    ("short", "list uploads", BIG),
    (503, "put", ""),  # the very first request that sends something
]


@pytest.mark.parametrize("checks", [True, False], ids=["checking", "ignoring"])
@pytest.mark.parametrize(("kind", "what", "key"), PASSING)
def test_what_passes_is_overcome(kind, what, key, checks, proxy, store, checkpoint, kept_in, contents, s3):
    if not checks and kind not in ("wrong", "lost"):
        pytest.skip("the same whether the server checks or not")
    proxy.verifies = checks
    fault = proxy.fail(kind, what, key)
    folder = checkpoint()
    store(timeout=0.5).put("step-1", folder)
    assert fault.times == 0, "it did happen"
    assert kept_in("runs/one/step-1/") == contents(folder)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="kept")


@pytest.mark.parametrize("checks", [True, False], ids=["checking", "ignoring"])
@pytest.mark.parametrize(
    ("kind", "what", "key"),
    [
        (500, "part 3", BIG),
        (403, "part 3", BIG),
        ("wrong", "part 3", BIG),
        ("wrong", "put", "state.json"),
        ("wrong", "put", "manifest.json"),
        ("cut", "put", "manifest.json"),
        ("reset", "complete", BIG),
        ("hang", "part 3", BIG),
    ],
)
def test_what_stays_is_told_and_nothing_is_named(kind, what, key, checks, proxy, store, checkpoint, kept_in, contents):
    if not checks and kind != "wrong":
        pytest.skip("the same whether the server checks or not")
    proxy.verifies = checks
    whole, folder = checkpoint(1, size=100), checkpoint(2)
    store().put("step-1", whole)
    fault = proxy.fail(kind, what, key, times=ALWAYS)
    with pytest.raises(StoreError, match="s3://kept/runs/one: ") as failed:
        store(retries=1, timeout=0.3).put("step-2", folder)
    assert "\n" not in str(failed.value)
    fault.times = 0
    assert store().names() == ["step-1"]
    assert kept_in("runs/one/step-1/") == contents(whole)
    store().put("step-2", folder)
    assert kept_in("runs/one/step-2/") == contents(folder)


@pytest.mark.parametrize("server", ["checking", "mute"])
@pytest.mark.parametrize("cut", range(1, PARTS + 2))
def test_an_upload_cut_at_any_part_sends_only_what_is_missing(
    cut, server, proxy, store, checkpoint, kept_in, contents, s3
):
    """The line goes dead at the n-th part, or (the last case) at the end. Afterwards another store goes on."""
    if server == "mute" and cut not in (1, 3):
        pytest.skip("one in the middle will do")
    proxy.verifies, proxy.mute = server == "checking", server == "mute"
    folder = checkpoint()
    dead_at = f"part {cut}" if cut <= PARTS else "complete"

    def watch(seen):
        proxy.down = proxy.down or seen.what == dead_at

    proxy.on = watch
    with pytest.raises(StoreError, match=BIG):
        store(retries=1).put("step-1", folder)
    assert proxy.count("part 1", BIG) >= 1
    proxy.on, proxy.down = (lambda seen: None), False
    assert store().names() == []
    proxy.seen.clear()
    store().put("step-1", folder)
    sent = [seen.what for seen in proxy.seen if seen.what.startswith("part")]
    assert sent == [f"part {number}" for number in range(cut, PARTS + 1)]
    assert proxy.count("begin") == 0
    assert kept_in("runs/one/step-1/") == contents(folder)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="kept")


def test_parts_of_another_content_are_not_used(proxy, store, checkpoint, kept_in, contents):
    """An upload of the same name was cut, and what comes now is another checkpoint."""
    fault = proxy.fail(403, "part 4", times=ALWAYS)
    with pytest.raises(StoreError):
        store().put("step-1", checkpoint(1))
    fault.times = 0
    proxy.seen.clear()
    now = checkpoint(2)
    store().put("step-1", now)
    assert proxy.count("part") == PARTS
    assert kept_in("runs/one/step-1/") == contents(now)


def test_removing_drops_uploads_that_were_cut(proxy, store, checkpoint, s3):
    proxy.fail(403, "part 4")
    with pytest.raises(StoreError):
        store().put("step-1", checkpoint())
    assert len(s3.list_multipart_uploads(Bucket="kept")["Uploads"]) == 1
    store().remove("step-1")
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="kept")
    assert "Contents" not in s3.list_objects_v2(Bucket="kept")


@pytest.mark.parametrize("kind", [500, 503, "reset", "hang", "short", "shorter", "wrong", "slow"])
@pytest.mark.parametrize("key", ["manifest.json", BIG])
def test_what_passes_is_overcome_on_the_way_back(kind, key, proxy, store, checkpoint, contents, tmp_path):
    if key == "manifest.json" and kind in ("shorter", "wrong"):
        pytest.skip("the caller checks the manifest, which holds its own SHA-256")
    folder = checkpoint()
    store().put("step-1", folder)
    fault = proxy.fail(kind, "get", key)
    (tmp_path / "back").mkdir()
    store(timeout=0.5).fetch("step-1", tmp_path / "back")
    assert fault.times == 0
    assert contents(tmp_path / "back") == contents(folder)


def test_a_short_answer_is_gone_on_with_where_it_ended(proxy, store, checkpoint, contents, tmp_path, monkeypatch):
    folder = checkpoint()
    store().put("step-1", folder)
    proxy.fail("short", "get", BIG, times=2)
    proxy.seen.clear()
    (tmp_path / "back").mkdir()
    store().fetch("step-1", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    ranges = [seen.range for seen in proxy.seen if seen.what == "get" and seen.key.endswith(BIG)]
    assert ranges[0] == "" and ranges[1] == "bytes=131072-"  # half of it, in whole chunks
    assert ranges[2] > ranges[1] and len(ranges) == 3


@pytest.mark.parametrize(("kind", "says"), [("wrong", "differs from its SHA-256"), ("shorter", "bytes in place of"),
                                            (500, "500 InternalError"), ("hang", "ReadTimeout")])  # fmt: skip
def test_what_stays_is_told_on_the_way_back(kind, says, proxy, store, checkpoint, tmp_path):
    store().put("step-1", checkpoint())
    proxy.fail(kind, "get", BIG, times=ALWAYS)
    (tmp_path / "back").mkdir()
    with pytest.raises(StoreError, match=says):
        store(retries=1, timeout=0.3).fetch("step-1", tmp_path / "back")
    assert not (tmp_path / "back/manifest.json").exists(), "what is not whole has no manifest"


def test_a_full_disk_is_told(store, checkpoint, tmp_path, monkeypatch):
    """What the system says of a full disk, said of a limit on the size of files."""
    import resource
    import signal

    store().put("step-1", checkpoint())
    (tmp_path / "back").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot be written.*make room"):
            store().fetch("step-1", tmp_path / "back")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_removal_that_breaks_off_leaves_nothing_named(proxy, store, checkpoint, kept_in):
    store().put("step-1", checkpoint())
    fault = proxy.fail(403, "delete", BIG, times=ALWAYS)
    with pytest.raises(StoreError, match="removing"):
        store().remove("step-1")
    assert store().names() == []
    fault.times = 0
    store().remove("step-1")
    assert kept_in("runs/one/") == {}


def test_a_server_that_is_not_there(store, proxy):
    proxy.down = True
    with pytest.raises(StoreError, match=r"failed, 2 times.*reached"):
        store(retries=1).names()
