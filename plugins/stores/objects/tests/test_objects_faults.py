"""What networks and servers do, done by a proxy between boto3 and the server: nothing half is ever named."""

from __future__ import annotations

import pytest
from finetooth_hooks import StoreError

PART = 64 * 1024
BIG = "trained.safetensors"
ALWAYS = 10**9
PARTS = 5  # of the big file

slow = pytest.mark.slow
"""One of each sort is tried by `make test`, all of them by `make slow`."""


def case(*values, quick=False):
    return pytest.param(*values, marks=() if quick else slow)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "kind", "what", "key"),
    [
        case("checking", 500, "put", "state.json"),
        case("checking", 503, "put", ""),  # the very first request that sends something
        case("checking", 503, "begin", BIG),
        case("checking", 503, "part 2", BIG),
        case("checking", "reset", "part 3", BIG, quick=True),
        case("checking", "lost", "part 3", BIG),
        case("checking", "cut", "part 4", BIG),
        case("checking", "hang", "part 1", BIG, quick=True),
        case("checking", "wrong", "part 5", BIG),
        case("ignoring", "wrong", "part 5", BIG, quick=True),
        case("checking", "wrong", "put", "state.json"),
        case("ignoring", "wrong", "put", "state.json"),
        case("checking", 500, "complete", BIG),
        case("checking", "lost", "complete", BIG, quick=True),
        case("ignoring", "lost", "complete", BIG),
        case("checking", "hang", "complete", BIG),
        case("checking", "lost", "put", "manifest.json"),
        case("checking", "wrong", "put", "manifest.json"),
        case("ignoring", "wrong", "put", "manifest.json"),
        case("checking", 503, "head", BIG),
        case("checking", "reset", "list uploads", BIG),
        case("checking", "short", "list uploads", BIG),
        case("checking", "slow", "list uploads", BIG),
    ],
)
def test_what_passes_is_overcome(server, kind, what, key, proxy, store, checkpoint, kept_in, contents, s3):
    proxy.verifies = server == "checking"
    fault = proxy.fail(kind, what, key)
    folder = checkpoint()
    store(timeout=0.5).put("step-1", folder)
    assert fault.times == 0, "it did happen"
    assert kept_in("runs/one/step-1/") == contents(folder)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="kept")


@pytest.mark.parametrize(
    ("server", "kind", "what", "key"),
    [
        case("checking", 500, "part 3", BIG),
        case("checking", 403, "part 3", BIG),
        case("checking", "wrong", "part 3", BIG),
        case("ignoring", "wrong", "part 3", BIG),
        case("checking", "wrong", "put", "state.json"),
        case("ignoring", "wrong", "put", "state.json"),
        case("checking", "wrong", "put", "manifest.json"),
        case("ignoring", "wrong", "put", "manifest.json", quick=True),
        case("checking", "cut", "put", "manifest.json"),
        case("checking", "reset", "complete", BIG),
        case("checking", "hang", "part 3", BIG),
    ],
)
def test_what_stays_is_told_and_nothing_is_named(server, kind, what, key, proxy, store, checkpoint, kept_in, contents):
    proxy.verifies = server == "checking"
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


@pytest.mark.parametrize(
    ("cut", "server"),
    [
        *(case(cut, "checking", quick=cut in (4, PARTS + 1)) for cut in range(1, PARTS + 2)),
        case(1, "mute"),
        case(3, "mute"),
    ],
)
def test_an_upload_cut_at_any_part_sends_only_what_is_missing(
    cut, server, proxy, store, checkpoint, kept_in, contents, s3
):
    """The line goes dead at the n-th part, or (the last case) at the end. Afterwards another store goes on."""
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


@slow
def test_removing_drops_uploads_that_were_cut(proxy, store, checkpoint, s3):
    proxy.fail(403, "part 4")
    with pytest.raises(StoreError):
        store().put("step-1", checkpoint())
    assert len(s3.list_multipart_uploads(Bucket="kept")["Uploads"]) == 1
    store().remove("step-1")
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="kept")
    assert "Contents" not in s3.list_objects_v2(Bucket="kept")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *(case(kind, "manifest.json") for kind in (500, "reset", "hang", "short", "slow")),
        *(case(kind, BIG) for kind in (500, 503, "reset", "hang", "short", "slow")),
        case("shorter", BIG),
        case("wrong", BIG, quick=True),
    ],
)
def test_what_passes_is_overcome_on_the_way_back(kind, key, proxy, store, checkpoint, contents, tmp_path):
    folder = checkpoint()
    store().put("step-1", folder)
    fault = proxy.fail(kind, "get", key)
    (tmp_path / "back").mkdir()
    store(timeout=0.5).fetch("step-1", tmp_path / "back")
    assert fault.times == 0
    assert contents(tmp_path / "back") == contents(folder)


@pytest.mark.slow
def test_a_short_answer_is_gone_on_with_where_it_ended(proxy, store, checkpoint, contents, tmp_path, monkeypatch):
    folder = checkpoint()
    store().put("step-1", folder)
    proxy.fail("short", "get", BIG, times=2)
    proxy.seen.clear()
    (tmp_path / "back").mkdir()
    store().fetch("step-1", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    ranges = [seen.range for seen in proxy.seen if seen.what == "get" and seen.key.endswith(BIG)]
    half = (4 * PART + 100) // 2
    assert ranges == ["", f"bytes={half}-", f"bytes={half + half // 2}-"]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        case("wrong", "differs from its SHA-256", quick=True),
        case("shorter", "bytes instead of"),
        case(500, "500 InternalError"),
        case("hang", "ReadTimeout"),
    ],
)
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


@slow
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
