"""A registry whose blobs lie in a bucket: moto's server is the truth, boto3's own client looks at it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from finetooth_hooks import UserError
from finetooth_registry import records, schema
from finetooth_registry.anywhere import files_of
from finetooth_registry.bucket import BucketBlobs
from finetooth_registry.command import registry as command
from finetooth_registry.commands.collect import collect
from finetooth_registry.registry import Registry
from finetooth_registry.verifying import verify_folder, verify_version
from finetooth_registry.writing import write_version

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
servers = pytest.importorskip("moto.server", reason="moto is not installed, which is the S3 server")
ABOUT = {"base_digest": "b", "recipe_sha256": "c", "data": {"d": "e"}, "classification": {"customer_data": False}}
MANY = 9 * 2**20
"""Bytes of a file that boto3 sends in parts."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    started = servers.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    yield "http://{}:{}".format(*started.get_host_and_port())
    started.stop()


class Place:
    """A registry over an empty bucket."""

    def __init__(self, folder: Path, server: str) -> None:
        self.place, self.folder = folder, folder / "registry"
        self.s3 = boto3.client("s3", endpoint_url=server, region_name="us-east-1")
        for bucket in self.s3.list_buckets()["Buckets"]:
            for key in self.keys(bucket["Name"]):
                self.s3.delete_object(Bucket=bucket["Name"], Key=key)
        self.s3.create_bucket(Bucket="kept")
        self.address = f"s3://kept/team/bot?endpoint={server}&region=us-east-1"
        made = self("init", str(self.folder), "--blobs", self.address, bare=True)
        assert made.exit_code == 0, made.exception
        self.registry = Registry(self.folder)
        self.registry.trust("ci", records.make_key(folder / "ci.pem"))

    def __call__(self, *words: str, bare: bool = False) -> Result:
        return CliRunner().invoke(command, [*words, *(() if bare else ("--registry", str(self.folder)))])

    def keys(self, bucket: str = "kept") -> dict[str, int]:
        return {entry["Key"]: entry["Size"] for entry in self.s3.list_objects_v2(Bucket=bucket).get("Contents", ())}

    def add(self, content: bytes) -> Any:
        (self.place / "weights").write_bytes(content)
        signer = records.load_signer(self.place / "ci.pem")
        return self.registry.add("bot", {"weights": self.place / "weights"}, ABOUT, signer, metrics={})


