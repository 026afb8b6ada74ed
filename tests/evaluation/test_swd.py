"""The sliced Wasserstein distance against a slow literal reference, and what a distance must do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hires_gan.data.waiting import Stopped
from hires_gan.errors import Failure
from hires_gan.evaluation import swd
from hires_gan.evaluation.swd import Descriptors, compared, laplacian_pyramid, mean_distance
from hires_gan.randomness import Purpose, RandomSource


def textures(seed: int, count: int = 12, resolution: int = 32) -> Tensor:
    """Images of smooth blobs under fine noise, a colour of their own each: uint8 `[count, 3, R, R]`."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, size=resolution, mode="bicubic")
    noise = torch.randn(count, 3, resolution, resolution, generator=generator)
    return (blobs * 160 + 40 + noise * 15).clamp(0, 255).to(torch.uint8)


def described(images: Tensor, batch: int = 5) -> Descriptors:
    descriptors = Descriptors(images.shape[-1], len(images))
    for part in torch.split(images, batch):
        descriptors.add(part)
    return descriptors


def patches_of(descriptors: Descriptors, resolution: int) -> Tensor:
    patches = descriptors.gathered(resolution)
    assert patches is not None
    return patches


def level(descriptors: Descriptors, resolution: int) -> Tensor:
    """Normalised, as it is compared."""
    return swd._normalised(patches_of(descriptors, resolution))


def by_level(real: Descriptors, fake: Descriptors, **how: Any) -> dict[int, float]:
    return {side: compared(patches_of(real, side), patches_of(fake, side), **how) for side in real.resolutions}


def distances(real: Tensor, fake: Tensor) -> dict[int, float]:
    return by_level(described(real), described(fake))


# ---- the literal reference: numpy, float64, loops ----

KERNEL = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256


def literal_filter(plane: np.ndarray) -> np.ndarray:
    padded = np.pad(plane, 2, mode="reflect")
    result = np.zeros_like(plane)
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            result[y, x] = (KERNEL * padded[y : y + 5, x : x + 5]).sum()
    return result


def literal_pyramid(plane: np.ndarray) -> dict[int, np.ndarray]:
    levels = {}
    while len(plane) > 16:
        smaller = literal_filter(plane)[::2, ::2]
        zeros = np.zeros_like(plane)
        zeros[::2, ::2] = smaller
        levels[len(plane)] = plane - 4 * literal_filter(zeros)
        plane = smaller
    levels[16] = plane
    return levels


def literal_descriptors(images: np.ndarray) -> dict[int, np.ndarray]:
    patches: dict[int, list[np.ndarray]] = {}
    for number, image in enumerate(images):
        planes = [literal_pyramid(plane) for plane in image.astype(np.float64)]
        for resolution in planes[0]:
            sample = torch.tensor([number * 32 + int(np.log2(resolution))])
            corners = RandomSource(0).integers(Purpose.SWD_PATCH, sample, resolution - 6, (128, 2))[0]
            for y, x in corners.tolist():
                patch = np.stack([plane[resolution][y : y + 7, x : x + 7] for plane in planes])
                patches.setdefault(resolution, []).append(patch)
    return {resolution: np.stack(each) for resolution, each in patches.items()}


def literal_distances(real: np.ndarray, fake: np.ndarray) -> dict[int, float]:
    described = [literal_descriptors(images) for images in (real, fake)]
    directions = RandomSource(0).normal(Purpose.SWD_DIRECTION, torch.arange(512), (147,)).double().numpy()
    result = {}
    for resolution in described[0]:
        flat = []
        for patches in (each[resolution] for each in described):
            for channel in range(3):
                values = patches[:, channel]
                patches[:, channel] = (values - values.mean()) / values.std()
            flat.append(patches.reshape(len(patches), 147))
        total = 0.0
        for direction in directions:
            unit = direction / np.sqrt((direction**2).sum())
            a, b = (np.sort((patches * unit).sum(1)) for patches in flat)
            total += np.abs(a - b).mean()
        result[resolution] = 1000 * total / 512
    return result


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    real, fake = textures(1, count=6, resolution=64), textures(2, count=6, resolution=64)
    fake[:, 0] //= 2
    return real, torch.cat((fake[:4], real[4:].flip(3)))


def test_distances_equal_the_literal_reference(pair: tuple[Tensor, Tensor]) -> None:
    real, fake = pair
    expected = literal_distances(real.numpy(), fake.numpy())
    found = distances(real, fake)
    assert set(found) == set(expected) == {16, 32, 64}
    assert found == pytest.approx(expected, rel=1e-6, abs=0)
    assert mean_distance(found) == pytest.approx(sum(expected.values()) / 3, rel=1e-6, abs=0)


