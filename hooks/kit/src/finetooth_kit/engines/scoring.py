"""Checks of `forward` and `logprobs`: what an engine says of targets."""

from __future__ import annotations

import numpy as np
from finetooth_hooks.capabilities import ENGINE
from finetooth_hooks.errors import FinetoothError

from finetooth_kit.checks import expect, fail
from finetooth_kit.engines.cases import EngineCase, all_close, close, masked


def info_is_consistent(case: EngineCase) -> None:
    """Facts add up, capabilities are known ones, a fresh engine has done no step."""
    engine = case.engine()
    info = engine.info
    expect(
        0 < info.trained <= info.parameters, "info", f"{info.trained} of {info.parameters} train", "some, at most all"
    )
    unknown = sorted(engine.capabilities - set(ENGINE))
    expect(not unknown, "capabilities", f"unknown {unknown}", f"of {sorted(ENGINE)}")
    expect(engine.weights_version == 0, "weights_version", engine.weights_version, "0 before the first step")


def forward_gives_log_probabilities(case: EngineCase) -> None:
    """One array a datum, in the order given, shaped as its targets: at most 0, and 0 where the mask is false."""
    engine, data = case.engine(), case.data()
    result = engine.forward(data)
    expect(
        len(result.outputs) == len(data), "forward(data).outputs", len(result.outputs), f"one for each of {len(data)}"
    )
    for datum, outputs in zip(data, result.outputs, strict=True):
        called = f"forward(data).outputs of {datum.id}"
        logprobs = np.asarray(outputs["logprobs"])
        expect(logprobs.shape == datum.targets.shape, called, f"shape {logprobs.shape}", f"{datum.targets.shape}")
        expect(np.isfinite(logprobs).all() and (logprobs <= 1e-6).all(), called, logprobs, "finite, at most 0")
        expect((logprobs[datum.mask] < 0).any(), called, logprobs, "not 0 where the mask is true")
        expect((logprobs[~datum.mask] == 0).all(), called, logprobs[~datum.mask], "0 where the mask is false")
    wanted = sum(int(datum.mask.sum()) for datum in data)
    expect(result.targets == wanted, "forward(data).targets", result.targets, f"{wanted}, the targets that count")
    expect(0 < result.tokens <= result.padded, "forward(data)", f"tokens {result.tokens}, padded {result.padded}", "<=")


def probabilities_sum_to_one(case: EngineCase) -> None:
    """With all ids of the vocabulary as (N, K) targets, the probabilities at each position sum to 1."""
    engine = case.engine()
    datum = case.every_target(case.prompts()[1])
    (logprobs,) = engine.logprobs([datum])
    expect(
        logprobs.shape == datum.targets.shape, "logprobs of (N, K) targets", logprobs.shape, f"{datum.targets.shape}"
    )
    total = np.exp(logprobs.astype(np.float64)).sum(axis=1)
    close(engine, "sum of exp(logprobs) over the vocabulary", total, np.ones(len(datum)), "probabilities sum to 1")
    single = masked(case.data()[1], np.ones(len(case.data()[1]), dtype=bool))
    every = engine.logprobs([case.every_target(single.tokens.tolist())])[0]
    wanted = np.take_along_axis(every, single.targets[:, None], axis=1)[:, 0]
    close(engine, "logprobs of (N,) targets", engine.logprobs([single])[0], wanted, "the same targets among (N, K)")


def logprobs_equal_forward(case: EngineCase) -> None:
    """Scoring without a graph gives the numbers of `forward`."""
    engine, data = case.engine(), case.data()
    wanted = [outputs["logprobs"] for outputs in engine.forward(data).outputs]
    all_close(engine, "logprobs(data)", engine.logprobs(data), wanted, "what forward(data) gives")


def mask_only_selects(case: EngineCase) -> None:
    """Another mask changes no value where both are true; a datum without any target that counts gives zeros."""
    engine, datum = case.engine(), case.data()[2]
    n = len(datum)
    every = engine.logprobs([masked(datum, np.ones(n, dtype=bool))])[0]
    for name, mask in (("odd positions", np.arange(n) % 2 == 1), ("the first only", np.arange(n) == 0)):
        got = engine.logprobs([masked(datum, mask)])[0]
        close(engine, f"logprobs with a mask on {name}", got, np.where(mask, every, 0.0), "the same, 0 elsewhere")
    nothing = masked(datum, np.zeros(n, dtype=bool))
    got = engine.logprobs([nothing, datum])[0]
    expect((got == 0).all() and got.shape == (n,), "logprobs with an empty mask", got, f"{n} zeros")


def neighbours_do_not_matter(case: EngineCase) -> None:
    """A datum is scored alike alone, in a batch and in a batch in another order."""
    engine, data = case.engine(), case.data()
    alone = [engine.logprobs([datum])[0] for datum in data]
    all_close(engine, "logprobs(data)", engine.logprobs(data), alone, "each datum alone")
    got = engine.logprobs(data[::-1])[::-1]
    all_close(engine, "logprobs(data reversed), reversed back", got, alone, "each datum alone")


def the_future_does_not_matter(case: EngineCase) -> None:
    """A later token changes no earlier log-probability, and changes a later one."""
    engine = case.engine()
    tokens = case.prompts()[1]
    other = [*tokens[:4], tokens[4] % (case.vocab_size - 1) + 1, *tokens[5:]]
    a, b = (engine.logprobs([case.every_target(ids)])[0] for ids in (tokens, other))
    close(engine, "logprobs before a changed token", b[:4], a[:4], "the same as with the token unchanged")
    expect(not np.allclose(a[4], b[4], atol=1e-6), "logprobs after a changed token", b[4][:4], "other ones")


def unknown_role_is_refused(case: EngineCase) -> None:
    """A role the engine does not have is an error that names it; so is `reference` without that capability."""
    engine = case.engine()
    roles = ["nobody"] if "reference" in engine.capabilities else ["nobody", "reference"]
    for role in roles:
        try:
            engine.logprobs(case.data(), role=role)
        except FinetoothError as error:
            expect(role in str(error), f"logprobs(data, role={role!r})", error, "a message that names the role")
        else:
            fail(f"logprobs(data, role={role!r})", "a result", "a FinetoothError that names the role")


CHECKS = (
    info_is_consistent,
    forward_gives_log_probabilities,
    probabilities_sum_to_one,
    logprobs_equal_forward,
    mask_only_selects,
    neighbours_do_not_matter,
    the_future_does_not_matter,
    unknown_role_is_refused,
)
