"""The stream decoder computes what the transformers model computes: outputs, gradients, with shared beginnings."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Datum, PlanError
from finetooth_hooks.protocols import Device, PickedKernel
from finetooth_kernels.fp8 import fp8_linear
from finetooth_kernels.segments import check_segments
from finetooth_kit.fake_context import TRAIN
from finetooth_steps.layout import SHORTEST_SHARED, lay_out
from finetooth_steps.micro_batches import MicroBatch
from finetooth_steps.normalizers import count_normalizers
from finetooth_torch.backend import TorchBackend, TorchOptions
from finetooth_torch.compute import Compute
from finetooth_torch.decoder.bodies import StreamBody, TransformersBody
from finetooth_torch.layout.rectangles import make_rectangle
from finetooth_torch.layout.stream import make_stream
from finetooth_torch.planning.decisions import choose_decoder, stream_obstacle
from finetooth_torch.planning.memory import SLACK
from finetooth_torchshared.float8 import multiply_in_fp8, plain_linears
from hypothesis import given
from hypothesis import strategies as st

SHARED = [5, 9, 11, 3, 7, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33]


def pairs(seed: int = 0, count: int = 6) -> list[Datum]:
    """Rows that begin alike, some of them for longer, one that is the beginning of another, one of its own."""
    random = np.random.default_rng(seed)
    rest = [[int(t) for t in random.integers(2, 60, size=int(random.integers(3, 20)))] for _ in range(count)]
    longer = [int(t) for t in random.integers(2, 60, size=20)]
    rows = [SHARED + longer + tail if i % 2 else SHARED + tail for i, tail in enumerate(rest)]
    rows += [SHARED + longer, rest[0] + rest[1]]
    return [
        Datum.from_tokens(row, [0.0] * (i + 1) + [1.0] * (len(row) - i - 1), id=f"row:{i}")
        for i, row in enumerate(rows)
    ]


def body(engine: Any) -> Any:
    return engine._parts.network.body


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_gradients_are_the_models_own(
    kit: SimpleNamespace, kind: str, full: bool, checkpointing: bool
) -> None:
    if kit.decoder == "transformers":
        pytest.skip("this test compares both")

    def with_biases(model: Any) -> None:
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)

    made = [
        kit.engine(
            config=kit.config(kind),
            adapter=kit.adapter(full=full, targets=("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")),
            gradient_checkpointing=checkpointing,
            micro_batch_tokens=100_000,
            prepare=with_biases,
            options={"decoder": decoder},
        )
        for decoder in ("stream", "transformers")
    ]
    assert isinstance(body(made[0]), StreamBody) and isinstance(body(made[1]), TransformersBody)
    data = pairs()
    results = [engine.forward(data, returns=("logprobs", "entropy", "hidden", "logits")) for engine in made]
    for ours, theirs in zip(*(result.outputs for result in results), strict=True):
        for name, expected in theirs.items():
            np.testing.assert_allclose(ours[name], expected, rtol=2e-5, atol=2e-5, err_msg=name)
    losses = [engine.forward_backward(data, kit.nll).loss for engine in made]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert kit.relative(*map(kit.gradients, made)) < 2e-6


def test_a_shared_beginning_is_computed_once_and_changes_nothing(kit: SimpleNamespace) -> None:
    if kit.decoder == "transformers":
        pytest.skip("it shares nothing")
    engine, alone = kit.engine(micro_batch_tokens=100_000), kit.engine(micro_batch_tokens=60)
    data = pairs()
    rectangle = make_rectangle(data, lay_out(data, budget=10**6, packed=True)[0], pad_id=0, device=torch.device("cpu"))
    stream = make_stream(rectangle, share=True)
    saved = len(make_stream(rectangle, share=False)) - len(stream)
    # seven rows share SHARED; four of them 19 tokens more, all that the shortest of them has
    assert saved == 6 * len(SHARED) + 3 * 19
    engine.forward_backward(data, kit.nll)
    for datum in data:  # one row a call: nothing to share
        alone.forward_backward([datum], kit.nll, normalizer=count_normalizers(data))
    assert kit.relative(kit.gradients(engine), kit.gradients(alone)) < 1e-6


@pytest.mark.parametrize("head", [0, 3, 20])
def test_each_group_shares_its_own_prompt_whatever_all_rows_share(head: int) -> None:
    """Chat markup makes all rows begin alike for a few tokens; groups of rows share a long prompt behind that."""
    random = np.random.default_rng(1)
    prompts = [[*range(2, 2 + head), 40 + i, *map(int, random.integers(2, 39, size=40))] for i in range(3)]
    rows = [[*prompt, 50, *map(int, random.integers(2, 39, size=5))] for prompt in prompts for _ in range(4)]
    rows = [[*row[:-6], 50 + i % 4, *row[-5:]] for i, row in enumerate(rows)]
    data = [Datum.from_tokens(row, id=str(i)) for i, row in enumerate(rows)]
    batch = MicroBatch(tuple(range(12)), tuple(len(d) for d in data), packed=True)
    stream = make_stream(make_rectangle(data, batch, pad_id=0, device=torch.device("cpu")), share=True)
    common = 2 * head if head >= SHORTEST_SHARED else 0  # two of three groups save what all share
    assert sum(map(len, data)) - len(stream) == 3 * 3 * (head + 41) + common


def test_where_sharing_must_save_a_share_a_short_beginning_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: a system message in front of all rows is not worth a pass of its own, what half of them share is."""
    monkeypatch.setattr("finetooth_torch.layout.stream.least_saved", lambda device: 0.125)
    rows = [[*range(30), *(100 * i + n for n in range(300)), 40 * i + 1, *range(200)] for i in (1, 1, 2, 2)]
    rows = [[*row, 7 + i, 1] for i, row in enumerate(rows)]
    data = [Datum.from_tokens(row, id=str(i)) for i, row in enumerate(rows)]
    batch = MicroBatch(tuple(range(4)), tuple(len(d) for d in data), packed=True)
    stream = make_stream(make_rectangle(data, batch, pad_id=0, device=torch.device("cpu")), share=True)
    assert sum(map(len, data)) - len(stream) == 2 * 531
    assert len(stream.segments) == 6


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=8
    ),
    st.booleans(),
)
def test_every_row_sees_itself_and_nothing_else(rows: list[tuple[int, int, int, int]], share: bool) -> None:
    """Walking up from a row's last cell through the segments that see each other gives back the row's tokens."""
    stems = np.random.default_rng(0).integers(0, 50, size=(3, 40))
    tails = np.random.default_rng(1).integers(0, 3, size=(4, 40))
    data = []
    for i, (stem, head, tail, branch) in enumerate(rows):
        tokens = [*stems[stem, :head], *tails[branch, :tail], 1]
        data.append(Datum.from_tokens([*map(int, tokens), 0], id=str(i)))
    batch = MicroBatch(tuple(range(len(data))), tuple(len(d) for d in data), packed=True)
    rectangle = make_rectangle(data, batch, pad_id=0, device=torch.device("cpu"))
    stream = make_stream(rectangle, share=share)
    check_segments(stream.segments, len(stream))
    tokens, positions = stream.tokens.numpy(), stream.positions.numpy()
    for s, datum in enumerate(data):
        last = int(stream.cells_st[s, len(datum) - 1])
        seen: list[int] = []
        for segment in stream.segments:
            if segment.start <= last < segment.stop:
                seen += range(segment.start, last + 1)
            elif segment.stop <= last < segment.below:
                seen += range(segment.start, segment.stop)
        assert tokens[seen].tolist() == datum.tokens.tolist()
        assert positions[seen].tolist() == list(range(len(datum)))
        assert stream.cells_st[s, : len(datum)].tolist() == seen
    if not share:
        assert len(stream) == sum(map(len, data))
    assert all(  # nothing short is shared
        segment.below == segment.stop or segment.stop - segment.start >= SHORTEST_SHARED for segment in stream.segments
    )


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(60, 200), st.booleans())
def test_packed_micro_batches_hold_every_row_once_and_keep_the_budget(
    lengths: list[int], budget: int, groups: bool
) -> None:
    data = [
        Datum.from_tokens(list(range(n + 1)), id=str(i), group=str(i // 2) if groups else None)
        for i, n in enumerate(lengths)
    ]
    batches = lay_out(data, budget=budget, together="group" if groups else "sequence", packed=True)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(data)))
    for batch in batches:
        assert batch.positions == sum(batch.lengths) and list(batch.rows) == sorted(batch.rows)
        assert batch.positions <= budget or len({data[row].group or row for row in batch.rows}) == 1
        if groups:
            assert all(row ^ 1 in batch.rows or (row ^ 1) >= len(data) for row in batch.rows)


