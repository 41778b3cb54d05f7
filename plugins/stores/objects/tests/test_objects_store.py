"""What the store keeps, asked of the server by boto3's own client."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from finetooth_hooks import RecipeError, StoreError
from finetooth_kit import run_checks
from finetooth_objects.checksums import digests, part_size
from finetooth_objects.options import address, checked_endpoint
from finetooth_objects.upload import _is_same

PART = 64 * 1024
BIG = "engine/trained.safetensors"


@pytest.mark.parametrize("server", ["checks", "ignores", pytest.param("mute", marks=pytest.mark.slow)])
def test_a_checkpoint_goes_there_and_back(server, proxy, store, checkpoint, kept_in, contents, tmp_path):
    proxy.verifies = server == "checks"
    proxy.mute = server == "mute"
    folder, mine = checkpoint(), store()
    mine.put("step-40", folder)
    assert kept_in("runs/one/step-40/") == contents(folder)
    assert mine.names() == ["step-40"]
    assert mine.manifest("step-40") == (folder / "manifest.json").read_bytes()
    back = tmp_path / "back"
    back.mkdir()
    mine.fetch("step-40", back)
    assert contents(back) == contents(folder)
    assert kept_in("runs/one/").keys() == {f"step-40/{name}" for name in contents(folder)}, "no test object is left"


def test_only_a_server_that_checks_is_believed(proxy, store, checkpoint):
    """moto keeps the checksum it is told. Believed blindly, it would hide damage; so everything is read back."""
    folder = checkpoint()
    store().put("step-1", folder)
    assert proxy.count("get", BIG) == 1
    proxy.seen.clear()
    proxy.verifies = True
    store().put("step-2", folder)
    assert proxy.count("get", BIG) == 0
    assert proxy.count("head", BIG) == 2  # is it there already? is it what was sent?
    store(read_back=True).put("step-3", folder)
    assert proxy.count("get", f"step-3/{BIG}") == 1


@pytest.mark.parametrize(
    ("set_up", "trust"),
    [
        ({"verifies": True}, "checks"),
        pytest.param({"verifies": True, "mismatch": "InvalidRequest"}, "checks", marks=pytest.mark.slow),
        pytest.param({}, "ignores", marks=pytest.mark.slow),
        pytest.param({"refuses": "NotImplemented"}, "refuses", marks=pytest.mark.slow),
        ({"refuses": "InvalidArgument"}, "refuses"),
    ],
)
def test_what_a_server_does_with_checksums_is_found_out(set_up, trust, proxy, store, checkpoint, kept_in, contents):
    for name, value in set_up.items():
        setattr(proxy, name, value)
    mine, folder = store(), checkpoint(size=PART + 1)
    assert mine._uploader.trust == trust
    assert kept_in("") == {}, "no test object is left"
    mine.put("step-1", folder)
    assert kept_in("runs/one/step-1/") == contents(folder)


def test_a_part_is_known_by_its_checksum_where_the_server_says_one(tmp_path):
    """moto says none of parts; AWS does, and its ETag is no MD5 where it encrypts."""
    (tmp_path / "file").write_bytes(b"a" * 10 + b"b" * 5)
    file = digests(tmp_path / "file", 10)
    right = base64.b64encode(hashlib.sha256(b"b" * 5).digest()).decode()
    assert _is_same({"Size": 5, "ETag": '"encrypted"', "ChecksumSHA256": right}, file, 1)
    assert not _is_same({"Size": 5, "ETag": f'"{file.md5(1)}"', "ChecksumSHA256": right[::-1]}, file, 1)
    assert not _is_same({"Size": 10, "ETag": '"x"', "ChecksumSHA256": right}, file, 1)


def test_the_manifest_goes_last_and_is_removed_first(proxy, store, checkpoint, kept_in):
    mine = store()
    mine.put("step-1", checkpoint())
    puts = [seen.key for seen in proxy.seen if seen.what in ("put", "complete") and "checksum-test" not in seen.key]
    assert puts[-1] == "runs/one/step-1/manifest.json"
    proxy.seen.clear()
    mine.remove("step-1")
    assert next(seen.key for seen in proxy.seen if seen.method == "DELETE") == "runs/one/step-1/manifest.json"
    assert kept_in("runs/one/") == {}
    mine.remove("step-1")  # nothing happens


def test_what_is_there_is_not_sent_again(proxy, store, checkpoint):
    proxy.verifies = True
    folder = checkpoint()
    store().put("step-1", folder)
    proxy.seen.clear()
    store().put("step-1", folder)
    assert proxy.count("part") == proxy.count("begin") == 0
    assert [seen.key for seen in proxy.seen if seen.what == "put" and "checksum-test" not in seen.key] == []


@pytest.mark.slow
def test_a_damaged_object_is_sent_again(proxy, store, checkpoint, s3, kept_in, contents):
    folder = checkpoint()
    store().put("step-1", folder)
    s3.put_object(Bucket="kept", Key="runs/one/step-1/state.json", Body=b'{"step": 7}')
    store().put("step-1", folder)
    assert kept_in("runs/one/step-1/") == contents(folder)


@pytest.mark.slow
def test_another_checkpoint_of_the_same_name_is_refused(store, checkpoint, kept_in, contents):
    first = checkpoint(1)
    store().put("step-1", first)
    with pytest.raises(StoreError, match="another checkpoint of this name"):
        store().put("step-1", checkpoint(2))
    assert kept_in("runs/one/step-1/") == contents(first)


def test_only_what_has_a_manifest_is_named(store, s3):
    for key in (
        "half/state.json",
        "whole/manifest.json",
        ".hidden/manifest.json",
        "manifest.json",
        "deep/er/manifest.json",
    ):
        s3.put_object(Bucket="kept", Key=f"runs/one/{key}", Body=b"{}")
    s3.put_object(Bucket="kept", Key="runs/one-more/step-1/manifest.json", Body=b"{}")
    assert store().names() == ["whole"]


def test_lists_that_come_in_pages(proxy, store, checkpoint, s3):
    """Names, files and uploads: two on a page."""
    proxy.page = 2
    for step in range(5):
        s3.put_object(Bucket="kept", Key=f"runs/one/step-{step}/manifest.json", Body=b"{}")
    for number in range(5):
        s3.put_object(Bucket="kept", Key=f"runs/one/step-1/{number}", Body=b"")
    assert sorted(store().names()) == [f"step-{step}" for step in range(5)]
    store().remove("step-1")
    left = s3.list_objects_v2(Bucket="kept")["Contents"]
    assert sorted(o["Key"] for o in left) == [f"runs/one/step-{step}/manifest.json" for step in (0, 2, 3, 4)]
    assert proxy.count("list") > 5


@pytest.mark.slow
def test_a_whole_bucket_can_be_the_place(store, checkpoint, kept_in, contents):
    mine = store(url="s3://kept")
    mine.put("step-1", checkpoint())
    assert (mine.place, mine.names()) == ("s3://kept", ["step-1"])


@pytest.mark.slow
def test_odd_names_are_refused(store, checkpoint, proxy):
    folder, mine = checkpoint(), store()
    for name in ("", ".", "..", "a/b", "../x", ".hidden", "-x", "a\nb", "ä", "x" * 300):
        for call in (lambda name=name: mine.put(name, folder), lambda name=name: mine.remove(name)):
            with pytest.raises(StoreError, match="cannot be the name"):
                call()
    assert proxy.seen == []


def damage(folder: Path, how: str) -> None:
    big = folder / BIG
    if how == "missing":
        big.unlink()
    elif how == "flipped":
        content = bytearray(big.read_bytes())
        content[100] ^= 1
        big.write_bytes(content)
    elif how == "truncated":
        big.write_bytes(big.read_bytes()[:-1])
    elif how == "more":
        (folder / "more.txt").write_text("x")
    elif how == "link":
        elsewhere = big.rename(folder.parent / "elsewhere")
        big.symlink_to(elsewhere)
    elif how == "no manifest":
        (folder / "manifest.json").unlink()


def test_a_broken_folder_is_refused_before_anything_is_sent(store, checkpoint, proxy, s3):
    for number, how in enumerate(("missing", "flipped", "truncated", "more", "link", "no manifest")):
        folder = checkpoint(number)
        damage(folder, how)
        with pytest.raises(StoreError, match="step-1 cannot be kept"):
            store().put("step-1", folder)
    assert "Contents" not in s3.list_objects_v2(Bucket="kept")
    assert not any(seen.method in ("PUT", "POST") for seen in proxy.seen)


def test_a_hostile_manifest_writes_nothing(store, s3, tmp_path):
    back = tmp_path / "deep/back"
    back.mkdir(parents=True)
    for path in ("../out", "/etc/passwd", "a/../../b", "a\\b", "engine//x", "C:/x", "manifest.json"):
        manifest = json.dumps({"files": {path: {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}}})
        s3.put_object(Bucket="kept", Key="runs/one/step-1/manifest.json", Body=manifest.encode())
        with pytest.raises(StoreError, match="step-1: "):
            store().fetch("step-1", back)
        assert list(tmp_path.rglob("*")) == [tmp_path / "deep", back]


@pytest.mark.slow
def test_an_object_larger_than_its_manifest_says_is_not_read(store, checkpoint, s3, tmp_path):
    store().put("step-1", checkpoint())
    s3.put_object(Bucket="kept", Key="runs/one/step-1/state.json", Body=bytes(10_000_000))
    (tmp_path / "back").mkdir()
    with pytest.raises(StoreError, match="10000000 bytes, and"):
        store().fetch("step-1", tmp_path / "back")


def test_what_is_not_there_is_said(store, checkpoint, tmp_path):
    with pytest.raises(StoreError, match="NoSuchKey"):
        store().manifest("step-1")
    (tmp_path / "back").mkdir()
    with pytest.raises(StoreError, match="NoSuchKey"):
        store().fetch("step-1", tmp_path / "back")
    with pytest.raises(StoreError, match=r"NoSuchBucket.*make the bucket"):
        store(url="s3://nowhere/x").names()


def test_composite_checksums_are_what_the_server_computes(s3, tmp_path):
    """moto computes the checksum of checksums by itself."""
    content = hashlib.shake_128(b"x").digest(2 * PART + 5)
    (tmp_path / "file").write_bytes(content)
    begun = s3.create_multipart_upload(Bucket="kept", Key="x", ChecksumAlgorithm="SHA256")["UploadId"]
    parts = []
    for number in (1, 2, 3):
        body = content[(number - 1) * PART : number * PART]
        tag = s3.upload_part(Bucket="kept", Key="x", UploadId=begun, PartNumber=number, Body=body)["ETag"]
        parts.append({"PartNumber": number, "ETag": tag})
    s3.complete_multipart_upload(Bucket="kept", Key="x", UploadId=begun, MultipartUpload={"Parts": parts})
    said = s3.head_object(Bucket="kept", Key="x", ChecksumMode="ENABLED")["ChecksumSHA256"]
    found = digests(tmp_path / "file", PART)
    assert found.composite.split("-") == [said.partition("-")[0], "3"]  # moto leaves out how many parts they are
    assert found.whole == base64.b64encode(hashlib.sha256(content).digest()).decode()
    assert [found.length(index) for index in range(3)] == [PART, PART, 5]
    assert [found.md5(i) for i in range(3)] == [
        hashlib.md5(content[i * PART : (i + 1) * PART]).hexdigest() for i in range(3)
    ]


@pytest.mark.parametrize(("size", "wanted"), [(10**12, 2**24), (1, 5), (10_000 * 7, 7), (10_000 * 7 + 1, 7)])
def test_no_file_has_more_parts_than_s3_takes(size, wanted):
    assert -(-size // part_size(size, wanted)) <= 10_000
    assert part_size(size, wanted) >= wanted


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///x", "s3://UPPER/x", "s3://ab", "s3://bucket/../x", "s3://bucket//x", "https://bucket/x"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(RecipeError):
        address(url)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    for refuse in (lambda: address("s3://key:hunter2@bucket/x"), lambda: checked_endpoint("http://key:hunter2@host")):
        with pytest.raises(RecipeError) as refused:
            refuse()
        assert "hunter2" not in str(refused.value)
        assert "password" in str(refused.value)


def test_no_secret_is_in_a_message(store, monkeypatch, proxy):
    proxy.fail(403, "list")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(StoreError, match="AccessDenied") as refused:
        store().names()
    assert "hunter2" not in str(refused.value) and "testing-key" not in str(refused.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://key:hunter2@127.0.0.1:9")
    with pytest.raises(StoreError, match=r"//127\.0\.0\.1:9") as failed:
        store(endpoint="", retries=0).names()
    assert "hunter2" not in str(failed.value)


@pytest.mark.slow
def test_missing_credentials_are_named(store, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match=r"credentials are missing.*AWS_PROFILE"):
        store().names()
    with pytest.raises(StoreError, match="correct `profile`"):
        store(profile="nobody")


@pytest.mark.slow
def test_the_conformance_kit_passes_over_a_server(proxy):
    from dataclasses import replace

    from finetooth_objects.plugin import ft_stores

    (entry,) = ft_stores()
    with_server = replace(entry, example={"url": "s3://kept{folder}/kit", "endpoint": proxy.address, "wait": 0.01})
    results = run_checks(with_server)
    assert [(r.check, r.message) for r in results if r.status == "failed"] == []
    assert [r.check for r in results if r.status == "skipped"] == ["snapshots_are_bounded_and_in_order"]
    assert len([r for r in results if r.check.startswith("store_")]) >= 5


def test_retries_leave_the_global_random_state_alone(proxy, store, checkpoint):
    """An upload in the background must not change what a user's code draws."""
    import random

    proxy.fail(503, "part", times=2)
    before = random.getstate()
    store().put("step-1", checkpoint())
    assert random.getstate() == before


@pytest.mark.slow
def test_another_process_goes_on_after_a_kill(proxy, store, checkpoint, kept_in, contents):
    """SIGKILL in the middle of a part: the next process sends that part and what follows."""
    folder = checkpoint(size=6 * PART)
    child: list[subprocess.Popen[bytes]] = []

    def kill(seen):
        if seen.what == "part 4" and child:
            child.pop().kill()

    proxy.on = kill
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from finetooth_objects.options import S3Options\nfrom finetooth_objects.store import build\n"
        f"options = S3Options(url='s3://kept/runs/one', endpoint={proxy.address!r}, part_bytes={PART})\n"
        f"sys.stdin.read(1)\nbuild(options).put('step-1', Path({str(folder)!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    child.append(process)
    process.communicate(b"x", timeout=60)
    assert process.returncode == -9
    assert store().names() == []
    before = proxy.count("begin")
    proxy.seen.clear()
    store().put("step-1", folder)
    sent = {seen.what for seen in proxy.seen if seen.what.startswith("part")}
    assert before == 1 and proxy.count("begin") == 0
    assert sent <= {"part 4", "part 5", "part 6"} and {"part 5", "part 6"} <= sent
    assert kept_in("runs/one/step-1/") == contents(folder)
