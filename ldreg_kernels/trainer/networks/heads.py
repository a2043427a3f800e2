"""Projection heads: encoder features in, the space of the contrastive loss out."""

from __future__ import annotations

from torch import nn


def simclr_projector(input_dim: int, hidden_dim: int, output_dim: int) -> nn.Sequential:
    """SimCLR's two-layer head: [N, input_dim] -> [N, output_dim].

    Linear without bias, BN, ReLU, Linear without bias, BN without bias (Chen et al. 2020, appendix B.9, as in
    their released model and LDReg's): a bias in front of a batch normalisation has no effect, and after the
    last one the loss's cosine would let it pull all rows together.

    Args:
        input_dim: width of the encoder's features.
        hidden_dim: width of the hidden layer.
        output_dim: width of the output.

    Returns:
        The head.
    """
    last_norm = nn.BatchNorm1d(output_dim)
    last_norm.bias.requires_grad_(False)  # stays 0; torch has no BatchNorm with a scale and no shift
    return nn.Sequential(
        nn.Linear(input_dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, output_dim, bias=False),
        last_norm,
    )
