"""What only a GPU can show: the same augmentation as on the CPU, determinism where it is asked for, no waiting."""

from __future__ import annotations

import pytest
import torch
from augment_literal import noise, source
from torch import Tensor

from hires_gan.augment.draws import Draws, draw
from hires_gan.augment.pipe import augment
from hires_gan.augment.settings import AugmentSettings
from hires_gan.randomness import Purpose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EVERYTHING = AugmentSettings(preset="bgcfnc")


def drawn(x: Tensor, settings: AugmentSettings = EVERYTHING) -> Draws:
    draws = draw(source(x.shape[0]), Purpose.AUGMENT_REAL, settings, x.shape)
    return Draws(draws.numbers.to(x.device), None if draws.noise is None else draws.noise.to(x.device))


def derivatives(x: Tensor, settings: AugmentSettings = EVERYTHING) -> list[Tensor]:
    """The images, the gradient of a loss, and the gradient of that gradient's square."""
    x = x.requires_grad_()
    y = augment(x, drawn(x, settings), 0.9, settings)
    (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    return [y.detach(), first.detach(), *torch.autograd.grad(first.square().sum(), x)]


def test_a_gpu_augments_as_the_cpu_does() -> None:
    x = noise(6, 3, 32, 32)
    for there, here in zip(derivatives(x.cuda()), derivatives(x), strict=True):
        torch.testing.assert_close(there.cpu(), here, atol=1e-9, rtol=1e-9)


def test_deterministic_algorithms_give_the_same_numbers_twice() -> None:
    x = noise(6, 3, 256, 256, dtype=torch.float32).cuda()
    free = derivatives(x)
    torch.use_deterministic_algorithms(True)
    try:
        once, again = derivatives(x), derivatives(x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    for a, b in zip(once, free, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("number", [False, True])
def test_nothing_waits_for_the_gpu(number: bool) -> None:
    x = noise(2, 3, 64, 64, dtype=torch.float32).cuda()
    p = 0.5 if number else torch.tensor(0.5, dtype=torch.float64).cuda()
    draws = drawn(x)
    augment(x, draws, p, EVERYTHING)  # the filters are put on the GPU once
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(x, draws, p, EVERYTHING)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_memory_at_1024_is_that_of_one_image_and_a_few_copies() -> None:
    settings = AugmentSettings()
    peaks = []
    for count in (1, 4):
        x = noise(count, 3, 1024, 1024, dtype=torch.float32).cuda()
        derivatives(x, settings)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        derivatives(x, settings)
        peaks.append((torch.cuda.max_memory_allocated() - before) / 2**20)
    print(f"MiB above the images: {peaks[0]:.0f} for one, {peaks[1]:.0f} for four")
    assert peaks[0] < 1024
    assert peaks[1] - peaks[0] < 3 * 160  # MiB; an image has 12
