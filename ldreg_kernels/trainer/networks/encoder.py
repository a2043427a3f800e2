"""What every encoder is: images in, one feature row per image out, and its layers on request."""

from __future__ import annotations

from torch import Tensor, nn


class Encoder(nn.Module):
    """Images [N, C, H, W] to features [N, output_dim].

    Attributes:
        output_dim: width of the features.
    """

    output_dim: int

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch: [N, C, H, W] -> [N, output_dim]."""
        raise NotImplementedError

    def hidden(self, images: Tensor) -> dict[str, Tensor]:
        """Features after every stage or layer, one row per image, in the order of the network.

        Args:
            images: [N, C, H, W].

        Returns:
            {layer name: [N, width of the layer]}; the last one is what `forward` returns.
        """
        raise NotImplementedError
