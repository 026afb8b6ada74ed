"""What one call of `translate` makes of which files, and where: distinct names, and nothing read is written over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hires_gan.errors import UsageError
from hires_gan.inference.request import Film
from hires_gan.inference.translation.film import frames_of
from hires_gan.inference.translation.pictures import distinct_names
from hires_gan.inference.translation.request import TranslateRequest


@dataclass(frozen=True)
class Outputs:
    """What is made of which files.

    Attributes:
        pictures: To be translated.
        names: By which their files are called.
        shown: Pictures that give the styles; none where these are drawn.
        labels: What the styles are called in names of files.
        request: What to make.
        out: The folder.
    """

    pictures: Sequence[Path]
    names: Sequence[str]
    shown: Sequence[Path]
    labels: Sequence[str]
    request: TranslateRequest
    out: Path

    @property
    def film(self) -> Film | None:
        """How films lead from style to style; None for single images."""
        return self.request.film

    @property
    def images(self) -> int:
        """How many are made of each picture."""
        return len(self.labels) if self.film is None else frames_of(self.film, len(self.labels))

    @property
    def grid(self) -> Path:
        """The file of the grid."""
        return self.out / "grid.png"

    def side(self, resolution: int) -> int | None:
        """What the shorter side of pictures becomes; None to leave them.

        Args:
            resolution: Of the checkpoint, in pixels.
        """
        size = self.request.size
        return resolution if size is None else None if size == "keep" else size

    def film_of(self, name: str) -> Path:
        """The film of a picture, without an ending."""
        return self.out / f"{name}_to_{self.request.target}"

    def image_of(self, name: str, label: str) -> Path:
        """The file of a picture in a style."""
        return self.out / f"{name}_to_{self.request.target}_{label}.png"


def outputs_of(request: TranslateRequest, pictures: Sequence[Path], shown: Sequence[Path], out: Path) -> Outputs:
    """Names for all that is made.

    Args:
        request: What to make.
        pictures: To be translated.
        shown: Pictures that give the styles; none where these are drawn.
        out: The folder.

    Raises:
        UsageError: If something that is read would be written over, or two images would have one file.
    """
    drawn = [f"style{number:04d}" for number in range(request.styles)]
    labels = [f"by_{name}" for name in distinct_names(shown)] if shown else drawn
    outputs = Outputs(pictures, distinct_names(pictures), shown, labels, request, out)
    written = _written(outputs)
    places = {path.resolve() for path in written}
    if len(places) < len(written):
        raise UsageError("two images would have one file, by the names of SRC and --style; rename some of these")
    for path in (*pictures, *shown):
        if path.resolve() in places or path.resolve().parent in places:
            raise UsageError(f"--out is {out}, where {path} would be written over; choose another folder")
    return outputs


def _written(outputs: Outputs) -> list[Path]:
    """All files, and folders of frames."""
    if outputs.film is None:
        return [outputs.grid, *(outputs.image_of(name, label) for name in outputs.names for label in outputs.labels)]
    films = [outputs.film_of(name) for name in outputs.names]
    return [outputs.grid, *films, *(film.with_name(f"{film.name}.mp4") for film in films)]
