"""`hires-gan project`: the styles that give back a photograph, and pictures that show how well."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hires_gan.errors import UsageError
from hires_gan.inference.distances import DistanceOptions, Kind, choose_kind, make_distance
from hires_gan.inference.files import make_folder, write_whole
from hires_gan.inference.images import Pixels, from_uint8, limit_side, pixels_of, save_png
from hires_gan.inference.projection import (
    Precision,
    Projection,
    ProjectionSettings,
    computing_in,
    image_side,
    project_styles,
)
from hires_gan.inference.rendering import Renderer, Source, open_renderer
from hires_gan.inference.request import STYLES_ENDING, Look
from hires_gan.inference.styles_file import write_styles
from hires_gan.inference.target import open_target
from hires_gan.networks.styles import StyleGenerator
from hires_gan.progress import ProgressBar, say

_NAME = "projected"
_USUAL = ProjectionSettings()
_BEST = DistanceOptions()


def project(
    reference: str,
    image: Path,
    out: Path,
    settings: ProjectionSettings = _USUAL,
    distance: DistanceOptions = _BEST,
    *,
    label: int | None = None,
    precision: Precision = "fp32",
    device: str | None = None,
) -> list[Path]:
    """Find the styles of a picture, and write them, their image, and target, image and difference side by side.

    Args:
        reference: A checkpoint, a run's folder or `models:/NAME/VERSION`.
        image: Any picture; of another size, its central square is resized, which is said.
        out: The folder; made if it is not there.
        settings: How to look; by default as the paper does.
        distance: What is made small; by default the best distance whose weights are at hand.
        label: The class, for a conditional generator.
        precision: In which the four highest resolutions compute while styles are looked for.
        device: Where to compute; by default a GPU if there is one.

    Returns:
        The files, the comparison last.

    Raises:
        UsageError: If the checkpoint or the picture is not there, or an option cannot be used.
        Failure: If the checkpoint is damaged or the folder cannot be written.
    """
    renderer = open_renderer(reference, Look(label=label), device, "to project images")
    if renderer.styled is None:
        raise UsageError(f"{reference} is of Progressive GAN, which has no styles to look for; use a StyleGAN")
    target = open_target(image, image_side(renderer.styled))
    kind, weights = choose_kind(distance)
    make_folder(out)  # before the long work, not behind it
    found, made = _find(renderer, renderer.styled, target, settings, kind, weights, precision)
    say(f"{kind} distance {found.start:.4f} at the mean style, {found.end:.4f} at the end")
    record = {"checkpoint": reference, "image": str(image), "class": label, "precision": precision}
    return _write(out, found, target, made, record | _record(settings, kind, found, target, made))


def _find(
    renderer: Renderer,
    network: StyleGenerator,
    target: Pixels,
    settings: ProjectionSettings,
    kind: Kind,
    weights: Path | None,
    precision: Precision,
) -> tuple[Projection, Pixels]:
    """The styles, and their image as `generate` makes it: in the precision of the checkpoint."""
    pixels = torch.from_numpy(target).permute(2, 0, 1)[None].to(renderer.device)
    measure = make_distance(kind, from_uint8(pixels, renderer.dtype), weights)
    with ProgressBar("project", settings.steps, "steps") as bar, computing_in(network, precision):

        def report(done: int, value: float) -> None:
            bar.advance(done - bar.done, f"{kind} distance {value:.4f}")

        found = project_styles(network, measure, settings, renderer.labels, report)
    return found, pixels_of(renderer.render(Source(_NAME, 0, None, found.styles)))


def _record(
    settings: ProjectionSettings, kind: Kind, found: Projection, target: Pixels, made: Pixels
) -> dict[str, Any]:
    """How it was looked for; the distance at the start and the end, and what pixels say, whatever was made small."""
    mean_square = float(np.square(target.astype(np.float64) - made).mean())
    psnr = 10 * math.log10(255**2 / mean_square) if mean_square else None
    distance = {"name": kind, "start": found.start, "end": found.end, "mean_square": mean_square, "psnr": psnr}
    return {"settings": asdict(settings), "distance": distance}


def _write(out: Path, found: Projection, target: Pixels, made: Pixels, record: dict[str, Any]) -> list[Path]:
    paths = [out / f"{_NAME}{ending}" for ending in (STYLES_ENDING, ".json", ".png")]
    paths.append(out / "comparison.png")
    write_styles(paths[0], found.styles)
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    write_whole(paths[1], lambda partial: partial.write_text(text, encoding="utf-8"))
    save_png(paths[2], made)
    save_png(paths[3], comparison(target, made))
    return paths


def comparison(target: Pixels, made: Pixels) -> Pixels:
    """Target, projection and their absolute difference, side by side.

    Args:
        target: uint8 `[r, r, 3]`.
        made: Likewise.

    Returns:
        uint8 `[r, 3 * r, 3]`, reduced where that is wider than 4096 pixels.
    """
    difference = np.abs(target.astype(np.int16) - made).astype(np.uint8)
    return limit_side(np.concatenate((target, made, difference), axis=1))
