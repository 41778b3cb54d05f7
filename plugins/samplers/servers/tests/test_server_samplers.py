"""The samplers beside a stand-in of a server: what they ask, what they take, and what they refuse by name."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetooth_hooks import EngineBase, EngineError, PlanError, RecipeError, Sampling
from finetooth_hooks.rollouts import Prompt
from finetooth_kit import parametrize_with_checks
from finetooth_kit.fake_context import FakeContext
from finetooth_serversamplers.asking import NotThere, ServerGone
from finetooth_serversamplers.checksums import checksum
from finetooth_serversamplers.openai import OpenAIOptions, OpenAISampler
from finetooth_serversamplers.vllm import VllmOptions, VllmSampler
from safetensors.torch import save_file

PROMPTS = [Prompt("a:1", "a:1@1", (5, 6, 7)), Prompt("a:1", "a:1@2", (5, 6, 7)), Prompt("a:2", "a:2@1", (9,))]


@parametrize_with_checks("finetooth_serversamplers.plugin")
def test_conforms(check: Any) -> None:
    check()


class Engine(EngineBase):
    """What a sampler asks of an engine: a version, and files."""

    def __init__(self, files: tuple[str, ...] = ("adapter_config.json", "adapter_model.safetensors")) -> None:
        self.weights_version, self._files = 0, files

    def export(self, path: Path) -> None:
        path.mkdir(parents=True)
        for name in self._files:
            (path / name).write_text(f"{name} of {self.weights_version}")


def vllm(stand_in: Any, folder: Path, **options: Any) -> VllmSampler:
    return VllmSampler(VllmOptions(url=stand_in.url, timeout=30, **options), FakeContext(folder))


def openai(stand_in: Any, folder: Path, **options: Any) -> OpenAISampler:
    return OpenAISampler(OpenAIOptions(url=stand_in.url, timeout=30, **options), FakeContext(folder))


def test_rollouts_are_what_the_server_drew(stand_in: Any, tmp_path: Path) -> None:
    """Ids to and fro, log-probabilities of what they were drawn from, the version that drew them; the same again for
    the same seed, and equal prompts are answered otherwise."""
    sampler, engine = vllm(stand_in, tmp_path), Engine()
    sampling = Sampling(max_tokens=6, n=2, seed=3)
    found = sampler.sample(engine, PROMPTS, sampling).rollouts  # type: ignore[arg-type]
    assert [(one.id, one.group, one.prompt) for one in found] == [
        (prompt.id, prompt.group, prompt.tokens) for prompt in PROMPTS for _ in range(2)
    ]
    table = stand_in.table({"temperature": 1.0}, processed=True)
    for one in found:
        assert one.logprobs == pytest.approx([table[token] for token in one.tokens])
        assert set(one.versions) == {0} and one.kept == ()
    assert len({one.tokens for one in found[:4]}) > 1
    assert sampler.sample(engine, PROMPTS, sampling).rollouts == found  # type: ignore[arg-type]
    bodies = [body for path, body in stand_in.asked if path == "/v1/completions"]
    assert all(body["return_token_ids"] and body["prompt"] in ([5, 6, 7], [9]) for body in bodies)
    assert all(body["stop_token_ids"] == list(FakeContext(tmp_path).renderer.stop_ids) for body in bodies)


class OfTwo(Engine):
    """One of two ranks, which calls in turn: the second gets what the first was given. Its export is its part."""

    def __init__(self, leads: bool, given: list[Any]) -> None:
        super().__init__(("adapter_config.json", "adapter_model.safetensors") if leads else ())
        self._leads, self._given, self.exports = leads, given, 0

    @property
    def leads(self) -> bool:
        return self._leads

    def first(self, call: Callable[[], Any]) -> Any:
        if self._leads:
            self._given.append(call())
            return self._given[-1]
        return self._given.pop(0)

    def export(self, path: Path) -> None:
        super().export(path)
        self.exports += 1


@pytest.mark.parametrize("sampler_of", [vllm, openai])
def test_the_first_of_two_ranks_asks_and_both_export(stand_in: Any, tmp_path: Path, sampler_of: Any) -> None:
    """A server answers two requests in two ways, and a rank may have a part of the weights alone."""
    given: list[Any] = []
    for rank in range(2):
        engine, sampling = OfTwo(rank == 0, given), Sampling(max_tokens=6, n=2, seed=3)
        sampler = sampler_of(stand_in, tmp_path / f"rank {rank}")
        (tmp_path / f"rank {rank}").mkdir()
        found = sampler.sample(engine, PROMPTS, sampling)
        again = sampler.sample(engine, PROMPTS, sampling)
        engine.weights_version = 1
        later = sampler.sample(engine, PROMPTS, sampling)
        if rank == 0:
            asked, of_first = len(stand_in.asked), (found, again, later)
            assert asked and given
        assert (found, again, later) == of_first and len(stand_in.asked) == asked
        assert engine.exports == (2 if sampler_of is vllm else 0)
        kept = sampler_of is vllm and rank == 0
        assert len(list((tmp_path / f"rank {rank}").rglob("adapter_model.safetensors"))) == kept
    assert not given


def test_what_top_k_left_comes_with_each_token(stand_in: Any, tmp_path: Path) -> None:
    found = vllm(stand_in, tmp_path).sample(Engine(), PROMPTS, Sampling(6, 0.7, top_k=4, seed=3)).rollouts  # type: ignore[arg-type]
    table = stand_in.table({"temperature": 0.7, "top_k": 4}, processed=True)
    kept = tuple(sorted(token for token, value in table.items() if value > -9000))
    assert len(kept) == 4 and math.fsum(math.exp(table[token]) for token in kept) == pytest.approx(1)
    for one in found:
        assert set(one.kept) == {kept} and one.logprobs == pytest.approx([table[token] for token in one.tokens])


@pytest.mark.parametrize(
    ("form", "asked"),
    [({"schema": '{"type": "integer"}'}, {"json": {"type": "integer"}}), ({"regex": "a+"}, {"regex": "a+"}),
     ({"grammar": 'start: "a"'}, {"grammar": 'start: "a"'})],
)  # fmt: skip
def test_a_form_reaches_the_server_and_what_it_left_comes_back(
    stand_in: Any, tmp_path: Path, form: dict[str, str], asked: dict[str, Any]
) -> None:
    """What the form forbids is not among the tokens that are trained, and the model's own end may end it."""
    sampling = Sampling(6, 0.7, top_k=4, seed=3, **form)  # type: ignore[arg-type]
    found = vllm(stand_in, tmp_path).sample(Engine(), PROMPTS, sampling).rollouts  # type: ignore[arg-type]
    table = stand_in.table({"temperature": 0.7, "top_k": 4, "structured_outputs": asked}, processed=True)
    kept = tuple(sorted(token for token, value in table.items() if value > -9000))
    assert math.fsum(math.exp(table[token]) for token in kept) == pytest.approx(1)
    assert all(token % len(str(asked)) in (0, 1) for token in kept)
    for one in found:
        assert set(one.kept) == {kept} and one.logprobs == pytest.approx([table[token] for token in one.tokens])
    bodies = [body for path, body in stand_in.asked if path == "/v1/completions"]
    assert [(body["structured_outputs"], body["ignore_eos"]) for body in bodies[-3:]] == [(asked, False)] * 3


