"""A ResNet's weights under torchvision's names, and back.

transformers' names of the same tensors (`encoder.stages.0.layers.0.layer.0.convolution.weight`) depend on its version;
torchvision's (`layer1.0.conv1.weight`) are what detectors and other toolboxes read. The map is one to one, for
ResNet-18 and ResNet-50 and both stems. torchvision's classifier `fc` has no counterpart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_PREFIX = "network."  # of the network inside of a ResNetEncoder


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a ResNetEncoder.

    Args:
        state: `ResNetEncoder.state_dict()`.

    Returns:
        The same tensors under torchvision's names, in the same order.

    Raises:
        ValueError: a name is not one of a ResNetEncoder.
    """
    return {_torchvision_name(name): tensor for name, tensor in state.items()}


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a torchvision ResNet for `ResNetEncoder.load_state_dict`.

    Args:
        state: a torchvision ResNet's state dict without `fc.weight` and `fc.bias`.

    Returns:
        The same tensors under the names of a ResNetEncoder, in the same order.

    Raises:
        ValueError: a name is not one of torchvision's ResNets up to the pooling.
    """
    return {_own_name(name): tensor for name, tensor in state.items()}


def _torchvision_name(name: str) -> str:
    own = name.removeprefix(_PREFIX)
    if name.startswith(_PREFIX):
        if match := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", own):
            part, tensor = match.groups()
            return f"{'conv1' if part == 'convolution' else 'bn1'}.{tensor}"
        block = re.match(r"encoder\.stages\.(\d)\.layers\.(\d+)\.", own)
        inside = own[block.end() :] if block else ""
        if block and (match := re.fullmatch(r"layer\.(\d)\.(convolution|normalization)\.(\w+)", inside)):
            place, part, tensor = match.groups()
            kind = "conv" if part == "convolution" else "bn"
            return f"layer{int(block[1]) + 1}.{block[2]}.{kind}{int(place) + 1}.{tensor}"
        if block and (match := re.fullmatch(r"shortcut\.(convolution|normalization)\.(\w+)", inside)):
            part, tensor = match.groups()
            return f"layer{int(block[1]) + 1}.{block[2]}.downsample.{0 if part == 'convolution' else 1}.{tensor}"
    raise ValueError(f"{name!r} is not a tensor of a ResNetEncoder")


def _own_name(name: str) -> str:
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        kind, tensor = match.groups()
        return f"{_PREFIX}embedder.embedder.{_part(kind == 'conv')}.{tensor}"
    if match := re.fullmatch(r"layer([1-4])\.(\d+)\.(conv|bn)([1-3])\.(\w+)", name):
        stage, block, kind, place, tensor = match.groups()
        return f"{_block(stage, block)}.layer.{int(place) - 1}.{_part(kind == 'conv')}.{tensor}"
    if match := re.fullmatch(r"layer([1-4])\.(\d+)\.downsample\.([01])\.(\w+)", name):
        stage, block, place, tensor = match.groups()
        return f"{_block(stage, block)}.shortcut.{_part(place == '0')}.{tensor}"
    raise ValueError(f"{name!r} is not a tensor of a torchvision ResNet up to its pooling")


def _part(is_convolution: bool) -> str:
    return "convolution" if is_convolution else "normalization"


def _block(stage: str, block: str) -> str:
    return f"{_PREFIX}encoder.stages.{int(stage) - 1}.layers.{block}"
