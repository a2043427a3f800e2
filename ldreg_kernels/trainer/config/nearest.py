"""Which settings there are beside a misspelt one, and which of them was probably meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from .base import Section
from .run import TrainConfig

UNIONS = ("method", "encoder")  # sections whose fields depend on their name

Place = Sequence[str | int]  # as pydantic says it: ("regularisers", 0, "weight"), ("method", "simclr", "temperature")


def settings_of(place: Place) -> list[str]:
    """The settings of a section.

    Args:
        place: of the section; () is the whole configuration.

    Returns:
        Their names, without the section's.
    """
    models: list[type[Section]] = [TrainConfig]
    for part in place:
        inside = [s for m in models if part in m.model_fields for s in _sections(m.model_fields[str(part)].annotation)]
        # What is no field is an index of a list, or the name of one member of a union.
        models = inside or [m for m in models if part in _tags(m)] or models
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def nearest(place: Place) -> str | None:
    """The setting that looks most like a misspelt one: in its section, or else anywhere.

    Args:
        place: of the misspelt one.

    Returns:
        Its dotted name, or None if there is none like it.
    """
    *section, leaf = place
    beside = [name for name in settings_of(section) if name != leaf]
    if close := get_close_matches(str(leaf), beside, n=1):
        return ".".join([*_without_tags(section), close[0]])
    names, here = [*_dotted(TrainConfig)], ".".join(_without_tags(section))
    if f"{here}.{leaf}" in names:
        return None  # spelt right: a setting of another method or encoder
    elsewhere = [name for name in reversed(names) if name.rpartition(".")[0] != here]
    anywhere = {name.rpartition(".")[2]: name for name in elsewhere}
    close = get_close_matches(str(leaf), anywhere, n=1, cutoff=0.9)
    return anywhere[close[0]] if close else None


def _without_tags(section: Place) -> list[str]:
    """The dotted name's parts: the members of unions are said by pydantic alone."""
    return [str(part) for i, part in enumerate(section) if i != 1 or section[0] not in UNIONS]


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]


def _tags(model: type[Section]) -> tuple[Any, ...]:
    return get_args(model.model_fields["name"].annotation) if "name" in model.model_fields else ()


def _dotted(model: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        entry = f"{name}.0" if "tuple" in str(field.annotation) else name
        for section in _sections(field.annotation):
            yield from _dotted(section, f"{prefix}{entry}.")
