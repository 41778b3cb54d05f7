"""Calls and names: numbers, queues, many at once, long ones, what is left behind."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx

from attacking.ground import LORA, ROW, Ground, attack

LONG = {"tokens": [5] * 256, "targets": [6] * 256}


@attack("8,192 tokens of training at once, while another tenant takes small steps", short=True)
def a_long_call(g: Ground) -> str:
    with g.a_model() as model:
        calls = [
            g.post(f"/v1/sessions/{model}/forward_backward?wait=0", {"data": [LONG] * 32, "loss": "cross_entropy"})
            for _ in range(6)
        ]
        return str([g.ended(one, 60)["state"] for one in calls])


@attack("a thousand samples in one call, while another tenant samples", short=True)
def a_thousand_samples(g: Ground) -> str:
    body = {"prompt": [5, 6], "sampling": {"n": 1000, "max_tokens": 64, "stop_ids": []}}
    found = g.ended(g.post(f"/v1/samplers/{g.sampler()}/generate?wait=0", body), 60)
    return str(found.get("state") or found)[:100]


@attack("256 sampling calls at once from one tenant")
def many_samplings(g: Ground) -> str:
    sampler = g.sampler()
    body = {"prompt": [5, 6], "sampling": {"max_tokens": 64, "stop_ids": []}}
    ids = g.side_by_side(256, lambda _: g.post(f"/v1/samplers/{sampler}/generate?wait=0", body).json()["id"])
    states = [g.get(f"/v1/calls/{ids[-1]}?wait=20").json()["state"]]
    return f"{len(ids)} taken; the last {states[0]}"


@attack("a model for each of 16 sessions, called in turns, so that others are put to disk")
def engines_in_turns(g: Ground) -> str:
    models, said = [], ""
    try:
        for _ in range(20):
            answer = g.post("/v1/sessions?wait=30", {"base": g.base, "adapter": LORA})
            if answer.status_code == 429:
                said = answer.json()["error"]
                break
            models.append(g.ended(answer)["session"])
        for model in models * 2:
            g.ended(g.post(f"/v1/sessions/{model}/zero_grad?wait=10", {}))
    finally:
        for model in models:
            g.close(model)
    assert said, "there is no bound on models"
    return f"{len(models)} models, then: {said}"


@attack("13 checkpoints, each sampled once: an engine in memory for each")
def variants_of_a_model(g: Ground) -> str:
    with g.a_model() as model:
        for n in range(13):
            saved = g.ended(
                g.post(f"/v1/sessions/{model}/save?wait=30", {"name": f"v{g.number}-{n}", "kind": "weights"})
            )
            sampler = g.post("/v1/samplers", {"checkpoint": saved["result"]["checkpoint"]}).json()["id"]
            g.ended(g.post(f"/v1/samplers/{sampler}/generate?wait=30", {"prompt": [5], "sampling": {"max_tokens": 2}}))
    return "13 sampled"


@attack("40 models opened and closed, one after the other")
def models_that_come_and_go(g: Ground) -> str:
    for _ in range(40):
        with g.a_model():
            pass
    return "none was refused"


@attack("30 forwards whose gradients nobody asks for")
def handles_without_end(g: Ground) -> str:
    with g.a_model() as model:
        for _ in range(30):
            found = g.ended(g.post(f"/v1/sessions/{model}/forward", {"data": [LONG], "loss": "cross_entropy"}))
    return str(found["state"])


@attack("numbers of calls that are no numbers: 0, -1, 2^62, 1.5, two of them")
def odd_numbers_of_calls(g: Ground) -> str:
    with g.a_model() as model:
        found = [
            g.post(f"/v1/sessions/{model}/zero_grad?wait=0&{query}", {}).status_code
            for query in ("seq=0", "seq=-1", f"seq={2**62}", "seq=1.5", "seq=x", "seq=%00", f"seq={'9' * 5000}")
        ]
    assert set(found) <= {400, 422}, found
    wire = g.wire_model()
    for seq in (-1, 2**62, 1.5, "1", True, [1]):
        answer = g.wire("optim_step", {"model_id": wire, "seq_id": seq, "adam_params": {"learning_rate": 0.1}})
        assert answer.status_code == 400, (seq, answer.text)
    return str(found)


@attack("the number of a call used again for another operation: refused by name", short=True)
def a_number_for_two_operations(g: Ground) -> str:
    with g.a_model() as model:
        g.ended(g.post(f"/v1/sessions/{model}/zero_grad?seq=1", {}))
        again = g.post(f"/v1/sessions/{model}/zero_grad?seq=1", {})
        assert again.status_code == 200 and again.json()["state"] == "done"
        return g.refused(g.post(f"/v1/sessions/{model}/step?seq=1", {}), "zero_grad")


@attack("a call whose number leaves a gap: it may wait, and nobody else")
def a_gap_in_numbers(g: Ground) -> str:
    with g.a_model() as model:
        answer = g.post(f"/v1/sessions/{model}/zero_grad?seq=1000000&wait=2", {})
        assert answer.status_code in (202, 400, 409), answer.text
    return f"status {answer.status_code}"


@attack("models named as queues of samplers: `sampler:` and another tenant's id", short=True)
def names_of_queues(g: Ground) -> str:
    found = []
    for id_ in (f"sampler:{g.theirs.sampler}", f"sampler:{g.sampler()}", "sampler:aaaaaaaa", "sampler-aaaaaaaa"):
        answer = g.post("/v1/sessions?wait=10", {"base": g.base, "adapter": LORA, "id": id_})
        found.append(answer.status_code)
        if answer.status_code in (200, 202):
            assert not id_.startswith("sampler:"), f"a model is called {id_!r}"
            g.close(id_)
        assert answer.status_code < 500, answer.text
    return str(found)


@attack("another tenant's model id, in other letters, with other separators, with blanks")
def nearly_the_same_names(g: Ground) -> str:
    """Ids are each tenant's own: what another one took is neither refused nor told, and makes a model of its own."""
    theirs, found = g.theirs.model, []
    for id_ in (theirs, theirs.upper(), theirs.replace("-", ":")):
        before = g.get(f"/v1/sessions/{id_}", key="namesake").status_code
        body = {"base": g.base, "adapter": LORA, "id": id_}
        made = g.ended(g.post("/v1/sessions?wait=30", body, key="namesake"))
        found.append(str(made.get("state", made.get("error"))))
        if made.get("state") == "done":
            assert before == 404, f"{id_!r} was there: {before}"
            mine = g.get(f"/v1/sessions/{id_}", key="namesake").json()
            assert mine["metadata"] == {}, "the model is another tenant's"
            g.send("DELETE", f"/v1/sessions/{id_}", key="namesake")
    for id_ in (theirs + ".", f" {theirs}", theirs + "\u200b", "../" + theirs):
        answer = g.post("/v1/sessions?wait=5", {"base": g.base, "adapter": LORA, "id": id_}, key="namesake")
        assert 400 <= answer.status_code < 500, (id_, answer.text)
        found.append(str(answer.status_code))
    return str(found)  # that the other tenant's model goes on as it was is seen by its own turns


