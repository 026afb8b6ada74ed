"""Blending by a tensor is torch.lerp by a number, bit for bit, and so are its derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hires_gan.networks.blending import Alpha, blended, fades
from hires_gan.networks.growth import Growth
from hires_gan.networks.layers import cross_fade
from hires_gan.networks.munit_layers import Level

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ALPHAS = [0.0, 1 / 3, 0.5, 0.999]


def on_device(alpha: float) -> Tensor:
    """As `Step.alpha` is."""
    return torch.tensor(alpha, dtype=torch.float64)


def noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def derived(
    blend: Callable[[Tensor, Tensor, Alpha], Tensor], old: Tensor, new: Tensor, alpha: Alpha
) -> tuple[Tensor, ...]:
    """The blend, its gradients, and those of a penalty on these."""
    old, new = old.clone().requires_grad_(), new.clone().requires_grad_()
    both = blend(old, new, alpha)
    slopes = torch.autograd.grad((both * both).sum(), (old, new), create_graph=True)
    penalty = sum((slope * slope).sum() for slope in slopes)
    return both, *slopes, *torch.autograd.grad(penalty, (old, new))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_tensor_blends_as_a_number_does(dtype: torch.dtype, alpha: float, layout: torch.memory_format) -> None:
    """Also where vectors of the processor are not filled."""
    old, new = (noise((3, 5, 7, 3), dtype, seed).contiguous(memory_format=layout) for seed in (0, 1))
    expected, found = derived(torch.lerp, old, new, alpha), derived(blended, old, new, on_device(alpha))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype and one.stride() == other.stride()
        assert torch.equal(one, other)
    assert torch.equal(blended(old, new, alpha), expected[0])


@given(st.floats(0.0, 1.0, exclude_max=True), st.integers(1, 40), st.sampled_from(DTYPES))
def test_whatever_alpha_is(alpha: float, size: int, dtype: torch.dtype) -> None:
    old, new = (noise((size,), dtype, seed) for seed in (size, size + 1))
    expected, found = derived(torch.lerp, old, new, alpha), derived(blended, old, new, on_device(alpha))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(("of_old", "of_new"), [(True, False), (False, True), (False, False)])
def test_only_what_is_wanted_gets_a_gradient(of_old: bool, of_new: bool) -> None:
    old, new = (noise((4,), torch.float32, seed) for seed in (0, 1))
    old.requires_grad_(of_old)
    new.requires_grad_(of_new)
    both = blended(old, new, on_device(0.25))
    assert both.requires_grad == (of_old or of_new)
    if both.requires_grad:
        both.sum().backward()
    for one, wanted, share in ((old, of_old, 0.75), (new, of_new, 0.25)):
        assert (one.grad is not None) == wanted
        assert one.grad is None or torch.equal(one.grad, torch.full((4,), share))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_images_fade_by_a_tensor_as_by_a_number(alpha: float) -> None:
    images = noise((2, 3, 6, 10), torch.float32, 0)
    assert torch.equal(cross_fade(images, on_device(alpha)), cross_fade(images, alpha))


@pytest.mark.parametrize(
    "kind", [lambda alpha: Growth(8, alpha), lambda alpha: Level(1, alpha)], ids=["growth", "level"]
)
def test_who_blends_by_a_tensor_fades_whatever_it_holds(kind: Callable[[Alpha], Growth | Level]) -> None:
    """A tensor on a device is not read: this one cannot be."""
    unread = torch.empty((), dtype=torch.float64, device="meta")
    assert fades(unread) and kind(unread).fades
    assert kind(0.999).fades and not kind(1.0).fades
    plain = kind(0.25)
    assert plain.blending(None) is plain
    assert plain.blending(unread).alpha is unread
    assert plain == kind(0.25), "it stays as it was"


def test_a_fade_of_levels_by_a_tensor_has_both_of_them() -> None:
    assert Level(1, torch.empty((), device="meta")).numbers == (1, 2)
