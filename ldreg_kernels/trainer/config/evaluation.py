"""Settings of the evaluation of a frozen encoder."""

from __future__ import annotations

from pydantic import Field

from .base import Section


class EvaluationConfig(Section):
    """How frozen encoder features are judged."""

    every_epochs: int = Field(1, ge=1, description="spacing of the LID and effective rank measurements")
    lid_k: int = Field(32, ge=2)
    knn_k: int = Field(20, ge=1)
    knn_temperature: float = Field(0.07, gt=0)