def test_graphs_that_live_side_by_side(kit: SimpleNamespace) -> None:
    """What one pass keeps for its backward pass is not written over by the next."""
    if kit.decoder == "transformers":
        pytest.skip("transformers' own affair")
    engine = kit.engine()
    network = engine._parts.network
    network.train(False)
    parameters = engine._parts.parameters.live

    def loss_of(data: list[Datum]) -> Any:
        batch = MicroBatch(tuple(range(len(data))), tuple(len(d) for d in data), packed=True)
        rectangle = make_rectangle(data, batch, pad_id=0, device=torch.device("cpu"))
        return network.outputs(rectangle, ("logprobs",))["logprobs"].sum()

    def gradients(loss: Any) -> list[Any]:
        return [x.clone() for x in torch.autograd.grad(loss, parameters)]

    one, other = pairs(1), pairs(2, count=3)
    alone = gradients(loss_of(one)), gradients(loss_of(other))
    first, second = loss_of(one), loss_of(other)
    with torch.no_grad():
        loss_of(one)
    for loss, expected in ((first, alone[0]), (second, alone[1])):
        for found, wanted in zip(gradients(loss), expected, strict=True):
            assert torch.equal(found, wanted)


def test_weights_side_by_side_stay_where_they_are(kit: SimpleNamespace) -> None:
    """Models over the same weights agree about where these lie, and a weight that is replaced is found again."""
    if kit.decoder == "transformers":
        pytest.skip("transformers' own affair")
    from finetooth_native.stream_decoder import StreamDecoder

    engine = kit.engine(adapter=kit.adapter(full=True))
    network = engine._parts.network

    def decoder() -> StreamDecoder:
        body = network.base.get_submodule(network.facts.body)
        return StreamDecoder(body, network.facts, lambda module: None, checkpointing=False, compute=network.compute)

    first, second = decoder(), decoder()
    first.lay_out()
    weights = [parameter for name, parameter in network.base.named_parameters() if "_proj" in name]
    places, values = [w.data_ptr() for w in weights], [w.detach().clone() for w in weights]
    second.lay_out()
    first.lay_out()
    assert [w.data_ptr() for w in weights] == places
    group = first.layers[0].qkv
    query = network.base.get_submodule(network.facts.body).layers[0].self_attn.q_proj.weight
    query.data = query.data + 1.0
    parts = group.parts()
    assert parts is not None and torch.equal(parts.weight[: len(query)], query.detach())
    assert parts.weight.data_ptr() == query.data_ptr(), "a change of the weight is a change of the buffer"
    query.data -= 1.0
    for weight, value in zip(weights, values, strict=True):
        torch.testing.assert_close(weight.detach(), value)