def test_a_server_that_holds_no_form_is_found_out(stand_in: Any, tmp_path: Path) -> None:
    """Servers ignore what they do not know; and without `top_k` none names all tokens that a form leaves."""
    with pytest.raises(PlanError, match=r"at most 20 tokens.*method\.guided"):
        vllm(stand_in, tmp_path / "a").sample(Engine(), PROMPTS, Sampling(6, regex="a"))  # type: ignore[arg-type]
    stand_in.formless = True
    for make in (vllm, openai):
        with pytest.raises(PlanError, match=r"ignores structured_outputs.*leave method\.guided out"):
            make(stand_in, tmp_path / "b").sample(Engine(), PROMPTS, Sampling(6, top_k=4, regex="a"))  # type: ignore[arg-type]


def test_a_model_that_says_how_it_is_sampled_is_sampled_as_the_recipe_says(stand_in: Any, tmp_path: Path) -> None:
    """vLLM takes from generation_config.json what a request leaves out, and ends answers where the model says."""
    sampling = Sampling(6, n=3, seed=3)
    plain = vllm(stand_in, tmp_path / "a").sample(Engine(), PROMPTS, sampling).rollouts  # type: ignore[arg-type]
    stand_in.defaults = {"top_k": 2, "repetition_penalty": 3.0, "min_p": 0.5, "top_p": 0.1}
    stand_in.ends = plain[0].tokens[0]
    assert vllm(stand_in, tmp_path / "b").sample(Engine(), PROMPTS, sampling).rollouts == plain  # type: ignore[arg-type]


