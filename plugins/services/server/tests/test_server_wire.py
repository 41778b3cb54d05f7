"""Runs, sessions and checkpoints of the Tinker wire by plain requests, as its client sends them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from finetooth_server.keeping import checkpoints as checkpoints_module
from finetooth_server.keeping.checkpoints import LONGEST, SHORTEST
from finetooth_server.settings import Settings
from finetooth_server.tinker.refusals import REFUSALS

if find_spec("tinker") is None:
    pytest.skip("the package tinker is not installed", allow_module_level=True)

from finetooth_server.tinker.routes import tinker_router


class Wire:
    """Requests of one tenant."""

    def __init__(self, server: Any, key: str) -> None:
        self.server, self.key = server, key

    def ask(self, method: str, path: str, *, status: int = 200, **more: Any) -> Any:
        url = path if path.startswith("http") else f"{self.server.url}/api/v1/{path}"
        headers = {"X-API-Key": self.key, **more.pop("headers", {})}
        answer = httpx.request(method, url, headers=headers, timeout=60, **more)
        assert answer.status_code == status, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def post(self, path: str, body: Any = None, *, status: int = 200, **more: Any) -> Any:
        return self.ask("POST", path, json=body or {}, status=status, **more)

    def get(self, path: str, *, status: int = 200, **params: Any) -> Any:
        return self.ask("GET", path, params=params, status=status)

    def result(self, promise: Any) -> Any:
        """Of a call; a failed one has `error`."""
        return self.post("retrieve_future", {"request_id": promise["request_id"]})

    def session(self, **about: Any) -> str:
        body = {"tags": [], "user_metadata": {}, "sdk_version": "0", **about}
        return str(self.post("create_session", body)["session_id"])

    def model(self, session: str, number: int = 0, **config: Any) -> str:
        made = self.post(
            "create_model",
            {
                "session_id": session, "model_seq_id": number, "base_model": "tiny",
                "lora_config": {"rank": 4, **config}, "user_metadata": {"task": f"number {number}"},
            },
        )  # fmt: skip
        assert "error" not in self.result(made)
        return str(made["model_id"])

    def save(self, model: str, seq: int, name: str, route: str = "save_weights", **more: Any) -> str:
        saved = self.result(self.post(route, {"model_id": model, "seq_id": seq, "path": name, **more}))
        assert "error" not in saved, saved
        return str(saved["path"])


@pytest.fixture(scope="module")
def tenants(
    serve: Callable[..., Any], recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Wire, Wire]:
    """Two tenants of one server."""
    server = serve(Settings(tmp_path_factory.mktemp("wire"), {"tiny": recipe, "tiny too": recipe}), faces=("tinker",))
    scopes = ("train", "sample", "read", "download")
    ours, theirs = (Wire(server, server.service.keys.create(tenant, scopes)) for tenant in ("vision", "search"))
    return ours, theirs


def route_of(path: str) -> str:
    """Where the client finds a checkpoint."""
    model, kind, name = path.removeprefix("tinker://").split("/")
    return f"training_runs/{model}/checkpoints/{kind}/{name}"


@pytest.mark.slow
def test_runs_and_sessions_are_listed_newest_first_and_page_by_page(tenants: tuple[Wire, Wire]) -> None:
    ours, theirs = tenants
    session = ours.session(user_metadata={"team": "vision"}, display_name="Nightly run of cats")
    models = [ours.model(session, number) for number in range(3)]
    path = ours.save(models[1], 1, "half", user_metadata={"step": "5"}, ttl_seconds=7200)
    runs = ours.get("training_runs", limit=2)
    assert [run["training_run_id"] for run in runs["training_runs"]] == models[:0:-1]
    assert runs["cursor"] == {"offset": 0, "limit": 2, "total_count": 3}
    rest = ours.get("training_runs", limit=2, offset=2)["training_runs"]
    assert [run["training_run_id"] for run in rest] == models[:1]
    middle = runs["training_runs"][1]
    assert middle == ours.get(f"training_runs/{models[1]}")
    assert middle["user_metadata"] == {"task": "number 1"} and middle["model_owner"] == "vision"
    assert middle["is_lora"] and middle["lora_rank"] == 4 and middle["last_sampler_checkpoint"] is None
    saved = middle["last_checkpoint"]
    assert saved["tinker_path"] == path and saved["checkpoint_id"] == "weights/half" and not saved["public"]
    assert saved["checkpoint_type"] == "training" and saved["user_metadata"] == {"step": "5"}
    age = datetime.now(UTC) - datetime.fromisoformat(saved["time"])
    left = datetime.fromisoformat(saved["expires_at"]) - datetime.fromisoformat(saved["time"])
    assert 0 <= age.total_seconds() < 60 and abs(left.total_seconds() - 7200) < 60
    assert ours.get(f"training_runs/{models[1]}/checkpoints")["checkpoints"] == [saved]
    seen = ours.get(f"sessions/{session}")
    assert seen["training_run_ids"] == models and seen["sampler_ids"] == []
    assert seen["display_name"] == "Nightly run of cats" and seen["user_metadata"] == {"team": "vision"}
    later = ours.session()
    assert ours.get("sessions", limit=2)["sessions"] == [later, session]
    assert ours.get("sessions", limit=1, offset=1)["sessions"] == [session]
    assert session not in theirs.get("sessions")["sessions"] and theirs.get("training_runs")["training_runs"] == []
    for wrong in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"limit": "many"}, {"access_scope": "all"}):
        assert str(next(iter(wrong))) in ours.get("training_runs", status=400, **wrong)["error"]
    assert "the tenant of a key is its one project" in ours.get("training_runs", status=400, project_id="x")["error"]
    assert "project" in ours.post("create_session", {"project_id": "another"}, status=400)["error"]
    ours.session(project_id="vision")


@pytest.mark.slow
def test_sessions_are_found_by_name_notes_and_how_they_ended(tenants: tuple[Wire, Wire]) -> None:
    ours, theirs = tenants
    names = ["Red apple", "red pear", "green apple 100%"]
    made = [ours.session(display_name=name, user_metadata={"fruit": name[-5:]}) for name in names]
    theirs.session(display_name="red apple of others")
    ours.post(f"sessions/{made[1]}/finish", {"reason": {"type": "errored"}, "detail": "worm"})

    def found(**request: Any) -> list[str]:
        return [one["session_id"] for one in ours.post("sessions/search", request)["sessions"]]

    assert found(display_name="RED") == [made[1], made[0]]
    assert found(display_name="apple red") == [made[0]] and found(display_name="0%") == [made[2]]
    assert found(display_name="_ed") == []
    assert found(session_id=made[2]) == [made[2]] and found(session_id=made[2], display_name="pear") == made[:0:-1]
    assert found(user_metadata={"fruit": "apple"}) == [made[0]]
    assert found(display_name="red", statuses=[{"type": "active"}]) == [made[0]]
    ended = {"type": "client_finished", "reasons": ["errored"]}
    assert found(display_name="e", statuses=[ended]) == [made[1]]
    assert found(display_name="e", statuses=[{**ended, "reasons": ["success"]}]) == []
    (one,) = ours.post("sessions/search", {"session_id": made[1]})["sessions"]
    assert one["status"] == {"type": "client_finished", "reason": {"type": "errored"}, "detail": "worm"}
    assert one["owner"] == one["project_id"] == "vision" and one["checkpoints_count"] == 0
    pages, cursor = [], None
    for _ in range(5):
        page = ours.post("sessions/search", {"display_name": "e", "limit": 1, **({"cursor": cursor} if cursor else {})})
        pages += [one["session_id"] for one in page["sessions"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert pages == found(display_name="e") and made[::-1] == [one for one in pages if one in made]
    for wrong in ({"owner": {"type": "user", "owner_urns": ["x"]}}, {"project_ids": ["x"]}, {"limit": 201}):
        assert "error" in ours.post("sessions/search", wrong, status=400)
    assert "is not a time" in ours.post("sessions/search", {"cursor": {"last_created_at": "soon"}}, status=400)["error"]


@pytest.mark.slow
def test_a_checkpoint_is_kept_published_copied_and_deleted(
    tenants: tuple[Wire, Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tenants
    model = ours.model(ours.session())
    path = ours.save(model, 1, "mine", user_metadata={"step": "1"})
    route = route_of(path)

    def mine(who: Wire, path: str) -> dict[str, Any] | None:
        listed = who.get("checkpoints", limit=1000)["checkpoints"]
        return next((one for one in listed if one["tinker_path"] == path), None)

    ours.ask("PUT", f"{route}/ttl", json={"ttl_seconds": SHORTEST}, status=204)
    assert mine(ours, path)["expires_at"] is not None  # type: ignore[index]
    ours.ask("PUT", f"{route}/ttl", json={"ttl_seconds": None}, status=204)
    assert mine(ours, path)["expires_at"] is None  # type: ignore[index]
    for seconds in (SHORTEST - 1, LONGEST + 1, -1):
        assert "ttl_seconds" in ours.ask("PUT", f"{route}/ttl", json={"ttl_seconds": seconds}, status=400)["error"]
    # another tenant reads it once it is public, and no longer than that
    load = {"session_id": theirs.session(), "path": path, "optimizer": True}
    theirs.post("weights_info", {"tinker_path": path}, status=404)
    theirs.post("load_weights", {**load, "model_seq_id": 0}, status=404)
    for method in ("POST", "DELETE"):
        theirs.ask(method, f"{route}/publish", status=404)
    ours.ask("POST", f"{route}/publish", status=204)
    ours.ask("POST", f"{route}/publish", status=204)  # a request that is sent again
    assert mine(ours, path)["public"] and mine(theirs, path) is None  # type: ignore[index]
    assert theirs.post("weights_info", {"tinker_path": path})["lora_rank"] == 4
    loaded = theirs.result(theirs.post("load_weights", {**load, "model_seq_id": 1}))
    assert "error" not in loaded, loaded
    opened = {"session_id": load["session_id"], "sampling_session_seq_id": 0, "model_path": path}
    sampler = theirs.post("create_sampling_session", opened)["sampling_session_id"]
    assert theirs.get(f"samplers/{sampler}")["model_path"] == path
    theirs.ask("DELETE", route, status=404)
    theirs.ask("PUT", f"{route}/ttl", json={"ttl_seconds": None}, status=404)
    key = {"headers": {"X-Idempotency-Key": "once"}}
    asked = {"source_path": path, "destination_project_id": "search", "ttl_seconds": SHORTEST}
    copy = theirs.post("copy_weights", asked, **key)["tinker_path"]
    assert theirs.post("copy_weights", asked, **key)["tinker_path"] == copy != path
    assert theirs.post("copy_weights", asked)["tinker_path"] != copy
    kept = mine(theirs, copy)
    assert kept is not None and kept["expires_at"] and not kept["public"] and kept["user_metadata"] == {"step": "1"}
    assert "one project" in theirs.post("copy_weights", {**asked, "destination_project_id": "x"}, status=400)["error"]
    assert "access_token" in theirs.post("copy_weights", {**asked, "weights_access_token": "t"}, status=400)["error"]
    named = {"source_path": path, "session_id": load["session_id"], "model_seq_id": 7}
    assert theirs.post("copy_weights", named)["tinker_path"] == f"tinker://{load['session_id']}:train:7/weights/mine"
    theirs.post("copy_weights", {**named, "model_seq_id": 1}, status=409)  # that model trains
    ours.ask("DELETE", f"{route}/publish", status=204)
    theirs.post("weights_info", {"tinker_path": path}, status=404)
    prompt = {"prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]}, "sampling_params": {"max_tokens": 1}}
    sampled = theirs.result(theirs.post("asample", {"sampling_session_id": sampler, "seq_id": 0, **prompt}))
    assert "no checkpoint" in sampled["error"]
    ours.ask("DELETE", route, status=204)
    ours.ask("DELETE", route, status=404)
    assert mine(ours, path) is None
    # a copy stands without what it was made from, and trains on
    again = {"session_id": theirs.session(), "model_seq_id": 0, "path": copy, "optimizer": True}
    assert "error" not in theirs.result(theirs.post("load_weights", again))
    run = copy.removeprefix("tinker://").partition("/")[0]
    assert theirs.get(f"training_runs/{run}")["base_model"] == "tiny"
    step = theirs.post("optim_step", {"model_id": run, "seq_id": 1, "adam_params": {"learning_rate": 0.1}})
    assert "was closed" in theirs.result(step)["error"]
    used = theirs.get("billing/usage/checkpoints/current")["data"][0]
    assert used["checkpoint_count"] == 3 and used["size_bytes"] == 3 * kept["size_bytes"]
    soon = checkpoints_module.now() + SHORTEST + 1
    monkeypatch.setattr(checkpoints_module, "now", lambda: soon)
    assert mine(theirs, copy) is None


@pytest.mark.slow
def test_external_weights_are_fetched_by_addresses_that_end(
    tenants: tuple[Wire, Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tenants
    model = ours.model(ours.session())
    path, plain = ours.save(model, 1, "out", "save_weights_external"), ours.save(model, 2, "out")
    assert path == f"tinker://{model}/external_weights/out"
    listed = ours.get(f"training_runs/{model}/checkpoints")["checkpoints"]
    assert {one["checkpoint_type"] for one in listed} == {"external", "training"}
    given = ours.get(f"{route_of(path)}/external_weights_urls")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(given["urls"])
    url = given["urls"]["adapter_config.json"]
    fetched = httpx.get(url, timeout=30)
    assert fetched.status_code == 200 and fetched.json()["r"] == 4
    assert "external" in ours.get(f"{route_of(plain)}/external_weights_urls", status=400)["error"]
    theirs.get(f"{route_of(path)}/external_weights_urls", status=404)
    # the address is for this one file, and its ticket lets nobody do anything else
    other = url.replace("adapter_config.json", "adapter_model.safetensors")
    ticket = url.partition("?")[2]
    base = ours.server.url
    for wrong in (other, url[:-1] + ("0" if url[-1] != "0" else "1"), f"{base}/api/v1/sessions?{ticket}"):
        assert httpx.get(wrong, timeout=30).status_code == 401, wrong
    assert httpx.post(url, timeout=30).status_code == 401
    weak = Wire(ours.server, ours.server.service.keys.create("vision", ("train", "read")))
    weak.get(f"{route_of(path)}/external_weights_urls", status=403)
    weak.ask("POST", f"{route_of(path)}/publish", status=403)  # that would give the weights away
    passing = ours.server.service.keys.create("vision", ("download",))
    url = Wire(ours.server, passing).get(f"{route_of(path)}/external_weights_urls")["urls"]["adapter_config.json"]
    assert httpx.get(url, timeout=30).status_code == 200
    ours.server.service.keys.revoke(passing.split("_")[1])
    assert httpx.get(url, timeout=30).status_code == 401
    from finetooth_server import tickets

    late = tickets.now() + tickets.LASTS + 1
    url = given["urls"]["adapter_config.json"]
    assert httpx.get(url, timeout=30).status_code == 200
    monkeypatch.setattr(tickets, "now", lambda: late)
    assert httpx.get(url, timeout=30).status_code == 401
    refused = ours.post(
        "save_weights_external",
        {"model_id": model, "seq_id": 3, "path": "secret", "age_encryption_recipients": ["age1x"]},
    )
    assert "age_encryption_recipients is not offered" in ours.result(refused)["error"]


@pytest.mark.slow
def test_what_is_not_offered_says_so_and_why(tenants: tuple[Wire, Wire]) -> None:
    ours, _ = tenants
    for refusal in REFUSALS:
        path = refusal.path.removeprefix("/").replace("{id}", "x")
        said = ours.ask(refusal.method, path, status=400)["error"]
        assert said == refusal.sentence and refusal.what in said and refusal.reason in said
    model = ours.model(ours.session())
    save = {"model_id": model, "seq_id": 1, "sampling_session_seq_id": 0, "kind": "inflight"}
    assert "'inflight'" in ours.result(ours.post("save_weights_for_sampler", save))["error"]
    body = {"session_id": ours.session(), "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4}}
    said = ours.post("create_model", {**body, "optimizer_config": {"type": "dimuon"}}, status=400)["error"]
    assert "'dimuon': not offered, what it computes is not documented" in said


@pytest.mark.slow
@pytest.mark.parametrize("route", ["save_weights", "save_weights_for_sampler", "save_weights_external"])
def test_what_would_be_gone_at_once_is_not_saved(tenants: tuple[Wire, Wire], route: str) -> None:
    ours, _ = tenants
    model = ours.model(ours.session())
    for seq, seconds in enumerate((5, SHORTEST - 1, LONGEST + 1), start=1):
        body = {"model_id": model, "seq_id": seq, "path": f"short-{seq}", "ttl_seconds": seconds}
        assert "ttl_seconds is" in ours.result(ours.post(route, body))["error"]
    ours.save(model, 4, "long", route, ttl_seconds=SHORTEST)
    names = [one["checkpoint_id"] for one in ours.get(f"training_runs/{model}/checkpoints")["checkpoints"]]
    assert [name.rpartition("/")[2] for name in names] == ["long"]


@pytest.mark.slow
def test_a_checkpoint_of_another_shape_is_refused_by_its_name(tenants: tuple[Wire, Wire]) -> None:
    ours, _ = tenants
    session = ours.session()
    small, large = ours.model(session), ours.model(session, 1, rank=8)
    path = ours.save(small, 1, "narrow")
    said = ours.result(ours.post("load_weights", {"model_id": large, "seq_id": 1, "path": path}))["error"]
    assert "checkpoint 'narrow'" in said and "rank is 4 there and 8 here" in said
    assert str(ours.server.service.settings.folder) not in said, "it says where the server keeps its files"


@pytest.mark.parametrize(
    ("flags", "want"),
    [
        ({}, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}),
        ({"train_unembed": False}, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ({"train_attn": False, "train_unembed": False}, {"gate_proj", "up_proj", "down_proj"}),
        ({"train_mlp": False}, {"q_proj", "k_proj", "v_proj", "o_proj", "lm_head"}),
        ({"train_attn": False, "train_mlp": False}, {"lm_head"}),
    ],
    ids=["all", "no head", "no head or attention", "no mlp", "head"],
)
def test_a_lora_adds_to_the_parts_that_its_client_names(
    tenants: tuple[Wire, Wire], flags: dict[str, bool], want: set[str]
) -> None:
    """peft's own file of the adapter says where it is."""
    ours, _ = tenants
    path = ours.save(ours.model(ours.session(), **flags), 1, "parts", "save_weights_external")
    urls = ours.get(f"{route_of(path)}/external_weights_urls")["urls"]
    targets = httpx.get(urls["adapter_config.json"], timeout=30).json()["target_modules"]
    assert set(targets) == want
    about = ours.post("weights_info", {"tinker_path": path})
    assert {name: about[name] for name in flags} == flags
    assert about["train_unembed"] == ("lm_head" in want)
    assert about["train_attn"] == ("q_proj" in want) and about["train_mlp"] == ("up_proj" in want)


