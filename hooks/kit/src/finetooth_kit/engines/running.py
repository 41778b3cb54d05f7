"""Checks of a running batch: the capability `continuous`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from finetooth_hooks.continuous import RunningBatch, Written
from finetooth_hooks.engine import Engine
from finetooth_hooks.errors import EngineError
from finetooth_hooks.sampling import Completion, Sampling

from finetooth_kit.checks import CheckSkipped, expect
from finetooth_kit.engines.cases import EngineCase, close
from finetooth_kit.losses import WEIGHTED_NLL

Request = tuple[Sequence[int], Sampling]
_STEPS = 200


def _requests(case: EngineCase) -> list[Request]:
    """Greedy and sampled ones of several lengths, with one and with two samples."""
    kinds = (
        Sampling(max_tokens=6, temperature=0.0, stop_ids=()),
        Sampling(max_tokens=4, n=2, seed=7, stop_ids=()),
        Sampling(max_tokens=9, temperature=0.7, top_k=5, seed=3, stop_ids=()),
    )
    prompts = case.prompts()
    return [(prompts[i % len(prompts)], kinds[i % len(kinds)]) for i in range(2 * len(kinds))]


def _drive(batch: RunningBatch, arriving: Mapping[int, Sequence[Request]]) -> dict[int, list[Written]]:
    """What was written of each request, in the order of their coming; `arriving` says before which step they come."""
    numbers: list[int] = []
    written: dict[int, list[Written]] = {}
    for step in range(_STEPS):
        for prompt, sampling in arriving.get(step, ()):
            numbers.append(batch.add(prompt, sampling))
            written[len(numbers) - 1] = []
        if step > max(arriving) and not len(batch):
            return written
        for piece in batch.step():
            written[numbers.index(piece.request)].append(piece)
    raise AssertionError(f"a running batch: {len(batch)} requests are not finished after {_STEPS} steps")


def _same(engine: Engine, called: str, written: Sequence[Written], alone: Sequence[Completion]) -> None:
    """Each sample's tokens, one by one and in its completion, are what `generate` gives the request."""
    for sample, wanted in enumerate(alone):
        mine = [piece for piece in written if piece.sample == sample]
        tokens = tuple(piece.token for piece in mine)
        expect(tokens == wanted.tokens, f"{called}, sample {sample}", tokens, f"{wanted.tokens}, as generate gives")
        ends = [piece.completion for piece in mine]
        last = ends[-1]
        expect(ends[:-1] == [None] * (len(mine) - 1), f"{called}, sample {sample}", "a completion early", "the last")
        expect(last is not None, f"{called}, sample {sample}", "no completion", "one with its last token")
        assert last is not None
        completed = (last.tokens, last.text, last.stop)
        expect(
            completed == (wanted.tokens, wanted.text, wanted.stop), f"{called}, sample {sample}", completed, f"{wanted}"
        )
        close(engine, f"{called}, sample {sample}", [piece.logprob for piece in mine], wanted.logprobs, "generate's")


def a_running_batch_writes_what_generate_writes(case: EngineCase) -> None:
    """Requests that come at once, and requests that join while others are written, get what they get alone."""
    engine, requests = case.engine("generate", "continuous"), _requests(case)
    for arriving in ({0: requests}, {0: requests[:1], 2: requests[1:4], 5: requests[4:]}):
        batch = engine.running_batch()
        written = _drive(batch, arriving)
        expect(len(batch) == 0 and batch.waiting == 0, "a running batch at its end", f"{len(batch)} left", "none")
        expect(batch.step() == [], "step() of an empty batch", "tokens", "none")
        for number, (prompt, sampling) in enumerate(requests):
            _same(engine, f"request {number}", written[number], engine.generate([prompt], sampling)[0])


def equal_prompts_count_on(case: EngineCase) -> None:
    """`add(first=n)` gives the samples that a prompt's second place in `generate` gets."""
    engine, prompt = case.engine("generate", "continuous"), case.prompts()[0]
    sampling = Sampling(max_tokens=5, n=2, seed=7, stop_ids=())
    batch = engine.running_batch()
    numbers = [batch.add(prompt, sampling), batch.add(prompt, sampling, first=sampling.n)]
    written = [piece for _ in range(sampling.max_tokens) for piece in batch.step()]
    for number, alone in zip(numbers, engine.generate([prompt, prompt], sampling), strict=True):
        mine = [piece for piece in written if piece.request == number]
        _same(engine, f"request {number} of a prompt that comes twice", mine, alone)


def a_cancelled_request_leaves(case: EngineCase) -> None:
    """A cancelled request gets no more tokens, and the others do not notice; an unknown number raises nothing."""
    engine, requests = case.engine("generate", "continuous"), _requests(case)[:3]
    batch = engine.running_batch()
    numbers = [batch.add(*request) for request in requests]
    written = batch.step()
    batch.cancel(numbers[0])
    batch.cancel(max(numbers) + 100)
    expect(len(batch) == 2, "a batch of 3 requests, one cancelled", f"{len(batch)} left", "2")
    while len(batch):
        step = batch.step()
        expect(all(piece.request != numbers[0] for piece in step), "a cancelled request", "tokens of it", "none")
        written += step
    for number, (prompt, sampling) in list(zip(numbers, requests, strict=True))[1:]:
        mine = [piece for piece in written if piece.request == number]
        _same(engine, f"request {number} next to a cancelled one", mine, engine.generate([prompt], sampling)[0])