def test_penalties_reach_the_server(stand_in: Any, tmp_path: Path) -> None:
    """And what comes back is of the distribution with them: what stood there before is less likely, and the tokens that
    `min_p` left are those that are trained."""
    sampling = Sampling(6, 0.7, top_k=20, seed=3, min_p=0.5, repetition_penalty=2.0)
    found = vllm(stand_in, tmp_path).sample(Engine(), PROMPTS, sampling).rollouts  # type: ignore[arg-type]
    body = {"temperature": 0.7, "top_k": 20, "min_p": 0.5, "repetition_penalty": 2.0}
    for one in found:
        for place, (token, logprob, kept) in enumerate(zip(one.tokens, one.logprobs, one.kept, strict=True)):
            read = [*one.prompt, *one.tokens[:place]]
            table = stand_in.table(body, processed=True, read=read)
            assert logprob == pytest.approx(table[token])
            assert kept == tuple(sorted(name for name, value in table.items() if value > -9000)) and len(kept) < 20
    stand_in.processed = False
    with pytest.raises(PlanError, match=r"of the unchanged model.*repetition_penalty 2"):
        openai(stand_in, tmp_path).sample(Engine(), PROMPTS, Sampling(6, repetition_penalty=2.0))  # type: ignore[arg-type]


def test_what_ends_an_answer_reaches_the_server_and_its_text_ends_before(stand_in: Any, tmp_path: Path) -> None:
    """As where the engine itself samples: tokens include the string, the text does not."""
    plain = vllm(stand_in, tmp_path / "a").sample(Engine(), PROMPTS, Sampling(6, seed=3)).rollouts  # type: ignore[arg-type]
    end = plain[0].text[2:4]
    sampling = Sampling(6, seed=3, stop=("never said", end), stop_ids=(11, 12))
    found = vllm(stand_in, tmp_path / "b").sample(Engine(), PROMPTS, sampling).rollouts  # type: ignore[arg-type]
    body = next(body for path, body in reversed(stand_in.asked) if path == "/v1/completions")
    assert (body["stop"], body["stop_token_ids"]) == (["never said", end], [11, 12])
    assert end and found[0].text == plain[0].text[: plain[0].text.find(end)]
    assert found[0].tokens == plain[0].tokens


def test_log_probabilities_of_another_distribution_are_refused(stand_in: Any, tmp_path: Path) -> None:
    """A server that leaves temperature and top_k out of what it says is found out by asking."""
    stand_in.processed = False
    sampler = vllm(stand_in, tmp_path)
    with pytest.raises(
        PlanError, match=r"of the unchanged model.*temperature 0\.7.*--logprobs-mode processed_logprobs"
    ):
        sampler.sample(Engine(), PROMPTS, Sampling(6, 0.7, seed=3))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"at most 20 tokens.*set method\.top_k"):
        sampler.sample(Engine(), PROMPTS, Sampling(6, top_p=0.9, seed=3))  # type: ignore[arg-type]
    assert sampler.sample(Engine(), PROMPTS, Sampling(6, seed=3)).rollouts  # type: ignore[arg-type]


def test_the_adapter_is_put_in_when_it_has_changed(stand_in: Any, tmp_path: Path) -> None:
    """Under a name with version and checksum, which every request asks for; the old one goes, here and there."""
    sampler, engine = vllm(stand_in, tmp_path), Engine()
    for version in (0, 0, 1, 2):
        engine.weights_version = version
        found = sampler.sample(engine, PROMPTS[:1], Sampling(4, seed=1)).rollouts  # type: ignore[arg-type]
        assert set(found[0].versions) == {version}
    (name,) = stand_in.adapters
    folder = Path(stand_in.adapters[name])
    assert name.endswith(f"-2-{checksum(folder)[:12]}") and [one.name for one in folder.parent.iterdir()] == [
        folder.name
    ]
    assert stand_in.paths().count("/v1/load_lora_adapter") == 3
    models = [body["model"] for path, body in stand_in.asked if path == "/v1/completions"]
    assert len(set(models)) == 3 and models[0] == models[1] and models[-1] == name
    with pytest.raises(PlanError, match="does not train an adapter that vLLM loads"):
        vllm(stand_in, tmp_path, model="tiny").sample(Engine(("model.safetensors",)), PROMPTS, Sampling(4))  # type: ignore[arg-type]


