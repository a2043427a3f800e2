"""Where the queries sit among the references: found on request, and missed aloud.

A row that finds itself at distance 0 among the references counts as its own nearest neighbour. LID and its gradient are
then those of k - 1 neighbours and a 0: no error, and wrong. `find` serves `self_index="auto"`; a `Watch` looks at what
the launches say of distances 0 and warns. It waits for no device: a GPU's count is judged in a later call, when it has
arrived.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch

from ..kernels.contract import Track
from ..kernels.notice import warn_once
from .row_gradient import transformed

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number

_PLAIN = (Tensor, torch.nn.Parameter)

# ------------------------------------------------------------------------------------------------- found


def plain(t: Tensor) -> bool:
    """Whether t has numbers in memory: no fake, no wrapper of a transform, no subclass that is something else."""
    return type(t) in _PLAIN and not t.is_meta and not _functorch.is_functorch_wrapped_tensor(t)


def same_storage(x: Tensor, y: Tensor) -> bool:
    """Whether x and y are the same numbers in the same memory, row for row."""
    return x is y or (
        x.data_ptr() == y.data_ptr()
        and x.shape == y.shape
        and x.stride() == y.stride()
        and x.dtype == y.dtype
        and x.is_neg() == y.is_neg()
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
    rows = torch.cat([y.detach(), x.detach()]) + 0.0  # [N + B, D]; of the zeros one is left
    rows = rows.view(_BITS[x.element_size()])  # NaN is equal to itself
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
    if x.stride() != y.stride() or x.is_neg() != y.is_neg() or y.stride(0) <= 0:
        return None
    offset, rest = divmod(int(x.storage_offset()) - int(y.storage_offset()), y.stride(0))
    return offset if rest == 0 and 0 <= offset <= y.shape[0] - x.shape[0] else None


# ------------------------------------------------------------------------------------------------- missed aloud


def counting(k: int) -> Track:
    """What a launch has to track so that copies among the references can be counted."""
    return (("hill", k),)


def copies(tracked: Tensor) -> Tensor:
    """[] int64: rows with a reference at distance 0, of what `counting` tracked.

    Hill's estimate is 0 where the nearest distance is 0 and the k-th is not.
    """
    return (tracked == 0).sum()


def _capturing(t: Tensor) -> bool:
    """Whether a CUDA graph is being captured, in which no event may be asked for."""
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


class _Look(NamedTuple):
    """A count on its way to the host."""

    copies: Tensor  # [] on the CPU
    rows: int
    arrived: torch.cuda.Event | None


class Watch:
    """Looks at some calls of one kind for queries that were found among the references: the 1st, the 10th, the 100th...

    Args:
        patience: how many looks in a row have to be suspicious. Features of a momentum encoder equal the queries until
            its first update: with 2, they may for nine calls.
        says: what to do about it.
    """

    def __init__(self, patience: int, says: str) -> None:
        self.patience, self.says = patience, says
        self.over = False  # it has been said
        self.calls, self.next_look = 0, 1
        self.suspicious = 0
        self.pending: list[_Look] = []

    def __getstate__(self) -> dict[str, Any]:
        """For copies, and for who saves a module: counts on their way stay where they are."""
        return {**self.__dict__, "pending": []}

    def due(self, x: Tensor) -> bool:
        """Whether copies have to be counted in this call, with queries x."""
        if self.pending and not _capturing(x):
            self._judge()
        if self.over:
            return False
        self.calls += 1
        if self.calls < self.next_look:
            return False
        if not observable(x):
            self.calls -= 1  # the next one, then
            return False
        self.next_look *= 10
        return True

    def add(self, copies: Tensor, rows: int) -> None:
        """Take the count of a call, [] on any device, without waiting for it."""
        if rows < 2:
            return
        arrived = None
        if copies.is_cuda:
            copies = copies.to("cpu", non_blocking=True)  # into pinned memory, so that nothing waits
            arrived = torch.cuda.Event()
            arrived.record()
        self.pending.append(_Look(copies, rows, arrived))
        self._judge()

    def _judge(self) -> None:
        """Look at the counts that have arrived."""
        while self.pending and (self.pending[0].arrived is None or self.pending[0].arrived.query()):
            copies, rows, _ = self.pending.pop(0)
            self.suspicious = self.suspicious + 1 if 2 * int(copies) > rows else 0
            if self.suspicious >= self.patience:
                self.over = True
                warn_once("copies", f"{int(copies)} of {rows} rows have a reference at distance 0. {self.says}")


# Of calls with references and no self_index, by their kind. Emptied when it is large: shapes come and go.
_watches: dict[tuple[Any, ...], Watch] = {}
_MOST_WATCHES = 256
_REMEDY = (
    "If the references hold the queries themselves (features gathered over processes, say), each of these rows counts "
    "itself as its nearest neighbour, and its LID and gradient are wrong: pass self_index, an offset or a map, or "
    'self_index="auto" to have it found. If they are of a momentum encoder that has not moved yet, all is well.'
)


def watch(x: Tensor, y: Tensor) -> Watch | None:
    """Who wants to know how many rows of x, none of which is left out of y, found a copy there; None if nobody does."""
    if torch.compiler.is_compiling() or type(x) not in _PLAIN:
        return None
    kind = (*x.shape, x.dtype, x.device)
    found = _watches.get(kind)
    if found is None:
        if len(_watches) >= _MOST_WATCHES:
            _watches.clear()
        found = _watches[kind] = Watch(1, _REMEDY)
    return found if found.due(x) else None


def observable(x: Tensor) -> bool:
    """Whether what happens to x is a computation whose results may be looked at: nothing records, pretends or wraps."""
    return (
        not torch.compiler.is_compiling()
        and not transformed()
        and torch._C._len_torch_dispatch_stack() == 0
        and plain(x)
        and not _capturing(x)
    )
