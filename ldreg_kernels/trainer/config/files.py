"""Reading a configuration: a preset, a file and single settings, laid over each other and validated.

    the method's defaults  <-  --preset NAME  <-  file (.json, .toml, .yaml)  <-  --set section.field=value

A preset is a TOML file beside this one. `presets/simclr.toml`, `byol.toml` and `mae.toml` hold what a method needs
different from the defaults of the models; the others are recipes.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .base import ConfigError
from .methods import REFERENCES_PER_IMAGE
from .nearest import UNIONS, nearest, settings_of
from .optim import MEANT_FOR
from .renamed import british, refuse_old_names
from .run import TrainConfig

PRESETS = Path(__file__).parent / "presets"


def make_config(
    values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, preset: str | None = None
) -> TrainConfig:
    """Validate nested values, laid over the method's defaults and under dotted overrides.

    Args:
        values: nested dict, as read from a file. `method` may be a plain name.
        overrides: {"regularisers.0.weight": 0.1, ...}.
        preset: name of a preset under `values`.

    Returns:
        The config.

    Raises:
        ConfigError: one line per wrong field.
    """
    given, overrides = british(values), british(overrides or {})
    refuse_old_names(given, overrides)
    if preset:
        given = _over(read_preset(preset), given)
    overrides = {("method.name" if n == "method" and isinstance(v, str) else n): v for n, v in overrides.items()}
    if isinstance(given.get("method"), str):
        given["method"] = {"name": given["method"]}
    if "method.name" in overrides:
        _set(given, "method.name", overrides["method.name"])
    section = given.get("method", {})
    method = section.get("name", "simclr") if isinstance(section, dict) else ""
    merged = given  # of an unknown method, validation says what is wrong
    if isinstance(method, str) and method in REFERENCES_PER_IMAGE:
        merged = _over(read_preset(method), given)
    # Names first: they decide which other settings there are, in whatever order they were typed.
    for name, value in sorted(overrides.items(), key=lambda item: not item[0].endswith(".name")):
        _set(merged, name, value)
    try:
        return TrainConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_one_line_per_field(error)) from None


def load_config(
    path: Path | None, overrides: Mapping[str, Any] | None = None, *, preset: str | None = None
) -> TrainConfig:
    """Read a JSON, TOML or YAML configuration file; fields it leaves out keep their defaults.

    Args:
        path: a `.json`, `.toml`, `.yaml` or `.yml` file, or None for the defaults.
        overrides: dotted fields laid over the file.
        preset: name of a preset under the file.

    Returns:
        The config.

    Raises:
        ConfigError: the file is missing, is not JSON, TOML or YAML, or holds a wrong field; the message names it.
    """
    return make_config(_read(path) if path else {}, overrides, preset=preset)


def preset_names() -> list[str]:
    """Every preset that ships with the package, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset.

    Args:
        name: one of `preset_names()`.

    Returns:
        Nested settings.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in preset_names():
        raise ConfigError(f"preset: must be one of {', '.join(preset_names())}, got {name!r}")
    return _read(PRESETS / f"{name}.toml")


def parse_override(text: str) -> tuple[str, Any]:
    """Split `epochs=3` into the dotted name and the JSON value, or the bare string where it is not JSON.

    Args:
        text: what the user typed.

    Returns:
        (name, value).

    Raises:
        ConfigError: there is no `=`.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"an override must look like regularisers.0.weight=0.1, got {text!r}")
    return name.strip(), _plain(value)


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()


def _over(base: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` laid over `base`, section by section; a section with another name replaces the one below."""
    merged = copy.deepcopy(dict(base))
    for name, value in upper.items():
        below = merged.get(name)
        if name == "optimiser" and isinstance(below, dict) and isinstance(value, Mapping) and "name" in value:
            below = merged[name] = _without_foreign(below, value["name"])
        if isinstance(below, dict) and isinstance(value, Mapping) and _same_kind(name, below, value):
            merged[name] = _over(below, value)
        elif name == "method" and isinstance(below, dict) and value == below.get("name"):
            continue  # a plain name
        elif name == "regularisers" and isinstance(below, list) and isinstance(value, list):
            # Entry by entry, like sections, so that {k = 16} alone keeps the method's weight.
            both = [_over(b, v) if isinstance(v, Mapping) else v for b, v in zip(below, value, strict=False)]
            merged[name] = both + copy.deepcopy(value[len(both) :])
        else:
            merged[name] = copy.deepcopy(value)
    return merged