def test_a_lora_of_nothing_is_refused(tenants: tuple[Wire, Wire]) -> None:
    ours, _ = tenants
    config = {"rank": 4, "train_attn": False, "train_mlp": False, "train_unembed": False}
    body = {"session_id": ours.session(), "model_seq_id": 0, "base_model": "tiny", "lora_config": config}
    assert "no part of the model would train" in json.dumps(ours.post("create_model", body, status=400))


PAGE = Path(__file__).parents[4] / "docs" / "tinker.md"


def client_methods() -> dict[str, list[str]]:
    """Public methods of the client's classes, without the twins that are to be awaited."""
    from tinker import resources
    from tinker.lib.public_interfaces import admin_client, rest_client, sampling_client, service_client, training_client

    classes: list[Any] = [
        service_client.ServiceClient, training_client.TrainingClient, sampling_client.SamplingClient,
        rest_client.RestClient, admin_client.AdminClient,
        *(getattr(resources, name) for name in resources.__all__ if not name.endswith("RawResponse")),
    ]  # fmt: skip
    return {
        one.__name__: [
            name
            for name, value in vars(one).items()
            if name[0] != "_" and not name.endswith("_async") and callable(getattr(value, "__func__", value))
        ]
        for one in classes
    }


def server_routes() -> dict[str, str]:
    """Routes of the face: `METHOD /path`, without the names of parameters, and as it is."""
    found = {
        f"{method} {one.path.removeprefix('/api/v1')}"  # type: ignore[attr-defined]
        for one in tinker_router().routes
        for method in one.methods  # type: ignore[attr-defined]
    }
    return {re.sub(r"{[^}]*}", "{}", route): route for route in found}


