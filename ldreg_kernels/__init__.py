"""ldreg_kernels: fused, exact LDReg (local intrinsic dimensionality regularisation) for PyTorch.

    total = ssl_loss + 0.01 * ldreg_kernels.ldreg_loss(features)

See README.md for the equation, the backends and what was measured. Importing this module needs torch and nothing else:
no GPU, no Triton, no built extension.
"""

from . import compat
from .kernels.dispatch import backends
from .losses.ldreg import LDRegLoss
from .ops.knn import KNN, knn
from .ops.ldreg import LDRegStats, ldreg_loss
from .ops.lid import lid

__version__ = "0.1.0"
__all__ = ["KNN", "LDRegLoss", "LDRegStats", "backends", "compat", "knn", "ldreg_loss", "lid"]
