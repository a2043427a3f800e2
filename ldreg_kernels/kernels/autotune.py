"""LDREG_AUTOTUNE=1: time the plausible blocks on the problem at hand once, keep the fastest for problems like it.

Nothing is timed unless that is set. What was found is in LDREG_TUNING_FILE (default ~/.cache/ldreg_kernels/tuning.json)
and is used from then on, with or without the variable; delete the file to go back to the shipped table. Problems are
alike if B, N, D and k are the same up to the next power of two, on the same capability and dtype. No Triton is needed
to read this file: the caller brings what runs and what times.

Many processes may search at once: each adds to the file under a lock and puts it in place whole. Where it cannot be
read or written, a warning says so, once, and what was found serves this process alone. A file that is no tuning file is
an error: none of ours ends up like that, so it is something else under that name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from .notice import warn_once
from .tuning import Blocks, Shape, choose, choose_path, power_of_two, sizes

_kept = 0  # how many searches of this process are through
_unwritten: dict[tuple[str | None, str], Blocks] = {}  # by LDREG_TUNING_FILE and key: found here, and not in the file
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
    """Where results are kept; OSError if there is no home folder to keep them in."""
    if named := os.environ.get("LDREG_TUNING_FILE"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "ldreg_kernels" / "tuning.json"
    except RuntimeError as error:  # a container's user without an entry and without $HOME
        raise OSError(f"{error} LDREG_TUNING_FILE is not set") from error


def key(shape: Shape) -> str:
    """The name of problems like this one."""
    sizes = (power_of_two(n) for n in (shape.B, shape.N, shape.D, shape.wanted))
    return " ".join(map(str, (f"sm_{shape.capability}", shape.dtype, *sizes)))


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """All that the file holds, other versions' entries too; nothing if there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):  # writing will say what is in the folder's place
        return {}
    except UnicodeDecodeError as error:
        raise _not_ours(path, error) from error
    try:
        entries: dict[str, dict[str, Any]] = json.loads(text)
        for blocks in entries.values():
            blocks.keys()
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _not_ours(path, error) from error
    return entries


def _not_ours(path: Path, error: Exception) -> ValueError:
    return ValueError(f"LDREG_TUNING_FILE {path} is not a tuning file ({error}); delete it")


@cache
def _read(path: Path) -> dict[str, Blocks]:
    """The entries that this version understands."""
    known = {name: blocks for name, blocks in _entries(path).items() if set(blocks) == _FIELDS}
    for name, blocks in known.items():
        wrong = [field.name for field in fields(Blocks) if str(field.type) != type(blocks[field.name]).__name__]
        if wrong:
            raise _not_ours(path, ValueError(f"{wrong[0]} of {name!r} is {blocks[wrong[0]]!r}"))
    return {name: Blocks(**blocks) for name, blocks in known.items()}


def found(shape: Shape) -> Blocks | None:
    """The blocks an earlier search found for problems like this one."""
    here = _unwritten.get((os.environ.get("LDREG_TUNING_FILE"), key(shape)))
    try:
        path = tuning_file()
    except OSError:  # a search will say so
        return here
    try:
        return _read(path).get(key(shape)) or here
    except OSError as error:
        warn_once("tuning file", f"the tuning file cannot be read ({error}); only what this process finds is used")
        return here


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
    """Add to what is in the file by now; or, where that fails, to what this process remembers."""
    global _kept
    try:
        _add(tuning_file(), key(shape), asdict(blocks))
    except OSError as error:
        _unwritten[os.environ.get("LDREG_TUNING_FILE"), key(shape)] = blocks
        warn_once(
            "tuning file",
            f"the tuning file cannot be written ({error}); what LDREG_AUTOTUNE found serves this process only. "
            "LDREG_TUNING_FILE names another place",
        )
    finally:
        _read.cache_clear()
        _kept += 1


def _add(path: Path, name: str, blocks: dict[str, Any]) -> None:
    """One writer at a time reads, adds and renames; readers see the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")  # one name is enough under the lock, and leaves nothing to collect
    with _locked(path.with_name(path.name + ".lock")):
        entries = {**_entries(path), name: blocks}
        try:
            partial.write_text(json.dumps(entries, indent=1, sort_keys=True))
            os.replace(partial, path)
        except OSError:  # a full disk, a folder in the file's place
            with suppress(OSError):
                partial.unlink()
            raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # POSIX, as all that can search

    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
