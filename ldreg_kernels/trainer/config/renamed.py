"""Settings that have moved, so that an old file says where to, and spellings that people try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .base import ConfigError

_MOVED = {
    "temperature": "method.temperature",
    "projector": "method.projector",
    "regulariser": "regularisers, a list: regularisers.0.name and so on",
    "regularizer": "regularisers, a list: regularisers.0.name and so on",
    "regularizers": "regularisers",
    "optimizer": "optimiser",
}


def refuse_old_names(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Raise if a setting has an old name.

    Args:
        values: nested settings.
        overrides: dotted settings.

    Raises:
        ConfigError: one line per old name, with the new one.
    """
    names = [*_dotted(values), *overrides]
    lines = []
    for old, new in _MOVED.items():
        if any(name == old or name.startswith(f"{old}.") for name in names):
            lines.append(f"{old}: no such setting any more, it is now {new}")
    if lines:
        raise ConfigError("\n".join(lines))


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
