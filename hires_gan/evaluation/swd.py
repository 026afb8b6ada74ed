"""Sliced Wasserstein distance between two sets of images, level by level of a Laplacian pyramid.

Karras et al. 2018 (Progressive GAN), section 5: how far apart the distributions of small patches are at each scale. It
needs no trained network. Random places and directions have a fixed seed, so that numbers compare between runs; the k-th
image of every set is sampled at the same places. Each set is normalised by its own mean and deviation, as published: a
channel that is brighter or of more contrast throughout a set goes unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from hires_gan.data.waiting import Asked, Stopped, never
from hires_gan.errors import Failure
from hires_gan.evaluation.crew import Alone, Crew, gathered_in_order, own_chunks
from hires_gan.evaluation.reals import CHUNK
from hires_gan.randomness import Purpose, RandomSource

MAXIMUM_IMAGES = 8192
"""Images per set, at the most; a smaller data set is used whole. The published protocol takes 16,384."""
LOWEST_RESOLUTION = 16
"""Resolution of the pyramid's last level, which holds what remains of the image."""
PATCHES_PER_IMAGE = 128
PATCH_SIZE = 7
DIRECTIONS = 512
VALUES = 3 * PATCH_SIZE**2
"""Numbers in one patch: 3 channels of 7 x 7."""

_SEED = 0
_LEVELS_RESERVED = 32  # random numbers of image k at level log2(resolution) are those of sample 32 k + level
_PIXELS_AT_ONCE = 2**20  # per chunk of a batch: bounds the pyramid's temporaries (about 60 MB)
_ROWS_AT_ONCE = 2**12  # patches converted to float64 at a time
_PROJECTIONS_AT_ONCE = 2**23  # numbers sorted at a time and set (34 MB)
_LEVELS_TO_COMPARE = 3  # what comparing one level takes beside the descriptors, in levels of one set
_LEVELS_TO_GATHER = 3  # and what it takes to gather one: those of both sets, and of one what the processes gave


def _binomial(images: Tensor, axis: int, step: int) -> Tensor:
    """Filter one axis with [1, 4, 6, 4, 1] / 16, reflecting at the borders, and keep every `step`-th value.

    Sums of slices rather than a convolution: cuDNN would round float32 to TF32.
    """
    padded = pad(images, (2, 2, 0, 0) if axis == 3 else (0, 0, 2, 2), mode="reflect")
    length = images.shape[axis]
    a, b, c, d, e = (padded.narrow(axis, i, length) for i in range(5))
    if step > 1:
        kept = torch.arange(0, length, step, device=images.device)
        a, b, c, d, e = (part.index_select(axis, kept) for part in (a, b, c, d, e))
    return (a + e + 4 * (b + d) + 6 * c) / 16


def _down(images: Tensor) -> Tensor:
    """`[n, 3, H, W]` to `[n, 3, H/2, W/2]`."""
    return _binomial(_binomial(images, axis=2, step=2), axis=3, step=2)


def _up(images: Tensor) -> Tensor:
    """`[n, 3, H, W]` to `[n, 3, 2H, 2W]`: zeros between the pixels, filtered, times 2 per axis."""
    for axis in (2, 3):
        spread = torch.stack((images, torch.zeros_like(images)), dim=axis + 1).flatten(axis, axis + 1)
        images = 2 * _binomial(spread, axis, step=1)
    return images


def laplacian_pyramid(images: Tensor) -> dict[int, Tensor]:
    """Each level is what the next coarser one, doubled in size, lacks; the last one is the small image itself.

    Args:
        images: float `[n, 3, R, R]`, R a power of two of at least 16.

    Returns:
        The levels by resolution, from R down to 16.
    """
    levels = {}
    while images.shape[-1] > LOWEST_RESOLUTION:
        smaller = _down(images)
        levels[images.shape[-1]] = images - _up(smaller)
        images = smaller
    levels[images.shape[-1]] = images
    return levels


def _patches(images: Tensor, numbers: Tensor) -> Tensor:
    """128 patches per image of one level, `[n * 128, 147]`; `numbers`, int64 `[n]`, are those of the images."""
    count, resolution = images.shape[0], images.shape[-1]
    samples = numbers * _LEVELS_RESERVED + resolution.bit_length() - 1
    corners = RandomSource(_SEED).integers(
        Purpose.SWD_PATCH, samples, resolution - PATCH_SIZE + 1, (PATCHES_PER_IMAGE, 2)
    )
    y, x = corners.to(images.device).unbind(-1)
    windows = images.unfold(2, PATCH_SIZE, 1).unfold(3, PATCH_SIZE, 1)
    chosen = windows[torch.arange(count, device=images.device)[:, None], :, y, x]
    return chosen.reshape(count * PATCHES_PER_IMAGE, VALUES)


