"""Where the queries sit among the references: found on request, and missed aloud.

A row that finds itself at distance 0 among the references counts as its own nearest neighbour. LID and its gradient are
then those of k - 1 neighbours and a 0: no error, and wrong. `find` serves `self_index="auto"`; a `Watch` looks at what
the launches say of distances 0 and warns. It waits for no device: a count is looked at when it has arrived.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.notice import warn_once
from .row_gradient import transformed

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


def same_storage(x: Tensor, y: Tensor) -> bool:
    """Whether x and y are the same numbers in the same memory, row for row."""
    return x is y or (
        x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype
    )


def find(x: Tensor, y: Tensor) -> int | Tensor | None:
    """Where the rows of x stand in y: an offset, a map [B] int64 with -1 for "not in y", or None for "none is".

    First by memory: x may be a slice of y. Else by bits, which sorts the rows of both and waits for the device. Of
    equal rows in y the first is taken: leaving out one or the other makes no difference.
    """
    offset = _offset_in_memory(x, y)
    if offset is not None or x.shape[0] == 0 or y.shape[0] == 0:
        return offset
    references = y.shape[0]
    rows = torch.cat([y.detach(), x.detach()]).view(_BITS[x.element_size()])  # [N + B, D]; NaN is equal to itself
    distinct, ids = torch.unique(rows, dim=0, return_inverse=True)
    places = torch.arange(references, device=x.device)
    first = places.new_full((distinct.shape[0],), references).scatter_reduce(0, ids[:references], places, "amin")
    own = first[ids[references:]]  # [B]
    found = own < references
    if not found.any():
        return None
    if torch.equal(own, own[0] + torch.arange(x.shape[0], device=x.device)):
        return int(own[0])
    return torch.where(found, own, -1)


def _offset_in_memory(x: Tensor, y: Tensor) -> int | None:
    if x.device != y.device or x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr():
        return None
    if x.stride() != y.stride() or y.stride(0) <= 0:
        return None
    offset, rest = divmod(int(x.storage_offset()) - int(y.storage_offset()), y.stride(0))
    return offset if rest == 0 and 0 <= offset <= y.shape[0] - x.shape[0] else None


def _capturing(t: Tensor) -> bool:
    """Whether a CUDA graph is being captured, in which no event may be asked for."""
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


class _Look(NamedTuple):
    """A count on its way to the host."""

    copies: Tensor  # [] on the CPU
    rows: int
    arrived: torch.cuda.Event | None


class Watch:
    """Looks at the first calls of one kind for queries that were found among the references.

    Args:
        patience: how many calls in a row have to be suspicious: features of another encoder may equal the queries until
            its first update.
        says: what to do about it.
    """

    LOOKS = 4  # calls looked at

    def __init__(self, patience: int, says: str) -> None:
        self.patience, self.says = patience, says
        self.over = False  # nothing more has to be counted
        self.looked = 0
        self.suspicious = 0
        self.pending: list[_Look] = []

    def __getstate__(self) -> dict[str, Any]:
        """For copies, and for who saves a module: counts on their way stay where they are."""
        return {**self.__dict__, "pending": []}

    def add(self, copies: Tensor, rows: int) -> None:
        """Take the count of one call, [] on any device, without waiting for it."""
        if _capturing(copies):
            return
        self.look()
        if self.over or rows < 2 or len(self.pending) >= self.LOOKS:
            return
        arrived = None
        if copies.is_cuda:
            copies = copies.to("cpu", non_blocking=True)  # into pinned memory, so that nothing waits
            arrived = torch.cuda.Event()
            arrived.record()
        self.pending.append(_Look(copies, rows, arrived))

    def look(self) -> None:
        """Judge the counts that have arrived."""
        while self.pending and (self.pending[0].arrived is None or self.pending[0].arrived.query()):
            copies, rows, _ = self.pending.pop(0)
            self.looked += 1
            self.suspicious = self.suspicious + 1 if 2 * int(copies) > rows else 0
            self.over = self.looked >= self.LOOKS
            if self.suspicious >= self.patience:
                self.over = True
                warn_once("copies", f"{int(copies)} of {rows} rows have a reference at distance 0. {self.says}")


# Of calls with references and no self_index, by their shapes. Emptied when it is large: shapes come and go.
_watches: dict[tuple[int, ...], Watch] = {}
_MOST_WATCHES = 256
_REMEDY = (
    "If the references hold the queries themselves (features gathered over processes, say), each of these rows counts "
    "itself as its nearest neighbour, and its LID and gradient are wrong: pass self_index, an offset or a map, or "
    'self_index="auto" to have it found.'
)


def watch(x: Tensor, y: Tensor) -> Watch | None:
    """Who wants to know how many rows of x, none of which is left out of y, found a copy there; None if nobody does."""
    if torch.compiler.is_compiling() or _capturing(x):
        return None
    kind = (*x.shape, y.shape[0])
    found = _watches.get(kind)
    if found is None:
        if len(_watches) >= _MOST_WATCHES:
            _watches.clear()
        found = _watches[kind] = Watch(1, _REMEDY)
    if found.over or transformed():  # where counts are not to be had
        return None
    found.look()
    return None if found.over else found
