"""Calls that would cost far more than their few bytes."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

from attacking.ground import ROW, Ground, attack


def _sample(g: Ground, **sampling: Any) -> str:
    body = {"prompt": [5], "sampling": {"max_tokens": 4, "stop_ids": [], **sampling}}
    return g.refused(g.post(f"/v1/samplers/{g.sampler()}/generate", body))


def _asample(g: Ground, n: int, **params: Any) -> Any:
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [5]}]}
    body = {"prompt": prompt, "num_samples": n, "base_model": g.base, "sampling_params": {"max_tokens": 1, **params}}
    return g.wire("asample", body)


@attack("a million samples of one token, on the Tinker wire (150 bytes)", short=True)
def a_million_samples(g: Ground) -> str:
    return g.refused(_asample(g, 10**6), "samples")


@attack("sixty million samples in a call that is refused: the answer lists one id for each")
def ids_of_refused_samples(g: Ground) -> str:
    answer = _asample(g, 6 * 10**7)
    assert len(answer.content) < 2**20, f"an answer of {len(answer.content)} bytes"
    return f"{g.refused(answer)}; an answer of {len(answer.content)} bytes"


@attack("a million samples of a session's model")
def a_million_completions(g: Ground) -> str:
    with g.a_model() as model:
        body = {"prompts": [[5]] * 10**4, "sampling": {"n": 1024, "max_tokens": 1}}
        return g.refused(g.post(f"/v1/sessions/{model}/generate", body), "samples")


@attack("2^20 new tokens for each of 1,024 samples")
def endless_tokens(g: Ground) -> str:
    return _sample(g, max_tokens=2**20, n=1024)


@attack("numbers that sampling cannot take: -1, 0, 2^70, NaN and infinity")
def odd_numbers_of_sampling(g: Ground) -> str:
    sampler = g.sampler()
    odd = ['"max_tokens":-1', '"max_tokens":0', f'"max_tokens":{2**70}', '"temperature":NaN', '"temperature":1e999',
           '"top_p":0', '"top_p":NaN', '"top_k":-5', '"n":0', f'"seed":{2**200}']  # fmt: skip
    for one in odd:
        body = f'{{"prompt":[5],"sampling":{{{one}}}}}'.encode()
        g.refused(g.post(f"/v1/samplers/{sampler}/generate", body))
    return f"{len(odd)} refused"


@attack("numbers that sampling cannot take, on the Tinker wire")
def odd_numbers_of_the_wire(g: Ground) -> str:
    for params in ({"max_tokens": -1}, {"temperature": -1.0}, {"top_p": 7}, {"max_tokens": 2**70}, {"seed": "x"}):
        g.refused(_asample(g, 1, **params))
    return "5 refused"


@attack("logits of 2^19 positions", short=True)
def all_the_logits(g: Ground) -> str:
    row = {"tokens": [5] * 4096, "targets": [6] * 4096}
    with g.a_model() as model:
        return g.refused(g.post(f"/v1/sessions/{model}/forward", {"data": [row] * 128, "returns": ["logits"]}), "MB")


@attack("the 1,024 likeliest tokens at each of 2^18 positions")
def the_likeliest_everywhere(g: Ground) -> str:
    row = {"tokens": [5] * 4096, "targets": [6] * 4096}
    with g.a_model() as model:
        return g.refused(g.post(f"/v1/sessions/{model}/logprobs", {"data": [row] * 64, "top_k": 1024}), "MB")


@attack("one position, asked for a million times")
def the_same_position(g: Ground) -> str:
    body = {"data": [ROW], "returns": ["logits"], "positions": [[0] * 10**6]}
    with g.a_model() as model:
        return g.refused(g.post(f"/v1/sessions/{model}/forward", body), "MB")


@attack("an array whose shape says 2^40 numbers, and that holds none")
def a_shape_without_content(g: Ground) -> str:
    array = {"dtype": "float32", "shape": [2**20, 2**20], "base64": ""}
    with g.a_model() as model:
        for broken in (array, {**array, "shape": [-1, 4]}, {**array, "shape": [2**62, 2**62]}, {**array, "shape": [3]}):
            body = {"data": [{"tokens": broken, "targets": broken}], "loss": "cross_entropy"}
            g.refused(g.post(f"/v1/sessions/{model}/forward_backward", body))
    return "4 refused"


@attack("arrays of Python objects, of text and of kinds that do not exist")
def arrays_of_objects(g: Ground) -> str:
    content = base64.b64encode(b"\0" * 24).decode()
    with g.a_model() as model:
        for dtype in ("object", "O", "S8", "V4", "complex128", "datetime64[s]", ["float32"], "<f4,<f4"):
            body = {"data": [{**ROW, "tokens": {"dtype": dtype, "shape": [3], "base64": content}}]}
            g.refused(g.post(f"/v1/sessions/{model}/forward", body))
    return "8 refused"


@attack("sparse tensors that unfold to 4 GB (410 bytes)", short=True)
def unfolding_tensors(g: Ground) -> str:
    from tinker.proto import tinker_public_pb2 as proto

    message = proto.ForwardBackwardRequest(model_id=g.wire_model(), seq_id=1, loss_fn="cross_entropy")
    for _ in range(8):
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = b"\x05\0\0\0" * 4
        tensor = datum.loss_fn_inputs["target_tokens"]
        tensor.dtype = proto.DTYPE_INT64
        tensor.shape.extend([4, 2**24])
        tensor.sparse_csr.crow_indices = b"\0" * 40
    content = message.SerializeToString()
    answer = g.post("/api/v1/forward_backward", content, headers={"Content-Type": "application/x-protobuf"})
    return f"{len(content)} bytes: {g.refused(answer, 'cells')}"


@attack("a LoRA of rank ten million", short=True)
def a_huge_adapter(g: Ground) -> str:
    body = {"base": g.base, "adapter": {"name": "lora", "rank": 10**7}}
    return g.refused(g.post("/v1/sessions", body))


@attack("a LoRA of rank ten million, on the Tinker wire")
def a_huge_adapter_on_the_wire(g: Ground) -> str:
    lora = {"rank": 10**7}
    return g.refused(
        g.wire(
            "create_model",
            {"session_id": g.wire_session(), "model_seq_id": 0, "base_model": g.base, "lora_config": lora},
        )
    )


@attack("a pattern that takes for ever to match, as the adapter's targets", short=True)
def a_slow_pattern(g: Ground) -> str:
    body = {"base": g.base, "adapter": {"name": "lora", "rank": 4, "targets": "(([a-z_.0-9])+)+!"}}
    return g.refused(g.post("/v1/sessions", body), "cannot be a name")


@attack("a hundred thousand names as the adapter's targets")
def many_targets(g: Ground) -> str:
    body = {"base": g.base, "adapter": {"name": "lora", "rank": 4, "targets": [f"q{n}" for n in range(10**5)]}}
    return g.refused(g.post("/v1/sessions", body))


@attack("a million ids that end a completion")
def many_stop_ids(g: Ground) -> str:
    body = {"prompt": [5], "sampling": {"max_tokens": 4, "stop_ids": list(range(10**6))}}
    return g.refused(g.post(f"/v1/samplers/{g.sampler()}/generate", body), "4096")


@attack("33 million numbers in one request of 64 MiB, five times")
def many_values(g: Ground) -> str:
    body = b'{"prompt":[' + b"5," * (32 * 2**20 - 100) + b"5]}"
    sampler = g.sampler()
    said = {g.refused(g.post(f"/v1/samplers/{sampler}/generate", body), "values") for _ in range(5)}
    return "; ".join(said)


@attack("2^17 texts that end a completion, and one of 2^22 letters")
def many_stops(g: Ground) -> str:
    said = _sample(g, stop=["ab"] * 2**17)
    body = {"prompt": [5] * 8, "sampling": {"max_tokens": 64, "stop": ["a" * 2**22]}}
    found = g.ended(g.post(f"/v1/samplers/{g.sampler()}/generate", body))
    return f"{said}; the long one: {found.get('state')}"


@attack("a hundred thousand rows of one token")
def many_rows(g: Ground) -> str:
    body = {"data": [{"tokens": [5], "targets": [6]}] * 10**5, "loss": "cross_entropy"}
    with g.a_model() as model:
        return g.refused(g.post(f"/v1/sessions/{model}/forward_backward?wait=0", body), "32768")


@attack("a body of a hundred thousand brackets, and one of numbers with a hundred thousand digits")
def deep_bodies(g: Ground) -> str:
    sampler = g.sampler()
    for body in (
        b"[" * 10**5,
        b'{"a":' * 10**5,
        b'{"prompt":[' + b"9" * 10**5 + b"]}",
        b'{"prompt":[1e' + b"9" * 10**5,
    ):
        g.refused(g.post(f"/v1/samplers/{sampler}/generate", body))
        g.refused(g.wire("asample", body))
    return "8 refused"


@attack("a million names in one object, and a name that comes twice")
def wide_bodies(g: Ground) -> str:
    body = json.dumps({"prompt": [5], **{f"k{n}": n for n in range(10**5)}}).encode()
    said = g.refused(g.post(f"/v1/samplers/{g.sampler()}/generate", body))
    g.refused(g.post(f"/v1/samplers/{g.sampler()}/generate", b'{"prompt":[5],"prompt":"x"}'))
    return said[:80]


@attack("64 MiB of zeros as 64 KiB of gzip")
def a_body_that_unfolds(g: Ground) -> str:
    body = gzip.compress(b" " * 2**26)
    headers = {"Content-Encoding": "gzip"}
    return g.refused(g.post(f"/v1/samplers/{g.sampler()}/generate", body, headers=headers))[:80]


@attack("metadata of a megabyte")
def heavy_metadata(g: Ground) -> str:
    said = g.refused(g.post("/v1/sessions", {"base": g.base, "metadata": {"x": "y" * 2**20}}), "metadata")
    g.refused(g.wire("create_session", {"user_metadata": {"x": "y" * 2**20}}), "metadata")
    return said


@attack("learning rates and settings of a step that are no numbers", short=True)
def odd_numbers_of_a_step(g: Ground) -> str:
    model = g.wire_model()
    for seq, rate in enumerate(("NaN", "Infinity", "-1", '"fast"', "1e999"), 1):
        body = f'{{"model_id":"{model}","seq_id":{seq},"adam_params":{{"learning_rate":{rate}}}}}'.encode()
        g.refused(g.wire("optim_step", body))
    return "5 refused"
