"""MAE's loss against loops over patches in float64, and patches against an image of known numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldreg_kernels.losses import MAELoss, mae_loss, patchify, unpatchify


def loop_mae(prediction: Tensor, target: Tensor, mask: Tensor, norm_pix: bool) -> tuple[float, Tensor]:
    """The loss and its gradient by the prediction, number by number."""
    n, patches, numbers = prediction.shape
    hidden = [(i, j) for i in range(n) for j in range(patches) if bool(mask[i, j])]
    gradient = torch.zeros(prediction.shape, dtype=torch.float64)
    errors = []
    for i, j in hidden:
        wanted = target[i, j].double().tolist()
        if norm_pix:
            mean = math.fsum(wanted) / numbers
            variance = math.fsum((t - mean) ** 2 for t in wanted) / (numbers - 1)
            wanted = [(t - mean) / math.sqrt(variance + 1e-6) for t in wanted]
        differences = [float(p) - t for p, t in zip(prediction[i, j].double(), wanted, strict=True)]
        errors.append(math.fsum(x * x for x in differences) / numbers)
        gradient[i, j] = torch.tensor([2 * x / numbers / len(hidden) for x in differences], dtype=torch.float64)
    return math.fsum(errors) / len(hidden), gradient


def problem(n: int, patches: int, numbers: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """A prediction, a target and a mask that hides three patches of four, another number of them per image."""
    generator = torch.Generator().manual_seed(n + patches + numbers)
    prediction = torch.randn(n, patches, numbers, generator=generator, dtype=torch.float64)
    target = torch.rand(n, patches, numbers, generator=generator, dtype=torch.float64)
    target[0, 0] = 0.5  # a patch of one colour, variance 0
    mask = torch.rand(n, patches, generator=generator) < 0.75
    mask[0, 0] = True
    return prediction.to(dtype), target.to(dtype), mask


@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize(("n", "patches", "numbers"), [(1, 1, 2), (3, 4, 12), (2, 9, 48)])
def test_value_and_gradient_equal_the_loop(n: int, patches: int, numbers: int, norm_pix: bool) -> None:
    prediction, target, mask = problem(n, patches, numbers)
    value, by_prediction = loop_mae(prediction, target, mask, norm_pix)
    loss = mae_loss(prediction.requires_grad_(), target, mask, norm_pix=norm_pix)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-12)
    # float64 both: some 1e-16 for each of the few operations, and an absolute part for gradients that are 0.
    torch.testing.assert_close(prediction.grad, by_prediction, rtol=1e-12, atol=1e-16)


def test_float32_is_within_a_millionth() -> None:
    prediction, target, mask = problem(4, 16, 48, torch.float32)
    value, by_prediction = loop_mae(prediction, target, mask, True)
    loss = mae_loss(prediction.requires_grad_(), target, mask)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-6)
    assert float((prediction.grad - by_prediction).norm() / by_prediction.norm()) < 1e-6


def test_gradient_by_finite_differences() -> None:
    prediction, target, mask = problem(2, 3, 4)
    assert torch.autograd.gradcheck(lambda p: mae_loss(p, target, mask), (prediction.requires_grad_(),))


def test_is_a_mean_over_masked_patches_not_over_images() -> None:
    """One hidden patch with error 1, three with error 4: 13/4, where a mean of the images' means would be 5/2."""
    prediction = torch.zeros(2, 3, 2)
    target = torch.cat([torch.full((1, 3, 2), 1.0), torch.full((1, 3, 2), 2.0)])
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    assert mae_loss(prediction, target, mask, norm_pix=False).item() == 13 / 4


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.float64])
def test_the_mask_may_have_any_dtype(dtype: torch.dtype) -> None:
    prediction, target, mask = problem(2, 5, 6, torch.float32)
    loss = mae_loss(prediction, target, mask.to(dtype))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, mae_loss(prediction, target, mask))


def test_seen_patches_and_the_target_get_no_gradient() -> None:
    prediction, target, mask = problem(2, 6, 8)
    mae_loss(prediction.requires_grad_(), target.requires_grad_(), mask).backward()
    assert target.grad is None
    assert bool((prediction.grad[~mask] == 0).all())
    assert bool((prediction.grad[mask] != 0).any(dim=1).all())


