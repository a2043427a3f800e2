"""Randomness is a function: equal addresses give equal draws, others other draws, and nothing is left behind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ldreg_kernels.trainer.randomness import derive, image_generator, permutation, seeded

CPU = torch.device("cpu")


def test_derived_seeds_differ_by_value_order_and_number_of_parts() -> None:
    # numpy's SeedSequence alone makes one seed of (1,) and (1, 0), and of (2**32,) and (0, 1).
    addresses = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (1, 0, 0), (2**32,), (2**32 + 1,), (1, 1), (2**64 - 1,)]
    seeds = [derive(*address) for address in addresses]
    assert len(set(seeds)) == len(addresses)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [derive(*address) for address in addresses]


@pytest.mark.parametrize("part", [-1, 2**64])
def test_parts_out_of_range_are_refused(part: int) -> None:
    with pytest.raises(ValueError, match="parts: each must be"):
        derive(0, part)


def test_seeded_repeats_and_puts_the_generator_back() -> None:
    torch.manual_seed(5)
    undisturbed = torch.rand(4)
    torch.manual_seed(5)
    with seeded(CPU, 1, 2):
        first = torch.rand(3)
    with seeded(CPU, 1, 2):
        assert torch.equal(torch.rand(3), first)
    with pytest.raises(ZeroDivisionError), seeded(CPU, 1, 2):
        1 / 0  # noqa: B018 - an error within must not leave the generator seeded
    with seeded(CPU, 2, 1):
        assert not torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(4), undisturbed)


def test_seeded_names_a_device_it_cannot_seed() -> None:
    with (
        pytest.raises(ValueError, match="device: must be a CPU or CUDA device, got meta"),
        seeded(torch.device("meta")),
    ):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_seeded_covers_the_gpu() -> None:
    device = torch.device("cuda")
    torch.cuda.manual_seed(5)
    undisturbed = torch.rand(4, device=device)
    torch.cuda.manual_seed(5)
    draws = []
    for _ in range(2):
        with seeded(device, 7):
            draws.append(torch.rand(3, device=device))
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(torch.rand(4, device=device), undisturbed)


def test_images_epochs_and_views_have_streams_of_their_own() -> None:
    addresses = list(itertools.product((0, 1, 2**63), (0, 1), (0, 1), (0, 1)))  # seed, epoch, index, view
    draws = [tuple(image_generator(*address).integers(2**63, size=64)) for address in addresses]
    # No number of one stream occurs in another: they would if one ran into another's beginning.
    assert len({number for draw in draws for number in draw}) == 64 * len(addresses)
    keyed = np.random.Generator(np.random.Philox(key=[0, 2], counter=[0, 1, 1, 0]))  # as its docstring says
    assert draws[6] == tuple(keyed.integers(2**63, size=64))
    assert draws[5] == tuple(image_generator(*addresses[5]).integers(2**63, size=64))


def test_an_epoch_has_its_own_order() -> None:
    orders = [permutation(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert all(np.array_equal(np.sort(order), np.arange(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(permutation(1, 1, 50), orders[3])
