"""`LDRegLoss`: `ops.ldreg_loss` as a module, for training loops that keep their losses in one place.

It adds a weight, the extra references that momentum methods need, and the rows of other processes. It owns no
parameters and no state but the last statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..ops import validate
from ..ops.gather import gather_rows, several_processes
from ..ops.ldreg import LDRegStats, ldreg_loss
from ..ops.own_rows import Watch
from ..ops.row_gradient import transformed
from .gathering import GatheringLoss

_REMEDY = (
    "LDRegLoss puts the features among their references by itself, those of other processes included (gather=False "
    "turns that off): {what} must not hold them again, or each row has a copy of itself as its nearest neighbour, and "
    "LID and gradient are wrong."
)


class LDRegLoss(GatheringLoss):
    """weight * R for a batch of features (Huang et al., "LDReg", ICLR 2024); add it to the SSL loss.

    Each row is compared with all others of the batch. In a job of several processes (a default process group is
    initialised) the batch is that of all of them: features are gathered, as constants; own rows are left out by index.
    The value on each rank is W (sum over its rows) / (usable rows of all W ranks), so that the mean over ranks, which
    DDP takes of gradients, is R of the whole batch, also where ranks hold unequal numbers of rows. With reduction "sum"
    or "none" it is of this rank's rows, as it is.

    Gradient accumulation is something else: 4 x 32 rows are four small neighbourhoods, not one of 128. LID depends on
    how many rows there are to choose from, so R and its gradient differ, for every k. For the gradient of 128 rows,
    compute the features of all micro-batches first, the loss on all of them once, and carry its gradient back through
    one micro-batch at a time (gradient caching, Gao et al. 2021):

        with torch.no_grad():
            features = torch.cat([encoder(images) for images in micro_batches])
        features.requires_grad_()
        ldreg(features).backward()  # and whatever else is a function of all features
        for images, gradient in zip(micro_batches, features.grad.split(32)):
            encoder(images).backward(gradient)  # with the same random numbers as before (dropout)

    Args:
        k: neighbours per row.
        form: l1, l1_abs, l2, min or target; see `ldreg_loss`.
        weight: beta, the factor on R (paper: 0.01 for SimCLR, 0.005 for BYOL).
        estimator: mom, mom_amsaleg, mle, hill, hill_unbiased or mada.
        target, track, reduction, backend, precision: as in `ldreg_loss`.
        clamp: take the neighbours that are there where a batch has fewer than k for a row: the last batch of an epoch
            does not stop a training. It is warned of once (not from inside of torch.compile, where with tracked LIDs
            every such size is a graph of its own), and `stats.k` says how many were used. False makes it an error.
        gather: search among the rows of all processes, if there are several. forward is then a collective call: every
            process of the group has to make it.
        group: the process group to gather over; None takes the default one. Copies have the same group; with one the
            loss cannot be pickled.
        equal_rows: every rank holds equally many rows, always; then they do not tell each other, for which a GPU's host
            has to wait. Where it is not so, the result is undefined.

    Attributes:
        stats: LDRegStats of the last forward (None before the first): the LIDs of this process's rows, the tracked
            LIDs, the degenerate count, the k used. None after a call under a torch.func transform.

    Raises:
        ValueError, TypeError: a bad argument, by name.
    """

    def __init__(
        self,
        k: int = 64,
        form: str = "l1",
        weight: float = 1.0,
        estimator: str = "mom",
        *,
        target: float | None = None,
        track: Sequence[tuple[str, int]] = (),
        reduction: str = "mean",
        backend: str = "auto",
        precision: str = "exact",
        clamp: bool = True,
        gather: bool = True,
        group: dist.ProcessGroup | None = None,
        equal_rows: bool = False,
    ) -> None:
        super().__init__(gather, group, equal_rows)
        validate.modes(estimator, form, reduction, backend, precision)
        self.k = validate.at_least("k", k, validate.smallest_k(estimator))
        self.form = form
        self.weight = validate.number("weight", weight)
        self.estimator = estimator
        self.target = validate.target(form, target)
        self.track = validate.track(track)
        self.reduction = reduction
        self.backend = backend
        self.precision = precision
        self.clamp = validate.flag("clamp", clamp)
        self.stats: LDRegStats | None = None
        self._watch = Watch(1, _REMEDY.format(what="what is passed as features"))
        # A momentum encoder is a copy of the encoder until its first update: that is no mistake.
        maybe = " If they are of a momentum encoder that has not moved yet, all is well."
        self._watch_extra = Watch(2, _REMEDY.format(what="extra_references") + maybe)

    def forward(self, features: Tensor, extra_references: Tensor | None = None) -> Tensor:
        """weight * R of `features` [B, D] among themselves, those of other processes, and `extra_references` [M, D].

        Args:
            features: encoder outputs [B, D]; gradient flows here only.
            extra_references: more reference rows [M, D], constant, none of them from `features` (BYOL's
                momentum-encoder features), or None. Those of other processes are gathered like features.

        Returns:
            A scalar ([B] with reduction="none").

        Raises:
            ValueError, TypeError: a bad argument, by name.
        """
        features, extra_references = validate.features(features, extra_references, ("features", "extra_references"))
        everywhere = self.gather and several_processes(self.group)
        references, self_index = self._references(features, extra_references, everywhere)
        value, stats = ldreg_loss(
            features,
            references,
            k=self.k,
            form=self.form,
            estimator=self.estimator,
            target=self.target,
            self_index=self_index,
            track=self.track,
            reduction=self.reduction,
            backend=self.backend,
            precision=self.precision,
            clamp=self.clamp,
            return_stats=True,
        )
        self.stats = None if transformed() else stats  # else of wrappers that end with the transform
        if references is not None and not torch.compiler.is_compiling():
            watch = self._watch if extra_references is None else self._watch_extra
            if watch.due(features) and stats.copies is not None:
                watch.add(stats.copies, features.shape[0])
        if everywhere and self.reduction == "mean":
            value = self._over_ranks(value, stats)
        return self.weight * value

    def _references(
        self, features: Tensor, extra_references: Tensor | None, everywhere: bool
    ) -> tuple[Tensor | None, int | None]:
        """The reference rows and where `features` sit in them."""
        parts, offset = [features.detach()], 0
        if extra_references is not None:
            parts.append(extra_references.detach())
        if everywhere:
            gathered = [gather_rows(rows, self.group, equal_rows=self.equal_rows) for rows in parts]
            parts, offset = [rows.rows for rows in gathered], gathered[0].offset
        elif extra_references is None:
            return None, None
        if len(parts) == 1:
            return parts[0], offset
        if not validate.autocasts(features.device.type):
            return torch.cat(parts), offset
        with torch.autocast(features.device.type, enabled=False):  # a CPU's concatenates no float16
            return torch.cat(parts), offset

    def _over_ranks(self, value: Tensor, stats: LDRegStats) -> Tensor:
        """The mean over this rank's usable rows as its share, times W, of the mean over all ranks' rows."""
        assert stats.degenerate is not None
        usable = (stats.lid.shape[0] - stats.degenerate).to(value.dtype)
        total = gather_rows(usable.view(1, 1), self.group, equal_rows=True).rows.sum().clamp(min=1)
        if self.form != "l2":
            return value * (usable * dist.get_world_size(self.group) / total)
        # A root of a mean: the squares are added over ranks before it is taken. It has no derivative at 0: 0 there.
        squares = gather_rows((usable * value.square()).view(1, 1), self.group, equal_rows=True).rows.sum() / total
        zero = squares.detach() == 0
        return -torch.where(zero, 1.0, squares).sqrt() * ~zero

    def extra_repr(self) -> str:
        """The settings that differ between runs."""
        return (
            f"k={self.k}, form={self.form!r}, weight={self.weight}, estimator={self.estimator!r}, "
            f"backend={self.backend!r}"
        )
