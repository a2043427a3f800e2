"""`LDRegLoss`: `ops.ldreg_loss` as a module, for training loops that keep their losses in one place.

It adds a weight and the extra references that momentum methods need; it owns no parameters and no state but the last
statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops.ldreg import LDRegStats, ldreg_loss


class LDRegLoss(nn.Module):
    """weight * R for a batch of features (Huang et al., "LDReg", ICLR 2024); add it to the SSL loss.

    Args:
        k: neighbours per row.
        form: l1, l1_abs, l2, min or target; see `ldreg_loss`.
        weight: beta, the factor on R (paper: 0.01 for SimCLR, 0.005 for BYOL).
        estimator: mom, mom_amsaleg, mle, hill, hill_unbiased or mada.
        target, track, reduction, backend, precision: as in `ldreg_loss`.

    Attributes:
        stats: LDRegStats of the last forward (None before the first): the LIDs, the tracked LIDs, the degenerate count.
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
    ) -> None:
        super().__init__()
        self.k = k
        self.form = form
        self.weight = weight
        self.estimator = estimator
        self.target = target
        self.track = tuple(track)
        self.reduction = reduction
        self.backend = backend
        self.precision = precision
        self.stats: LDRegStats | None = None

    def forward(self, features: Tensor, extra_references: Tensor | None = None) -> Tensor:
        """weight * R of `features` [B, D] among themselves and `extra_references` [M, D].

        Args:
            features: encoder outputs [B, D]; gradient flows here only.
            extra_references: more reference rows [M, D], constant (BYOL's momentum-encoder features), or None.

        Returns:
            A scalar ([B] with reduction="none").
        """
        references, self_index = None, None
        if extra_references is not None:
            references, self_index = torch.cat([features.detach(), extra_references.detach()]), 0
        value, self.stats = ldreg_loss(
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
            return_stats=True,
        )
        weighted: Tensor = self.weight * value
        return weighted

    def extra_repr(self) -> str:
        """The settings that differ between runs."""
        return (
            f"k={self.k}, form={self.form!r}, weight={self.weight}, estimator={self.estimator!r}, "
            f"backend={self.backend!r}"
        )
