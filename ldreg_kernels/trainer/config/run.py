"""The configuration of a training run: one pydantic model, read from JSON or TOML, printed back into the run
folder.

Unknown keys are errors (a misspelt `regularizer.wieght` must not train silently with the default), and every
error names the field, what was expected and what came. Defaults are those of the digits runs; they are not
the paper's ImageNet settings.

What this file does not do: build anything. A config is plain data.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from .base import ConfigError, Section

RegulariserName = Literal["none", "ldreg", "ldreg-naive", "minlid"]
Estimator = Literal["mom", "mom_amsaleg", "mle", "hill", "hill_unbiased", "mada"]


class DataConfig(Section):
    """Which images, and how many of them are held out for evaluation."""

    dataset: Literal["digits"] = "digits"
    test_fraction: float = Field(0.25, gt=0, lt=1)


class AugmentationConfig(Section):
    """Strengths of the random changes that make a view; see augmentation.py for the reasons."""

    degrees: float = Field(15.0, ge=0, le=180)
    translate: float = Field(0.1, ge=0, le=0.5, description="largest shift, as a fraction of the image side")
    scale: tuple[float, float] = (0.8, 1.3)
    shear: float = Field(10.0, ge=0, le=60, description="degrees")
    brightness: float = Field(0.2, ge=0, le=1)
    contrast: float = Field(0.4, ge=0, lt=1)
    noise_std: float = Field(0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> AugmentationConfig:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale must be 0 < low <= high, got [{low}, {high}]")
        return self


class EncoderConfig(Section):
    """The backbone; width 64 is ResNet-18, a smaller width is a narrower copy of it."""

    name: Literal["resnet18"] = "resnet18"
    width: int = Field(64, ge=8, le=256)


class ProjectorConfig(Section):
    """Widths of the SimCLR head."""

    hidden_dim: int = Field(512, ge=2)
    output_dim: int = Field(128, ge=2)


class OptimiserConfig(Section):
    """The optimiser; the rate warms up linearly and then follows a cosine to 0, per step."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    warmup_epochs: int = Field(1, ge=0)


class RegulariserConfig(Section):
    """The term beta * R that is added to the self-supervised loss.

    `ldreg` runs the fused op, `ldreg-naive` the reference (cdist, sort, autograd), `minlid` the fused op with
    the sign turned.
    """

    name: RegulariserName = "ldreg"
    # The paper's 0.01 is for ImageNet, over hundreds of epochs; a run of some dozen steps needs more for any
    # effect at all.
    weight: float = Field(0.1, ge=0, description="beta")
    k: int = Field(32, ge=2)
    form: Literal["l1", "l1_abs", "l2", "target"] = "l1"
    target: float | None = Field(None, gt=0, description="LID aimed at; form = target only")
    estimator: Estimator = "mom"
    backend: Literal["auto", "reference", "cpu", "triton", "cuda"] = "auto"
    warmup_epochs: int = Field(0, ge=0, description="epochs in which R is computed and logged, but not added")

    @model_validator(mode="after")
    def _fields_agree(self) -> RegulariserConfig:
        if (self.form == "target") != (self.target is not None):
            raise ValueError(
                f"target must be given exactly when form is 'target', got form={self.form!r}, {self.target=}"
            )
        if self.name == "minlid" and self.form != "l1":
            raise ValueError(f"form has no meaning for minlid, leave it out; got {self.form!r}")
        return self


class EvaluationConfig(Section):
    """How frozen encoder features are judged."""

    every_epochs: int = Field(1, ge=1, description="spacing of the LID and effective rank measurements")
    lid_k: int = Field(32, ge=2)
    knn_k: int = Field(20, ge=1)
    knn_temperature: float = Field(0.07, gt=0)


class TrainConfig(Section):
    """Everything that decides a training run. Two runs with equal configs on one CPU give equal numbers."""

    method: Literal["simclr"] = "simclr"
    seed: int = Field(0, ge=0)
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(
        256, ge=2, description="images per step and process; the regulariser sees twice as many rows"
    )
    temperature: float = Field(0.2, gt=0)
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"
    checkpoint_every_epochs: int = Field(5, ge=0, description="0 keeps none; otherwise the last epoch is always kept")
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    encoder: EncoderConfig = EncoderConfig()
    projector: ProjectorConfig = ProjectorConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    regulariser: RegulariserConfig = RegulariserConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _enough_neighbours(self) -> TrainConfig:
        available = 2 * self.batch_size - 1
        if self.regulariser.name != "none" and self.regulariser.k > available:
            raise ValueError(
                f"regulariser.k must be at most 2 * batch_size - 1 = {available} (both views, without the "
                f"row itself), got {self.regulariser.k}"
            )
        return self

    def derive(self, overrides: dict[str, Any]) -> TrainConfig:
        """A copy with dotted fields replaced: `config.derive({"regulariser.name": "none"})`.

        Args:
            overrides: dotted field names and their new values.

        Returns:
            A new, validated config.

        Raises:
            ConfigError: an unknown field or an invalid value.
        """
        return make_config(self.model_dump(mode="json"), overrides)


def make_config(values: dict[str, Any], overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Validate nested values, after laying dotted overrides over them.

    Args:
        values: nested dict, as read from a file.
        overrides: {"regulariser.weight": 0.1, ...}.

    Returns:
        The config.

    Raises:
        ConfigError: one line per wrong field.
    """
    merged = json.loads(json.dumps(values))  # a deep copy, so that the caller's dict is left alone
    for name, value in (overrides or {}).items():
        *sections, leaf = name.split(".")
        place = merged
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{name}: {section} is not a section of the configuration")
        place[leaf] = value
    try:
        return TrainConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_one_line_per_field(error)) from None


def load_config(path: Path | None, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Read a JSON or TOML configuration file; fields it leaves out keep their defaults.

    Args:
        path: a `.json` or `.toml` file, or None for the defaults.
        overrides: dotted fields laid over the file.

    Returns:
        The config.

    Raises:
        ConfigError: the file is missing, is not JSON or TOML, or holds a wrong field; the message names it.
    """
    return make_config(_read(path) if path else {}, overrides)


def parse_override(text: str) -> tuple[str, Any]:
    """Split `regulariser.weight=0.1` into the dotted name and the JSON value, or the bare string where it is
    not JSON.

    Args:
        text: what the user typed.

    Returns:
        (name, value).

    Raises:
        ConfigError: there is no `=`.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"an override must look like regulariser.weight=0.1, got {text!r}")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value.strip()


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in {".json", ".toml"}:
        raise ConfigError(f"{path}: the configuration must be a .json or .toml file")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else _parse_toml(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # both decoders' errors are ValueErrors, and both say line and column
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected an object of settings, got {type(values).__name__}")
    return values


def _parse_toml(text: str) -> Any:
    if sys.version_info < (3, 11):
        raise ConfigError("reading TOML needs Python 3.11 or later; write the configuration as JSON")
    import tomllib

    return tomllib.loads(text)


def _one_line_per_field(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "no such setting"
        got = "" if item["type"] == "value_error" else f", got {item['input']!r}"
        lines.append(f"{name}: {message}{got}" if name else f"{message}{got}")
    return "\n".join(lines)
