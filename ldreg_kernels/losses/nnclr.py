"""NNCLR: InfoNCE whose queries are nearest neighbours, from a queue of past projections.

With n_i the nearest row of the queue to projection i of one view, p_j the predictions of the other and
s_ij = cos(n_i, p_j), a direction is the mean over i of -s_ii / t + ln sum_j exp(s_ij / t) (infonce.py).

The queue holds unit rows, among which the largest cosine is the smallest Euclidean distance: `knn` finds it exactly.

What this file does not do: run networks, or decide which view is put into the queue.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ops import validate
from ..ops.gather import gather_rows, several_processes
from ..ops.knn import knn
from .checks import (
    check_backend,
    check_like,
    check_pair_backend,
    check_rows,
    check_temperature,
    working_dtype,
)
from .cosine import unit_rows
from .gathering import ContrastiveLoss
from .infonce import cross_entropy_of_keys


def nnclr_loss(
    nn1: Tensor,
    nn2: Tensor,
    p1: Tensor,
    p2: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    group: dist.ProcessGroup | None = None,
    equal_rows: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Cross-entropy of nearest neighbours of one view among the predictions of the other, the mean of both ways.

    L = (1/2N) sum_i [ -a_ii/t + ln sum_j exp(a_ij/t) - b_ii/t + ln sum_j exp(b_ij/t) ] with a_ij = cos(nn1_i, p2_j) and
    b_ij = cos(nn2_i, p1_j)  (Dwibedi et al. 2021, "With a Little Help from My Friends", section 3.2 and its
    pseudo-code). No gradient reaches nn1 and nn2.

        nn1, nn2 = queue(z1), queue(z2)                  # a SupportQueue
        loss = nnclr_loss(nn1, nn2, p1, p2)
        queue.enqueue(z1)                                # the first view only, as in the paper

    Other code: solo-learn's is this loss, among a rank's own rows. lightly's example gives neighbours and predictions
    to NTXentLoss, which has rows of the same side as negatives too: 2N - 1 logits for each of 2N rows, another loss.
    Some add the transposed logits, predictions that look for their neighbour; this does not.

    At collapse (all rows equal) the loss is ln N and its gradient is 0, as wherever all rows lie on one line through 0
    (rank 1). A zero row has cosine 0 and gradient 0.

    With `group` the predictions of all W ranks are candidates, and rank r returns W / (sum_q N_q) times the sum of its
    own rows' terms, so the mean of gradients that DDP makes is the gradient of the joint loss. Gradients reach the
    predictions of other ranks: forward and backward are collective calls.

    Args:
        nn1: nearest neighbours of the first views' projections, [N, D], any floating dtype.
        nn2: of the second views', [N, D].
        p1: the predictor's outputs of the first views, [N, D], not necessarily normalised.
        p2: of the second views, [N, D].
        temperature: t > 0, no unit; 0.1 in the paper. A tensor (0-d) may be learned; its value is not looked at, and
            has to stay positive.
        group: the process group whose predictions are gathered. None gathers nothing, whatever is initialised.
        equal_rows: every rank of `group` holds equally many rows, which then is not asked for; asking makes a GPU's
            host wait for the device.
        backend: auto, reference, cpu or triton. float64 is the reference's.

    Returns:
        A 0-d tensor. Half precision inputs are computed and returned in float32, float64 stays float64; under autocast,
        several dtypes in the widest.

    Raises:
        TypeError: an input is not a floating point tensor, dtypes differ outside of autocast, or `temperature` is
            neither a number nor a floating point tensor.
        ValueError: an input does not have the shape of `nn1`, that is not [N, D], N < 2 over all ranks, `temperature`
            is not positive or not 0-d, `backend` is unknown, this process is not a member of `group`, or its ranks
            disagree in D or dtype.
    """
    check_rows("nn1", nn1)
    for name, rows in (("nn2", nn2), ("p1", p1), ("p2", p2)):
        check_rows(name, rows)
        check_like(name, rows, "nn1", nn1)
    check_temperature(temperature, nn1)
    check_pair_backend(backend)
    validate.flag("equal_rows", equal_rows)
    dtype = working_dtype("nn1", nn1, nn2=nn2, p1=p1, p2=p2)
    with torch.autocast(nn1.device.type, enabled=False):
        how = (None, temperature, dtype, group, equal_rows, backend)
        one = cross_entropy_of_keys("nn1", nn1.detach(), p2, *how)
        other = cross_entropy_of_keys("nn2", nn2.detach(), p1, *how)
        return (one + other) / 2