@pytest.fixture
def place(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return Place(tmp_path, server)


def test_files_lie_in_the_bucket_each_once_and_come_back(place: Place, tmp_path: Path) -> None:
    content = os.urandom(MANY)
    version = place.add(content)
    key = f"team/bot/{hashlib.sha256(content).hexdigest()}"
    assert place.keys()[key] == MANY and len(place.keys()) == 2, "the file and the record"
    assert place.s3.get_object(Bucket="kept", Key=key)["Body"].read() == content
    written = place.s3.head_object(Bucket="kept", Key=key)["LastModified"]
    place.add(content)
    assert len(place.keys()) == 3, "another record alone"
    assert place.s3.head_object(Bucket="kept", Key=key)["LastModified"] == written, "it was not sent again"
    assert not [file for file in (place.folder / "blobs").rglob("*") if file.is_file()]
    assert all(link.holds for link in verify_version(place.registry, version))
    assert (write_version(place.registry, version, tmp_path / "out") / "weights").read_bytes() == content
    assert all(link.holds for link in verify_folder(tmp_path / "out", place.registry.trusted()))
    place.registry.measure(version, {"exact/accuracy": 1.0}, {"exact": [{"id": "1"}]})
    assert place.registry.metrics(version)[1] == {"exact": ({"id": "1"},)}


def test_what_comes_in_parts_is_compared_before_the_bucket_gets_it(place: Place) -> None:
    content = os.urandom(1000)
    sha256, blobs = hashlib.sha256(content).hexdigest(), place.registry.blobs
    assert not blobs.receive(sha256, "a" * 32, 0, 1000, content[:400]) and not place.keys()
    assert blobs.receive(sha256, "a" * 32, 400, 1000, content[400:])
    assert place.keys() == {f"team/bot/{sha256}": 1000}
    assert b"".join(blobs.pieces(sha256)) == content and blobs.size(sha256) == 1000
    with pytest.raises(UserError, match="was changed"):
        blobs.receive("0" * 64, "b" * 32, 0, 3, b"bad")
    assert len(place.keys()) == 1


def test_an_object_that_was_changed_or_is_gone_is_named(place: Place, tmp_path: Path) -> None:
    version = place.add(b"one")
    sha256 = files_of(records.read(place.registry.record(version)))["weights"]
    place.s3.put_object(Bucket="kept", Key=f"team/bot/{sha256}", Body=b"two")
    assert [link.what for link in verify_version(place.registry, version) if not link.holds] == ["weights"]
    with pytest.raises(UserError, match="was changed"):
        write_version(place.registry, version, tmp_path / "out")
    pieces = place.registry.blobs.pieces(sha256)
    with pytest.raises(UserError, match="was changed"):
        b"".join(pieces)
    place.s3.delete_object(Bucket="kept", Key=f"team/bot/{sha256}")
    with pytest.raises(UserError, match="is missing"):
        place.registry.blobs.check(sha256)
    assert place.registry.blobs.size(sha256) is None


def test_what_arrives_damaged_is_taken_out_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    client = place.registry.blobs._client  # type: ignore[attr-defined]
    damaged = lambda file, bucket, key: client.put_object(Bucket=bucket, Key=key, Body=b"damaged")  # noqa: E731
    monkeypatch.setattr(client, "upload_file", damaged)
    with pytest.raises(UserError, match="was changed"):
        place.add(b"one")
    assert place.keys() == {} and place.registry.versions() == []


def test_only_what_nothing_names_is_collected_after_a_dry_run(place: Place) -> None:
    version = place.add(b"one")
    place.registry.measure(version, {}, {"exact": [{"id": "1"}]})
    place.registry.hold(version, "production", "wait")
    place.s3.put_object(Bucket="kept", Key="team/bot/README", Body=b"not a blob")
    place.s3.put_object(Bucket="kept", Key=f"team/bot/tenants/other/{'a' * 64}", Body=b"of a tenant")
    before = place.keys()
    (place.place / "lost").write_bytes(b"never registered")
    lost = place.registry.blobs.put(place.place / "lost")
    assert place("collect").output == "1 blobs of 0.0 MB would be deleted\n" and len(place.keys()) == len(before) + 1
    assert place("collect", "--delete").exit_code == 0
    assert place.keys() == before and f"team/bot/{lost}" not in before
    assert all(link.holds for link in verify_version(place.registry, version))


def test_a_tenant_has_blobs_of_its_own(place: Place) -> None:
    folder = place.folder / schema.TENANTS / "one"
    Registry.create(folder)
    tenant = Registry(folder)
    (place.place / "weights").write_bytes(b"mine")
    version = tenant.add("bot", {"weights": place.place / "weights"}, ABOUT, None, metrics={})
    assert set(place.keys()) == {
        f"team/bot/tenants/one/{sha256}" for sha256 in (version.record, hashlib.sha256(b"mine").hexdigest())
    }
    assert collect(place.registry, dry_run=False) == [], "the whole registry's collection leaves them"


def test_a_bucket_that_cannot_be_used_is_one_line(place: Place, server: str) -> None:
    place.add(b"one")
    for address, said in (("kept/team/bot", "is not empty"), ("nowhere/x", "NoSuchBucket")):
        with pytest.raises(UserError, match=said):
            Registry.create(place.place / "other", blobs=f"s3://{address}?endpoint={server}")
        assert not (place.place / "other").exists()


@pytest.mark.parametrize(
    "address",
    ["s3://user:secret@kept/x", "s3://kept/x?key=secret", "s3://kept/x?endpoint=https://user:secret@host",
     "s3://kept/../x", "/kept", "s3://kept/x?profile=nobody"],
)  # fmt: skip
def test_an_address_that_is_none_is_one_line(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match=r"not the address of a bucket|nobody") as refused:
        Registry.create(tmp_path / "other", blobs=address)
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "other").exists()


def test_a_version_whose_files_were_collected_meanwhile_is_not_registered(place: Place) -> None:
    blobs = place.registry.blobs
    assert isinstance(blobs, BucketBlobs)
    put = blobs.put

    def late(source: Path) -> str:
        sha256 = put(source)
        collect(place.registry, dry_run=False)  # another process, at the worst time
        return sha256

    blobs.put = late  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the file weights is not stored"):
        place.add(b"one")
    assert place.registry.versions() == []
