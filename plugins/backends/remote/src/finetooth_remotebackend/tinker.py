"""A model at a server that speaks the Tinker protocol, by the protocol's public client.

The protocol's losses are sums, so a gradient is that of `cross_entropy` with the weights -dL/dlogprob.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from finetooth_hooks import (
    Backward,
    Completion,
    DataError,
    Datum,
    EngineError,
    Generated,
    PlanError,
    Sampling,
    Stepped,
    TokenChunk,
    UserError,
    install_command,
)
from finetooth_hooks.engine import StepSettings
from finetooth_hooks.protocols import EngineRequest
from numpy.typing import NDArray

from finetooth_remotebackend.trainer import Json, ModelSizes

ALPHA = 32.0
"""LoRA's alpha. The protocol does not send it; servers use this one."""

TELEMETRY = "TINKER_TELEMETRY"


class TinkerTrainer:
    """See `trainer.Trainer`.

    Args:
        key: an API key; None if the server needs none.
        note: prints a line for the user.

    Raises:
        PlanError: the protocol has no field for a setting of the recipe.
        UserError: the package `tinker` is not installed.
    """

    protocol = "tinker"

    def __init__(
        self, url: str, key: str | None, base: str, request: EngineRequest, note: Callable[[str], None]
    ) -> None:
        self._lora, self._adam = lora_of(request), adam_of(request)
        os.environ.setdefault(TELEMETRY, "0")  # no telemetry to the server
        try:
            import tinker
        except ImportError as error:
            raise UserError(
                "backend: the package tinker is not installed",
                action=install_command("finetooth-remotebackend[tinker]"),
            ) from error
        self._tinker, self._types = tinker, tinker.types
        self._base, self._request, self._note = base, request, note
        named = key if key is None or key.startswith(("tml-", "eyJ")) else f"tml-{key}"
        self._service = tinker.ServiceClient(base_url=url, api_key=named or "tml-local")
        self._url = url
        self._training: Any = None
        self._sampler: tuple[int, Any] | None = None
        self._reference: Any = None
        self._numbers = 0

    def create(self) -> ModelSizes:
        self._training = self._result(
            lambda: self._service.create_lora_training_client(
                base_model=self._base, seed=self._request.plan.train.seed, **self._lora
            )
        )
        return ModelSizes()

    def score(self, data: Sequence[Datum]) -> tuple[list[NDArray[Any]], int]:
        weights = [_weights(datum) for datum in data]
        result = self._result(lambda: self._training.forward(self._wire_data(data, weights), "cross_entropy"))
        self._numbers += 1
        return [_counted(datum, of["logprobs"]) for datum, of in zip(data, result.loss_fn_outputs, strict=True)], (
            self._numbers
        )

    def backward(self, number: int, data: Sequence[Datum], grads: Sequence[NDArray[np.float32]]) -> Backward:
        weights = [np.where(datum.mask, -grad, 0.0) for datum, grad in zip(data, grads, strict=True)]
        self._result(lambda: self._training.forward_backward(self._wire_data(data, weights), "cross_entropy"))
        return Backward(grad_norm=0.0, overflow=False)  # the protocol does not send it

    def step(self, number: int, settings: StepSettings) -> Stepped:
        rate = settings.learning_rate
        assert rate is not None
        adam = self._types.AdamParams(learning_rate=rate, grad_clip_norm=settings.max_grad_norm or 0.0, **self._adam)
        metrics = self._result(lambda: self._training.optim_step(adam)).metrics or {}
        return Stepped(number, rate, float(metrics.get("grad_norm", 0.0)))

    def zero_grad(self) -> None:
        raise EngineError("the Tinker protocol cannot drop gradients", action="take a step, or load a checkpoint")

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, version: int) -> Generated:
        if self._sampler is None or self._sampler[0] != version:
            made = self._result(lambda: self._training.save_weights_and_get_sampling_client())
            self._sampler = (version, made)
        sampler = self._sampler[1]
        stops: list[Any] = list(sampling.stop)
        if sampling.stop_ids is not None and stops:
            raise EngineError("the Tinker protocol takes stop texts or stop ids, not both", action="give one of them")
        repeats = sampling.repetition_penalty != 1
        for name, used in (
            ("min_p", sampling.min_p > 0),
            ("repetition_penalty", repeats),
            ("additions", sampling.adds),
            ("schema, regex or grammar", sampling.form is not None),
        ):
            if used:
                raise EngineError(f"the Tinker protocol has no {name}", action="leave it out")
        ids = list(self._request.text.stop_ids if sampling.stop_ids is None else sampling.stop_ids)
        params = self._types.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k or -1,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop=stops or ids,
        )
        promised = [
            sampler.sample(self._types.ModelInput.from_ints(list(map(int, prompt))), sampling.n, params)
            for prompt in prompts
        ]
        replies = [self._result(partial(_itself, promise)) for promise in promised]
        return Generated([[self._completion(s, sampling, ids, version) for s in of.sequences] for of in replies])

    def _completion(self, sequence: Any, sampling: Sampling, ids: list[int], version: int) -> Completion:
        tokens = tuple(int(token) for token in sequence.tokens)
        written = tokens[:-1] if tokens and tokens[-1] in ids else tokens
        text = self._request.text.tokenizer.decode(list(written), skip_special=True)
        for stop in sampling.stop:
            text = text.partition(stop)[0]
        ended = "stop" if str(sequence.stop_reason) == "stop" else "length"
        scores = tuple(float(logprob) for logprob in sequence.logprobs or ())
        return Completion(tokens, scores, text, "stop" if ended == "stop" else "length", version)

    def logprobs(self, data: Sequence[Datum], role: str) -> list[NDArray[np.float32]]:
        if role == "policy":
            return self.score(data)[0]
        if role != "reference":
            raise EngineError(f"a Tinker server holds no role {role!r}", action="choose another method")
        if self._reference is None:
            self._reference = self._result(lambda: self._service.create_sampling_client(base_model=self._base))
        promised = []
        for datum in data:
            tokens = _tokens(datum)
            if not np.array_equal(tokens[1:], datum.targets[:-1]):
                raise DataError(datum.id or "a datum", "its targets are not the next tokens: the protocol cannot score "
                                "them under the base model", action="choose a loss without a reference")  # fmt: skip
            whole = [*map(int, tokens), int(datum.targets[-1])]
            promised.append(self._reference.compute_logprobs(self._types.ModelInput.from_ints(whole)))
        replies = [self._result(partial(_itself, promise)) for promise in promised]
        return [
            _counted(datum, [math.nan if v is None else v for v in of][1:])
            for datum, of in zip(data, replies, strict=True)
        ]

    def save(self, name: str) -> Json:
        return {"path": self._result(lambda: self._training.save_state(name)).path}

    def load(self, kept: Json, *, optimizer: bool) -> None:
        load = self._training.load_state_with_optimizer if optimizer else self._training.load_state
        self._result(lambda: load(kept["path"]))
        self._sampler = None

    def export(self, name: str, path: Path) -> Json:
        sampler = self._result(lambda: self._training.save_weights_for_sampler(name)).path
        self._note(f"artifact: the weights stay at {self._url}, as {sampler}; the Tinker protocol does not send them")
        self._request.text.tokenizer.save(path)
        return {**self.save(name), "sampler": sampler}

    def close(self) -> None:
        """Nothing to do: the server ends idle models."""

    # --- the wire -----------------------------------------------------------------------------------------------------

    def _wire_data(self, data: Sequence[Datum], weights: Sequence[NDArray[Any]]) -> list[Any]:
        return [
            self._types.Datum(
                self._types.ModelInput.from_ints([int(token) for token in _tokens(datum)]),
                cast(
                    Any,  # the client converts arrays to its own type
                    {"target_tokens": np.asarray(datum.targets), "weights": np.asarray(weight, np.float32)},
                ),
            )
            for datum, weight in zip(data, weights, strict=True)
        ]

    def _result(self, make: Callable[[], Any]) -> Any:
        """The result of a call of the client.

        Raises:
            EngineError: it failed, in one line.
        """
        try:
            made = make()
            return made.result() if hasattr(made, "result") else made
        except self._tinker.TinkerError as error:
            raise EngineError(f"{self._url}: {' '.join(str(error).split())}") from error


