"""Settings by names that people try: old ones, which say where they went, and the American spelling, which is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .base import ConfigError
from .nearest import nearest, settings_of

_MOVED = {
    "temperature": "method.temperature",
    "projector": "method.projector",
    "regulariser": "regularisers.0",  # the first of a list
}
_AMERICAN = {
    "regularizer": "regulariser",
    "regularizers": "regularisers",
    "optimizer": "optimiser",
    "normalize": "normalise",
    "initialization": "initialisation",
}


def british(values: Any) -> Any:
    """Nested settings, or dotted ones, under the names that they have here.

    Args:
        values: as they were given.

    Returns:
        The same with other names.

    Raises:
        ConfigError: a setting is given in both spellings.
    """
    if isinstance(values, (list, tuple)):
        return [british(value) for value in values]
    if not isinstance(values, Mapping):
        return values
    ours: dict[str, Any] = {}
    for name, value in values.items():
        spelt = ".".join(_AMERICAN.get(part, part) for part in str(name).split("."))
        if spelt in ours:
            raise ConfigError(f"{spelt}: is given in both spellings")
        ours[spelt] = british(value)
    return ours


def refuse_old_names(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Raise if a setting has an old name.

    Args:
        values: nested settings.
        overrides: dotted settings.

    Raises:
        ConfigError: one line per old name, with the new one.
    """
    lines = []
    for name in [*_dotted(values), *overrides]:
        old, _, rest = name.partition(".")
        if old in _MOVED:
            *section, leaf = f"{_MOVED[old]}.{rest}".removesuffix(".").split(".")
            new = ".".join([*section, leaf]) if leaf in settings_of(section) else nearest([*section, leaf])
            lines.append(f"{name}: no such setting any more, it is now {new or _MOVED[old]}")
    if lines:
        raise ConfigError("\n".join(lines))


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