@attack("600 calls in a queue that nobody fetches, behind a gap")
def a_full_queue(g: Ground) -> str:
    with g.a_model() as model:

        def submit(n: int) -> int:
            return g.post(f"/v1/sessions/{model}/zero_grad?seq={n + 2}&wait=0", {}).status_code

        found = g.flood(600, submit, workers=8)  # behind a gap: none is executed
    assert set(found) <= {202, 429, 409, 400}, set(found)
    return f"{found.count(202)} taken, {found.count(429)} refused"


@attack("200 requests that wait for a result that does not come")
def many_that_wait(g: Ground) -> str:
    with g.a_model() as model:
        call = g.post(f"/v1/sessions/{model}/zero_grad?seq=5&wait=0", {}).json()["id"]
        head = g.head("GET", f"/v1/calls/{call}?wait=30")
        with g.connections(200) as opened:
            for one in opened:
                one.sendall(head)
            time.sleep(4)
    return "let go"


@attack("100 streams that nobody reads")
def many_streams(g: Ground) -> str:
    body = {"prompt": [5], "sampling": {"max_tokens": 256, "stop_ids": [], "n": 4}}
    call = g.post(f"/v1/samplers/{g.sampler()}/generate?wait=0", body).json()["id"]
    head = g.head("GET", f"/v1/calls/{call}/stream")
    with g.connections(100) as opened:
        for one in opened:
            one.sendall(head)
        time.sleep(3)
    return str(g.get(f"/v1/calls/{call}?wait=20").json()["state"])


