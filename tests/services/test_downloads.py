"""The files of a checkpoint's artifact go to the tenant that trained it, and nothing else does."""

from __future__ import annotations

import json
from typing import Any

import finetooth
import httpx2 as httpx


def test_only_its_tenant_gets_the_files_of_an_artifact(serve: Any) -> None:
    served = serve("api", keyless=False)
    all_scopes = ("train", "sample", "read", "download")
    mine, theirs = (served.service.keys.create(tenant, all_scopes) for tenant in ("mine", "theirs"))
    with finetooth.Client(served.url, mine, patience=10) as client:
        saved = client.session("tiny").save("here")
    with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {mine}"}) as http:
        files = {one["name"]: one["size"] for one in http.get(f"/v1/checkpoints/{saved}/files").json()}
        assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= set(files)
        for name, size in files.items():
            content = http.get(f"/v1/checkpoints/{saved}/files/{name}").content
            assert len(content) == size
        assert json.loads(http.get(f"/v1/checkpoints/{saved}/files/adapter_config.json").content)["r"] == 4
        for name in ("../state/optimizer.safetensors", "%2e%2e/state/weights.safetensors", "%2Fetc%2Fpasswd", "none"):
            assert http.get(f"/v1/checkpoints/{saved}/files/{name}").status_code == 404
    without = served.service.keys.create("mine")
    place = served.service.checkpoints.folder(served.service.checkpoints.all("mine")[0], "weights")
    (place / "link.json").symlink_to("/etc/hostname")
    (place / "out").symlink_to(place.parent.parent)
    with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {mine}"}) as http:
        assert {one["name"] for one in http.get(f"/v1/checkpoints/{saved}/files").json()} == set(files)
        assert http.get(f"/v1/checkpoints/{saved}/files/link.json").status_code == 404
    refused = (({"Authorization": f"Bearer {without}"}, 403), ({"Authorization": f"Bearer {theirs}"}, 404), ({}, 401))
    for headers, status in refused:
        for path in (f"/v1/checkpoints/{saved}/files", f"/v1/checkpoints/{saved}/files/adapter_config.json"):
            assert httpx.get(served.url + path, headers=headers).status_code == status