def _same_kind(section: str, below: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    """Whether two settings of a section have the same fields: resnet18 and resnet50 do, vit-tiny has others."""
    name = below.get("name")
    return section not in UNIONS or _family(value.get("name", name)) == _family(name)


def _family(name: Any) -> str:
    return str(name).split("-")[0].rstrip("0123456789")


def _without_foreign(optimiser: Mapping[str, Any], name: Any) -> dict[str, Any]:
    """The settings that an optimiser of another name still has: a preset's betas mean nothing to SGD."""
    return {setting: v for setting, v in optimiser.items() if name in MEANT_FOR.get(setting, (name,))}


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, leaf = dotted.split(".")
    place: Any = values
    for i, section in enumerate(sections):
        where = ".".join(sections[: i + 1])
        if isinstance(place, list):
            place = _item(place, section, dotted, where)
        else:
            place = place.setdefault(section, {})
        if not isinstance(place, (dict, list)):
            raise ConfigError(f"{dotted}: {where} is not a section of the configuration")
    if isinstance(place, list):
        _item(place, leaf, dotted, dotted)
        place[int(leaf)] = value
        return
    if leaf == "name" and len(sections) == 1 and not _same_kind(sections[0], place, {"name": value}):
        place.clear()  # the fields of another method, or of another encoder
    if dotted == "optimiser.name":
        values["optimiser"] = place = _without_foreign(place, value)
    place[leaf] = value


def _item(values: list[Any], index: str, dotted: str, where: str) -> Any:
    if not (index.isascii() and index.isdigit() and int(index) < len(values)):
        raise ConfigError(f"{dotted}: there is no {where}; the list has {len(values)} entries, counted from 0")
    return values[int(index)]


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in _PARSERS:
        raise ConfigError(f"{path}: the configuration must be a {', '.join(_PARSERS)} file")
    try:
        values = _PARSERS[path.suffix](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # the decoders' errors are ValueErrors, and all say line and column
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected an object of settings, got {type(values).__name__}")
    return values


def _parse_toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    return tomllib.loads(text)


def _parse_yaml(text: str) -> Any:
    import yaml

    try:
        # Every scalar as it is written, then read as --set reads it: YAML's own rules make `precision: no` false and
        # `weight: 1e-2` a text.
        return _plain_scalars(yaml.load(text, Loader=yaml.BaseLoader) or {})
    except yaml.MarkedYAMLError as error:
        where = f" (at line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"
        raise ValueError(f"{error.problem}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _plain_scalars(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _plain_scalars(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_plain_scalars(value) for value in values]
    return _plain(values)


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".json": json.loads,
    ".toml": _parse_toml,
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
}


def _one_line_per_field(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        # A member of a union adds its tag to the place: "method.simclr.temperature" is method.temperature.
        place = list(item["loc"])
        if len(place) > 1 and place[0] in UNIONS:
            del place[1]
        name = ".".join(str(part) for part in place)
        message = item["msg"].removeprefix("Value error, ")
        hint = ""
        if item["type"] == "extra_forbidden":
            message, likely = "no such setting", nearest(item["loc"])
            hint = f"; the nearest is {likely}" if likely else f"; there are {', '.join(settings_of(item['loc'][:-1]))}"
        if item["type"] in ("model_type", "model_attributes_type"):
            message = f"is a section; its settings are {', '.join(settings_of(item['loc']))}"
        if item["type"] == "union_tag_invalid":
            name, message = f"{name}.name", f"must be one of {item['ctx']['expected_tags']}"
            item["input"] = item["ctx"]["tag"]
        got = "" if item["type"] == "value_error" else f", got {item['input']!r}"
        lines.append(f"{name}: {message}{got}{hint}" if name else f"{message}{got}")
    return "\n".join(lines)