@attack("2,000 sessions, or as many as are answered in 15 s, each left alone")
def sessions_left_alone(g: Ground) -> str:
    found = g.flood(2000, lambda _: g.wire("create_session", {}, key="careless").status_code, workers=4)
    return f"{found.count(200)} made, {found.count(429)} refused"


@attack("1,000 samplers, or as many as are answered in 15 s, each left alone")
def samplers_left_alone(g: Ground) -> str:
    found = g.flood(1000, lambda _: g.post("/v1/samplers", {"base": g.base}, key="careless").status_code, workers=4)
    return f"{found.count(200)} made, {found.count(429)} refused"


@attack("60 checkpoints, one after the other")
def many_checkpoints(g: Ground) -> str:
    with g.a_model() as model:
        found = [
            g.ended(g.post(f"/v1/sessions/{model}/save?wait=30", {"name": f"m{g.number}", "kind": "weights"}))["state"]
            for _ in range(60)
        ]
    return f"{found.count('done')} saved, {found.count('failed')} refused"


@attack("names of checkpoints that are paths, zeros, or 100,000 letters")
def odd_names_of_checkpoints(g: Ground) -> str:
    with g.a_model() as model:
        for name in ("../../x", "/etc/passwd", "a\0b", "x" * 10**5, "", ".", "..", "con/aux", "\u202e", "~"):
            found = g.ended(g.post(f"/v1/sessions/{model}/save?wait=10", {"name": name}))
            assert found.get("state") != "done" or "/" not in name, (name, found)
    inside = {path.name for path in g.server.place.iterdir()}
    assert "x" not in inside, inside
    return "none left the folder"


@attack("tokens that no vocabulary has, beside another tenant's", short=True)
def tokens_beyond_the_vocabulary(g: Ground) -> str:
    sampler = g.sampler()
    for token in (-1, 2048, 2**31, 2**62, 2**80):
        g.refused(
            g.post(f"/v1/samplers/{sampler}/generate?wait=20", {"prompt": [5, token], "sampling": {"max_tokens": 4}})
        )
    with g.a_model() as model:
        for token in (-1, 2048, 2**40):
            row = {"tokens": [5, token], "targets": [6, 7]}
            g.refused(g.post(f"/v1/sessions/{model}/forward", {"data": [row]}))
            row = {"tokens": [5, 6], "targets": [6, token]}
            g.refused(g.post(f"/v1/sessions/{model}/forward", {"data": [row], "loss": "cross_entropy"}))
    return "11 refused"


@attack("weights of a model driven to infinity, on the base that all share", short=True)
def poisoned_weights(g: Ground) -> str:
    with g.a_model() as model:
        body = {"data": [ROW], "loss": "cross_entropy"}
        for _ in range(5):
            g.ended(g.post(f"/v1/sessions/{model}/forward_backward", body))
            settings = {"learning_rate": 1e30, "max_grad_norm": 0.0}
            found = g.ended(g.post(f"/v1/sessions/{model}/step", {"settings": settings}))
        found = g.ended(g.post(f"/v1/sessions/{model}/generate", {"prompts": [[5]], "sampling": {"max_tokens": 4}}))
    return str(found.get("state"))