def _normalised(patches: Tensor) -> Tensor:
    """Each colour channel with mean 0 and standard deviation 1 over all patches; one that never varies becomes 0.

    In float64, a few rows at a time, and rounded once: a mean rounded to float32 would shift the whole set.
    """
    channels = patches.reshape(-1, 3, PATCH_SIZE**2)
    parts = torch.split(channels, _ROWS_AT_ONCE)
    size = channels.shape[0] * channels.shape[2]
    mean = torch.stack([part.double().sum((0, 2)) for part in parts]).sum(0)[:, None] / size
    squares = torch.stack([(part.double() - mean).square().sum((0, 2)) for part in parts]).sum(0)[:, None]
    deviation = (squares / size).sqrt()
    deviation = torch.where(deviation > 0, deviation, 1)
    result = torch.empty_like(channels)
    for part, normalised in zip(parts, torch.split(result, _ROWS_AT_ONCE), strict=True):
        normalised.copy_((part.double() - mean) / deviation)
    return result.reshape(patches.shape)


_ALONE = Alone()


class Descriptors:
    """The patches of one set of images, or of this process's share of them, added batch by batch.

    The same images give the same descriptors however they are cut into batches. Patches lie in host memory as float32,
    75 kB per image and level: 617 MB per level of 8,192 images, 4.3 GB for the 7 levels of 1024x1024 (and as much for
    the other set); the device holds one level at a time.

    Args:
        resolution: Height and width of the images, a power of two of at least 16.
        count: How many images the set will have, at least 1.
        device: Where pyramids and distances are computed.
        crew: The processes that share the set: each adds the images of its own chunks of `CHUNK`.

    Attributes:
        own: How many images this process adds.
        added: How many it has added.

    Raises:
        Failure: The resolution or the count cannot be used.
    """

    def __init__(self, resolution: int, count: int, device: torch.device | str = "cpu", crew: Crew = _ALONE) -> None:
        if resolution < LOWEST_RESOLUTION or resolution & (resolution - 1):
            raise Failure(
                f"The sliced Wasserstein distance cannot be taken at resolution {resolution}: it needs a power of two "
                f"of at least {LOWEST_RESOLUTION}; evaluate larger images or choose another metric."
            )
        if count < 1:
            raise Failure(f"The sliced Wasserstein distance needs at least one image, but the set has {count}.")
        self.resolution = resolution
        self.count = count
        self.device = torch.device(device)
        self._crew = crew
        numbers = [number for chunk in own_chunks(count, CHUNK, crew) for number in chunk]
        self._numbers, self.own, self.added = torch.tensor(numbers, dtype=torch.int64), len(numbers), 0
        steps = range(LOWEST_RESOLUTION.bit_length() - 1, resolution.bit_length())
        self._patches = {2**step: torch.empty(self.own * PATCHES_PER_IMAGE, VALUES) for step in steps}

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The levels, from 16 up to the resolution of the images."""
        return tuple(self._patches)

    def add(self, images: Tensor) -> None:
        """Take the patches of this process's next images.

        Args:
            images: uint8 `[n, 3, R, R]` on any device.

        Raises:
            Failure: The images have another shape or type, or are more than the set was to have.
        """
        expected = (3, self.resolution, self.resolution)
        if images.dtype != torch.uint8 or images.shape[1:] != expected:
            raise Failure(
                f"The sliced Wasserstein distance at resolution {self.resolution} takes uint8 images of shape "
                f"{list(expected)}, but was given {images.dtype} of shape {list(images.shape[1:])}."
            )
        if self.added + len(images) > self.own:
            raise Failure(
                f"The sliced Wasserstein distance was to use {self.own} images of this set, but was given "
                f"{self.added + len(images)}."
            )
        for chunk in torch.split(images, max(1, _PIXELS_AT_ONCE // self.resolution**2)):
            self._add(chunk)

    def _add(self, images: Tensor) -> None:
        rows = slice(self.added * PATCHES_PER_IMAGE, (self.added + len(images)) * PATCHES_PER_IMAGE)
        numbers = self._numbers[self.added : self.added + len(images)]
        for resolution, level in laplacian_pyramid(images.to(self.device, torch.float32)).items():
            self._patches[resolution][rows] = _patches(level, numbers).cpu()
        self.added += len(images)

    def check_complete(self) -> None:
        """Make sure that all images of this process were added.

        Raises:
            Failure: If not.
        """
        if self.added != self.own:
            raise Failure(
                f"The sliced Wasserstein distance was to use {self.own} images of this set, but was given {self.added}."
            )

    def gathered(self, resolution: int) -> Tensor | None:
        """The patches of one level, of all processes: float32 `[count * 128, 147]` on the CPU of the first one.

        All of them have to take part; on the others it is None.
        """
        rows = self._patches[resolution]
        length = CHUNK * PATCHES_PER_IMAGE
        return gathered_in_order(rows, self.count * PATCHES_PER_IMAGE, length, self._crew)


def _directions() -> Tensor:
    """Unit vectors, float64 `[512, 147]`, uniform on the sphere."""
    normals = RandomSource(_SEED).normal(Purpose.SWD_DIRECTION, torch.arange(DIRECTIONS), (VALUES,)).double()
    lengths: Tensor = normals.norm(dim=1, keepdim=True)
    return normals / lengths


def _sorted_on_host(patches: Tensor, directions: Tensor) -> Tensor:
    """`_sorted_projections` for the CPU."""
    projections: Tensor = directions.to(patches.dtype) @ patches.T
    projections.numpy().sort(axis=1)  # vectorised: some 20 times as fast as torch's, which tracks indices too
    return projections


def _sorted_on_device(patches: Tensor, directions: Tensor) -> Tensor:
    """`_sorted_projections` for an accelerator: in float64, since the run may have allowed TF32 for float32."""
    parts = [(directions @ part.double().T).float() for part in torch.split(patches, _ROWS_AT_ONCE)]
    ascending: Tensor = torch.cat(parts, dim=1).sort(dim=1).values
    return ascending


def _sorted_projections(patches: Tensor, directions: Tensor) -> Tensor:
    """The patches' coordinates along each direction in ascending order: float32 `[directions, patches]`."""
    sort = _sorted_on_host if patches.device.type == "cpu" else _sorted_on_device
    return sort(patches, directions)