def test_nothing_masked_is_nan_and_never_a_perfect_score() -> None:
    prediction, target, mask = problem(2, 3, 4)
    assert mae_loss(prediction, target, torch.zeros_like(mask)).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    prediction, target, mask = problem(2, 6, 48, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = mae_loss(prediction, target.float(), mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loop_mae(prediction, target, mask, True)[0], rel=1e-6)


def test_module_is_the_function() -> None:
    rows = problem(2, 3, 4)
    for norm_pix in (False, True):
        module = MAELoss(norm_pix)
        assert torch.equal(module(*rows), mae_loss(*rows, norm_pix=norm_pix))
        assert f"norm_pix={norm_pix}" in repr(module)


def test_compiles_into_one_graph() -> None:
    rows = problem(2, 3, 4, torch.float32)
    torch.testing.assert_close(torch.compile(mae_loss, fullgraph=True, backend="aot_eager")(*rows), mae_loss(*rows))


def test_patches_are_in_the_official_order() -> None:
    """Rows, then columns, then channels, both of the patches in the image and of the pixels in a patch."""
    n, channels, height, width, p = 2, 3, 4, 6, 2
    images = torch.arange(n * channels * height * width).reshape(n, channels, height, width)
    patches = patchify(images, p)
    assert patches.shape == (2, 6, 12)
    for image in range(n):
        for patch in range(6):
            top, left = patch // 3 * p, patch % 3 * p
            expected = [
                int(images[image, ch, top + r, left + c]) for r in range(p) for c in range(p) for ch in range(channels)
            ]
            assert patches[image, patch].tolist() == expected
    assert torch.equal(unpatchify(patches, p, height, width), images)


ROWS, MASK = torch.ones(2, 3, 4), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((ROWS.long(), ROWS, MASK), TypeError, "prediction must be a floating point tensor, got torch.int64"),
        ((ROWS, ROWS.long(), MASK), TypeError, "target must be a floating point tensor"),
        ((ROWS[0], ROWS, MASK), ValueError, r"prediction must have shape \[N, L, P\], got \[3, 4\]"),
        ((ROWS, ROWS[:1], MASK), ValueError, r"target must have the shape of prediction, \[2, 3, 4\]"),
        ((ROWS, ROWS, MASK.T), ValueError, r"mask must have shape \[N, L\], \[2, 3\], got \[3, 2\]"),
        ((ROWS[..., :1], ROWS[..., :1], MASK), ValueError, "prediction must have at least 2 numbers per patch"),
        ((ROWS, ROWS, None), TypeError, "mask must be a torch.Tensor, got NoneType"),
        ((ROWS, ROWS, MASK.cfloat()), TypeError, "mask must be bool, integer or floating, got torch.complex64"),
        ((ROWS, ROWS.to("meta"), MASK), ValueError, "target must be on the device of prediction, cpu, got meta"),
        ((ROWS, ROWS, MASK.to("meta")), ValueError, "mask must be on the device of prediction, cpu, got meta"),
    ],
)
def test_bad_input_names_the_argument(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mae_loss(*arguments)


def test_norm_pix_is_a_bool() -> None:
    with pytest.raises(TypeError, match="norm_pix must be True or False, got int 1"):
        MAELoss(1)
    with pytest.raises(TypeError, match="norm_pix must be True or False, got str 'yes'"):
        mae_loss(ROWS, ROWS, MASK, norm_pix="yes")


def test_equal_predictions_are_no_minimum() -> None:
    """Each patch is drawn to its own target by 2 (c - t) / (P M), also where c is the mean of the targets."""
    _, target, mask = problem(3, 4, 6)
    constant = target[mask].mean(dim=0)
    prediction = constant.expand_as(target).clone().requires_grad_()
    mae_loss(prediction, target, mask, norm_pix=False).backward()
    expected = 2 * (constant - target) / (6 * int(mask.sum())) * mask[..., None]
    torch.testing.assert_close(prediction.grad, expected, rtol=1e-12, atol=1e-16)  # float64, a few operations
    assert float(prediction.grad.norm()) > 0.01


def test_bad_patches_are_named() -> None:
    with pytest.raises(ValueError, match=r"images must have shape \[N, C, H, W\]"):
        patchify(torch.ones(3, 4, 4), 2)
    with pytest.raises(ValueError, match="multiples of patch_size = 3, got 4 x 6"):
        patchify(torch.ones(1, 3, 4, 6), 3)
    with pytest.raises(ValueError, match="patch_size must be at least 1, got 0"):
        patchify(torch.ones(1, 3, 4, 6), 0)
    with pytest.raises(TypeError, match=r"patch_size must be an int, got float 2\.0"):
        patchify(torch.ones(1, 3, 4, 6), 2.0)
    with pytest.raises(TypeError, match=r"images must be a torch\.Tensor, got list"):
        patchify([1.0], 2)
    with pytest.raises(TypeError, match=r"patches must be a torch\.Tensor, got NoneType"):
        unpatchify(None, 2, 4, 6)
    with pytest.raises(ValueError, match="height must be at least 1, got 0"):
        unpatchify(torch.ones(1, 6, 12), 2, 0, 6)
    with pytest.raises(ValueError, match="width must be at least 1, got -6"):
        unpatchify(torch.ones(1, 6, 12), 2, 4, -6)
    with pytest.raises(ValueError, match=r"patches must have shape \[N, 6, a multiple of 4\].*got \[1, 4, 12\]"):
        unpatchify(torch.ones(1, 4, 12), 2, 4, 6)
    with pytest.raises(ValueError, match=r"patches must have shape \[N, L, P\]"):
        unpatchify(torch.ones(4, 12), 2, 4, 4)