def test_small_differences_equal_the_literal_reference_too() -> None:
    real = textures(1, count=4)
    fake = real.clone()
    fake[:, :, ::5, ::3] += 1
    expected = literal_distances(real.numpy(), fake.numpy())
    assert 0 < expected[16] < expected[32] < 10  # of the order of what a good generator reaches
    # Here float32's rounding of the patches shows: 1e-8 before the factor of 1,000.
    assert distances(real, fake) == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_pyramid_equals_the_literal_reference() -> None:
    image = textures(3, count=1, resolution=64)
    levels = laplacian_pyramid(image.double())
    for channel in range(3):
        expected = literal_pyramid(image[0, channel].double().numpy())
        for resolution, level in levels.items():
            np.testing.assert_allclose(level[0, channel], expected[resolution], rtol=0, atol=1e-11)


def test_pyramid_sums_back_to_the_image() -> None:
    images = textures(4, count=2, resolution=128).float()
    levels = laplacian_pyramid(images)
    assert list(levels) == [128, 64, 32, 16]
    rebuilt = levels[16]
    for resolution in (32, 64, 128):
        rebuilt = swd._up(rebuilt) + levels[resolution]
    torch.testing.assert_close(rebuilt, images, rtol=0, atol=1e-4)


def test_pyramid_of_one_colour_is_that_colour_at_the_end_and_nothing_before() -> None:
    levels = laplacian_pyramid(torch.full((1, 3, 64, 64), 77.0))
    assert float(levels[64].abs().max()) == 0
    assert float(levels[32].abs().max()) == 0
    assert torch.equal(levels[16], torch.full((1, 3, 16, 16), 77.0))


def test_pyramid_of_a_point_is_the_filter() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 10, 20] = 256.0
    smaller = swd._down(image)[0, 0]
    assert smaller[5, 10] == 36  # 6 x 6
    assert smaller[4, 10] == smaller[6, 10] == smaller[5, 9] == smaller[5, 11] == 6  # 6 x 1
    assert smaller[4, 9] == smaller[6, 11] == 1
    assert smaller.sum() == 64  # every fourth pixel of a filter that sums to 256


def test_patches_are_windows_of_their_image() -> None:
    images = torch.arange(3 * 2 * 16 * 16, dtype=torch.float32).reshape(2, 3, 16, 16)
    patches = swd._patches(images, torch.arange(7, 9)).reshape(2, 128, 3, 7, 7)
    corners = set()
    for number in range(2):
        for patch in patches[number]:
            y, x = divmod(int(patch[0, 0, 0]) - int(images[number, 0, 0, 0]), 16)
            assert torch.equal(patch, images[number, :, y : y + 7, x : x + 7])
            corners.add((y, x))
    assert {y for y, _ in corners} == {x for _, x in corners} == set(range(10))  # every place, the last one too


def test_levels_are_normalised_per_channel() -> None:
    images = textures(5)
    images[:, 1] //= 4
    descriptors = described(images)
    assert descriptors.resolutions == (16, 32)
    for resolution in descriptors.resolutions:
        normalised = level(descriptors, resolution)
        assert normalised.shape == (len(images) * 128, 147)
        assert normalised.dtype == torch.float32
        channels = normalised.double().reshape(-1, 3, 49)
        torch.testing.assert_close(channels.mean((0, 2)), torch.zeros(3).double(), rtol=0, atol=1e-7)
        torch.testing.assert_close(channels.std((0, 2), correction=0), torch.ones(3).double(), rtol=0, atol=1e-7)


def test_a_channel_that_never_varies_gives_zeros_and_a_finite_distance() -> None:
    collapsed = textures(6)
    collapsed[:, 2] = 100
    channels = level(described(collapsed), 16).reshape(-1, 3, 49)
    assert float(channels[:, 2].abs().max()) == 0
    assert float(channels[:, 0].abs().max()) > 0
    assert 50 < mean_distance(distances(textures(6), collapsed)) < 1000


def test_identical_sets_have_distance_zero() -> None:
    images = textures(1)
    assert distances(images, images.clone()) == {16: 0.0, 32: 0.0}


def test_distance_is_symmetric() -> None:
    a, b = described(textures(1)), described(textures(2))
    assert by_level(a, b) == by_level(b, a)


def test_order_of_the_images_hardly_matters() -> None:
    images = textures(1, count=64)
    shuffled = mean_distance(distances(images, images.flip(0)))
    assert 0 < shuffled < 0.5 * mean_distance(distances(images, blurred(images, 1)))


def test_a_channel_shifted_as_a_whole_is_normalised_away() -> None:
    images = textures(1).clamp(60, 200)
    shifted = images.clone()
    shifted[:, 0] += 50
    found = distances(images, shifted)
    assert max(found.values()) < 1e-3


@pytest.mark.parametrize("batch", [1, 3, 12])
def test_descriptors_do_not_depend_on_the_batches(batch: int) -> None:
    images = textures(1)
    whole, cut = described(images, batch=5), described(images, batch=batch)
    assert all(torch.equal(patches_of(whole, resolution), patches_of(cut, resolution)) for resolution in (16, 32))


