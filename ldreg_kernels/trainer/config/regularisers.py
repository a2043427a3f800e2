"""Settings of the terms that are added to the self-supervised loss."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from .base import Section

Estimator = Literal["mom", "mom_amsaleg", "mle", "hill", "hill_unbiased", "mada"]

_RATIO = re.compile(r"ratio:\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


def _weight(value: object) -> object:
    """A number, or the text "ratio:0.05"; everything else is refused with what was expected."""
    if isinstance(value, str):
        match = _RATIO.fullmatch(value.strip())
        share = float(match.group(1) + (match.group(2) or "")) if match else math.nan
        if 0 < share < math.inf:
            return f"ratio:{share!r}"
        raise ValueError('must be a number, or a text such as "ratio:0.05"')
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError('must be a number that is finite and not negative, or a text such as "ratio:0.05"')
    return float(value)


Weight = Annotated[float | str, BeforeValidator(_weight)]


class RegulariserConfig(Section):
    """The term beta * R on the encoder's features.

    `ldreg` runs the fused op, `ldreg-naive` the reference (cdist, sort, autograd), `minlid` the fused op with the
    sign turned.
    """

    name: Literal["ldreg", "ldreg-naive", "minlid"] = "ldreg"
    # The paper's 0.01 is for ImageNet, over hundreds of epochs; a run of some dozen steps needs more for any
    # effect at all.
    weight: Weight = Field(
        0.1, description='beta, or "ratio:0.05": beta such that |beta dR/df| is 0.05 of the loss\'s gradient at f'
    )
    k: int = Field(32, ge=2)
    form: Literal["l1", "l1_abs", "l2", "target"] = "l1"
    target: float | None = Field(None, gt=0, description="LID aimed at; form = target only")
    estimator: Estimator = "mom"
    backend: Literal["auto", "reference", "cpu", "triton", "cuda"] = "auto"
    warmup_epochs: int = Field(0, ge=0, description="epochs in which R is computed and logged, but not added")

    @property
    def ratio(self) -> float | None:
        """The share of the gradient that the weight asks for, or None where the weight is a number."""
        return float(self.weight.removeprefix("ratio:")) if isinstance(self.weight, str) else None

    @model_validator(mode="after")
    def _fields_agree(self) -> RegulariserConfig:
        if (self.form == "target") != (self.target is not None):
            raise ValueError(
                f"target must be given exactly when form is 'target', got form={self.form!r}, target={self.target!r}"
            )
        if self.name == "minlid" and self.form != "l1":
            raise ValueError(f"form has no meaning for minlid, leave it out; got {self.form!r}")
        return self
