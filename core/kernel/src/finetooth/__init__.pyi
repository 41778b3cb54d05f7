"""What the package imports on first use, for type checkers and editors."""

from typing import Any

from finetooth_core.api import engine, resume, run, session
from finetooth_core.session import Session
from finetooth_core.settings.recipe import ModelSection as Model
from finetooth_core.settings.recipe import ProfileSection as Profile
from finetooth_core.settings.recipe import Recipe as _Recipe
from finetooth_core.settings.recipe import ScaleSection as Scale
from finetooth_core.settings.recipe import TrainSection as Train
from finetooth_recipes.recipe_data import DataSection
from finetooth_recipes.recipe_measures import CheckpointSection as Checkpoint
from finetooth_recipes.recipe_measures import EvaluateSection as Evaluate

__all__ = [
    "Checkpoint", "Data", "Evaluate", "Model", "Profile", "Recipe", "Scale", "Session", "Train",
    "engine", "resume", "run", "session",
]  # fmt: skip

class Data(DataSection):
    train: Any = ...  # rows in memory too
    eval: Any = ...

class Recipe(_Recipe):
    model: Any  # a name too

def __getattr__(name: str) -> Any: ...