def changed_weights_end_a_running_batch(case: EngineCase) -> None:
    """After `step` a batch that was made before is refused; a new one samples the new weights."""
    engine, (prompt, sampling) = case.engine("generate", "continuous"), _requests(case)[0]
    batch = engine.running_batch()
    batch.add(prompt, sampling)
    batch.step()
    _step(engine, case)
    try:
        batch.step()
    except EngineError:
        pass
    else:
        raise AssertionError("step() of a running batch whose weights changed: nothing was said; wanted an EngineError")
    (written,) = _drive(engine.running_batch(), {0: [(prompt, sampling)]}).values()
    _same(engine, "a request after a step", written, engine.generate([prompt], sampling)[0])


def what_was_read_ends_with_its_weights(case: EngineCase) -> None:
    """The next turn of a conversation, after `step`, `restore`, `load` or `rollback` gave other weights, is what a new
    engine with these weights makes of it: nothing of the turn before is left."""
    engine, likeliest = case.engine("generate", "continuous"), Sampling(max_tokens=1, temperature=0.0, stop_ids=())
    turn = [token for prompt in case.prompts() * 3 for token in prompt][:36]
    engine.export(case.folder / "first")
    ways: dict[str, Callable[[], object]] = {"restore": partial(engine.restore, case.folder / "first")}
    if "full_state" in engine.capabilities:
        engine.save(case.folder / "state")
        ways["load"] = partial(engine.load, case.folder / "state")
    if "snapshots" in engine.capabilities:
        ways["rollback"] = partial(engine.rollback, engine.snapshot())
    for name, way in ways.items():
        for called, change in (("step", partial(_step, engine, case)), (name, way)):
            _drive(engine.running_batch(), {0: [(turn[:-3], likeliest)]})
            change()
            ((written,),) = _drive(engine.running_batch(), {0: [(turn, likeliest)]}).values()
            engine.export(case.folder / name / called)
            other = case.engine()
            other.restore(case.folder / name / called)
            wanted = other.generate([turn], likeliest)[0][0].logprobs
            close(engine, f"a turn after {called}", [written.logprob], wanted, "a new engine's")


def _step(engine: Engine, case: EngineCase) -> None:
    engine.forward_backward(case.data(), WEIGHTED_NLL)
    engine.step()


def an_empty_prompt_is_refused_by_a_running_batch(case: EngineCase) -> None:
    """Refused as `generate` refuses it; the batch continues."""
    engine, (prompt, sampling) = case.engine("generate", "continuous"), _requests(case)[0]
    batch = engine.running_batch()
    try:
        batch.add([], sampling)
    except EngineError:
        pass
    else:
        raise AssertionError("add([]) of a running batch: nothing was said; wanted an EngineError")
    (written,) = _drive(batch, {0: [(prompt, sampling)]}).values()
    _same(engine, "a request after a refused one", written, engine.generate([prompt], sampling)[0])


def held_adapters_are_sampled_beside_each_other(case: EngineCase) -> None:
    """Rows of what the engine holds, of the base and of its own weights: each gets what it gets after `restore`, also
    once the engine's folder holds something else."""
    engine, requests = case.engine("generate", "continuous", "adapters"), _requests(case)[:3]
    first, second = case.folder / "first", case.folder / "second"
    engine.export(first)
    engine.forward_backward(case.data(), WEIGHTED_NLL)
    engine.step()
    engine.export(second)
    adapters = [engine.hold(first), engine.hold(second)]
    engine.export(second)
    if None in adapters:
        raise CheckSkipped("the engine's own artifacts are more than it can hold")
    batch, wanted = engine.running_batch(), {}
    for adapter in (*adapters, None):
        for prompt, sampling in requests:
            number = batch.add(prompt, sampling, adapter=adapter)
            wanted[number] = (adapter, prompt, sampling)
    extra = batch.add(*requests[0], adapter=engine.hold(None))
    written: list[Written] = []
    for _ in range(_STEPS):
        written += batch.step()
    expect(any(piece.request == extra for piece in written), "a request of the base", "no tokens", "some")
    for folder, adapter in ((first, adapters[0]), (second, adapters[1]), (second, None)):
        engine.restore(folder)
        for number, (of, prompt, sampling) in wanted.items():
            if of is adapter:
                mine = [piece for piece in written if piece.request == number]
                _same(engine, f"request {number} next to other adapters", mine, engine.generate([prompt], sampling)[0])


CHECKS = (
    held_adapters_are_sampled_beside_each_other,
    a_running_batch_writes_what_generate_writes,
    equal_prompts_count_on,
    a_cancelled_request_leaves,
    changed_weights_end_a_running_batch,
    what_was_read_ends_with_its_weights,
    an_empty_prompt_is_refused_by_a_running_batch,
)
