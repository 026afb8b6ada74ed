"""`hires-gan translate`: pictures of one domain in styles of another, their grid, and films from style to style."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from hires_gan.errors import Failure, UsageError
from hires_gan.inference.files import make_folder
from hires_gan.inference.images import Pixels, save_png
from hires_gan.inference.target import UNREADABLE, unusable
from hires_gan.inference.translation.film import even, steps_of, styles_between
from hires_gan.inference.translation.grid import Grid
from hires_gan.inference.translation.outputs import Outputs, outputs_of
from hires_gan.inference.translation.pictures import Remarks, list_pictures, read_picture, reason
from hires_gan.inference.translation.rendering import Content, Translation, open_translator
from hires_gan.inference.translation.request import TranslateRequest, parse_translation
from hires_gan.inference.video import open_film
from hires_gan.networks.munit_tiles import Progress
from hires_gan.progress import ProgressBar, say

_CELL_OF_KEPT = 256
"""Pixels of the grid's cells at least, where pictures are left as large as they are."""


def translate(
    reference: str | Path,
    sources: Sequence[str | Path],
    target: str,
    out: str | Path,
    *,
    source: str | None = None,
    size: int | str | None = None,
    styles: int | None = None,
    style: Sequence[str | Path] = (),
    seed: int | None = None,
    interpolate: bool = False,
    frames: int | None = None,
    fps: int | None = None,
    loop: bool = False,
    tile: int | str = "auto",
    device: str | None = None,
) -> list[Path]:
    """Write pictures in styles of another domain, and a grid: a row for each picture, and behind it its translations.

    Args:
        reference: A checkpoint, a run's folder or `models:/NAME/VERSION`.
        sources: Pictures, and folders of pictures, of any kind that `prepare` reads and of any size.
        target: The domain to which they are translated.
        out: The folder; made if it is not there.
        source: The pictures' own domain; by default the other one of two.
        size: Pixels of the shorter side, to which pictures are resized; "keep" to leave them; by default the resolution
            of the checkpoint.
        styles: How many styles are drawn, by default 4; each is the same for all pictures.
        style: Pictures of the target domain, and folders of them, whose styles are taken instead.
        seed: In [0, 2^32): which styles are drawn; by default 0.
        interpolate: Make a film of each picture, from style to style.
        frames: Of the film, from one style to the next; by default 30.
        fps: Frames in a second; by default 30.
        loop: Whether the film returns to the first style.
        tile: Side of the tiles in which an image is computed, "none" for whole images; "auto" for whole ones up to
            2048x2048 pixels, and tiles of 1024 for others.
        device: Where to compute; by default a GPU if there is one.

    Returns:
        The files, the grid last. Pictures that cannot be read are named, and have none.

    Raises:
        UsageError: If the checkpoint, a picture, a domain or an option cannot be used.
        Failure: If the checkpoint is damaged, no picture can be read, or the folder cannot be written.
    """
    request = parse_translation(
        target,
        source,
        size=size,
        styles=styles,
        style=[Path(path) for path in style],
        seed=seed,
        interpolate=interpolate,
        frames=frames,
        fps=fps,
        loop=loop,
        tile=tile,
    )
    return answer(str(reference), request, [Path(path) for path in sources], Path(out), device)


def answer(
    reference: str, request: TranslateRequest, sources: Sequence[Path], out: Path, device: str | None = None
) -> list[Path]:
    """Do what one call of `translate` asks for; see there.

    Args:
        reference: A checkpoint, a run's folder or `models:/NAME/VERSION`.
        request: What to make.
        sources: Pictures, and folders of pictures.
        out: The folder; made if it is not there.
        device: Where to compute; by default a GPU if there is one.
    """
    pictures = list_pictures(sources, "SRC")
    shown = list_pictures(request.style, "--style") if request.style else []
    if request.film is not None and len(shown) == 1:
        raise UsageError(f"--interpolate needs two styles or more, and --style gives only {shown[0]}; give another one")
    outputs = outputs_of(request, pictures, shown, out)
    translation = open_translator(reference, request.target, request.source, request.tile, device)
    make_folder(out)
    return _Work(translation, outputs).done()


