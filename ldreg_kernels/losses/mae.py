"""MAE's loss, the mean squared error over masked patches, and the patches themselves, in plain torch.

Notation: images [N, C, H, W] are cut into L = (H/p)(W/p) patches of P = p p C numbers.

What this file does not do: draw masks, or run networks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import validate
from .checks import check_floating


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches: [N, C, H, W] -> [N, L, P], in the official order.

    Patches run row by row over the image; within one, the number of pixel (r, c) and channel ch is at (r p + c) C + ch:
    rows, columns, channels last (He et al. 2022, official models_mae.py).

    Args:
        images: [N, C, H, W].
        patch_size: p, side of a patch in pixels.

    Returns:
        [N, (H/p)(W/p), p p C], of the same dtype.

    Raises:
        TypeError: `images` is no tensor, or `patch_size` no int.
        ValueError: `images` is not 4-d, or its sides are no multiples of `patch_size`.
    """
    _check_tensor("images", images)
    if images.ndim != 4:
        raise ValueError(f"images must have shape [N, C, H, W], got {list(images.shape)}")
    n, channels, height, width = images.shape
    rows, columns = _grid(height, width, patch_size)
    cut = images.reshape(n, channels, rows, patch_size, columns, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(n, rows * columns, patch_size * patch_size * channels)


def unpatchify(patches: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """Put patches back together: [N, L, P] -> [N, C, H, W]; undoes `patchify`.

    Args:
        patches: [N, L, P].
        patch_size: p, side of a patch in pixels.
        height: H, in pixels.
        width: W, in pixels.

    Returns:
        [N, P/(p p), H, W], of the same dtype.

    Raises:
        TypeError: `patches` is no tensor, or a number no int.
        ValueError: `patches` is not 3-d, `height` or `width` is no multiple of `patch_size`, or L or P do not fit them.
    """
    _check_tensor("patches", patches)
    if patches.ndim != 3:
        raise ValueError(f"patches must have shape [N, L, P], got {list(patches.shape)}")
    rows, columns = _grid(height, width, patch_size)
    n, count, numbers = patches.shape
    area = patch_size * patch_size
    if count != rows * columns or numbers % area:
        raise ValueError(
            f"patches must have shape [N, {rows * columns}, a multiple of {area}] for images of {height} x {width} "
            f"and patches of {patch_size}, got {list(patches.shape)}"
        )
    channels = numbers // area
    cut = patches.reshape(n, rows, columns, patch_size, patch_size, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(n, channels, height, width)


def mae_loss(prediction: Tensor, target: Tensor, mask: Tensor, *, norm_pix: bool = True) -> Tensor:
    """Mean squared error per patch, averaged over the masked patches of all images.

    L = sum_nl m_nl e_nl / sum_nl m_nl,  e_nl = (1/P) sum_j (prediction_nlj - t_nlj)^2  (He et al. 2022, "Masked
    Autoencoders Are Scalable Vision Learners", section 3). With `norm_pix` each target patch is normalised by its own
    mean and unbiased variance, t = (target - mean) / sqrt(var + 1e-6), the paper's better variant.

    If no patch is masked the loss is 0/0, NaN: raising an error would need the mask on the host, which synchronises
    every step. The published code is the same in the dtype that it gets, which under autocast is a half one.

    The targets are given, so collapse is no minimum: where all predictions are equal to some c, patch by patch the
    gradient is 2 (c - t)/(P M) for M masked patches, and where c is the targets' mean it still differs between patches.

    Under DDP, which averages gradients, it is the loss of the joint batch where ranks mask equally many patches;
    otherwise every rank counts the same, however many it masks.

    Args:
        prediction: the decoder's outputs, [N, L, P], any floating dtype.
        target: patches of the images (see `patchify`), [N, L, P], any floating dtype; constant, no gradient.
        mask: [N, L]; 1 or True where a patch was hidden from the encoder, 0 or False where it was seen. Bool, integer
            or floating.
        norm_pix: whether to normalise the target patches.

    Returns:
        A 0-d tensor. It is computed and returned in the widest of the two dtypes and float32.

    Raises:
        TypeError: `prediction` or `target` is not a floating point tensor, `mask` not a real one, or `norm_pix` no
            bool.
        ValueError: shapes or devices do not fit, or `norm_pix` with P = 1, which has no unbiased variance.
    """
    _check(prediction, target, mask, norm_pix)
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    with torch.autocast(prediction.device.type, enabled=False):
        wanted = target.detach().to(dtype)  # [N, L, P]
        if norm_pix:
            variance, mean = torch.var_mean(wanted, dim=-1, keepdim=True)  # [N, L, 1] each; unbiased
            wanted = (wanted - mean) / (variance + 1e-6).sqrt()
        errors = (prediction.to(dtype) - wanted).square().mean(dim=-1)  # [N, L]
        weights = mask.to(dtype)  # [N, L]
        return (errors * weights).sum() / weights.sum()


class MAELoss(nn.Module):
    """`mae_loss` with its choice of target kept (He et al. 2022, section 3).

    Args:
        norm_pix: whether to normalise the target patches.

    Raises:
        TypeError: `norm_pix` is no bool.
    """

    def __init__(self, norm_pix: bool = True) -> None:
        super().__init__()
        self.norm_pix = validate.flag("norm_pix", norm_pix)

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Loss of predicted patches; see `mae_loss`.

        Args:
            prediction: [N, L, P].
            target: [N, L, P].
            mask: [N, L], 1 where a patch was hidden.

        Returns:
            A 0-d tensor.
        """
        return mae_loss(prediction, target, mask, norm_pix=self.norm_pix)

    def extra_repr(self) -> str:
        """The choice of target, for `repr`."""
        return f"norm_pix={self.norm_pix}"


def _grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    for name, value in (("patch_size", patch_size), ("height", height), ("width", width)):
        validate.at_least(name, value, 1)
    if height % patch_size or width % patch_size:
        raise ValueError(f"height and width must be multiples of patch_size = {patch_size}, got {height} x {width}")
    return height // patch_size, width // patch_size


def _check_tensor(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def _check(prediction: Tensor, target: Tensor, mask: Tensor, norm_pix: bool) -> None:
    check_floating("prediction", prediction)
    check_floating("target", target)
    _check_tensor("mask", mask)
    if mask.is_complex():
        raise TypeError(f"mask must be bool, integer or floating, got {mask.dtype}")
    validate.flag("norm_pix", norm_pix)
    for name, tensor in (("target", target), ("mask", mask)):
        if tensor.device != prediction.device:
            raise ValueError(f"{name} must be on the device of prediction, {prediction.device}, got {tensor.device}")
    if prediction.ndim != 3:
        raise ValueError(f"prediction must have shape [N, L, P], got {list(prediction.shape)}")
    if target.shape != prediction.shape:
        raise ValueError(
            f"target must have the shape of prediction, {list(prediction.shape)}, got {list(target.shape)}"
        )
    if mask.shape != prediction.shape[:2]:
        raise ValueError(f"mask must have shape [N, L], {list(prediction.shape[:2])}, got {list(mask.shape)}")
    if norm_pix and prediction.shape[2] < 2:
        raise ValueError("prediction must have at least 2 numbers per patch for norm_pix, got 1")
