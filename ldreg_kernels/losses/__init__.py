"""Losses: tensors in, one scalar out. No model, no files, no clocks."""

from .byol import BYOLLoss, byol_loss
from .ldreg import LDRegLoss
from .mae import MAELoss, mae_loss, patchify, unpatchify
from .ntxent import NTXentLoss, nt_xent_loss

__all__ = [
    "BYOLLoss",
    "LDRegLoss",
    "MAELoss",
    "NTXentLoss",
    "byol_loss",
    "mae_loss",
    "nt_xent_loss",
    "patchify",
    "unpatchify",
]