class WholeEngine(Engine):
    """Whose export is a model: one tensor that says the version."""

    def export(self, path: Path) -> None:
        path.mkdir(parents=True)
        save_file({"head": torch.full((2,), float(self.weights_version))}, path / "model.safetensors")


def test_whole_weights_are_put_in_when_they_have_changed(stand_in: Any, tmp_path: Path) -> None:
    """Every worker reads them and says their name, which has epoch, version and checksum; what was computed by the
    weights before is forgotten; a server that was started anew gets them again."""
    sampler, engine = vllm(stand_in, tmp_path, weights="full"), WholeEngine()
    names = []
    for version in (0, 0, 1, 2):
        engine.weights_version = version
        found = sampler.sample(engine, PROMPTS[:1], Sampling(4, seed=1)).rollouts  # type: ignore[arg-type]
        assert set(found[0].versions) == {version}
        for worker in stand_in.workers:
            assert worker.model_runner.model.has["head"].tolist() == [float(version)] * 2
        names.append(stand_in.workers[0].finetooth_weights())
    assert names[0] == names[1] and len(set(names)) == 3 and len({name.split("-")[1] for name in names}) == 1
    (folder,) = (tmp_path / "sampler").iterdir()
    assert names[-1].endswith(f"-2-{checksum(folder)[:12]}")
    assert stand_in.paths().count("/reset_prefix_cache") == 3
    assert {body["model"] for path, body in stand_in.asked if path == "/v1/completions"} == {"tiny"}
    stand_in.workers[1].__init__()
    sampler.sample(engine, PROMPTS[:1], Sampling(4, seed=1))  # type: ignore[arg-type]
    assert [one.finetooth_weights() for one in stand_in.workers] == [names[-1]] * 2