class NNCLRLoss(ContrastiveLoss):
    """`nnclr_loss` with its settings kept: half the sum of two cross-entropies (NNCLR, section 3.2).

    Args:
        temperature: t > 0, no unit; a number, or a 0-d tensor, of which a Parameter becomes one of this module.
        gather: where several processes run, take the predictions of all as candidates; forward is then a collective
            call, which every process of the group has to make. If you gather rows yourself, pass gather=False.
        group: whose predictions; None takes the default process group, if one is initialised when the loss is called.
            Copies have the same group; with one the loss cannot be pickled.
        equal_rows: every rank holds equally many rows (a sampler that pads or drops the rest sees to that).
        backend: as in `nnclr_loss`.

    Raises:
        TypeError: `temperature` is neither a number nor a floating point tensor, a flag no bool, or `group` no process
            group.
        ValueError: `temperature` is not positive and finite or not 0-d, `backend` is unknown, this process is not a
            member of `group`, or `group` comes with gather=False.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        gather: bool = True,
        group: dist.ProcessGroup | None = None,
        equal_rows: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(temperature, gather, group, equal_rows, backend)

    def forward(self, nn1: Tensor, nn2: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
        """Loss of two views' neighbours and predictions; see `nnclr_loss`.

        Args:
            nn1: nearest neighbours of the first views, [N, D].
            nn2: nearest neighbours of the second views, [N, D].
            p1: predictions of the first views, [N, D].
            p2: predictions of the second views, [N, D].

        Returns:
            A 0-d tensor.
        """
        return nnclr_loss(nn1, nn2, p1, p2, **self.settings())


class SupportQueue(nn.Module):
    """The last `size` projections, normalised, first in first out, and the nearest of them to given rows.

    `queue(z)` is n_i = argmax over the rows q of the queue of cos(z_i, q), by an exact search through what has been
    put in (Dwibedi et al. 2021, section 3.2; a support set of 98304 rows there). While nothing has been, a row is its
    own neighbour, z_i / |z_i|: the first steps are plain contrast of two views. (solo-learn and lightly begin with
    random unit rows, which every image is pulled to until the queue has been filled once.)

    Saved are the rows and, as extra state, where the next goes and how many there are: numbers of Python's, so that no
    step waits for a GPU. They change at every step, so call the queue outside of what torch.compile makes one graph. A
    DDP module broadcasts its buffers at every forward: keep the queue outside of it, or use broadcast_buffers=False.

    A zero row has no direction: one in the queue is at distance 1 from all rows, as if at cosine 1/2.

    Args:
        size: how many rows are kept, >= 1.
        dim: features of a row, >= 1.
        dtype: of the rows. In half precision they are no longer exactly of length 1, and the nearest by distance may
            have the second largest cosine where two are equal to its precision.
        backend: of the search, as in `knn`.

    Raises:
        TypeError: `size` or `dim` is no int, or `dtype` none that `knn` takes.
        ValueError: `size` or `dim` is below 1, or `backend` is unknown.
    """

    rows: Tensor

    def __init__(self, size: int, dim: int, *, dtype: torch.dtype = torch.float32, backend: str = "auto") -> None:
        super().__init__()
        validate.at_least("size", size, 1)
        validate.at_least("dim", dim, 1)
        if dtype not in validate.DTYPES:
            raise TypeError(f"dtype must be float32, float64, bfloat16 or float16, got {dtype}")
        check_backend(backend)
        self.register_buffer("rows", torch.zeros(size, dim, dtype=dtype))  # [size, D] the first `filled` are in use
        self.pointer = 0  # where the next row goes
        self.filled = 0
        self.backend = backend

    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        """The nearest row of the queue to every row.

        Args:
            z: [N, D], any floating dtype, not necessarily normalised.

        Returns:
            [N, D] in the dtype of z, of length 1, without gradient.

        Raises:
            TypeError: z is not a floating point tensor.
            ValueError: z is not [N, D] with the queue's D, or on another device.
        """
        rows = self._unit(z)
        if self.filled:
            nearest = knn(rows.to(self.rows.dtype), self.rows[: self.filled], k=1, backend=self.backend).indices
            # A row that is not finite has no neighbour, and shows.
            rows = torch.where(rows.isfinite().all(dim=1, keepdim=True), self.rows[nearest[:, 0]], torch.nan)
        return rows.to(z.dtype)

    @torch.no_grad()
    def enqueue(self, z: Tensor, *, group: dist.ProcessGroup | None = None, equal_rows: bool = False) -> None:
        """Put rows in, in the place of the oldest.

        Args:
            z: [N, D], any floating dtype, not necessarily normalised. Of more than `size` rows the last are kept.
            group: put in the rows of all its ranks, in their order: then all ranks have the same queue. A collective
                call. None puts in this process's own.
            equal_rows: every rank of `group` holds equally many rows, which then is not asked for.

        Raises:
            TypeError: z is not a floating point tensor, or `group` no process group.
            ValueError: z is not [N, D] with the queue's D, or on another device, this process is not a member of
                `group`, or its ranks disagree in dtype.
        """
        validate.flag("equal_rows", equal_rows)
        rows = self._unit(z).to(self.rows.dtype)
        if group is not None and several_processes(group):
            rows = gather_rows(rows, group, equal_rows=equal_rows).rows
        size, count = self.rows.shape[0], rows.shape[0]
        place = torch.arange(max(0, count - size), count, device=rows.device)
        # Only those that stay: of two rows for one place a GPU may write either.
        self.rows[(self.pointer + place) % size] = rows[place]
        self.pointer = (self.pointer + count) % size
        self.filled = min(size, self.filled + count)

    def _unit(self, z: Tensor) -> Tensor:
        check_rows("z", z)
        dim = self.rows.shape[1]
        if z.shape[1] != dim:
            raise ValueError(f"z must have shape [N, {dim}], the D of the queue, got {list(z.shape)}")
        if z.device != self.rows.device:
            raise ValueError(f"z must be on the device of the queue, {self.rows.device}, got {z.device}")
        return unit_rows(z.to(torch.promote_types(z.dtype, torch.float32)))

    def get_extra_state(self) -> Tensor:
        """Where the next row goes and how many there are, [2] int64."""
        return torch.tensor([self.pointer, self.filled])

    def set_extra_state(self, state: Tensor) -> None:
        """What `get_extra_state` of a queue of this size returned."""
        pointer, filled = state.tolist()
        size = self.rows.shape[0]
        if not (0 <= pointer < size and 0 <= filled <= size):
            raise ValueError(f"state must be that of a queue of {size} rows, got pointer {pointer} and {filled} filled")
        self.pointer, self.filled = pointer, filled

    def extra_repr(self) -> str:
        """The settings and how full it is, for `repr`."""
        size, dim = self.rows.shape
        return f"size={size}, dim={dim}, dtype={self.rows.dtype}, filled={self.filled}"
