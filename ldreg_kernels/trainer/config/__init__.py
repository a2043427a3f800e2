"""The configuration of a training run: plain data, validated, read from JSON, TOML or YAML, kept in the run folder.

One file a section; `run.py` puts them together, `files.py` reads and merges, `presets/` holds recipes.
"""

from .augmentation import AugmentationConfig
from .base import ConfigError, Section
from .data import DataConfig
from .evaluation import EvaluationConfig
from .files import load_config, make_config, parse_override, preset_names
from .methods import BYOLConfig, MAEConfig, MethodConfig, SimCLRConfig
from .networks import EncoderConfig
from .optim import OptimiserConfig
from .regularisers import RegulariserConfig
from .run import TrainConfig

__all__ = [
    "AugmentationConfig",
    "BYOLConfig",
    "ConfigError",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "MAEConfig",
    "MethodConfig",
    "OptimiserConfig",
    "RegulariserConfig",
    "Section",
    "SimCLRConfig",
    "TrainConfig",
    "load_config",
    "make_config",
    "parse_override",
    "preset_names",
]