@pytest.mark.slow
def test_checkpointing_lets_go_of_what_it_computes_again(kit: SimpleNamespace) -> None:
    if kit.decoder == "transformers":
        pytest.skip("transformers' own affair")
    real = Compute.of(kit.kernels()).gated_mlp
    alive: dict[bool, int] = {}
    for checkpointing in (False, True):
        made: list[weakref.ref[Any]] = []

        def gated(rows: Any, activation: str, made: Any = made) -> Any:
            made.append(weakref.ref(rows.untyped_storage()))
            return real(rows, activation)

        kernels = {**kit.kernels(), "gated_mlp": PickedKernel("test", gated)}
        engine = kit.engine(gradient_checkpointing=checkpointing, micro_batch_tokens=100_000, kernels=kernels)
        data = pairs()
        batch = lay_out(data, budget=10**6, packed=True)[0]
        rectangle = make_rectangle(data, batch, pad_id=0, device=torch.device("cpu"))
        made.clear()  # of the trial that an engine is built with
        states = body(engine).states(rectangle, everywhere=True)
        gc.collect()
        assert states.rows.requires_grad and len(made) >= 2
        alive[checkpointing] = sum(reference() is not None for reference in made)
    assert alive == {False: 2, True: 0}


def test_dropout_keeps_rows_apart(kit: SimpleNamespace) -> None:
    """Two rows with a common beginning get masks of their own there."""
    engine = kit.engine(adapter=kit.adapter(dropout=0.5), micro_batch_tokens=100_000)
    data = [Datum.from_tokens([*SHARED, tail], id=str(tail)) for tail in (40, 41)]
    first, second = engine.forward(data, returns=("logprobs",)).outputs
    assert not np.allclose(first["logprobs"][:10], second["logprobs"][:10])
    first, second = (outputs for outputs in engine.logprobs(data))  # and none without dropout
    np.testing.assert_allclose(first[:16], second[:16], rtol=1e-5)


