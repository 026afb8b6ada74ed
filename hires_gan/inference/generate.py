"""`hires-gan generate`: images from seeds or styles and their grid, tables of mixed styles, films."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hires_gan.inference.images import grid, pixels_of, save_png
from hires_gan.inference.interpolate import interpolate
from hires_gan.inference.mixing import mix
from hires_gan.inference.rendering import Renderer, open_renderer
from hires_gan.inference.request import Given, Look, Noise, Request
from hires_gan.progress import ProgressBar, say

_GRID_LIMIT = 4096
"""Most pixels per side of the grid; more images than fit are only written one by one."""


def generate(
    reference: str,
    seeds: Sequence[int],
    out: Path,
    *,
    styles: Sequence[Path] = (),
    truncation: float = 1.0,
    cutoff: int | None = None,
    label: int | None = None,
    noise: Noise = "constant",
    device: str | None = None,
) -> list[Path]:
    """Write one image per row of styles and per seed, and their grid.

    Args:
        reference: A checkpoint, a run's folder or `models:/NAME/VERSION`.
        seeds: One image each; the same seed gives the same image in any list.
        out: The folder; made if it is not there.
        styles: Files of styles, as `project` writes them.
        truncation: How far styles may lie from their mean; Progressive GAN, which has none, allows 1 alone.
        cutoff: Only the first so many layers are truncated; None for all.
        label: The class, for a conditional generator.
        noise: Of the layers: the constant one, one that belongs to each image ("random"), or "none".
        device: Where to compute; by default a GPU if there is one.

    Returns:
        The files, the grid last.

    Raises:
        UsageError: If the checkpoint is not there, or a class, the truncation, a file or the device cannot be used.
        Failure: If the checkpoint is damaged or the folder cannot be written.
    """
    look = Look(truncation, cutoff, label, noise)
    return answer(reference, Request(Given(seeds, styles), look), out, device)


def answer(reference: str, request: Request, out: Path, device: str | None = None) -> list[Path]:
    """Do what one call of `generate` asks for.

    Args:
        reference: A checkpoint, a run's folder or `models:/NAME/VERSION`.
        request: What to make.
        out: The folder; made if it is not there.
        device: Where to compute; by default a GPU if there is one.

    Returns:
        The files; the one to look at first comes last.

    Raises:
        UsageError: If the checkpoint is not there, or what is asked for cannot be had of it.
        Failure: If the checkpoint is damaged or the folder cannot be written.
    """
    renderer = open_renderer(reference, request.look, device)
    if request.mixing is not None:
        return mix(renderer, request.mixing, out)
    if request.film is not None:
        return [interpolate(renderer, request.given, request.film, out)]
    return _write_all(renderer, request.given, out)


def _write_all(renderer: Renderer, given: Given, out: Path) -> list[Path]:
    files = renderer.open_files(given)
    total = len(given.seeds) + sum(file.count for file in files)
    paths: list[Path] = []
    kept: list[Tensor] = []
    with ProgressBar("generate", total) as bar:
        for source in renderer.sources(given, files):
            image = renderer.render(source)
            paths.append(out / f"{source.name}.png")
            save_png(paths[-1], pixels_of(image))
            if len(kept) * image.shape[-1] ** 2 < _GRID_LIMIT**2:
                kept.append(image)
            bar.advance()
    if len(kept) < total:
        say(f"the grid shows the first {len(kept)} of {total} images: it is at most {_GRID_LIMIT} pixels wide")
    paths.append(out / "grid.png")
    save_png(paths[-1], grid(torch.cat(kept)))
    return paths
