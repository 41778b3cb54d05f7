"""A server with OpenAI's completions, as a sampler. Its weights do not change, so the policy moves away from them."""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks import Context, Engine, Sampling
from finetooth_hooks.rollouts import Prompt, Sampled

from finetooth_serversamplers.asking import Server
from finetooth_serversamplers.completions import Completions
from finetooth_serversamplers.serving import ServerOptions, ServerSampler


class OpenAIOptions(ServerOptions):
    """Options of `openai`."""


class OpenAISampler(ServerSampler):
    """See `finetooth_hooks.protocols.Sampler`. Every token has version 0, that of the weights before the first step."""

    def __init__(self, options: OpenAIOptions, context: Context) -> None:
        super().__init__(options, context, "sampler openai")

    def sample(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        """Sample completions from a server with OpenAI's protocol; only the first rank sends requests.

        Raises:
            EngineError: the server is unreachable, does not answer in time, or gives a wrong answer.
            PlanError: its log-probabilities are not those of its sampling distribution.
        """

        async def work(server: Server) -> Sampled:
            leaves_out = sampling.leaves_out
            extra = {"return_tokens_as_token_ids": True} if leaves_out else {}
            how = Completions(self._context, await self.base(server), 0, extra, leaves_out)
            await self.check(server, how, prompts, sampling)
            return Sampled(await how.rollouts(server, prompts, sampling))

        return engine.first(lambda: self._asking.run(work))
