"""`ft resume s3://bucket/run` on an empty machine, from a real server on loopback, and what it says where it cannot."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetooth_core.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left  # type: ignore[import-not-found]
from s3 import BUCKET, server  # type: ignore[import-not-found]

Ft = Callable[..., tuple[int, str, str]]
URL = f"s3://{BUCKET}/runs/one"


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """The server; boto3's own client, which is what the tests believe."""
    pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    with server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.delenv(name, raising=False)
        yield boto3.client("s3")


@pytest.fixture(scope="module")
def undisturbed(s3: Any, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps that sends every second one, and came to its end."""
    here = tmp_path_factory.mktemp("here")

    def rows(count: int, seed: int) -> dict[str, Any]:
        return {"name": "tasks", "task": "family", "count": count, "seed": seed}

    content = {
        "model": str(tiny_llama),
        "data": {"train": rows(20, 5), "eval": rows(4, 6), "renderer": "chatml"},
        "method": "sft",
        "adapter": {"name": "lora", "rank": 4, "dropout": 0.1},
        "train": {"batch_size": 8, "precision": "fp32", "max_length": 256, "max_steps": 6, "epochs": 9},
        "evaluate": {"every": 3},
        "checkpoint": {"every": 2, "keep_last": 0, "stores": ["disk", URL]},
        "trackers": ["jsonl"],
        "output": "runs/one",
    }
    (here / "recipe.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("FT_CACHE", str(here / "cache"))
        assert main(["run", "recipe.yaml"]) == 0
    return here / "runs/one"


@pytest.fixture
def bucket(s3: Any) -> Callable[[str], list[str]]:
    """Keys that begin so."""

    def keys(prefix: str = "") -> list[str]:
        return [found["Key"] for found in s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]

    return keys


@pytest.fixture
def lost(
    undisturbed: Path, s3: Any, bucket: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The same run as it would have ended, had its machine not been lost after step 4: the bucket holds steps 2 and 4,
    and one is in an empty folder that stands for another machine."""
    for key in bucket():
        s3.delete_object(Bucket=BUCKET, Key=key)
    for step in ("step-2", "step-4"):
        for path in (undisturbed / "checkpoints" / step).rglob("*.*"):
            name = path.relative_to(undisturbed / "checkpoints").as_posix()
            s3.put_object(Bucket=BUCKET, Key=f"runs/one/{name}", Body=path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return undisturbed


@pytest.mark.slow
def test_a_run_goes_on_from_its_url_where_nothing_of_it_is(
    lost: Path, ft: Ft, bucket: Callable[..., list[str]]
) -> None:
    code, _, said = ft("resume", URL)
    assert code == 0, said
    folder = Path("runs/one")
    assert f"resuming after step 4, from {folder.absolute()}/checkpoints/step-4" in said
    assert {path.name for path in folder.iterdir()} - {".lock", "curves.png"} == {
        "artifact", "checkpoints", "metrics.jsonl", "plan.json", "recipe.yaml", "report.html", "result.json",
        "run.json",
    }  # fmt: skip
    assert differences(left(lost), left(folder)) == []  # every metric line, the last state, the artifact
    assert json.loads((folder / "result.json").read_text())["resumed"][0]["step"] == 4
    assert "runs/one/step-6/manifest.json" in bucket("runs/one/step-6/")

    said = ft("resume", URL)[2]  # once more: the folder is its own
    assert "resuming after step 6" in said
    assert differences(left(lost), left(folder)) == []


@pytest.mark.slow
def test_a_checkpoint_is_named_by_its_url_and_by_its_step(lost: Path, ft: Ft) -> None:
    elsewhere = f"checkpoint.stores=[disk, s3://{BUCKET}/runs/other]"
    code, _, said = ft("resume", f"{URL}/step-2", elsewhere, "--output", "named")
    assert code == 0, said
    assert "resuming after step 2" in said
    assert differences(left(lost), left(Path("named"))) == []
    code, _, said = ft("resume", URL, "--at", "2", "--output", "back")
    assert code == 2
    assert f"{URL} already holds step-4; a run that resumes from step 2 would mix with it (send" in said
    code, _, said = ft("resume", URL, "--at", "3", "--output", "never")
    assert (code, said) == (2, f"error: {URL} has no step-3 (there are: step-4, step-2)\n")
    assert not Path("never").exists()


@pytest.mark.slow
def test_what_is_not_whole_on_the_server_is_named_and_the_one_before_is_used(
    lost: Path, ft: Ft, s3: Any, bucket: Callable[..., list[str]]
) -> None:
    s3.delete_object(Bucket=BUCKET, Key="runs/one/step-4/engine/trained.safetensors")
    code, _, said = ft("resume", URL)
    assert code == 0, said
    assert f"step-4 cannot be used: {URL}: reading runs/one/step-4/engine/trained.safetensors failed" in said
    assert "resuming after step 2" in said
    assert differences(left(lost), left(Path("runs/one"))) == []
    assert ft("checkpoint", "verify", URL)[0] == 0
    for key in bucket("runs/one/"):
        if key.endswith("trained.safetensors"):
            s3.delete_object(Bucket=BUCKET, Key=key)
    code, _, said = ft("resume", URL, "--output", "another")
    assert code == 2
    assert said.splitlines()[-1] == (
        f"error: {URL}: no checkpoint is whole, 3 cannot be used (see: ft checkpoint verify {URL})"
    )


@pytest.mark.parametrize(
    ("url", "output", "code", "says"),
    [
        ("s3://torture/runs/none", None, 2,
         "s3://torture/runs/none holds no checkpoint (check the URL: it is the one in checkpoint.stores)"),
        ("s3://no-bucket/runs/one", None, 1,
         "s3://no-bucket/runs/one: listing runs/one/ failed: the server answered 404 NoSuchBucket: The specified "
         "bucket does not exist (make the bucket, or correct the address)"),
        ("s3://No_Bucket/run", None, 2,
         "s3://No_Bucket/run: 'No_Bucket' cannot be the name of a bucket (write s3://BUCKET/PREFIX)"),
        ("gs://bucket/run", None, 2,
         "gs://bucket/run: no store that is installed knows this address (see: ft plugins list)"),
        (URL, "taken", 2, "output: taken exists and is not an empty folder (choose another with --output)"),
        (URL, "taken/file", 2, "output: taken/file exists and is not an empty folder (choose another with --output)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    bucket: Callable[..., list[str]], ft: Ft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    url: str, output: str | None, code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert ft("resume", url, *(["--output", output] if output else [])) == (code, "", f"error: {says}\n")
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts] == before
    assert (tmp_path / "taken/file").read_text() == "mine"


class Refusing(BaseHTTPRequestHandler):
    """Nobody may do anything."""

    def do_GET(self) -> None:
        content = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_no_access_is_said_with_what_is_needed(ft: Ft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    monkeypatch.chdir(tmp_path)
    refusing = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=lambda: refusing.serve_forever(0.02), daemon=True)
    thread.start()
    environment: Mapping[str, str] = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{refusing.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        code, out, said = ft("resume", URL)
    finally:
        refusing.shutdown()
        refusing.server_close()
        thread.join()
    assert (code, out) == (1, "")
    assert said == (
        f"error: {URL}: listing runs/one/ failed: the server answered 403 AccessDenied: Access Denied (give these "
        "credentials the right to list, read, write and delete there)\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    code, _, said = ft("resume", URL)
    assert code == 1 and "credentials are missing, or only half of them are there (set AWS_ACCESS_KEY_ID" in said
    assert not (tmp_path / "runs").exists()
