"""The base of all options models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Options of one entry: validates that entry's part of the recipe.

    Unknown keys are errors. Values are checked strictly: `"3"` is not a number and NaN is not a float. Instances are
    frozen. The docstring under a field is its documentation; the JSON Schema and the reference pages are generated
    from it.
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
