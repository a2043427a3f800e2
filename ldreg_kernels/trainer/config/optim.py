"""The optimiser of a run and its learning rate: plain data; `trainer.optim` builds from it.

What this file does not do: know the batch size or the length of the run. Rates that depend on them are worked out by
`optim.schedules.learning_rate`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from .base import Section

Beta = Annotated[float, Field(ge=0, lt=1)]

# Settings that only some optimisers have.
MEANT_FOR = {
    "momentum": ("sgd", "lars", "larc"),
    "nesterov": ("sgd",),
    "betas": ("adamw",),
    "trust_coefficient": ("lars", "larc"),
}


class OptimiserConfig(Section):
    """The optimiser. The rate rises linearly from 0, then follows half a cosine, per step.

    A setting that the chosen optimiser does not have is an error if it is given, and is left out when the section is
    written down.
    """

    name: Literal["adamw", "sgd", "lars", "larc"] = "adamw"
    lr: float = Field(3e-3, gt=0, description="the highest rate, before lr_scaling")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none", description="linear: lr * batch / 256; sqrt: lr * sqrt(batch), SimCLR's 0.075 sqrt(B)"
    )
    weight_decay: float = Field(1e-4, ge=0)
    decay_all: bool = Field(False, description="weight decay on biases and norms too: LDReg's MAE, MEC, SwAV")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd, lars, larc")
    nesterov: bool = Field(False, description="sgd")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="adamw; MAE uses 0.9, 0.95")
    trust_coefficient: float = Field(1e-3, gt=0, description="lars, larc: eta")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up; parts of an epoch are allowed")
    final_lr: float = Field(
        0.0, ge=0, le=1, description="where the cosine ends, as a factor of the highest rate (Barlow Twins: 0.001)"
    )

    @model_validator(mode="after")
    def _settings_have_a_meaning(self) -> OptimiserConfig:
        for setting, names in MEANT_FOR.items():
            if setting in self.model_fields_set and self.name not in names:
                raise ValueError(
                    f"{setting} has no meaning for {self.name}, leave it out (it is for {', '.join(names)})"
                )
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, got momentum 0")
        return self

    @model_serializer(mode="wrap")
    def _without_what_has_no_meaning(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Else a configuration that was written down with its defaults could not be read again."""
        written: dict[str, Any] = handler(self)
        return {key: value for key, value in written.items() if self.name in MEANT_FOR.get(key, (self.name,))}
