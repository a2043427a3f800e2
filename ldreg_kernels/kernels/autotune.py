"""LDREG_AUTOTUNE=1: time the plausible blocks on the problem at hand once, keep the fastest for problems like it.

Nothing is timed unless that is set. What was found is in LDREG_TUNING_FILE (default ~/.cache/ldreg_kernels/tuning.json)
and is used from then on, with or without the variable; delete the file to go back to the shipped table. Problems are
alike if B, N, D and k are the same up to the next power of two, on the same capability and dtype. No Triton is needed
to read this file: the caller brings what runs and what times.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from .tuning import Blocks, Shape, choose, choose_path, power_of_two, sizes

_kept = 0  # how many searches of this process are through
_FIELDS = {field.name for field in fields(Blocks)}


def asked_for() -> bool:
    """Whether LDREG_AUTOTUNE=1."""
    value = os.environ.get("LDREG_AUTOTUNE", "0")
    if value not in ("0", "1"):
        raise ValueError(f"LDREG_AUTOTUNE must be 0 or 1, got {value!r}")
    return value == "1"


def settings() -> tuple[str | None, str | None, int]:
    """What `found` and `asked_for` depend on besides the problem: the environment, and what this process has kept."""
    return os.environ.get("LDREG_AUTOTUNE"), os.environ.get("LDREG_TUNING_FILE"), _kept


def tuning_file() -> Path:
    """Where results are kept."""
    return Path(os.environ.get("LDREG_TUNING_FILE") or Path.home() / ".cache" / "ldreg_kernels" / "tuning.json")


def key(shape: Shape) -> str:
    """The name of problems like this one."""
    sizes = (power_of_two(n) for n in (shape.B, shape.N, shape.D, shape.wanted))
    return " ".join(map(str, (f"sm_{shape.capability}", shape.dtype, *sizes)))


@cache
def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        entries: dict[str, dict[str, Any]] = json.loads(path.read_text())
        known = {name: blocks for name, blocks in entries.items() if set(blocks) == _FIELDS}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"LDREG_TUNING_FILE {path} is not a tuning file ({error}); delete it") from error
    return known  # without what another version of Blocks left there


def found(shape: Shape) -> Blocks | None:
    """The blocks an earlier search found for problems like this one."""
    blocks = _read(tuning_file()).get(key(shape))
    return None if blocks is None else Blocks(**blocks)


def candidates(shape: Shape) -> Iterator[Blocks]:
    """The shipped choice, and what may be faster."""
    shipped = choose(shape)
    yield shipped
    if choose_path(shape) == "direct":
        yield replace(shipped, direct_b=shipped.direct_b // 2)
        yield replace(shipped, direct_n=16)
        yield replace(shipped, direct_n=16, direct_d=64)
        yield replace(shipped, num_warps=4)
        return
    for tile_n in (128, 256):
        for stages in (2, 3, 4):
            yield replace(shipped, tile_n=tile_n, stages=stages)
    for rows in {max(1, shipped.rows // 2), shipped.rows * 2}:
        yield replace(shipped, rows=rows, list_block=max(16, shipped.list_block * shipped.rows // rows))
    yield replace(shipped, together=shipped.together * 2)
    other = replace(shipped, append=not shipped.append)
    cut = sizes(shape, other)
    # A choice is kept for problems up to twice as large each way: the slab's bound has to hold there, too.
    if cut.panel >= min(shape.B, other.tile_b) and 4 * cut.chunk * cut.columns // 2 <= other.words:
        yield other


def search(shape: Shape, seconds: Callable[[Blocks], float]) -> Blocks:
    """The fastest candidate by `seconds`, which returns infinity for blocks the device has no room for; and keep it."""
    times = {blocks: seconds(blocks) for blocks in dict.fromkeys(candidates(shape))}
    best = min(times, key=lambda blocks: times[blocks])
    if times[best] == float("inf"):
        raise RuntimeError(f"LDREG_AUTOTUNE: none of {len(times)} candidates runs {key(shape)}")
    _keep(shape, best)
    return best


def _keep(shape: Shape, blocks: Blocks) -> None:
    """Read again, add, and put in place at once: other processes do the same."""
    global _kept
    path = tuning_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    _read.cache_clear()
    entries = {**_read(path), key(shape): asdict(blocks)}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(entries, file, indent=1, sort_keys=True)
    os.replace(file.name, path)
    _read.cache_clear()
    _kept += 1