def lora_of(request: EngineRequest) -> dict[str, Any]:
    """The adapter's settings for the protocol.

    Raises:
        PlanError: the protocol cannot describe the recipe's adapter.
    """
    options, name = request.plan.options.get("adapter", {}), request.plan.picks.get("adapter", "")
    if "rank" not in options:
        raise PlanError(f"adapter: {name} cannot be had over the Tinker protocol", action="set adapter: lora")
    alpha = options.get("alpha") if options.get("alpha") is not None else 2.0 * options["rank"]
    if options.get("rslora") or options.get("dora") or alpha != ALPHA:
        raise PlanError(
            f"adapter: Tinker servers train plain LoRA with alpha {ALPHA:g}, and the recipe has alpha {alpha:g}"
            + (", rslora" if options.get("rslora") else "") + (", dora" if options.get("dora") else ""),
            action=f"set adapter.alpha={ALPHA:g}, and rslora and dora to false",
        )  # fmt: skip
    if options.get("dropout"):
        raise PlanError("adapter.dropout: not on the Tinker protocol", action="set it to 0")
    targets = options.get("targets", "all-linear")
    if targets not in ("all-linear", "attention"):
        raise PlanError("adapter.targets: not on the Tinker protocol", action="set it to all-linear or attention")
    return {"rank": options["rank"], "train_mlp": targets == "all-linear", "train_unembed": False}


def adam_of(request: EngineRequest) -> dict[str, float]:
    """Betas, eps and decay, which every step sends.

    Raises:
        PlanError: the recipe's optimizer is not AdamW.
    """
    options, name = request.plan.options.get("optimizer", {}), request.plan.picks.get("optimizer", "")
    if not name.endswith("adamw") or "betas" not in options:
        raise PlanError(f"optimizer: {name} cannot be had over the Tinker protocol", action="set optimizer: adamw")
    beta1, beta2 = options["betas"]
    return {"beta1": beta1, "beta2": beta2, "eps": options["eps"], "weight_decay": options.get("weight_decay", 0.0)}


def _itself(promise: Any) -> Any:
    return promise


def _tokens(datum: Datum) -> NDArray[Any]:
    """
    Raises:
        DataError: it holds something other than text, or has several targets for one position.
    """
    texts = [chunk.tokens for chunk in datum.input if isinstance(chunk, TokenChunk)]
    if len(texts) != len(datum.input) or datum.targets.ndim != 1 or datum.parents is not None:
        raise DataError(datum.id or "a datum", "only plain text goes over the Tinker protocol from here",
                        action="leave images and packed rows out")  # fmt: skip
    return np.concatenate(texts)


def _weights(datum: Datum) -> NDArray[Any]:
    return np.asarray(datum.fields.get("weights", datum.mask), np.float32) * datum.mask


def _counted(datum: Datum, logprobs: Any) -> NDArray[np.float32]:
    """Float32, 0 where the mask is false."""
    values = np.asarray(logprobs.tolist() if hasattr(logprobs, "tolist") else logprobs, np.float32)
    return np.where(datum.mask, values, np.float32(0.0)).astype(np.float32)