def test_a_server_with_other_weights_is_named(stand_in: Any, tmp_path: Path) -> None:
    """Of another run; whose files are not those that were written; that has no extension; and an adapter is no
    model."""
    first, second, third = (vllm(stand_in, tmp_path / n, weights="full") for n in "abc")
    engine = WholeEngine()
    first.sample(engine, PROMPTS[:1], Sampling(4))  # type: ignore[arg-type]
    second.sample(engine, PROMPTS[:1], Sampling(4))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"has the weights ft-.*, and not ft-.*a server of its own"):
        first.sample(engine, PROMPTS[:1], Sampling(4))  # type: ignore[arg-type]
    assert stand_in.workers[0].finetooth_load(str(tmp_path / "b"), "ft-x-0-000000000000") == ""
    for results, message in (([""], "did not take the weights"), (None, r"no results of .*--worker-extension-cls")):
        stand_in.lies = {"results": results}
        with pytest.raises(EngineError, match=message):
            third.sample(engine, PROMPTS[:1], Sampling(4))  # type: ignore[arg-type]
    stand_in.lies = {}
    with pytest.raises(PlanError, match="does not train a whole model"):
        vllm(stand_in, tmp_path / "d", weights="full").sample(Engine(), PROMPTS, Sampling(4))  # type: ignore[arg-type]


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"answer": {"model": "tiny"}}, "answered with the model 'tiny', asked for 'ft-"),
    "nothing": ({"answer": {"choices": []}}, "gave 0 answers to a prompt, asked for 1"),
    "no shape": ({"answer": {"choices": None}}, "an answer that cannot be read"),
    "no ids": ({"choice": {"token_ids": None}}, r"returns no token ids.*return_token_ids"),
    "other prompt": ({"choice": {"prompt_token_ids": [1, 5, 6, 7]}}, "read other tokens than the prompt's"),
    "few": (
        {"choice": {"token_ids": [3], "logprobs": {"token_logprobs": []}}},
        "gave 0 log-probabilities for 1",
    ),
    "too many": ({"choice": {"token_ids": [3] * 9, "logprobs": {"token_logprobs": [-1.0] * 9}}}, "gave 9 tokens"),
    "none": (
        {"choice": {"token_ids": [3], "logprobs": {"token_logprobs": [None]}}},
        "gave an invalid log-probability",
    ),
    "above 0": (
        {"choice": {"token_ids": [3], "logprobs": {"token_logprobs": [0.5]}}},
        "gave an invalid log-probability",
    ),
    "vocabulary": ({"choice": {"token_ids": [9999], "logprobs": {"token_logprobs": [-1.0]}}}, "outside the vocabulary"),
    "not loaded": ({"loads": True}, r"reported that it loaded ft-.*does not offer it"),
    "breaks off": (
        {"choice": {"finish_reason": "abort"}},
        r"stopped in the middle of an answer \(abort\).*a server of its own",
    ),
    "refuses": ({"status": 400}, r"answers /v1/completions with 400.*out of memory"),
    "breaks": ({"status": 500}, r"answers /v1/completions with 500.*ft resume RUN"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_was_not_asked_for_is_named(stand_in: Any, tmp_path: Path, lie: str) -> None:
    stand_in.lies, message = LIES[lie]
    with pytest.raises(EngineError, match=message) as caught:
        vllm(stand_in, tmp_path).sample(Engine(), PROMPTS[:1], Sampling(4, seed=1))  # type: ignore[arg-type]
    assert "sampler vllm" in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_hangs_is_named(stand_in: Any, tmp_path: Path) -> None:
    stand_in.hangs = True
    sampler = OpenAISampler(OpenAIOptions(url=stand_in.url, timeout=0.3), FakeContext(tmp_path))
    with pytest.raises(ServerGone, match=r"sampler openai: http://127.* did not answer within 0\.3 s.*ft resume RUN"):
        sampler.sample(Engine(), PROMPTS, Sampling(4))  # type: ignore[arg-type]


def test_a_server_that_died_is_named(made_stand_in: Callable[[], Any], tmp_path: Path) -> None:
    stand_in = made_stand_in()
    sampler = openai(stand_in, tmp_path)
    assert len(sampler.sample(Engine(), PROMPTS, Sampling(4)).rollouts) == 3  # type: ignore[arg-type]
    stand_in.close()
    with pytest.raises(ServerGone, match=r"cannot be reached.*ft resume RUN"):
        sampler.sample(Engine(), PROMPTS, Sampling(4))  # type: ignore[arg-type]


class Restarted:
    """In place of the process: starting again mends the stand-in."""

    def __init__(self, stand_in: Any, mends: bool) -> None:
        self.stand_in, self.mends, self.begun, self.ended = stand_in, mends, 0, 0

    def begin(self) -> None:
        self.begun += 1
        if self.ended and self.mends:
            self.stand_in.lies, self.stand_in.adapters = {}, {}

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("mends", [True, False])
def test_a_server_of_its_own_is_started_again(stand_in: Any, tmp_path: Path, mends: bool) -> None:
    """The adapter is put in again, and the batch begins anew: the same rollouts. One that goes on failing ends the
    run."""
    sampling = Sampling(4, seed=1)
    whole = vllm(stand_in, tmp_path).sample(Engine(), PROMPTS, sampling).rollouts  # type: ignore[arg-type]
    sampler = vllm(stand_in, tmp_path, start=["vllm", "serve"], model="tiny")
    process = sampler._process = Restarted(stand_in, mends)  # type: ignore[assignment]
    stand_in.lies = {"status": 503}
    if mends:
        assert sampler.sample(Engine(), PROMPTS, sampling).rollouts == whole  # type: ignore[arg-type]
        assert len(stand_in.adapters) == 1
    else:
        with pytest.raises(ServerGone, match="503"):
            sampler.sample(Engine(), PROMPTS, sampling)  # type: ignore[arg-type]
    assert (process.begun, process.ended) == (2, 1)


SERVER_WITH_A_WORKER = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1] + ".new", "w").write(str(worker.pid))
import os; os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("killed", [True, False])
def test_workers_of_a_server_end_with_it(stand_in: Any, tmp_path: Path, killed: bool) -> None:
    """Those of vLLM live on where it is killed, and keep the device's memory from the server that is started next."""
    noted = tmp_path / "worker"
    process = vllm(stand_in, tmp_path, start=[sys.executable, "-c", SERVER_WITH_A_WORKER, str(noted)])._process
    process.begin()
    until = time.monotonic() + 60
    while not noted.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    worker = Path("/proc") / noted.read_text()
    running = process._server._running
    assert running is not None
    if killed:
        running.kill()
        running.wait()
    process.end()
    while worker.exists() and worker.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_command_that_ends_is_named(stand_in: Any, tmp_path: Path) -> None:
    """Before it answers; `sys.executable` ends at once, so whether the stand-in answers first does not matter."""
    stand_in.close()
    sampler = vllm(stand_in, tmp_path, start=[sys.executable, "-c", "raise SystemExit(3)"], restarts=0)
    with pytest.raises(ServerGone, match="ended with 3 before it answered"):
        sampler.sample(Engine(), PROMPTS, Sampling(4))  # type: ignore[arg-type]
    sampler = vllm(stand_in, tmp_path, start=["/no/such/vllm"])
    with pytest.raises(RecipeError, match=r"method\.sampler\.start: /no/such/vllm: No such file"):
        sampler.sample(Engine(), PROMPTS, Sampling(4))  # type: ignore[arg-type]


