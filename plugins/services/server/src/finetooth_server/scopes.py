"""The scopes of each route: any listed scope opens it, and `admin` opens every route.

The service enforces them; the OpenAPI document shows them (`x-scopes`), and a test compares every route of every face
with this table, so that a new route must be declared here. Faces that plugins bring declare their own
(`finetooth_hooks.FaceRoute`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_server.tinker.refusals import REFUSALS

Scopes = tuple[str, ...]

TRAIN, SAMPLE, DOWNLOAD = ("train",), ("sample",), ("download",)
WORK = ("train", "sample")
LOOK = ("read", "train")
RESULTS = ("read", "train", "sample")
ANYBODY: Scopes = ()
"""Every valid key: these routes give all tenants the same answer."""

KEPT = "/api/v1/training_runs/{id}/checkpoints/{kind}/{checkpoint}"

NEEDED: Mapping[tuple[str, str], Scopes] = {
    ("GET", "/metrics"): ("read",),
    ("GET", "/v1/models"): ANYBODY,
    ("GET", "/v1/limits"): RESULTS,
    ("POST", "/v1/sessions"): TRAIN,
    ("GET", "/v1/sessions"): LOOK,
    ("GET", "/v1/sessions/{session}"): LOOK,
    ("DELETE", "/v1/sessions/{session}"): TRAIN,
    **{
        ("POST", f"/v1/sessions/{{session}}/{name}"): TRAIN
        for name in ("forward", "backward", "forward_backward", "step", "zero_grad", "save", "load")
    },
    ("POST", "/v1/sessions/{session}/generate"): SAMPLE,
    ("POST", "/v1/sessions/{session}/logprobs"): SAMPLE,
    ("GET", "/v1/calls/{id}"): RESULTS,
    ("DELETE", "/v1/calls/{id}"): WORK,
    ("GET", "/v1/calls/{id}/stream"): RESULTS,
    ("POST", "/v1/samplers"): SAMPLE,
    ("POST", "/v1/samplers/{sampler}/generate"): SAMPLE,
    ("GET", "/v1/checkpoints"): RESULTS,
    ("GET", "/v1/checkpoints/{id}"): RESULTS,
    ("DELETE", "/v1/checkpoints/{id}"): TRAIN,
    ("GET", "/v1/checkpoints/{id}/files"): DOWNLOAD,
    ("GET", "/v1/checkpoints/{id}/files/{name}"): DOWNLOAD,
    ("POST", "/api/v1/client/config"): ANYBODY,
    ("POST", "/api/v1/client/dynamic_config"): ANYBODY,
    ("POST", "/api/v1/telemetry"): ANYBODY,
    ("GET", "/api/v1/get_server_capabilities"): ANYBODY,
    ("POST", "/api/v1/create_session"): WORK,
    ("POST", "/api/v1/session_heartbeat"): WORK,
    ("POST", "/api/v1/sessions/{id}/finish"): WORK,
    **{
        ("POST", f"/api/v1/{name}"): TRAIN
        for name in (
            "create_model", "forward_backward", "optim_step", "save_weights", "save_weights_for_sampler",
            "save_weights_external", "load_weights", "copy_weights",
        )
    },
    ("POST", "/api/v1/create_sampling_session"): SAMPLE,
    ("POST", "/api/v1/join_sampling_session"): SAMPLE,
    ("POST", "/api/v1/asample"): SAMPLE,
    ("POST", "/api/v1/retrieve_future"): RESULTS,
    ("POST", "/api/v1/cancel_future"): WORK,
    ("POST", "/api/v1/get_info"): LOOK,
    ("POST", "/api/v1/weights_info"): RESULTS,
    ("GET", "/api/v1/samplers/{id}"): RESULTS,
    ("GET", "/api/v1/training_runs"): RESULTS,
    ("GET", "/api/v1/training_runs/{id}"): RESULTS,
    ("GET", "/api/v1/training_runs/{id}/checkpoints"): RESULTS,
    ("GET", f"{KEPT}/external_weights_urls"): DOWNLOAD,
    ("PUT", f"{KEPT}/ttl"): TRAIN,
    ("POST", f"{KEPT}/publish"): DOWNLOAD,
    ("DELETE", f"{KEPT}/publish"): TRAIN,
    ("DELETE", KEPT): TRAIN,
    ("GET", "/api/v1/checkpoints"): RESULTS,
    ("GET", "/api/v1/checkpoints/{id}/files/{name:path}"): DOWNLOAD,
    ("GET", "/api/v1/billing/usage/checkpoints/current"): RESULTS,
    ("GET", "/api/v1/sessions"): RESULTS,
    ("POST", "/api/v1/sessions/search"): RESULTS,
    ("GET", "/api/v1/sessions/{id}"): RESULTS,
    **{(refusal.method, f"/api/v1{refusal.path}"): ANYBODY for refusal in REFUSALS},
}  # fmt: skip


def show_scopes(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document with the scopes of each route."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if (needed := NEEDED.get((method.upper(), path))) is not None:
                operation["x-scopes"] = list(needed)
    return document
