"""Memory at 1024x1024: that of resampling one image at a time, wherever the transformations lead."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
import torch
from hires_gan.augment.draws import draw
from hires_gan.augment.pipe import augment
from hires_gan.augment.settings import AugmentSettings
from hires_gan.randomness import Purpose, RandomSource, SampleRandom

count, std = int(sys.argv[1]), float(sys.argv[2])
settings = AugmentSettings(preset="bg", scale_std=std, aniso_std=std, xfrac_std=std)
x = torch.zeros(count, 3, 1024, 1024, requires_grad=True)
draws = draw(SampleRandom(RandomSource(0), torch.arange(count)), Purpose.AUGMENT_REAL, settings, x.shape)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
augment(x, draws, 1.0, settings).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def grown(count: int, std: float) -> int:
    """MiB of resident memory that augmenting so many images and its gradient add at their peak."""
    command = [sys.executable, "-c", MEASURE, str(count), str(std)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_memory_depends_on_neither_the_batch_nor_the_transformations() -> None:
    one, three, far = grown(1, 0.125), grown(3, 0.125), grown(1, 3.0)
    print(f"MiB: {one} for one image, {three} for three, {far} for one that is moved far")
    assert one < 3000
    assert three - one < 2 * 500  # copies of the images, 12 MiB each; resampling them at once would add 1,500 each
    assert far - one < 300