@attack("losses and outputs that no plugin has, or that name Python")
def odd_losses(g: Ground) -> str:
    with g.a_model() as model:
        for loss in (
            "os:system",
            "../loss",
            {"name": "cross_entropy", "__class__": "x"},
            {"use": "./x.py"},
            5,
            [],
            "x" * 10**4,
        ):
            g.refused(g.post(f"/v1/sessions/{model}/forward_backward", {"data": [ROW], "loss": loss}))
    return "7 refused"


@attack("sections of a recipe that are the server's: model, data, plugins, output, a path as a name", short=True)
def sections_of_the_server(g: Ground) -> str:
    for section in ({"plugins": ["./x.py"]}, {"output": "/tmp/x"}, {"train": {"precision": "fp16"}},
                    {"model": "x"}, {"adapter": {"use": "./x.py"}}, {"optimizer": "../../x"},
                    {"train": {"max_steps": "1e9"}}):  # fmt: skip
        g.refused(g.post("/v1/sessions?wait=10", {"base": g.base, **section}))
    return "7 refused"


@attack("a model closed again and again while its calls run")
def closed_while_it_runs(g: Ground) -> str:
    for _ in range(5):
        model = g.model()
        with ThreadPoolExecutor(4) as pool:
            calls = [
                pool.submit(
                    g.post, f"/v1/sessions/{model}/forward_backward?wait=5", {"data": [LONG], "loss": "cross_entropy"}
                )
                for _ in range(4)
            ]
            g.close(model)
        assert all(one.result().status_code < 500 for one in calls)
    return "5 closed"


@attack("a checkpoint deleted while it is sampled")
def deleted_while_sampled(g: Ground) -> str:
    with g.a_model() as model:
        saved = g.ended(g.post(f"/v1/sessions/{model}/save?wait=30", {"name": f"d{g.number}", "kind": "weights"}))
        checkpoint = saved["result"]["checkpoint"]
        sampler = g.post("/v1/samplers", {"checkpoint": checkpoint}).json()["id"]
        body = {"prompt": [5], "sampling": {"max_tokens": 512, "stop_ids": []}}
        calls = [g.post(f"/v1/samplers/{sampler}/generate?wait=0", body) for _ in range(4)]
        g.send("DELETE", f"/v1/checkpoints/{checkpoint}")
        calls.append(g.post(f"/v1/samplers/{sampler}/generate?wait=0", body))
        return str([g.ended(one)["state"] if one.status_code < 400 else one.status_code for one in calls])


@attack("times to live that are none: 0, -1, NaN, 1e308")
def odd_times_to_live(g: Ground) -> str:
    model = g.wire_model()
    for seq, ttl in enumerate(("0", "-1", "NaN", "1e308", '"x"'), 1):
        body = f'{{"model_id":"{model}","seq_id":{seq},"path":"t{seq}","ttl_seconds":{ttl}}}'.encode()
        answer = g.wire("save_weights", body)
        assert answer.status_code < 500, answer.text
        assert g.future(answer.json()["request_id"]).status_code < 500
    return "none failed the server"


@attack("1,000 heartbeats, or as many as are answered in 15 s, and heartbeats of sessions that do not exist")
def many_heartbeats(g: Ground) -> str:
    session = g.wire_session()
    found = g.flood(1000, lambda _: g.wire("session_heartbeat", {"session_id": session}).status_code, workers=4)
    assert g.wire("session_heartbeat", {"session_id": "x" * 10**4}).status_code == 404
    assert set(found) == {200}, set(found)
    return f"{len(found)} answered"


@attack("telemetry of 32 MiB")
def heavy_telemetry(g: Ground) -> str:
    answer: httpx.Response = g.wire("telemetry", {"events": ["x" * 2**25]})
    return f"status {answer.status_code}"
