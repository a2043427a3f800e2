"""Means of LIDs that leave out the rows without one: no row that collapsed onto its neighbours makes them 0 or NaN.

Everything stays on its device, as 0-d tensors; nothing is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LIDRows:
    """LIDs of a batch, [B] and detached, and what sums them up.

    The summaries are over the usable rows, whose LID is positive and finite; NaN if there is none.
    """

    lid: Tensor  # [B]

    @property
    def usable(self) -> Tensor:
        """[B] bool: rows with a LID."""
        return self.lid.isfinite() & (self.lid > 0)

    @property
    def geometric_mean(self) -> Tensor:
        """exp(mean ln LID): the Fréchet mean of Huang et al. 2024, "LDReg", section 4; the one that R moves."""
        return self._mean(self.lid.log()).exp()

    @property
    def arithmetic_mean(self) -> Tensor:
        """mean LID."""
        return self._mean(self.lid)

    @property
    def harmonic_mean(self) -> Tensor:
        """1 / mean(1 / LID): what maximum likelihood over all rows gives (MacKay and Ghahramani 2005)."""
        return self._mean(self.lid.reciprocal()).reciprocal()

    @property
    def median(self) -> Tensor:
        """The median LID; of the two in the middle, their mean."""
        if self.lid.shape[0] == 0:
            return self.lid.new_full((), torch.nan)
        usable = self.usable
        rows = usable.sum()
        ordered = torch.where(usable, self.lid, torch.inf).sort().values
        middle = ordered[torch.stack([rows - 1, rows]).clamp(min=0) // 2].mean()
        return torch.where(rows > 0, middle, torch.nan)

    def _mean(self, values: Tensor) -> Tensor:
        usable = self.usable
        kept = torch.where(usable, values, 0).sum(dtype=torch.float64) / usable.sum()  # 0 / 0 is NaN
        return kept.to(self.lid.dtype)
