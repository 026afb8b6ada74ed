"""Ways through the images of a generator: straight lines in W, great circles among the latents; one frame at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import torch
from torch import Tensor

from hires_gan.errors import UsageError
from hires_gan.inference.images import pixels_of
from hires_gan.inference.rendering import Renderer, Source
from hires_gan.inference.request import Film, Given, Space
from hires_gan.inference.styles_file import Styles, StylesFile
from hires_gan.inference.video import open_film
from hires_gan.progress import ProgressBar, say


def interpolate(renderer: Renderer, given: Given, film: Film, out: Path) -> Path:
    """Write a film that leads through the images in their order.

    Args:
        renderer: The generator, and how images look.
        given: The images, two or more.
        film: How it leads from one to the next.
        out: The folder; made if it is not there.

    Returns:
        The film, or the folder of its frames where there is no ffmpeg.

    Raises:
        UsageError: If there are too few images, or the generator or the files have no such space.
        Failure: If it cannot be written.
    """
    files = renderer.open_files(given)
    space = _usable_space(renderer, film.space, files)
    count = len(given.seeds) + sum(file.count for file in files)
    if count < 2:
        raise UsageError(f"--interpolate needs two images or more, and there is {count}; name more seeds, as in 0-5")
    total = film.frames * count if film.loop else film.frames * (count - 1) + 1
    frames = _frames(renderer, renderer.sources(given, files), film, space)
    with ProgressBar("interpolate", total, "frames") as bar, open_film(out, "interpolation", film.fps) as writer:
        for source in frames:
            writer.add(pixels_of(renderer.render(source)))
            bar.advance()
    return writer.path


def _usable_space(renderer: Renderer, space: Space | None, files: list[StylesFile]) -> Space:
    if renderer.styled is None:
        if space == "w":
            raise UsageError("--space is w, but Progressive GAN has no such space; give --space z, or leave it out")
        return "z"
    if space == "z" and files:
        raise UsageError(f"--space is z, but the styles in {files[0].path} have no latents; give --space w")
    if space is None:
        say("the way leads through W, on straight lines; --space z leads through the latents")
    return space or "w"


def _frames(renderer: Renderer, sources: Iterator[Source], film: Film, space: Space) -> Iterator[Source]:
    """What each frame is made of, numbered from 0; the last image of all closes a way that is no loop."""
    first = last = next(sources)
    stops = chain([first], sources, [first] if film.loop else [])
    number = 0
    for start, end in pairwise(stops):
        for step in range(film.frames):
            yield between(renderer, start, end, step / film.frames, space, number)
            number += 1
        last = end
    if not film.loop:
        yield between(renderer, last, last, 0.0, space, number)


def between(renderer: Renderer, start: Source, end: Source, t: float, space: Space, number: int) -> Source:
    """What lies between two images.

    Args:
        renderer: The generator.
        start: Where t is 0; there the image is this one's, to the last bit.
        end: Where t is 1.
        t: In [0, 1].
        space: As in `Film`.
        number: Chooses the frame's noise, if that is random.
    """
    name = f"frame{number:06d}"
    if space == "z":
        assert start.latents is not None
        assert end.latents is not None
        return renderer.from_latents(name, number, slerp(start.latents, end.latents, t))
    assert start.styles is not None
    assert end.styles is not None
    ws = torch.lerp(start.styles.ws, end.styles.ws, t)
    return Source(name, number, None, Styles(ws, _noise_between(renderer, start.styles, end.styles, t)))


def _noise_between(renderer: Renderer, start: Styles, end: Styles, t: float) -> tuple[Tensor, ...] | None:
    """Noise turns from one image's into the other's, so that it stays as strong; None for the constant one."""
    if start.noise is None and end.noise is None:
        return None
    constant = renderer.constant_noise()
    one, other = (list(styles.noise or ()) for styles in (start, end))
    one, other = one + constant[len(one) :], other + constant[len(other) :]
    return tuple(slerp(a, b, t) for a, b in zip(one, other, strict=True))


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985): directions turn evenly, and lengths change evenly.

    Args:
        a: Any shape; where t is 0.
        b: The same shape; where t is 1.
        t: In [0, 1].

    Returns:
        That shape, in the dtype of `a`; on the straight line between the two if they are parallel or opposite, or one
        of them is zero.
    """
    x, y = a.double().flatten(), b.double().flatten()
    lengths = x.norm(), y.norm()
    cosine = ((x / lengths[0]) @ (y / lengths[1])).clamp(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    if t == 0 or not sine > 1e-6:
        return torch.lerp(a, b, t)
    length = torch.lerp(lengths[0], lengths[1], t)
    direction = torch.sin((1 - t) * angle) * x / lengths[0] + torch.sin(t * angle) * y / lengths[1]
    turned: Tensor = length * direction / sine
    return turned.reshape(a.shape).to(a.dtype)