class _Work:
    """All pictures of one call, one after the other.

    Args:
        translation: The networks.
        outputs: What is made of which files.
    """

    def __init__(self, translation: Translation, outputs: Outputs) -> None:
        self._translation, self._outputs = translation, outputs
        self._remarks = Remarks("pictures")
        self._steps = [] if outputs.film is None else steps_of(outputs.images)
        columns = len(self._steps) or len(outputs.labels)
        header = bool(outputs.shown) and outputs.film is None
        cell = outputs.side(translation.resolution) or max(translation.resolution, _CELL_OF_KEPT)
        self._grid = Grid(len(outputs.pictures), columns, cell, header)
        self._styles = _encoded_styles(translation, outputs.shown, self._grid if header else None)
        self._styles += translation.drawn_styles(outputs.request.styles, outputs.request.seed)

    def done(self) -> list[Path]:
        """Do it; the files, the grid last.

        Raises:
            Failure: If no picture can be read, or something cannot be written.
        """
        outputs, paths = self._outputs, list[Path]()
        say(f"from domain {self._translation.source} to domain {self._translation.target}")
        make = self._images_of if outputs.film is None else self._film_of
        unit = "images" if outputs.film is None else "frames"
        with ProgressBar("translate", len(outputs.pictures) * outputs.images, unit) as bar:
            for row, (name, shown_as, pixels) in enumerate(self._read(bar)):
                self._grid.put(row, 0, pixels)
                content = self._translation.content_of(pixels, shown_as, self._remarks, _passes(bar))
                paths += make(row, name, content, bar)
        self._remarks.sum_up(len(outputs.pictures))
        save_png(outputs.grid, self._grid.pixels)
        return [*paths, outputs.grid]

    def _read(self, bar: ProgressBar) -> Iterator[tuple[str, str, Pixels]]:
        """The name for its files, the file's own name, and the pixels of each picture that can be read."""
        outputs, skipped = self._outputs, 0
        for path, name in zip(outputs.pictures, outputs.names, strict=True):
            try:
                pixels = read_picture(path, outputs.side(self._translation.resolution), self._remarks)
            except UNREADABLE as error:
                say(f"{path} is skipped: {reason(error)}")
                skipped += 1
                bar.advance(outputs.images)
                continue
            yield name, path.name, pixels
        if skipped:
            say(f"{skipped} of {len(outputs.pictures)} pictures could not be used")
        if skipped == len(outputs.pictures):
            raise Failure("there is no picture that can be used, so that nothing is written; give others")

    def _images_of(self, row: int, name: str, content: Content, bar: ProgressBar) -> list[Path]:
        paths = [self._outputs.image_of(name, label) for label in self._outputs.labels]
        for column, (path, style) in enumerate(zip(paths, self._styles, strict=True), 1):
            pixels = self._translation.image_of(content, style, _passes(bar))
            save_png(path, pixels)
            self._grid.put(row, column, pixels)
            bar.advance()
        return paths

    def _film_of(self, row: int, name: str, content: Content, bar: ProgressBar) -> list[Path]:
        film = self._outputs.film
        assert film is not None
        way = styles_between(self._styles, film, drawn=not self._outputs.shown)
        with open_film(self._outputs.out, self._outputs.film_of(name).name, film.fps) as writer:
            for number, style in enumerate(way):
                pixels = self._translation.image_of(content, style, _passes(bar))
                writer.add(even(pixels))
                if number in self._steps:
                    self._grid.put(row, 1 + self._steps.index(number), pixels)
                bar.advance()
        return [writer.path]


def _passes(bar: ProgressBar) -> Progress:
    """What shows on the bar how far one image is that is computed in tiles."""
    return lambda done, total: bar.advance(0, f"tile {done} of {total}")


def _encoded_styles(translation: Translation, shown: Sequence[Path], grid: Grid | None) -> list[Tensor]:
    """The styles of pictures, `[1, style_size]` each; the pictures become the grid's header, if it has one."""
    remarks = Remarks("pictures of styles")
    styles: list[Tensor] = []
    for column, path in enumerate(shown, 1):
        try:
            pixels = read_picture(path, translation.resolution, remarks)
        except UNREADABLE as error:
            raise unusable("--style", path, error) from None
        styles.append(translation.style_of(pixels))
        if grid is not None:
            grid.put(-1, column, pixels)
    remarks.sum_up(len(shown))
    return styles
