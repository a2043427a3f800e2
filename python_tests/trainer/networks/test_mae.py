"""MAE's masks by counting, and its decoder: tokens return to their places and know where they are."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ldreg_kernels.trainer.config.networks import MAEDecoderConfig, ViTConfig
from ldreg_kernels.trainer.networks.mae import MAEDecoder, random_masking
from ldreg_kernels.trainer.networks.vit import ViTEncoder

CPU = torch.device("cpu")


def build(encoder_dim: int = 24, patch_count: int = 16, patch_pixels: int = 48) -> MAEDecoder:
    torch.manual_seed(0)
    return MAEDecoder(encoder_dim, patch_count, patch_pixels, MAEDecoderConfig(dim=64, depth=2, heads=4))


# ---------------------------------------------------------------- masks


# 10 * (1 - 0.9) is 0.9999999999999998 in float64: one patch stays visible all the same.
@pytest.mark.parametrize(
    ("patches", "ratio", "visible"), [(196, 0.75, 49), (49, 0.75, 12), (16, 0.75, 4), (10, 0.9, 1), (9, 0.0, 9)]
)
def test_ratio_is_exact_in_every_image_and_the_parts_agree(patches: int, ratio: float, visible: int) -> None:
    torch.manual_seed(0)
    keep, mask, restore = random_masking(32, patches, ratio, CPU)
    assert keep.shape == (32, visible)
    assert (mask.sum(1) == patches - visible).all()
    assert (mask.gather(1, keep) == 0).all()
    # The visible patches, then the masked ones: `restore` says where each patch is among them.
    masked = mask.nonzero()[:, 1].reshape(32, -1)
    assert (torch.cat([keep, masked], 1).sort(1).values == torch.arange(patches)).all()
    assert (restore.sort(1).values == torch.arange(patches)).all()
    assert torch.equal(restore.gather(1, keep), torch.arange(visible).expand(32, -1))
    assert torch.equal(restore >= visible, mask.bool())


def test_masks_are_uniform_over_patches_and_pairs() -> None:
    torch.manual_seed(0)
    draws, patches, visible = 20_000, 16, 4
    _, mask, _ = random_masking(draws, patches, 0.75, CPU)
    seen = 1 - mask
    together = seen.T @ seen / draws  # how often each pair of patches is visible, and each patch on the diagonal
    one = visible / patches
    both = one * (visible - 1) / (patches - 1)
    pairs = together[torch.triu(torch.ones(16, 16), 1).bool()]
    # Binomial counts; the largest of 16 and of 120 of them stays within 4 sigma but for chances of 0.1 and 0.8 %.
    assert (together.diagonal() - one).abs().max() < 4 * sqrt(one * (1 - one) / draws)
    assert (pairs - both).abs().max() < 4 * sqrt(both * (1 - both) / draws)


def test_masks_follow_the_global_generator_and_differ_between_images() -> None:
    torch.manual_seed(3)
    keep, _, _ = random_masking(8, 196, 0.75, CPU)
    after, _, _ = random_masking(8, 196, 0.75, CPU)
    torch.manual_seed(3)
    assert torch.equal(random_masking(8, 196, 0.75, CPU)[0], keep)
    assert not torch.equal(after, keep)
    assert len({tuple(sorted(row)) for row in keep.tolist()}) == 8


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (1.0, "ratio must be at least 0 and below 1, got 1.0"),
        (-0.1, "ratio must be at least 0"),
        (float("nan"), "ratio must be at least 0"),
        (0.95, "ratio 0.95 leaves none of 16 patches visible"),
    ],
)
def test_impossible_ratios_are_refused(ratio: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_masking(2, 16, ratio, CPU)


# ---------------------------------------------------------------- decoder


def test_tokens_return_to_their_places() -> None:
    decoder = build()
    keep, mask, restore = random_masking(5, 16, 0.75, CPU)
    tokens = torch.randn(5, 5, 64)
    with torch.no_grad():
        placed = decoder.in_place(tokens, restore)
    assert placed.shape == (5, 17, 64)
    assert torch.equal(placed[:, 0], tokens[:, 0])
    for image in range(5):
        for number, patch in enumerate(keep[image]):
            assert torch.equal(placed[image, 1 + patch], tokens[image, 1 + number])
        for patch in mask[image].nonzero()[:, 0]:
            assert torch.equal(placed[image, 1 + patch], decoder.mask_token[0, 0])


def test_decoder_is_blind_to_the_order_in_which_patches_were_kept() -> None:
    decoder = build()
    _, _, restore = random_masking(3, 16, 0.75, CPU)
    tokens, order = torch.randn(3, 5, 24), torch.tensor([2, 0, 3, 1])
    other = torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], 1)
    place = torch.cat([order.argsort(), torch.arange(4, 16)])  # visible patch i now stands at order.argsort()[i]
    with torch.no_grad():
        torch.testing.assert_close(decoder(other, place[restore]), decoder(tokens, restore))


def test_masked_patches_differ_by_their_positions_alone() -> None:
    decoder = build()
    _, mask, restore = random_masking(1, 16, 0.75, CPU)
    tokens = torch.randn(1, 5, 24)
    with torch.no_grad():
        guessed = decoder(tokens, restore)[mask.bool()]  # [12, pixels]
        decoder.positions.zero_()
        blind = decoder(tokens, restore)[mask.bool()]
    assert guessed.shape == (12, 48)
    assert (guessed - guessed[0])[1:].abs().amax(1).min() > 1e-2
    torch.testing.assert_close(blind, blind[:1].expand(12, -1))


def test_decoder_trains_whole_and_starts_as_published() -> None:
    decoder = build()
    _, _, restore = random_masking(4, 16, 0.75, CPU)
    tokens = torch.randn(4, 5, 24, requires_grad=True)
    decoder(tokens, restore).square().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().amax((0, 2)).min() > 0  # CLS and every visible patch
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() or name.endswith("k_proj.bias"), name  # see test_encoders.py
    assert decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.5)
    for module, outputs, inputs in [(decoder.embedding, 64, 24), (decoder.pixels, 48, 64)]:
        bound = sqrt(6 / (inputs + outputs))
        assert 0.99 * bound < module.weight.abs().max() <= bound * (1 + 1e-6)
        assert (module.bias == 0).all()
    query = decoder.layers[0].attention.q_proj.weight
    assert 0.99 * sqrt(6 / (4 * 64)) < query.abs().max() <= sqrt(6 / (4 * 64)) * (1 + 1e-6)
    assert {module.eps for module in decoder.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}


def test_published_model_has_its_published_size() -> None:
    with torch.device("meta"):  # shapes alone
        encoder = ViTEncoder(3, 224, ViTConfig(name="vit-base"))
        decoder = MAEDecoder(
            768, encoder.patch_count, encoder.patch_pixels, MAEDecoderConfig(dim=512, depth=8, heads=16)
        )
    # The count is that of transformers' ViTMAEForPreTraining, whose fixed positions are parameters too.
    positions = 197 * (768 + 512)
    assert sum(p.numel() for net in (encoder, decoder) for p in net.parameters()) == 111_907_840 - positions


def test_impossible_decoders_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_count must be a square number, got 15"):
        build(patch_count=15)
    with pytest.raises(ValidationError, match="dim must be a multiple of heads, got dim=64, heads=3"):
        MAEDecoderConfig(dim=64, heads=3)
    with pytest.raises(ValidationError, match="multiple of 4"):
        MAEDecoderConfig(dim=6, heads=3)
