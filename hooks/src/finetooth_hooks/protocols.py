"""What builders return. An entry declares (`finetooth_hooks.Loss`), the protocol of the same name here is the thing
itself.

Import them from here; they are written down by subject, in `models`, `renderers`, `sources`, `training` and `backends`.
Engines and losses have modules of their own: `finetooth_hooks.engine`, `finetooth_hooks.losses`.
"""

from __future__ import annotations

from finetooth_hooks.backends import (
    Backend,
    BackendPlan,
    BasePart,
    DataPart,
    Device,
    EngineRequest,
    Hardware,
    HardwareFacts,
    PlacePart,
    PlanRequest,
    RoleRequest,
    StepCost,
    TextPart,
    TrainsPart,
    UpdatesPart,
)
from finetooth_hooks.checkpoints import Gate, Store
from finetooth_hooks.collectives import Collective
from finetooth_hooks.engine import Engine
from finetooth_hooks.models import (
    Block,
    Family,
    Head,
    Loader,
    LowRank,
    ModelFacts,
    ModelInfo,
    StretchTokenizer,
    Tokenizer,
)
from finetooth_hooks.quantizers import Quantizer, Stored
from finetooth_hooks.renderers import ImagePlace, Processor, Renderer
from finetooth_hooks.sources import Examples, Format, IdentifiedSource, KnownSource, Portion, PortionedSource, Source
from finetooth_hooks.training import (
    Adapter,
    BringsRoles,
    Evaluator,
    KnownData,
    Method,
    Optimizer,
    ReadsBeginning,
    Reward,
    Schedule,
    Tracker,
)

__all__ = [
    "Adapter",
    "Backend",
    "BackendPlan",
    "BasePart",
    "Block",
    "BringsRoles",
    "Collective",
    "DataPart",
    "Device",
    "Engine",
    "EngineRequest",
    "Evaluator",
    "Examples",
    "Family",
    "Format",
    "Gate",
    "Hardware",
    "HardwareFacts",
    "Head",
    "IdentifiedSource",
    "ImagePlace",
    "KnownData",
    "KnownSource",
    "Loader",
    "LowRank",
    "Method",
    "ModelFacts",
    "ModelInfo",
    "Optimizer",
    "PlacePart",
    "PlanRequest",
    "Portion",
    "PortionedSource",
    "Processor",
    "Quantizer",
    "ReadsBeginning",
    "Renderer",
    "Reward",
    "RoleRequest",
    "Schedule",
    "Source",
    "StepCost",
    "Store",
    "Stored",
    "StretchTokenizer",
    "TextPart",
    "Tokenizer",
    "Tracker",
    "TrainsPart",
    "UpdatesPart",
]
