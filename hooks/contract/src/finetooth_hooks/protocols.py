"""The protocols of objects that builders return. An entry (`finetooth_hooks.Loss`) declares a plugin's offer; the
protocol of the same name here describes the built object.

The object derives from the base class of its kind (`finetooth_hooks.bases`), which has every optional method. Import
the protocols from here; each is defined in the module of its kind.
"""

from __future__ import annotations

from finetooth_hooks.checkpoints import Gate, Store
from finetooth_hooks.compute.adapters import Adapter
from finetooth_hooks.compute.attention import Attention, AttentionNeeds
from finetooth_hooks.compute.backends import (
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
    SnapshotsPart,
    StepCost,
    TextPart,
    TrainsPart,
    UpdatesPart,
)
from finetooth_hooks.compute.collectives import Collective, PatientCollective
from finetooth_hooks.compute.held import Addition
from finetooth_hooks.compute.kernels import ComputePart, Kernel, KernelRequest, PickedKernel, PickKernels
from finetooth_hooks.compute.layers import Experts, LayerFacts
from finetooth_hooks.compute.quantizers import Quantizer, Stored
from finetooth_hooks.compute.strategies import (
    DividedModel,
    Foreseen,
    ForeseenStrategy,
    IslandStrategy,
    Launcher,
    MachinesLauncher,
    Neighbours,
    OptimizerStrategy,
    Rank,
    ShardedModel,
    ShardedOptimizer,
    Sharding,
    ShardingStrategy,
    StagePasses,
    Stages,
    Strategy,
    Traffic,
)
from finetooth_hooks.compute.updates import Optimizer, Schedule
from finetooth_hooks.data.sources import Examples, Format, Portion, Source
from finetooth_hooks.engine import Engine
from finetooth_hooks.environments import Environment
from finetooth_hooks.evaluators import Evaluator, Reward
from finetooth_hooks.exporters import Exporter
from finetooth_hooks.faces import Face, Page
from finetooth_hooks.methods import Method
from finetooth_hooks.models import (
    Block,
    Family,
    Head,
    Loader,
    LowRank,
    ModelFacts,
    ModelInfo,
    ModelTensors,
    Tokenizer,
)
from finetooth_hooks.releases import ReleaseGate
from finetooth_hooks.renderers import MediumPlace, Processor, Renderer
from finetooth_hooks.rollouts import Sampler
from finetooth_hooks.trackers import Tracker

__all__ = [
    "Adapter", "Addition", "Attention", "AttentionNeeds", "Backend", "BackendPlan", "BasePart", "Block", "Collective",
    "ComputePart", "DataPart", "Device", "DividedModel", "Engine", "EngineRequest", "Environment", "Evaluator",
    "Examples", "Experts", "Exporter", "Face", "Family", "Foreseen", "ForeseenStrategy", "Format", "Gate", "Hardware",
    "HardwareFacts", "Head", "IslandStrategy", "Kernel", "Launcher", "LayerFacts", "Loader", "LowRank",
    "MachinesLauncher", "MediumPlace", "Method", "ModelFacts", "ModelInfo", "ModelTensors", "Neighbours", "Optimizer",
    "OptimizerStrategy", "Page", "PatientCollective", "PickKernels", "PickedKernel", "PlacePart", "PlanRequest",
    "Portion", "Processor", "Quantizer", "Rank", "ReleaseGate", "Renderer", "Reward", "RoleRequest", "Sampler",
    "Schedule", "ShardedModel", "ShardedOptimizer", "Sharding", "ShardingStrategy", "SnapshotsPart", "Source",
    "StagePasses", "Stages", "StepCost", "Store", "Stored", "Strategy", "TextPart", "Tokenizer", "Tracker", "Traffic",
    "TrainsPart", "UpdatesPart", "KernelRequest",
]  # fmt: skip
