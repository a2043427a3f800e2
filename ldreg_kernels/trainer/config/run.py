"""The configuration of a whole run. Defaults are those of small images on a CPU; they are not the papers' ImageNet
settings, which are presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from .augmentation import AugmentationConfig
from .base import Section
from .data import DataConfig
from .evaluation import EvaluationConfig
from .methods import REFERENCES_PER_IMAGE, MethodConfig, SimCLRConfig
from .networks import ConvConfig, EncoderConfig, ViTConfig
from .optim import OptimiserConfig
from .regularisers import RegulariserConfig


class TrainConfig(Section):
    """Everything that decides a training run. Two runs with equal configs on one CPU give equal numbers."""

    seed: int = Field(0, ge=0, lt=2**63, description="of weights, order, views and masks; the split has its own")
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(256, ge=2, description="images per step")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"
    log_every: int = Field(10, ge=1, description="steps between two reads of the device; nothing else waits for it")
    checkpoint_every_epochs: int = Field(5, ge=0, description="0 keeps none; otherwise the last epoch is always kept")
    method: MethodConfig = SimCLRConfig()
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    encoder: EncoderConfig = ConvConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    regularisers: tuple[RegulariserConfig, ...] = (RegulariserConfig(),)
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _enough_neighbours(self) -> TrainConfig:
        per_image = REFERENCES_PER_IMAGE[self.method.name]
        available = per_image * self.batch_size - 1
        for i, regulariser in enumerate(self.regularisers):
            if regulariser.k > available:
                raise ValueError(
                    f"regularisers.{i}.k must be at most {per_image} * batch_size - 1 = {available} (what "
                    f"{self.method.name} searches, without the row itself), got {regulariser.k}"
                )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        if self.method.name == "mae" and not isinstance(self.encoder, ViTConfig):
            raise ValueError(f"encoder.name must be a vit for mae, whose encoder sees patches, got {self.encoder.name}")
        if self.precision == "fp16" and any(r.ratio is not None for r in self.regularisers):
            raise ValueError(
                "regularisers.weight: a ratio needs precision no or bf16: fp16 scales the gradients it is measured on"
            )
        return self

    def derive(self, overrides: Mapping[str, Any]) -> TrainConfig:
        """A copy with dotted fields replaced: `config.derive({"regularisers.0.weight": 0.5})`.

        Args:
            overrides: dotted field names and their new values.

        Returns:
            A new, validated config.

        Raises:
            ConfigError: an unknown field or an invalid value.
        """
        from .files import make_config

        return make_config(self.model_dump(mode="json"), overrides)

    def with_regulariser(self, name: str, **changes: Any) -> TrainConfig:
        """A copy with every regulariser replaced by another way to compute it, or by none.

        Args:
            name: ldreg, ldreg-naive, minlid; or none, which empties the list.
            changes: further fields of the regularisers.

        Returns:
            A new, validated config.

        Raises:
            ConfigError: an invalid value.
        """
        if name == "none":
            return self.derive({"regularisers": []})
        from .files import make_config

        terms = self.regularisers or make_config({"method": self.method.name}).regularisers
        return self.derive({"regularisers": [t.model_dump(mode="json") | {"name": name} | changes for t in terms]})
