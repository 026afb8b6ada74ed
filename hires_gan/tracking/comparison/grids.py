"""The sample grids of the runs where all have been, from MLflow or from the run's folder."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from hires_gan.tracking.comparison.runs import Run
from hires_gan.tracking.store import reason

_LOGGED = re.compile(r"images/samples~(?P<name>.+?)\+step\+(?P<nimg>\d+)\+timestamp\+(?P<time>\d+)\+[^/]*\.png")
_SAVED = re.compile(r"(?P<nimg>\d{12})(?:_(?P<name>.+))?\.png")
_WIDTHS = ((2, 640), (4, 430), (8, 320))
"""Up to so many runs: pixels a grid is wide; with more runs, 256."""
_AT_ONCE = 4

Places = Mapping[str, Mapping[int, str | Path]]
"""By the grid's name and nimg: an artifact's path, or a file."""


@dataclass(frozen=True)
class Grid:
    """A run's grid, or why there is none.

    Attributes:
        picture: RGB, reduced to the width of the page; None if there is none.
        nimg: Images shown when it was drawn.
        note: What is to be said of it: why it is missing.
    """

    picture: Image.Image | None
    nimg: int | None
    note: str = ""


@dataclass(frozen=True)
class GridRow:
    """The grids of all runs under one name.

    Attributes:
        name: "grid"; for a translation its direction, as in "a_to_b".
        grids: Of each run.
    """

    name: str
    grids: tuple[Grid, ...]

    @property
    def nimg(self) -> int | None:
        """Where all of them were drawn; None if that differs."""
        places = {grid.nimg for grid in self.grids if grid.picture is not None}
        return places.pop() if len(places) == 1 else None


def read_grids(runs: Sequence[Run]) -> list[GridRow]:
    """A row for each name of a grid: the last place at which all runs have one, else the nearest to it that each has.

    What cannot be read becomes a note.
    """
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        listed = list(threads.map(_listed, runs))
        names = sorted({name for places, _ in listed for name in places})
        return [_row(name, runs, listed, threads) for name in names]


def width_for(count: int) -> int:
    """How many pixels a grid is wide, among so many."""
    return next((width for most, width in _WIDTHS if count <= most), 256)


def _row(name: str, runs: Sequence[Run], listed: Sequence[tuple[Places, str]], threads: ThreadPoolExecutor) -> GridRow:
    wanted = meeting_place([set(places.get(name, ())) for places, _ in listed])
    width = width_for(len(runs))
    grids = threads.map(lambda run, found: _grid(run, name, found, wanted, width), runs, listed)
    return GridRow(name, tuple(grids))


def meeting_place(places: Sequence[set[int]]) -> int:
    """The last nimg at which all of those have a grid that have any; without one, the end of the shortest run."""
    some = [own for own in places if own]
    common = set.intersection(*some) if some else set()
    return max(common) if common else min((max(own) for own in some), default=0)


def _grid(run: Run, name: str, listed: tuple[Places, str], wanted: int, width: int) -> Grid:
    places, problem = listed
    own = places.get(name)
    if not own:
        return Grid(None, None, problem or "no such grid in this run")
    nimg = min(own, key=lambda place: (abs(place - wanted), place))
    saved = _saved(run.folder).get(name, {}).get(nimg)
    try:
        return Grid(_read(run, own[nimg], width), nimg)
    except Exception as first:  # whatever a store or a damaged file throws
        if saved is not None and saved != own[nimg]:
            return _grid(run, name, ({name: {nimg: saved}}, ""), wanted, width)
        return Grid(None, nimg, f"the grid of {nimg / 1000:g} kimg cannot be read: {_why(first, own[nimg])}")


def _why(problem: Exception, place: str | Path) -> str:
    """What went wrong; of a file that is no picture, with the name that it has in the store."""
    if isinstance(problem, UnidentifiedImageError):  # which names the file that it was downloaded to
        return f"{place} is damaged, or no PNG file"
    return reason(problem)


def _read(run: Run, place: str | Path, width: int) -> Image.Image:
    if isinstance(place, Path):
        return _reduced(place, width)
    with tempfile.TemporaryDirectory() as folder:
        return _reduced(Path(run.client.download_artifacts(run.run_id, place, folder)), width)


def _reduced(file: Path, width: int) -> Image.Image:
    """The picture at no more than twice the width on the page, for sharp screens."""
    with Image.open(file, formats=("PNG",)) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((width * 2, width * 8), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture


def _listed(run: Run) -> tuple[Places, str]:
    """Where a run's grids are, and if there are none, what stood in the way."""
    problem = ""
    try:
        logged = _logged(run.client, run.run_id)
    except Exception as error:  # the folder may still have them
        logged, problem = {}, f"its images cannot be listed: {reason(error)}"
    places = logged or _saved(run.folder)
    return places, "" if places else problem or "no grids logged"


def _logged(client: Any, run_id: str) -> dict[str, dict[int, str | Path]]:
    found: dict[str, dict[int, str | Path]] = {}
    for file in sorted(client.list_artifacts(run_id, "images"), key=lambda file: str(file.path)):
        match = _LOGGED.fullmatch(file.path)
        if match:  # of two at one place the later stays: times have equal lengths, so paths sort by them
            found.setdefault(match["name"], {})[int(match["nimg"])] = file.path
    return found


def _saved(folder: Path | None) -> dict[str, dict[int, str | Path]]:
    found: dict[str, dict[int, str | Path]] = {}
    for file in sorted((folder / "samples").glob("*.png")) if folder else ():
        match = _SAVED.fullmatch(file.name)
        if match:
            found.setdefault(match["name"] or "grid", {})[int(match["nimg"])] = file
    return found
