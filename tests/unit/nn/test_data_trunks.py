"""Trunks for particular data sets: U-Net, convolutional networks and SchNet."""

import math

import pytest
import torch

from multitask.nn.convnet import convnet
from multitask.nn.schnet import SchNet
from multitask.nn.unet import UNet


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (8, 8)])
def test_unet_keeps_the_size(size: tuple[int, int]):
    features = UNet([8, 12, 16])(torch.rand(2, 3, *size))
    assert features.shape == (2, 8, *size)


def test_unet_has_a_large_receptive_field():
    trunk = UNet([8, 12, 16])
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    trunk(images)[0, :, 16, 16].sum().backward()
    seen = images.grad.abs().sum(1)[0] > 0
    assert seen[16, 16]
    assert seen[16 + 8, 16]


def test_unet_and_convnet_treat_examples_independently():
    for trunk in (UNet([8, 12]), convnet([8, 12], 6)):
        trunk(torch.rand(1, 3, 16, 16))
        images = torch.rand(3, 3, 16, 16)
        torch.testing.assert_close(trunk(images)[1:2], trunk(images[1:2]))


def test_convnet_accepts_any_size():
    trunk = convnet([8, 12], 6)
    assert trunk(torch.rand(2, 3, 20, 30)).shape == (2, 6)
    assert trunk(torch.rand(2, 3, 64, 64)).shape == (2, 6)


@pytest.mark.parametrize("channels", [[], [6], [8, 0]])
def test_unet_names_bad_channels(channels: list[int]):
    with pytest.raises(ValueError, match=r"trunk\.channels"):
        UNet(channels)


def molecules() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    atoms = torch.zeros(2, 9, 4, dtype=torch.float64)
    atoms[0, :5, 0] = torch.tensor([6, 1, 1, 8, 1])
    atoms[1, :3, 0] = torch.tensor([8, 1, 1])
    atoms[..., 1:] = (
        1.5 * torch.randn(2, 9, 3, generator=generator, dtype=torch.float64) * (atoms[..., :1] > 0)
    )
    return atoms


def test_schnet_is_invariant_to_translation_rotation_order_and_padding():
    torch.manual_seed(0)
    trunk = SchNet(width=8, layers=2, cutoff=5.0, centres=10).double()
    atoms = molecules()
    expected = trunk(atoms)
    assert expected.shape == (2, 8)
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    angle = 0.7
    rotation = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    moved = atoms.clone()
    moved[..., 1:] = (moved[..., 1:] @ rotation.double().T + 3.0) * (atoms[..., :1] > 0)
    torch.testing.assert_close(trunk(moved), expected)
    torch.testing.assert_close(trunk(atoms[:, torch.randperm(9)]), expected)
    torch.testing.assert_close(trunk(torch.cat([atoms, torch.zeros(2, 3, 4).double()], dim=1)), expected)


def test_schnet_depends_on_distances_up_to_the_cutoff():
    torch.manual_seed(0)
    trunk = SchNet(width=8, layers=1, cutoff=3.0, centres=10).double()

    def pair(distance: float) -> torch.Tensor:
        return trunk(torch.tensor([[[6.0, 0, 0, 0], [8.0, distance, 0, 0]]]).double())

    assert (pair(1.0) - pair(1.2)).abs().max() > 1e-4
    torch.testing.assert_close(pair(3.1), pair(9.0))
    torch.testing.assert_close(pair(2.999999), pair(3.1), atol=1e-6, rtol=1e-6)


def test_schnet_gradients_are_finite():
    trunk = SchNet(width=8, layers=2)
    atoms = molecules().float().requires_grad_()
    trunk(atoms).sum().backward()
    assert all(p.grad.isfinite().all() for p in trunk.parameters())
    assert atoms.grad.isfinite().all()