def test_position_ids_of_a_datums_own_are_kept(kit: SimpleNamespace) -> None:
    engine = kit.engine(micro_batch_tokens=100_000)
    plain = Datum.from_tokens([*SHARED, 40], id="plain")
    moved = replace(plain, positions=np.arange(len(plain)) * 2, id="moved")
    alone = engine.logprobs([moved])[0]
    together = engine.logprobs([plain, moved])
    np.testing.assert_allclose(together[1], alone, rtol=1e-5)
    assert not np.allclose(together[0], alone, rtol=1e-2)


def test_what_an_optimizer_writes_into_a_weight_is_computed_with(kit: SimpleNamespace) -> None:
    """Weights share one buffer; writing to them, or replacing one, must both be seen."""
    engine = kit.engine(adapter=kit.adapter(full=True))
    data = pairs()
    attention = engine._parts.network.base.model.layers[0].self_attn
    before = engine.logprobs(data)[0]
    with torch.no_grad():
        attention.k_proj.weight.add_(0.1)
    written = engine.logprobs(data)[0]
    attention.k_proj.weight.data = attention.k_proj.weight.data - 0.1
    replaced = engine.logprobs(data)[0]
    assert not np.allclose(before, written)
    np.testing.assert_allclose(before, replaced, rtol=1e-4, atol=1e-5)


def test_full_weights_survive_a_round_trip(kit: SimpleNamespace, tmp_path: Path) -> None:
    """Views into a buffer are saved, exported and restored as the weights they are."""
    engine, other = (kit.engine(adapter=kit.adapter(full=True)) for _ in range(2))
    data = pairs()
    engine.forward_backward(data, kit.nll)
    engine.step()
    engine.save(tmp_path / "state")
    other.load(tmp_path / "state")
    for a, b in zip(engine.logprobs(data), other.logprobs(data), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_decoder_is_chosen_with_a_reason(kit: SimpleNamespace) -> None:
    facts = kit.facts(kit.config())
    unknown, gpu = replace(facts, block=None), replace(kit.hardware, devices=(Device("cuda:0", "a GPU", 2**34),))
    capped = replace(facts, attention=replace(facts.attention, softcap=50.0))
    dynamic = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 256}
    for described, hardware in ((facts, kit.hardware), (facts, gpu), (capped, kit.hardware)):
        assert stream_obstacle(described, hardware, "auto") == ""
    assert stream_obstacle(capped, gpu, "auto", windows=True) == ""
    assert choose_decoder("", gpu, "auto", brought=True).value == "stream"
    assert choose_decoder("", gpu, "transformers", brought=True).value == "transformers"
    lacking = choose_decoder("", gpu, "auto", brought=False)
    assert lacking.value == "transformers" and "no plugin brings one that serves a GPU" in lacking.reason
    for obstacle, words in (
        (stream_obstacle(unknown, kit.hardware, "auto"), "its layers have no description"),
        (stream_obstacle(unknown, kit.hardware, "auto", config=dynamic), "change with the length of a row"),
        (stream_obstacle(facts, kit.hardware, "eager"), "attention=eager is for the model's own code"),
        (stream_obstacle(capped, gpu, "auto"), "no window, cap or sinks"),
        (stream_obstacle(facts, kit.hardware, "auto", routed=True), "losses of routers"),
    ):
        chosen = choose_decoder(obstacle, kit.hardware, "auto", brought=True)
        assert chosen.value == "transformers" and words in chosen.reason
        with pytest.raises(PlanError, match=words):
            choose_decoder(obstacle, kit.hardware, "stream", brought=True)


def test_a_decoder_for_another_device_is_asked_for(kit: SimpleNamespace) -> None:
    """Which devices a provider serves is its entry's to say, and the picker's to decide."""
    gpu = replace(kit.hardware, devices=(Device("cuda:0", "a GPU", 2**34),))
    picked: list[bool] = []

    def pick(wanted: Any) -> dict[str, PickedKernel]:
        picked.append("stream_decoder" in wanted)
        return kit.decoding() if "stream_decoder" in wanted else {}

    request = kit.plan_request(kit.facts(kit.config()), hardware=gpu, kernels=pick)
    made = TorchBackend(TorchOptions(), kit.context).plan(request)
    assert any(picked)
    assert {d.setting: d.value for d in made.decisions}["backend.decoder"] == "stream"


