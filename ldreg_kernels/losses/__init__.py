"""Losses: tensors in, one scalar out. No model, no files, no clocks."""

from .alignment import AlignmentLoss, alignment_loss
from .byol import BYOLLoss, byol_loss
from .infonce import InfoNCELoss, info_nce_loss
from .koleo import KoLeoLoss, koleo_loss
from .ldreg import LDRegLoss
from .mae import MAELoss, mae_loss, patchify, unpatchify
from .nnclr import NNCLRLoss, SupportQueue, nnclr_loss
from .ntxent import NTXentLoss, nt_xent_loss
from .sigmoid import SigmoidLoss, sigmoid_loss
from .sigreg import SIGRegLoss, sigreg_loss
from .simsiam import SimSiamLoss, simsiam_loss
from .swav import SwAVLoss, sinkhorn, swav_loss
from .uniformity import UniformityLoss, uniformity_loss

__all__ = [
    "AlignmentLoss",
    "BYOLLoss",
    "InfoNCELoss",
    "KoLeoLoss",
    "LDRegLoss",
    "MAELoss",
    "NNCLRLoss",
    "NTXentLoss",
    "SIGRegLoss",
    "SigmoidLoss",
    "SimSiamLoss",
    "SupportQueue",
    "SwAVLoss",
    "UniformityLoss",
    "alignment_loss",
    "byol_loss",
    "info_nce_loss",
    "koleo_loss",
    "mae_loss",
    "nnclr_loss",
    "nt_xent_loss",
    "patchify",
    "sigmoid_loss",
    "sigreg_loss",
    "simsiam_loss",
    "sinkhorn",
    "swav_loss",
    "uniformity_loss",
    "unpatchify",
]
