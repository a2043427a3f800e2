"""Projection and prediction heads: encoder features in, the space of the loss out."""

from __future__ import annotations

from torch import nn


def simclr_projector(
    input_dim: int, hidden_dim: int, output_dim: int, *, layers: int = 2, hidden_bias: bool = False
) -> nn.Sequential:
    """SimCLR's head: [N, input_dim] -> [N, output_dim].

    Linear without bias, BN, ReLU, Linear without bias, BN without bias (Chen et al. 2020, appendix B.9, as in
    their released model and LDReg's): a bias in front of a batch normalisation has no effect, and after the
    last one the loss's cosine would let it pull all rows together. SimCLR-Tuned has three layers and, though
    they have no effect, biases in the hidden ones.

    The weights begin as LDReg's do: a truncated normal of sigma 0.01. Its bounds there, -2 and 2, are 200 sigma
    away, so that nothing is cut.

    Args:
        input_dim: width of the encoder's features.
        hidden_dim: width of the hidden layers.
        output_dim: width of the output.
        layers: linear layers, at least 2.
        hidden_bias: give the hidden layers biases.

    Returns:
        The head.

    Raises:
        ValueError: fewer than two layers.
    """
    if layers < 2:
        raise ValueError(f"layers must be at least 2, got {layers}")
    last_norm = nn.BatchNorm1d(output_dim)
    last_norm.bias.requires_grad_(False)  # stays 0; torch has no BatchNorm with a scale and no shift
    head = nn.Sequential()
    for width in [input_dim] + [hidden_dim] * (layers - 2):
        head.extend(_hidden_layer(width, hidden_dim, bias=hidden_bias))
    head.extend([nn.Linear(hidden_dim, output_dim, bias=False), last_norm])
    for module in head:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.01)
    return head


def byol_projector(input_dim: int, hidden_dim: int, output_dim: int) -> nn.Sequential:
    """BYOL's projector: [N, input_dim] -> [N, output_dim].

    Linear, BN, ReLU, Linear without bias (Grill et al. 2020, section 3.3), with torch's initialisation.

    Args:
        input_dim: width of the encoder's features.
        hidden_dim: width of the hidden layer.
        output_dim: width of the output.

    Returns:
        The head.
    """
    return nn.Sequential(
        *_hidden_layer(input_dim, hidden_dim, bias=True), nn.Linear(hidden_dim, output_dim, bias=False)
    )


def byol_predictor(dim: int, hidden_dim: int) -> nn.Sequential:
    """BYOL's predictor, built like its projector: [N, dim] -> [N, dim].

    Args:
        dim: width of the projections, which is what it predicts.
        hidden_dim: width of the hidden layer.

    Returns:
        The head.
    """
    return byol_projector(dim, hidden_dim, dim)


def _hidden_layer(input_dim: int, width: int, *, bias: bool) -> list[nn.Module]:
    # DeepMind's "decay 0.9" keeps nine tenths of the running statistics: torch's momentum of 0.1, not of 0.9.
    return [nn.Linear(input_dim, width, bias=bias), nn.BatchNorm1d(width, momentum=0.1), nn.ReLU(inplace=True)]