def test_it_sleeps_while_the_engine_trains(stand_in: Any, tmp_path: Path) -> None:
    sampler = vllm(stand_in, tmp_path, sleep=True)
    for _ in range(2):
        assert len(sampler.sample(Engine(), PROMPTS, Sampling(4)).rollouts) == 3  # type: ignore[arg-type]
        assert stand_in.asleep
    order = [path for path in stand_in.paths() if path in ("/is_sleeping", "/wake_up", "/resume", "/sleep?level=1")]
    assert order == ["/is_sleeping", "/sleep?level=1", "/is_sleeping", "/wake_up", "/resume", "/sleep?level=1"]


def test_one_that_knows_no_pauses_sleeps_too(stand_in: Any, tmp_path: Path) -> None:
    stand_in.older = True
    sampler = vllm(stand_in, tmp_path, sleep=True)
    for _ in range(2):
        assert len(sampler.sample(Engine(), PROMPTS, Sampling(4)).rollouts) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("/v1/load_lora_adapter", {}, r"--enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ("/collective_rpc", {"weights": "full"}, r"VLLM_SERVER_DEV_MODE=1"),
        ("/is_sleeping", {"sleep": True}, r"--enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_what_a_server_was_started_without_is_named(
    stand_in: Any, tmp_path: Path, path: str, options: dict[str, Any], message: str
) -> None:
    stand_in.unknown = frozenset({path})
    engine = WholeEngine() if options.get("weights") else Engine()
    with pytest.raises(EngineError, match=message):
        vllm(stand_in, tmp_path, **options).sample(engine, PROMPTS, Sampling(4))  # type: ignore[arg-type]


def test_a_server_without_lora_is_named(stand_in: Any, tmp_path: Path) -> None:
    """vLLM answers with 500, which is no reason to start it again."""
    stand_in.without_lora = True
    with pytest.raises(NotThere, match=r"start vLLM with --enable-lora"):
        vllm(stand_in, tmp_path).sample(Engine(), PROMPTS, Sampling(4))  # type: ignore[arg-type]


def test_a_server_that_starts_later_is_waited_for(stand_in: Any, tmp_path: Path) -> None:
    """Once, for as long as the recipe says; one that does not come is named."""
    assert len(vllm(stand_in, tmp_path, wait=30).sample(Engine(), PROMPTS, Sampling(4)).rollouts) == 3  # type: ignore[arg-type]
    assert stand_in.paths()[0] == "/health"
    stand_in.close()
    with pytest.raises(ServerGone, match=r"did not answer within 0\.3 s"):
        vllm(stand_in, tmp_path, wait=0.3).sample(Engine(), PROMPTS, Sampling(4))  # type: ignore[arg-type]


def test_a_server_of_its_own_is_told_what_it_needs(
    stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its environment; what is set there stays."""
    stand_in.close()
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "0")
    code = f"import os, json; json.dump(dict(os.environ), open({str(tmp_path / 'seen')!r}, 'w'))"
    with pytest.raises(ServerGone):
        vllm(stand_in, tmp_path, start=[sys.executable, "-c", code], restarts=0).sample(Engine(), PROMPTS, Sampling(4))  # type: ignore[arg-type]
    seen = json.loads((tmp_path / "seen").read_text())
    assert (seen["VLLM_ALLOW_RUNTIME_LORA_UPDATING"], seen["VLLM_SERVER_DEV_MODE"]) == ("True", "0")


def test_names_and_keys(stand_in: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not offer 'huge'; it has tiny"):
        openai(stand_in, tmp_path, model="huge").sample(Engine(), PROMPTS, Sampling(4))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"method\.sampler\.key_from: FT_NO_SUCH_KEY is not set"):
        openai(stand_in, tmp_path, key_from="FT_NO_SUCH_KEY")