def test_without_a_provider_the_models_own_code_computes(kit: SimpleNamespace) -> None:
    """As it is where finetooth-native is not installed: the plan says so, and the run trains alike."""
    facts = kit.facts(kit.config())
    chosen = choose_decoder("", kit.hardware, "auto", brought=False)
    assert (chosen.value, "finetooth-native" in chosen.reason) == ("transformers", True)
    with pytest.raises(PlanError, match=r"backend\.decoder=stream: no plugin brings one"):
        choose_decoder("", kit.hardware, "stream", brought=False)
    for kernels, value in ((lambda wanted: {}, "transformers"), (None, "transformers"), (kit.pick, "stream")):
        made = TorchBackend(TorchOptions(), kit.context).plan(kit.plan_request(facts, kernels=kernels))
        assert {d.setting: d.value for d in made.decisions}["backend.decoder"] == value
    data = pairs()
    one, other = (kit.engine(kernels=kernels, adapter=kit.adapter()) for kernels in ({}, kit.decoding()))
    assert isinstance(one._parts.network.body, TransformersBody)
    assert one.forward_backward(data, kit.nll).loss == pytest.approx(
        other.forward_backward(data, kit.nll).loss, rel=1e-5
    )
    assert kit.relative(kit.gradients(one), kit.gradients(other)) < 2e-5


@pytest.mark.parametrize("full", [False, True])
def test_in_8_bits_both_decoders_multiply_the_same_numbers(kit: SimpleNamespace, full: bool) -> None:
    """In float32, where hardly a number is rounded to another level for the last bit of what it was; rows are equally
    long and share nothing, so that the same are multiplied together."""
    if kit.decoder == "transformers":
        pytest.skip("this test compares both")
    random = np.random.default_rng(0)
    data = [Datum.from_tokens([i, *map(int, random.integers(2, 60, size=23))], id=str(i)) for i in range(2, 8)]

    def trained(decoder: str, *, eight: bool = True) -> tuple[Any, Any]:
        engine = kit.engine(
            adapter=kit.adapter(full=full), gradient_checkpointing=full, micro_batch_tokens=1000, decoder=decoder,
            prepare=(lambda model: multiply_in_fp8(plain_linears(model.model.layers), fp8_linear)) if eight else None,
        )  # fmt: skip
        assert isinstance(body(engine), StreamBody) is (decoder == "stream")
        logprobs = np.concatenate([of["logprobs"] for of in engine.forward(data, returns=("logprobs",)).outputs])
        engine.forward_backward(data, kit.nll)
        return logprobs, kit.gradients(engine)

    ours, theirs, wide = trained("stream"), trained("transformers"), trained("stream", eight=False)
    for other, least, most in ((theirs, 0.0, 1e-3), (wide, 1e-2, 1.0)):
        assert least <= np.abs(ours[0] - other[0]).max() <= most and least <= kit.relative(ours[1], other[1]) <= most


@pytest.mark.parametrize("frozen", [True, False])
def test_in_8_bits_the_plan_takes_the_stream_decoder_and_counts_what_it_keeps(
    kit: SimpleNamespace, frozen: bool
) -> None:
    if kit.decoder == "transformers":
        pytest.skip("of the stream decoder")
    card = (Device("cuda:0", "a GPU", 2**34),)
    facts = kit.facts(kit.config("llama"))

    def planned(precision: str) -> Any:
        train = replace(TRAIN, precision=precision, micro_batch_tokens=4096, gradient_checkpointing=False)
        request = kit.plan_request(
            facts, hardware=replace(kit.hardware, devices=card, precisions=("bf16", "fp8")), base_frozen=frozen,
            train=train, trained=1000 if frozen else 10_000,
        )  # fmt: skip
        return TorchBackend(TorchOptions(), kit.context).plan(request)

    eight, plain = planned("fp8"), planned("bf16")
    decided = {decision.setting: decision.value for decision in eight.decisions}
    assert decided["backend.decoder"] == "stream" and decided["train.precision"] == "fp8"
    inputs = 3 * facts.hidden_size + facts.ffn_size  # of four groups; heads are as wide as states here
    kept = 5 * facts.ffn_size + (0 if frozen else facts.layers * inputs)
    tokens = TRAIN.batch_size * 30
    more = eight.memory.parts["activations"] - plain.memory.parts["activations"]
    assert more == pytest.approx(SLACK * tokens * kept, rel=0.01)
