"""Losses: tensors in, one scalar out. No model, no files, no clocks."""

from .ldreg import LDRegLoss
from .ntxent import NTXentLoss, nt_xent_loss

__all__ = ["LDRegLoss", "NTXentLoss", "nt_xent_loss"]
