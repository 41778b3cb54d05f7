"""Tinker routes with facts of models, checkpoints, samplers and the server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from finetooth_server.keys import Caller
from finetooth_server.limits.room import state_of
from finetooth_server.service import Service
from finetooth_server.tinker import names
from finetooth_server.tinker.requests import lora_parts
from finetooth_server.tinker.tokenizers import tokenizer_of

Json = Mapping[str, Any]


def get_info(service: Service, caller: Caller, body: Json) -> Any:
    """A model and its tokenizer."""
    model = service.model(caller, str(body.get("model_id")))
    return {
        "type": "get_info",
        "model_id": model.id,
        "model_name": model.base,
        "model_data": {
            "arch": "causal_lm",
            "model_name": model.base,
            "tokenizer_id": tokenizer_of(service, model.base),
        },
        "optimizer_config": optimizer_facts(model.recipe),
        **adapter_facts(model.recipe),
    }


def weights_info(service: Service, caller: Caller, body: Json) -> Any:
    """What a checkpoint was trained with."""
    caller.must("read", "train", "sample")
    checkpoint = names.find(service, caller, body.get("tinker_path"))
    recipe = checkpoint.recipe
    return {
        "base_model": checkpoint.base,
        **lora_parts(recipe, service.facts(checkpoint.base)),
        "optimizer_config": optimizer_facts(recipe),
        **adapter_facts(recipe),
    }


def adapter_facts(recipe: Json) -> dict[str, Any]:
    """Whether a recipe trains a LoRA, and its rank."""
    adapter = recipe.get("adapter")
    lora = _name(adapter) == "lora"
    return {"is_lora": lora, "lora_rank": adapter.get("rank", 32) if lora and isinstance(adapter, Mapping) else None}


def optimizer_facts(recipe: Json) -> dict[str, Any]:
    """The optimizer of a recipe."""
    return {"type": _name(recipe.get("optimizer")) or "adamw"}


def _name(pick: Any) -> str:
    return str(pick.get("name")) if isinstance(pick, Mapping) else str(pick or "")


def sampler(service: Service, caller: Caller, body: Json) -> Any:
    """The weights of a sampling session."""
    base, checkpoint = service.sampler(caller, str(body["id"]))
    path = None
    if checkpoint is not None:
        saved = service.checkpoint(caller, checkpoint)
        # an overwritten checkpoint has no path
        path = names.path_of(saved.model, saved.kind, saved.name) if saved.kind in names.PARTS.values() else None
    return {"sampler_id": body["id"], "base_model": base, "model_path": path}


async def healthz(request: Request) -> Response:
    """Whether the server works."""
    status = await asyncio.to_thread(state_of, request.app.state.service)
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)


def capabilities(service: Service) -> Any:
    """Base models that are served."""
    models = [
        {
            "model_name": name,
            "max_context_length": (recipe.get("train") or {}).get("max_length"),
            "trainable": True,
            "sampleable": True,
        }
        for name, recipe in service.settings.models.items()
    ]
    return {"supported_models": models}
