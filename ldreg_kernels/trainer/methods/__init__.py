"""Self-supervised methods: modules whose forward takes two views and returns the loss and the features."""

from .simclr import MethodOutput, SimCLR, build_method

__all__ = ["MethodOutput", "SimCLR", "build_method"]
