"""Losses: tensors in, one scalar out. No model, no files, no clocks."""

from .byol import BYOLLoss, byol_loss
from .koleo import KoLeoLoss, koleo_loss
from .ldreg import LDRegLoss
from .mae import MAELoss, mae_loss, patchify, unpatchify
from .ntxent import NTXentLoss, nt_xent_loss
from .sigreg import SIGRegLoss, sigreg_loss
from .simsiam import SimSiamLoss, simsiam_loss
from .swav import SwAVLoss, sinkhorn, swav_loss

__all__ = [
    "BYOLLoss",
    "KoLeoLoss",
    "LDRegLoss",
    "MAELoss",
    "NTXentLoss",
    "SIGRegLoss",
    "SimSiamLoss",
    "SwAVLoss",
    "byol_loss",
    "koleo_loss",
    "mae_loss",
    "nt_xent_loss",
    "patchify",
    "sigreg_loss",
    "simsiam_loss",
    "sinkhorn",
    "swav_loss",
    "unpatchify",
]