def test_the_page_says_of_each_method_of_the_client_what_becomes_of_it() -> None:
    text, refused = PAGE.read_text(encoding="utf-8"), {f"{one.method} {one.path}": one for one in REFUSALS}
    page: dict[str, dict[str, tuple[str, str]]] = {}
    for section in text.split("\n## ")[1:]:
        rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]+)`)? ?\| (.+) \|$", section, re.M)
        page[section.split("\n")[0]] = {name: (route, said) for name, route, said in rows}
    for name, methods in client_methods().items():
        assert set(page[name]) == set(methods), name
        for method, (route, said) in page[name].items():
            assert route in {"", *server_routes().values()}, (name, method, route)
            if route in refused:
                one = refused[route]
                assert said == f"not offered, {one.reason}: {one.action}", (name, method)
            else:
                assert route or said.startswith("at the client"), (name, method)


def test_every_route_that_the_client_knows_is_served_or_refused() -> None:
    import tinker

    known: set[str] = set()
    for file in sorted(Path(tinker.__file__).parent.rglob("*.py")):
        if file.stem.endswith("_test"):
            continue
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            verb = getattr(call.func, "attr", "").strip("_")
            named = [one for one in call.args if isinstance(one, ast.Constant | ast.JoinedStr)]
            texts = [ast.unparse(one).strip("f'\"") for one in named]
            paths = [text for text in texts if text.startswith("/api/v1")]
            if paths and verb == "request":
                verb = texts[0]
            known |= {f"{verb.upper()} {re.sub('{[^}]*}', '{}', one.removeprefix('/api/v1'))}" for one in paths}
    assert len(known) > 40
    checkpoint = "/checkpoints/{}"  # one parameter at the client, whose value has two parts
    here = set(server_routes()) | {one.replace(f"{checkpoint}/{{}}", checkpoint) for one in server_routes()}
    assert known <= here, known - here
