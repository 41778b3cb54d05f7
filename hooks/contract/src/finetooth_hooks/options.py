"""The base of all options models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Options of one entry: validates that entry's part of the recipe.

    Unknown keys are errors, values are checked strictly enough that `"3"` is no number and NaN is no float, instances
    are frozen, and the docstring under a field is its documentation, from which the JSON Schema and the reference pages
    are generated.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        coerce_numbers_to_str=False,
        protected_namespaces=(),
    )


class NoOptions(Options):
    """For an entry without options."""
