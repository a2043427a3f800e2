"""What a launch of `lid` or `ldreg_loss` is asked for, as one word of a registered op's arguments.

    "estimator=mom form=l1 reduction=mean track=mle:32,mle:512 gradient=1 drop_smallest=0 backend=auto precision=exact"

Every argument of an op costs half a microsecond on its way through torch's dispatcher, and text made once does not. A
graph that shows it can still be read. Both directions are looked up, not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch

from ..kernels.contract import Track

Function = TypeVar("Function", bound=Callable[..., Any])


def remembered(function: Function) -> Function:
    """`function` of hashable arguments, looked up where it was called with them before.

    Not while torch compiles, which looks through such a cache and complains of it, and not for what has no hash: that
    is a bad argument, and `function` says so.
    """
    cached = lru_cache(maxsize=1024)(function)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*arguments)
        try:
            return cached(*arguments)
        except TypeError:
            return function(*arguments)

    return call  # type: ignore[return-value]


class Call(NamedTuple):
    """All but the tensors, k and the target, which may change from step to step."""

    estimator: str
    form: str = ""  # empty for `lid`, like the next two
    reduction: str = ""
    track: Track = ()
    gradient: bool = False
    drop_smallest: bool = False
    backend: str = "auto"
    precision: str = "exact"


@remembered
def text_of(call: Call) -> str:
    """`call` as text."""
    track = ",".join([f"{name}:{k}" for name, k in call.track])
    modes = f"estimator={call.estimator} form={call.form} reduction={call.reduction} track={track}"
    flags = f"gradient={int(call.gradient)} drop_smallest={int(call.drop_smallest)}"
    return f"{modes} {flags} backend={call.backend} precision={call.precision}"


@lru_cache(maxsize=1024)  # inside of ops, where no compiler looks
def parse(text: str) -> Call:
    """The `Call` that `text` says.

    Raises:
        ValueError: the text is none of `text_of`.
    """
    try:
        words = dict(word.split("=") for word in text.split(" "))
        flags = {name: bool(int(words.pop(name))) for name in ("gradient", "drop_smallest")}
        entries = [entry.split(":") for entry in words.pop("track").split(",") if entry]
        return Call(track=tuple((name, int(k)) for name, k in entries), **flags, **words)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"call must be a text such as {text_of(Call('mom'))!r}, got {text!r}") from error
