"""`hires-gan generate`: images from seeds, one PNG file each, and their grid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hires_gan.errors import UsageError
from hires_gan.inference.images import grid, save_png, to_uint8
from hires_gan.inference.loading import build, find
from hires_gan.ops.selection import explain
from hires_gan.progress import ProgressBar, say
from hires_gan.randomness import Purpose, RandomSource

_GRID_LIMIT = 4096
"""Most pixels per side of the grid; more images than fit are only written one by one."""


def parse_seeds(text: str) -> list[int]:
    """`0-3,8` -> [0, 1, 2, 3, 8].

    Raises:
        UsageError: If it is no list of numbers and ranges.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise UsageError(f"--seeds is {text!r}; numbers and ranges are allowed, such as 0-15 or 1,5,8-10")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= 2**32:
            raise UsageError(f"--seeds has the range {part.strip()}; it must ascend and stay below 2^32")
        seeds.extend(range(first, last + 1))
    return seeds


def generate(
    reference: str,
    seeds: Sequence[int],
    out: Path,
    *,
    truncation: float = 1.0,
    label: int | None = None,
    device: str | None = None,
) -> list[Path]:
    """Write one image per seed, and their grid.

    Args:
        reference: A checkpoint, a run's folder or `models:/NAME/VERSION`.
        seeds: One image each; the same seed gives the same image in any list.
        out: The folder; made if it is not there.
        truncation: How far styles may lie from their mean; Progressive GAN, which has none, allows 1 alone.
        label: The class, for a conditional generator.
        device: Where to compute; by default a GPU if there is one.

    Returns:
        The files, the grid last.

    Raises:
        UsageError: If the checkpoint is not there, or a class, the truncation or the device cannot be used.
        Failure: If the checkpoint is damaged or the folder cannot be written.
    """
    place = _usable(device)
    network = build(find(reference))
    _check_label(network, label)
    if truncation != 1:
        raise UsageError(
            f"--truncation is {truncation}, but Progressive GAN has no space of styles in which to truncate; "
            f"leave it out"
        )
    say(explain(place))
    return _write_all(network.to(place), seeds, out, label, place)


def _usable(device: str | None) -> torch.device:
    """The device of that name, by default a GPU if there is one.

    Raises:
        UsageError: If torch cannot compute there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        place = torch.device(device or ("cuda" if gpus else "cpu"))
        torch.zeros(1, device=place).cpu()  # a name may be known and the device absent
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        found = f"one of cpu, cuda, cuda:0 to cuda:{gpus - 1}" if gpus else "cpu, since there is no GPU"
        raise UsageError(f"--device is {device}, which cannot be used on this machine; give {found}") from error
    return place


def _write_all(
    network: nn.Module, seeds: Sequence[int], out: Path, label: int | None, device: torch.device
) -> list[Path]:
    paths: list[Path] = []
    kept: list[Tensor] = []
    with ProgressBar("generate", len(seeds)) as bar:
        for seed in seeds:
            image = _one(network, seed, label, device)
            paths.append(out / f"seed{seed:010d}.png")
            save_png(paths[-1], image[0].permute(1, 2, 0).numpy())
            if len(kept) * image.shape[-1] ** 2 < _GRID_LIMIT**2:
                kept.append(image)
            bar.advance()
    if len(kept) < len(seeds):
        say(f"the grid shows the first {len(kept)} of {len(seeds)} images: it is at most {_GRID_LIMIT} pixels wide")
    paths.append(out / "grid.png")
    save_png(paths[-1], grid(torch.cat(kept)))
    return paths


def _one(network: nn.Module, seed: int, label: int | None, device: torch.device) -> Tensor:
    """uint8 `[1, 3, r, r]` on the CPU; one at a time, so that no image depends on its neighbours' number."""
    dtype = next(network.parameters()).dtype
    size: int = network.latent_size  # type: ignore[assignment]
    latents = RandomSource(seed).normal(Purpose.LATENT_SAMPLE, torch.zeros(1, dtype=torch.int64), (size,))
    labels = None if label is None else torch.tensor([label], device=device)
    with torch.no_grad():
        images: Tensor = network(latents.to(device, dtype), labels)
    return to_uint8(images).cpu()


def _check_label(network: nn.Module, label: int | None) -> None:
    classes: int = network.classes  # type: ignore[assignment]
    if label is None and classes:
        raise UsageError(
            f"the generator is conditional: choose one of its {classes} classes with --class 0..{classes - 1}"
        )
    if label is not None and not classes:
        raise UsageError("--class is given, but the generator is unconditional; leave it out")
    if label is not None and not 0 <= label < classes:
        raise UsageError(f"--class is {label}; the generator has the classes 0 to {classes - 1}")
