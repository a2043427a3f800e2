"""What every section of a configuration shares: frozen, no unknown keys, no NaN; and the error of a wrong one."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """A configuration that cannot be used; the message has one line per wrong field."""


class Section(BaseModel):
    """A group of settings. Unknown keys are errors: a misspelt `weight` must not train with the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