def test_descriptors_do_not_depend_on_how_work_is_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = textures(1), textures(2)
    before = distances(real, fake)
    monkeypatch.setattr(swd, "_PIXELS_AT_ONCE", 2 * 32 * 32)
    monkeypatch.setattr(swd, "_ROWS_AT_ONCE", 100)
    monkeypatch.setattr(swd, "_PROJECTIONS_AT_ONCE", 12 * 128 * 5)
    assert distances(real, fake) == pytest.approx(before, rel=1e-7)


def test_an_empty_batch_changes_nothing() -> None:
    images = textures(1)
    descriptors = Descriptors(32, len(images))
    for part in (images[:0], images, images[:0]):
        descriptors.add(part)
    assert torch.equal(patches_of(descriptors, 32), patches_of(described(images), 32))


def blurred(images: Tensor, passes: int) -> Tensor:
    result = images.float()
    for _ in range(passes):
        result = swd._binomial(swd._binomial(result, 2, 1), 3, 1)
    return result.to(torch.uint8)


def noisy(images: Tensor, deviation: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(9)) * deviation
    return (images.float() + noise).clamp(0, 255).to(torch.uint8)


def mixed(images: Tensor, share: float) -> Tensor:
    """Each colour channel drawn towards the image's grey: what a shift of a single channel's level does not show."""
    return torch.lerp(images.float(), images.float().mean(1, keepdim=True), share).to(torch.uint8)


@pytest.mark.parametrize(
    ("damage", "strengths"),
    [(blurred, (1, 2, 4)), (noisy, (8, 16, 48)), (mixed, (0.3, 0.6, 0.9))],
    ids=["blur", "noise", "colour"],
)
def test_distance_grows_with_damage(damage, strengths) -> None:
    images = textures(1, count=24)
    found = [mean_distance(distances(images, damage(images, strength))) for strength in strengths]
    assert 0 < found[0] < found[1] < found[2]


def test_noise_shows_at_the_finest_level_first() -> None:
    images = textures(1, count=24, resolution=64)
    found = distances(images, noisy(images, 20))
    assert found[64] > 2 * found[16]


def test_device_and_host_sort_the_same_projections() -> None:
    patches, directions = level(described(textures(1)), 16), swd._directions()[:20]
    host = swd._sorted_on_host(patches, directions)
    device = swd._sorted_on_device(patches, directions)
    assert (host.diff(dim=1) >= 0).all()
    torch.testing.assert_close(host, device, rtol=0, atol=1e-5)


def test_directions_are_unit_vectors_without_a_common_drift() -> None:
    directions = swd._directions()
    assert directions.shape == (512, 147)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(512).double())
    assert float(directions.mean(0).norm()) < 0.1  # 512 random unit vectors: about 1 / sqrt(512) = 0.044


@pytest.mark.gpu
def test_a_gpu_gives_the_same_distances(pair: tuple[Tensor, Tensor]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    descriptors = []
    for images in pair:
        descriptors.append(Descriptors(64, len(images), "cuda"))
        descriptors[-1].add(images.cuda())
    assert by_level(*descriptors, device="cuda") == pytest.approx(distances(*pair), rel=1e-6)


def test_it_is_stopped_between_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swd, "_PROJECTIONS_AT_ONCE", 12 * 128 * 100)  # 512 directions in 6 parts
    patches, asked = patches_of(described(textures(1)), 16), []

    def fourth_time() -> bool:
        asked.append(1)
        return len(asked) == 4

    with pytest.raises(Stopped):
        compared(patches, patches, stopped=fourth_time)
    assert len(asked) == 4


@pytest.mark.parametrize("number", [1, 2, 3])
def test_it_asks_before_it_normalises_each_set(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, done = patches_of(described(textures(1)), 16), []
    normalised = swd._normalised
    monkeypatch.setattr(swd, "_normalised", lambda rows: done.append(1) or normalised(rows))
    asked = iter(range(1, 4))
    with pytest.raises(Stopped):
        compared(patches, patches, stopped=lambda: next(asked) == number)
    assert len(done) == number - 1


@pytest.mark.parametrize("resolution", [0, 4, 8, 48, 100])
def test_resolutions_without_a_pyramid_are_refused(resolution: int) -> None:
    with pytest.raises(Failure, match=f"at resolution {resolution}: it needs a power of two of at least 16"):
        Descriptors(resolution, 10)


def test_a_set_of_nothing_is_refused() -> None:
    with pytest.raises(Failure, match="at least one image, but the set has 0"):
        Descriptors(16, 0)


def test_wrong_images_and_counts_are_refused() -> None:
    descriptors = Descriptors(32, 4)
    with pytest.raises(Failure, match=r"shape \[3, 32, 32\], but was given torch.uint8 of shape \[3, 64, 64\]"):
        descriptors.add(textures(1, resolution=64))
    with pytest.raises(Failure, match=r"but was given torch.float32"):
        descriptors.add(textures(1).float())
    with pytest.raises(Failure, match="use 4 images of this set, but was given 12"):
        descriptors.add(textures(1))
    descriptors.add(textures(1, count=3))
    with pytest.raises(Failure, match="use 4 images of this set, but was given 3"):
        descriptors.check_complete()