def memory_needed(resolution: int, count: int, sets: int, crew: Crew = _ALONE) -> int:
    """Bytes of host memory for the descriptors of that many sets, and for comparing one level of them on the CPU.

    Args:
        resolution: Of the images.
        count: Images in each set.
        sets: How many sets are still to be described.
        crew: The processes that share them, some of them on this machine.
    """
    levels = resolution.bit_length() - LOWEST_RESOLUTION.bit_length() + 1
    own = sum(map(len, own_chunks(count, CHUNK, crew)))
    held = min(count, own * crew.neighbours) * levels * sets
    compared = count * (_LEVELS_TO_COMPARE + (_LEVELS_TO_GATHER if crew.size > 1 else 0)) if crew.first else 0
    return (held + compared) * PATCHES_PER_IMAGE * VALUES * 4


def compared(real: Tensor, fake: Tensor, device: torch.device | str = "cpu", stopped: Asked = never) -> float:
    """The distance at one level, from the patches of both sets: the mean absolute difference of sorted projections.

    Times 1,000; 0 for equal sets, the smaller the closer. It takes both sets' patches of the level, normalised, and
    what is being sorted, on the device: 2 GB for 8,192 images each.

    Args:
        real: What `Descriptors.gathered` gave: float32 `[n * 128, 147]`.
        fake: Likewise, as many.
        device: Where it is computed.
        stopped: Asked before each set is normalised, and between some of the directions and the next ones: on a CPU, a
            level may take minutes.

    Raises:
        Stopped: If `stopped` became true.
    """
    real, fake = (_normalised(patches.to(device)) for patches in _asking((real, fake), stopped))
    total = 0.0
    parts = torch.split(_directions().to(device), max(1, _PROJECTIONS_AT_ONCE // len(real)))
    for part in _asking(parts, stopped):
        difference = _sorted_projections(real, part) - _sorted_projections(fake, part)
        total += float(difference.abs_().sum(dtype=torch.float64))
    return 1000 * total / (DIRECTIONS * len(real))


def _asking(parts: Iterable[Tensor], stopped: Asked) -> Iterator[Tensor]:
    """These, asking before each of them whether to stop."""
    for part in parts:
        if stopped():
            raise Stopped
        yield part


def mean_distance(distances: Mapping[int, float]) -> float:
    """The sliced Wasserstein distance as one number: the mean over the levels."""
    return sum(distances.values()) / len(distances)
