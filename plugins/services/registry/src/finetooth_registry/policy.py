"""The policy of a registry: what may be registered, and the gates of each channel."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from finetooth_hooks.errors import RecipeError, UserError
from finetooth_recipes.problems import unknown_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

FILE = "policy.yaml"
START = """\
# What this registry accepts, and what a version must pass to enter a channel.
data:
  customer_data: false   # a run must say in data.classification that it used none
channels:
  candidate: {gates: []}
  staging: {gates: [signed]}
  production: {gates: [signed]}
"""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataPolicy(_Strict):
    """Requirements on the classification of a run's data."""

    customer_data: bool | None = None
    """False: runs must state that they used no customer data. Null: no requirement."""
    licences: list[str] | None = None
    """Accepted licences; null: any, or none."""


class WatchPolicy(_Strict):
    """How the version in a channel is measured again, by `ft registry watch`."""

    evaluators: list[str | dict[str, Any]] = Field(min_length=1)
    data: str
    """The rows to measure on: a path or a URL."""
    gates: list[str | dict[str, Any]] = Field(min_length=1)
    """Compare the new measurements with those that the version was registered with."""
    every_hours: float = Field(default=24.0, ge=0)
    """Hours from the start of one measurement to the start of the next."""


class ChannelPolicy(_Strict):
    """The gates of a channel."""

    gates: list[str | dict[str, Any]] = []
    signed_decisions: bool = False
    """Whether every promotion and rollback must be signed by a trusted key."""
    watch: WatchPolicy | None = None


class Policy(_Strict):
    """A registry's policy."""

    data: DataPolicy = DataPolicy()
    channels: dict[str, ChannelPolicy] = Field(default_factory=dict)

    def refusal(self, classification: dict[str, Any]) -> str:
        """Why data may not be registered; empty if they may."""
        wanted = self.data.customer_data
        if wanted is False and classification.get("customer_data") is not False:
            claim = "says nothing" if classification.get("customer_data") is None else "says true"
            return f"the policy accepts no customer data, and data.classification.customer_data {claim}"
        licence = classification.get("licence")
        if self.data.licences is not None and licence not in self.data.licences:
            return f"the policy accepts the licences {', '.join(self.data.licences)}, and the data say {licence!r}"
        return ""


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses duplicate keys: YAML would keep the last one, and gates would disappear silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"the key {twice} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


@lru_cache(8)
def _read(text: str) -> Policy:
    """A policy from its text, which is parsed once."""
    loader = _EachKeyOnce(text)
    try:
        content = loader.get_single_data() or {}
    finally:
        loader.dispose()
    try:
        return Policy.model_validate(content)
    except ValidationError as error:
        raise unknown_key(error, Policy, content) or error from None


def load_policy(folder: Path) -> Policy:
    """The policy of the registry in a folder.

    Raises:
        UserError: the file cannot be read or holds an unknown setting.
    """
    path = folder / FILE
    try:
        return _read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", action="write the file again, or restore it") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}", action="fix the file") from error
    except RecipeError as error:
        raise UserError(f"{path}: {error.problem}", action=error.action) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['msg']}", action="fix the file") from error
