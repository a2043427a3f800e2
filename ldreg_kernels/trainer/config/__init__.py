"""The configuration of a training run: plain data, validated, read from JSON or TOML, printed back into the run folder."""

from .base import ConfigError, Section
from .run import (
    AugmentationConfig,
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    OptimiserConfig,
    RegulariserConfig,
    TrainConfig,
    load_config,
    make_config,
    parse_override,
)

__all__ = [
    "AugmentationConfig",
    "ConfigError",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "OptimiserConfig",
    "RegulariserConfig",
    "Section",
    "TrainConfig",
    "load_config",
    "make_config",
    "parse_override",
]
